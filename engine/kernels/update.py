"""The step: gradients become whole steps of the stored weights, by chance, and are taken.

    wish           t = -step[o] * dw                        float32; `step` is rate * input scale / weight scale
    whole steps    floor(t) + [r < t - floor(t)]            r the upper 24 bits of splitmix64(key, i), a fraction of 1
    int8 weights   w = clamp(w + steps, -127, 127)          bias: +-2^30
    float32        w = w - rate * dw                        no rounding but that of float32

    weights [o][kh][kw][i] as in the file, depthwise [1][kh][kw][c]; i above is the index in that order. bias [o].
    channels int64 [count]: the input channels (depthwise: the channels) that train; dw has no room for the others:
    dw float32 [kh * kw * count][o and padding], depthwise [kh * kw][count and padding]; db float32 [o]
    step float32 [o], 0 for a dead channel; key uint64 (`int8.tensor_key`); tally int64 [2], counted up:
        entries that wanted to go beyond the end of the range; entries whose wish is NaN or infinite, which stay put
    momentum       velocity = momentum * velocity + grad; grad = velocity
    bound          dw *= limit / largest, if largest > limit        largest = max over k, o of |step[o] * dw[k][o]|

The int8 and bias updates use `dw` and `db` up: they hold the whole steps afterwards.

A weight usually wishes for far less than one step. Rounded to the nearest it would never move, and truncated it would
only move one way; rounded by chance it moves by the right amount on the average (Gupta et al., ICML 2015). The draw
depends on nothing but key and index, so any machine repeats it, in any order, whatever else trains.
"""

import numpy as np

from engine.kernels._jit import inner, kernel
from engine.kernels.shuffle import FIRST, GOLDEN, SECOND

WEIGHT_MAX = 127
WEIGHT_WISH_MAX = np.float32(512.0)  # beyond any distance between two int8
BIAS_MAX = 1 << 30  # an accumulator of int32 still has room for the products
BIAS_WISH_MAX = np.float32(2147483520.0)  # the largest float32 that fits int32
DRAW = np.float32(1.0 / 16777216.0)  # 2^-24


@inner
def is_finite(x):
    """Tell whether `x` is neither NaN nor infinite: x - x is 0 then, and NaN otherwise."""
    return x - x == np.float32(0.0)


@inner
def state_of(key, index):
    """Give splitmix64's state before draw `index` of the stream `key`; the next index is GOLDEN further."""
    return key + (np.uint64(index) + np.uint64(1)) * GOLDEN


@inner
def rounded(wish, wish_max, state):
    """Give the whole steps (float32) of a wish: one beyond +-`wish_max` is cut to that, one that is not finite is 0."""
    held = min(max(wish if is_finite(wish) else np.float32(0.0), -wish_max), wish_max)
    whole = np.float32(np.int32(held))
    whole = whole - np.float32(1.0) if whole > held else whole
    z = (state ^ (state >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    draw = np.float32(np.int32((z ^ (z >> np.uint64(31))) >> np.uint64(40))) * DRAW
    return whole + np.float32(1.0) if draw < held - whole else whole


@inner
def moved(weight, steps, tally):
    """Give the int8 weight after its steps, and count it if it wanted further than the range goes."""
    wanted = np.int64(weight) + np.int64(steps)
    if abs(wanted) > WEIGHT_MAX:
        tally[0] += 1
    return min(max(wanted, -WEIGHT_MAX), WEIGHT_MAX)


@kernel("void(int8[:, :, :, ::1], int64[::1], float32[:, ::1], float32[::1], uint64, int64[::1])")
def update_int8(weights, channels, dw, step, key, tally):
    """Take one step of a convolution's or dense layer's weights."""
    outputs, height, width, inputs = weights.shape
    stride = np.uint64(height * width * inputs) * GOLDEN
    for kh in range(height):
        for kw in range(width):
            for j in range(channels.shape[0]):
                row = (kh * width + kw) * channels.shape[0] + j
                state = state_of(key, (kh * width + kw) * inputs + channels[j])
                broken = 0
                for o in range(outputs):
                    wish = -step[o] * dw[row, o]
                    broken += not is_finite(wish)
                    dw[row, o] = rounded(wish, WEIGHT_WISH_MAX, state + np.uint64(o) * stride)
                tally[1] += broken
                for o in range(outputs):
                    if dw[row, o] != np.float32(0.0):
                        weights[o, kh, kw, channels[j]] = moved(weights[o, kh, kw, channels[j]], dw[row, o], tally)


@kernel("void(int8[:, :, :, ::1], int64[::1], float32[:, ::1], float32[::1], uint64, int64[::1])")
def update_depthwise_int8(weights, channels, dw, step, key, tally):
    """Take one step of a depthwise convolution's weights."""
    _, height, width, inputs = weights.shape
    for kh in range(height):
        for kw in range(width):
            row = kh * width + kw
            for j in range(channels.shape[0]):
                c = channels[j]
                wish = -step[c] * dw[row, j]
                tally[1] += not is_finite(wish)
                dw[row, j] = rounded(wish, WEIGHT_WISH_MAX, state_of(key, row * inputs + c))
                if dw[row, j] != np.float32(0.0):
                    weights[0, kh, kw, c] = moved(weights[0, kh, kw, c], dw[row, j], tally)


@kernel("void(int32[::1], float32[::1], float32[::1], uint64, int64[::1])")
def update_bias(bias, db, step, key, tally):
    """Take one step of an int32 bias, whose step is rate / (input scale * weight scale)."""
    for o in range(bias.shape[0]):
        wish = -step[o] * db[o]
        tally[1] += not is_finite(wish)
        db[o] = rounded(wish, BIAS_WISH_MAX, state_of(key, o))
        if db[o] != np.float32(0.0):
            wanted = np.int64(bias[o]) + np.int64(db[o])
            tally[0] += abs(wanted) > BIAS_MAX
            bias[o] = min(max(wanted, -BIAS_MAX), BIAS_MAX)


@inner
def moved_float(weight, slope, rate, tally):
    """Give the float32 weight after its step; one that would not be finite stays where it is, and is counted."""
    wanted = weight - rate * slope
    tally[1] += not is_finite(wanted)
    return wanted if is_finite(wanted) else weight


@kernel("void(float32[:, :, :, ::1], int64[::1], float32[:, ::1], float32, int64[::1])")
def update_float(weights, channels, dw, rate, tally):
    """Take one step of a convolution's or dense layer's weights."""
    outputs, height, width, _ = weights.shape
    for kh in range(height):
        for kw in range(width):
            for j in range(channels.shape[0]):
                row, c = (kh * width + kw) * channels.shape[0] + j, channels[j]
                for o in range(outputs):
                    weights[o, kh, kw, c] = moved_float(weights[o, kh, kw, c], dw[row, o], rate, tally)


@kernel("void(float32[:, :, :, ::1], int64[::1], float32[:, ::1], float32, int64[::1])")
def update_depthwise_float(weights, channels, dw, rate, tally):
    """Take one step of a depthwise convolution's weights."""
    _, height, width, _ = weights.shape
    for kh in range(height):
        for kw in range(width):
            for j in range(channels.shape[0]):
                c = channels[j]
                weights[0, kh, kw, c] = moved_float(weights[0, kh, kw, c], dw[kh * width + kw, j], rate, tally)


@kernel("void(float32[::1], float32[::1], float32, int64[::1])")
def update_bias_float(bias, db, rate, tally):
    """Take one step of a float32 bias."""
    for o in range(bias.shape[0]):
        bias[o] = moved_float(bias[o], db[o], rate, tally)


@kernel("void(float32[:, ::1], float32[:, ::1], float32)")
def momentum_step(velocity, grad, momentum):
    """Advance `velocity` in place and copy it into `grad`, which the update then uses up."""
    for row in range(grad.shape[0]):
        for o in range(grad.shape[1]):
            speed = momentum * velocity[row, o] + grad[row, o]
            velocity[row, o] = speed
            grad[row, o] = speed


@kernel("float64(float32[:, ::1], float32[::1], float64)")
def limit_steps(dw, step, limit):
    """Shrink `dw` in place until no wish is beyond `limit`; give the largest before. A NaN is passed over."""
    largest = 0.0
    for k in range(dw.shape[0]):
        for o in range(step.shape[0]):
            wish = abs(np.float64(dw[k, o]) * np.float64(step[o]))
            if wish > largest:  # noqa: PLR1730  max() would take a NaN
                largest = wish
    if largest > limit:
        factor = limit / largest
        for k in range(dw.shape[0]):
            for o in range(step.shape[0]):
                dw[k, o] = np.float32(np.float64(dw[k, o]) * factor)
    return largest
