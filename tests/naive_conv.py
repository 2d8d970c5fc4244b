"""Slow, obvious twins of the convolution kernels: one line of the formula each, nothing shared with `engine`.

A twin has its kernel's name; it takes weights as they lie in a model and the shape of what it gives. Numbers have the
type of the arguments: int64 for exact sums, float64 for close ones, float32 where whole numbers make both the same.
"""

# ruff: noqa: PLR0917  as many arguments as the kernels have

import numpy as np

F = np.float32


def wrapped(number):
    """Give the int32 that is equal to `number` modulo 2^32."""
    return (number + 2**31) % 2**32 - 2**31


def requantize(total, multiplier, shift, double_rounding):
    """Give one int32 sum times multiplier * 2^(shift - 31) as TensorFlow Lite rounds it, in Python integers."""
    if shift < -31:
        return 0
    if not double_rounding:
        return (total * multiplier + (1 << (30 - shift))) >> (31 - shift)
    product = wrapped(total << max(shift, 0)) * multiplier
    nudged = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
    high = abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)
    power = 2 ** max(-shift, 0)
    away = (2 * abs(high) + power) // (2 * power)
    return away if high >= 0 else -away


def finish_int8(sums, bias, multiplier, shift, zero_out, low, high, double_rounding):
    y = np.empty(sums.shape, np.int8)
    for index in np.ndindex(*sums.shape):
        o = index[-1]
        total = wrapped(int(sums[index]) + int(bias[o]))
        value = requantize(total, int(multiplier[o]), int(shift[o]), double_rounding)
        y[index] = min(max(value + zero_out, low), high)
    return y


def taps(x, shape, geometry):
    """Yield (kh, kw, the input pixel under that tap for every output [n][OH][OW][C], zero outside)."""
    kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w = (int(g) for g in geometry)
    samples, height, width, channels = x.shape
    for kh in range(kernel_h):
        for kw in range(kernel_w):
            seen = np.zeros((samples, shape[1], shape[2], channels), x.dtype)
            for oh in range(shape[1]):
                for ow in range(shape[2]):
                    h, w = oh * stride_h + kh * dilation_h - top, ow * stride_w + kw * dilation_w - left
                    if 0 <= h < height and 0 <= w < width:
                        seen[:, oh, ow] = x[:, h, w]
            yield kh, kw, seen


def conv_sums(x, weights, shape, geometry):
    total = np.zeros(shape, x.dtype)
    for kh, kw, seen in taps(x, shape, geometry):
        for o in range(shape[3]):
            for c in range(x.shape[3]):
                total[..., o] += seen[..., c] * weights[o, kh, kw, c]
    return total


def depthwise_sums(x, weights, shape, geometry):
    total = np.zeros(shape, x.dtype)
    for kh, kw, seen in taps(x, shape, geometry):
        total += seen * weights[0, kh, kw]
    return total


def exact_sums(sums, x, zero_in, weights, shape, geometry):
    return sums(x.astype(np.int64) - zero_in, weights.astype(np.int64), shape, geometry)


def conv_forward_int8(x, zero_in, weights, finish, shape, geometry):
    """`finish`: (bias, multiplier, shift, zero_out, low, high, double_rounding)."""
    return finish_int8(exact_sums(conv_sums, x, zero_in, weights, shape, geometry), *finish)


def conv_forward_real(x, zero_in, weights, bias, scale, shape, geometry):
    return (exact_sums(conv_sums, x, zero_in, weights, shape, geometry) + bias).astype(F) * scale


def conv_forward_float(x, weights, bias, low, high, shape, geometry):
    return np.clip(conv_sums(x, weights, shape, geometry) + bias, low, high)


def depthwise_forward_int8(x, zero_in, weights, finish, shape, geometry):
    return finish_int8(exact_sums(depthwise_sums, x, zero_in, weights, shape, geometry), *finish)


def depthwise_forward_float(x, weights, bias, low, high, shape, geometry):
    return np.clip(depthwise_sums(x, weights, shape, geometry) + bias, low, high)


def conv_backward_weights_float(x, dy, weights_shape, geometry):
    """Give dw [O][KH][KW][C]."""
    dw = np.zeros(weights_shape, x.dtype)
    for kh, kw, seen in taps(x, dy.shape, geometry):
        for o in range(weights_shape[0]):
            for c in range(weights_shape[3]):
                dw[o, kh, kw, c] = (seen[..., c] * dy[..., o]).sum()
    return dw


def conv_backward_weights_int8(x, zero_in, dy, weights_shape, geometry):
    return conv_backward_weights_float(x.astype(dy.dtype) - dy.dtype.type(zero_in), dy, weights_shape, geometry)


def depthwise_backward_weights_float(x, dy, weights_shape, geometry):
    """Give dw [1][KH][KW][C]."""
    dw = np.zeros(weights_shape, x.dtype)
    for kh, kw, seen in taps(x, dy.shape, geometry):
        dw[0, kh, kw] = (seen * dy).sum((0, 1, 2))
    return dw


def depthwise_backward_weights_int8(x, zero_in, dy, weights_shape, geometry):
    return depthwise_backward_weights_float(x.astype(dy.dtype) - dy.dtype.type(zero_in), dy, weights_shape, geometry)


def reached(dy, shape, geometry):
    """Yield (oh, ow, kh, kw, h, w): which output sees which input under which tap."""
    kernel_h, kernel_w, stride_h, stride_w, top, left, _, _ = (int(g) for g in geometry)
    for oh, ow in np.ndindex(*dy.shape[1:3]):
        for kh, kw in np.ndindex(kernel_h, kernel_w):
            h, w = oh * stride_h + kh - top, ow * stride_w + kw - left
            if 0 <= h < shape[1] and 0 <= w < shape[2]:
                yield oh, ow, kh, kw, h, w


def conv_backward_inputs(dy, weights, shape, geometry):
    """Give dx, scattering each output's gradient over the inputs it saw."""
    dx = np.zeros(shape, dy.dtype)
    for oh, ow, kh, kw, h, w in reached(dy, shape, geometry):
        for o in range(dy.shape[3]):
            dx[:, h, w] += dy[:, oh, ow, o, None] * weights[o, kh, kw]
    return dx


def depthwise_backward_inputs(dy, weights, shape, geometry):
    dx = np.zeros(shape, dy.dtype)
    for oh, ow, kh, kw, h, w in reached(dy, shape, geometry):
        dx[:, h, w] += dy[:, oh, ow] * weights[0, kh, kw]
    return dx


def bias_gradient(dy, db):
    db = db.copy()
    for pixel in dy.reshape(-1, dy.shape[3]):
        db += pixel
    return db


# Packed weights: blocks of 16 outputs side by side, and zeros where there is no output.


def in_blocks(rows):
    """Give [O][...] as a flat [O/16][...][16]."""
    if rows.size == 0:
        return rows.ravel()
    whole = np.zeros((-(-len(rows) // 16) * 16, *rows.shape[1:]), rows.dtype)
    whole[: len(rows)] = rows
    blocks = whole.reshape(-1, 16, *rows.shape[1:])
    return np.moveaxis(blocks, 1, -1).ravel()


def winograd(weights, scale):
    """Give G g G' [O][C][4][4] of weights [O][3][3][C], each dimension times `scale`."""
    three = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]) * scale
    return np.moveaxis(three @ np.moveaxis(weights.astype(np.float64), 3, 1) @ three.T, (1, 2, 3), (3, 1, 2))


def pack_pairs(weights, winograds_way):
    outputs, rows, _, channels = weights.shape
    if winograds_way:
        lines = winograd(weights, 2).astype(np.int16).reshape(outputs, 16, channels)
    else:
        lines = weights.astype(np.int16).reshape(outputs, rows, -1)
        lines = np.pad(lines, ((0, 0), (0, 0), (0, lines.shape[2] % 2)))
    low, high = in_blocks(lines[..., ::2]), in_blocks(lines[..., 1::2])
    return np.stack([low, high], -1).ravel()


def pack_float(weights):
    return in_blocks(weights.reshape(len(weights), -1))


def phases(weights, geometry):
    """Yield, phase by phase, the taps that reach the same inputs, last one first."""
    for a in range(geometry[2]):
        for b in range(geometry[3]):
            yield weights[:, a :: geometry[2], b :: geometry[3]][:, ::-1, ::-1]


def pack_inputs_float(weights, geometry, winograds_way):
    if winograds_way:
        tiles = winograd(weights[:, ::-1, ::-1], 1).astype(F)
        return in_blocks(np.moveaxis(tiles, (3, 1, 2, 0), (0, 1, 2, 3)))
    parts = [np.moveaxis(part, (3, 1, 2, 0), (0, 1, 2, 3)) for part in phases(weights, geometry)]
    return np.concatenate([in_blocks(part) for part in parts])


def pack_inputs_int8(weights, scale, geometry, winograds_way):
    return pack_inputs_float(weights.astype(F) * scale[:, None, None, None], geometry, winograds_way)


def pack_depthwise_float(weights):
    """Give [C/16][KH*KW][16]; 1, 2, 4 or 8 channels are repeated until there are 16."""
    channels = weights.shape[3]
    lines = weights.reshape(-1, channels).T
    return in_blocks(np.tile(lines, (16 // channels, 1)) if channels in {1, 2, 4, 8} else lines)


def pack_depthwise_int8(weights):
    return pack_depthwise_float(weights.astype(F))


def pack_depthwise_inputs_float(weights, geometry):
    return np.concatenate([pack_depthwise_float(part) for part in phases(weights, geometry)])


def pack_depthwise_inputs_int8(weights, scale, geometry):
    return pack_depthwise_inputs_float(weights.astype(F) * scale, geometry)
