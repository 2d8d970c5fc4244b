"""The k largest of many numbers, exactly: by a sampled threshold where that pays, otherwise by counting digits.

Both ways choose the same entries (engine/kernels/sparsify.py). Sampling wins where the vector is long and k a small
part of it; where the sample misled, for instance because most entries are equal, the other way does the work again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.kernels.sparsify import BLOCK, MISLED, SAMPLES, choose_by_sample, choose_largest

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLED_FROM = 4 * SAMPLES  # entries
FEW = 8  # at most one entry in so many


def largest(vector: NDArray[np.float32], k: int) -> NDArray[np.uint32]:
    """Give the places uint32 [count] of the k entries of `vector` float32 [P] with the largest magnitudes, ascending.

    Of equal magnitudes the lowest place goes first. Zeros are never chosen, so `count` may be less than k.
    `vector` holds no NaN, is C-contiguous and writable, and is left alone.
    """
    bits, size = vector.view(np.uint32), len(vector)
    room, histogram = np.empty(k, dtype=np.uint32), np.empty(2048, dtype=np.int64)
    count = MISLED
    if size >= SAMPLED_FROM and 0 < k <= size // FEW:
        candidates = np.empty((2, 2 * k + size // FEW + SAMPLES + BLOCK), dtype=np.uint32)
        count = choose_by_sample(bits, k, histogram, candidates[0], candidates[1], room)
    if count == MISLED:
        count = choose_largest(bits, k, histogram, room)
    return room[:count].copy()
