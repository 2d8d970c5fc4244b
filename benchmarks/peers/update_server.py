"""Codes updates when asked to, in a peer's own environment: what the three scripts beside this one have in common.

    python <script> UPDATES.npz      then, line by line on standard input: {"coder": name, "update": number}

UPDATES.npz holds for each update `i<number>` uint32 [k], `v<number>` float32 [k] and `s<number>` int64 [T, 2], the
rows and columns of its tensors. Each line is answered by {"bytes", "encode_ms", "decode_ms"}, of one encoding and one
decoding, which must give back what went in; the times are this process's processor time.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Sample:
    """`values` float32 [k] at `indices` uint32 [k] of tensors [T, 2]."""

    indices: Any
    values: Any
    shapes: Any

    @property
    def size(self) -> int:
        """How many parameters the tensors have."""
        return int((self.shapes[:, 0] * self.shapes[:, 1]).sum())

    def tensors(self) -> list[Any]:
        """The update as dense float32 tensors."""
        flat = np.zeros(self.size, np.float32)
        flat[self.indices] = self.values
        ends = np.cumsum(self.shapes[:, 0] * self.shapes[:, 1])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), self.shapes, strict=True)]


# A coder gives the messages of a sample; what reads them gives arrays, and what they must be is given beside.
Coder = tuple[
    "Callable[[Sample], list[bytes]]", "Callable[[list[bytes], Sample], list[Any]]", "Callable[[Sample], Any]"
]


def values(sample: Sample) -> list[Any]:
    return [sample.indices, sample.values]


def signs(sample: Sample) -> list[Any]:
    return [sample.indices, sample.values < 0]


def serve(coders: dict[str, Coder]) -> None:
    """Answer until standard input ends."""
    with np.load(sys.argv[1]) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    for line in sys.stdin:
        asked = json.loads(line)
        number = asked["update"]
        sample = Sample(kept[f"i{number}"], kept[f"v{number}"], kept[f"s{number}"])
        encode, decode, expected = coders[asked["coder"]]
        began = time.process_time_ns()
        messages = encode(sample)
        between = time.process_time_ns()
        found = decode(messages, sample)
        ended = time.process_time_ns()
        if not all(np.array_equal(a, b) for a, b in zip(found, expected(sample), strict=True)):
            raise ValueError(f"{asked['coder']} does not give back update {number}")
        answer = {
            "bytes": sum(map(len, messages)),
            "encode_ms": (between - began) / 1e6,
            "decode_ms": (ended - between) / 1e6,
        }
        print(json.dumps(answer), flush=True)
