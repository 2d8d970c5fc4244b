"""What of an int8 model's update is sent and what stays owed, in whole steps of its stored numbers: nothing is lost.

    clip      s = s * min(1, clip_norm / ||s * scale||), each rounded to nearest, halves away from zero
    gather    v = v * momentum / 2^16, toward zero, + s
    decay     r = r * factor / 2^32, toward zero
    fold in   t = s + r;   weighed by |u| * unit * scale, with u = t / unit toward zero, held to +-UNIT_MAX
    units     u at the chosen places
    take out  t[index] = t[index] - sent * unit,  in place; sent are the units that the payload carries

    steps s, velocity v, residual r, total t int32 [P]; unit int32 [P] >= 1; scale, magnitude float32 [P];
    momentum int64 from 0 to 2^16 - 1, factor int64 from 0 to 2^32; indices uint32 [k]; units int32 [k], none zero.

The norm is summed in float64 in ascending order. A product |u| * unit is exact in float32, because unit is a power of
two, so a magnitude is rounded once. What would not fit 32 bits is counted, and its place in the result is of no use.
"""

import math

import numpy as np

from engine.kernels._jit import inner, kernel
from engine.kernels.quantize import UNIT_MAX

LARGEST = 2147483647


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


@inner
def _part(number, share, bits):
    """Give number * share / 2^bits, toward zero."""
    size = (abs(number) * share) >> bits
    return -size if number < 0 else size


@kernel("int64(int32[::1], int32[::1], int64)")
def gather_steps(velocity, steps, momentum):
    """Advance `velocity` in place; return how many do not fit 32 bits."""
    beyond = 0
    for i in range(velocity.shape[0]):
        v = _part(np.int64(velocity[i]), momentum, 16) + np.int64(steps[i])
        if abs(v) > LARGEST:
            beyond += 1
        velocity[i] = np.int32(v)
    return beyond


@kernel("void(int32[::1], int64)")
def decay_steps(residual, factor):
    """Let `residual` shrink in place."""
    for i in range(residual.shape[0]):
        residual[i] = np.int32(_part(np.int64(residual[i]), factor, 32))


@inner
def _whole_units(total, unit):
    """Give how many whole units are in |total|, at most UNIT_MAX."""
    return min(abs(total) // unit, UNIT_MAX)


@kernel("int64(int32[::1], int32[::1], int32[::1], float32[::1], int32[::1], float32[::1])")
def fold_units(steps, residual, unit, scale, total, magnitude):
    """Fill `total` and `magnitude`; return how many sums do not fit 32 bits."""
    beyond = 0
    for i in range(steps.shape[0]):
        t = np.int64(steps[i]) + np.int64(residual[i])
        if abs(t) > LARGEST:
            beyond += 1
        total[i] = np.int32(t)
        whole = _whole_units(t, np.int64(unit[i]))
        magnitude[i] = np.float32(whole * np.int64(unit[i])) * scale[i]
    return beyond


@kernel("void(int32[::1], int32[::1], uint32[::1], int32[::1])")
def units_at(total, unit, indices, units):
    """Fill `units` with the whole units at `indices`."""
    for j in range(indices.shape[0]):
        t = np.int64(total[indices[j]])
        whole = _whole_units(t, np.int64(unit[indices[j]]))
        units[j] = -whole if t < 0 else whole


@kernel("int64(int32[::1], int32[::1], uint32[::1], int32[::1])")
def take_units(total, unit, indices, units):
    """Take `units` at `indices` out of `total` in place; return how many of what is left do not fit 32 bits."""
    beyond = 0
    for j in range(indices.shape[0]):
        i = indices[j]
        t = np.int64(total[i]) - np.int64(units[j]) * np.int64(unit[i])
        if abs(t) > LARGEST:
            beyond += 1
        total[i] = np.int32(t)
    return beyond
