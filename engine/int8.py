"""The int8 arithmetic of TensorFlow Lite's reference kernels: multipliers, ranges, tables, and the keys of chance.

A stored int8 value v of a tensor means the real number (v - zero_point) * scale. An operator's result is therefore an
integer times a real factor made of three scales. The reference kernels hold that factor as a *multiplier* q of 31 bits
and a *shift* e, factor = q * 2^(e - 31), and round twice: once after the product, once after the shift (gemmlowp's
fixed point). Every rule here gives their very bits (compared with tflite-runtime 2.14, BUILTIN_REF); the kernels that
work with these numbers are in `engine/kernels/`. A function of one int8 input has 256 results, and is a table.

Everything is exact integer work, IEEE + - * / on float64 and float32, or decimal arithmetic of the standard library:
no libm, so a table is the same on every machine.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from engine.models.graph import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

Quantized: TypeAlias = tuple[float, int]  # scale and zero point of a tensor

LOWEST, HIGHEST = -128, 127
ADD_LEFT_SHIFT = 20
EXP_INTEGER_BITS = 5
WORD = (1 << 64) - 1
# exp(-2^k) for k = -2 .. 4 with 31 fractional bits: gemmlowp's fixedpoint.h, exp_on_negative_values
EXP_FACTORS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
EXP_MINUS_EIGHTH = 1895147668
ONE_THIRD = 715827883
# ACTIVATIONS[name]: the real range the fused activation allows
ACTIVATIONS = {
    "NONE": (-math.inf, math.inf),
    "RELU": (0.0, math.inf),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Give (multiplier, shift) with real = multiplier * 2^(shift - 31) to 31 bits; (0, 0) for less than 2^-32.

    Source: QuantizeMultiplier in TensorFlow Lite's quantization_util.cc. Raises ModelError below zero, for NaN and
    infinity, and from 2^30 on, where no scale of a sound model leads.
    """
    if not 0 <= real < 1 << 30:
        raise ModelError(f"the model's scales ask for a factor of {real}, not one of 0 .. 2^30; export it again")
    multiplier, shift = _parts(real)
    return (multiplier, shift) if shift >= -31 else (0, 0)


def conv_multipliers(
    scale_in: float, scale_weights: Iterable[float], scale_out: float
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Give the multipliers and shifts (int32 [O] each) of a convolution whose weights have one scale per output."""
    return _columns(float(scale_in) * float(scale) / float(scale_out) for scale in scale_weights)


def dense_multipliers(
    scale_in: float, scale_weights: NDArray[np.float32], scale_out: float, count: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Give the multipliers and shifts (int32 [count] each) of a FULLY_CONNECTED.

    With one scale for all weights the product of scales is rounded to float32 first, as the runtime does.
    """
    if len(scale_weights) > 1:
        return conv_multipliers(scale_in, scale_weights, scale_out)
    product = float(np.float32(scale_in) * np.float32(scale_weights[0]))
    return _columns([product / float(scale_out)] * count)


def activation_range(activation: str, scale: float, zero_point: int) -> tuple[int, int]:
    """Give the lowest and the highest stored value that the fused activation lets through."""
    low, high = activation_range_float(activation)
    return (
        LOWEST if low == -math.inf else max(LOWEST, zero_point + _divided(low, scale)),
        HIGHEST if high == math.inf else min(HIGHEST, zero_point + _divided(high, scale)),
    )


def activation_range_float(activation: str) -> tuple[float, float]:
    """Give the lowest and the highest real value that the fused activation lets through (infinite where open)."""
    if activation not in ACTIVATIONS:
        raise ModelError(f"the fused activation {activation} cannot be computed; export with RELU, RELU6 or none")
    return ACTIVATIONS[activation]


def add_rule(first: Quantized, second: Quantized, made: Quantized, activation: str) -> NDArray[np.int64]:
    """Give what `add_int8` needs, int64 [11]: zero, multiplier, shift of both inputs and the output; low, high."""
    twice = 2.0 * max(float(first[0]), float(second[0]))
    parts = []
    for scale, zero_point in (first, second):
        parts += [zero_point, *quantize_multiplier(float(scale) / twice)]
    parts += [made[1], *quantize_multiplier(twice / ((1 << ADD_LEFT_SHIFT) * float(made[0])))]
    return np.array([*parts, *activation_range(activation, *made)], dtype=np.int64)


def mul_rule(first: Quantized, second: Quantized, made: Quantized, activation: str) -> NDArray[np.int64]:
    """Give what `mul_int8` needs, int64 [7]: zero of both inputs; zero, multiplier, shift of the output; low, high."""
    product = np.float32(first[0]) * np.float32(second[0]) / np.float32(made[0])
    factor = quantize_multiplier(float(product))
    return np.array([first[1], second[1], made[1], *factor, *activation_range(activation, *made)], dtype=np.int64)


def mean_rule(given: Quantized, made: Quantized, count: int) -> NDArray[np.int64]:
    """Give what `mean_int8` needs to average `count` entries, int64 [4].

    That is count * zero of the input; multiplier, shift and zero of the output. The runtime takes 1 / count into the
    multiplier by an integer division that keeps its leading bits.
    """
    multiplier, shift = quantize_multiplier(float(given[0]) / float(made[0]))
    bits = min(count.bit_length() - 1, 32, 31 + shift)
    return np.array([count * given[1], (multiplier << bits) // count, shift - bits, made[1]], dtype=np.int64)


def requantize_table(given: Quantized, made: Quantized, activation: str = "NONE") -> NDArray[np.int8]:
    """Give the table of a QUANTIZE from int8 to int8, or of a RELU or RELU6 that stands alone."""
    multiplier, shift = quantize_multiplier(float(given[0]) / float(made[0]))
    low, high = activation_range(activation, *made)
    return _table(lambda v: min(max(rescale(v - given[1], multiplier, shift) + made[1], low), high))


def logistic_table(given: Quantized) -> NDArray[np.int8]:
    """Give the table of LOGISTIC, whose output has scale 1/256 and zero point -128.

    The runtime works it out in float32; here only its exp is exact before it is rounded to float32.
    """
    scale, one = np.float32(given[0]), np.float32(1)

    def entry(v: int) -> int:
        real = scale * np.float32(v - given[1])
        grown = np.float32(min(_exp(-float(real)), 3.0e38))
        return min(math.floor(float(one / (one + grown) * np.float32(256)) + 0.5) + LOWEST, HIGHEST)

    return _table(entry)


def softmax_table(scale: float, beta: float) -> NDArray[np.int32]:
    """Give exp(-d * scale * beta) for d = 0 .. 255 with 31 fractional bits, for `softmax_int8`.

    Where the runtime leaves an exponential out because it is too small, it is 0. Raises ModelError for a scale so small
    (2^-26) that the runtime has no number for it.
    """
    real = min(float(np.float32(beta)) * float(np.float32(scale)) * (1 << (31 - EXP_INTEGER_BITS)), (1 << 31) - 1.0)
    if not real > 1:
        raise ModelError(f"a SOFTMAX of scale {scale} and beta {beta} cannot be computed in int8; export it again")
    multiplier, shift = _parts(real)
    furthest = ((1 << EXP_INTEGER_BITS) - 1) * (1 << (31 - EXP_INTEGER_BITS)) / 2.0**shift
    entries = [
        _exp_fixed(high_product(-d << shift, multiplier)) if d <= math.floor(furthest) else 0 for d in range(256)
    ]
    return np.array(entries, dtype=np.int32)


def high_product(a: int, b: int) -> int:
    """Give a * b / 2^31 rounded to the nearest, ties upwards (gemmlowp's SaturatingRoundingDoublingHighMul)."""
    return (a * b + (1 << 30)) >> 31


def rounding_shift(x: int, bits: int) -> int:
    """Give x / 2^bits rounded to the nearest, ties away from zero (gemmlowp's RoundingDivideByPOT)."""
    return (x + (1 << bits >> 1) - (1 if x < 0 and bits else 0)) >> bits


def rescale(x: int, multiplier: int, shift: int) -> int:
    """Give x * multiplier * 2^(shift - 31), rounded after the product and after the shift."""
    return rounding_shift(high_product(x << max(shift, 0), multiplier), max(-shift, 0))


def splitmix64(seed: int, number: int) -> int:
    """Give draw `number` of the stream `seed`, both below 2^64 (Steele, Lea, Flood: SplittableRandom, OOPSLA 2014)."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def tensor_key(seed: int, step: int, tensor: int) -> int:
    """Give the key (below 2^64) of the rounding of one tensor in one step.

    `seed` must already belong to one device and one round: devices that share a key make the same errors, and their
    average keeps them.
    """
    return splitmix64(splitmix64(seed, step), tensor)


def _parts(real: float) -> tuple[int, int]:
    mantissa, shift = math.frexp(real)
    multiplier = math.floor(mantissa * (1 << 31) + 0.5)
    return (multiplier, shift) if multiplier < 1 << 31 else (multiplier >> 1, shift + 1)


def _columns(factors: Iterable[float]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    pairs = np.array([quantize_multiplier(real) for real in factors], dtype=np.int32).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def _divided(real: float, scale: float) -> int:
    """Give real / scale (a float32 division) rounded to the nearest, ties away from zero."""
    steps = float(np.float32(real) / np.float32(scale))
    return int(math.copysign(math.floor(min(abs(steps), 1024.0) + 0.5), steps))


def _table(entry: Callable[[int], int]) -> NDArray[np.int8]:
    return np.array([entry(v) for v in range(LOWEST, HIGHEST + 1)], dtype=np.int8)


def _exp(x: float) -> float:
    """Give exp(x), correct to the last place of a float64, without libm."""
    with localcontext() as context:
        context.prec = 30
        return float(Decimal(min(max(x, -200.0), 200.0)).exp())


def _exp_fixed(x: int) -> int:
    """Give exp(x * 2^-26) for -32 * 2^26 < x <= 0 with 31 fractional bits, by gemmlowp's polynomial and factors."""
    if x == 0:
        return (1 << 31) - 1
    quarter = 1 << (31 - EXP_INTEGER_BITS - 2)
    inside = (x & (quarter - 1)) - quarter
    a = (inside << EXP_INTEGER_BITS) + (1 << 28)
    a2 = high_product(a, a)
    a3, a4 = high_product(a2, a), high_product(a2, a2)
    series = rounding_shift(high_product(rounding_shift(a4, 2) + a3, ONE_THIRD) + a2, 1)
    result = EXP_MINUS_EIGHTH + high_product(EXP_MINUS_EIGHTH, a + series)
    for k, factor in enumerate(EXP_FACTORS):
        if (inside - x) & (quarter << k):
            result = high_product(result, factor)
    return result
