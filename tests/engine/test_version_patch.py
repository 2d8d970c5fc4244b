"""Patches: exact, additive, small, and harmless whatever their bytes are."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import master
from engine.codec import patch, payload
from engine.codec.header import CodecError
from engine.codec.update import Update
from engine.frame import frame_of
from engine.models.scheme import dump_params, load_params, params_of
from tests.engine.graph_tflite import write
from tests.engine.sketch import residual_net
from tests.engine.test_master import frame

MODEL = (Path(__file__).parents[2] / "firmware_sim/models/digits.tflite").read_bytes()
INTEGERS, FLOATS = frame(50, 6, unit=256), frame(50, 6, lane="float32")
FRAMES = {"int8": INTEGERS, "float32": FLOATS}
both_lanes = pytest.mark.parametrize("lane", FRAMES)
fast = settings(deadline=None, max_examples=60)


def history(lane, seed, rounds=6, publish_max=9):
    """The published parameters of version 1 and of those that some rounds made of it."""
    chance = np.random.default_rng(seed)
    one = FRAMES[lane]
    size = one.suffix.num_params
    if lane == "int8":
        numbers = master.first(one, chance.integers(-127, 128, size).astype(np.int32))
        spread = 40.0
    else:
        numbers = master.first(one, chance.normal(size=size).astype(np.float32))
        spread = 0.7  # some change their sign
    versions = [numbers.published]
    for _ in range(rounds):
        step = chance.normal(size=size) * spread
        numbers, _ = master.advance(one, numbers, step, publish_max=publish_max)
        versions.append(numbers.published)
    return versions


def made(units, lane="int8", size=56):
    at = np.array(sorted(units), np.uint32)
    update = Update("int8", size, at, np.array([units[i] for i in at.tolist()], np.int32))
    return payload.encode(update, FRAMES[lane].shapes, value_bits=0, coding="context").payload


@both_lanes
@fast
@given(seed=st.integers(0, 2**32), cut=st.integers(0, 6))
def test_patches_add_up_to_the_patch_of_the_sum_in_any_grouping(lane, seed, cut):
    one, versions = FRAMES[lane], history(lane, seed)
    steps = [patch.make(one, before, after) for before, after in itertools.pairwise(versions)]
    for before, step, after in zip(versions, steps, versions[1:], strict=False):
        assert patch.apply(one, before, step) == after
    whole = patch.make(one, versions[0], versions[-1])
    assert patch.merge(one, steps) == whole
    assert patch.merge(one, [patch.merge(one, steps[:cut]), patch.merge(one, steps[cut:])]) == whole
    assert patch.apply(one, versions[0], whole) == versions[-1]
    assert patch.apply(one, versions[-1], patch.make(one, versions[-1], versions[0])) == versions[0]


@both_lanes
def test_where_nothing_changed_the_patch_is_a_few_bytes_that_change_nothing(lane):
    one, (only,) = FRAMES[lane], history(lane, 1, rounds=0)
    nothing = patch.make(one, only, only)
    assert 0 < len(nothing) < 8
    assert nothing == patch.merge(one, [])
    assert patch.apply(one, only, nothing) == only


@both_lanes
def test_a_patch_is_about_as_long_as_an_update_of_as_many_values(lane):
    one, versions = FRAMES[lane], history(lane, 2, rounds=1)
    assert len(patch.make(one, *versions)) < len(versions[0]) / (2 if lane == "int8" else 4)


@pytest.mark.parametrize(("before", "after"), [(1.0, -1.0), (0.0, -0.0), (1e-39, -3e38), (-2.0, 2.0078125), (0.0, 5.0)])
def test_a_float_may_become_any_other_short_one(before, after):
    one = frame(3, 0, lane="float32")
    old, new = (dump_params(one.suffix, np.array([7, x, -7], np.float32)) for x in (short(before), short(after)))
    there, back = patch.make(one, old, new), patch.make(one, new, old)
    assert patch.apply(one, old, there) == new
    assert patch.apply(one, new, back) == old
    assert patch.merge(one, [there, back]) == patch.merge(one, [])
    assert patch.merge(one, [there, back, there]) == there


def short(value):
    bits = np.array([value], np.float32).view(np.uint32) & 0xFFFF0000
    return bits.view(np.float32)[0]


def test_versions_that_no_published_ones_can_be_have_no_patch_between_them():
    old = dump_params(INTEGERS.suffix, np.zeros(56, np.int32))
    new = dump_params(INTEGERS.suffix, np.repeat(np.array([1, 100], np.int32), [50, 6]))  # of 256 stored steps a unit
    with pytest.raises(CodecError, match="a part of a unit"):
        patch.make(INTEGERS, old, new)
    floats = [dump_params(FLOATS.suffix, np.full(56, x, np.float32)) for x in (0.5, 0.1)]
    with pytest.raises(CodecError, match="the lower half of a float"):
        patch.make(FLOATS, *floats)
    far = frame(1, 1, unit=1)
    ends = [dump_params(far.suffix, np.array([0, end], np.int32)) for end in (-(2**31) + 1, 2**31 - 1)]
    with pytest.raises(CodecError, match="more units than a patch holds"):
        patch.make(far, *ends)


@both_lanes
def test_what_is_of_another_model_is_refused(lane):
    one, other = FRAMES[lane], FRAMES["float32" if lane == "int8" else "int8"]
    versions = history(lane, 3, rounds=1)
    step = patch.make(one, *versions)
    for call in (
        lambda: patch.make(one, versions[0], versions[1][:-1]),
        lambda: patch.apply(one, versions[0][1:], step),
        lambda: patch.apply(other, versions[0], step),
    ):
        with pytest.raises(CodecError, match="do not belong to this patch's model"):
            call()
    smaller = frame(49, 6, lane=lane)
    with pytest.raises(CodecError, match="56 parameters, but this model trains 55"):
        patch.merge(smaller, [step])


@pytest.mark.parametrize("units", [{0: 1}, {0: -255}, {55: 2**31 - 1}, {55: -(2**31 - 1)}, {3: 200, 55: 1}])
def test_what_would_leave_the_range_of_its_integers_is_refused_and_nothing_wraps(units):
    published = dump_params(INTEGERS.suffix, np.repeat(np.array([127, 2**31 - 300], np.int32), [50, 6]))
    with pytest.raises(CodecError, match=r"beyond 127|beyond \+-127"):
        patch.apply(INTEGERS, published, made(units))
    fine = load_params(INTEGERS.suffix, patch.apply(INTEGERS, published, made({0: -254, 55: -1})))
    assert (fine[0], fine[55]) == (-127, 2**31 - 300 - 256)


def test_floats_that_become_infinite_or_nan_are_refused():
    published = dump_params(FLOATS.suffix, np.full(56, 1.0, np.float32))  # 0x3f80
    for grown in (0x7F80 - 0x3F80, 0x7FC0 - 0x3F80, -0x4000):  # infinity, no number, and beyond zero: -infinity
        with pytest.raises(CodecError, match="not finite"):
            patch.apply(FLOATS, published, made({5: grown}, "float32"))
    with pytest.raises(CodecError, match="larger than 32768"):
        patch.apply(FLOATS, published, made({5: 40_000}, "float32"))


def test_a_weight_of_minus_128_that_a_patch_does_not_touch_is_no_fault_of_the_patch():
    published = dump_params(INTEGERS.suffix, np.repeat(np.array([-128, 0], np.int32), [50, 6]))
    assert load_params(INTEGERS.suffix, patch.apply(INTEGERS, published, made({1: 1})))[:3].tolist() == [
        -128,
        -127,
        -128,
    ]


@both_lanes
def test_no_bytes_do_more_than_be_refused(lane):
    one, versions = FRAMES[lane], history(lane, 5, rounds=1)
    step, chance = patch.make(one, *versions), np.random.default_rng(7)
    outcomes = {"refused": 0, "applied": 0}
    for number in range(3000):
        hostile = bytearray(step)
        for _ in range(chance.integers(1, 4)):
            hostile[chance.integers(len(hostile))] = chance.integers(256)
        if number % 3 == 0:
            hostile = hostile[: chance.integers(len(hostile) + 1)]
        try:
            after = patch.apply(one, versions[0], bytes(hostile))
        except CodecError:
            outcomes["refused"] += 1
            continue
        outcomes["applied"] += 1
        params = load_params(one.suffix, after)
        assert np.isfinite(params).all()
        assert lane == "float32" or (np.abs(params.astype(np.int64)) <= one.limit).all()
        assert hashlib.sha256(after).digest() == hashlib.sha256(versions[1]).digest() or bytes(hostile) != step
    assert outcomes["refused"] > 1000
    assert outcomes["applied"] > 10  # a patch is not what is believed: the digest of its result is


@pytest.mark.parametrize("model", ["digits", "float"])
def test_a_version_of_a_real_model_is_what_the_patch_makes_of_the_one_before(model):
    one = frame_of(MODEL if model == "digits" else write(residual_net("float32")), "last-2")
    chance, size = np.random.default_rng(1), one.suffix.num_params
    first = numbers = master.first(one, params_of(one.graph, one.suffix))
    steps = []
    for _ in range(5):
        step = chance.normal(size=size) * (2.0 if one.lane == "int8" else 0.1)
        after, _ = master.advance(one, numbers, step, publish_max=size // 25)
        steps.append(patch.make(one, numbers.published, after.published))
        numbers = after
    assert patch.apply(one, first.published, patch.merge(one, steps)) == numbers.published
