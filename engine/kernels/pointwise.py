"""What works entry by entry: ADD, MUL, tables, and the gates that clamping puts into the way of a gradient.

    add      y = clamp(R(A(a - za) + B(b - zb)) + zy)     A, B: times 2^20 scale / (2 max scale);  R: back to y's scale
    mul      y = clamp(R((a - za)(b - zb)) + zy)
    lookup   y = table[x + 128]                           any int8 function of one int8: QUANTIZE, LOGISTIC, RELU alone
    gate     g = g where low < y < high, else 0           in place: through the rounding, not through the clamp

All arrays are [n][h][w][c] and C-contiguous. Values are int8, with rules from `engine/int8.py` and the very bits of
TensorFlow Lite's reference kernels, or float32; gradients are float32 and of *real* values, through int8 tensors too.
In add and mul a dimension of `b` may be 1 where that of `y` is not. `accumulate`: False sets dx, True adds to it.

The innermost loop walks c, so a caller does best to see tensors of equal shape as [n][1][1][h*w*c]. Integer results do
not depend on any order; where float32 numbers are summed (for a broadcast `b`) they are in row order. Some sums of
indices are unsigned, because Numba asks of every signed one whether it counts from the end.
"""

import numpy as np

from engine.kernels._jit import inner, kernel

ZERO = np.float32(0.0)
HALF_ADD_SHIFT = 1 << 10


@inner
def high_product(a, b):
    """Give a * b / 2^31 (int64) of two numbers that fit int32, rounded to the nearest, ties upwards."""
    return (np.int64(np.int32(a)) * np.int64(np.int32(b)) + (1 << 30)) >> 31


@inner
def rounding_shift(x, bits):
    """Give x / 2^bits (int64) rounded to the nearest, ties away from zero."""
    return (x + (1 << bits >> 1) + ((x >> 63) & -np.int64(bits > 0))) >> bits


@inner
def rescale(x, multiplier, shift):
    """Give x * multiplier * 2^(shift - 31) (int64), rounded after the product and after the shift."""
    return rounding_shift(high_product(x << max(shift, 0), multiplier), max(-shift, 0))


@inner
def widened(value, zero, multiplier, bits):
    """Give one input of an int8 ADD in the common scale: the shift by 20 and the 31 of the product are one by 11."""
    product = np.int64(np.int32(value - zero)) * np.int64(np.int32(multiplier))
    return rounding_shift((product + HALF_ADD_SHIFT) >> 11, bits)


@kernel("void(int8[:, :, :, ::1], int8[:, :, :, ::1], int64[::1], int8[:, :, :, ::1])")
def add_int8(a, b, rule, y):
    """Fill `y`; `rule` is `int8.add_rule`."""
    zero_a, q_a, bits_a, zero_b, q_b, bits_b = rule[0], rule[1], -rule[2], rule[3], rule[4], -rule[5]
    zero_y, q_y, shift_y, low, high = rule[6], rule[7], rule[8], rule[9], rule[10]
    step_n, step_h, step_w = np.int64(b.shape[0] > 1), np.int64(b.shape[1] > 1), np.int64(b.shape[2] > 1)
    for n in range(y.shape[0]):
        for h in range(y.shape[1]):
            for w in range(y.shape[2]):
                if b.shape[3] == y.shape[3]:
                    for c in range(y.shape[3]):
                        total = widened(a[n, h, w, c], zero_a, q_a, bits_a)
                        total += widened(b[n * step_n, h * step_h, w * step_w, c], zero_b, q_b, bits_b)
                        y[n, h, w, c] = min(max(rescale(total, q_y, shift_y) + zero_y, low), high)
                else:
                    same = widened(b[n * step_n, h * step_h, w * step_w, 0], zero_b, q_b, bits_b)
                    for c in range(y.shape[3]):
                        total = widened(a[n, h, w, c], zero_a, q_a, bits_a) + same
                        y[n, h, w, c] = min(max(rescale(total, q_y, shift_y) + zero_y, low), high)


@kernel("void(int8[:, :, :, ::1], int8[:, :, :, ::1], int64[::1], int8[:, :, :, ::1])")
def mul_int8(a, b, rule, y):
    """Fill `y`; `rule` is `int8.mul_rule`."""
    zero_a, zero_b, zero_y, multiplier, shift, low, high = (
        rule[0], rule[1], rule[2], rule[3], rule[4], rule[5], rule[6]
    )  # fmt: skip
    step_n, step_h = np.int64(b.shape[0] > 1), np.int64(b.shape[1] > 1)
    step_w, step_c = np.int64(b.shape[2] > 1), np.int64(b.shape[3] > 1)
    for n in range(y.shape[0]):
        for h in range(y.shape[1]):
            for w in range(y.shape[2]):
                for c in range(y.shape[3]):
                    other = b[n * step_n, h * step_h, w * step_w, c * step_c] - zero_b
                    real = rescale((a[n, h, w, c] - zero_a) * other, multiplier, shift) + zero_y
                    y[n, h, w, c] = min(max(real, low), high)


@inner
def clamp(value, low, high):
    """Give the float32 `value` within low .. high; a NaN stays one, so that trouble is seen and not hidden."""
    raised = low if value < low else value  # noqa: FURB136  max() may make a number of a NaN
    return high if raised > high else raised  # noqa: FURB136


@kernel("void(float32[:, :, :, ::1], float32[:, :, :, ::1], float32, float32, float32[:, :, :, ::1])")
def add_float(a, b, low, high, y):
    """Fill `y` with clamp(a + b)."""
    step_n, step_h = np.int64(b.shape[0] > 1), np.int64(b.shape[1] > 1)
    step_w, step_c = np.int64(b.shape[2] > 1), np.int64(b.shape[3] > 1)
    for n in range(y.shape[0]):
        for h in range(y.shape[1]):
            for w in range(y.shape[2]):
                for c in range(y.shape[3]):
                    other = b[n * step_n, h * step_h, w * step_w, c * step_c]
                    y[n, h, w, c] = clamp(a[n, h, w, c] + other, low, high)


@kernel("void(float32[:, :, :, ::1], float32[:, :, :, ::1], float32, float32, float32[:, :, :, ::1])")
def mul_float(a, b, low, high, y):
    """Fill `y` with clamp(a * b)."""
    step_n, step_h = np.int64(b.shape[0] > 1), np.int64(b.shape[1] > 1)
    step_w, step_c = np.int64(b.shape[2] > 1), np.int64(b.shape[3] > 1)
    for n in range(y.shape[0]):
        for h in range(y.shape[1]):
            for w in range(y.shape[2]):
                for c in range(y.shape[3]):
                    other = b[n * step_n, h * step_h, w * step_w, c * step_c]
                    y[n, h, w, c] = clamp(a[n, h, w, c] * other, low, high)


@kernel("void(float32[:, :, :, ::1], boolean, float32[:, :, :, ::1])")
def pass_back(dy, accumulate, dx):
    """Hand the gradient on as it is: ADD, RESHAPE, QUANTIZE, DEQUANTIZE; `dx` has the shape of `dy`."""
    for n in range(dy.shape[0]):
        for h in range(dy.shape[1]):
            for w in range(dy.shape[2]):
                if accumulate:
                    for c in range(dy.shape[3]):
                        dx[n, h, w, c] = dx[n, h, w, c] + dy[n, h, w, c]
                else:
                    for c in range(dy.shape[3]):
                        dx[n, h, w, c] = dy[n, h, w, c]


@inner
def clear(dx):
    """Set every entry to zero."""
    for n in range(dx.shape[0]):
        for h in range(dx.shape[1]):
            for w in range(dx.shape[2]):
                for c in range(dx.shape[3]):
                    dx[n, h, w, c] = ZERO


@kernel("void(float32[:, :, :, ::1], boolean, float32[:, :, :, ::1])")
def sum_back(dy, accumulate, dx):
    """Hand the gradient to the broadcast input of an ADD: sum over each dimension where `dx` has 1."""
    if not accumulate:
        clear(dx)
    step_n, step_h = np.int64(dx.shape[0] > 1), np.int64(dx.shape[1] > 1)
    step_w, step_c = np.int64(dx.shape[2] > 1), np.int64(dx.shape[3] > 1)
    for n in range(dy.shape[0]):
        for h in range(dy.shape[1]):
            for w in range(dy.shape[2]):
                for c in range(dy.shape[3]):
                    dx[n * step_n, h * step_h, w * step_w, c * step_c] += dy[n, h, w, c]


@kernel("void(float32[:, :, :, ::1], int8[:, :, :, ::1], int64, float32, boolean, float32[:, :, :, ::1])")
def mul_back_int8(dy, other, zero, scale, accumulate, dx):
    """Give one input of a MUL its gradient, dy times the real value of the `other`; either may be broadcast."""
    if not accumulate:
        clear(dx)
    step_n, step_h = np.int64(dx.shape[0] > 1), np.int64(dx.shape[1] > 1)
    step_w, step_c = np.int64(dx.shape[2] > 1), np.int64(dx.shape[3] > 1)
    other_n, other_h = np.int64(other.shape[0] > 1), np.int64(other.shape[1] > 1)
    other_w, other_c = np.int64(other.shape[2] > 1), np.int64(other.shape[3] > 1)
    for n in range(dy.shape[0]):
        for h in range(dy.shape[1]):
            for w in range(dy.shape[2]):
                for c in range(dy.shape[3]):
                    stored = other[n * other_n, h * other_h, w * other_w, c * other_c]
                    slope = np.float32(stored - zero) * scale
                    dx[n * step_n, h * step_h, w * step_w, c * step_c] += dy[n, h, w, c] * slope


@kernel("void(float32[:, :, :, ::1], float32[:, :, :, ::1], boolean, float32[:, :, :, ::1])")
def mul_back_float(dy, other, accumulate, dx):
    """Give one input of a MUL its gradient, dy times the `other`; either may be broadcast."""
    if not accumulate:
        clear(dx)
    step_n, step_h = np.int64(dx.shape[0] > 1), np.int64(dx.shape[1] > 1)
    step_w, step_c = np.int64(dx.shape[2] > 1), np.int64(dx.shape[3] > 1)
    other_n, other_h = np.int64(other.shape[0] > 1), np.int64(other.shape[1] > 1)
    other_w, other_c = np.int64(other.shape[2] > 1), np.int64(other.shape[3] > 1)
    for n in range(dy.shape[0]):
        for h in range(dy.shape[1]):
            for w in range(dy.shape[2]):
                for c in range(dy.shape[3]):
                    slope = other[n * other_n, h * other_h, w * other_w, c * other_c]
                    dx[n * step_n, h * step_h, w * step_w, c * step_c] += dy[n, h, w, c] * slope


@kernel("void(int8[:, :, :, ::1], int64, int64, uint8[:, ::1])")
def pack_bits_int8(y, low, high, bits):
    """Keep of `y` [n][1][1][size] only which gates are open: entry bit * width + j is in `bits` [n][width].

    width is ceil(size / 8). Neighbours are in different bytes, so that both loops run over neighbours.
    """
    above, below = np.int8(low), np.int8(high)
    size, width = y.shape[3], bits.shape[1]
    for n in range(y.shape[0]):
        for j in range(width):
            bits[n, j] = 0
        for bit in range(8):
            start = np.uint64(bit * width)
            for j in range(min(width, size - bit * width)):
                value = y[n, 0, 0, start + np.uint64(j)]
                bits[n, j] |= np.uint8((above < value) & (value < below)) << np.uint8(bit)


@kernel("void(uint8[:, ::1], float32[:, :, :, ::1])")
def gate_bits(bits, g):
    """Gate `g` [n][1][1][size] in place with what `pack_bits_int8` kept."""
    size, width = g.shape[3], bits.shape[1]
    for n in range(g.shape[0]):
        for bit in range(8):
            start = np.uint64(bit * width)
            for j in range(min(width, size - bit * width)):
                value = g[n, 0, 0, start + np.uint64(j)]
                g[n, 0, 0, start + np.uint64(j)] = value if bits[n, j] & np.uint8(1 << bit) else ZERO


@kernel("void(int8[:, :, :, ::1], int64, int64, float32[:, :, :, ::1])")
def gate_int8(y, low, high, g):
    """Stop the gradient where the stored output `y` sits on an end of its range; in place."""
    above, below = np.int8(low), np.int8(high)
    for n in range(g.shape[0]):
        for h in range(g.shape[1]):
            for w in range(g.shape[2]):
                for c in range(g.shape[3]):
                    value = y[n, h, w, c]
                    g[n, h, w, c] = g[n, h, w, c] if (above < value) & (value < below) else ZERO


@kernel("void(float32[:, :, :, ::1], float32, float32, float32[:, :, :, ::1])")
def gate_float(y, low, high, g):
    """Stop the gradient where the output `y` is not strictly between `low` and `high`; in place."""
    for n in range(g.shape[0]):
        for h in range(g.shape[1]):
            for w in range(g.shape[2]):
                for c in range(g.shape[3]):
                    value = y[n, h, w, c]
                    g[n, h, w, c] = g[n, h, w, c] if (low < value) & (value < high) else ZERO


@kernel("void(int8[:, :, :, ::1], int8[::1], int8[:, :, :, ::1])")
def lookup_int8(x, table, y):
    """Fill `y` with table[x + 128]; `table` is int8 [256]."""
    for n in range(y.shape[0]):
        for h in range(y.shape[1]):
            for w in range(y.shape[2]):
                for c in range(y.shape[3]):
                    y[n, h, w, c] = table[np.uint8(x[n, h, w, c] + 128)]
