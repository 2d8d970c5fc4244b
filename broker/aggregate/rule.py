"""What an aggregation rule is: four functions over a state of the rule's own (FedJAX's shape), and two promises.

    init ─▶ add, add, … ─▶ finish ─▶ step        add ─▶ merge ◀─ add: what two places have gathered, joined

Neither the order of `add` nor the grouping by `merge` may change a byte of what `finish` gives: every rule is held to
that in tests/broker/test_aggregate.py, in both lanes of numbers. A rule whose state is an exact sum (`ring.Partial`)
takes the sums of others, too; one that compares devices (`roll.Roll`) must see each of them, and refuses a sum.

Some rules remember something from one version to the next, as a momentum. It comes out of `finish` as bytes, is kept
with the version in the same transaction, and goes into the next `finish`: who has seen every update can make it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from engine.ring import Member, Purpose


class Terms(NamedTuple):
    """What `finish` must know besides the state."""

    learning_rate: float
    real: NDArray[np.float64]  # [size], how large a step of 1 is in real numbers: what distances are measured in
    carried: bytes = b""  # what the rule gave with the version before; empty: nothing, or what another rule gave


class Step(NamedTuple):
    """What `finish` gives."""

    numbers: NDArray[np.float64]  # [size], in the updates' units: to be added to the model
    carried: bytes = b""  # to be kept with the version


class Rule(NamedTuple):
    """How many updates become one step. The state is the rule's; nobody else looks inside."""

    takes_sums: bool  # may a partial sum of several devices be merged into its state?
    init: Callable[[Purpose], Any]
    add: Callable[[Any, Iterable[Member]], Any]  # state, members read one by one → state
    merge: Callable[[Any, Any], Any]
    finish: Callable[[Any, Terms], Step]  # raises RingError where no step comes of it
    needs_dense: bool = False  # is what an update lacks taken for 0? Then every update must carry every parameter


def in_units(reals: NDArray[np.float64], terms: Terms) -> NDArray[np.float64]:
    """What real numbers [size] are in the updates' units; 0 where a step changes nothing."""
    units: NDArray[np.float64] = np.divide(reals, terms.real, out=np.zeros_like(reals), where=terms.real > 0.0)
    return units
