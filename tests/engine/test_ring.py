"""Sums of updates: any order, any grouping, the same bytes; and nothing that could overflow."""

import dataclasses
import random

import numpy as np
import pytest

from engine import ring
from engine.codec.update import Update
from engine.ring import Member, Purpose, RingError, add_all, mean_step, merge

SIZE = 40
FLOAT = "float32"


def update(seed, largest=64.0):
    chance = np.random.default_rng(seed)
    indices = np.sort(chance.choice(SIZE, 12, replace=False)).astype(np.uint32)
    return Update("float32", SIZE, indices, chance.uniform(-largest, largest, 12).astype(np.float32))


def empty(size, lane):
    return ring.empty(Purpose(size, lane))


def add(partial, update_, weight, device="cabin", round_id=1):
    return add_all(partial, [Member((device, round_id), update_, weight)])


FLEET = [Member((f"device-{seed}", 1), update(seed), 1 + 97 * seed) for seed in range(12)]


def same(one, other):
    mine, theirs = ((each.purpose, each.weight, each.members, each.total.tobytes()) for each in (one, other))
    return mine == theirs


def test_the_order_of_devices_does_not_matter():
    want = add_all(empty(SIZE, FLOAT), FLEET)
    for seed in range(20):
        shuffled = random.Random(seed).sample(FLEET, len(FLEET))
        assert same(add_all(empty(SIZE, FLOAT), shuffled), want)
    assert want.members == {member.key for member in FLEET}
    assert want.weight == sum(weight for _, _, weight in FLEET)


def test_merging_is_associative_commutative_and_has_a_neutral_element():
    a, b, c = (add_all(empty(SIZE, FLOAT), FLEET[start : start + 4]) for start in (0, 4, 8))
    assert same(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert same(merge(a, b), merge(b, a))
    assert same(merge(a, empty(SIZE, FLOAT)), a)
    assert same(merge(merge(a, b), c), add_all(empty(SIZE, FLOAT), FLEET))


def test_nobody_is_added_twice_neither_alone_nor_in_two_sums():
    held = add_all(empty(SIZE, FLOAT), FLEET[:3])
    with pytest.raises(RingError, match="device-1's update of round 1 is in the sum already"):
        add_all(held, FLEET[1:2])
    with pytest.raises(RingError, match="in the sum already"):
        add_all(empty(SIZE, FLOAT), [FLEET[0], FLEET[0]])
    with pytest.raises(RingError, match="device-2's update of round 1 is in both sums"):
        merge(held, add_all(empty(SIZE, FLOAT), FLEET[2:5]))
    late = add(held, update(1), 5, "device-1", 2)  # another round's is another update
    assert len(late.members) == 4


@pytest.mark.parametrize("field", ["round_id", "base_version", "scale_epoch"])
def test_a_sum_for_something_else_is_foreign(field):
    purpose = Purpose(SIZE, FLOAT, 7, 6, 1)
    mine = add_all(ring.empty(purpose), FLEET[:1])
    theirs = add_all(ring.empty(purpose._replace(**{field: 9})), FLEET[1:2])
    with pytest.raises(RingError, match="different purposes"):
        merge(mine, theirs)


def test_adding_leaves_the_earlier_sum_alone():
    before = add_all(empty(SIZE, FLOAT), FLEET[:1])
    kept = before.total.copy()
    add_all(before, FLEET[1:2])
    assert np.array_equal(before.total, kept)
    assert before.members == {("device-0", 1)}


def test_the_mean_step_is_the_weighted_mean_times_the_rate():
    step = mean_step(add_all(empty(SIZE, FLOAT), FLEET), 0.5)
    weights = sum(weight for _, _, weight in FLEET)
    want = np.zeros(SIZE)
    for _, sparse, weight in FLEET:
        want[sparse.indices] += 0.5 * weight / weights * sparse.values.astype(np.float64)
    assert step.dtype == np.float64
    np.testing.assert_allclose(step, want, rtol=1e-6, atol=1e-9)


def test_one_update_alone_is_its_own_mean_to_the_bit_whatever_its_weight():
    sparse = Update("float32", 3, np.array([0, 2], np.uint32), np.array([0.7, -63.1], np.float32))
    for weight in (1, 3, 4096):
        step = mean_step(add(empty(3, FLOAT), sparse, weight), 1.0)
        assert step.astype(np.float32).tolist() == [np.float32(0.7), 0, np.float32(-63.1)]


def test_the_heaviest_sum_allowed_is_exact_and_the_next_is_refused():
    heaviest = Update("float32", 1, np.array([0], np.uint32), np.array([-64], np.float32))
    count = ring.WEIGHT_TOTAL_MAX // ring.WEIGHT_MAX
    full = add_all(empty(1, FLOAT), (Member(("cabin", at), heaviest, ring.WEIGHT_MAX) for at in range(count)))
    assert int(full.total[0]) == -(64 * 2**30) * 4096 * count
    assert mean_step(full, 1.0).tolist() == [-64]
    with pytest.raises(RingError, match="64 bits"):
        add(full, heaviest, 1, "dune")
    with pytest.raises(RingError, match="64 bits"):
        merge(full, add(empty(1, FLOAT), heaviest, 1, "elm"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 64.00001, -1e30])
def test_a_value_out_of_bounds_is_refused(value):
    bad = Update("float32", 2, np.array([1], np.uint32), np.array([value], np.float32))
    with pytest.raises(RingError, match="not finite or larger than 64"):
        add(empty(2, FLOAT), bad, 1)


@pytest.mark.parametrize("weight", [0, -1, 4097])
def test_a_weight_out_of_bounds_is_refused(weight):
    with pytest.raises(RingError, match="must be 1 to 4096"):
        add(empty(SIZE, FLOAT), update(1), weight)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(RingError, match="does not belong"):
        add(empty(SIZE + 1, FLOAT), update(1), 1)
    with pytest.raises(RingError, match="Cannot join"):
        merge(empty(1, FLOAT), empty(2, FLOAT))
    beyond = dataclasses.replace(update(1), indices=np.arange(SIZE - 11, SIZE + 1, dtype=np.uint32))
    with pytest.raises(RingError, match="beyond"):
        add(empty(SIZE, FLOAT), beyond, 1)


def test_there_is_no_mean_of_nothing_and_no_step_without_a_rate():
    with pytest.raises(RingError, match="no updates"):
        mean_step(empty(3, FLOAT), 1.0)
    with pytest.raises(RingError, match="not finite"):
        mean_step(add(empty(SIZE, FLOAT), update(1), 1), float("nan"))


# The integer lane: whole units, added as they are.


def steps(seed, largest=254):
    chance = np.random.default_rng(seed)
    indices = np.sort(chance.choice(SIZE, 12, replace=False)).astype(np.uint32)
    return Update(
        "int8", SIZE, indices, (chance.integers(1, largest + 1, 12) * chance.choice([-1, 1], 12)).astype(np.int32)
    )


STEPPERS = [Member((f"device-{seed}", 1), steps(seed), 1 + 97 * seed) for seed in range(12)]


def test_whole_steps_add_up_in_any_order_and_grouping():
    want = np.zeros(SIZE, np.int64)
    for _, update_, weight in STEPPERS:
        want[update_.indices] += weight * update_.values.astype(np.int64)
    whole = add_all(empty(SIZE, "int8"), STEPPERS)
    assert np.array_equal(whole.total, want)
    a, b, c = (add_all(empty(SIZE, "int8"), STEPPERS[start : start + 4]) for start in (8, 0, 4))
    assert same(merge(merge(a, b), c), whole)
    assert same(merge(a, merge(c, b)), whole)


def test_one_update_of_steps_is_its_own_mean_exactly():
    one = steps(3)
    for weight in (1, 3, 4096):
        step = mean_step(add(empty(SIZE, "int8"), one, weight), 1.0)
        assert np.array_equal(step[one.indices], one.values.astype(np.float64))
        assert np.count_nonzero(step) == 12


def test_steps_and_real_numbers_never_meet_in_a_sum():
    with pytest.raises(RingError, match="in lane int8 does not belong in a sum in lane float32"):
        add(empty(SIZE, FLOAT), steps(1), 1)
    with pytest.raises(RingError, match="in lane float32 does not belong in a sum in lane int8"):
        add(empty(SIZE, "int8"), update(1), 1)
    with pytest.raises(RingError, match="different purposes"):
        merge(empty(SIZE, FLOAT), empty(SIZE, "int8"))


@pytest.mark.parametrize("unit", [0, 255, -255, -32768])
def test_a_unit_out_of_bounds_is_refused(unit):
    bad = Update("int8", 2, np.array([1], np.uint32), np.array([unit], np.int32))
    with pytest.raises(RingError, match="0 or larger than 254"):
        add(empty(2, "int8"), bad, 1)
