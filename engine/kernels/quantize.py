"""Values in 1 to 8 bits: a sign and a magnitude level on a square-root grid; and the packing of small codes into bytes.

    levels L = 2^(value_bits - 1)         code = sign + 2 * level         sign 1 is negative, level 0 .. L-1
    decode     value = +-scale * ((level + 1) / L)^2
    encode     level = round(sqrt(|value| / scale) * L) - 1, clamped to 0 .. L-1
    scale      the mean magnitude when value_bits is 1 (then L = 1 and every value is +-scale), else the largest;
               never above VALUE_LIMIT, so a larger value saturates and the rest of it stays owed

    values float32 [k]; codes uint8 [k]; scale float32 > 0;
    buffer uint8, bit j of the stream is bit j % 8 of byte j // 8.

Why a square root: the magnitudes that survive a top-k are heavy-tailed; a linear 4-bit grid loses a third of their
energy, this one less than a tenth. Why no zero level: a zero is never chosen. Decoding rounds once, to float32: L is a
power of two, so (level + 1) / L, its square and the product with a float32 are all exact in float64.
"""

import math

import numpy as np

from engine.kernels._jit import kernel

VALUE_LIMIT = 64.0


@kernel("float32(float32[::1], int64)")
def value_scale(values, value_bits):
    """Give the scale (float32) for `values`; there is at least one, all finite, none zero."""
    total = 0.0
    largest = 0.0
    for j in range(values.shape[0]):
        magnitude = abs(np.float64(values[j]))
        total += magnitude
        largest = max(largest, magnitude)
    scale = total / values.shape[0] if value_bits == 1 else largest
    return np.float32(min(scale, VALUE_LIMIT))


@kernel("void(float32[::1], int64, float32, uint8[::1])")
def quantize(values, value_bits, scale, codes):
    """Fill `codes`; `scale` is finite and positive."""
    levels = 1 << (value_bits - 1)
    for j in range(values.shape[0]):
        magnitude = abs(np.float64(values[j]))
        # the ratio is held to 1 in float, so that the conversion to an integer always has a defined result
        ratio = min(magnitude / np.float64(scale), 1.0)
        level = np.int64(math.sqrt(ratio) * levels + 0.5) - 1
        level = min(max(level, 0), levels - 1)
        sign = 1 if values[j] < 0.0 else 0
        codes[j] = sign + 2 * level


@kernel("void(uint8[::1], int64, float32, float32[::1])")
def dequantize(codes, value_bits, scale, values):
    """Fill `values`."""
    levels = 1 << (value_bits - 1)
    for j in range(codes.shape[0]):
        code = np.int64(codes[j])
        root = np.float64((code >> 1) + 1) / np.float64(levels)
        magnitude = np.float32((root * root) * np.float64(scale))
        values[j] = -magnitude if code & 1 else magnitude


@kernel("void(uint8[::1], int64, uint8[::1])")
def pack_codes(codes, width, buffer):
    """Write `width` bits of every code into the zeroed `buffer`, lowest bit first."""
    position = 0
    for j in range(codes.shape[0]):
        code = np.int64(codes[j])
        for bit in range(width):
            if (code >> bit) & 1:
                buffer[position >> 3] |= np.uint8(1 << (position & 7))
            position += 1


@kernel("boolean(uint8[::1], int64, uint8[::1])")
def unpack_codes(buffer, width, codes):
    """Fill `codes`; `buffer` holds at least `width` bits for each. Return True if every bit after them is zero."""
    position = 0
    for j in range(codes.shape[0]):
        code = 0
        for bit in range(width):
            code |= ((np.int64(buffer[position >> 3]) >> (position & 7)) & 1) << bit
            position += 1
        codes[j] = code
    leftover = 0
    while position < 8 * buffer.shape[0]:
        leftover |= (np.int64(buffer[position >> 3]) >> (position & 7)) & 1
        position += 1
    return leftover == 0
