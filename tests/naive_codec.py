"""Slow, obvious twins of the codec's kernels: text of zeros and ones, Python integers, dictionaries that grow.

A twin has its kernel's name. The context coder's is written from docs/WIRE.md, section 11, and nothing else.
"""

import itertools
import math
from collections import defaultdict
from fractions import Fraction

import numpy as np

# Golomb-Rice, engine/kernels/gaps.py: a row of the table is (mode, first, size, count, b, c, levels).

GAPS, MAPPED, WHOLE = range(3)


def rice_text(number, parameter):
    """Give the code as a string of 0 and 1, in the order of the stream."""
    return "0" * (number >> parameter) + "1" + low_text(number, parameter)


def low_text(number, width):
    return "".join(str(number >> bit & 1) for bit in range(width))


def gaps_of(indices, first):
    return [b - a - 1 for a, b in itertools.pairwise([first - 1, *indices])]


def magnitude_text(code, parameter, levels):
    m = abs(int(code)) - 1
    if levels == 1:
        return ""
    if levels == 0 and m >> parameter >= 16:
        return "0" * 16 + low_text(m.bit_length() - 1, 5) + low_text(m, m.bit_length())
    return rice_text(m, parameter)


def tensor_texts(indices, codes, row):
    """Give (the text of a map in front, the text of each entry)."""
    mode, first, size, _, gap_parameter, magnitude_parameter, levels = row
    texts = [
        (rice_text(gap, gap_parameter) if mode == GAPS else "")
        + ("1" if code < 0 else "0")
        + magnitude_text(code, magnitude_parameter, levels)
        for gap, code in zip(gaps_of(indices, first), codes, strict=True)
    ]
    ones = {i - first for i in indices}
    front = "".join("1" if i in ones else "0" for i in range(size)) if mode == MAPPED and indices else ""
    return front, texts


def entries_text(indices, codes, table):
    text, start = "", 0
    for row in table:
        stop = start + row[3]
        front, texts = tensor_texts(indices[start:stop], codes[start:stop], row)
        text, start = text + front + "".join(texts), stop
    return text


def entries_bits(indices, codes, table):
    return len(entries_text(indices, codes, table))


def packed(text):
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8][::-1], 2) for at in range(0, len(text), 8))


def write_entries(indices, codes, table, before):
    """Give the bytes of `before`, a text, and the entries behind it."""
    return packed(before + entries_text(indices, codes, table))


def choose_parameters(indices, codes, table):
    """Give [(gap parameter, magnitude parameter, bits of the gaps)]."""
    chosen, start = [], 0
    for row in table:
        stop = start + row[3]
        gaps, levels = gaps_of(indices[start:stop], row[1]), row[6]
        cost = [sum((gap >> b) + 1 + b for gap in gaps) for b in range(31)]
        best = cost.index(min(cost))
        highest = 0 if levels == 1 else max(c for c in range(31) if not levels or c == 0 or 1 << c < levels)
        sizes = [sum(len(magnitude_text(v, c, levels)) for v in codes[start:stop]) for c in range(highest + 1)]
        chosen.append((best, sizes.index(min(sizes)), cost[best]))
        start = stop
    return chosen


def read_entries(data, position, table):
    """Give (indices, codes, the position behind) of bytes that are known to be whole."""
    text = "".join(format(byte, "08b")[::-1] for byte in data)
    indices, codes = [], []

    def take(width):
        nonlocal position
        position += width
        return int(text[position - width : position][::-1] or "0", 2)

    def take_rice(parameter):
        nonlocal position
        run = text.index("1", position) - position
        position += run + 1
        return run << parameter | take(parameter)

    for mode, first, size, count, gap_parameter, magnitude_parameter, levels in table:
        places = [first + i for i in range(size) if mode == WHOLE or take(1)] if mode != GAPS and count else []
        following = first
        for j in range(count):
            indices.append(places[j] if mode != GAPS else following + take_rice(gap_parameter))
            following = indices[-1] + 1
            sign = -1 if take(1) else 1
            if levels == 1:
                m = 0
            elif levels == 0 and text[position : position + 16] == "0" * 16:
                position += 16
                m = take(take(5) + 1)
            else:
                m = take_rice(magnitude_parameter)
            codes.append(sign * (m + 1))
    return indices, codes, position


# Rounding (engine/kernels/quantize.py): exact fractions


def unit_of(scale):
    return Fraction(8 + scale % 8) * Fraction(2) ** (scale // 8 - 28)


def by_tensor(values, ends):
    return [values[start:stop] for start, stop in itertools.pairwise([0, *ends])]


def quantize_reals(values, ends, value_bits):
    """Give (scales, codes)."""
    levels, scales, codes = 2 ** (value_bits - 1), [], []
    for some in by_tensor([float(v) for v in values], ends):
        sizes = [min(abs(v), 64.0) for v in some]
        if not some:
            wanted, scale = 0.0, 0
        elif levels == 1:
            total = 0.0
            for size in sizes:
                total += size
            wanted = total / len(sizes)
            scale = min(range(249), key=lambda s: (abs(unit_of(s) - Fraction(wanted)), -s))
        else:
            scale = next(s for s in range(249) if unit_of(s) >= max(sizes))
        scales.append(scale)
        for v in some:
            nearest = math.floor(math.sqrt(min(abs(v) / float(unit_of(scale)), 1.0)) * levels + 0.5)
            codes.append(min(max(nearest, 1), levels) * (-1 if v < 0 else 1))
    return scales, codes


def restore_reals(codes, ends, value_bits, scales):
    exact = [
        unit_of(scale) * Fraction(code, 2 ** (value_bits - 1)) ** 2 * (1 if code > 0 else -1)
        for scale, some in zip(scales, by_tensor(codes, ends), strict=True)
        for code in some
    ]
    values = np.array([float(x) for x in exact], np.float32)
    assert [Fraction(float(v)) for v in values] == exact
    return values


def unit_levels(scale, value_bits):
    """Give the whole magnitudes that a code may stand for, in order."""
    levels = 2 ** (value_bits - 1)
    if levels == 1:
        return [scale]
    if scale <= levels:
        return list(range(1, scale + 1))
    return [max(math.floor(Fraction(scale * j * j, levels * levels) + Fraction(1, 2)), 1) for j in range(1, levels + 1)]


def quantize_units(values, ends, value_bits):
    """Give (scales, codes)."""
    scales, codes = [], []
    for some in by_tensor([int(v) for v in values], ends):
        sizes = [abs(v) for v in some]
        mean = math.floor(Fraction(sum(sizes), len(sizes)) + Fraction(1, 2)) if some else 0
        scales.append(mean if value_bits == 1 else max(sizes, default=0))
        for v in some:
            steps = unit_levels(scales[-1], value_bits)
            level = min(range(len(steps)), key=lambda j, steps=steps, v=v: (abs(steps[j] - abs(v)), j))
            codes.append((level + 1) * (-1 if v < 0 else 1))
    return scales, codes


def restore_units(codes, ends, value_bits, scales):
    return [
        unit_levels(scale, value_bits)[abs(code) - 1] * (1 if code > 0 else -1)
        for scale, some in zip(scales, by_tensor(codes, ends), strict=True)
        for code in some
    ]


# The context coder (engine/kernels/context.py)


def log(x):
    return (x**64).bit_length() - 1 if x < 4096 else log(x >> 6) + 384


def root64(x):
    for _ in range(6):
        x = math.isqrt(x)
    return x


def chance(z):
    odds = root64(2 ** (1920 + z % 64))
    odds = odds << z // 64 if z >= 0 else odds >> -(z // 64)
    return min(max(65536 * odds // (odds + 2**30), 24), 65512)


class Coder:
    """The binary range coder: `bit` writes the bit it is given, or reads one from `data` where there is any."""

    def __init__(self, data=None):
        self.low, self.high, self.written, self.data = 0, 2**32 - 1, bytearray(), data

    def bit(self, bit, p):
        split = self.low + ((self.high - self.low) * p >> 16)
        if self.data is not None:
            window = (bytes(self.data) + bytes(4 + len(self.written)))[len(self.written) : len(self.written) + 4]
            bit = int(int.from_bytes(window, "big") <= split)
        self.low, self.high = (self.low, split) if bit else (split + 1, self.high)
        while self.low >> 24 == self.high >> 24:
            self.written.append(self.low >> 24)
            self.low, self.high = self.low << 8 & 0xFFFFFFFF, self.high << 8 & 0xFFFFFFFF | 255
        return bit

    def end(self):
        """Give everything written, and the fewest bytes that lie between low and high with zeros behind them."""
        for count in range(5):
            number = self.high >> (32 - 8 * count) << (32 - 8 * count)
            if number >= self.low:
                return bytes(self.written) + number.to_bytes(4, "big")[:count]
        raise AssertionError


class Model:
    """What both sides remember of the bits so far."""

    def __init__(self, coder):
        self.coder = coder
        self.weights = defaultdict(lambda: [20000, 32000, 20000, 0])
        self.weights["any"] = [65536, 52000, 52000, 0]
        self.weights["first"] = [65536, 0, 0, 0]
        self.weights["next"] = [65536, 30000, 52000, 0]
        self.seen = defaultdict(lambda: [0, 0])
        self.scale = self.ones = self.zeros = None  # the scale before; the counts behind odds of "next"

    def mixed(self, bit, name, a, b, c):
        w = self.weights[name]
        z = (w[0] * a + w[1] * b + w[2] * c + 64 * w[3]) >> 16
        p = chance(min(max(z, -1023), 1023))
        bit = self.coder.bit(bit, p)
        w[0] += ((65536 * bit - p) * a + 8192) >> 14
        for at, x in ((1, b), (2, c), (3, 64)):
            w[at] += ((65536 * bit - p) * x + 2048) >> 12
        return bit

    def counted(self, bit, name):
        zeros, ones = self.seen[name]
        p = 65536 * (2 * ones + 1) // (2 * zeros + 2 * ones + 2)
        bit = self.coder.bit(bit, min(max(p, 512), 65024))
        self.seen[name][bit] += 1
        return bit

    def odds(self, name, prior):
        zeros, ones = self.seen[name]
        return log(16 * ones + prior) - log(16 * zeros + prior)


def code_update(shapes, count, *, value_bits, reals, entries=None, scales=None, data=None):
    """Write `entries`, [(index, code)], or read `data`. Give (bytes, entries, ends, scales)."""
    model, size, done, ends, first = Model(Coder(data)), sum(r * c for r, c in shapes), [], [], 0
    model.scale, model.ones, model.zeros = None if reals else 1, 8, 8 + 2 * (size - count) // count
    scales = list(scales or [0] * len(shapes))
    all_ones, all_places = 100, 100 * size // count + 1
    for t, (rows, columns) in enumerate(shapes):
        width = 8 if rows * columns >= 256 and 8 * count < size else 1
        here, ones, zeros = len(done), 0, 0
        hits, block_hits = [0] * columns, [0] * -(-columns // width)
        prior = max(10 * (all_places - min(all_ones * width, all_places)) // (all_ones * width), 1)

        def code_entry(index, t=t, here=here, first=first, columns=columns):
            if len(done) == here and value_bits:
                scales[t] = code_scale(model, scales[t], reals=reals)
            code = entries[len(done)][1] if entries is not None else 1
            levels = 2 ** (value_bits - 1) if value_bits else 0
            levels = levels if reals else min(levels, scales[t])
            done.append((index, code_value(model, code, levels, (t, *divmod(index - first, columns)))))

        for start in range(first, first + rows * columns, columns):
            in_row = len(done)
            a = log(16 * ones + 10) - log(16 * zeros + prior)
            share = 2**20 * (16 * ones + 10) // (16 * ones + 10 + 16 * zeros + prior)
            mean = log(16 * (in_row - here) // len(block_hits) + 6 * width)
            for block in range(len(block_hits)):
                if len(done) == count:
                    break
                places = range(block * width, min(block * width + width, columns))
                b = log(16 * (len(done) - in_row) + 4) - log((share * block >> 16) + 4)
                c = log(16 * block_hits[block] + 6 * width) - mean
                given = entries is not None and entries[len(done)][0] <= start + places[-1]
                if not model.mixed(int(given), "any", a, b, c):
                    zeros += 1
                    continue
                ones += 1
                wanted = [index - start for index, _ in entries or ()]
                x = {place: 16 * hits[place] + 10 for place in places}
                for place in code_places(model, x, b, wanted, lambda: len(done) < count):
                    code_entry(start + place)
                    hits[place] += 1
                    block_hits[block] += 1
        ends.append(len(done))
        all_ones += 16 * (len(done) - here)
        all_places += 16 * rows * columns
        first += rows * columns
    return model.coder.end(), done, ends, scales


def code_places(model, x, b, wanted, more):
    """Give the places with an entry of a block that has one, each before its value is coded."""
    found, last = False, max(x)
    for place in x:
        if not more():
            return
        bit = int(place in wanted)
        if found:
            c = log(x[place] * len(x)) - log(sum(x.values()))
            bit = model.mixed(bit, "next", log(model.ones) - log(model.zeros), b, c)
            model.ones, model.zeros = model.ones + 16 * bit, model.zeros + 16 * (1 - bit)
        elif place < last:
            behind = sum(x[later] for later in x if later > place)
            bit = model.mixed(bit, "first", log(x[place]) - log(behind), b, 0)
        else:
            bit = 1
        if bit:
            found = True
            yield place


def code_scale(model, scale, *, reals):
    last = model.scale
    if last is None:
        read = 0
        for place in range(7, -1, -1):
            read = 2 * read + model.coder.bit(scale >> place & 1, 32768)
    else:
        up = model.counted(int(scale > last), "up")
        run = 0
        while run <= (248 if reals else 254) and model.counted(int(abs(scale - last) > run), ("way", min(run, 15))):
            run += 1
        read = last + run if up else last - run
    model.scale = read
    return read


def code_value(model, code, levels, where):
    t, row, column = where
    signs = [("sign", t), ("sign", t, "row", row), ("sign", t, "column", column)]
    negative = model.mixed(int(code < 0), "sign", *(model.odds(name, 8) for name in signs))
    for name in signs:
        model.seen[name][negative] += 1
    size, length = abs(code), 0
    longest = levels.bit_length() - 1 if levels else 30
    while length < longest:
        names = [("length", length), ("length", length, t), ("length", length, t, row)]
        odds = [model.odds(name, prior) for name, prior in zip(names, (8, 6, 6), strict=True)]
        more = model.mixed(int(size.bit_length() - 1 > length), ("length", min(length, 2)), *odds)
        for name in names:
            model.seen[name][more] += 1
        if not more:
            break
        length += 1
    read = 1
    for place in range(length):
        bit = size >> max(length - 1 - place, 0) & 1
        bit = model.counted(bit, ("lower", length, read)) if place < 3 else model.coder.bit(bit, 32768)
        read = 2 * read + bit
    return -read if negative else read


# Adding (engine/kernels/reduce.py): plain integers


def units_within(units, limit):
    return all(1 <= abs(int(unit)) <= limit for unit in units)


def scatter_units(total, indices, units, weight):
    result = [int(t) for t in total]
    for i, unit in zip(indices, units, strict=True):
        result[i] += weight * int(unit)
    return result
