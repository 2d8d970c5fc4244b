"""Slow, obvious twins of `engine/kernels/update.py`, one weight at a time: wishes in float32, chance in integers.

Each gives (new parameters, tally); the int8 ones also the whole steps.
"""

import math

import numpy as np

F = np.float32
WORD = (1 << 64) - 1


def draw(key, index):
    """The upper 24 bits of draw `index` of splitmix64, as a fraction of 1."""
    state = (key + 0x9E3779B97F4A7C15 * (index + 1)) & WORD
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return ((z ^ (z >> 31)) >> 40) / 2**24


def stochastic(wish, key, index):
    """Give the whole steps of a float32 wish, or None where it is not finite."""
    if not math.isfinite(wish):
        return None
    # the fraction is a float32 too: a tiny negative wish has the fraction 1
    fraction = F(F(wish) - F(math.floor(wish)))
    return math.floor(wish) + (1 if draw(key, index) < float(fraction) else 0)


def product(a, b):
    with np.errstate(all="ignore"):
        return float(F(a) * F(b))


def moved(weight, wish, key, index, limit, tally):  # noqa: PLR0917
    """Give (new weight, whole steps)."""
    steps = stochastic(wish, key, index)
    if steps is None:
        tally[1] += 1
        return weight, 0
    if steps == 0:
        return weight, 0
    if abs(weight + steps) > limit:
        tally[0] += 1
    return max(-limit, min(limit, weight + steps)), steps


def update_int8(weights, channels, dw, step, key):
    weights, whole, tally = weights.copy(), np.zeros_like(dw), [0, 0]
    for o, kh, kw in np.ndindex(weights.shape[:3]):
        for j, c in enumerate(channels.tolist()):
            row = (kh * weights.shape[2] + kw) * len(channels) + j
            index = int(np.ravel_multi_index((o, kh, kw, c), weights.shape))
            wish = product(-step[o], dw[row, o])
            weights[o, kh, kw, c], whole[row, o] = moved(int(weights[o, kh, kw, c]), wish, key, index, 127, tally)
    return weights, tally, whole


def update_depthwise_int8(weights, channels, dw, step, key):
    weights, whole, tally = weights.copy(), np.zeros_like(dw), [0, 0]
    for kh, kw in np.ndindex(weights.shape[1:3]):
        for j, c in enumerate(channels.tolist()):
            row = kh * weights.shape[2] + kw
            index = int(np.ravel_multi_index((0, kh, kw, c), weights.shape))
            wish = product(-step[c], dw[row, j])
            weights[0, kh, kw, c], whole[row, j] = moved(int(weights[0, kh, kw, c]), wish, key, index, 127, tally)
    return weights, tally, whole


def update_bias(bias, db, step, key):
    bias, whole, tally = bias.copy(), np.zeros_like(db), [0, 0]
    for o in range(len(bias)):
        bias[o], whole[o] = moved(int(bias[o]), product(-step[o], db[o]), key, o, 1 << 30, tally)
    return bias, tally, whole


def update_float(weights, channels, dw, rate):
    weights, tally = weights.copy(), [0, 0]
    for o, kh, kw in np.ndindex(weights.shape[:3]):
        for j, c in enumerate(channels.tolist()):
            row = (kh * weights.shape[2] + kw) * len(channels) + j
            weights[o, kh, kw, c] = moved_float(weights[o, kh, kw, c], dw[row, o], rate, tally)
    return weights, tally


def update_depthwise_float(weights, channels, dw, rate):
    weights, tally = weights.copy(), [0, 0]
    for kh, kw in np.ndindex(weights.shape[1:3]):
        for j, c in enumerate(channels.tolist()):
            row = kh * weights.shape[2] + kw
            weights[0, kh, kw, c] = moved_float(weights[0, kh, kw, c], dw[row, j], rate, tally)
    return weights, tally


def update_bias_float(bias, db, rate):
    tally = [0, 0]
    return np.array([moved_float(b, d, rate, tally) for b, d in zip(bias, db, strict=True)], F), tally


def moved_float(weight, slope, rate, tally):
    with np.errstate(all="ignore"):
        wanted = F(weight - F(F(rate) * slope))
    if np.isfinite(wanted):
        return wanted
    tally[1] += 1
    return weight


def momentum_step(velocity, grad, momentum):
    return F(momentum) * velocity + grad


def limit_steps(dw, step, limit):
    with np.errstate(all="ignore"):
        wishes = np.abs(dw[:, : len(step)].astype(np.float64) * step.astype(np.float64))
        largest = np.nanmax(wishes, initial=0.0)
        if largest > limit:
            dw = dw.copy()
            dw[:, : len(step)] = (dw[:, : len(step)].astype(np.float64) * (limit / largest)).astype(F)
    return dw, largest
