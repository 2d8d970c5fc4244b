"""Exact sums of updates: any order, any grouping, the same bytes.

Updates to an int8 model are integers, wire units, and are added as they are. Those to a float model become 64-bit
integers in units of 2^-30 first, because integer addition is associative and float addition is not. A `Partial` is a
sum on its way: one update, a gateway's share of a fleet, or the whole round. `merge` joins two of them, and it does
not matter which or when.

Bounds: |value| <= 64 = 2^6, so a fixed-point value is at most 2^36, and a unit at most 254; the weights of one sum
together are at most 2^26 (16,384 devices of the largest weight, 4,096); so every sum stays within 2^62, inside int64.
All are checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.kernels.quantize import UNIT_MAX, VALUE_LIMIT
from engine.kernels.reduce import FIXED_ONE, scatter_add, scatter_units, units_within, within_limit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from engine.codec.update import Lane, Update

WEIGHT_MAX = 4096
WEIGHT_TOTAL_MAX = 2**26
_ONE = {"float32": FIXED_ONE, "int8": 1.0}  # what 1 is in a total


class RingError(Exception):
    """An update or a partial sum that may not be added; the message says why."""


@dataclass(frozen=True)
class Partial:
    """A weighted sum of updates: `total` int64 [size], its `weight`, and how many `members`.

    In lane 'float32' the total is in units of 2^-30, in lane 'int8' in wire units.
    """

    size: int
    total: NDArray[np.int64]
    weight: int
    members: int
    lane: Lane


def empty(size: int, lane: Lane) -> Partial:
    """Give the sum of no updates to `size` parameters."""
    return Partial(size, np.zeros(size, dtype=np.int64), 0, 0, lane)


def add(partial: Partial, update: Update, weight: int) -> Partial:
    """Add one update with `weight` 1 .. 4096; see `add_all`, which is cheaper for many."""
    return add_all(partial, [(update, weight)])


def add_all(partial: Partial, updates: Iterable[tuple[Update, int]]) -> Partial:
    """Give a new sum with the (update, weight) pairs in it; `partial` is left alone.

    Raises:
        RingError: an update of another size or lane, a weight or value out of bounds, or too much weight for 64 bits.
    """
    total, weights, members = partial.total.copy(), partial.weight, partial.members
    for update, weight in updates:
        _check(update, weight, partial)
        weights = _check_weight(weights + weight)
        members += 1
        if update.lane == "int8":
            scatter_units(total, update.indices, update.values, weight)
        else:
            scatter_add(total, update.indices, update.values, weight)
    return Partial(partial.size, total, weights, members, partial.lane)


def merge(one: Partial, other: Partial) -> Partial:
    """Join two sums over different devices: associative, commutative, exact; `empty` is its neutral element.

    Raises:
        RingError: sums of different sizes or lanes, or too much weight for 64 bits.
    """
    if (one.size, one.lane) != (other.size, other.lane):
        raise RingError(
            f"Cannot join sums over {one.size} {one.lane} and {other.size} {other.lane} parameters: they are of "
            "different models."
        )
    weight = _check_weight(one.weight + other.weight)
    return Partial(one.size, one.total + other.total, weight, one.members + other.members, one.lane)


def mean_step(partial: Partial, learning_rate: float) -> NDArray[np.float64]:
    """Give `learning_rate` times the weighted mean update, float64 [size]: real numbers, or wire units in lane 'int8'.

    Per parameter learning_rate * total / (one * weight), two roundings in all. `engine.master` adds it to a model.

    Raises:
        RingError: the sum is of no updates, or the learning rate is not finite.
    """
    if partial.weight < 1:
        raise RingError("There is no mean of no updates: the round closed empty.")
    if not math.isfinite(learning_rate):
        raise RingError(f"The coordinator's learning rate {learning_rate} is not finite.")
    step: NDArray[np.float64] = partial.total.astype(np.float64) * learning_rate / (_ONE[partial.lane] * partial.weight)
    return step


def _check(update: Update, weight: int, partial: Partial) -> None:
    if update.size != partial.size:
        raise RingError(f"An update to {update.size} parameters does not belong in a sum over {partial.size}.")
    if update.lane != partial.lane:
        raise RingError(f"An update in lane {update.lane} does not belong in a sum in lane {partial.lane}.")
    if not 1 <= weight <= WEIGHT_MAX:
        raise RingError(f"An update's weight is {weight}, but must be 1 to {WEIGHT_MAX}.")
    if len(update.indices) and int(update.indices[-1]) >= partial.size:
        raise RingError(f"An update's index lies beyond its {partial.size} parameters.")
    if update.lane == "int8":
        if not units_within(update.values, UNIT_MAX):
            raise RingError(f"An update's unit is 0 or larger than {UNIT_MAX}.")
    elif not within_limit(update.values):
        raise RingError(f"An update's value is not finite or larger than {VALUE_LIMIT:g}.")


def _check_weight(weight: int) -> int:
    if weight > WEIGHT_TOTAL_MAX:
        raise RingError(f"Weights add up to {weight}, more than the {WEIGHT_TOTAL_MAX} that 64 bits can hold.")
    return weight
