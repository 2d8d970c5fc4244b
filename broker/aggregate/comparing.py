"""Rules that compare devices by the inner products of their updates alone, and what may go before such a rule.

    updates ─▶ inner products [n, n] ─▶ factors [n] ─▶ the sum of factors times updates
                      └─▶ mixed or bucketed: fewer liars in each ─▶ factors ─┘

What mixing and bucketing make are sums of updates, and so is what a rule makes of those: only factors change, nobody
ever sees a mixed update, and sparse updates stay sparse.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from broker.aggregate import roll
from broker.aggregate.rule import Rule, Step
from engine import ring, robust
from engine.batch import total

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker.aggregate.rule import Terms
    from engine.batch import Matrix, Vector
    from engine.ring import Key

    Factors: TypeAlias = Callable[[Matrix, Vector, Sequence[Key]], Vector]  # inner products, weights, whose → factors

DISHONEST_RATE: Final = 0.2  # of a round's updates so many may lie
BUCKET: Final = 2  # updates in one


def dishonest_of(n: int) -> int:
    """How many of n updates may lie, for rules that want a number: a fifth, and never so many that nobody is left."""
    return max(0, min(int(DISHONEST_RATE * n), (n - 3) // 2))


def comparing(factors: Factors) -> Rule:
    """The rule that makes these factors of inner products."""
    finish = partial(_finish, factors=factors)
    return Rule(takes_sums=False, init=roll.empty, add=roll.add_all, merge=roll.merge, finish=finish)


def mixed(factors: Factors) -> Factors:
    """Before the rule each update becomes the mean of its nearest (NNM: Allouah et al. 2023, arXiv:2302.01772)."""

    def mixing(gram: Matrix, weights: Vector, keys: Sequence[Key]) -> Vector:
        return _through(robust.nearest_mixing(gram, dishonest_of(len(gram))), gram, weights, keys, factors)

    return mixing


def bucketed(factors: Factors) -> Factors:
    """Before the rule updates are averaged by twos, who with whom by lot (Karimireddy et al. 2022, arXiv:2006.09365).

    The lot is the SHA-256 of a key, so it is another one in each round, and the same for everybody who looks.
    """

    def bucketing(gram: Matrix, weights: Vector, keys: Sequence[Key]) -> Vector:
        order = sorted(range(len(keys)), key=lambda at: hashlib.sha256(f"{keys[at]}".encode()).digest())
        return _through(robust.bucketing(order, BUCKET), gram, weights, keys, factors)

    return bucketing


def _through(mix: Matrix, gram: Matrix, weights: Vector, keys: Sequence[Key], factors: Factors) -> Vector:
    """The factors of the updates, where the rule sees what `mix` [m, n] makes of them."""
    heavy = np.array([total(row * weights) for row in mix])
    whole = np.zeros(len(gram))
    for row, factor in zip(mix, factors(robust.mixed(mix, gram), heavy, keys), strict=True):
        whole += factor * row
    return whole


def _finish(state: roll.Roll, terms: Terms, *, factors: Factors) -> Step:
    ring.check_rate(terms.learning_rate, len(state.members))
    batch = state.batch(terms.real)
    counted = factors(batch.gram(), state.weights(), sorted(state.members))
    return Step(batch.combined(counted) * terms.learning_rate)
