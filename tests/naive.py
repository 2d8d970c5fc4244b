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


def decay_reals(residual, factor):
    return np.array([F(float(r) * factor) for r in residual], F)


def choose_largest(vector, k):
    ranked = sorted(range(len(vector)), key=lambda i: (-abs(float(vector[i])), i))
    return sorted(i for i in ranked[:k] if vector[i] != 0)


def choose_by_sample(vector, k):
    return choose_largest(vector, k)  # or it says that it was misled


def pick(vector, indices):
    return [vector[i] for i in indices]


def take_out(total, indices, values):
    sent = dict(zip(indices, values, strict=True))
    return np.array([F(u - sent[i]) if i in sent else u for i, u in enumerate(total)], F)


def within_limit(values):
    return all(math.isfinite(v) and abs(float(v)) <= 64 for v in values)


def scatter_add(total, indices, values, weight):
    total = [int(t) for t in total]
    for index, value in zip(indices, values, strict=True):
        exact = Fraction(float(value)) * 2**30
        away = math.floor(abs(exact) + Fraction(1, 2))
        total[index] += weight * (away if exact >= 0 else -away)
    return total
