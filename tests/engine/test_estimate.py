"""The estimate of a device's delta: both sides hold the same bits, it comes nearer and nearer, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.codec import estimate, payload
from engine.codec.estimate import Estimate
from engine.codec.header import CodecError
from engine.codec.residual import Sending
from engine.codec.update import Update
from tests.engine.test_master import frame

SIZE = 40
FLOATS, INTEGERS = frame(SIZE, 0, lane="float32"), frame(SIZE - 4, 4, unit=32)
FRAMES = {"float32": FLOATS, "int8": INTEGERS}
both_lanes = pytest.mark.parametrize("lane", FRAMES)
fast = settings(deadline=None, max_examples=40)


def sending(lane, k=6, **changes):
    return Sending(k, 4 if lane == "float32" else 0, "context", clip_norm=1e6)._replace(**changes)


def read(lane, content):
    """(what it builds on, the update), as the coordinator reads a payload."""
    follows, proper = estimate.split(content)
    return follows, payload.decode(proper, FRAMES[lane].shapes, lane=lane, k_max=SIZE, coding="context")


@st.composite
def lives(draw):
    """A lane, and the deltas of a few rounds."""
    lane = draw(st.sampled_from(sorted(FRAMES)))
    if lane == "float32":
        element = st.floats(-200, 200, width=32)
        return lane, draw(st.lists(hnp.arrays(np.float32, SIZE, elements=element), min_size=1, max_size=6))
    element = st.integers(-254, 254) | st.integers(-20_000, 20_000)
    return lane, draw(st.lists(hnp.arrays(np.int64, SIZE, elements=element), min_size=1, max_size=6))


@fast
@given(lives(), st.sampled_from([0, 60]))
def test_device_and_coordinator_hold_the_same_bits(life, bytes_max):
    lane, deltas = life
    device = row = estimate.nothing(SIZE)
    for round_id, delta in enumerate(deltas, start=3):
        said = estimate.say(delta, device, FRAMES[lane], sending(lane, bytes_max=bytes_max), round_id)
        follows, update = read(lane, said.payload)
        assert not bytes_max or len(said.payload) <= bytes_max
        assert follows == row.round_id
        row = estimate.added(row, update, round_id)
        assert row.values.tobytes() == said.estimate.values.tobytes()
        assert row.round_id == said.estimate.round_id == round_id
        device = said.estimate
    assert np.isfinite(device.values).all()
    assert np.abs(device.values).max() <= (64 if lane == "float32" else 254)


@both_lanes
@pytest.mark.parametrize("bytes_max", range(24, 60))
def test_a_limit_of_bytes_counts_what_stands_in_front(lane, bytes_max):
    delta = np.arange(1, SIZE + 1) * 3
    delta = delta.astype(np.float32) / 7 if lane == "float32" else delta
    said = estimate.say(delta, estimate.nothing(SIZE), FRAMES[lane], sending(lane, SIZE, bytes_max=bytes_max), 1)
    assert len(said.payload) <= bytes_max


@both_lanes
def test_it_comes_to_what_a_device_means_to_say(lane):
    """A hundredth at a time would be enough: what was said once need not be said again."""
    chance = np.random.default_rng(2)
    delta = chance.normal(size=SIZE).astype(np.float32) if lane == "float32" else chance.integers(-90, 90, SIZE)
    device, away = estimate.nothing(SIZE), []
    for round_id in range(1, 16):
        device = estimate.say(delta, device, FRAMES[lane], sending(lane), round_id).estimate
        whole = device.values.astype(np.float64) * (FRAMES[lane].unit if lane == "int8" else 1)
        away.append(np.abs(whole - delta).max())
    if lane == "int8":
        assert (np.abs(whole - delta) < FRAMES[lane].unit).all(), "but for parts of a unit"
    else:
        assert away[-1] < 0.02, "rounding to 4 bits is made good by what follows"
    assert away[-1] < away[2]


def test_the_clip_bounds_the_delta_and_not_what_is_missing_of_it():
    delta = np.full(SIZE, 1.0, np.float32)
    said = estimate.say(delta, estimate.nothing(SIZE), FLOATS, sending("float32", SIZE, clip_norm=0.5, value_bits=8), 1)
    assert float(np.sqrt((said.estimate.values.astype(float) ** 2).sum())) == pytest.approx(0.5, rel=0.05)


def test_momentum_and_decay_are_not_heard():
    delta = np.arange(SIZE, dtype=np.int64)
    plain, asked = (
        estimate.say(delta, estimate.nothing(SIZE), INTEGERS, sending("int8", **changes), 1)
        for changes in ({}, {"momentum": 0.9, "decay": 0.5})
    )
    assert plain.payload == asked.payload


def test_real_numbers_are_added_in_float32_and_rounded_once():
    known = Estimate(np.array([1.0] * SIZE, np.float16), 1)
    update = Update("float32", SIZE, np.array([2, 5], np.uint32), np.array([2.0**-11, 100.0], np.float32))
    after = estimate.added(known, update, 2)
    assert after.values[2] == np.float16(1.0)  # a tie goes to even
    assert after.values[5] == 64.0
    assert known.values[5] == 1.0, "the one that was is left alone"


@both_lanes
def test_as_an_update_it_carries_all_but_zeros(lane):
    values = np.zeros(SIZE, np.float16)
    values[[3, 9]] = [-2, 7]
    update = estimate.as_update(Estimate(values, 4), lane)
    assert update.indices.tolist() == [3, 9]
    assert update.values.tolist() == [-2, 7]
    assert update.values.dtype == (np.int32 if lane == "int8" else np.float32)


def test_what_is_kept_is_read_again_and_anything_else_is_refused():
    known = Estimate(np.linspace(-3, 3, SIZE).astype(np.float16), 77)
    kept = estimate.dump(known, 5)
    again = estimate.load(kept, SIZE, 5)
    assert (again.round_id, again.values.tobytes()) == (77, known.values.tobytes())
    assert len(kept) == 28 + 2 * SIZE
    for at in range(len(kept)):
        with pytest.raises(CodecError):
            estimate.load(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :], SIZE, 5)
    for broken, size, epoch in ((kept[:-2], SIZE, 5), (b"", SIZE, 5), (kept, SIZE + 1, 5), (kept, SIZE, 6)):
        with pytest.raises(CodecError):
            estimate.load(broken, size, epoch)


def test_a_payload_says_what_it_builds_on_and_a_plain_one_says_nothing():
    update = Update("int8", SIZE, np.array([1], np.uint32), np.array([5], np.int32))
    plain = payload.encode(update, INTEGERS.shapes, value_bits=0, coding="rice").payload
    assert estimate.split(plain) == (None, plain)
    known = Estimate(np.zeros(SIZE, np.float16), 2**40)
    said = estimate.say(np.arange(SIZE), known, INTEGERS, sending("int8"), 2**41)
    assert estimate.split(said.payload)[0] == 2**40
    assert said.payload[:9] == b"\xe1" + (2**40).to_bytes(8, "little")
    with pytest.raises(CodecError, match="cut short"):
        estimate.split(said.payload[:8])


def test_an_estimate_of_another_model_is_no_ground_to_build_on():
    with pytest.raises(CodecError, match="not of this model"):
        estimate.say(np.arange(SIZE), estimate.nothing(SIZE + 1), INTEGERS, sending("int8"), 1)
