"""Error feedback: what is not sent stays owed, to the last step, whatever happens to an update on its way."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.codec import fitting, payload
from engine.codec.header import CodecError
from engine.codec.residual import Owed, Sending, dump_owed, load_owed, nothing_owed, step
from engine.codec.update import dense
from tests import naive, naive_steps

fast = settings(deadline=None, max_examples=40)
LANES = ("int8", "float32")
ROUNDED = [("int8", 0), ("int8", 1), ("int8", 4), ("int8", 8), ("float32", 1), ("float32", 4), ("float32", 8)]
SENDING = Sending(k=5, value_bits=4, coding="rice", clip_norm=math.inf)


def frame_of(lane, shapes=((6, 15), (1, 30)), unit=256):
    """Weights, then a bias whose steps are `unit` times finer."""
    size = sum(rows * columns for rows, columns in shapes)
    units, scales = np.ones(size, np.int32), np.full(size, 0.01, np.float32)
    if lane == "int8":
        units[-shapes[-1][1] :] = unit
        scales[-shapes[-1][1] :] = np.float32(0.01 / unit)
    suffix = SimpleNamespace(num_params=len(units))
    return SimpleNamespace(lane=lane, shapes=shapes, unit=units, scale=scales, suffix=suffix)


def trained(frame, seed, spread=1.0):
    """A delta as training leaves it: mostly one step or none in lane 'int8', heavy-tailed in lane 'float32'."""
    delta = np.random.default_rng(seed).standard_t(3, len(frame.unit)) * spread
    if frame.lane == "float32":
        return (delta * 0.02 + 0.001).astype(np.float32)
    return (np.rint(delta) * np.where(frame.unit > 1, 150, 1)).astype(np.int32)


def clipped(delta, frame, clip_norm):
    if frame.lane == "float32":
        return naive.clip_to_norm(delta, clip_norm)[0]
    return naive_steps.clip_steps(delta, frame.scale, clip_norm)[0]


def read(sent_payload, frame, k_max, coding="rice"):
    return dense(payload.decode(sent_payload, frame.shapes, lane=frame.lane, k_max=k_max, coding=coding))


# One step


@fast
@given(st.integers(0, 2**32), st.sampled_from(ROUNDED), st.sampled_from(["rice", "context"]), st.data())
def test_one_step_sends_the_largest_and_owes_the_rest(seed, kind, coding, data):
    frame, chance = frame_of(kind[0]), np.random.default_rng(seed)
    size = len(frame.unit)
    delta, k = trained(frame, seed, 20.0), data.draw(st.integers(0, size))
    owed = nothing_owed(frame)
    owed.residual[:] = chance.integers(-300, 301, size) if frame.lane == "int8" else chance.normal(size=size)
    before = delta.copy(), owed.residual.copy()
    sending = SENDING._replace(k=k, value_bits=kind[1], coding=coding)
    sent = step(delta, owed, frame, sending, 7)
    assert np.array_equal(delta, before[0])
    assert np.array_equal(owed.residual, before[1])
    assert sent.note == ""
    assert (sent.owed.base_version, sent.owed.velocity) == (7, None)
    moved = read(sent.payload, frame, k, coding)
    assert np.array_equal(moved, dense(sent.update))
    if frame.lane == "int8":
        assert np.array_equal(moved * frame.unit + sent.owed.residual, delta.astype(np.int64) + before[1])
        magnitude = naive_steps.fold_units(delta, before[1], frame.unit, frame.scale)[1]
    else:
        magnitude = naive.fold_in(delta, before[1])
        assert np.array_equal(sent.owed.residual, naive.fold_in(magnitude, -moved))
    assert sent.update.indices.tolist() == naive.choose_largest(magnitude, k)


def test_a_step_beyond_what_a_unit_holds_is_sent_in_part():
    frame = frame_of("int8", ((1, 2), (1, 1)), unit=1)
    sent = step(np.array([300, -7, 0], np.int32), nothing_owed(frame), frame, SENDING._replace(k=3, value_bits=0), 1)
    assert read(sent.payload, frame, 3).tolist() == [254, -7, 0]
    assert sent.owed.residual.tolist() == [46, 0, 0]


def test_a_large_value_saturates_and_the_rest_stays_owed():
    frame = frame_of("float32", ((1, 3),))
    delta = np.array([100, -2000, 1], np.float32)
    sent = step(delta, nothing_owed(frame), frame, SENDING._replace(k=2, value_bits=8), 1)
    assert read(sent.payload, frame, 2).tolist() == [64, -64, 0]
    assert sent.owed.residual.tolist() == [36, -1936, 1]


def test_less_than_a_unit_is_never_sent_and_never_lost():
    frame, seen = frame_of("int8", ((1, 1), (1, 1)), unit=64), []
    owed = nothing_owed(frame)
    for _ in range(5):
        sent = step(np.array([0, -30], np.int32), owed, frame, SENDING._replace(k=2, value_bits=0), 1)
        owed = sent.owed
        seen.append(read(sent.payload, frame, 2).tolist()[1])
    assert seen == [0, 0, -1, 0, -1]
    assert owed.residual.tolist() == [0, -150 + 128]


def test_the_delta_is_clipped_and_the_debt_is_not():
    frame, delta = frame_of("float32", ((1, 3),)), np.array([3, 4, 0], np.float32)
    debt = Owed(np.array([0, 0, 60], np.float32))
    sent = step(delta, debt, frame, SENDING._replace(k=1, value_bits=8, clip_norm=1.0), 1)
    assert read(sent.payload, frame, 1)[:2].tolist() == [0, 0]
    assert abs(read(sent.payload, frame, 1)[2] - 60) < 4
    assert sent.owed.residual[:2].tolist() == np.array([0.6, 0.8], np.float32).tolist()
    assert delta.tolist() == [3, 4, 0]
    assert debt.residual.tolist() == [0, 0, 60]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("clip_norm", [math.inf, 0.5, 0.01])
def test_what_is_sent_and_owed_together_is_the_clipped_delta(lane, clip_norm):
    frame = frame_of(lane)
    delta = trained(frame, 5, 9.0)
    sent = step(delta, nothing_owed(frame), frame, SENDING._replace(clip_norm=clip_norm), 1)
    both = dense(sent.update) * (frame.unit if lane == "int8" else 1) + sent.owed.residual
    assert np.allclose(both, clipped(delta, frame, clip_norm), rtol=1e-6, atol=0)
    assert clip_norm > 1 or not np.allclose(both, delta)


@pytest.mark.parametrize("lane", LANES)
def test_a_million_parameters_go_through_the_sampled_choice_and_nothing_is_lost(lane):
    frame = frame_of(lane, ((999, 1000), (1, 1000)))
    delta = trained(frame, 3, 2.0)
    bits = 0 if lane == "int8" else 8
    sent = step(delta, nothing_owed(frame), frame, SENDING._replace(k=10_000, value_bits=bits, coding="context"), 1)
    moved = read(sent.payload, frame, 10_000, "context")
    assert np.count_nonzero(moved) == 10_000
    if lane == "int8":
        assert np.array_equal(moved * frame.unit + sent.owed.residual, delta)
    else:
        assert np.array_equal(moved[sent.update.indices] + sent.owed.residual[sent.update.indices], delta[moved != 0])
        assert np.abs(delta[moved == 0]).max() <= np.abs(delta[moved != 0]).min()


@pytest.mark.parametrize(
    ("lane", "delta", "changes", "sentence"),
    [
        ("int8", [1, 2], {}, "does not fit a residual"),
        ("int8", [1, 2, 3], {"clip_norm": 0.0}, "not positive"),
        ("float32", [1, 2, 3], {"clip_norm": math.nan}, "not positive"),
        ("int8", [1, 2, 3], {"k": 4}, "Cannot send 4 of 3"),
        ("int8", [1, 2, 3], {"k": -1}, "Cannot send -1 of 3"),
        ("int8", [1, 2, 3], {"momentum": 1.0}, "momentum of 1.0"),
        ("int8", [1, 2, 3], {"decay": 1.5}, "decay of 1.5"),
        ("float32", [1, 2, 3], {"decay": math.nan}, "decay of nan"),
        ("float32", [1, 2, 3], {"value_bits": 0}, "bits, not 0"),
        ("int8", [2**31 - 1, 0, 0], {}, "more steps than 32 bits"),
        ("int8", [-(2**31), 0, 0], {}, "more steps than 32 bits"),
        ("int8", [2**31 - 9, 0, 0], {"momentum": 0.5}, "more steps than 32 bits"),
        ("float32", [0, math.nan, 0], {}, "NaN"),
        ("float32", [0, math.inf, 0], {}, "NaN"),
        ("float32", [3e38, 0, 0], {}, "NaN"),
    ],
)
def test_numbers_that_cannot_become_an_update_are_refused(lane, delta, changes, sentence):
    frame = frame_of(lane, ((1, 2), (1, 1)), unit=1)
    owed = nothing_owed(frame)
    owed.residual[0] = 9 if lane == "int8" else 3e38
    sending = SENDING._replace(k=3)._replace(**changes)
    with pytest.raises(CodecError, match=sentence):
        step(np.array(delta, np.int64 if lane == "int8" else np.float32), owed, frame, sending, 1)


def test_a_residual_of_another_lane_or_model_is_refused():
    whole, real = frame_of("int8"), frame_of("float32")
    with pytest.raises(CodecError, match="residual of float32 does not fit a model of lane int8"):
        step(trained(whole, 1), nothing_owed(real), whole, SENDING, 1)
    with pytest.raises(CodecError, match="120 parameters is not of this model, which trains 3"):
        step(trained(whole, 1), nothing_owed(whole), frame_of("int8", ((1, 2), (1, 1))), SENDING, 1)


# Decay and momentum


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    ("decay", "missed"), [(1.0, 9), (0.5, 0), (0.5, 3), (0.9, 1), (0.75, 40), (0.0, 1), (0.999, 10**9)]
)
def test_a_debt_fades_with_every_version_missed(lane, decay, missed):
    frame = frame_of(lane)
    owed = nothing_owed(frame)
    owed.residual[:] = np.arange(-60, 60) * (1000 if lane == "int8" else 1)
    nothing = np.zeros_like(owed.residual)
    sent = step(nothing, Owed(owed.residual, None, 5), frame, SENDING._replace(k=0, decay=decay), 6 + missed)
    want = owed.residual * decay**missed
    left = sent.owed.residual
    if lane == "int8":
        assert (np.abs(left - want) <= 1 + 1e-6 * np.abs(want)).all()
        assert (np.abs(left) <= np.abs(owed.residual)).all()
    else:
        assert np.allclose(left, want, rtol=1e-6, atol=1e-7)
    if decay == 1.0 or not missed:
        assert np.array_equal(left, owed.residual)


def test_a_version_from_before_the_debt_is_no_reason_to_fade():
    frame = frame_of("int8")
    owed = Owed(np.full(120, 3, np.int32), None, 50)
    sent = step(np.zeros(120, np.int32), owed, frame, SENDING._replace(k=0, decay=0.5), 2)
    assert (sent.owed.residual == 3).all()


@pytest.mark.parametrize("lane", LANES)
def test_momentum_gathers_what_waits_and_starts_anew_where_something_was_sent(lane):
    frame = frame_of(lane, ((1, 6), (1, 2)), unit=1)
    bits, momentum = (0 if lane == "int8" else 8), 0.75
    sending = SENDING._replace(k=2, value_bits=bits, momentum=momentum)
    owed, velocity, residual = nothing_owed(frame), np.zeros(8), np.zeros(8)
    for number in range(20):
        delta = trained(frame, number, 30.0)
        sent = step(delta, owed, frame, sending, number + 1)
        velocity = velocity * momentum
        velocity = (np.trunc(velocity) if lane == "int8" else velocity) + delta
        residual = residual + velocity - dense(sent.update)
        velocity[sent.update.indices] = 0
        assert sent.update.indices.size == 2
        assert np.allclose(sent.owed.velocity, velocity, rtol=1e-5, atol=1e-6)
        assert np.allclose(sent.owed.residual, residual, rtol=1e-5, atol=1e-5)
        owed, velocity, residual = sent.owed, sent.owed.velocity.astype(float), sent.owed.residual.astype(float)


def test_a_plan_without_momentum_lets_go_of_the_velocity_and_keeps_the_debt():
    frame = frame_of("int8")
    owed = Owed(np.full(120, 3, np.int32), np.full(120, 9, np.int32), 1)
    sent = step(np.zeros(120, np.int32), owed, frame, SENDING._replace(k=0), 2)
    assert sent.owed.velocity is None
    assert (sent.owed.residual == 3).all()
    assert (owed.velocity == 9).all()


# A limit of bytes


@pytest.mark.parametrize("coding", ["rice", "context"])
@pytest.mark.parametrize(("lane", "bits"), ROUNDED)
@pytest.mark.parametrize("bytes_max", [2000, 600, 150, 60])
def test_an_update_fits_its_limit_and_sends_a_prefix_of_the_largest(lane, bits, coding, bytes_max):
    frame = frame_of(lane, ((99, 100), (1, 100)))
    delta, sending = trained(frame, 1, 9.0), SENDING._replace(k=1000, value_bits=bits, coding=coding)
    free = step(delta, nothing_owed(frame), frame, sending, 1)
    tight = step(delta, nothing_owed(frame), frame, sending._replace(bytes_max=bytes_max), 1)
    assert len(tight.payload) <= bytes_max
    if len(free.payload) <= bytes_max:
        assert (tight.payload, tight.note) == (free.payload, "")
        return
    count = len(tight.update.indices)
    assert len(tight.payload) > 0.93 * bytes_max or count > 990
    assert tight.note.startswith(f"{count:,} of 1,000 values at ")
    assert tight.note.endswith(f": {bytes_max:,} bytes allowed")
    ranks = delta if lane == "float32" else naive_steps.fold_units(delta, 0 * delta, frame.unit, frame.scale)[1]
    assert tight.update.indices.tolist() == naive.choose_largest(ranks, count)
    moved = read(tight.payload, frame, 1000, coding)
    if lane == "int8":
        assert np.array_equal(moved * frame.unit + tight.owed.residual, delta)
    else:
        assert np.array_equal(naive.fold_in(delta, -moved), tight.owed.residual)


def test_a_small_limit_takes_bits_before_places_and_whole_units_stay_whole():
    frame = frame_of("float32", ((99, 100), (1, 100)))
    delta, sending = trained(frame, 1, 9.0), SENDING._replace(k=1000, value_bits=8)

    def told(bytes_max):
        sent = step(delta, nothing_owed(frame), frame, sending._replace(bytes_max=bytes_max), 1)
        return len(sent.update.indices), sent.note.split(" at ")[1].split(":")[0]

    assert told(len(step(delta, nothing_owed(frame), frame, sending, 1).payload) - 1)[1] == "8 bits"
    bits = [told(bytes_max)[1] for bytes_max in (1000, 450, 250, 120)]
    assert bits[0] == "8 bits"
    assert bits[-1] == "1 bit"
    assert bits == sorted(bits, key=["8 bits", "4 bits", "1 bit"].index)
    assert "4 bits" in bits
    whole = frame_of("int8", ((99, 100), (1, 100)))
    exact = SENDING._replace(k=1000, value_bits=0, bytes_max=60)
    assert "at full precision" in step(trained(whole, 1, 9.0), nothing_owed(whole), whole, exact, 1).note


def test_precision_is_not_given_up_for_nothing():
    frame = frame_of("int8", ((99, 100), (1, 100)), unit=1)
    single = np.sign(trained(frame, 1, 9.0)).astype(np.int32)  # 8 bits of a single step are no longer than 1 bit
    sent = step(single, nothing_owed(frame), frame, SENDING._replace(k=1000, value_bits=8, bytes_max=60), 1)
    assert len(sent.update.indices) < 250
    assert " at 8 bits: " in sent.note


def test_a_limit_costs_a_handful_of_encodings(monkeypatch):
    frame, coded = frame_of("float32", ((99, 100), (1, 100))), []
    whole = fitting.encode
    monkeypatch.setattr(fitting, "encode", lambda *given, **how: coded.append(0) or whole(*given, **how))
    for bytes_max in range(100, 2000, 100):
        coded.clear()
        sending = SENDING._replace(k=1000, value_bits=4, bytes_max=bytes_max)
        step(trained(frame, 1, 9.0), nothing_owed(frame), frame, sending, 1)
        assert len(coded) <= 12, bytes_max


@pytest.mark.parametrize(("lane", "bits"), ROUNDED)
def test_a_limit_too_small_for_one_value_is_one_sentence(lane, bits):
    frame = frame_of(lane, ((99, 100), (1, 100)))
    sending = SENDING._replace(value_bits=bits, bytes_max=4)
    with pytest.raises(CodecError, match="may have 4 bytes, and with 1 values it takes"):
        step(trained(frame, 1), nothing_owed(frame), frame, sending, 1)


# On flash


def owed_of(lane, moving, seed=1):
    frame = frame_of(lane)
    first, second = trained(frame, seed, 50.0), trained(frame, seed + 1, 50.0)
    return Owed(first, second if moving else None, 77)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("moving", [False, True])
def test_what_is_owed_survives_flash_and_damage_to_it_is_seen(lane, moving):
    owed = owed_of(lane, moving)
    kept = dump_owed(owed, 3)
    assert len(kept) == 30 + 4 * 120 * (1 + moving)
    loaded = load_owed(kept, 120, lane, 3)
    assert loaded.residual.dtype == owed.residual.dtype
    assert np.array_equal(loaded.residual, owed.residual)
    assert (loaded.velocity is not None) == moving
    assert not moving or np.array_equal(loaded.velocity, owed.velocity)
    assert loaded.base_version == 77
    loaded.residual[0] = 1  # it may be written
    for place in range(len(kept)):
        damaged = bytearray(kept)
        damaged[place] ^= 4
        with pytest.raises(CodecError, match="damaged"):
            load_owed(bytes(damaged), 120, lane, 3)
    for length in (0, 5, 29, 30, 100, len(kept) - 1):
        with pytest.raises(CodecError, match=r"cut short|damaged"):
            load_owed(kept[:length], 120, lane, 3)


def test_a_debt_of_another_model_lane_or_scale_epoch_is_let_go():
    kept = dump_owed(owed_of("int8", moving=False), 3)
    with pytest.raises(CodecError, match="of 120 int8 parameters, this one has 121"):
        load_owed(kept, 121, "int8", 3)
    with pytest.raises(CodecError, match="this one has 120 float32"):
        load_owed(kept, 120, "float32", 3)
    with pytest.raises(CodecError, match="of scale epoch 3, the model of 4"):
        load_owed(kept, 120, "int8", 4)
    with pytest.raises(CodecError, match="damaged, or of another program version"):
        load_owed(b"HRE2" + bytes(60), 120, "int8", 3)
    broken = owed_of("float32", moving=True)
    broken.velocity[7] = np.nan
    with pytest.raises(CodecError, match="NaN"):
        load_owed(dump_owed(broken, 0), 120, "float32", 0)
