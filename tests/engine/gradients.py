"""Central differences in float64: what a backward kernel is held against."""

import numpy as np


def slope(forward, x, dy, step=1e-5):
    """Give the gradient of sum(dy * forward(x)) at float64 `x`, one entry at a time."""
    x = x.astype(np.float64)
    gradient = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        sums = []
        for move in (step, -step):
            moved = x.copy()
            moved[at] += move
            sums.append(float((dy * forward(moved)).sum()))
        gradient[at] = (sums[0] - sums[1]) / (2 * step)
    return gradient


def close(got, want, tolerance=1e-6):
    """Whether two gradients agree relative to the largest of the wanted one."""
    return np.abs(got - want).max(initial=0.0) <= tolerance * max(1.0, np.abs(want).max(initial=0.0))
