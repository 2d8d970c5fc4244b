"""Centered clipping: updates are drawn towards where the fleet was going, then averaged (Karimireddy et al. 2021).

    c = the course, an average of past steps (0.9 of what it was, 0.1 of the newest)
    step = c + sum_i w_i (x_i - c) min(1, r / |x_i - c|),  r = the median of the |x_i - c|

(arXiv:2012.10333.) The paper's clients send momenta and its c is the step before; ours send what error feedback leaves
over, which changes more from round to round, so c looks back further. Remembered: c. Where updates are mixed or
bucketed before, three such steps begin at 0, and nothing is remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from broker.aggregate import carried, roll
from broker.aggregate.rule import Rule, Step, in_units
from engine import ring, robust
from engine.batch import total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.aggregate.rule import Terms
    from engine.batch import Batch, Matrix, Vector
    from engine.ring import Key

MEMORY: Final = 0.9
STEPS: Final = 3  # without a course
_TAG: Final = b"clip"


def course(terms: Terms, size: int) -> Vector:
    """Where the fleet was going, real numbers [size]; 0 in the beginning."""
    return carried.read(_TAG, terms.carried, size, 1)[0]


def step_towards(batch: Batch, counted: robust.Clipped, centre: Vector, terms: Terms) -> Step:
    """The step that these factors make, and the course that it leaves behind."""
    stays = counted.centre * centre
    step, moved = batch.combined(counted.factors), batch.combined_reals(counted.factors)
    step += in_units(stays, terms)
    step *= terms.learning_rate
    moved += stays
    moved *= 1.0 - MEMORY
    moved += MEMORY * centre
    return Step(step, carried.write(_TAG, moved))


def clipping(gram: Matrix, weights: Vector, _keys: Sequence[Key]) -> Vector:
    """Factors, for what is mixed or bucketed: the centre is 0 to begin with, and then where the step before led."""
    n = len(gram)
    around = np.zeros((n + 1, n + 1))
    around[:n, :n] = gram
    shares = np.append(weights / total(weights), 0.0)
    radius = float(np.median(np.sqrt(np.diagonal(gram))))
    return robust.centered_clipping(around, shares, radius, STEPS)[:n]


def _finish(state: roll.Roll, terms: Terms) -> Step:
    ring.check_rate(terms.learning_rate, len(state.members))
    batch, centre = state.batch(terms.real), course(terms, state.purpose.size)
    counted = robust.clipped(batch, state.weights(), np.ones(len(batch)), centre)
    return step_towards(batch, counted, centre, terms)


CENTERED_CLIPPING = Rule(takes_sums=False, init=roll.empty, add=roll.add_all, merge=roll.merge, finish=_finish)
