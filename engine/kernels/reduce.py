"""Adding sparse updates in integers, where the order of devices cannot matter.

    real numbers    fixed(v) = round(v * 2^30), half away from zero       total[index] += weight * fixed(value)
    whole units                                                           total[index] += weight * unit

    total int64 [P]; indices uint32 [k] below P; values float32 [k], |v| <= 64; units int32 [k]; weight int64.

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


@kernel("boolean(int32[::1], int64)")
def units_within(units, limit):
    """Tell whether no unit is zero or beyond `limit` in magnitude."""
    broken = 0
    for j in range(units.shape[0]):
        size = abs(np.int64(units[j]))
        if size < 1 or size > limit:
            broken += 1
    return broken == 0


@kernel("void(int64[::1], uint32[::1], int32[::1], int64)")
def scatter_units(total, indices, units, weight):
    """Add one update in whole units into `total` in place."""
    for j in range(indices.shape[0]):
        total[indices[j]] += weight * np.int64(units[j])
