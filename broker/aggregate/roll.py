"""The state of a rule that compares devices: every update by itself, in the order of their keys when it is read.

A roll joins with another as sums do, and refuses what a sum refuses: somebody who is in both, and what is for another
round. It also refuses sums: the mean of ten devices says nothing of each of them. So memory grows with the members,
by eight bytes for each value that they sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine import ring
from engine.batch import batch_of
from engine.ring import RingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.batch import Batch, Vector
    from engine.ring import Key, Member, Partial, Purpose


@dataclass(frozen=True, eq=False)
class Roll:
    """Updates and their weights, by whose they are."""

    purpose: Purpose
    members: dict[Key, Member]

    def in_order(self) -> list[Member]:
        """By key, so that it does not matter who came first."""
        return [self.members[key] for key in sorted(self.members)]

    def weights(self) -> Vector:
        """Float64 [n], in order."""
        return np.array([float(member.weight) for member in self.in_order()])

    def batch(self, real: Vector) -> Batch:
        """The numbers side by side, in order; real [size] is how large a step of 1 is."""
        return batch_of([member.update for member in self.in_order()], self.purpose.size, real)


def empty(purpose: Purpose) -> Roll:
    """Give a roll of nobody."""
    return Roll(purpose, {})


def add_all(roll: Roll, members: Iterable[Member]) -> Roll:
    """Give a new roll with these in it. Raises RingError as engine.ring.add_all does."""
    held = dict(roll.members)
    for member in members:
        ring.check(member, roll.purpose, held)
        held[member.key] = member
    return Roll(roll.purpose, held)


def merge(one: Roll, other: Roll | Partial) -> Roll:
    """Join two rolls of different devices. Raises RingError for a sum, for foreign rounds, for somebody in both."""
    if not isinstance(other, Roll):
        raise RingError(
            f"This rule compares devices, and a sum of {len(other.members)} updates hides each of them: send the "
            'updates themselves, or set [aggregate] rule = "fedavg".'
        )
    ring.check_apart(one.purpose, other.purpose, one.members, other.members)
    return Roll(one.purpose, one.members | other.members)
