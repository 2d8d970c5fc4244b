"""Sums of updates: any order, any grouping, the same bytes; and nothing that could overflow."""

import dataclasses
import random

import numpy as np
import pytest

from engine import ring
from engine.codec.sparse import Sparse
from engine.ring import RingError, add, add_all, empty, mean_step, merge

SIZE = 40


def update(seed, largest=64.0):
    chance = np.random.default_rng(seed)
    indices = np.sort(chance.choice(SIZE, 12, replace=False)).astype(np.uint32)
    return Sparse(SIZE, indices, chance.uniform(-largest, largest, 12).astype(np.float32))


FLEET = [(update(seed), 1 + 97 * seed) for seed in range(12)]


def same(one, other):
    return (one.weight, one.members, one.total.tobytes()) == (other.weight, other.members, other.total.tobytes())


def test_the_order_of_devices_does_not_matter():
    want = add_all(empty(SIZE), FLEET)
    for seed in range(20):
        shuffled = random.Random(seed).sample(FLEET, len(FLEET))
        assert same(add_all(empty(SIZE), shuffled), want)
    assert want.members == 12
    assert want.weight == sum(weight for _, weight in FLEET)


def test_merging_is_associative_commutative_and_has_a_neutral_element():
    a, b, c = (add_all(empty(SIZE), FLEET[start : start + 4]) for start in (0, 4, 8))
    assert same(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert same(merge(a, b), merge(b, a))
    assert same(merge(a, empty(SIZE)), a)
    assert same(merge(merge(a, b), c), add_all(empty(SIZE), FLEET))


def test_adding_leaves_the_earlier_sum_alone():
    before = add(empty(SIZE), *FLEET[0])
    kept = before.total.copy()
    add(before, *FLEET[1])
    assert np.array_equal(before.total, kept)
    assert before.members == 1


def test_the_mean_step_is_the_weighted_mean_times_the_rate():
    step = mean_step(add_all(empty(SIZE), FLEET), 0.5)
    weights = sum(weight for _, weight in FLEET)
    want = np.zeros(SIZE)
    for sparse, weight in FLEET:
        want[sparse.indices] += 0.5 * weight / weights * sparse.values.astype(np.float64)
    assert step.dtype == np.float32
    np.testing.assert_allclose(step, want, rtol=1e-6, atol=1e-9)


def test_one_update_alone_is_its_own_mean_to_the_bit_whatever_its_weight():
    sparse = Sparse(3, np.array([0, 2], np.uint32), np.array([0.7, -63.1], np.float32))
    for weight in (1, 3, 4096):
        assert mean_step(add(empty(3), sparse, weight), 1.0).tolist() == [np.float32(0.7), 0, np.float32(-63.1)]


def test_the_heaviest_sum_allowed_is_exact_and_the_next_is_refused():
    heaviest = Sparse(1, np.array([0], np.uint32), np.array([-64], np.float32))
    count = ring.WEIGHT_TOTAL_MAX // ring.WEIGHT_MAX
    full = add_all(empty(1), [(heaviest, ring.WEIGHT_MAX)] * count)
    assert int(full.total[0]) == -(64 * 2**30) * 4096 * count
    assert mean_step(full, 1.0).tolist() == [-64]
    with pytest.raises(RingError, match="64 bits"):
        add(full, heaviest, 1)
    with pytest.raises(RingError, match="64 bits"):
        merge(full, add(empty(1), heaviest, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 64.00001, -1e30])
def test_a_value_out_of_bounds_is_refused(value):
    bad = Sparse(2, np.array([1], np.uint32), np.array([value], np.float32))
    with pytest.raises(RingError, match="not finite or larger than 64"):
        add(empty(2), bad, 1)


@pytest.mark.parametrize("weight", [0, -1, 4097])
def test_a_weight_out_of_bounds_is_refused(weight):
    with pytest.raises(RingError, match="must be 1 to 4096"):
        add(empty(SIZE), update(1), weight)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(RingError, match="does not belong"):
        add(empty(SIZE + 1), update(1), 1)
    with pytest.raises(RingError, match="Cannot join"):
        merge(empty(1), empty(2))
    with pytest.raises(RingError, match="beyond"):
        add(empty(SIZE), dataclasses.replace(update(1), indices=np.arange(SIZE - 11, SIZE + 1, dtype=np.uint32)), 1)


def test_there_is_no_mean_of_nothing_and_no_step_without_a_rate():
    with pytest.raises(RingError, match="no updates"):
        mean_step(empty(3), 1.0)
    with pytest.raises(RingError, match="not finite"):
        mean_step(add(empty(SIZE), update(1), 1), float("nan"))
