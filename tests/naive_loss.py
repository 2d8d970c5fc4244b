"""Slow, obvious twins of the mean squared error in `engine/kernels/loss.py`."""

import numpy as np


def mse_forward(outputs, targets):
    misses = outputs.astype(np.float64) - targets.astype(np.float64)
    return float(sum(sum(float(m) ** 2 for m in row) / len(row) for row in misses))


def mse_backward(outputs, targets):
    misses = outputs.astype(np.float64) - targets.astype(np.float64)
    return (2 * misses / misses.size).astype(np.float32)
