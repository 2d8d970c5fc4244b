"""Pools and means: every kernel against its twin, int8 ones against the runtime, backward ones against differences."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine import int8
from engine.kernels import pool
from tests import naive_pool as naive
from tests.engine.gradients import close, slope
from tests.engine.tiny_tflite import SAME, VALID, Array, one, reference

F = np.float32
fast = settings(deadline=None, max_examples=40)
activations = st.sampled_from(["NONE", "RELU", "RELU6"])
quantized = st.tuples(st.floats(2**-7, 2, width=32), st.integers(-128, 127))
whole = st.integers(-9, 9).map(F)
reals = st.floats(-20, 20, width=32)


@st.composite
def pooled(draw):
    """Give (shape of x, shape of y, geometry, the operator's options) of a pool with SAME or VALID padding."""
    n, c = draw(st.integers(1, 2)), draw(st.integers(1, 18))
    size = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    window = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = draw(st.sampled_from([SAME, VALID]))
    assume(padding == SAME or all(w <= s for w, s in zip(window, size, strict=True)))
    out, before = [], []
    for length, taps, step in zip(size, window, stride, strict=True):
        out.append(-(-length // step) if padding == SAME else (length - taps) // step + 1)
        before.append(max((out[-1] - 1) * step + taps - length, 0) // 2 if padding == SAME else 0)
    options = {
        "padding": padding, "stride_height": stride[0], "stride_width": stride[1],
        "filter_height": window[0], "filter_width": window[1],
    }  # fmt: skip
    return (n, *size, c), (n, *out, c), np.array([*window, *stride, *before, 1, 1]), options


def whole_image(shape):
    return np.array([shape[1], shape[2], 1, 1, 0, 0, 1, 1])


@fast
@given(st.data(), pooled(), quantized, activations)
def test_int8_pools_equal_their_twins_and_the_runtime(data, case, made, activation):
    shape, out, geometry, options = case
    x, y = data.draw(hnp.arrays(np.int8, shape)), np.zeros(out, np.int8)
    low, high = int8.activation_range(activation, *made)
    tensors = [Array(shape, "int8", *made)], Array(out, "int8", *made)
    pool.average_pool_int8(x, low, high, geometry, np.full(out[3], 99, np.int32), y)
    assert np.array_equal(y, naive.average_pool_int8(x, low, high, geometry, out))
    assert np.array_equal(y, reference(one("AVERAGE_POOL_2D", *tensors, activation, **options), x))
    pool.max_pool_int8(x, low, high, geometry, y)
    assert np.array_equal(y, naive.max_pool_int8(x, low, high, geometry, out))
    assert np.array_equal(y, reference(one("MAX_POOL_2D", *tensors, activation, **options), x))


@fast
@given(st.data(), pooled(), activations)
def test_float_pools_equal_their_twins_and_the_runtime(data, case, activation):
    shape, out, geometry, options = case
    x, y = data.draw(hnp.arrays(F, shape, elements=reals)), np.zeros(out, F)
    low, high = int8.activation_range_float(activation)
    tensors = [Array(shape, "float32")], Array(out, "float32")
    pool.average_pool_float(x, low, high, geometry, y)
    assert np.array_equal(y, naive.average_pool_float(x, low, high, geometry, out))
    assert np.array_equal(y, reference(one("AVERAGE_POOL_2D", *tensors, activation, **options), x))
    pool.max_pool_float(x, low, high, geometry, y)
    assert np.array_equal(y, naive.max_pool_float(x, low, high, geometry, out))
    assert np.array_equal(y, reference(one("MAX_POOL_2D", *tensors, activation, **options), x))


@fast
@given(
    st.data(), st.tuples(*[st.integers(1, 9)] * 2), st.integers(1, 18), st.tuples(quantized, quantized), st.booleans()
)
def test_an_int8_mean_equals_its_twin_and_the_runtime(data, size, channels, scales, keep):
    shape, (entering, made) = (2, *size, channels), scales
    x, y = data.draw(hnp.arrays(np.int8, shape)), np.zeros((2, 1, 1, channels), np.int8)
    rule = int8.mean_rule(entering, made, size[0] * size[1])
    pool.mean_int8(x, rule, np.full(channels, 99, np.int32), y)
    assert np.array_equal(y, naive.mean_int8(x, rule))
    tensors = [Array(shape, "int8", *entering), Array((2,), "int32", data=np.array([1, 2]))]
    out = Array(y.shape if keep else (2, channels), "int8", *made)
    theirs = reference(one("MEAN", tensors, out, keep_dimensions=keep), x)
    assert np.array_equal(y.ravel(), theirs.ravel())


def test_a_large_mean_does_not_overflow():
    x, y = np.full((1, 96, 96, 1), 127, np.int8), np.zeros((1, 1, 1, 1), np.int8)
    quantized_as = (2.0, -128), (4.0, -128)
    pool.mean_int8(x, int8.mean_rule(*quantized_as, 96 * 96), np.zeros(1, np.int32), y)
    tensors = [Array(x.shape, "int8", *quantized_as[0]), Array((2,), "int32", data=np.array([1, 2]))]
    theirs = reference(one("MEAN", tensors, Array(y.shape, "int8", *quantized_as[1]), keep_dimensions=True), x)
    assert y[0, 0, 0, 0] == theirs.ravel()[0] == 0


def test_a_float_mean_is_an_average_over_one_window_as_in_the_runtime():
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(F)
    y = np.zeros((2, 1, 1, 3), F)
    pool.average_pool_float(x, -np.inf, np.inf, whole_image(x.shape), y)
    tensors = [Array(x.shape, "float32"), Array((2,), "int32", data=np.array([1, 2]))]
    theirs = reference(one("MEAN", tensors, Array(y.shape, "float32"), keep_dimensions=True), x)
    assert np.allclose(y, theirs, rtol=1e-6)


@fast
@given(st.data(), pooled())
def test_the_gradient_of_an_average_equals_its_twin(data, case):
    shape, out, geometry, _ = case
    dy, begun = data.draw(hnp.arrays(F, out, elements=reals)), data.draw(hnp.arrays(F, shape, elements=reals))
    dx = begun.copy()
    pool.average_pool_back(dy, geometry, True, dx)
    assert np.array_equal(dx, naive.average_pool_back(dy, geometry, begun))
    dx = begun.copy()
    pool.average_pool_back(dy, geometry, False, dx)
    assert np.array_equal(dx, naive.average_pool_back(dy, geometry, np.zeros_like(begun)))


@fast
@given(st.data(), pooled())
def test_the_gradient_of_a_maximum_goes_to_the_first_of_equals(data, case):
    shape, out, geometry, _ = case
    # few different values, so that most windows hold several of the largest
    x8 = data.draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([-128, 0, 1])))
    dy, begun = data.draw(hnp.arrays(F, out, elements=whole)), data.draw(hnp.arrays(F, shape, elements=whole))
    y8, y, x = np.zeros(out, np.int8), np.zeros(out, F), x8.astype(F)
    pool.max_pool_int8(x8, -128, 127, geometry, y8)
    pool.max_pool_float(x, -np.inf, np.inf, geometry, y)
    seeking = np.full(out[3], 7, np.uint8)
    for kernel, twin, values in (
        (pool.max_pool_back_int8, naive.max_pool_back_int8, (x8, y8)),
        (pool.max_pool_back_float, naive.max_pool_back_float, (x, y)),
    ):
        dx = begun.copy()
        kernel(*values, dy, geometry, True, seeking, dx)
        assert np.array_equal(dx, twin(*values, dy, geometry, begun))
        kernel(*values, dy, geometry, False, seeking, dx)
        assert np.array_equal(dx, twin(*values, dy, geometry, np.zeros_like(begun)))
        assert dx.sum() == dy.sum()


def test_a_maximum_that_was_clamped_has_no_gradient():
    x, y = np.full((1, 2, 2, 1), -5, np.int8), np.zeros((1, 1, 1, 1), np.int8)
    pool.max_pool_int8(x, 0, 127, whole_image(x.shape), y)
    dx = np.zeros(x.shape, F)
    pool.max_pool_back_int8(x, y, np.ones((1, 1, 1, 1), F), whole_image(x.shape), False, np.zeros(1, np.uint8), dx)
    assert not dx.any()


@pytest.mark.parametrize("geometry", [(3, 2, 2, 1, 1, 0, 1, 1), (5, 4, 1, 1, 0, 0, 1, 1), (2, 3, 1, 3, 0, 1, 1, 1)])
def test_gradients_are_those_of_central_differences(geometry):
    geometry, rng = np.array(geometry), np.random.default_rng(4)
    x = rng.permutation(2 * 5 * 4 * 3).reshape(2, 5, 4, 3).astype(F)  # all different: a maximum has a slope
    out = (
        2,
        (5 + 2 * geometry[4] - geometry[0]) // geometry[2] + 1,
        (4 + geometry[5] - geometry[1]) // geometry[3] + 1,
        3,
    )
    dy, dx = rng.normal(size=out).astype(F), np.zeros_like(x)

    def average(v):
        return np.array(
            [np.mean([v[e] for e in window], axis=0) for _, window in naive.windows(geometry, x.shape, out)]
        ).reshape(out)

    def largest(v):
        return np.array(
            [np.max([v[e] for e in window], axis=0) for _, window in naive.windows(geometry, x.shape, out)]
        ).reshape(out)

    pool.average_pool_back(dy, geometry, False, dx)
    assert close(dx, slope(average, x, dy, step=1e-3))
    y = largest(x).astype(F)
    pool.max_pool_back_float(x, y, dy, geometry, False, np.zeros(3, np.uint8), dx)
    assert close(dx, slope(largest, x, dy, step=1e-3))
