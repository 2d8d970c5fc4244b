"""A pytest plugin that keeps what the tests call kernels with: `pytest -p tests.targets.record --record FILE ...`.

The kernels' own tests already know arguments that make sense for every kernel, so nobody keeps a second list. Of each
kernel the first few and the largest calls are kept. `replay.py` reads the file.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np

from engine.kernels import _jit

FIRST, LARGEST = 4, 12
BYTES_MAX = 1 << 20
Case = list[tuple[str, np.ndarray]]


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--record", type=Path, required=True)


def pytest_configure(config: Any) -> None:
    """Wrap every call of a kernel that Numba compiled."""
    cases: dict[str, list[Case]] = {}
    config.hedgerow_cases = cases
    call = _jit.Kernel.__call__

    def recorded(kernel: Any, *arguments: Any) -> Any:
        names = inspect.signature(kernel.function).parameters
        case = [(name, np.array(value)) for name, value in zip(names, arguments, strict=True)]
        result = call(kernel, *arguments)
        keep(cases.setdefault(f"{kernel.__module__} {kernel.__name__}", []), case)
        return result

    def bound(kernel: Any, *arguments: Any) -> Any:
        return lambda: recorded(kernel, *arguments)

    _jit.Kernel.__call__, _jit.Kernel.bind = recorded, bound


def pytest_sessionfinish(session: Any) -> None:
    """Write one line of JSON, then the arrays' bytes."""
    header, blob = [], bytearray()
    for kernel, cases in sorted(session.config.hedgerow_cases.items()):
        for case in cases:
            described = []
            for name, array in case:
                described.append((name, array.dtype.str, array.shape, len(blob)))
                blob += array.tobytes()
            header.append((*kernel.split(), described))
    session.config.option.record.write_bytes(json.dumps(header).encode() + b"\n" + blob)


def keep(kept: list[Case], case: Case) -> None:
    """Keep the first, and of the others the largest that are not too large."""
    if size_of(case) <= BYTES_MAX or not kept:
        kept.append(case)
    if len(kept) > FIRST + LARGEST:
        del kept[min(range(FIRST, len(kept)), key=lambda place: size_of(kept[place]))]


def size_of(case: Case) -> int:
    return sum(array.nbytes for _, array in case)
