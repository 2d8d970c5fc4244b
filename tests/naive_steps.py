"""Slow, obvious twins of `engine/kernels/steps.py`: Python integers and, for codes, text of zeros and ones."""

import math

import numpy as np

F = np.float32


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


def fold_units(steps, residual, unit, scale):
    """Give (total, magnitude, how many do not fit 32 bits)."""
    total = [int(s) + int(r) for s, r in zip(steps, residual, strict=True)]
    magnitude = [F(F(min(abs(t) // int(u), 254) * int(u)) * r) for t, u, r in zip(total, unit, scale, strict=True)]
    return total, np.array(magnitude, F), sum(abs(t) > 2**31 - 1 for t in total)


def take_units(total, unit, indices):
    """Give (units, residual)."""
    residual = [int(t) for t in total]
    units = []
    for i in indices:
        whole = min(abs(residual[i]) // int(unit[i]), 254)
        units.append(whole if residual[i] > 0 else -whole)
        residual[i] -= units[-1] * int(unit[i])
    return units, residual


def _code(unit, parameter):
    """One unit as text, first bit first."""
    m = abs(int(unit)) - 1
    sign = "1" if unit < 0 else "0"
    if m >> parameter >= 16:
        return sign + "0" * 16 + f"{m:08b}"[::-1]
    low = f"{m:08b}"[::-1][:parameter]
    return sign + "0" * (m >> parameter) + "1" + low


def units_bits(units, parameter):
    return sum(len(_code(unit, parameter)) for unit in units)


def best_units_parameter(units):
    return min(range(8), key=lambda parameter: (units_bits(units, parameter), parameter))


def encode_units(units, parameter):
    """Give whole bytes."""
    text = "".join(_code(unit, parameter) for unit in units)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8][::-1], 2) for at in range(0, len(text), 8))


def decode_units(data, parameter, count):
    """Give the units, by trying every one at every place."""
    text = "".join(f"{byte:08b}"[::-1] for byte in data)
    table = {_code(unit, parameter): unit for unit in range(-254, 255) if unit}
    units, at = [], 0
    while len(units) < count:
        length = next(n for n in range(1, 27) if text[at : at + n] in table)
        units.append(table[text[at : at + length]])
        at += length
    return units


def units_within_limit(units):
    return all(1 <= abs(int(unit)) <= 254 for unit in units)


def scatter_units(total, indices, units, weight):
    result = [int(t) for t in total]
    for i, unit in zip(indices, units, strict=True):
        result[i] += weight * int(unit)
    return result
