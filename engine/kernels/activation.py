"""LOGISTIC and SOFTMAX, whose exponential is the engine's own or a table (`int8.softmax_table`, `int8.logistic_table`).

    logistic   y = 1 / (1 + exp(-x))          backward dx = dy y (1 - y)
    softmax    y = exp(beta (x - m)) / s      m the largest x of the row, s the sum of the row's exponentials

    x, y [n][h][w][c], int8 or float32, C-contiguous; a row runs along c. An int8 y stands for (y + 128) / 256.
    `accumulate`: False sets dx, True adds to it.

The int8 SOFTMAX works in gemmlowp's fixed point, as TensorFlow Lite's reference kernel does: exponentials with 31
fractional bits, their sum with 19, its reciprocal by three steps of Newton's method. The int8 LOGISTIC is a table
(`pointwise.lookup_int8`). The float32 ones work in float64 and round once. Training needs no SOFTMAX backward: the loss
takes the logits (`loss.py`).
"""

import numpy as np

from engine.kernels._jit import inner, kernel
from engine.kernels.loss import exp_negative
from engine.kernels.pointwise import high_product, rounding_shift

LARGEST = (1 << 31) - 1
NEWTON_START = 1515870810  # 48/17 with 29 fractional bits
NEWTON_SLOPE = -1010580540  # -32/17


@inner
def saturating_shift(x, bits):
    """Give x * 2^bits within the range of int32 (gemmlowp's SaturatingRoundingMultiplyByPOT)."""
    limit = (1 << (31 - bits)) - 1
    if x > limit:
        return LARGEST
    return -LARGEST - 1 if x < -limit else x << bits


@inner
def reciprocal(fraction):
    """Give 1 / (1 + fraction / 2^31) with 31 fractional bits, for 0 <= fraction < 2^31."""
    half = (fraction + LARGEST + 1) >> 1
    x = NEWTON_START + high_product(half, NEWTON_SLOPE)
    for _ in range(3):
        x = x + saturating_shift(high_product(x, (1 << 29) - high_product(half, x)), 2)
    return saturating_shift(x, 1)


@kernel("void(int8[:, :, :, ::1], int32[::1], int8[:, :, :, ::1])")
def softmax_int8(x, table, y):
    """Fill `y`; `table` is int32 [256], and a row is shorter than 4096."""
    for n in range(x.shape[0]):
        for h in range(x.shape[1]):
            for w in range(x.shape[2]):
                largest = np.int64(-128)
                for c in range(x.shape[3]):
                    largest = max(largest, x[n, h, w, c])
                total = 0
                for c in range(x.shape[3]):
                    total += rounding_shift(np.int64(table[largest - x[n, h, w, c]]), 12)
                # total lies in 2^18 .. 2^31: with its highest bit moved to 2^31 the rest of it is the fraction
                spare = 0
                while total << spare < LARGEST + 1:
                    spare += 1
                scale = reciprocal((total << spare) - (LARGEST + 1))
                for c in range(x.shape[3]):
                    share = high_product(scale, table[largest - x[n, h, w, c]])
                    y[n, h, w, c] = min(max(rounding_shift(share, 35 - spare) - 128, -128), 127)


@kernel("void(float32[:, :, :, ::1], float32, float32[:, :, :, ::1])")
def softmax_float(x, beta, y):
    """Fill `y`; a row with a NaN or an infinity becomes NaN throughout."""
    for n in range(x.shape[0]):
        for h in range(x.shape[1]):
            for w in range(x.shape[2]):
                largest = np.float64(x[n, h, w, 0])
                spoilt = 0.0
                for c in range(x.shape[3]):
                    largest = max(largest, np.float64(x[n, h, w, c]))
                    spoilt += x[n, h, w, c] - x[n, h, w, c]  # 0, or NaN where x is not finite
                total = spoilt
                for c in range(x.shape[3]):
                    total += exp_negative(beta * (np.float64(x[n, h, w, c]) - largest))
                for c in range(x.shape[3]):
                    y[n, h, w, c] = exp_negative(beta * (np.float64(x[n, h, w, c]) - largest)) / total


@kernel("void(float32[:, :, :, ::1], float32[:, :, :, ::1])")
def logistic_float(x, y):
    """Fill `y`; a NaN stays one."""
    for n in range(x.shape[0]):
        for h in range(x.shape[1]):
            for w in range(x.shape[2]):
                for c in range(x.shape[3]):
                    real = np.float64(x[n, h, w, c])
                    grown = exp_negative(-abs(real))
                    answer = (1.0 if real >= 0.0 else grown) / (1.0 + grown)
                    y[n, h, w, c] = answer if real == real else real  # noqa: PLR0124  a NaN is not itself


@kernel("void(int8[:, :, :, ::1], float32[:, :, :, ::1], boolean, float32[:, :, :, ::1])")
def logistic_back_int8(y, dy, accumulate, dx):
    """Give the gradient of the inputs from the stored outputs; the slope of a saturated one, 0 or 255/256, is small."""
    for n in range(dy.shape[0]):
        for h in range(dy.shape[1]):
            for w in range(dy.shape[2]):
                for c in range(dy.shape[3]):
                    real = np.float32(np.int32(y[n, h, w, c]) + 128) * np.float32(0.00390625)
                    given = dy[n, h, w, c] * (real * (np.float32(1.0) - real))
                    dx[n, h, w, c] = given + (dx[n, h, w, c] if accumulate else np.float32(0.0))


@kernel("void(float32[:, :, :, ::1], float32[:, :, :, ::1], boolean, float32[:, :, :, ::1])")
def logistic_back_float(y, dy, accumulate, dx):
    """Give the gradient of the inputs from the outputs."""
    for n in range(dy.shape[0]):
        for h in range(dy.shape[1]):
            for w in range(dy.shape[2]):
                for c in range(dy.shape[3]):
                    given = dy[n, h, w, c] * (y[n, h, w, c] * (np.float32(1.0) - y[n, h, w, c]))
                    dx[n, h, w, c] = given + (dx[n, h, w, c] if accumulate else np.float32(0.0))
