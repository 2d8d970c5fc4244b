"""Slow, obvious twins of `engine/kernels/drift.py`, one entry at a time. Each gives the new gradient."""

import numpy as np

F = np.float32


def pull_int8(weights, base, rows, columns, factor, grad):  # noqa: PLR0917 - as the kernel
    grad = grad.copy()
    for r, row in enumerate(rows.tolist()):
        for o, column in enumerate(columns.tolist()):
            away = F(int(weights[row + column]) - int(base[row + column]))
            grad[r, o] = F(grad[r, o] + F(factor[o] * away))
    return grad


def pull_bias(bias, base, rows, columns, factor, grad):  # noqa: PLR0917 - as the kernel
    return pull_int8(bias, base, rows, columns, factor, grad)


def pull_float(weights, base, rows, columns, factor, grad):  # noqa: PLR0917 - as the kernel
    grad = grad.copy()
    for r, row in enumerate(rows.tolist()):
        for o, column in enumerate(columns.tolist()):
            grad[r, o] = F(grad[r, o] + F(factor[o] * F(weights[row + column] - base[row + column])))
    return grad


def correct(grad, correction, total):
    """Give (gradient, total)."""
    return grad + correction, total + grad
