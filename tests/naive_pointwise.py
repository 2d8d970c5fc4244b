"""Slow, obvious twins of `engine/kernels/pointwise.py`, `layout.py` and `activation.py`, in NumPy and Python integers.

The fixed-point arithmetic is written as its C source is (gemmlowp: truncating division after a signed nudge, comparison
of the remainder with a threshold), where the kernels use one shift each. Outputs are returned, not filled.
"""

import math

import numpy as np

F = np.float32


def truncated(a, b):
    """C's integer division."""
    return -(-a // b) if a < 0 else a // b


def doubling_high_mul(a, b):
    nudge = (1 << 30) if a * b >= 0 else 1 - (1 << 30)
    return truncated(a * b + nudge, 1 << 31)


def divide_by_power(x, bits):
    mask = (1 << bits) - 1
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> bits) + (1 if (x & mask) > threshold else 0)


def multiplied(x, multiplier, shift):
    return divide_by_power(doubling_high_mul(x * 2 ** max(shift, 0), multiplier), max(-shift, 0))


def clipped(x, low, high):
    return max(low, min(high, x))


def entrywise(function, *arrays, dtype):
    arrays = np.broadcast_arrays(*arrays)
    flat = [function(*values) for values in zip(*(array.ravel().tolist() for array in arrays), strict=True)]
    return np.array(flat, dtype).reshape(arrays[0].shape)


def add_int8(a, b, rule):
    za, qa, ea, zb, qb, eb, zy, qy, ey, low, high = rule.tolist()

    def entry(u, v):
        total = multiplied((u - za) * 2**20, qa, ea) + multiplied((v - zb) * 2**20, qb, eb)
        return clipped(multiplied(total, qy, ey) + zy, low, high)

    return entrywise(entry, a, b, dtype=np.int8)


def mul_int8(a, b, rule):
    za, zb, zy, q, e, low, high = rule.tolist()
    return entrywise(lambda u, v: clipped(multiplied((u - za) * (v - zb), q, e) + zy, low, high), a, b, dtype=np.int8)


def add_float(a, b, low, high):
    return np.minimum(np.maximum(a + b, F(low)), F(high))


def mul_float(a, b, low, high):
    return np.minimum(np.maximum(a * b, F(low)), F(high))


def clamp_float(x, low, high):
    return np.minimum(np.maximum(x, F(low)), F(high))


def lookup_int8(x, table):
    return table[x.astype(int) + 128]


def pass_back(dy):
    return dy.copy()


def sum_back(dy, shape):
    """Sum in row order, one float32 rounding per addition."""
    total = np.zeros(shape, F)
    for at in np.ndindex(dy.shape):
        target = tuple(i if size > 1 else 0 for i, size in zip(at, shape, strict=True))
        total[target] = F(total[target] + dy[at])
    return total


def mul_back_int8(dy, other, zero, scale, shape):
    return mul_back_float(dy, (other.astype(int) - zero).astype(F) * F(scale), shape)


def mul_back_float(dy, other, shape):
    return sum_back(dy * np.broadcast_to(other, dy.shape), shape)


def gate_int8(y, low, high, g):
    return np.where((y > low) & (y < high), g, F(0))


def gate_float(y, low, high, g):
    return np.where((y > F(low)) & (y < F(high)), g, F(0))


def pack_bits_int8(y, low, high):
    """Entry bit * width + j of an example is bit `bit` of its byte j."""
    flat = y.reshape(len(y), -1)
    width = -(-flat.shape[1] // 8)
    bits = np.zeros((len(y), width), np.uint8)
    for n, at in np.ndindex(flat.shape):
        if low < flat[n, at] < high:
            bits[n, at % width] |= 1 << (at // width)
    return bits


def gate_bits(bits, g):
    flat = g.reshape(len(g), -1).copy()
    for n, at in np.ndindex(flat.shape):
        if not bits[n, at % bits.shape[1]] >> (at // bits.shape[1]) & 1:
            flat[n, at] = 0
    return flat.reshape(g.shape)


def quantize_float(x, scale, zero):
    def entry(real):
        steps = float(F(F(real) / F(scale)))
        if math.isnan(steps):
            return clipped(zero, -128, 127)
        whole = math.floor(min(abs(steps), 1e6) + 0.5)
        return clipped(zero + (whole if steps > 0 else -whole), -128, 127)

    return entrywise(entry, x, dtype=np.int8)


def dequantize_int8(x, zero, scale):
    return (x.astype(int) - zero).astype(F) * F(scale)


def place_int8(part, first, whole):
    whole = whole.copy()
    whole[..., first : first + part.shape[3]] = part
    return whole


def place_float(part, first, whole):
    return place_int8(part, first, whole)


def pad_int8(x, top, left, front, value, shape):  # noqa: PLR0917
    y = np.full(shape, value, x.dtype)
    y[:, top : top + x.shape[1], left : left + x.shape[2], front : front + x.shape[3]] = x
    return y


def pad_float(x, top, left, front, value, shape):  # noqa: PLR0917
    return pad_int8(x, top, left, front, value, shape)


def crop_back(dy, top, left, front, shape):
    return dy[:, top : top + shape[1], left : left + shape[2], front : front + shape[3]].copy()


def softmax_int8(x, table):
    """TensorFlow Lite's reference softmax over gemmlowp's fixed point, row by row."""
    y = np.empty_like(x)
    for at in np.ndindex(x.shape[:3]):
        row = x[at].tolist()
        powers = [int(table[max(row) - v]) for v in row]
        total = sum(divide_by_power(p, 12) for p in powers)
        headroom = 32 - total.bit_length()
        scale = one_over_one_plus((total << headroom) - (1 << 31))
        shares = [divide_by_power(doubling_high_mul(scale, p), 35 - headroom) for p in powers]
        y[at] = [clipped(share - 128, -128, 127) for share in shares]
    return y


def one_over_one_plus(a):
    """gemmlowp's one_over_one_plus_x_for_x_in_0_1, with its rounding half sum and its saturating shifts."""
    total = a + (1 << 31) - 1
    half_denominator = truncated(total + (1 if total >= 0 else -1), 2)
    x = 1515870810 + doubling_high_mul(half_denominator, -1010580540)
    for _ in range(3):
        rest = (1 << 29) - doubling_high_mul(half_denominator, x)
        x += clipped(doubling_high_mul(x, rest) * 4, -(1 << 31), (1 << 31) - 1)
    return clipped(x * 2, -(1 << 31), (1 << 31) - 1)


def softmax_float(x, beta):
    real = float(F(beta)) * (x.astype(np.float64) - x.max(axis=3, keepdims=True))
    powers = np.exp(real)
    return (powers / powers.sum(axis=3, keepdims=True)).astype(F)


def logistic_float(x):
    return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(F)


def logistic_back_int8(y, dy):
    return logistic_back_float((y.astype(int) + 128).astype(F) / F(256), dy)


def logistic_back_float(y, dy):
    return dy * (y * (F(1) - y))


def take_int8(x, channels):
    return x[..., channels.tolist()]


def take_float(x, channels):
    return x[..., channels.tolist()]
