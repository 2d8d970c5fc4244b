"""The default: the mean of a fleet some of whose devices lie, in five steps that cost an honest fleet little.

    claims       who says that it has more examples than the median device weighs as that one: nobody can check it
    norm bound   who is longer than twice the median shrinks, and the more the longer: nobody outweighs the others
    crowding     who sends nearly the same as others shares one weight with them: colluders count as one
    course       who goes back where the fleet is heading does not count: its heading is that of the rounds before
    clipping     around that course, twice as far as the median update is from it (see centered_clipping)

Clipping alone cannot see who puts everything on a few parameters: devices send different ones, so there colluders are
the majority. Crowding sees that they are alike, which honest devices never are: not in their numbers, and not in which
parameters they send. What remains is what no comparison of numbers can tell: who learned from wrong labels.
Remembered: the course. Measured in docs/decisions/0017 and docs/BENCHMARKS.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.aggregate import centered_clipping, roll
from broker.aggregate.rule import Rule, Step
from engine import ring, robust
from engine.batch import length

if TYPE_CHECKING:
    from broker.aggregate.rule import Terms


def _finish(state: roll.Roll, terms: Terms) -> Step:
    ring.check_rate(terms.learning_rate, len(state.members))
    batch, centre = state.batch(terms.real), centered_clipping.course(terms, state.purpose.size)
    norms = batch.norms()
    shrunk = robust.tempered(norms)
    claimed = state.weights()
    counting = claimed * robust.bounded(claimed) * robust.uncrowded(batch)
    if centre.any():
        counting = counting * robust.on_course(batch.along(centre), norms, length(centre))
    else:  # in the first round it is where the others go
        counting = counting * robust.on_course(*robust.others(batch, shrunk * counting))
    counted = robust.clipped(batch, counting, shrunk, centre, robust.SPREAD)
    return centered_clipping.step_towards(batch, counted, centre, terms)


GUARDED = Rule(takes_sums=False, init=roll.empty, add=roll.add_all, merge=roll.merge, finish=_finish)
