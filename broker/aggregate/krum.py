"""Krum and multi-Krum: the update nearest to its neighbours, or the mean of those that are (Blanchard et al. 2017).

Up to a fifth may lie. Distances say little where devices hold different data: an honest device far from the others is
left out. Weights do not matter: who is chosen counts as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.aggregate.comparing import dishonest_of
from engine import robust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.batch import Matrix, Vector
    from engine.ring import Key


def krum(gram: Matrix, _weights: Vector, _keys: Sequence[Key]) -> Vector:
    """One update."""
    return robust.krum(gram, dishonest_of(len(gram)), 1)


def multi_krum(gram: Matrix, _weights: Vector, _keys: Sequence[Key]) -> Vector:
    """The mean of n - f."""
    f = dishonest_of(len(gram))
    return robust.krum(gram, f, len(gram) - f)
