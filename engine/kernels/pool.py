"""Averages and maxima over windows, and MEAN over height and width; forward and backward.

    average_pool   y[n, i, j, c] = clamp(mean of x over the window of (i, j))
    max_pool       y[n, i, j, c] = clamp(largest x in the window of (i, j))
    window (i, j)  rows i SH - PT .. + KH - 1, columns j SW - PL .. + KW - 1, as far as they lie in the image; the count
                   that an average divides by is of those alone
    mean_int8      y = clamp(R(sum of (x - zx)) + zy)      R takes the count in: see `int8.mean_rule`

    x, y [n][h][w][c], int8 or float32, C-contiguous; gradients float32; geometry int64 [8]: KH, KW, SH, SW, PT, PL,
    and two dilations that stay 1. `sums` int32 and `seeking` uint8 are scratch for at least c entries.

int8 averages round to the nearest, ties away from zero, as in TensorFlow Lite's reference kernels; float32 sums run
over the window in row order, and then there is one division. Backward, an average hands each entry its share, gradient
times the float32 nearest to 1 / count; a maximum hands all of it to the first of equals in row order. `accumulate`:
False sets dx, True adds to it. A MEAN of float32 numbers, and any MEAN backward, is an average over one window that is
the whole image.
"""

import numpy as np

from engine.kernels._jit import inner, kernel
from engine.kernels.pointwise import clamp, clear, rescale


@inner
def span(at, stride, pad, window, size):
    """Give the first row (or column) of a window and the one after its last, within 0 .. size."""
    start = at * stride - pad
    return max(start, 0), min(start + window, size)


@kernel("void(int8[:, :, :, ::1], int64, int64, int64[::1], int32[::1], int8[:, :, :, ::1])")
def average_pool_int8(x, low, high, geometry, sums, y):
    """Fill `y`; its scale and zero point are those of `x`."""
    for n in range(y.shape[0]):
        for i in range(y.shape[1]):
            top, bottom = span(i, geometry[2], geometry[4], geometry[0], x.shape[1])
            for j in range(y.shape[2]):
                left, right = span(j, geometry[3], geometry[5], geometry[1], x.shape[2])
                for c in range(y.shape[3]):
                    sums[c] = 0
                for h in range(top, bottom):
                    for w in range(left, right):
                        for c in range(y.shape[3]):
                            sums[c] += x[n, h, w, c]
                count = (bottom - top) * (right - left)
                half = count >> 1
                for c in range(y.shape[3]):
                    total = np.int64(sums[c])
                    # magnitudes stay far below 2^53, so this quotient cannot round up to the next integer
                    mean = np.int32(np.float64(total + half if total > 0 else total - half) / count)
                    y[n, i, j, c] = min(max(mean, low), high)


@kernel("void(float32[:, :, :, ::1], float32, float32, int64[::1], float32[:, :, :, ::1])")
def average_pool_float(x, low, high, geometry, y):
    """Fill `y`."""
    for n in range(y.shape[0]):
        for i in range(y.shape[1]):
            top, bottom = span(i, geometry[2], geometry[4], geometry[0], x.shape[1])
            for j in range(y.shape[2]):
                left, right = span(j, geometry[3], geometry[5], geometry[1], x.shape[2])
                for c in range(y.shape[3]):
                    y[n, i, j, c] = 0.0
                for h in range(top, bottom):
                    for w in range(left, right):
                        for c in range(y.shape[3]):
                            y[n, i, j, c] = y[n, i, j, c] + x[n, h, w, c]
                count = np.float32((bottom - top) * (right - left))
                for c in range(y.shape[3]):
                    y[n, i, j, c] = clamp(y[n, i, j, c] / count, low, high)


@kernel("void(float32[:, :, :, ::1], int64[::1], boolean, float32[:, :, :, ::1])")
def average_pool_back(dy, geometry, accumulate, dx):
    """Hand every entry its share of the gradient of each window that it lies in."""
    if not accumulate:
        clear(dx)
    for n in range(dy.shape[0]):
        for i in range(dy.shape[1]):
            top, bottom = span(i, geometry[2], geometry[4], geometry[0], dx.shape[1])
            for j in range(dy.shape[2]):
                left, right = span(j, geometry[3], geometry[5], geometry[1], dx.shape[2])
                share = np.float32(1.0 / np.float64((bottom - top) * (right - left)))
                for h in range(top, bottom):
                    for w in range(left, right):
                        for c in range(dy.shape[3]):
                            dx[n, h, w, c] = dx[n, h, w, c] + dy[n, i, j, c] * share


@inner
def max_pool(x, low, high, geometry, lowest, y):
    """Fill `y`, starting each maximum at `lowest`."""
    for n in range(y.shape[0]):
        for i in range(y.shape[1]):
            top, bottom = span(i, geometry[2], geometry[4], geometry[0], x.shape[1])
            for j in range(y.shape[2]):
                left, right = span(j, geometry[3], geometry[5], geometry[1], x.shape[2])
                for c in range(y.shape[3]):
                    y[n, i, j, c] = lowest
                for h in range(top, bottom):
                    for w in range(left, right):
                        for c in range(y.shape[3]):
                            value = x[n, h, w, c]
                            y[n, i, j, c] = value if value > y[n, i, j, c] else y[n, i, j, c]  # noqa: FURB136
                for c in range(y.shape[3]):
                    y[n, i, j, c] = clamp(y[n, i, j, c], low, high)


@kernel("void(int8[:, :, :, ::1], int64, int64, int64[::1], int8[:, :, :, ::1])")
def max_pool_int8(x, low, high, geometry, y):
    """Fill `y`; its scale and zero point are those of `x`."""
    max_pool(x, np.int8(low), np.int8(high), geometry, np.int8(-128), y)


@kernel("void(float32[:, :, :, ::1], float32, float32, int64[::1], float32[:, :, :, ::1])")
def max_pool_float(x, low, high, geometry, y):
    """Fill `y`; a NaN is never the largest, as in the runtime."""
    max_pool(x, low, high, geometry, np.float32(-np.inf), y)


@inner
def max_pool_back(x, y, dy, geometry, accumulate, seeking, dx):
    """Hand each gradient to the first entry of its window that equals the maximum; a clamped maximum equals none."""
    if not accumulate:
        clear(dx)
    for n in range(dy.shape[0]):
        for i in range(dy.shape[1]):
            top, bottom = span(i, geometry[2], geometry[4], geometry[0], dx.shape[1])
            for j in range(dy.shape[2]):
                left, right = span(j, geometry[3], geometry[5], geometry[1], dx.shape[2])
                for c in range(dy.shape[3]):
                    seeking[c] = 1
                for h in range(top, bottom):
                    for w in range(left, right):
                        for c in range(dy.shape[3]):
                            found = (x[n, h, w, c] == y[n, i, j, c]) & (seeking[c] == 1)
                            dx[n, h, w, c] = dx[n, h, w, c] + (dy[n, i, j, c] if found else np.float32(0.0))
                            seeking[c] = 0 if found else seeking[c]


@kernel(
    "void(int8[:, :, :, ::1], int8[:, :, :, ::1], float32[:, :, :, ::1], int64[::1], boolean, uint8[::1],"
    " float32[:, :, :, ::1])"
)
def max_pool_back_int8(x, y, dy, geometry, accumulate, seeking, dx):
    """Hand each gradient to the first entry of its window that equals the maximum `y`."""
    max_pool_back(x, y, dy, geometry, accumulate, seeking, dx)


@kernel(
    "void(float32[:, :, :, ::1], float32[:, :, :, ::1], float32[:, :, :, ::1], int64[::1], boolean, uint8[::1],"
    " float32[:, :, :, ::1])"
)
def max_pool_back_float(x, y, dy, geometry, accumulate, seeking, dx):
    """Hand each gradient to the first entry of its window that equals the maximum `y`."""
    max_pool_back(x, y, dy, geometry, accumulate, seeking, dx)


@kernel("void(int8[:, :, :, ::1], int64[::1], int32[::1], int8[:, :, :, ::1])")
def mean_int8(x, rule, sums, y):
    """Fill `y` [n][1][1][c] with the mean over the whole image; `rule` is `int8.mean_rule`."""
    offset, multiplier, shift, zero = rule[0], rule[1], rule[2], rule[3]
    for n in range(x.shape[0]):
        for c in range(x.shape[3]):
            sums[c] = 0
        for h in range(x.shape[1]):
            for w in range(x.shape[2]):
                for c in range(x.shape[3]):
                    sums[c] += x[n, h, w, c]
        for c in range(x.shape[3]):
            y[n, 0, 0, c] = min(max(rescale(sums[c] - offset, multiplier, shift) + zero, -128), 127)
