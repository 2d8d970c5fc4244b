"""The geometric median: the point with the least sum of distances (RFA: Pillutla et al. 2022, arXiv:1912.13445).

Up to half of the weight may lie, and moves it only so far. Weiszfeld's steps, 32 of them, in inner products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine import robust
from engine.batch import total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.batch import Matrix, Vector
    from engine.ring import Key


def geometric_median(gram: Matrix, weights: Vector, _keys: Sequence[Key]) -> Vector:
    """Factors that add up to 1."""
    middle = float(np.median(np.sqrt(np.diagonal(gram))))
    smoothing = max(robust.SMOOTHING * middle, float(np.finfo(np.float64).tiny))
    return robust.geometric_median(gram, weights / total(weights), smoothing, robust.WEISZFELD_STEPS)
