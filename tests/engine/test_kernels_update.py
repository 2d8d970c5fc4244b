"""The step: kernels against their twins, the chance in it against its own laws, and the mean squared error."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine import int8
from engine.kernels import loss, update
from tests import naive_loss, naive_update
from tests.engine.gradients import close, slope

F = np.float32
fast = settings(deadline=None, max_examples=40)
keys = st.integers(0, (1 << 64) - 1)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 7))
odd = st.sampled_from([0.0, 1.0, -2.0, math.nan, math.inf, 2.0**-100])
slopes = st.floats(-3, 3, width=32) | st.floats(-1e6, 1e6, width=32) | odd
stored = st.integers(-128, 127) | st.sampled_from([-128, -127, 126, 127])


@st.composite
def chosen(draw, count):
    """Some channels of `count`, ascending."""
    return np.array(sorted(draw(st.sets(st.integers(0, count - 1)))), np.int64)


@fast
@given(st.data(), sizes, keys, st.integers(0, 5))
def test_the_int8_update_equals_its_twin(data, shape, key, padding):
    outputs, height, width, inputs = shape
    weights = data.draw(hnp.arrays(np.int8, shape, elements=stored))
    channels = data.draw(chosen(inputs))
    dw = data.draw(hnp.arrays(F, (height * width * len(channels), outputs + padding), elements=slopes))
    step = data.draw(hnp.arrays(F, outputs, elements=st.floats(0, 2, width=32)))
    want, tally_want, whole = naive_update.update_int8(weights, channels, dw, step, key)
    tally = np.array([100, 200])
    update.update_int8(weights, channels, dw, step, np.uint64(key), tally)
    assert np.array_equal(weights, want)
    assert (tally - [100, 200]).tolist() == tally_want
    assert np.array_equal(np.clip(dw[:, :outputs], -512, 512), np.clip(whole[:, :outputs], -512, 512))


@fast
@given(st.data(), sizes, keys, st.integers(0, 5))
def test_the_depthwise_int8_update_equals_its_twin(data, shape, key, padding):
    _, height, width, inputs = shape
    weights = data.draw(hnp.arrays(np.int8, (1, height, width, inputs), elements=stored))
    channels = data.draw(chosen(inputs))
    dw = data.draw(hnp.arrays(F, (height * width, len(channels) + padding), elements=slopes))
    step = data.draw(hnp.arrays(F, inputs, elements=st.floats(0, 2, width=32)))
    want, tally_want, _ = naive_update.update_depthwise_int8(weights, channels, dw, step, key)
    tally = np.zeros(2, np.int64)
    update.update_depthwise_int8(weights, channels, dw, step, np.uint64(key), tally)
    assert np.array_equal(weights, want)
    assert tally.tolist() == tally_want


@fast
@given(st.data(), st.integers(1, 20), keys)
def test_the_bias_update_equals_its_twin(data, outputs, key):
    bias = data.draw(hnp.arrays(np.int32, outputs, elements=st.integers(-(1 << 31), (1 << 31) - 1)))
    db = data.draw(hnp.arrays(F, outputs, elements=slopes))
    step = data.draw(hnp.arrays(F, outputs, elements=st.floats(0, 1000, width=32)))
    want, tally_want, _ = naive_update.update_bias(bias, db, step, key)
    tally = np.zeros(2, np.int64)
    update.update_bias(bias, db, step, np.uint64(key), tally)
    assert np.array_equal(bias, want)
    assert tally.tolist() == tally_want


@fast
@given(st.data(), sizes, st.floats(0, 2, width=32), st.integers(0, 5))
def test_the_float_updates_equal_their_twins(data, shape, rate, padding):
    outputs, height, width, inputs = shape
    channels = data.draw(chosen(inputs))
    elements = st.floats(-3, 3, width=32)
    weights, deep = (data.draw(hnp.arrays(F, form, elements=elements)) for form in (shape, (1, height, width, inputs)))
    dw = data.draw(hnp.arrays(F, (height * width * len(channels), outputs + padding), elements=slopes))
    want, tally_want = naive_update.update_float(weights, channels, dw, rate)
    tally = np.zeros(2, np.int64)
    update.update_float(weights, channels, dw, rate, tally)
    assert np.array_equal(weights, want)
    assert tally.tolist() == tally_want

    narrow = np.ascontiguousarray(np.resize(dw, (height * width, len(channels) + padding))).astype(F)
    want, tally_want = naive_update.update_depthwise_float(deep, channels, narrow, rate)
    tally = np.zeros(2, np.int64)
    update.update_depthwise_float(deep, channels, narrow, rate, tally)
    assert np.array_equal(deep, want)
    assert tally.tolist() == tally_want

    bias, db = (data.draw(hnp.arrays(F, outputs, elements=each)) for each in (elements, slopes))
    want, tally_want = naive_update.update_bias_float(bias, db, rate)
    tally = np.zeros(2, np.int64)
    update.update_bias_float(bias, db, rate, tally)
    assert np.array_equal(bias, want)
    assert tally.tolist() == tally_want


@fast
@given(st.data(), st.integers(1, 5), st.integers(1, 9), st.floats(0, 1, width=32))
def test_momentum_equals_its_twin_and_outlives_an_update(data, rows, columns, momentum):
    elements = st.floats(-3, 3, width=32)
    velocity, grad = (data.draw(hnp.arrays(F, (rows, columns), elements=elements)) for _ in range(2))
    want = naive_update.momentum_step(velocity, grad, momentum)
    update.momentum_step(velocity, grad, momentum)
    assert np.array_equal(velocity, want)
    assert np.array_equal(grad, want)
    update.update_int8(
        np.zeros((columns, 1, 1, rows), np.int8),
        np.arange(rows),
        grad,
        np.ones(columns, F),
        np.uint64(1),
        np.zeros(2, int),
    )
    assert np.array_equal(velocity, want)


def moved_by(wish, count, key):
    """The steps that `count` int8 weights at 0 take when all have the same wish."""
    weights = np.zeros((1, 1, 1, count), np.int8)
    update.update_int8(
        weights, np.arange(count), np.full((count, 1), -wish, F), np.ones(1, F), np.uint64(key), np.zeros(2, int)
    )
    return weights.ravel().astype(int)


@pytest.mark.parametrize("wish", [0.3, -0.3, 0.001, -0.001, 2.5, -7.75, 0.999])
def test_weights_move_by_their_wish_on_the_average(wish):
    count = 400_000
    steps = moved_by(wish, count, key=int8.tensor_key(5, 0, 0))
    assert set(steps.tolist()) <= {math.floor(wish), math.floor(wish) + 1}
    fraction = wish - math.floor(wish)
    error = math.sqrt(fraction * (1 - fraction) / count)
    assert abs(steps.mean() - wish) < 5 * error
    # neighbours do not go together
    rises = (steps > math.floor(wish)) - fraction
    assert abs((rises[1:] * rises[:-1]).mean()) < 5 * fraction * (1 - fraction) / math.sqrt(count)


def test_whole_wishes_are_no_matter_of_chance():
    for wish in (0.0, 1.0, -3.0, 127.0):
        assert set(moved_by(wish, 1000, key=9).tolist()) == {int(wish)}


def key_of(bits):
    """The key whose draw 0 has these upper 24 bits: splitmix64 backwards."""

    def unshifted(z, by):
        undone = z
        for _ in range(64 // by):
            undone = z ^ (undone >> by)
        return undone

    z = unshifted(bits << 40, 31) * pow(0x94D049BB133111EB, -1, 1 << 64) % (1 << 64)
    z = unshifted(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) % (1 << 64)
    return (unshifted(z, 30) - 0x9E3779B97F4A7C15) % (1 << 64)


def test_a_draw_that_equals_the_fraction_does_not_round_up():
    assert int8.splitmix64(key_of(12345), 0) >> 40 == 12345
    assert moved_by(3.0, 1, key_of(0)).tolist() == [3]
    assert moved_by(0.5, 1, key_of(1 << 23)).tolist() == [0]
    assert moved_by(0.5, 1, key_of((1 << 23) - 1)).tolist() == [1]
    assert moved_by(-0.25, 1, key_of(3 << 22)).tolist() == [-1]


def test_another_key_is_another_chance_and_the_same_key_the_same():
    first, again, other = (moved_by(0.5, 10_000, key) for key in (1, 1, 2))
    assert np.array_equal(first, again)
    assert 0.45 < (first == other).mean() < 0.55


def test_a_weight_s_chance_does_not_depend_on_what_else_trains():
    rng = np.random.default_rng(0)
    dw = rng.normal(size=(2 * 2 * 6, 5)).astype(F)
    step, key = np.full(5, 0.7, F), np.uint64(77)
    every = np.zeros((5, 2, 2, 6), np.int8)
    update.update_int8(every, np.arange(6), dw.copy(), step, key, np.zeros(2, int))
    some, channels = np.zeros((5, 2, 2, 6), np.int8), np.array([1, 4])
    fewer = np.ascontiguousarray(dw.reshape(4, 6, 5)[:, channels].reshape(8, 5))
    update.update_int8(some, channels, fewer, step, key, np.zeros(2, int))
    assert np.array_equal(some[..., channels], every[..., channels])
    assert not some[..., [0, 2, 3, 5]].any()


def numbers(seed, low, high, shape):
    """Whole numbers low .. high - 1 from the generator whose draws the tests of `int8` pin."""
    drawn = [low + int8.splitmix64(seed, n) % (high - low) for n in range(math.prod(shape))]
    return np.array(drawn).reshape(shape)


def test_the_bits_of_a_step_do_not_change():
    weights = numbers(1, -127, 128, (9, 3, 2, 11)).astype(np.int8)
    dw = numbers(2, -(1 << 20), 1 << 20, (3 * 2 * 11, 16)).astype(F)
    step, tally = (0.5 ** numbers(3, 18, 21, (9,))).astype(F), np.zeros(2, np.int64)
    db = dw[1, :9] + F(0.25)
    update.update_int8(weights, np.arange(11), dw, step, np.uint64(int8.tensor_key(1, 2, 3)), tally)
    deep = weights[:1].copy()
    update.update_depthwise_int8(
        deep, np.arange(11), numbers(4, -99, 99, (6, 11)).astype(F), np.full(11, 0.03, F), np.uint64(5), tally
    )
    bias = np.zeros(9, np.int32)
    update.update_bias(bias, db, np.full(9, 3.5, F), np.uint64(int8.tensor_key(1, 2, 4)), tally)
    parts = (weights, dw, deep, bias.astype("<i4"), tally.astype("<i8"))
    digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    assert digest[:16] == "8321f8facab8e708"


def test_what_saturates_and_what_is_no_number_is_counted_and_harms_nothing():
    weights = np.array([[126, -126, 5, 6, 127, -128]], np.int8).reshape(1, 1, 1, 6)
    dw = np.array([[-9], [1e30], [np.nan], [np.inf], [0], [0]], F)
    tally = np.zeros(2, np.int64)
    update.update_int8(weights, np.arange(6), dw, np.ones(1, F), np.uint64(0), tally)
    assert weights.ravel().tolist() == [127, -127, 5, 6, 127, -128]
    assert tally.tolist() == [2, 2]

    bias, db = np.array([(1 << 30) - 1, -(1 << 31), 3, 3], np.int32), np.array([-2, 1e9, np.nan, 1e38], F)
    update.update_bias(bias, db, np.array([1, 0, 1, 1e9], F), np.uint64(0), tally)
    assert bias.tolist() == [1 << 30, -(1 << 31), 3, 3]
    assert tally.tolist() == [3, 4]


def test_to_arrive_at_the_end_of_the_range_is_not_to_want_beyond_it():
    weights, tally = np.array([126, -126], np.int8).reshape(1, 1, 1, 2), np.zeros(2, np.int64)
    update.update_int8(weights, np.arange(2), np.array([[-1], [1]], F), np.ones(1, F), np.uint64(0), tally)
    bias = np.array([(1 << 30) - 1], np.int32)
    update.update_bias(bias, np.array([-1], F), np.ones(1, F), np.uint64(0), tally)
    assert (weights.ravel().tolist(), bias.tolist(), tally.tolist()) == ([127, -127], [1 << 30], [0, 0])


def test_a_dead_channel_stays():
    weights = np.arange(6, dtype=np.int8).reshape(2, 1, 1, 3)
    update.update_int8(
        weights, np.arange(3), np.full((3, 2), 50, F), np.array([0, 1], F), np.uint64(3), np.zeros(2, int)
    )
    assert weights.ravel().tolist() == [0, 1, 2, -47, -46, -45]


@fast
@given(st.data(), st.integers(1, 5), st.integers(1, 9))
def test_the_mean_squared_error_equals_its_twin(data, batch, features):
    elements = st.floats(-50, 50, width=32)
    outputs, targets = (data.draw(hnp.arrays(F, (batch, features), elements=elements)) for _ in range(2))
    assert loss.mse_forward(outputs, targets) == pytest.approx(naive_loss.mse_forward(outputs, targets), rel=1e-12)
    grad = np.zeros_like(outputs)
    loss.mse_backward(outputs, targets, grad)
    assert np.array_equal(grad, naive_loss.mse_backward(outputs, targets))


def test_the_gradient_of_the_mean_squared_error_is_that_of_central_differences():
    rng = np.random.default_rng(6)
    outputs, targets = rng.normal(size=(4, 7)).astype(F), rng.normal(size=(4, 7)).astype(F)
    grad = np.zeros_like(outputs)
    loss.mse_backward(outputs, targets, grad)
    assert close(
        grad, slope(lambda v: ((v - targets) ** 2).mean(axis=1, keepdims=True), outputs, np.full((4, 1), 0.25))
    )


def test_the_mean_squared_error_of_what_is_no_number_is_none():
    targets = np.zeros((2, 2), F)
    for broken in (np.nan, np.inf):
        outputs = targets.copy()
        outputs[1, 1] = broken
        assert math.isnan(loss.mse_forward(outputs, targets))


@fast
@given(st.data(), st.integers(1, 9), st.integers(1, 20), st.integers(0, 5), st.floats(1e-3, 1e3))
def test_the_bound_on_a_step_equals_its_twin(data, rows, outputs, padding, limit):
    dw = data.draw(hnp.arrays(F, (rows, outputs + padding), elements=slopes))
    step = data.draw(hnp.arrays(F, outputs, elements=st.floats(0, 2, width=32)))
    want, largest = naive_update.limit_steps(dw, step, limit)
    assert update.limit_steps(dw, step, limit) == largest
    assert np.array_equal(dw, want, equal_nan=True)
    assert not (np.abs(dw[:, :outputs] * step) > limit * (1 + 1e-5)).any()
