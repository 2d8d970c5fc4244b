"""Exact sums of updates: any order, any grouping, the same bytes.

Values become 64-bit integers in units of 2^-30 before they are added, because integer addition is associative and
float addition is not. A `Partial` is a sum on its way: one update, a gateway's share of a fleet, or the whole round.
`merge` joins two of them, and it does not matter which or when.

Bounds: |value| <= 64 = 2^6, so a fixed-point value is at most 2^36; the weights of one sum together are at most 2^26
(16,384 devices of the largest weight, 4,096); so every sum stays within 2^62, inside int64. Both are checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.kernels.quantize import VALUE_LIMIT
from engine.kernels.reduce import FIXED_ONE, scatter_add, within_limit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from engine.codec.sparse import Sparse

WEIGHT_MAX = 4096
WEIGHT_TOTAL_MAX = 2**26


class RingError(Exception):
    """An update or a partial sum that may not be added; the message says why."""


@dataclass(frozen=True)
class Partial:
    """A weighted sum of updates: `total` int64 [size] in units of 2^-30, its `weight`, and how many `members`."""

    size: int
    total: NDArray[np.int64]
    weight: int
    members: int


def empty(size: int) -> Partial:
    """Give the sum of no updates to `size` parameters."""
    return Partial(size, np.zeros(size, dtype=np.int64), 0, 0)


def add(partial: Partial, sparse: Sparse, weight: int) -> Partial:
    """Add one update with `weight` 1 .. 4096; see `add_all`, which is cheaper for many."""
    return add_all(partial, [(sparse, weight)])


def add_all(partial: Partial, updates: Iterable[tuple[Sparse, int]]) -> Partial:
    """Give a new sum with the (update, weight) pairs in it; `partial` is left alone.

    Raises:
        RingError: an update of another size, a weight or value out of bounds, or too much weight for 64 bits.
    """
    total, weights, members = partial.total.copy(), partial.weight, partial.members
    for sparse, weight in updates:
        _check(sparse, weight, partial.size)
        weights = _check_weight(weights + weight)
        members += 1
        scatter_add(total, sparse.indices, sparse.values, weight)
    return Partial(partial.size, total, weights, members)


def merge(one: Partial, other: Partial) -> Partial:
    """Join two sums over different devices: associative, commutative, exact; `empty` is its neutral element.

    Raises:
        RingError: sums of different sizes, or too much weight for 64 bits.
    """
    if one.size != other.size:
        raise RingError(f"Cannot join sums over {one.size} and {other.size} parameters.")
    weight = _check_weight(one.weight + other.weight)
    return Partial(one.size, one.total + other.total, weight, one.members + other.members)


def mean_step(partial: Partial, learning_rate: float) -> NDArray[np.float32]:
    """Give `learning_rate` times the weighted mean update, float32 [size]; add it to the global parameters.

    Per parameter learning_rate * total / (2^30 weight) in float64, rounded once to float32.

    Raises:
        RingError: the sum is of no updates, or the learning rate is not finite.
    """
    if partial.weight < 1:
        raise RingError("There is no mean of no updates: the round closed empty.")
    if not math.isfinite(learning_rate):
        raise RingError(f"The coordinator's learning rate {learning_rate} is not finite.")
    step = partial.total.astype(np.float64) * learning_rate / (FIXED_ONE * partial.weight)
    return step.astype(np.float32)


def _check(sparse: Sparse, weight: int, size: int) -> None:
    if sparse.size != size:
        raise RingError(f"An update to {sparse.size} parameters does not belong in a sum over {size}.")
    if not 1 <= weight <= WEIGHT_MAX:
        raise RingError(f"An update's weight is {weight}, but must be 1 to {WEIGHT_MAX}.")
    if len(sparse.indices) and int(sparse.indices[-1]) >= size:
        raise RingError(f"An update's index lies beyond its {size} parameters.")
    if not within_limit(sparse.values):
        raise RingError(f"An update's value is not finite or larger than {VALUE_LIMIT:g}.")


def _check_weight(weight: int) -> int:
    if weight > WEIGHT_TOTAL_MAX:
        raise RingError(f"Weights add up to {weight}, more than the {WEIGHT_TOTAL_MAX} that 64 bits can hold.")
    return weight
