"""Golomb-Rice codes: which parameters of a tensor are in an update, and by how much each moved.

    entry      gap code, sign bit (1 is negative), magnitude code              one for each index of a tensor, ascending
    gap        gap[0] = index[0] - first;   gap[j] = index[j] - index[j-1] - 1
    magnitude  m = |code| - 1; nothing is written where LEVELS is 1, because then m is always 0
    Rice       (x >> b) zero bits, a one bit, then the low b bits of x, lowest first             Golomb 1966, Rice 1979
    escape     where LEVELS is 0 (any magnitude) and m >> b is 16 or more: 16 zero bits, 5 bits that hold the length
               of m less one, and m in that many bits
    MAPPED     instead of gaps: a bit for each parameter of the tensor, then the entries' signs and magnitudes
    WHOLE      every parameter has an entry: signs and magnitudes only

    indices uint32 [k], strictly increasing; codes int32 [k], none zero; table int64 [T, 7], a row for each tensor (the
    columns are named below); buffer uint8, bit j of the stream is bit j % 8 of byte j // 8.

For indices drawn evenly the gaps are geometric and this code is within half a per cent of log2 C(size, k), the least
that any code can reach. A parameter is not estimated but chosen: the cheapest, the lower one of equals. The cost falls
and then rises (its steps, k - sum((x >> b) - (x >> b+1)), only grow), so the first b that no next one betters is best.
The reader trusts nothing: a run of zeros may not be longer than the largest gap or magnitude, nor leave the buffer.
"""

import numpy as np

from engine.kernels._jit import inner, kernel

MODE, FIRST, SIZE, COUNT, GAP_PARAMETER, MAGNITUDE_PARAMETER, LEVELS = range(7)
GAPS, MAPPED, WHOLE = range(3)  # what MODE may be
PARAMETER_MAX = 30
ESCAPE = 16
LENGTH_BITS = 5
AHEAD = 57  # bits: so many are in eight bytes from any bit of the first on
LARGEST = 2147483647
ENDS_EARLY = -1
OUT_OF_RANGE = -2
NOT_SHORTEST = -3
MISCOUNTED = -4


@inner
def _length(number):
    """Bits of `number`, as Python's bit_length."""
    length = 0
    while number:
        number >>= 1
        length += 1
    return length


@inner
def _gap_bits(indices, start, stop, first, parameter):
    total = (stop - start) * (1 + parameter)
    following = first
    for j in range(start, stop):
        index = np.int64(indices[j])
        total += (index - following) >> parameter
        following = index + 1
    return total


@inner
def _magnitude_bits(codes, start, stop, parameter, levels):
    total = 0
    for j in range(start, stop):
        m = abs(np.int64(codes[j])) - 1
        run = m >> parameter
        if levels == 0 and run >= ESCAPE:
            total += ESCAPE + LENGTH_BITS + _length(m)
        else:
            total += run + 1 + parameter
    return total


@kernel("void(uint32[::1], int32[::1], int64[:,::1], int64[::1])")
def choose_parameters(indices, codes, table, bits):
    """Fill GAP_PARAMETER and MAGNITUDE_PARAMETER of every row, and `bits` with what the tensor's gaps then take."""
    start = 0
    for t in range(table.shape[0]):
        stop = start + table[t, COUNT]
        best = 0
        fewest = _gap_bits(indices, start, stop, table[t, FIRST], 0)
        while best < PARAMETER_MAX:
            next_bits = _gap_bits(indices, start, stop, table[t, FIRST], best + 1)
            if next_bits >= fewest:
                break
            fewest = next_bits
            best += 1
        table[t, GAP_PARAMETER] = best
        bits[t] = fewest
        best = 0
        levels = table[t, LEVELS]
        if levels != 1:
            fewest = _magnitude_bits(codes, start, stop, 0, levels)
            largest = 0
            for j in range(start, stop):
                largest = max(largest, abs(np.int64(codes[j])) - 1)
            for parameter in range(1, PARAMETER_MAX + 1):
                if (levels != 0 and levels <= 1 << parameter) or largest >> (parameter - 1) == 0:
                    break  # a larger one is of no use
                next_bits = _magnitude_bits(codes, start, stop, parameter, levels)
                if next_bits < fewest:
                    fewest = next_bits
                    best = parameter
        table[t, MAGNITUDE_PARAMETER] = best
        start = stop


@kernel("int64(uint32[::1], int32[::1], int64[:,::1])")
def entries_bits(indices, codes, table):
    """Give how many bits `write_entries` writes."""
    total = 0
    start = 0
    for t in range(table.shape[0]):
        stop = start + table[t, COUNT]
        mode = table[t, MODE]
        if mode == GAPS:
            total += _gap_bits(indices, start, stop, table[t, FIRST], table[t, GAP_PARAMETER])
        elif mode == MAPPED and stop > start:
            total += table[t, SIZE]
        total += stop - start
        if table[t, LEVELS] != 1:
            total += _magnitude_bits(codes, start, stop, table[t, MAGNITUDE_PARAMETER], table[t, LEVELS])
        start = stop
    return total


@inner
def _put(buffer, position, number, width):
    """Write the low `width` bits of `number`, lowest first, where the buffer is zero."""
    while width > 0:
        shift = position & 7
        buffer[position >> 3] |= np.uint8((number << shift) & 255)
        taken = min(8 - shift, width)
        number >>= taken
        position += taken
        width -= taken
    return position


@inner
def _put_rice(buffer, position, number, parameter):
    position = _put(buffer, position + (number >> parameter), 1, 1)
    return _put(buffer, position, number & ((1 << parameter) - 1), parameter)


@inner
def _put_value(buffer, position, code, parameter, levels):
    m = abs(code) - 1
    position = _put(buffer, position, 1 if code < 0 else 0, 1)
    if levels == 1:
        return position
    if levels == 0 and (m >> parameter) >= ESCAPE:
        length = _length(m)
        position = _put(buffer, position + ESCAPE, length - 1, LENGTH_BITS)
        return _put(buffer, position, m, length)
    return _put_rice(buffer, position, m, parameter)


@kernel("int64(uint32[::1], int32[::1], int64[:,::1], int64, uint8[::1])")
def write_entries(indices, codes, table, position, buffer):
    """Write the entries of all tensors from bit `position` on, where the buffer is zero; return the position behind."""
    start = 0
    for t in range(table.shape[0]):
        stop = start + table[t, COUNT]
        mode = table[t, MODE]
        if mode == MAPPED and stop > start:
            for j in range(start, stop):
                place = position + np.int64(indices[j]) - table[t, FIRST]
                buffer[place >> 3] |= np.uint8(1 << (place & 7))
            position += table[t, SIZE]
        following = table[t, FIRST]
        for j in range(start, stop):
            if mode == GAPS:
                index = np.int64(indices[j])
                position = _put_rice(buffer, position, index - following, table[t, GAP_PARAMETER])
                following = index + 1
            code = np.int64(codes[j])
            position = _put_value(buffer, position, code, table[t, MAGNITUDE_PARAMETER], table[t, LEVELS])
        start = stop
    return position


# A reader looks at the next AHEAD bits, lowest first. Behind the buffer it sees zeros, and whoever asks too much is
# told so by the position. Nearly every entry is all among those bits; what is not is read again, part after part.


@inner
def _ahead(buffer, position):
    """Give the AHEAD bits from `position` on. The eight loads become one."""
    at = np.uint64(position >> 3)
    if position + 64 > 8 * buffer.shape[0]:
        bits = _last_bytes(buffer, position >> 3)
    else:
        bits = (
            np.uint64(buffer[at])
            | np.uint64(buffer[at + np.uint64(1)]) << np.uint64(8)
            | np.uint64(buffer[at + np.uint64(2)]) << np.uint64(16)
            | np.uint64(buffer[at + np.uint64(3)]) << np.uint64(24)
            | np.uint64(buffer[at + np.uint64(4)]) << np.uint64(32)
            | np.uint64(buffer[at + np.uint64(5)]) << np.uint64(40)
            | np.uint64(buffer[at + np.uint64(6)]) << np.uint64(48)
            | np.uint64(buffer[at + np.uint64(7)]) << np.uint64(56)
        )
    return np.int64((bits >> np.uint64(position & 7)) & np.uint64((1 << AHEAD) - 1))


@inner
def _last_bytes(buffer, start):
    """Give the eight bytes from byte `start` on, where the buffer ends among or before them."""
    bits = np.uint64(0)
    for place in range(buffer.shape[0] - 1, start - 1, -1):
        bits = (bits << np.uint64(8)) | np.uint64(buffer[place])
    return bits


@inner
def _zeros_below(window):
    """Count the zero bits below the lowest one bit: the ones in what they are when it is taken off (Warren 2002)."""
    ones = ~window & (window - 1)
    ones -= (ones >> 1) & 0x5555555555555555
    ones = (ones & 0x3333333333333333) + ((ones >> 2) & 0x3333333333333333)
    ones = (ones + (ones >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (ones * 0x0101010101010101) >> 56


@inner
def _rice_in(window, parameter):
    """Give (the number that `window` begins with, its bits: more than AHEAD where it is not all in there)."""
    zeros = _zeros_below(window)
    rest = (window >> (zeros & 63)) >> 1
    return (zeros << parameter) | (rest & ((1 << parameter) - 1)), zeros + 1 + parameter


@inner
def _get_rice(buffer, position, parameter, longest):
    """Give (the number, or -1 where its unary part is longer than `longest`; the position behind it)."""
    run = 0
    window = _ahead(buffer, position)
    while window == 0:
        run += AHEAD
        position += AHEAD
        if run > longest or position > 8 * buffer.shape[0]:
            return np.int64(-1), position
        window = _ahead(buffer, position)
    zeros = _zeros_below(window)
    run += zeros
    position += zeros + 1
    if run > longest:
        return np.int64(-1), position
    return (run << parameter) | (_ahead(buffer, position) & ((1 << parameter) - 1)), position + parameter


@inner
def _get_magnitude(buffer, position, parameter, levels):
    """Give (m or an error, the position behind it)."""
    if levels != 0:
        m, position = _get_rice(buffer, position, parameter, (levels - 1) >> parameter)
        return m if m >= 0 else np.int64(OUT_OF_RANGE), position
    window = _ahead(buffer, position)
    if window & ((1 << ESCAPE) - 1):
        return _get_rice(buffer, position, parameter, ESCAPE)
    length = ((window >> ESCAPE) & ((1 << LENGTH_BITS) - 1)) + 1
    m = (window >> (ESCAPE + LENGTH_BITS)) & ((1 << length) - 1)
    if _length(m) != length or (m >> parameter) < ESCAPE:
        m = np.int64(NOT_SHORTEST)
    return m, position + ESCAPE + LENGTH_BITS + length


@inner
def _get_entry(buffer, position, mode, parameter, magnitude_parameter, levels, longest):
    """Give (gap, m or an error, is it negative, the position behind it) of an entry wherever its bits are."""
    gap = np.int64(0)
    if mode == GAPS:
        gap, position = _get_rice(buffer, position, parameter, longest)
        if gap < 0:
            return gap, np.int64(OUT_OF_RANGE), np.int64(0), position
    negative = _ahead(buffer, position) & 1
    position += 1
    m = np.int64(0)
    if levels != 1:
        m, position = _get_magnitude(buffer, position, magnitude_parameter, levels)
    return gap, m, negative, position


@inner
def _fill_from_map(buffer, position, first, size, indices, start, stop):
    """Fill indices[start:stop] from a map of `size` bits; return the position behind it, or an error."""
    if position + size > 8 * buffer.shape[0]:
        return ENDS_EARLY
    j = start
    for i in range(size):
        place = position + i
        if (buffer[place >> 3] >> (place & 7)) & 1:
            if j == stop:
                return MISCOUNTED
            indices[j] = first + i
            j += 1
    return position + size if j == stop else MISCOUNTED


@kernel("int64(uint8[::1], int64, int64[:,::1], uint32[::1], int32[::1])")
def read_entries(buffer, position, table, indices, codes):
    """Fill the entries of all tensors from bit `position` on; return the position behind them, or an error.

    The errors are ENDS_EARLY, OUT_OF_RANGE (an index or a magnitude), NOT_SHORTEST (an idle escape), MISCOUNTED (a map
    with another number of ones than COUNT).
    """
    end = 8 * buffer.shape[0]
    start = 0
    for t in range(table.shape[0]):
        stop = start + table[t, COUNT]
        mode = table[t, MODE]
        parameter = table[t, GAP_PARAMETER]
        magnitude_parameter = table[t, MAGNITUDE_PARAMETER]
        levels = table[t, LEVELS]
        following = table[t, FIRST]
        behind = following + table[t, SIZE]
        if mode == MAPPED and stop > start:
            position = _fill_from_map(buffer, position, following, table[t, SIZE], indices, start, stop)
            if position < 0:
                return position
        for j in range(start, stop):
            window = _ahead(buffer, position)
            gap = np.int64(0)
            bits = np.int64(0)
            if mode == GAPS:
                gap, bits = _rice_in(window, parameter)
            negative = (window >> (bits & 63)) & 1
            m = np.int64(0)
            bits += 1
            if levels != 1:
                m, more = _rice_in((window >> ((bits - 1) & 63)) >> 1, magnitude_parameter)
                bits += more
            position += bits
            if bits > AHEAD or (levels == 0 and m >> magnitude_parameter >= ESCAPE):
                longest = (behind - 1 - following) >> parameter
                gap, m, negative, position = _get_entry(
                    buffer, position - bits, mode, parameter, magnitude_parameter, levels, longest
                )
                if m < 0:
                    return m
            if mode != MAPPED:
                following += gap + 1
                if following > behind:
                    return OUT_OF_RANGE
                indices[j] = following - 1
            if position > end:
                return ENDS_EARLY
            if m >= LARGEST or (levels != 0 and m >= levels):
                return OUT_OF_RANGE
            codes[j] = -(m + 1) if negative else m + 1
        start = stop
    return position
