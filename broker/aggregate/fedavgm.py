"""FedAvgM: the mean, and a share of where the fleet was going before (Hsu et al. 2019, arXiv:1909.06335).

    m = 0.9 m + mean        step = learning_rate * m

Remembered: m. Like the mean itself, it trusts everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.aggregate import carried
from broker.aggregate.rule import Rule, Step, in_units
from engine import ring

if TYPE_CHECKING:
    from broker.aggregate.rule import Terms

MOMENTUM: Final = 0.9
_TAG: Final = b"avgm"


def _finish(state: ring.Partial, terms: Terms) -> Step:
    ring.check_rate(terms.learning_rate, len(state.members))
    (before,) = carried.read(_TAG, terms.carried, state.purpose.size, 1)
    mean = ring.mean_step(state, 1.0)
    step = mean + in_units(MOMENTUM * before, terms)
    return Step(step * terms.learning_rate, carried.write(_TAG, MOMENTUM * before + mean * terms.real))


FEDAVGM = Rule(takes_sums=True, init=ring.empty, add=ring.add_all, merge=ring.merge, finish=_finish)
