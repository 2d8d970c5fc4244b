"""What is added to a layer's gradient so that a device does not drift away from its fleet.

    pull       grad[r][o] = grad[r][o] + factor[o] * (w - base)        w, base at rows[r] + columns[o] of the tensor
    correct    total = total + grad;  grad = grad + correction         both in the layout of the gradient

    weights, base [n], flat: int8 weights, int32 biases, float32; rows int64 [R], columns int64 [C], all sums below n
    factor float32 [C]; grad, total, correction float32 [R][C and padding], the padding of a pull stays as it is

The difference of two stored integers is taken in int64 and is rounded to float32 once, by which it becomes exact for
weights; one product and one sum follow, each rounded. Where a weight stands at its base nothing is added.
"""

import numpy as np

from engine.kernels._jit import kernel


@kernel("void(int8[::1], int8[::1], int64[::1], int64[::1], float32[::1], float32[:, ::1])")
def pull_int8(weights, base, rows, columns, factor, grad):
    """Add the pull towards `base` to the gradient of int8 weights."""
    for r in range(rows.shape[0]):
        for o in range(columns.shape[0]):
            at = rows[r] + columns[o]
            grad[r, o] += factor[o] * np.float32(np.int64(weights[at]) - np.int64(base[at]))


@kernel("void(int32[::1], int32[::1], int64[::1], int64[::1], float32[::1], float32[:, ::1])")
def pull_bias(bias, base, rows, columns, factor, grad):
    """Add the pull towards `base` to the gradient of an int32 bias."""
    for r in range(rows.shape[0]):
        for o in range(columns.shape[0]):
            at = rows[r] + columns[o]
            grad[r, o] += factor[o] * np.float32(np.int64(bias[at]) - np.int64(base[at]))


@kernel("void(float32[::1], float32[::1], int64[::1], int64[::1], float32[::1], float32[:, ::1])")
def pull_float(weights, base, rows, columns, factor, grad):
    """Add the pull towards `base` to the gradient of float32 parameters."""
    for r in range(rows.shape[0]):
        for o in range(columns.shape[0]):
            at = rows[r] + columns[o]
            grad[r, o] += factor[o] * (weights[at] - base[at])


@kernel("void(float32[:, ::1], float32[:, ::1], float32[:, ::1])")
def correct(grad, correction, total):
    """Count the gradient in, and correct it."""
    for r in range(grad.shape[0]):
        for o in range(grad.shape[1]):
            total[r, o] += grad[r, o]
            grad[r, o] += correction[r, o]
