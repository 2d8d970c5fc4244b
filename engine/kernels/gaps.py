"""Golomb-Rice codes for the gaps between increasing indices.

    gap[0] = index[0];   gap[j] = index[j] - index[j-1] - 1
    one gap = (gap >> b) zero bits, a one bit, then the low b bits of the gap, lowest first      Golomb 1966, Rice 1979

    indices uint32 [k], strictly increasing, below size; buffer uint8, bit j of the stream is bit j % 8 of byte j // 8.

For indices drawn evenly the gaps are geometric and this code is within half a per cent of log2 C(size, k), the least
that any code can reach. The parameter b is not estimated but chosen: the cheapest of all, the lower one of equals.
The reader trusts nothing: a run of zeros may not be longer than the indices that are left, nor leave the buffer.
"""

import numpy as np

from engine.kernels._jit import inner, kernel

PARAMETER_MAX = 30
ENDS_EARLY = -1
OUT_OF_RANGE = -2


@inner
def _bits(indices, parameter):
    total = indices.shape[0] * (1 + parameter)
    following = 0
    for j in range(indices.shape[0]):
        index = np.int64(indices[j])
        total += (index - following) >> parameter
        following = index + 1
    return total


@kernel("int64(uint32[::1], int64)")
def rice_bits(indices, parameter):
    """Give the length of the code in bits."""
    return _bits(indices, parameter)


@kernel("int64(uint32[::1])")
def best_parameter(indices):
    """Give the parameter 0 .. PARAMETER_MAX with the shortest code."""
    best = 0
    fewest = _bits(indices, 0)
    for parameter in range(1, PARAMETER_MAX + 1):
        bits = _bits(indices, parameter)
        if bits < fewest:
            fewest = bits
            best = parameter
    return best


@kernel("void(uint32[::1], int64, uint8[::1])")
def rice_encode(indices, parameter, buffer):
    """Write the code into the zeroed `buffer`, which has room for `rice_bits` bits."""
    position = 0
    following = 0
    for j in range(indices.shape[0]):
        index = np.int64(indices[j])
        gap = index - following
        following = index + 1
        position += gap >> parameter
        buffer[position >> 3] |= np.uint8(1 << (position & 7))
        position += 1
        for bit in range(parameter):
            if (gap >> bit) & 1:
                buffer[position >> 3] |= np.uint8(1 << (position & 7))
            position += 1


@kernel("int64(uint8[::1], int64, int64, uint32[::1])")
def rice_decode(buffer, parameter, size, indices):
    """Fill `indices`; return the bits read, or ENDS_EARLY, or OUT_OF_RANGE when an index would reach `size`."""
    end = 8 * buffer.shape[0]
    position = 0
    following = 0
    for j in range(indices.shape[0]):
        longest = (size - 1 - following) >> parameter
        run = 0
        while position < end and (buffer[position >> 3] >> (position & 7)) & 1 == 0:
            run += 1
            position += 1
            if run > longest:
                return OUT_OF_RANGE
        position += 1
        if position + parameter > end:
            return ENDS_EARLY
        low = 0
        for bit in range(parameter):
            low |= ((np.int64(buffer[position >> 3]) >> (position & 7)) & 1) << bit
            position += 1
        index = following + ((run << parameter) | low)
        if index >= size:
            return OUT_OF_RANGE
        indices[j] = index
        following = index + 1
    return position
