"""FedAvg: the mean of the updates, weighted by examples (McMahan et al. 2017, arXiv:1602.05629).

Its state is an exact integer sum (engine.ring), eight bytes a parameter however many updates come, so the order of
updates and the grouping of partial sums change not a bit of the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.aggregate.rule import Rule
from engine import ring

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from engine.codec.sparse import Sparse


def init(size: int) -> ring.Partial:
    """The sum of no updates to `size` parameters."""
    return ring.empty(size)


def add(state: ring.Partial, updates: Iterable[tuple[Sparse, int]]) -> ring.Partial:
    """Add (update, weight) pairs, one at a time; RingError for one that may not be added."""
    return ring.add_all(state, updates)


def merge(one: ring.Partial, other: ring.Partial) -> ring.Partial:
    """Join the sums of two groups of updates."""
    return ring.merge(one, other)


def finish(state: ring.Partial, learning_rate: float) -> NDArray[np.float32]:
    """The step to add to the parameters, float32 [size]; RingError when there were no updates."""
    return ring.mean_step(state, learning_rate)


FEDAVG = Rule(init, add, merge, finish)
