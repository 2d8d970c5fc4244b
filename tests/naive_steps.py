"""Slow, obvious twins of `engine/kernels/steps.py`, in Python integers."""

import math

import numpy as np

F = np.float32
LARGEST = 2**31 - 1


def clip_steps(steps, scale, clip_norm):
    """Give (the clipped steps, the norm they had)."""
    total = 0.0
    for s, r in zip(steps.tolist(), scale, strict=True):
        total += (s * float(r)) * (s * float(r))
    norm = math.sqrt(total)
    if norm <= clip_norm:
        return steps.copy(), norm
    factor = clip_norm / norm
    return np.array([math.trunc(s * factor + math.copysign(0.5, s)) for s in steps.tolist()], np.int32), norm


def part(number, share, bits):
    """Give number * share / 2^bits, toward zero."""
    return int(math.copysign(abs(int(number)) * share // 2**bits, number))


def gather_steps(velocity, steps, momentum):
    """Give (the new velocity, how many do not fit 32 bits)."""
    after = [part(v, momentum, 16) + int(s) for v, s in zip(velocity, steps, strict=True)]
    return after, sum(abs(v) > LARGEST for v in after)


def decay_steps(residual, factor):
    return [part(r, factor, 32) for r in residual]


def whole_units(total, unit):
    """Give the whole units in `total`, with its sign."""
    whole = min(abs(int(total)) // int(unit), 254)
    return whole if total > 0 else -whole


def fold_units(steps, residual, unit, scale):
    """Give (total, magnitude, how many do not fit 32 bits)."""
    total = [int(s) + int(r) for s, r in zip(steps, residual, strict=True)]
    magnitude = [F(F(abs(whole_units(t, u)) * int(u)) * r) for t, u, r in zip(total, unit, scale, strict=True)]
    return total, np.array(magnitude, F), sum(abs(t) > LARGEST for t in total)


def units_at(total, unit, indices):
    return [whole_units(total[i], unit[i]) for i in indices]


def take_units(total, unit, indices, units):
    """Give (what is left, how many of it do not fit 32 bits)."""
    left = [int(t) for t in total]
    for i, sent in zip(indices, units, strict=True):
        left[i] -= int(sent) * int(unit[i])
    return left, sum(abs(left[i]) > LARGEST for i in indices)
