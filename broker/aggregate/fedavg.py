"""FedAvg: the mean of the updates, weighted by examples (McMahan et al. 2017, arXiv:1602.05629).

Its state is an exact integer sum (engine.ring), eight bytes a parameter however many updates come, so the order of
updates and the grouping of partial sums change not a bit of the result. Whoever lies moves it as far as he likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.aggregate.rule import Rule, Step
from engine import ring

if TYPE_CHECKING:
    from broker.aggregate.rule import Terms


def _finish(state: ring.Partial, terms: Terms) -> Step:
    return Step(ring.mean_step(state, terms.learning_rate))


FEDAVG = Rule(takes_sums=True, init=ring.empty, add=ring.add_all, merge=ring.merge, finish=_finish)
