"""The median and the trimmed mean of dense updates, coordinate by coordinate, without a copy of them.

rows float32 [n, P], C-contiguous and finite; the result is float32 [P], exactly what sorting each column gives.
Scratch stays below two megabytes. `engine/kernels/ranks.py` says how, and why there are two ways.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from engine.kernels.ranks import bisect_rank, network_median, network_trimmed, sum_between

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Rows = NDArray[np.float32]

NETWORK_MAX: Final = 1_024  # updates; above, where a tile no longer fits the second cache, the rank is found bit by bit
_TILE: Final = 256  # columns of a network, next to one another
_FEW: Final = 64  # columns of a search bit by bit


def median(rows: Rows) -> Rows:
    """The median of each column."""
    n, size = rows.shape
    out = np.empty(size, dtype=np.float32)
    if n <= NETWORK_MAX:
        network_median(rows, pairs_for(n, (n - 1) // 2, n // 2), np.zeros((n, _TILE), dtype=np.float32), out)
        return out
    for first, below, counts, beyond in _searched(rows, (n - 1) // 2):
        above = below if n % 2 else np.where(counts > n // 2, below, beyond)
        out[first : first + _FEW] = ((below + above) * np.float32(0.5))[: size - first]
    return out


def trimmed_mean(rows: Rows, trim: int) -> Rows:
    """The mean of each column without its `trim` smallest and its `trim` largest; 2 * trim < n."""
    n, size = rows.shape
    assert 0 <= 2 * trim < n, "something is left of each column"
    out, sums = np.empty(size, dtype=np.float32), np.empty(_TILE)
    if n <= NETWORK_MAX:
        pairs = pairs_for(n, trim, n - trim - 1) if trim else _NO_PAIRS
        network_trimmed(rows, pairs, trim, np.zeros((n, _TILE), dtype=np.float32), sums, out)
        return out
    around = np.empty((2, _FEW), dtype=np.int32)
    highest = _searched(rows, n - trim - 1)
    for (first, low, _, _), (_, high, _, _) in zip(_searched(rows, trim), highest, strict=True):
        within = sums[:_FEW]
        sum_between(rows, first, low, high, within, around)
        # of those that are equal to either end some were cut off
        ends = low * (around[0] - trim).astype(np.float64) + high * (n - trim - around[1]).astype(np.float64)
        mean = np.where(low == high, low, (within + ends) / (n - 2 * trim))
        out[first : first + _FEW] = mean[: size - first]
    return out


@lru_cache(maxsize=16)
def pairs_for(n: int, low: int, high: int) -> NDArray[np.int32]:
    """The pairs of Batcher's odd-even merge sort for n values that ranks low .. high need, int32 [m, 2]."""
    needed = set(range(low, high + 1))
    kept: list[tuple[int, int]] = []
    for pair in reversed(_batcher(n)):
        if needed & set(pair):
            needed |= set(pair)
            kept.append(pair)
    return np.array(kept[::-1], dtype=np.int32).reshape(-1, 2)


_NO_PAIRS: Final = np.empty((0, 2), dtype=np.int32)


def _batcher(n: int) -> list[tuple[int, int]]:
    """Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M: for any n."""
    pairs: list[tuple[int, int]] = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs


class _Found(NamedTuple):
    """Of a few columns: the values of a rank, how many are at most that, and the next larger ones."""

    first: int
    values: Rows
    counts: NDArray[np.int32]
    beyond: Rows


def _searched(rows: Rows, rank: int) -> Iterator[_Found]:
    """The values of this rank, a few columns after the other; behind the last there may be anything."""
    n, size = rows.shape
    keys, counts = np.zeros((n, _FEW), dtype=np.uint32), np.empty(_FEW, dtype=np.int32)
    found, beyond = np.empty(_FEW, dtype=np.uint32), np.empty(_FEW, dtype=np.uint32)
    for first in range(0, size, _FEW):
        bisect_rank(rows.view(np.uint32), rank, first, keys, found, counts, beyond)
        yield _Found(first, _values(found), counts, _values(beyond))


def _values(keys: NDArray[np.uint32]) -> Rows:
    patterns = np.where(keys >> np.uint32(31), keys ^ np.uint32(0x80000000), ~keys)
    return patterns.view(np.float32)
