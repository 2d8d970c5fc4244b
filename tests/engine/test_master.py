"""The master: no step is lost to rounding, none leaves the int8 range, and what is kept of it is all of it."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from engine import master, ring
from engine.codec.steps import Steps
from engine.frame import Frame, frame_of
from engine.master import Numbers
from engine.models.graph import ABSENT, Graph, ModelError
from engine.models.scheme import Suffix, TrainedLayer, dump_params, load_params, params_of

MODEL = (Path(__file__).parents[2] / "firmware_sim/models/digits.tflite").read_bytes()
fast = settings(deadline=None, max_examples=60)


def frame(weights, biases, unit=64, lane="int8"):
    """A frame of one layer that stands in no file."""
    layer = TrainedLayer(0, (0,), 0, weights, biases, 1, 2 if biases else ABSENT)
    suffix = Suffix("last-1", 0, 0, 0, (layer,), lane, weights + biases)
    units = np.repeat(np.array([1, unit], np.int32), [weights, biases])
    limit = np.repeat(np.array([127, 2**31 - 1], np.int64), [weights, biases])
    return Frame(b"", Graph((), (), (), ()), suffix, units, np.ones(len(units), np.float32), limit)


def round_half_even(x):
    return round(Fraction(x))  # Python's round is half to even, and exact on fractions


def test_version_one_is_the_file_and_owes_nothing():
    digits = frame_of(MODEL, "last-2")
    params = params_of(digits.graph, digits.suffix)
    numbers = master.first(digits, params)
    assert np.array_equal(load_params(digits.suffix, numbers.published), np.maximum(params, -digits.limit))
    assert numbers.remainder == bytes(2 * digits.suffix.num_params)
    assert digits.lane == "int8"
    assert (digits.limit == 127).sum() == sum(layer.num_weights for layer in digits.suffix.layers)


@fast
@given(st.lists(st.tuples(st.integers(-127, 127), st.integers(-(2**15), 2**15 - 1)), min_size=1, max_size=20))
def test_what_is_kept_beside_the_published_numbers_is_the_master_itself(entries):
    one = frame(len(entries), 0)
    bound = 127 << 16
    whole = np.array([max(-bound, min(bound, (q << 16) + r)) for q, r in entries], np.int64)
    numbers = master.write(one, whole)
    assert np.array_equal(master.read(one, numbers), whole)
    published = load_params(one.suffix, numbers.published)
    assert published.tolist() == [(int(m) + 2**15) // 2**16 for m in whole]
    assert len(numbers.published) == len(entries)
    assert len(numbers.remainder) == 2 * len(entries)


@fast
@given(st.integers(0, 2**32), st.floats(0.01, 2.0))
def test_a_round_adds_the_mean_rounded_to_a_65536th_of_a_step(seed, rate):
    chance = np.random.default_rng(seed)
    one = frame(12, 4)
    stored = chance.integers([-60] * 12 + [-100_000] * 4, [60] * 12 + [100_000] * 4)
    start = master.write(one, (stored << 16) + chance.integers(-(2**15), 2**15, 16))
    indices = np.arange(16, dtype=np.uint32)
    members = [
        (Steps(16, indices, chance.choice([-20, -1, 1, 3], 16).astype(np.int16)), int(chance.integers(1, 4097)))
        for _ in range(5)
    ]
    total = ring.add_all(ring.empty(16, "int8"), members)
    after, held = master.advance(one, start, ring.mean_step(total, rate))
    before, moved = master.read(one, start), master.read(one, after)
    for i in range(16):
        exact = Fraction(rate) * sum(w * int(u.units[i]) for u, w in members) / sum(w for _, w in members)
        want = round_half_even(exact * int(one.unit[i]) * 65536)
        assert abs(int(moved[i] - before[i]) - want) <= (0 if abs(want) < 2**20 else 1)  # two float64 roundings
    assert held == 0


def test_with_one_device_and_rate_one_the_model_is_what_the_device_sent():
    one = frame(3, 1)
    start = master.first(one, np.array([5, -7, 100, 12_345], np.int32))
    sent = Steps(4, np.array([0, 1, 3], np.uint32), np.array([1, -120, 3], np.int16))
    step = ring.mean_step(ring.add(ring.empty(4, "int8"), sent, 77), 1.0)
    after, _ = master.advance(one, start, step)
    assert load_params(one.suffix, after.published).tolist() == [6, -127, 100, 12_345 + 3 * 64]
    assert after.remainder == bytes(8)


def test_weights_are_held_at_127_and_told_and_biases_at_32_bits_and_not_told():
    one = frame(3, 1, unit=1 << 20)
    start = master.first(one, np.array([126, -126, 0, 2**31 - 5], np.int32))
    after, held = master.advance(one, start, np.array([1.5, -1.25, 1.0, 3.0]))
    assert held == 2
    assert load_params(one.suffix, after.published).tolist() == [127, -127, 1, 2**31 - 1]
    again, held = master.advance(one, after, np.array([-0.5, 0.5, 0, 0]))
    assert master.read(one, again).tolist()[:2] == [int(126.5 * 65536), int(-126.5 * 65536)]
    assert held == 0


def test_steps_too_small_to_publish_are_published_once_they_add_up():
    one = frame(1, 0)
    numbers = master.first(one, np.array([10], np.int32))
    seen = []
    for _ in range(10):
        numbers, _ = master.advance(one, numbers, np.array([0.1]))
        seen.append(load_params(one.suffix, numbers.published)[0])
    assert seen == [10, 10, 10, 10, 11, 11, 11, 11, 11, 11]
    assert abs(master.read(one, numbers)[0] / 65536 - 11) < 1e-3


def test_a_minus_128_of_another_converter_becomes_minus_127():
    numbers = master.first(frame(2, 0), np.array([-128, 127], np.int32))
    assert load_params(frame(2, 0).suffix, numbers.published).tolist() == [-127, 127]


def test_a_float_model_has_no_other_master_than_itself():
    one = frame(3, 1, lane="float32")
    params = np.array([0.1, -2, 3, 4], np.float32)
    numbers = master.first(one, params)
    assert numbers.remainder == b""
    step = np.array([0.3, 1e-9, 0, -4.0])
    after, held = master.advance(one, numbers, step)
    assert after == Numbers((params + step.astype(np.float32)).astype("<f4").tobytes(), b"")
    assert held == 0
    full = master.first(one, np.full(4, 3e38, np.float32))
    with pytest.raises(ModelError, match="not finite"):
        master.advance(one, full, np.full(4, 3e38))


def test_what_does_not_belong_together_is_refused():
    one = frame(3, 1)
    numbers = master.first(one, np.zeros(4, np.int32))
    for bad in (np.nan, np.inf):
        with pytest.raises(ModelError, match="not finite"):
            master.advance(one, numbers, np.array([0, bad, 0, 0]))
    with pytest.raises(ModelError, match="keeps 6 bytes beside 4"):
        master.read(one, Numbers(numbers.published, b"123456"))
    with pytest.raises(ModelError, match="do not fit"):
        master.read(one, Numbers(dump_params(frame(2, 1).suffix, np.zeros(3, np.int32)), numbers.remainder))


# Why there is a master: a fleet of softmax regressions over int8 weights, dealt unevenly, with a small step


SCALE = 0.01


def stochastic(steps, chance):
    return np.floor(steps + chance.random(steps.shape))


def train(weights, features, answers, rate, *, chance, whole):
    """One epoch of SGD from `weights` in stored steps; `whole` rounds every update stochastically, as a device does."""
    local = weights.copy()
    for start in range(0, len(answers), 8):
        x, y = features[start : start + 8], answers[start : start + 8]
        logits = x @ (local * SCALE)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        gradient = x.T @ (odds / odds.sum(axis=1, keepdims=True) - np.eye(10)[y]) / len(y)
        change = -rate * gradient / SCALE
        local = np.clip(local + (stochastic(change, chance) if whole else change), -127, 127)
    return local - weights


def fleet(publish, *, whole=True, shared_key=False, devices=20, rounds=15, rate=0.005, seed=3):
    """Accuracy after some rounds; `publish` is 'master', 'nearest' or 'float'."""
    digits = load_digits()
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(digits.target))
    features, answers = digits.data[order] / 16.0, digits.target[order]
    features, tests, answers, truth = features[:1400], features[1400:], answers[:1400], answers[1400:]
    shares = np.array_split(np.argsort(answers + chance.random(1400) * 3, kind="stable"), devices)
    one = frame(640, 0)
    numbers = master.first(one, np.zeros(640, np.int32))
    current = np.zeros((64, 10))
    for number in range(rounds):
        deltas = []
        for device, share in enumerate(shares):
            own = np.random.default_rng([seed, number] if shared_key else [seed, number, device])
            deltas.append(train(current, features[share], answers[share], rate, chance=own, whole=whole))
        if publish == "float":
            current = current + np.mean(deltas, axis=0)
            continue
        total = ring.empty(640, "int8")
        for delta in deltas:
            at = np.flatnonzero(delta).astype(np.uint32)
            units = delta.ravel()[at].astype(np.int16)
            total = ring.add(total, Steps(640, at, units), 1)
        numbers, _ = master.advance(one, numbers, ring.mean_step(total, 1.0))
        current = load_params(one.suffix, numbers.published).astype(np.float64).reshape(64, 10)
        if publish == "nearest":
            numbers = master.first(one, current.ravel().astype(np.int32))
    return float(np.mean(np.argmax(tests @ current, axis=1) == truth))


def test_a_fleet_of_int8_models_learns_as_one_of_floats_does_and_stalls_without_a_master():
    as_floats, with_master, without = fleet("float", whole=False), fleet("master"), fleet("nearest")
    assert as_floats > 0.75
    assert with_master > as_floats - 0.05
    assert without < 0.4
