"""Slow, obvious twins of the kernels: plain loops, one line of the formula each, nothing shared with `engine`.

A twin has its kernel's name. Where a kernel promises an order of additions, the twin adds in that order with NumPy
float32 scalars, which round like the hardware; then the two agree to the bit and not merely closely. Where a kernel
approximates (exp, log), the twin is exact to 40 digits.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np

F = np.float32


def exp_negative(x):
    with localcontext() as context:
        context.prec = 40
        return Decimal(x).exp()


def log_above_one(x):
    with localcontext() as context:
        context.prec = 40
        return Decimal(x).ln()


def softmax_forward(logits, labels):
    """Give (summed loss, probabilities)."""
    loss, probabilities = 0.0, []
    for row, label in zip(logits, labels, strict=True):
        powers = [math.exp(float(z) - float(max(row))) for z in row]
        probabilities.append([p / sum(powers) for p in powers])
        loss -= float(row[label]) - float(max(row)) - math.log(sum(powers))
    return loss, np.array(probabilities)


def softmax_backward(probabilities, labels):
    wanted = np.zeros(probabilities.shape)
    for b, label in enumerate(labels):
        wanted[b, label] = 1.0
    return ((probabilities - wanted) / len(labels)).astype(F)


def largest_logit(logits):
    return [list(row).index(max(row)) for row in logits]


def sgd_step(params, velocity, grad, rate, momentum):
    """Give (params, velocity)."""
    speed = [F(F(momentum * v) + g) for v, g in zip(velocity, grad, strict=True)]
    return np.array([F(p - F(rate * s)) for p, s in zip(params, speed, strict=True)], F), np.array(speed, F)


def squared_norm(vector):
    total = 0.0
    for x in vector:
        total += float(x) * float(x)
    return total


def clip_to_norm(vector, clip_norm):
    """Give (clipped vector, norm before)."""
    norm = math.sqrt(squared_norm(vector))
    factor = clip_norm / norm if norm > clip_norm else 1.0
    return np.array([float(x) * factor for x in vector], F), norm


def all_finite(vector):
    return all(math.isfinite(x) for x in vector)


def splitmix64(seed, number):
    """Give draw `number` by stepping the published generator from the start."""
    state = seed
    for _ in range(number + 1):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def shuffle(order, seed, first_draw):
    order = list(order)
    for turn, i in enumerate(range(len(order) - 1, 0, -1)):
        j = (splitmix64(seed, first_draw + turn) >> 32) * (i + 1) >> 32
        order[i], order[j] = order[j], order[i]
    return order


def fold_in(delta, residual):
    return np.array([F(d + r) for d, r in zip(delta, residual, strict=True)], F)


def choose_largest(vector, k):
    ranked = sorted(range(len(vector)), key=lambda i: (-abs(float(vector[i])), i))
    return sorted(i for i in ranked[:k] if vector[i] != 0)


def pick(vector, indices):
    return [vector[i] for i in indices]


def take_out(total, indices, values):
    sent = dict(zip(indices, values, strict=True))
    return np.array([F(u - sent[i]) if i in sent else u for i, u in enumerate(total)], F)


def value_scale(values, value_bits):
    magnitudes = [abs(float(v)) for v in values]
    scale = sum(magnitudes) / len(magnitudes) if value_bits == 1 else max(magnitudes)
    return F(min(scale, 64.0))


def quantize(values, value_bits, scale):
    levels = 2 ** (value_bits - 1)
    codes = []
    for v in values:
        nearest = math.floor(math.sqrt(min(abs(float(v)) / float(scale), 1.0)) * levels + 0.5) - 1
        codes.append(2 * min(max(nearest, 0), levels - 1) + (1 if v < 0 else 0))
    return codes


def dequantize(codes, value_bits, scale):
    levels = 2 ** (value_bits - 1)
    values = []
    for code in codes:
        exact = Fraction(float(scale)) * Fraction(code // 2 + 1, levels) ** 2
        values.append(F(float(exact)) * F(-1 if code % 2 else 1))
    return np.array(values, F)


def pack_codes(codes, width):
    number = sum(code << (j * width) for j, code in enumerate(codes))
    return number.to_bytes((len(codes) * width + 7) // 8, "little")


def unpack_codes(buffer, width, count):
    """Give (codes, whether the rest is zero)."""
    number = int.from_bytes(buffer, "little")
    return [(number >> (j * width)) % 2**width for j in range(count)], number >> (count * width) == 0


def gaps_of(indices):
    return [b - a - 1 for a, b in zip([-1, *indices], indices, strict=False)]


def rice_text(indices, parameter):
    """Give the code as a string of 0 and 1, in the order of the stream."""
    text = ""
    for gap in gaps_of(indices):
        low = "".join(str(gap >> bit & 1) for bit in range(parameter))
        text += "0" * (gap >> parameter) + "1" + low
    return text


def rice_bits(indices, parameter):
    return len(rice_text(indices, parameter))


def best_parameter(indices):
    return min(range(31), key=lambda b: (sum((gap >> b) + 1 + b for gap in gaps_of(indices)), b))


def rice_encode(indices, parameter):
    text = rice_text(indices, parameter)
    padded = text + "0" * (-len(text) % 8)
    return bytes(int(padded[at : at + 8][::-1], 2) for at in range(0, len(padded), 8))


def rice_decode(buffer, parameter, count):
    """Give (indices, bits read) of a code that is known to be whole."""
    text = "".join(format(byte, "08b")[::-1] for byte in buffer)
    position, following, indices = 0, 0, []
    for _ in range(count):
        run = text.index("1", position) - position
        position += run + 1
        low = text[position : position + parameter]
        position += parameter
        indices.append(following + (run << parameter) + sum(int(bit) << j for j, bit in enumerate(low)))
        following = indices[-1] + 1
    return indices, position


def within_limit(values):
    return all(math.isfinite(v) and abs(float(v)) <= 64 for v in values)


def scatter_add(total, indices, values, weight):
    total = [int(t) for t in total]
    for index, value in zip(indices, values, strict=True):
        exact = Fraction(float(value)) * 2**30
        away = math.floor(abs(exact) + Fraction(1, 2))
        total[index] += weight * (away if exact >= 0 else -away)
    return total
