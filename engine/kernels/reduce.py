"""Adding sparse updates in fixed point, where the order of devices cannot matter.

    fixed(v) = round(v * 2^30), half away from zero            total[index] += weight * fixed(value)

    total int64 [P]; indices uint32 [k] below P; values float32 [k], |v| <= 64; weight int64.

A float32 of magnitude 2^-6 or more is represented exactly, a smaller one to within 2^-31. `engine/ring.py` states the
bounds under which the int64 sum cannot overflow.
"""

import numpy as np

from engine.kernels._jit import kernel
from engine.kernels.quantize import VALUE_LIMIT

FIXED_ONE = 1073741824.0


@kernel("boolean(float32[::1])")
def within_limit(values):
    """Tell whether every value is finite and at most VALUE_LIMIT in magnitude: asked before any conversion."""
    broken = 0
    for j in range(values.shape[0]):
        if not abs(values[j]) <= VALUE_LIMIT:
            broken += 1
    return broken == 0


@kernel("void(int64[::1], uint32[::1], float32[::1], int64)")
def scatter_add(total, indices, values, weight):
    """Add one update into `total` in place; `within_limit(values)` holds."""
    for j in range(indices.shape[0]):
        scaled = np.float64(values[j]) * FIXED_ONE
        fixed = np.int64(scaled + 0.5) if scaled >= 0.0 else np.int64(scaled - 0.5)
        total[indices[j]] += weight * fixed
