"""The int8 rules: multipliers, ranges and tables against exact fractions and the runtime; keys against known draws."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import int8
from engine.models.graph import ModelError
from tests import naive_pointwise as naive
from tests.engine.tiny_tflite import Array, one, reference

many = settings(deadline=None, max_examples=200)
some = settings(deadline=None, max_examples=25)
ALL = np.arange(-128, 128, dtype=np.int8).reshape(1, 256)
scales = st.floats(2**-9, 4, width=32)
zeros = st.integers(-128, 127)
quantized = st.tuples(scales, zeros)


@many
@given(st.floats(2.0**-31, 2.0**29))
def test_a_multiplier_is_the_factor_to_31_bits(real):
    multiplier, shift = int8.quantize_multiplier(real)
    assert 1 << 30 <= multiplier < 1 << 31
    error = abs(Fraction(multiplier) * Fraction(2) ** (shift - 31) - Fraction(real))
    assert error <= Fraction(real) / 2**31


def test_multipliers_at_the_ends():
    assert int8.quantize_multiplier(0.0) == (0, 0)
    assert int8.quantize_multiplier(2.0**-33) == (0, 0)
    assert int8.quantize_multiplier(2.0**-32) == (1 << 30, -31)
    assert int8.quantize_multiplier(1.0) == (1 << 30, 1)
    # a mantissa that rounds up to 1 starts anew as a half
    assert int8.quantize_multiplier(math.nextafter(1.0, 0.0)) == (1 << 30, 1)
    for broken in (math.nan, math.inf, -1e-9, 2.0**30):
        with pytest.raises(ModelError, match="export it again"):
            int8.quantize_multiplier(broken)


@many
@given(st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(0, 31))
def test_rounding_is_that_of_the_c_source(x, multiplier, bits):
    assert int8.high_product(x, multiplier) == naive.doubling_high_mul(x, multiplier)
    assert int8.rounding_shift(x, bits) == naive.divide_by_power(x, bits)


def test_columns_of_multipliers():
    multiplier, shift = int8.conv_multipliers(0.5, np.array([0.25, 2.0**-60], np.float32), 0.125)
    assert (multiplier.tolist(), shift.tolist()) == ([1 << 30, 0], [1, 0])
    assert multiplier.dtype == shift.dtype == np.int32


def test_a_dense_layer_rounds_the_product_of_its_scales_first():
    first, second, made = np.float32(0.1), np.float32(0.3), np.float32(0.07)
    exact = int8.conv_multipliers(first, [second], made)
    rounded = int8.dense_multipliers(first, np.array([second]), made, 2)
    assert rounded[0].tolist() == [int8.quantize_multiplier(float(first * second) / float(made))[0]] * 2
    assert exact[0][0] != rounded[0][0]
    rows = int8.dense_multipliers(first, np.array([second, first]), made, 2)
    assert rows[0].tolist() == int8.conv_multipliers(first, [second, first], made)[0].tolist()


@some
@given(scales, zeros, st.sampled_from(["NONE", "RELU", "RELU6", "RELU_N1_TO_1"]))
def test_activation_ranges_are_the_runtime_s(scale, zero_point, activation):
    low, high = int8.activation_range(activation, scale, zero_point)
    entry = Array((1, 256, 1, 1), "int8", scale, zero_point)
    options = {"padding": 1, "stride_width": 1, "stride_height": 1, "filter_width": 1, "filter_height": 1}
    got = reference(one("MAX_POOL_2D", [entry], entry, activation, **options), ALL.reshape(1, 256, 1, 1))
    assert (got.min(), got.max()) == (low, high)


def test_an_activation_that_cannot_be_computed_is_refused():
    with pytest.raises(ModelError, match="TANH"):
        int8.activation_range("TANH", 0.1, 0)


@some
@given(quantized, quantized)
def test_the_requantize_table_is_the_runtime_s(entering, made):
    data = one("QUANTIZE", [Array((1, 256), "int8", *entering)], Array((1, 256), "int8", *made))
    assert np.array_equal(int8.requantize_table(entering, made), reference(data, ALL)[0])


@pytest.mark.parametrize("exponent", [-40, -33, -31, 18])
def test_the_requantize_table_at_extreme_ratios(exponent):
    entering, made = (2.0**exponent, 3), (1.0, -5)
    data = one("QUANTIZE", [Array((1, 256), "int8", *entering)], Array((1, 256), "int8", *made))
    assert np.array_equal(int8.requantize_table(entering, made), reference(data, ALL)[0])


def test_a_mean_takes_its_count_into_the_multiplier_and_cuts_it_off():
    third = (1 << 31) // 3
    assert int8.mean_rule((1.0, 5), (1.0, -7), 3).tolist() == [15, third, 0, -7]
    # a shift never goes below -31, at the price of bits of the multiplier
    assert int8.mean_rule((2.0**-30, 0), (1.0, 0), 4096).tolist() == [0, 1 << 20, -31, 0]


def test_a_relu_that_stands_alone_is_a_table():
    table = int8.requantize_table((0.1, 0), (0.1, -128), "RELU6")
    assert table[:129].tolist() == [-128] * 129
    assert table[128 + 50] == -128 + 50
    assert table.max() == -128 + 60


@some
@given(quantized)
def test_the_logistic_table_is_the_runtime_s(entering):
    data = one("LOGISTIC", [Array((1, 256), "int8", *entering)], Array((1, 256), "int8", 1 / 256, -128))
    assert np.array_equal(int8.logistic_table(entering), reference(data, ALL)[0])


def test_a_softmax_whose_scale_has_no_number_is_refused():
    with pytest.raises(ModelError, match="SOFTMAX"):
        int8.softmax_table(1e-9, 1.0)


def test_the_softmax_table_is_close_to_the_exponential():
    table = int8.softmax_table(0.05, 1.0)
    real = np.exp(-0.05 * np.arange(256))
    assert np.abs(table / 2.0**31 - real).max() < 1e-6
    assert int8.softmax_table(1.0, 1.0)[32:].tolist() == [0] * 224


def test_the_draws_are_those_of_splitmix64():
    # the published sequence of the generator for the seed 1234567
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [int8.splitmix64(1234567, number) for number in range(4)] == known


def test_keys_do_not_change():
    assert int8.tensor_key(1, 2, 3) == 1072907043932612987
    assert int8.tensor_key((1 << 64) - 1, 10**6, 10**4) < 1 << 64


def test_keys_differ_wherever_a_number_differs():
    keys = {int8.tensor_key(seed, step, tensor) for seed in range(9) for step in range(9) for tensor in range(9)}
    assert len(keys) == 729
