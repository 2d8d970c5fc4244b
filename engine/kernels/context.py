"""The context coder: which parameters are in an update and by how much each moved, told bit by bit to a range coder.

Every tensor is a table of rows and columns. What trains together moves together: a row or a column that has had many
entries will have more, and most of one sign. So each bit is foretold from what came before it in its row, its column,
its tensor and the others, and costs -log2 of the chance that it was given. Nothing about the chances is sent: whoever
decodes has seen the same bits. Everything is an integer; docs/WIRE.md, section 11, says it all for strangers.

    tensor    row by row, each in blocks of `width` columns: any entry in this block? If so, place by place: an entry?
              If so, its value. Where only the last place is left and none had an entry, it has one, unasked. Behind
              the last entry of the update nothing is asked.
    value     in front of a tensor's first its scale (where values are rounded); the sign; the magnitude of the code:
              how many bits it has, less one, in unary, then those bits behind the first, highest first
    log(x)    floor(64 log2 x) by table where x < 4096, else log(x >> 6) + 384
    mixed     three odds a, b, c, each log(ones) - log(zeros) or the like, in 64ths of a bit, foretell a bit:
              z = (w0 a + w1 b + w2 c + 64 w3) >> 16, held to +-1023; the chance of a one is p = chance[1024 + z] in
              65536ths; then, with e = 65536 bit - p, w0 += (e a + 2^13) >> 14, w1 += (e b + 2^11) >> 12, w2 the same
              with c, w3 with 64
    coder     low .. high are 32 bits wide; split = low + ((high - low) p >> 16); a one keeps low .. split, a zero the
              rest; while both begin with the same byte that byte is written, and 0x00 and 0xFF move in behind
    end       the fewest bytes that, with zeros behind them, lie in low .. high

    buffer uint8; shapes int64 [T, 2]; indices uint32 [k], k > 0; codes int32 [k], none zero; ends, scales int64 [T];
    tables int64 [4096 + 2048], log and chance; scratch: memory int64 [MEMORY], places int64 [4, columns] for the
    tensor with the most

One kernel does both ways, so that they cannot differ. The reader trusts nothing: whatever the bytes say it ends after k
entries or at the last place, and a last byte that the writer would not have written is an error.
"""

import numpy as np

from engine.kernels._jit import inlined, inner, kernel

WIDTH, WIDE_FROM, DENSE = 8, 256, 8
LOW, HIGH, WINDOW, POSITION, ENTRY, NEXT_ONES, NEXT_ZEROS, SCALE, TENSOR_NEW, ROW_NEW = range(10)
SIGN_ONES, SIGN_ZEROS, ROW_SIGN_ONES, ROW_SIGN_ZEROS = range(10, 14)
WEIGHTS = 16  # four numbers for each set:
ANY, FIRST, NEXT, SIGN, LENGTH = range(5)  # LENGTH has three: for the first length, the second, all others
TALLIES = WEIGHTS + 4 * 7  # counted zeros and ones:
LENGTHS, TENSOR_LENGTHS, ROW_LENGTHS, STEPS, LOWER_BITS, TALLIES_END = 0, 32, 64, 96, 128, 384
MEMORY = TALLIES + 2 * TALLIES_END
HITS, ONES, ZEROS, BLOCK_HITS = range(4)  # rows of places
CHANCE = 4096  # where it begins in tables
HALF = 32768
FULL = -1
TOO_FEW = -2
OUT_OF_RANGE = -3
NOT_SHORTEST = -4


@inlined
def _log(tables, x):
    beyond = 0
    while x >= 4096:
        x >>= 6
        beyond += 384
    return tables[x] + beyond


@inlined
def _code(decoding, bit, p, memory, buffer):
    """Code one bit with the chance p / 65536 of a one, and return it; in decoding the given bit means nothing."""
    low = memory[LOW]
    high = memory[HIGH]
    split = low + (((high - low) * p) >> 16)
    if decoding:
        bit = 1 if memory[WINDOW] <= split else 0
    if bit:
        high = split
    else:
        low = split + 1
    while (low ^ high) & 0xFF000000 == 0:
        place = memory[POSITION]
        if decoding:
            byte = np.int64(buffer[place + 4]) if place + 4 < buffer.shape[0] else 0
            memory[WINDOW] = ((memory[WINDOW] << 8) & 0xFFFFFFFF) | byte
        elif place < buffer.shape[0]:
            buffer[place] = np.uint8(high >> 24)
        memory[POSITION] = place + 1
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 255
    memory[LOW] = low
    memory[HIGH] = high
    return bit


@inlined
def _mixed(decoding, bit, chosen, a, b, c, tables, memory, buffer):
    """Code one bit that three odds foretell, return it, and learn how far to trust them."""
    w = WEIGHTS + 4 * chosen
    z = (memory[w] * a + memory[w + 1] * b + memory[w + 2] * c + 64 * memory[w + 3]) >> 16
    p = tables[CHANCE + 1024 + min(max(z, -1023), 1023)]
    bit = _code(decoding, bit, p, memory, buffer)
    error = 65536 * bit - p
    memory[w] += (error * a + 8192) >> 14
    memory[w + 1] += (error * b + 2048) >> 12
    memory[w + 2] += (error * c + 2048) >> 12
    memory[w + 3] += (error * 64 + 2048) >> 12
    return bit


@inlined
def _counted(decoding, bit, tally, memory, buffer):
    """Code one bit by how often it was one before, and return it."""
    at = TALLIES + 2 * tally
    p = 65536 * (2 * memory[at + 1] + 1) // (2 * memory[at] + 2 * memory[at + 1] + 2)
    bit = _code(decoding, bit, min(max(p, 512), 65024), memory, buffer)
    memory[at + bit] += 1
    return bit


@inlined
def _odds(tables, zeros, ones, prior):
    return _log(tables, 16 * ones + prior) - _log(tables, 16 * zeros + prior)


@inner
def _code_scale(decoding, scale, highest, memory, buffer):
    """Code a tensor's scale as the way from the one before, where there is one; return it, or an error."""
    before = memory[SCALE]
    read = np.int64(0)
    if before < 0:
        for place in range(8):
            read = 2 * read + _code(decoding, (scale >> (7 - place)) & 1, HALF, memory, buffer)
    else:
        way = scale - before
        up = _counted(decoding, 1 if way > 0 else 0, STEPS, memory, buffer)
        run = 0
        while run <= highest:
            more = 1 if abs(way) > run else 0
            if not _counted(decoding, more, STEPS + 1 + min(run, 15), memory, buffer):
                break
            run += 1
        if run == 0 and up:
            return np.int64(OUT_OF_RANGE)
        read = before + run if up else before - run
    memory[SCALE] = read
    return read if 0 <= read <= highest else np.int64(OUT_OF_RANGE)


@inlined
def _code_size(decoding, size, levels, tables, memory, buffer):
    """Code a magnitude from 1 to `levels`, or to 2^31 - 1 where that is 0; return it, or OUT_OF_RANGE."""
    longest = 30
    if levels:
        longest = 0
        while levels >> (longest + 1):
            longest += 1
    length = 0
    while length < longest:
        at = TALLIES + 2 * length
        in_tensor = at + 2 * TENSOR_LENGTHS
        in_row = at + 2 * ROW_LENGTHS
        a = _odds(tables, memory[at], memory[at + 1], 8)
        b = _odds(tables, memory[in_tensor], memory[in_tensor + 1], 6)
        c = _odds(tables, memory[in_row], memory[in_row + 1], 6)
        more = 1 if size >> (length + 1) else 0
        more = _mixed(decoding, more, LENGTH + min(length, 2), a, b, c, tables, memory, buffer)
        memory[at + more] += 1
        memory[in_tensor + more] += 1
        memory[in_row + more] += 1
        if not more:
            break
        length += 1
    read = np.int64(1)
    for place in range(length):
        bit = (size >> (length - 1 - place)) & 1
        if place < 3:
            bit = _counted(decoding, bit, LOWER_BITS + 8 * length + read, memory, buffer)
        else:
            bit = _code(decoding, bit, HALF, memory, buffer)
        read = 2 * read + bit
    return np.int64(OUT_OF_RANGE) if levels and read > levels else read


@inlined
def _clear(memory, first, count):
    for at in range(first, first + count):
        memory[at] = 0


@inlined
def _code_value(decoding, t, column, value_bits, reals, codes, scales, tables, memory, places, buffer):
    """Code the value of entry memory[ENTRY]; return 0 or an error."""
    if memory[TENSOR_NEW]:
        memory[TENSOR_NEW] = 0
        _clear(memory, TALLIES + 2 * TENSOR_LENGTHS, 64)
        _clear(memory, SIGN_ONES, 2)
        if value_bits:
            scales[t] = _code_scale(decoding, scales[t], 248 if reals else 254, memory, buffer)
            if scales[t] < (0 if reals else 1):
                return OUT_OF_RANGE
    if memory[ROW_NEW]:
        memory[ROW_NEW] = 0
        _clear(memory, TALLIES + 2 * ROW_LENGTHS, 64)
        _clear(memory, ROW_SIGN_ONES, 2)
    entry = memory[ENTRY]
    code = np.int64(codes[entry])
    a = _odds(tables, memory[SIGN_ZEROS], memory[SIGN_ONES], 8)
    b = _odds(tables, memory[ROW_SIGN_ZEROS], memory[ROW_SIGN_ONES], 8)
    c = _odds(tables, places[ZEROS, column], places[ONES, column], 8)
    negative = _mixed(decoding, 1 if code < 0 else 0, SIGN, a, b, c, tables, memory, buffer)
    if negative:
        memory[SIGN_ONES] += 1
        memory[ROW_SIGN_ONES] += 1
        places[ONES, column] += 1
    else:
        memory[SIGN_ZEROS] += 1
        memory[ROW_SIGN_ZEROS] += 1
        places[ZEROS, column] += 1
    levels = 0
    if value_bits:
        levels = 1 << (value_bits - 1)
        if not reals:
            levels = min(levels, scales[t])
    size = np.int64(1)
    if levels != 1:
        size = _code_size(decoding, abs(code), levels, tables, memory, buffer)
        if size < 0:
            return OUT_OF_RANGE
    if decoding:
        codes[entry] = -size if negative else size
    memory[ENTRY] = entry + 1
    return 0


@inlined
def _code_block(
    decoding,
    t,
    start,
    block,
    column,
    width,
    b,
    value_bits,
    reals,
    indices,
    codes,
    scales,
    tables,
    memory,
    places,
    buffer,
):
    """Code the places of a block that has an entry, flat index `start` and on; return 0 or an error."""
    whole = 16 * places[BLOCK_HITS, block] + 10 * width
    rest = whole
    found = 0
    for place in range(width):
        entry = memory[ENTRY]
        if entry == codes.shape[0]:
            break
        weight = 16 * places[HITS, column + place] + 10
        bit = 1
        if not decoding:
            bit = 1 if np.int64(indices[entry]) == start + place else 0
        if found:
            a = _log(tables, memory[NEXT_ONES]) - _log(tables, memory[NEXT_ZEROS])
            c = _log(tables, weight * width) - _log(tables, whole)
            bit = _mixed(decoding, bit, NEXT, a, b, c, tables, memory, buffer)
            if bit:
                memory[NEXT_ONES] += 16
            else:
                memory[NEXT_ZEROS] += 16
        elif place + 1 < width:
            a = _log(tables, weight) - _log(tables, rest - weight)
            bit = _mixed(decoding, bit, FIRST, a, b, 0, tables, memory, buffer)
        else:
            bit = 1
        rest -= weight
        if bit:
            found += 1
            places[HITS, column + place] += 1
            if decoding:
                indices[entry] = start + place
            error = _code_value(
                decoding, t, column + place, value_bits, reals, codes, scales, tables, memory, places, buffer
            )
            if error:
                return error
    places[BLOCK_HITS, block] += found
    return found


@inner
def _begin(decoding, memory, size, count, reals, buffer):
    _clear(memory, 0, MEMORY)
    memory[HIGH] = 0xFFFFFFFF
    memory[SCALE] = -1 if reals else 1
    memory[NEXT_ONES] = 8
    memory[NEXT_ZEROS] = 8 + 2 * (size - count) // count
    for chosen in range(7):
        w = WEIGHTS + 4 * chosen
        memory[w] = 65536
        if chosen == ANY:
            memory[w + 1] = 52000
            memory[w + 2] = 52000
        elif chosen == NEXT:
            memory[w + 1] = 30000
            memory[w + 2] = 52000
        elif chosen >= SIGN:
            memory[w] = 20000
            memory[w + 1] = 32000
            memory[w + 2] = 20000
    if decoding:
        for place in range(4):
            byte = np.int64(buffer[place]) if place < buffer.shape[0] else 0
            memory[WINDOW] = (memory[WINDOW] << 8) | byte


@inner
def _end(decoding, memory, buffer):
    """Write the last bytes, or check that they are the ones; return the length of all, or an error."""
    count = 0
    while ((memory[HIGH] >> (32 - 8 * count)) << (32 - 8 * count)) < memory[LOW]:
        count += 1
    start = memory[POSITION]
    if start + count > buffer.shape[0]:
        return np.int64(NOT_SHORTEST if decoding else FULL)
    for place in range(count):
        byte = (memory[HIGH] >> (24 - 8 * place)) & 255
        if decoding and np.int64(buffer[start + place]) != byte:
            return np.int64(NOT_SHORTEST)
        buffer[start + place] = np.uint8(byte)
    return start + count


@kernel(
    "int64(boolean, int64[:,::1], int64, boolean, int64[::1], int64[::1], int64[:,::1], uint8[::1], uint32[::1], "
    "int32[::1], int64[::1], int64[::1])"
)
def code_update(decoding, shapes, value_bits, reals, tables, memory, places, buffer, indices, codes, ends, scales):
    """Write an update into `buffer`, or in `decoding` read it from there into indices, codes, ends and scales.

    Return the number of bytes; FULL when the buffer is too short; of bytes that no one wrote TOO_FEW (entries),
    OUT_OF_RANGE (a scale or a magnitude) or NOT_SHORTEST (they do not end where they should).
    """
    count = codes.shape[0]
    size = 0
    for t in range(shapes.shape[0]):
        size += shapes[t, 0] * shapes[t, 1]
    _begin(decoding, memory, size, count, reals, buffer)
    all_ones = 100
    all_places = 100 * size // count + 1
    first = 0
    for t in range(shapes.shape[0]):
        rows = shapes[t, 0]
        columns = shapes[t, 1]
        width = WIDTH if rows * columns >= WIDE_FROM and DENSE * count < size else 1
        blocks = (columns + width - 1) // width
        for column in range(columns):
            for kind in range(4):
                places[kind, column] = 0
        before = memory[ENTRY]
        ones = 0
        zeros = 0
        prior = max(10 * (all_places - min(all_ones * width, all_places)) // (all_ones * width), 1)
        memory[TENSOR_NEW] = 1
        for row in range(rows):
            if memory[ENTRY] == count or blocks == 0:
                break
            a = _log(tables, 16 * ones + 10) - _log(tables, 16 * zeros + prior)
            expected = (1048576 * (16 * ones + 10)) // (16 * ones + 10 + 16 * zeros + prior)
            mean = _log(tables, 16 * (memory[ENTRY] - before) // blocks + 6 * width)
            row_start = memory[ENTRY]
            memory[ROW_NEW] = 1
            for block in range(blocks):
                entry = memory[ENTRY]
                if entry == count:
                    break
                column = block * width
                start = first + row * columns + column
                wide = min(width, columns - column)
                b = _log(tables, 16 * (entry - row_start) + 4) - _log(tables, ((expected * block) >> 16) + 4)
                c = _log(tables, 16 * places[BLOCK_HITS, block] + 6 * width) - mean
                bit = 0
                if not decoding:
                    bit = 1 if np.int64(indices[entry]) < start + wide else 0
                if not _mixed(decoding, bit, ANY, a, b, c, tables, memory, buffer):
                    zeros += 1
                    continue
                ones += 1
                found = _code_block(
                    decoding, t, start, block, column, wide, b, value_bits, reals, indices, codes, scales, tables,
                    memory, places, buffer,
                )  # fmt: skip
                if found < 0:
                    return found
        ends[t] = memory[ENTRY]
        found_here = memory[ENTRY] - before
        all_ones += 16 * found_here
        all_places += 16 * rows * columns
        first += rows * columns
    if memory[ENTRY] < count:
        return TOO_FEW
    return _end(decoding, memory, buffer)
