"""Call every kernel as once before, and print a digest of what each did: `python -m tests.targets.replay FILE`.

Needs NumPy and the engine, no test tool: it also runs where there is nothing else. Two machines agree to the bit where
they print the same. What a kernel leaves in its scratch is its own affair. Every NaN counts as the same one: its sign
and payload, alone among all bits, differ between processors, and no NaN ever leaves the engine.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path

import numpy as np

from engine.kernels._jit import kernels_in_use


def replay(calls: bytes) -> dict[str, str]:
    """Give a digest for each kernel in the recorded calls."""
    head, _, blob = calls.partition(b"\n")
    totals: dict[str, hashlib._Hash] = {}
    for module, name, described in json.loads(head):
        arguments = [restored(blob, *where) for _, *where in described]
        result = getattr(importlib.import_module(module), name)(*arguments)
        total = totals.setdefault(f"{module} {name}", hashlib.sha256())
        total.update(canonical(np.array(result if result is not None else 0)))
        for (argument, *_), value in zip(described, arguments, strict=True):
            if argument != "scratch":
                total.update(canonical(np.asarray(value)))
    return {kernel: total.hexdigest()[:16] for kernel, total in totals.items()}


def restored(blob: bytes, dtype: str, shape: list[int], start: int) -> np.ndarray | int | float:
    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    array = np.frombuffer(blob, kind, count, start).reshape(shape).copy()
    return array if shape else array.item()


def canonical(array: np.ndarray) -> bytes:
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return array.tobytes()


if __name__ == "__main__":
    print(json.dumps({"in use": kernels_in_use(), **replay(Path(sys.argv[1]).read_bytes())}))
