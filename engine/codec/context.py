"""The context layout: what engine/kernels/context.py needs around it."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from engine.codec.header import CodecError
from engine.kernels.context import MEMORY, NOT_SHORTEST, OUT_OF_RANGE, TOO_FEW, code_update

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from engine.codec.update import Lane

_ERRORS = {
    TOO_FEW: "The update has fewer entries than it claims.",
    OUT_OF_RANGE: "A scale or a value in the update is larger than any may be.",
    NOT_SHORTEST: "The update does not end where its entries do.",
}


def write(
    codes: NDArray[np.int32],
    indices: NDArray[np.uint32],
    scales: NDArray[np.int64],
    shapes: Sequence[tuple[int, int]],
    *,
    lane: Lane,
    value_bits: int,
    bytes_max: int,
) -> bytes | None:
    """Code at least one entry; None if that takes more than `bytes_max` bytes."""
    buffer = np.zeros(bytes_max, dtype=np.uint8)
    ends = np.empty(len(shapes), dtype=np.int64)
    length = code_update(
        False, _table(shapes), value_bits, lane == "float32", *_scratch(shapes), buffer, indices, codes, ends,
        scales.copy(),
    )  # fmt: skip
    return buffer[:length].tobytes() if length >= 0 else None


def read(
    body: bytes, count: int, shapes: Sequence[tuple[int, int]], *, lane: Lane, value_bits: int
) -> tuple[NDArray[np.uint32], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Give the indices and codes of at least one entry, and each tensor's end among them and its scale.

    Raises:
        CodecError: bytes that `write` does not write.
    """
    indices, codes = np.empty(count, dtype=np.uint32), np.empty(count, dtype=np.int32)
    ends, scales = np.full(len(shapes), count, dtype=np.int64), np.zeros(len(shapes), dtype=np.int64)
    # a bytearray, because kernels take memory that may be written
    buffer = np.frombuffer(bytearray(body), dtype=np.uint8)
    length = code_update(
        True, _table(shapes), value_bits, lane == "float32", *_scratch(shapes), buffer, indices, codes, ends, scales
    )
    if length < 0:
        raise CodecError(_ERRORS[length])
    if length < len(body):
        raise CodecError(f"The update has {len(body) - length} bytes too many.")
    return indices, codes, ends, scales


@functools.cache
def tables() -> NDArray[np.int64]:
    """Give floor(64 log2 x) for x = 0 (unused) .. 4095, then the chance of a one for odds z = -1024 .. 1023.

    With e(z) = floor(2^(30 + (z mod 64) / 64)) * 2^floor(z / 64) rounded down, the chance in 65536ths is
    floor(65536 e / (e + 2^30)), held to 24 .. 65512. All of it is integer arithmetic, the same everywhere.
    """
    logs = [0] + [(x**64).bit_length() - 1 for x in range(1, 4096)]
    roots = []
    for part in range(64):
        root = 1 << (64 * 30 + part)
        for _ in range(6):
            root = math.isqrt(root)
        roots.append(root)
    chances = []
    for z in range(-1024, 1024):
        odds = (roots[z % 64] << 16) >> (16 - z // 64)
        chances.append(min(max(65536 * odds // (odds + (1 << 30)), 24), 65512))
    return np.array(logs + chances, dtype=np.int64)


def _table(shapes: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    return np.array(shapes, dtype=np.int64).reshape(len(shapes), 2)


def _scratch(shapes: Sequence[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    columns = max((columns for _, columns in shapes), default=0)
    return tables(), np.empty(MEMORY, dtype=np.int64), np.empty((4, columns), dtype=np.int64)
