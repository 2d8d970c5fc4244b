"""What an int8 model's update is made of: whole steps of stored numbers, cut to a norm, gathered into units, coded.

    clip      s = s * min(1, clip_norm / ||s * scale||), each rounded to nearest, halves away from zero
    fold in   t = s + residual;   u = t / unit toward zero, held to +-254;   weighed by |u| * unit * scale
    take out  residual = t - u * unit for what is sent, t for the rest: integers, so nothing is ever lost
    code      a sign bit (1 is negative), then of m = |u| - 1:  (m >> c) zero bits, a one bit, the low c bits of m;
              where m >> c is ESCAPE or more: ESCAPE zero bits and the 8 bits of m
    add       total[index] += weight * u

    steps, residual, total int32 [P]; unit int32 [P] >= 1; scale, magnitude float32 [P]; sums int64 [P];
    indices uint32 [k]; units int16 [k], none zero; buffer uint8, bit j of the stream is bit j % 8 of byte j // 8.

The norm is summed in float64 in ascending order. A product |u| * unit is exact in float32, because unit is a power of
two, so a magnitude is rounded once. A single step, +-1, costs two bits at best; the parameter c is chosen, not
estimated: the cheapest of all, the lower one of equals. The reader trusts nothing it reads.
"""

import math

import numpy as np

from engine.kernels._jit import inner, kernel

UNITS_MAX = 254  # from -127 to 127
PARAMETER_MAX = 7
ESCAPE = 16
ESCAPED_BITS = 8
LARGEST = 2147483647
ENDS_EARLY = -1
OUT_OF_RANGE = -2
NOT_SHORTEST = -3


@kernel("float64(int32[::1], float32[::1], float64)")
def clip_steps(steps, scale, clip_norm):
    """Shrink `steps` in place to a norm of about `clip_norm`; return the norm they had."""
    total = 0.0
    for i in range(steps.shape[0]):
        x = np.float64(steps[i]) * np.float64(scale[i])
        total += x * x
    norm = math.sqrt(total)
    if norm > clip_norm:
        factor = clip_norm / norm
        for i in range(steps.shape[0]):
            x = np.float64(steps[i]) * factor
            steps[i] = np.int32(x + 0.5) if x >= 0.0 else np.int32(x - 0.5)
    return norm


@kernel("int64(int32[::1], int32[::1], int32[::1], float32[::1], int32[::1], float32[::1])")
def fold_units(steps, residual, unit, scale, total, magnitude):
    """Fill `total` and `magnitude`; return how many sums do not fit 32 bits (then neither is of any use)."""
    beyond = 0
    for i in range(steps.shape[0]):
        t = np.int64(steps[i]) + np.int64(residual[i])
        size = abs(t)
        if size > LARGEST:
            beyond += 1
        total[i] = np.int32(t)
        whole = min(size // np.int64(unit[i]), UNITS_MAX)
        magnitude[i] = np.float32(whole * np.int64(unit[i])) * scale[i]
    return beyond


@kernel("void(int32[::1], int32[::1], uint32[::1], int16[::1], int32[::1])")
def take_units(total, unit, indices, units, residual):
    """Fill `units` with what is sent at `indices`, and `residual` with what then is still owed."""
    for i in range(total.shape[0]):
        residual[i] = total[i]
    for j in range(indices.shape[0]):
        i = indices[j]
        t = np.int64(total[i])
        whole = min(abs(t) // np.int64(unit[i]), UNITS_MAX)
        u = -whole if t < 0 else whole
        units[j] = u
        residual[i] = t - u * np.int64(unit[i])


@inner
def _bits_of(unit, parameter):
    m = abs(np.int64(unit)) - 1
    run = m >> parameter
    return 1 + ESCAPE + ESCAPED_BITS if run >= ESCAPE else 2 + run + parameter


@kernel("int64(int16[::1], int64)")
def units_bits(units, parameter):
    """Give the length of the code in bits."""
    total = 0
    for j in range(units.shape[0]):
        total += _bits_of(units[j], parameter)
    return total


@kernel("int64(int16[::1])")
def best_units_parameter(units):
    """Give the parameter 0 .. PARAMETER_MAX with the shortest code."""
    best = 0
    fewest = 0
    for parameter in range(PARAMETER_MAX + 1):
        total = 0
        for j in range(units.shape[0]):
            total += _bits_of(units[j], parameter)
        if parameter == 0 or total < fewest:
            fewest = total
            best = parameter
    return best


@inner
def _put_bit(buffer, position):
    buffer[position >> 3] |= np.uint8(1 << (position & 7))


@inner
def _bit(buffer, position):
    return (np.int64(buffer[position >> 3]) >> (position & 7)) & 1


@kernel("void(int16[::1], int64, uint8[::1])")
def encode_units(units, parameter, buffer):
    """Write the code into the zeroed `buffer`, which has room for `units_bits` bits."""
    position = 0
    for j in range(units.shape[0]):
        u = np.int64(units[j])
        if u < 0:
            _put_bit(buffer, position)
        position += 1
        m = abs(u) - 1
        width = parameter
        if (m >> parameter) >= ESCAPE:
            position += ESCAPE
            width = ESCAPED_BITS
        else:
            position += m >> parameter
            _put_bit(buffer, position)
            position += 1
        for bit in range(width):
            if (m >> bit) & 1:
                _put_bit(buffer, position)
            position += 1


@kernel("int64(uint8[::1], int64, int16[::1])")
def decode_units(buffer, parameter, units):
    """Fill `units`; return the bits read, or ENDS_EARLY, OUT_OF_RANGE, or NOT_SHORTEST for an idle escape."""
    end = 8 * buffer.shape[0]
    position = 0
    for j in range(units.shape[0]):
        if position >= end:
            return ENDS_EARLY
        negative = _bit(buffer, position)
        position += 1
        run = 0
        while run < ESCAPE and position < end and _bit(buffer, position) == 0:
            run += 1
            position += 1
        width = parameter
        if run == ESCAPE:
            width = ESCAPED_BITS
        else:
            position += 1
        if position + width > end:
            return ENDS_EARLY
        m = 0
        for bit in range(width):
            m |= _bit(buffer, position) << bit
            position += 1
        if run == ESCAPE and (m >> parameter) < ESCAPE:
            return NOT_SHORTEST
        if run < ESCAPE:
            m |= run << parameter
        if m >= UNITS_MAX:
            return OUT_OF_RANGE
        units[j] = -(m + 1) if negative else m + 1
    return position


@kernel("boolean(int16[::1])")
def units_within_limit(units):
    """Tell whether no unit is zero or beyond UNITS_MAX."""
    broken = 0
    for j in range(units.shape[0]):
        size = abs(np.int64(units[j]))
        if size < 1 or size > UNITS_MAX:
            broken += 1
    return broken == 0


@kernel("void(int64[::1], uint32[::1], int16[::1], int64)")
def scatter_units(total, indices, units, weight):
    """Add one update into `total` in place; the indices lie inside."""
    for j in range(indices.shape[0]):
        total[indices[j]] += weight * np.int64(units[j])
