"""FedAdam and FedYogi: each parameter at a pace of its own (Reddi et al. 2021, arXiv:2003.00295, algorithm 2).

    m = 0.9 m + 0.1 mean
    v = 0.99 v + 0.01 mean^2                         FedAdam
    v = v - 0.01 mean^2 sign(v - mean^2)             FedYogi
    step = learning_rate * m / (sqrt(v) + 0.001)

Everything in real numbers. Remembered: m and v. A parameter moves by about the learning rate however small the mean is,
so [aggregate] learning_rate wants to be 0.01 or less here, where the other rules want 1.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from broker.aggregate import carried
from broker.aggregate.rule import Rule, Step, in_units
from engine import ring

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from broker.aggregate.rule import Terms

    Vector = NDArray[np.float64]

MOMENTUM: Final = 0.9
SECOND: Final = 0.99
ADAPTIVITY: Final = 0.001  # the paper's tau


def _adam(second: Vector, squared: Vector) -> Vector:
    return SECOND * second + (1.0 - SECOND) * squared


def _yogi(second: Vector, squared: Vector) -> Vector:
    moved: Vector = second - (1.0 - SECOND) * squared * np.sign(second - squared)
    return moved


def _finish(state: ring.Partial, terms: Terms, *, tag: bytes, moved: Callable[[Vector, Vector], Vector]) -> Step:
    ring.check_rate(terms.learning_rate, len(state.members))
    first, second = carried.read(tag, terms.carried, state.purpose.size, 2)
    mean = ring.mean_step(state, 1.0) * terms.real
    first = MOMENTUM * first + (1.0 - MOMENTUM) * mean
    second = moved(second, mean * mean)
    step = terms.learning_rate * first / (np.sqrt(second) + ADAPTIVITY)
    return Step(in_units(step, terms), carried.write(tag, first, second))


def _rule(tag: bytes, moved: Callable[[Vector, Vector], Vector]) -> Rule:
    finish = partial(_finish, tag=tag, moved=moved)
    return Rule(takes_sums=True, init=ring.empty, add=ring.add_all, merge=ring.merge, finish=finish)


FEDADAM = _rule(b"adam", _adam)
FEDYOGI = _rule(b"yogi", _yogi)
