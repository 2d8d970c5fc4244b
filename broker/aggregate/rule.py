"""What an aggregation rule is: four pure functions over a state of the rule's own (FedJAX's shape).

Neither the order of `add` nor the grouping by `merge` may change a byte of what `finish` gives, and one update alone
gives itself back: tests/broker/test_aggregate.py holds every rule to that, in both lanes of numbers. Updates to an int8
model are whole units and may be averaged exactly; those to a float model are real numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from engine.codec.update import Lane, Update


class Rule(NamedTuple):
    """How many updates become one step. The state is the rule's; nobody else looks inside."""

    init: Callable[[int, Lane], Any]  # number of parameters, lane of numbers → state
    add: Callable[[Any, Iterable[tuple[Update, int]]], Any]  # state, (update, weight) pairs read one by one → state
    merge: Callable[[Any, Any], Any]
    finish: Callable[[Any, float], NDArray[np.float64]]  # state, learning rate → step [size], in the updates' units
