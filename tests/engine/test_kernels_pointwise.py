"""Entry by entry: every kernel against its twin, int8 ones against the runtime, backward ones against differences."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine import int8
from engine.kernels import activation as act
from engine.kernels import layout as lay
from engine.kernels import pointwise as pw
from tests import naive_pointwise as naive
from tests.engine.gradients import close, slope
from tests.engine.tiny_tflite import Array, one, reference

F = np.float32
fast = settings(deadline=None, max_examples=40)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 19))
quantized = st.tuples(st.floats(2**-7, 2, width=32), st.integers(-128, 127))
activations = st.sampled_from(["NONE", "RELU", "RELU6", "RELU_N1_TO_1"])
reals = st.floats(-20, 20, width=32)


def stored(shape):
    return hnp.arrays(np.int8, shape)


def real(shape, elements=reals):
    return hnp.arrays(F, shape, elements=elements)


@st.composite
def narrowed(draw, shape):
    """A shape that broadcasts to `shape`: any dimension may be 1."""
    return tuple(1 if draw(st.booleans()) else size for size in shape)


@fast
@given(st.data(), shapes, st.tuples(quantized, quantized, quantized), activations, st.sampled_from(["ADD", "MUL"]))
def test_int8_add_and_mul_equal_their_twins_and_the_runtime(data, shape, scales, activation, kind):
    first, second, made = scales
    small = data.draw(narrowed(shape))
    a, b = data.draw(stored(shape)), data.draw(stored(small))
    y = np.zeros(shape, np.int8)
    if kind == "ADD":
        rule = int8.add_rule(first, second, made, activation)
        pw.add_int8(a, b, rule, y)
        want = naive.add_int8(a, b, rule)
    else:
        rule = int8.mul_rule(first, second, made, activation)
        pw.mul_int8(a, b, rule, y)
        want = naive.mul_int8(a, b, rule)
    assert np.array_equal(y, want)
    tensors = [Array(shape, "int8", *first), Array(small, "int8", *second)]
    theirs = reference(one(kind, tensors, Array(shape, "int8", *made), activation), a, b)
    assert np.array_equal(y, theirs)


@pytest.mark.parametrize(
    ("first", "second", "made"),
    [
        ((1.0, 0), (1.0, 0), (2.0, 0)),  # half of all results lie between two stored values
        ((3.9e-4, -128), (2.0, 127), (1e-3, 5)),
        ((0.1, 127), (0.1, -128), (7.0, -128)),
    ],
)
def test_int8_add_equals_the_runtime_for_every_pair(first, second, made):
    a, b = (np.ascontiguousarray(grid, np.int8) for grid in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)))
    shape = (1, 256, 256, 1)
    y = np.zeros((1, 1, 1, 65536), np.int8)
    pw.add_int8(a.reshape(y.shape), b.reshape(y.shape), int8.add_rule(first, second, made, "NONE"), y)
    tensors = [Array(shape, "int8", *first), Array(shape, "int8", *second)]
    theirs = reference(one("ADD", tensors, Array(shape, "int8", *made)), a.reshape(shape), b.reshape(shape))
    assert np.array_equal(y.ravel(), theirs.ravel())
    pw.mul_int8(a.reshape(y.shape), b.reshape(y.shape), int8.mul_rule(first, second, made, "NONE"), y)
    theirs = reference(one("MUL", tensors, Array(shape, "int8", *made)), a.reshape(shape), b.reshape(shape))
    assert np.array_equal(y.ravel(), theirs.ravel())


factors = st.tuples(st.integers(0, (1 << 31) - 1) | st.integers(0, 9).map(lambda n: n << 10), st.integers(-31, 0))


@fast
@given(stored((1, 1, 1, 64)), stored((1, 1, 1, 64)), st.tuples(factors, factors), st.integers(-20, 1))
def test_the_fixed_point_is_that_of_the_c_source_for_any_multiplier(a, b, inputs, shift):
    y = np.zeros(a.shape, np.int8)
    first, second = inputs
    rule = np.array([1, *first, -2, *second, 3, 1 << 30, shift, -128, 127])
    pw.add_int8(a, b, rule, y)
    assert np.array_equal(y, naive.add_int8(a, b, rule))
    rule = np.array([1, -2, 3, first[0], min(shift, 0), -128, 127])
    pw.mul_int8(a, b, rule, y)
    assert np.array_equal(y, naive.mul_int8(a, b, rule))


def test_a_tie_in_the_first_rounding_of_an_add_goes_up():
    a = np.arange(-128, 128, dtype=np.int8).reshape(1, 1, 1, 256)
    y = np.zeros_like(a)
    halved = [0, 1 << 10, 0]  # a * 2^20 * 2^10 / 2^31
    pw.add_int8(a, np.zeros_like(a), np.array([*halved, 0, 0, 0, 0, 1 << 30, 1, -128, 127]), y)
    assert y.ravel().tolist() == [(v + 1) // 2 for v in range(-128, 128)]


@fast
@given(st.data(), shapes, activations, st.sampled_from(["ADD", "MUL"]))
def test_float_add_and_mul_equal_their_twins_and_the_runtime(data, shape, activation, kind):
    small = data.draw(narrowed(shape))
    a, b, y = data.draw(real(shape)), data.draw(real(small)), np.zeros(shape, F)
    low, high = int8.activation_range_float(activation)
    kernel, twin = {"ADD": (pw.add_float, naive.add_float), "MUL": (pw.mul_float, naive.mul_float)}[kind]
    kernel(a, b, low, high, y)
    assert np.array_equal(y, twin(a, b, low, high))
    tensors = [Array(shape, "float32"), Array(small, "float32")]
    assert np.array_equal(y, reference(one(kind, tensors, Array(shape, "float32"), activation), a, b))


def test_a_clamp_does_not_hide_a_nan():
    y = np.zeros((1, 1, 1, 1), F)
    broken, plain = np.full_like(y, np.nan), np.ones_like(y)
    for kernel in (pw.add_float, pw.mul_float):
        kernel(broken, plain, 0.0, 6.0, y)
        assert math.isnan(y[0, 0, 0, 0])
    lay.clamp_float(broken, 0.0, 6.0, y)
    assert math.isnan(y[0, 0, 0, 0])


@fast
@given(st.data(), shapes, stored(256))
def test_a_table_is_looked_up(data, shape, table):
    x, y = data.draw(stored(shape)), np.zeros(shape, np.int8)
    pw.lookup_int8(x, table, y)
    assert np.array_equal(y, naive.lookup_int8(x, table))


@fast
@given(st.data(), shapes)
def test_a_gradient_is_handed_on_and_summed_over_what_was_broadcast(data, shape):
    dy, begun = data.draw(real(shape)), data.draw(real(shape))
    dx = begun.copy()
    pw.pass_back(dy, True, dx)
    assert np.array_equal(dx, begun + dy)
    pw.pass_back(dy, False, dx)
    assert np.array_equal(dx, naive.pass_back(dy))

    small = data.draw(narrowed(shape))
    begun = data.draw(real(small, st.integers(-9, 9).map(F)))
    dx = begun.copy()
    pw.sum_back(dy, False, dx)
    assert np.array_equal(dx, naive.sum_back(dy, small))
    whole = np.rint(dy)  # sums of whole numbers do not depend on where they begin
    dx = begun.copy()
    pw.sum_back(whole, True, dx)
    assert np.array_equal(dx, begun + naive.sum_back(whole, small))


@fast
@given(st.data(), shapes, quantized)
def test_the_gradient_of_a_product_equals_its_twin(data, shape, other_scale):
    small, other_shape = data.draw(narrowed(shape)), data.draw(narrowed(shape))
    dy, other8, other = data.draw(real(shape)), data.draw(stored(other_shape)), data.draw(real(other_shape))
    scale, zero = other_scale
    dx = np.full(small, 7, F)
    pw.mul_back_float(dy, other, False, dx)
    assert np.array_equal(dx, naive.mul_back_float(dy, other, small))
    pw.mul_back_int8(dy, other8, zero, scale, False, dx)
    want = naive.mul_back_int8(dy, other8, zero, scale, small)
    assert np.array_equal(dx, want)
    before = dx.copy()
    pw.mul_back_int8(np.zeros_like(dy), other8, zero, scale, True, dx)
    assert np.array_equal(dx, before)


def test_gradients_of_sums_and_products_are_those_of_central_differences():
    rng = np.random.default_rng(0)
    shape, small = (2, 3, 2, 5), (2, 1, 1, 5)
    a, b, dy = rng.normal(size=shape).astype(F), rng.normal(size=small).astype(F), rng.normal(size=shape).astype(F)
    db = np.zeros(small, F)
    pw.sum_back(dy, False, db)
    assert close(db, slope(lambda v: a + v, b, dy))
    pw.mul_back_float(dy, a, False, db)
    assert close(db, slope(lambda v: a * v, b, dy))
    da = np.zeros(shape, F)
    pw.mul_back_float(dy, b, False, da)
    assert close(da, slope(lambda v: v * b, a, dy))


@fast
@given(st.data(), shapes, st.integers(-128, 127), st.integers(-128, 127))
def test_gates_equal_their_twins(data, shape, low, high):
    y, y_float = data.draw(stored(shape)), data.draw(real(shape, st.sampled_from([0.0, 1.0, 3.0, 6.0, 7.0, -1.0])))
    g = data.draw(real(shape))
    gated = g.copy()
    pw.gate_int8(y, low, high, gated)
    assert np.array_equal(gated, naive.gate_int8(y, low, high, g))
    for bounds in ((0.0, math.inf), (0.0, 6.0)):
        gated = g.copy()
        pw.gate_float(y_float, *bounds, gated)
        assert np.array_equal(gated, naive.gate_float(y_float, *bounds, g))


@fast
@given(st.data(), st.integers(1, 3), st.integers(1, 40), st.integers(-128, 127), st.integers(-128, 127))
def test_a_gate_of_bits_is_the_gate_itself(data, batch, size, low, high):
    y, g = data.draw(stored((batch, 1, 1, size))), data.draw(real((batch, 1, 1, size)))
    bits = np.full((batch, -(-size // 8)), 255, np.uint8)
    pw.pack_bits_int8(y, low, high, bits)
    assert np.array_equal(bits, naive.pack_bits_int8(y, low, high))
    gated = g.copy()
    pw.gate_bits(bits, gated)
    assert np.array_equal(gated, naive.gate_bits(bits, g))
    assert np.array_equal(gated, naive.gate_int8(y, low, high, g))


def test_a_gate_lets_nothing_through_on_the_ends_and_stops_a_nan_there():
    y = np.array([-128, -127, 126, 127], np.int8).reshape(1, 1, 1, 4)
    g = np.array([np.nan, 1, 2, np.nan], F).reshape(1, 1, 1, 4)
    pw.gate_int8(y, -128, 127, g)
    assert g.ravel().tolist() == [0, 1, 2, 0]


def test_the_gate_of_a_clamp_is_its_slope():
    rng = np.random.default_rng(1)
    x, g = rng.uniform(-3, 9, (1, 3, 3, 7)).astype(F), rng.normal(size=(1, 3, 3, 7)).astype(F)
    want = slope(lambda v: np.clip(v, 0, 6), x, g)
    y = np.zeros_like(x)
    lay.clamp_float(x, 0.0, 6.0, y)
    assert np.array_equal(y, naive.clamp_float(x, 0.0, 6.0))
    pw.gate_float(y, 0.0, 6.0, g)
    assert close(g, want)


halves = st.integers(-600, 600).map(lambda n: F(n / 2))  # ties, and both ends
anything = st.floats(width=32) | halves


@fast
@given(st.data(), shapes, quantized)
def test_real_numbers_are_stored_as_the_runtime_does(data, shape, made):
    scale, zero = made
    x, y = data.draw(real(shape, halves | reals)), np.zeros(shape, np.int8)
    lay.quantize_float(x, scale, zero, y)
    assert np.array_equal(y, naive.quantize_float(x, scale, zero))
    assert np.array_equal(y, reference(one("QUANTIZE", [Array(shape, "float32")], Array(shape, "int8", *made)), x))
    back = np.zeros(shape, F)
    lay.dequantize_int8(y, zero, scale, back)
    assert np.array_equal(back, naive.dequantize_int8(y, zero, scale))
    theirs = reference(one("DEQUANTIZE", [Array(shape, "int8", *made)], Array(shape, "float32")), y)
    assert np.array_equal(back, theirs)


def test_what_is_no_number_is_stored_as_zero_and_what_is_infinite_as_an_end():
    x, y = np.array([np.nan, np.inf, -np.inf, 3e38], F).reshape(1, 1, 1, 4), np.zeros((1, 1, 1, 4), np.int8)
    lay.quantize_float(x, 1.0, 5, y)
    assert y.ravel().tolist() == [5, 127, -128, 127]


@fast
@given(hnp.arrays(F, (1, 1, 1, 16), elements=anything), st.integers(-128, 127))
def test_whatever_the_real_number_its_stored_one_is_defined(x, zero):
    y = np.zeros(x.shape, np.int8)
    lay.quantize_float(x, 1.0, zero, y)
    assert np.array_equal(y, naive.quantize_float(x, 1.0, zero))


@fast
@given(st.data(), shapes, st.integers(1, 9), st.booleans())
def test_parts_are_placed_as_the_runtime_does_and_their_gradients_come_back(data, shape, more, first_is_small):
    sizes = (more, shape[3]) if first_is_small else (shape[3], more)
    parts = [data.draw(stored((*shape[:3], size))) for size in sizes]
    whole = np.zeros((*shape[:3], sum(sizes)), np.int8)
    lay.place_int8(parts[0], 0, whole)
    lay.place_int8(parts[1], sizes[0], whole)
    want = naive.place_int8(parts[1], sizes[0], naive.place_int8(parts[0], 0, np.zeros_like(whole)))
    assert np.array_equal(whole, want)
    tensors = [Array(part.shape, "int8", 0.5, 3) for part in parts]
    theirs = reference(one("CONCATENATION", tensors, Array(whole.shape, "int8", 0.5, 3), axis=3), *parts)
    assert np.array_equal(whole, theirs)
    as_float = np.zeros(whole.shape, F)
    for part, first in zip(parts, (0, sizes[0]), strict=True):
        lay.place_float(part.astype(F), first, as_float)
    assert np.array_equal(as_float, whole.astype(F))
    dy = data.draw(real(whole.shape))
    dx = np.zeros(parts[1].shape, F)
    lay.crop_back(dy, 0, 0, sizes[0], False, dx)
    assert np.array_equal(dx, dy[..., sizes[0] :])


@fast
@given(st.data(), shapes, st.tuples(*[st.integers(0, 3)] * 6), st.integers(-128, 127))
def test_padding_is_the_runtime_s_and_cropping_undoes_it(data, shape, pads, zero):
    top, bottom, left, right, front, behind = pads
    x = data.draw(stored(shape))
    around = [(0, 0), (top, bottom), (left, right), (front, behind)]
    padded = tuple(size + before + after for size, (before, after) in zip(shape, around, strict=True))
    y = np.zeros(padded, np.int8)
    lay.pad_int8(x, top, left, front, zero, y)
    assert np.array_equal(y, naive.pad_int8(x, top, left, front, zero, padded))
    assert np.array_equal(y, np.pad(x, around, constant_values=zero))
    tensors = [Array(shape, "int8", 0.5, zero), Array((4, 2), "int32", data=np.array(around))]
    assert np.array_equal(y, reference(one("PAD", tensors, Array(padded, "int8", 0.5, zero)), x))
    y_float = np.full(padded, np.nan, F)
    lay.pad_float(x.astype(F), top, left, front, zero, y_float)
    assert np.array_equal(y_float, naive.pad_float(x.astype(F), top, left, front, zero, padded))

    dy, begun = data.draw(real(padded)), data.draw(real(shape))
    want = naive.crop_back(dy, top, left, front, shape)
    dx = begun.copy()
    lay.crop_back(dy, top, left, front, False, dx)
    assert np.array_equal(dx, want)
    dx = begun.copy()
    lay.crop_back(dy, top, left, front, True, dx)
    assert np.array_equal(dx, begun + want)


def test_the_gradient_of_padding_is_that_of_central_differences():
    rng = np.random.default_rng(2)
    x, dy = rng.normal(size=(2, 2, 3, 2)).astype(F), rng.normal(size=(2, 5, 4, 4)).astype(F)
    dx = np.zeros_like(x)
    lay.crop_back(dy, 2, 1, 1, False, dx)
    assert close(dx, slope(lambda v: np.pad(v, [(0, 0), (2, 1), (1, 0), (1, 1)]), x, dy))


@fast
@given(st.data(), st.integers(1, 4), st.integers(1, 40), st.floats(2**-10, 16, width=32), st.sampled_from([0.5, 1.0]))
def test_int8_softmax_equals_its_twin_and_the_runtime(data, rows, classes, scale, beta):
    x = data.draw(stored((rows, 1, 1, classes)))
    table, y = int8.softmax_table(scale, beta), np.zeros(x.shape, np.int8)
    act.softmax_int8(x, table, y)
    assert np.array_equal(y, naive.softmax_int8(x, table))
    flat = (rows, classes)
    data_ = one("SOFTMAX", [Array(flat, "int8", scale, 3)], Array(flat, "int8", 1 / 256, -128), beta=beta)
    assert np.array_equal(y.reshape(flat), reference(data_, x.reshape(flat)))


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.7])
def test_int8_softmax_equals_the_runtime_for_every_difference(scale):
    grid = np.stack([np.full(256, 127), np.arange(-128, 128), np.full(256, 3)], axis=1).astype(np.int8)
    x, y = grid.reshape(256, 1, 1, 3), np.zeros((256, 1, 1, 3), np.int8)
    act.softmax_int8(x, int8.softmax_table(scale, 1.0), y)
    data = one("SOFTMAX", [Array((256, 3), "int8", scale, 0)], Array((256, 3), "int8", 1 / 256, -128), beta=1.0)
    assert np.array_equal(y.reshape(256, 3), reference(data, grid))


@fast
@given(st.data(), shapes, st.sampled_from([0.5, 1.0]))
def test_float_softmax_and_logistic_are_within_a_float_s_last_place(data, shape, beta):
    x, y = data.draw(real(shape)), np.zeros(shape, F)
    act.softmax_float(x, beta, y)
    assert np.allclose(y, naive.softmax_float(x, beta), rtol=2e-7, atol=1e-37)
    act.logistic_float(x, y)
    assert np.allclose(y, naive.logistic_float(x), rtol=2e-7, atol=0)


def test_float_softmax_and_logistic_at_the_ends():
    x, y = np.array([[[[3e38, -3e38, 0, np.nan]]]], F), np.zeros((1, 1, 1, 4), F)
    act.logistic_float(x, y)
    assert y.ravel()[:3].tolist() == [1.0, 0.0, 0.5]
    assert math.isnan(y[0, 0, 0, 3])
    act.softmax_float(x, 1.0, y)
    assert np.isnan(y).all()


@fast
@given(st.data(), shapes)
def test_the_gradient_of_a_logistic_equals_its_twin(data, shape):
    y8, y, dy = data.draw(stored(shape)), data.draw(real(shape, st.floats(0, 1, width=32))), data.draw(real(shape))
    dx, begun = np.zeros(shape, F), data.draw(real(shape))
    act.logistic_back_float(y, dy, False, dx)
    assert np.array_equal(dx, naive.logistic_back_float(y, dy))
    act.logistic_back_int8(y8, dy, False, dx)
    want = naive.logistic_back_int8(y8, dy)
    assert np.array_equal(dx, want)
    for kernel, given_y, given_want in (
        (act.logistic_back_int8, y8, want),
        (act.logistic_back_float, y, naive.logistic_back_float(y, dy)),
    ):
        dx = begun.copy()
        kernel(given_y, dy, True, dx)
        assert np.array_equal(dx, begun + given_want)


def test_the_gradient_of_a_logistic_is_that_of_central_differences():
    rng = np.random.default_rng(3)
    x, dy = rng.normal(size=(1, 2, 3, 4)).astype(F), rng.normal(size=(1, 2, 3, 4)).astype(F)
    y, dx = np.zeros_like(x), np.zeros_like(x)
    act.logistic_float(x, y)
    act.logistic_back_float(y, dy, False, dx)
    assert close(dx, slope(lambda v: 1 / (1 + np.exp(-v)), x, dy))


@pytest.mark.parametrize(("kernel", "dtype"), [("take_int8", np.int8), ("take_float", np.float32)])
def test_taking_channels_equals_its_twin(kernel, dtype):
    x = np.random.default_rng(0).integers(-128, 128, (2, 3, 4, 7)).astype(dtype)
    channels = np.array([5, 0, 6], np.int64)
    y = np.zeros((2, 3, 4, 3), dtype)
    getattr(lay, kernel)(x, channels, y)
    assert np.array_equal(y, getattr(naive, kernel)(x, channels))
