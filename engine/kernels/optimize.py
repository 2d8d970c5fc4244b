"""Stochastic gradient descent with momentum, the L2 clip, and the check that numbers are still numbers.

step     v = momentum * v + g;  p = p - rate * v                       (float32, elementwise, in place)
clip     d = d * min(1, clip_norm / ||d||)    with ||d|| = sqrt(sum_i d[i]^2) summed in float64, i ascending

params, velocity, grad, vector float32 [P]; rate and momentum float32; clip_norm float64 > 0.
"""

import math

import numpy as np

from engine.kernels._jit import inner, kernel


@kernel("void(float32[::1], float32[::1], float32[::1], float32, float32)")
def sgd_step(params, velocity, grad, rate, momentum):
    """Advance `velocity` and `params` in place."""
    for i in range(params.shape[0]):
        speed = momentum * velocity[i] + grad[i]
        velocity[i] = speed
        params[i] = params[i] - rate * speed


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
