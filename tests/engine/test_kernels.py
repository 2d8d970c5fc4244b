"""Every kernel against its slow twin, to the bit where the order of additions is promised."""

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.codec.largest import largest
from engine.kernels import loss, optimize, reduce, shuffle, sparsify
from tests import naive

fast = settings(deadline=None, max_examples=40)
floats = st.floats(-100, 100, width=32)
sizes = st.integers(1, 11)


def array(shape, elements=floats):
    return hnp.arrays(np.float32, shape, elements=elements)


def same_bits(one, other):
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    # adding zero makes one of the two zeros, whose sign no sum depends on
    return np.array_equal((one + 0).view(np.uint32), (other + 0).view(np.uint32))


def test_exp_is_within_its_stated_error_and_ends_where_float32_does():
    points = [*np.linspace(-87, 0, 4001), -87.0, -1e-300, -0.0, 0.0, -math.log(2) / 2, -math.log(2) * 1.5]
    errors = [abs(Decimal(loss.exp_negative(x)) / naive.exp_negative(x) - 1) for x in points]
    assert max(errors) < Decimal("2.5e-16")
    assert loss.exp_negative(0.0) == 1.0
    assert loss.exp_negative(-87.001) == 0.0
    assert loss.exp_negative(-1e308) == 0.0


def test_log_is_within_its_stated_error():
    points = [*np.linspace(1, 20, 2001), 1.0, 1.0 + 2**-52, math.sqrt(2), math.sqrt(2) + 1e-15, 1e6, 2.0]
    for x in points:
        want = naive.log_above_one(x)
        assert abs(Decimal(loss.log_above_one(x)) - want) <= Decimal("3e-16") * (1 + want)


@fast
@given(st.data(), sizes, sizes)
def test_softmax_and_its_gradient_equal_their_twins(data, batch, classes):
    logits = data.draw(array((batch, classes)))
    labels = data.draw(hnp.arrays(np.int32, batch, elements=st.integers(0, classes - 1)))
    p, dz = np.empty((batch, classes)), np.empty((batch, classes), np.float32)
    total = loss.softmax_forward(logits, labels, p)
    want_total, want_p = naive.softmax_forward(logits, labels)
    assert total == pytest.approx(want_total, rel=1e-13, abs=1e-13)
    np.testing.assert_allclose(p, want_p, rtol=1e-14, atol=1e-37)
    loss.softmax_backward(p, labels, dz)
    assert same_bits(dz, naive.softmax_backward(p, labels))
    answers = np.empty(batch, np.int32)
    loss.largest_logit(logits, answers)
    assert answers.tolist() == naive.largest_logit(logits)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_no_number_gives_a_loss_that_is_none(bad):
    logits = np.array([[0, bad, 1]], np.float32)
    assert math.isnan(loss.softmax_forward(logits, np.zeros(1, np.int32), np.empty((1, 3))))


@fast
@given(st.data(), st.integers(0, 40), st.floats(2.0**-10, 2.0**10))
def test_the_clip_equals_its_twin_to_the_bit_and_keeps_its_promise(data, size, clip_norm):
    vector = data.draw(array(size))
    want, want_norm = naive.clip_to_norm(vector, clip_norm)
    assert optimize.clip_to_norm(vector, clip_norm) == want_norm
    assert same_bits(vector, want)
    assert math.sqrt(optimize.squared_norm(vector)) <= clip_norm * (1 + 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_none_is_found_anywhere(bad):
    for place in range(5):
        vector = np.full(5, np.finfo(np.float32).max, np.float32)
        assert optimize.all_finite(vector)
        vector[place] = bad
        assert not optimize.all_finite(vector)
        assert not naive.all_finite(vector)


@fast
@given(st.integers(0, 2**64 - 1), st.integers(0, 50), st.integers(0, 60))
def test_the_shuffle_equals_its_twin(seed, first, count):
    assert shuffle.splitmix64(np.uint64(seed), np.uint64(first)) == naive.splitmix64(seed, first)
    order = np.arange(count)
    shuffle.shuffle(order, np.uint64(seed), np.uint64(first))
    assert order.tolist() == naive.shuffle(range(count), seed, first)


def test_the_generator_gives_its_published_numbers():
    draws = [int(shuffle.splitmix64(np.uint64(1234567), np.uint64(n))) for n in range(3)]
    assert draws == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def choose(vector, k):
    indices = np.empty(k, np.uint32)
    count = sparsify.choose_largest(vector.view(np.uint32), k, np.empty(2048, np.int64), indices)
    return indices[:count].tolist()


few = st.sampled_from([float(np.float32(x)) for x in (0.0, -0.0, 1, -1, 2, 1.0000001, -3e-45, 1e-38, 3e38)])


@fast
@given(st.data(), st.integers(0, 70), st.one_of(st.just(few), st.just(st.floats(width=32, allow_nan=False))))
def test_the_largest_are_chosen_exactly_and_ties_go_to_the_lowest_index(data, size, elements):
    vector = data.draw(array(size, elements))
    for k in {0, min(1, size), size // 2, size}:
        assert choose(vector, k) == naive.choose_largest(vector, k)


def choose_sampled(vector, k, room):
    indices, candidates = np.empty(k, np.uint32), np.empty((2, room), np.uint32)
    count = sparsify.choose_by_sample(vector.view(np.uint32), k, np.empty(2048, np.int64), *candidates, indices)
    return indices[:count].tolist() if count != sparsify.MISLED else sparsify.MISLED


@fast
@given(st.data(), st.integers(1, 200), st.one_of(st.just(few), st.just(st.floats(width=32, allow_nan=False))))
def test_a_sampled_choice_is_the_exact_one_or_says_that_it_was_misled(data, size, elements):
    vector = data.draw(array(size, elements))
    for k in sorted({1, size // 8 + 1, size}):
        # so short a vector is its own sample, which cannot mislead
        assert choose_sampled(vector, k, sparsify.SAMPLES + size) == naive.choose_by_sample(vector, k)


@pytest.mark.parametrize("k", [1, 50, 1000])
@pytest.mark.parametrize("kind", ["heavy", "steps", "few", "equal", "one corner", "none"])
def test_a_long_vector_is_sampled_and_the_choice_stays_exact(kind, k):
    size, chance = 20_011, np.random.default_rng(k)
    vector = chance.standard_t(3, size).astype(np.float32)
    if kind == "steps":
        vector = np.rint(vector) * np.repeat(chance.uniform(0, 1, 21).astype(np.float32), 1000)[:size]
    elif kind != "heavy":
        vector[{"few": 40, "one corner": 5000, "equal": size, "none": 0}[kind] :] = 0
        vector[:] = 1.0 if kind == "equal" else vector
    got = choose_sampled(vector, k, sparsify.SAMPLES + 2 * k + size // 8 + sparsify.BLOCK)
    if kind == "equal":
        assert got == sparsify.MISLED  # so many equals do not fit the room
    else:
        assert got == naive.choose_largest(vector, k)
    assert largest(vector, k).tolist() == naive.choose_largest(vector, k)


def test_a_sample_that_met_too_many_large_entries_is_seen_through():
    size, stretch = 16 * sparsify.SAMPLES, 16
    sampled = [stretch * j + (naive.splitmix64(0, j) >> 32) * stretch // 2**32 for j in range(sparsify.SAMPLES)]
    vector = np.ones(size, np.float32)
    vector[sampled[:70]] = 5.0  # every one of them is in the sample, so there seem to be 1,120
    assert choose_sampled(vector, 100, size) == sparsify.MISLED
    assert largest(vector, 100).tolist() == naive.choose_largest(vector, 100)


@fast
@given(st.data(), st.integers(1, 40))
def test_folding_in_and_taking_out_equal_their_twins_to_the_bit(data, size):
    delta, residual = data.draw(array(size)), data.draw(array(size))
    total, faded = np.empty(size, np.float32), residual.copy()
    sparsify.fold_in(delta, residual, total)
    assert same_bits(total, naive.fold_in(delta, residual))
    factor = data.draw(st.floats(0, 1))
    sparsify.decay_reals(faded, factor)
    assert same_bits(faded, naive.decay_reals(residual, factor))
    indices = np.array(naive.choose_largest(total, size // 2), np.uint32)
    values = np.empty(len(indices), np.float32)
    sparsify.pick(total, indices, values)
    assert values.tolist() == naive.pick(total, indices)
    sent, left = values * np.float32(0.75), total.copy()
    sparsify.take_out(left, indices, sent)
    assert same_bits(left, naive.take_out(total, indices.tolist(), sent))


@fast
@given(st.data(), st.integers(1, 30), st.integers(1, 4096))
def test_updates_are_added_like_their_twin(data, size, weight):
    chosen = sorted(data.draw(st.sets(st.integers(0, size - 1))))
    values = data.draw(array(len(chosen), st.floats(-64, 64, width=32)))
    total = data.draw(hnp.arrays(np.int64, size, elements=st.integers(-(2**61), 2**61)))
    want = naive.scatter_add(total, chosen, values, weight)
    assert reduce.within_limit(values)
    assert naive.within_limit(values)
    reduce.scatter_add(total, np.array(chosen, np.uint32), values, weight)
    assert total.tolist() == want


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.nextafter(np.float32(64), np.float32(65)), -65])
def test_a_value_out_of_bounds_is_seen_before_it_becomes_an_integer(bad):
    values = np.array([64, -64, bad], np.float32)
    assert not reduce.within_limit(values)
    assert not naive.within_limit(values)
    assert reduce.within_limit(values[:2])
