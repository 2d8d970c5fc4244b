"""The norm bound: no update is longer than the median one, then the weighted mean (Sun et al. 2019, arXiv:1911.07963).

The bound follows the fleet: half of the updates would have to lie to raise it. It keeps one device from outweighing all
others; many who pull together still get their way.
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


def norm_bound(gram: Matrix, weights: Vector, _keys: Sequence[Key]) -> Vector:
    """Factors that add up to 1 or less."""
    return robust.bounded(np.sqrt(np.diagonal(gram))) * (weights / total(weights))
