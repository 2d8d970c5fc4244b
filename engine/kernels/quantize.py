"""Values in 1 to 8 bits: a sign and one of L magnitudes, relative to a scale that all values of a tensor share.

    L = 2^(value_bits - 1)         code = +-(level + 1), level 0 .. L-1         one scale, 0 .. 255, for each tensor

    real numbers   unit(s)  = (8 + s % 8) * 2^(s // 8 - 28), s = 0 .. 248: from 2^-25 to 64
                   decode     value = +-unit(s) * ((level + 1) / L)^2
                   encode     level = round(sqrt(|value| / unit(s)) * L) - 1, held to 0 .. L-1
    whole units    decode     |value| = s where L is 1; level + 1 where s <= L;
                              otherwise round(s * (level + 1)^2 / L^2), halves up, but at least 1
                   encode     the level that comes nearest, of equal ones the lowest
    scale          L is 1: the one nearest to the mean magnitude; otherwise the least that reaches the largest

    values float32 [k] or int32 [k], none zero; codes int32 [k], none zero; ends int64 [T]: tensor t's values are those
    from ends[t-1] (0 for the first) to ends[t]; scales int64 [T], 0 where a tensor has no values.

A real magnitude above VALUE_LIMIT is sent as VALUE_LIMIT, and the rest of it stays owed.

Why squares: the magnitudes that survive a top-k are heavy-tailed; a linear 4-bit grid loses a third of their energy,
this one less than a tenth. Why no zero level: a zero is never chosen. Decoding is exact: a real value is a whole number
below 2^18 times a power of two. Sums run in ascending order, in float64 or in integers.
"""

import math

import numpy as np

from engine.kernels._jit import inner, kernel

VALUE_LIMIT = 64.0
UNIT_MAX = 254  # from -127 to 127
SCALE_MAX = 248  # of real numbers: VALUE_LIMIT
_ONE = 268435456.0  # 2^28


@inner
def _unit(scale):
    return np.float64((8 + scale % 8) << (scale // 8)) / _ONE


@inner
def _scale_for(magnitude, nearest):
    """Give the least scale whose unit reaches `magnitude`, or the nearest one."""
    scale = 0
    while scale < SCALE_MAX and _unit(scale) < magnitude:
        scale += 1
    if nearest and scale > 0 and magnitude - _unit(scale - 1) < _unit(scale) - magnitude:
        scale -= 1
    return scale


@kernel("void(float32[::1], int64[::1], int64, int64[::1], int32[::1])")
def quantize_reals(values, ends, value_bits, scales, codes):
    """Fill `scales` and `codes`; the values are finite."""
    levels = 1 << (value_bits - 1)
    start = 0
    for t in range(ends.shape[0]):
        stop = ends[t]
        scales[t] = 0
        if stop > start:
            total = 0.0
            largest = 0.0
            for j in range(start, stop):
                magnitude = min(abs(np.float64(values[j])), VALUE_LIMIT)
                total += magnitude
                largest = max(largest, magnitude)
            scales[t] = _scale_for(total / (stop - start), True) if levels == 1 else _scale_for(largest, False)
        unit = _unit(scales[t])
        for j in range(start, stop):
            # the ratio is held to 1 in float, so that the conversion to an integer always has a defined result
            ratio = min(abs(np.float64(values[j])) / unit, 1.0)
            level = np.int64(math.sqrt(ratio) * levels + 0.5) - 1
            level = min(max(level, 0), levels - 1)
            codes[j] = -(level + 1) if values[j] < 0.0 else level + 1
        start = stop


@kernel("void(int32[::1], int64[::1], int64, int64[::1], float32[::1])")
def restore_reals(codes, ends, value_bits, scales, values):
    """Fill `values`."""
    levels = 1 << (value_bits - 1)
    start = 0
    for t in range(ends.shape[0]):
        for j in range(start, ends[t]):
            root = np.float64(abs(np.int64(codes[j]))) / np.float64(levels)
            magnitude = root * root * _unit(scales[t])
            values[j] = -magnitude if codes[j] < 0 else magnitude
        start = ends[t]


@inner
def _whole(scale, levels, level):
    if levels == 1:
        return scale
    if scale <= levels:
        return level + 1
    return max((scale * (level + 1) * (level + 1) + levels * levels // 2) // (levels * levels), 1)


@kernel("void(int32[::1], int64[::1], int64, int64[::1], int32[::1])")
def quantize_units(values, ends, value_bits, scales, codes):
    """Fill `scales` and `codes`; the values are at most UNIT_MAX in magnitude."""
    levels = 1 << (value_bits - 1)
    start = 0
    for t in range(ends.shape[0]):
        stop = ends[t]
        scales[t] = 0
        if stop > start:
            total = 0
            largest = 0
            for j in range(start, stop):
                magnitude = abs(np.int64(values[j]))
                total += magnitude
                largest = max(largest, magnitude)
            scales[t] = (total + (stop - start) // 2) // (stop - start) if levels == 1 else largest
        highest = min(levels, scales[t])
        for j in range(start, stop):
            magnitude = abs(np.int64(values[j]))
            low = 0
            high = highest - 1
            while low < high:  # the lowest level that reaches the magnitude, if one does
                middle = (low + high) // 2
                if _whole(scales[t], levels, middle) < magnitude:
                    low = middle + 1
                else:
                    high = middle
            above = _whole(scales[t], levels, low) - magnitude
            if low > 0 and magnitude - _whole(scales[t], levels, low - 1) <= above:
                low -= 1
                while low > 0 and _whole(scales[t], levels, low - 1) == _whole(scales[t], levels, low):
                    low -= 1
            codes[j] = -(low + 1) if values[j] < 0 else low + 1
        start = stop


@kernel("void(int32[::1], int64[::1], int64, int64[::1], int32[::1])")
def restore_units(codes, ends, value_bits, scales, values):
    """Fill `values`."""
    levels = 1 << (value_bits - 1)
    start = 0
    for t in range(ends.shape[0]):
        for j in range(start, ends[t]):
            whole = _whole(scales[t], levels, abs(np.int64(codes[j])) - 1)
            values[j] = -whole if codes[j] < 0 else whole
        start = ends[t]
