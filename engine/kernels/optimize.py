"""The L2 clip, and the check that numbers are still numbers.

clip     d = d * min(1, clip_norm / ||d||)    with ||d|| = sqrt(sum_i d[i]^2) summed in float64, i ascending

vector float32 [P]; clip_norm float64 > 0.
"""

import math

import numpy as np

from engine.kernels._jit import inner, kernel


@inner
def squared_norm(vector):
    """Give the sum of squares (float64) in ascending order: one chain, so that there is only one possible result."""
    total = 0.0
    for i in range(vector.shape[0]):
        x = np.float64(vector[i])
        total += x * x
    return total


@kernel("float64(float32[::1], float64)")
def clip_to_norm(vector, clip_norm):
    """Shrink `vector` in place to an L2 norm of at most `clip_norm` (up to rounding); return the norm it had."""
    norm = math.sqrt(squared_norm(vector))
    if norm > clip_norm:
        factor = clip_norm / norm
        for i in range(vector.shape[0]):
            vector[i] = np.float32(np.float64(vector[i]) * factor)
    return norm


@kernel("boolean(float32[::1])")
def all_finite(vector):
    """Tell whether no entry is NaN or infinite."""
    broken = 0
    for i in range(vector.shape[0]):
        # x - x is 0 for every finite x and NaN otherwise
        if vector[i] - vector[i] != 0.0:
            broken += 1
    return broken == 0
