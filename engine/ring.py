"""Exact sums of updates: any order, any grouping, the same bytes.

Updates to an int8 model are integers, wire units, and are added as they are. Those to a float model become 64-bit
integers in units of 2^-30 first, because integer addition is associative and float addition is not. A `Partial` is a
sum on its way: one update, a gateway's share of a fleet, or the whole round. It says whom it holds, so that nobody is
added twice, and what it is for, so that what belongs to another round is not added at all. `merge` joins two of them,
and it does not matter which or when.

Bounds: |value| <= 64 = 2^6, so a fixed-point value is at most 2^36, and a unit at most 254; the weights of one sum
together are at most 2^26 (16,384 devices of the largest weight, 4,096); so every sum stays within 2^62, inside int64.
All are checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from engine.kernels.quantize import UNIT_MAX, VALUE_LIMIT
from engine.kernels.reduce import FIXED_ONE, scatter_add, scatter_units, units_within, within_limit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

    from engine.codec.update import Lane, Update

WEIGHT_MAX = 4096
WEIGHT_TOTAL_MAX = 2**26
_ONE = {"float32": FIXED_ONE, "int8": 1.0}  # what 1 is in a total

Key: TypeAlias = tuple[str, int]  # (device_id, round_id) of an update


class RingError(Exception):
    """An update or a partial sum that may not be added; the message says why."""


class Purpose(NamedTuple):
    """What a sum is for: two may be joined only where all of it is the same."""

    size: int  # of the parameters
    lane: Lane
    round_id: int = 0  # the round that will count it
    base_version: int = 0  # the version to which its step will be added: weights say how stale an update is for that
    scale_epoch: int = 0  # in whose steps whole units are
    dense: bool = False  # could every update carry every parameter? Else what one lacks was not sent, and may not be 0


class Member(NamedTuple):
    """One update and what it weighs in a sum."""

    key: Key
    update: Update
    weight: int


@dataclass(frozen=True, eq=False)
class Partial:
    """A weighted sum of updates: `total` int64 [size], its `weight`, and whose updates it holds.

    In lane 'float32' the total is in units of 2^-30, in lane 'int8' in wire units. A device's update is one with a
    single member.
    """

    purpose: Purpose
    total: NDArray[np.int64]
    weight: int
    members: frozenset[Key]


def empty(purpose: Purpose) -> Partial:
    """Give the sum of no updates."""
    return Partial(purpose, np.zeros(purpose.size, dtype=np.int64), 0, frozenset())


def add_all(partial: Partial, members: Iterable[Member]) -> Partial:
    """Give a new sum with these updates in it; `partial` is left alone.

    Raises:
        RingError: an update of another size or lane, or of somebody whom the sum holds already, a weight or value out
            of bounds, or too much weight for 64 bits.
    """
    # nothing is copied of a sum of nobody: memory that is only known to be 0 costs nothing
    total = partial.total.copy() if partial.members else np.zeros_like(partial.total)
    weights, keys = partial.weight, set(partial.members)
    for member in members:
        check(member, partial.purpose, keys)
        weights = _check_weight(weights + member.weight)
        keys.add(member.key)
        scatter = scatter_units if member.update.lane == "int8" else scatter_add
        scatter(total, member.update.indices, member.update.values, member.weight)
    return Partial(partial.purpose, total, weights, frozenset(keys))


def merge(one: Partial, other: Partial) -> Partial:
    """Join two sums over different devices: associative, commutative, exact; `empty` is its neutral element.

    Raises:
        RingError: sums for different purposes, of which both hold somebody, or too much weight for 64 bits.
    """
    check_apart(one.purpose, other.purpose, one.members, other.members)
    weight = _check_weight(one.weight + other.weight)
    return Partial(one.purpose, one.total + other.total, weight, one.members | other.members)


def mean_step(partial: Partial, learning_rate: float) -> NDArray[np.float64]:
    """Give `learning_rate` times the weighted mean update, float64 [size]: real numbers, or wire units in lane 'int8'.

    Per parameter learning_rate * total / (one * weight), two roundings in all. `engine.master` adds it to a model.

    Raises:
        RingError: the sum is of no updates, or the learning rate is not finite.
    """
    check_rate(learning_rate, len(partial.members))
    step: NDArray[np.float64] = np.multiply(partial.total, learning_rate)
    step /= _ONE[partial.purpose.lane] * partial.weight
    return step


def check_rate(learning_rate: float, members: int) -> None:
    """Raise RingError where no step can come: nobody was added, or the learning rate is not finite."""
    if members < 1:
        raise RingError("There is no mean of no updates: the round closed empty.")
    if not math.isfinite(learning_rate):
        raise RingError(f"The coordinator's learning rate {learning_rate} is not finite.")


def check_apart(one: Purpose, other: Purpose, mine: Collection[Key], theirs: Collection[Key]) -> None:
    """Raise RingError unless the two hold nobody in common, and are for the same."""
    if one != other:
        raise RingError(
            f"Cannot join sums for different purposes: one is for {_spoken(one)}, one for {_spoken(other)}."
        )
    twice = sorted(set(mine) & set(theirs))
    if twice:
        device_id, round_id = twice[0]
        raise RingError(f"{device_id}'s update of round {round_id} is in both sums: it may be counted once.")


def check(member: Member, purpose: Purpose, held: Collection[Key]) -> None:
    """Raise RingError unless this update may be added to what holds these already, and is within every bound."""
    update, weight = member.update, member.weight
    if member.key in held:
        device_id, round_id = member.key
        raise RingError(f"{device_id}'s update of round {round_id} is in the sum already: it may be counted once.")
    if update.size != purpose.size:
        raise RingError(f"An update to {update.size} parameters does not belong in a sum over {purpose.size}.")
    if update.lane != purpose.lane:
        raise RingError(f"An update in lane {update.lane} does not belong in a sum in lane {purpose.lane}.")
    if not 1 <= weight <= WEIGHT_MAX:
        raise RingError(f"An update's weight is {weight}, but must be 1 to {WEIGHT_MAX}.")
    if len(update.indices) and int(update.indices[-1]) >= purpose.size:
        raise RingError(f"An update's index lies beyond its {purpose.size} parameters.")
    if update.lane == "int8":
        if not units_within(update.values, UNIT_MAX):
            raise RingError(f"An update's unit is 0 or larger than {UNIT_MAX}.")
    elif not within_limit(update.values):
        raise RingError(f"An update's value is not finite or larger than {VALUE_LIMIT:g}.")


def _spoken(purpose: Purpose) -> str:
    where = f"round {purpose.round_id} on version {purpose.base_version} in scale epoch {purpose.scale_epoch}"
    return f"{where} with {purpose.size} {purpose.lane} parameters"


def _check_weight(weight: int) -> int:
    if weight > WEIGHT_TOTAL_MAX:
        raise RingError(f"Weights add up to {weight}, more than the {WEIGHT_TOTAL_MAX} that 64 bits can hold.")
    return weight
