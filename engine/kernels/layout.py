"""Moving numbers, and turning real into stored ones: QUANTIZE, DEQUANTIZE, CONCATENATION, PAD; forward and backward.

    take         y[.., j] = x[.., channels[j]]                      what channel-sparse training keeps
    quantize     y = clamp(round(x / scale) + zero, -128, 127)      a tie rounds away from zero; a NaN becomes `zero`
    dequantize   y = (x - zero) * scale
    place        y[.., first + c] = part[.., c]                     CONCATENATION, one part at a time
    pad          y[.., top + h, left + w, front + c] = x[.., h, w, c], and `value` everywhere else

All arrays are [n][h][w][c] and C-contiguous; x and y are int8 or float32, gradients float32. `accumulate`: False sets
dx, True adds to it. A CONCATENATION along another axis is one along c for arrays seen as [outer][1][1][width].
"""

import numpy as np

from engine.kernels._jit import inner, kernel
from engine.kernels.pointwise import clamp

STEPS_MAX = 1024.0  # further from zero than any stored value, so that float -> int always has a defined result


@kernel("void(float32[:, :, :, ::1], float32, int64, int8[:, :, :, ::1])")
def quantize_float(x, scale, zero, y):
    """Fill `y` with the stored values of the real numbers `x`."""
    for n in range(y.shape[0]):
        for h in range(y.shape[1]):
            for w in range(y.shape[2]):
                for c in range(y.shape[3]):
                    steps = np.float64(x[n, h, w, c] / scale)
                    steps = steps if steps - steps == 0.0 or abs(steps) > STEPS_MAX else 0.0  # a NaN becomes 0
                    whole = np.int64(min(abs(steps), STEPS_MAX) + 0.5)
                    y[n, h, w, c] = min(max((whole if steps > 0.0 else -whole) + zero, -128), 127)


@kernel("void(int8[:, :, :, ::1], int64, float32, float32[:, :, :, ::1])")
def dequantize_int8(x, zero, scale, y):
    """Fill `y` with the real values of the stored ones."""
    for n in range(y.shape[0]):
        for h in range(y.shape[1]):
            for w in range(y.shape[2]):
                for c in range(y.shape[3]):
                    y[n, h, w, c] = np.float32(np.int32(x[n, h, w, c] - zero)) * scale


@kernel("void(float32[:, :, :, ::1], float32, float32, float32[:, :, :, ::1])")
def clamp_float(x, low, high, y):
    """Fill `y` with `x` within low .. high (a RELU or RELU6 that stands alone); a NaN stays one."""
    for n in range(y.shape[0]):
        for h in range(y.shape[1]):
            for w in range(y.shape[2]):
                for c in range(y.shape[3]):
                    y[n, h, w, c] = clamp(x[n, h, w, c], low, high)


@inner
def place(part, first, y):
    """Copy `part` to the channels of `y` from `first` on."""
    start = np.uint64(first)
    for n in range(part.shape[0]):
        for h in range(part.shape[1]):
            for w in range(part.shape[2]):
                for c in range(part.shape[3]):
                    y[n, h, w, start + np.uint64(c)] = part[n, h, w, c]


@kernel("void(int8[:, :, :, ::1], int64, int8[:, :, :, ::1])")
def place_int8(part, first, y):
    """Copy `part` to the channels of `y` from `first` on."""
    place(part, first, y)


@kernel("void(float32[:, :, :, ::1], int64, float32[:, :, :, ::1])")
def place_float(part, first, y):
    """Copy `part` to the channels of `y` from `first` on."""
    place(part, first, y)


@inner
def pad(x, top, left, front, value, y):
    """Fill `y` with `x` at (top, left, front) and `value` around it."""
    start = np.uint64(front)
    for n in range(y.shape[0]):
        for h in range(y.shape[1]):
            for w in range(y.shape[2]):
                inside = top <= h < top + x.shape[1] and left <= w < left + x.shape[2]
                ahead = front if inside else y.shape[3]
                for c in range(ahead):
                    y[n, h, w, c] = value
                if inside:
                    for c in range(x.shape[3]):
                        y[n, h, w, start + np.uint64(c)] = x[n, h - top, w - left, c]
                    for c in range(front + x.shape[3], y.shape[3]):
                        y[n, h, w, c] = value


@kernel("void(int8[:, :, :, ::1], int64, int64, int64, int64, int8[:, :, :, ::1])")
def pad_int8(x, top, left, front, value, y):
    """Fill `y` with `x` at (top, left, front) and `value`, the zero point, around it."""
    pad(x, top, left, front, np.int8(value), y)


@kernel("void(float32[:, :, :, ::1], int64, int64, int64, float32, float32[:, :, :, ::1])")
def pad_float(x, top, left, front, value, y):
    """Fill `y` with `x` at (top, left, front) and `value` around it."""
    pad(x, top, left, front, value, y)


@kernel("void(float32[:, :, :, ::1], int64, int64, int64, boolean, float32[:, :, :, ::1])")
def crop_back(dy, top, left, front, accumulate, dx):
    """Give `dx` its part of `dy`, from (top, left, front) on: PAD backwards, and CONCATENATION with (0, 0, first)."""
    start = np.uint64(front)
    for n in range(dx.shape[0]):
        for h in range(dx.shape[1]):
            for w in range(dx.shape[2]):
                if accumulate:
                    for c in range(dx.shape[3]):
                        dx[n, h, w, c] = dx[n, h, w, c] + dy[n, top + h, left + w, start + np.uint64(c)]
                else:
                    for c in range(dx.shape[3]):
                        dx[n, h, w, c] = dy[n, top + h, left + w, start + np.uint64(c)]


@inner
def take(x, channels, y):
    """Copy some channels of `x`."""
    for n in range(y.shape[0]):
        for h in range(y.shape[1]):
            for w in range(y.shape[2]):
                for j in range(channels.shape[0]):
                    y[n, h, w, j] = x[n, h, w, channels[j]]


@kernel("void(int8[:, :, :, ::1], int64[::1], int8[:, :, :, ::1])")
def take_int8(x, channels, y):
    """Fill `y` with the channels int64 [count] of `x`, in that order."""
    take(x, channels, y)


@kernel("void(float32[:, :, :, ::1], int64[::1], float32[:, :, :, ::1])")
def take_float(x, channels, y):
    """Fill `y` with the channels int64 [count] of `x`, in that order."""
    take(x, channels, y)
