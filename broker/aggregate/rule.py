"""What an aggregation rule is: four pure functions over a state of the rule's own (FedJAX's shape).

Neither the order of `add` nor the grouping by `merge` may change a byte of what `finish` gives, and one update alone
gives itself back: tests/broker/test_aggregate.py holds every rule to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from engine.codec.sparse import Sparse


class Rule(NamedTuple):
    """How many updates become one step. The state is the rule's; nobody else looks inside."""

    init: Callable[[int], Any]  # number of parameters → state
    add: Callable[[Any, Iterable[tuple[Sparse, int]]], Any]  # state, (update, weight) pairs read one by one → state
    merge: Callable[[Any, Any], Any]
    finish: Callable[[Any, float], NDArray[np.float32]]  # state, learning rate → step float32 [size]
