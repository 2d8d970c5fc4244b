"""The master: no step is lost, none leaves the int8 range, and a version changes no more than it may."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from engine import master, ring
from engine.codec.update import Update
from engine.frame import Frame, frame_of
from engine.master import Numbers
from engine.models.graph import ABSENT, Graph, ModelError
from engine.models.scheme import Suffix, TrainedLayer, dump_params, load_params, params_of

MODEL = (Path(__file__).parents[2] / "firmware_sim/models/digits.tflite").read_bytes()
fast = settings(deadline=None, max_examples=60)


def frame(weights, biases, unit=64, lane="int8", scale=1.0):
    """A frame of one layer that stands in no file."""
    layer = TrainedLayer(0, (0,), 0, weights, biases, 1, 2 if biases else ABSENT)
    suffix = Suffix("last-1", 0, 0, 0, (layer,), lane, weights + biases)
    units = np.repeat(np.array([1, unit], np.int32), [weights, biases])
    limit = np.repeat(np.array([127, 2**31 - 1], np.int64), [weights, biases])
    scales = np.full(len(units), scale, np.float32)
    shapes = ((1, weights), (1, biases)) if biases else ((1, weights),)
    made = Frame(b"", Graph((), (), (), ()), suffix, shapes)
    vars(made).update(unit=units, scale=scales, limit=limit)
    return made


def advanced(one, numbers, step, publish_max=2**31):
    return master.advance(one, numbers, np.asarray(step, np.float64), publish_max=publish_max)


def published_of(one, numbers):
    return load_params(one.suffix, numbers.published)


def whole_units(indices, units, size):
    return Update("int8", size, np.asarray(indices, np.uint32), np.asarray(units, np.int32))


def summed(size, updates):
    members = [ring.Member((f"device-{at}", 1), *update) for at, update in enumerate(updates)]
    return ring.add_all(ring.empty(ring.Purpose(size, "int8")), members)


def round_half_even(x):
    return round(Fraction(x))  # Python's round is half to even, and exact on fractions


def test_version_one_is_the_file_and_owes_nothing():
    digits = frame_of(MODEL, "last-2")
    params = params_of(digits.graph, digits.suffix)
    numbers = master.first(digits, params)
    assert np.array_equal(published_of(digits, numbers), np.maximum(params, -digits.limit))
    weights = sum(layer.num_weights for layer in digits.suffix.layers)
    assert numbers.remainder == bytes(4 * weights + 8 * (digits.suffix.num_params - weights))
    assert digits.lane == "int8"
    assert (digits.limit == 127).sum() == weights


@fast
@given(st.lists(st.tuples(st.integers(-127, 127), st.integers(-(2**15), 2**15 - 1)), min_size=1, max_size=20))
def test_what_is_kept_beside_the_published_numbers_is_the_master_itself(entries):
    one = frame(len(entries), 0)
    bound = 127 << 16
    whole = np.array([max(-bound, min(bound, (q << 16) + r)) for q, r in entries], np.int64)
    numbers = master.write(one, whole)
    assert np.array_equal(master.read(one, numbers), whole)
    assert published_of(one, numbers).tolist() == [(int(m) + 2**15) // 2**16 for m in whole]
    assert len(numbers.published) == len(entries)
    assert len(numbers.remainder) == 4 * len(entries)


@fast
@given(st.integers(0, 2**32), st.floats(0.01, 2.0), st.integers(0, 16))
def test_a_round_adds_the_mean_rounded_to_a_65536th_of_a_step(seed, rate, publish_max):
    chance = np.random.default_rng(seed)
    one = frame(12, 4)
    stored = chance.integers([-60] * 12 + [-100_000] * 4, [60] * 12 + [100_000] * 4)
    start = master.write(one, (stored << 16) + chance.integers(-(2**15), 2**15, 16))
    members = [
        (whole_units(np.arange(16), chance.choice([-20, -1, 1, 3], 16), 16), int(chance.integers(1, 4097)))
        for _ in range(5)
    ]
    total = summed(16, members)
    after, held = advanced(one, start, ring.mean_step(total, rate), publish_max)
    before, moved = master.read(one, start), master.read(one, after)
    for i in range(16):
        exact = Fraction(rate) * sum(w * int(u.values[i]) for u, w in members) / sum(w for _, w in members)
        want = round_half_even(exact * int(one.unit[i]) * 65536)
        assert abs(int(moved[i] - before[i]) - want) <= (0 if abs(want) < 2**20 else 1)  # two float64 roundings
    assert held == 0


def test_with_one_device_and_rate_one_the_model_is_what_the_device_sent():
    one = frame(3, 1)
    start = master.first(one, np.array([5, -7, 100, 12_345], np.int32))
    step = ring.mean_step(summed(4, [(whole_units([0, 1, 3], [1, -120, 3], 4), 77)]), 1.0)
    after, _ = advanced(one, start, step)
    assert published_of(one, after).tolist() == [6, -127, 100, 12_345 + 3 * 64]
    assert not any(after.remainder)


def test_weights_are_held_at_127_and_told_and_biases_at_32_bits_and_not_told():
    one = frame(3, 1, unit=1 << 20)
    start = master.first(one, np.array([126, -126, 0, 2**31 - (1 << 20) - 5], np.int32))
    after, held = advanced(one, start, [1.5, -1.25, 1.0, 3.0])
    assert held == 2
    assert published_of(one, after).tolist() == [127, -127, 1, 2**31 - 5]  # another whole unit does not fit
    assert master.read(one, after).tolist()[3] == (2**31 - 1) << 16
    again, held = advanced(one, after, [-0.5, 0.5, 0, 0])
    assert master.read(one, again).tolist()[:2] == [int(126.5 * 65536), int(-126.5 * 65536)]
    assert held == 0


def test_a_bias_at_either_end_of_32_bits_stays_there():
    one = frame(1, 2, unit=64)
    start = master.first(one, np.array([0, 2**31 - 1, -(2**31) + 1], np.int32))
    after, _ = advanced(one, start, [0, 1e9, -1e9])
    assert after == start
    near = master.first(one, np.array([0, 2**31 - 41, -(2**31) + 41], np.int32))
    after, _ = advanced(one, near, [0, 1, -1])  # held 40 steps further, and the next whole unit is 64
    assert after.published == near.published
    assert master.read(one, after).tolist()[1:] == [(2**31 - 1) << 16, (1 - 2**31) << 16]


def test_steps_too_small_to_publish_are_published_once_they_add_up():
    one = frame(1, 1, unit=64)
    numbers = master.first(one, np.array([10, 10], np.int32))
    seen = []
    for _ in range(10):
        numbers, _ = advanced(one, numbers, [0.1, -0.1])
        seen.append(published_of(one, numbers).tolist())
    # a bias moves by whole units only, as a weight does; halves go upwards
    assert seen == [[10, 10]] * 4 + [[11, 10]] + [[11, 10 - 64]] * 5
    assert np.abs(master.read(one, numbers) / 65536 - [11, 10 - 64]).max() < 1e-2


def test_a_version_changes_the_parameters_that_are_owed_most_and_the_rest_waits():
    one = frame(6, 0)
    start = master.first(one, np.zeros(6, np.int32))
    after, _ = advanced(one, start, [3, -9, 0.4, 5, -5, 4], publish_max=3)
    assert published_of(one, after).tolist() == [0, -9, 0, 5, -5, 0]
    again, _ = advanced(one, after, [0] * 6, publish_max=1)
    assert published_of(one, again).tolist() == [0, -9, 0, 5, -5, 4]
    last, _ = advanced(one, again, [0] * 6, publish_max=1)
    assert published_of(one, last).tolist() == [3, -9, 0, 5, -5, 4]
    assert advanced(one, last, [0] * 6, publish_max=1).numbers == last  # less than half a step is not worth a byte
    assert master.read(one, last)[2] == round(0.4 * 65536)


def test_what_is_owed_most_is_so_in_real_numbers_and_of_equals_the_first_is_paid():
    one = frame(2, 2, unit=64)
    one.scale[:] = [0.1, 0.5, 0.01, 0.0001]
    start = master.first(one, np.zeros(4, np.int32))
    after, _ = advanced(one, start, [2, 1, 1, 9], publish_max=2)
    assert published_of(one, after).tolist() == [0, 1, 64, 0]  # 0.2, 0.5, 0.64, 0.0576
    even = frame(4, 0)
    after, _ = advanced(even, master.first(even, np.zeros(4, np.int32)), [1, -1, 1, 1], publish_max=2)
    assert published_of(even, after).tolist() == [1, -1, 0, 0]


@pytest.mark.parametrize("publish_max", [1, 7, 40])
def test_nothing_is_lost_over_a_thousand_rounds(publish_max):
    """What was published and what is owed together are the sum of the steps, to the last bit, at every moment."""
    chance = np.random.default_rng(publish_max)
    one = frame(30, 10, unit=256, scale=0.01)
    start = np.concatenate([chance.integers(-20, 20, 30), chance.integers(-10_000, 10_000, 10)]).astype(np.int32)
    numbers = master.first(one, start)
    total, before = np.zeros(40, np.int64), start
    for number in range(1000):
        step = chance.normal(size=40) * chance.choice([0.001, 0.1, 0.9], 40) * chance.choice([-1, 1])
        total += np.rint(step * one.unit * 65536).astype(np.int64)
        numbers, held = advanced(one, numbers, step, publish_max)
        assert held == 0
        now = published_of(one, numbers)
        assert np.count_nonzero(now != before) <= publish_max
        assert not ((now - start) % one.unit).any()
        owed = master.read(one, numbers) - (now.astype(np.int64) << 16)
        assert np.array_equal(((now.astype(np.int64) - start) << 16) + owed, total), number
        before = now
    for _ in range(40):  # the fleet sleeps: what is owed is paid
        numbers, _ = advanced(one, numbers, np.zeros(40), publish_max)
    assert (
        np.abs(master.read(one, numbers) - (published_of(one, numbers).astype(np.int64) << 16)) <= one.unit << 15
    ).all()


def test_the_order_of_rounds_changes_neither_the_master_nor_in_the_end_the_model():
    chance = np.random.default_rng(3)
    one = frame(12, 4)
    steps = chance.normal(size=(30, 16)) * 2
    ends = []
    for order in (range(30), chance.permutation(30)):
        numbers = master.first(one, np.zeros(16, np.int32))
        for at in order:
            numbers, _ = advanced(one, numbers, steps[at], 3)
        for _ in range(16):
            numbers, _ = advanced(one, numbers, np.zeros(16), 3)
        ends.append(master.read(one, numbers))
    assert np.array_equal(*ends)


def test_a_minus_128_of_another_converter_becomes_minus_127():
    numbers = master.first(frame(2, 0), np.array([-128, 127], np.int32))
    assert published_of(frame(2, 0), numbers).tolist() == [-127, 127]


def upper(value):
    return not (np.asarray(value, np.float32).view(np.uint32) & 0xFFFF).any()


def test_a_float_model_publishes_short_floats_and_keeps_whole_ones():
    one = frame(3, 1, lane="float32")
    params = np.array([0.1, -2, 3.0078125, 4], np.float32)  # the third lies between two short floats: to even
    numbers = master.first(one, params)
    assert published_of(one, numbers).tolist() == [0.10009765625, -2, 3, 4]
    assert numbers.remainder == params.astype("<f4").tobytes()
    step = np.array([0.3, 1e-9, 0, -4.0])
    after, held = advanced(one, numbers, step)
    master_ = params + step.astype(np.float32)
    assert after.remainder == master_.astype("<f4").tobytes()
    assert upper(published_of(one, after))
    assert np.abs(published_of(one, after) - master_).max() <= 2**-9 * 4
    assert published_of(one, after)[[1, 3]].tolist() == [-2, 0]
    assert held == 0


def test_floats_that_are_not_finite_or_not_when_they_are_short_are_refused():
    one = frame(3, 1, lane="float32")
    full = master.first(one, np.full(4, 3e38, np.float32))
    with pytest.raises(ModelError, match="not finite"):
        advanced(one, full, np.full(4, 3e38))
    for bad in (np.inf, np.nan, np.finfo(np.float32).max):  # the last one rounds to infinity
        with pytest.raises(ModelError, match="not finite"):
            master.first(one, np.array([0, 0, bad, 0], np.float32))


@pytest.mark.parametrize("publish_max", [1, 5, 20])
def test_a_float_model_loses_nothing_over_a_thousand_rounds(publish_max):
    chance = np.random.default_rng(publish_max)
    one = frame(16, 4, lane="float32")
    start = chance.normal(size=20).astype(np.float32)
    numbers, whole = master.first(one, start), start.copy()
    before = published_of(one, numbers)
    for _ in range(1000):
        step = chance.normal(size=20) * chance.choice([1e-6, 1e-3, 0.1], 20)
        whole = whole + step.astype(np.float32)
        numbers, _ = advanced(one, numbers, step, publish_max)
        now = published_of(one, numbers)
        assert numbers.remainder == whole.astype("<f4").tobytes()
        assert np.count_nonzero(now != before) <= publish_max
        assert upper(now)
        before = now
    for _ in range(20):
        numbers, _ = advanced(one, numbers, np.zeros(20), publish_max)
    now = published_of(one, numbers)
    assert (np.abs(now - whole) <= np.abs(whole) * 2**-8).all()


def test_what_does_not_belong_together_is_refused():
    for one, width in ((frame(3, 1), "20"), (frame(3, 1, lane="float32"), "16")):
        numbers = master.first(one, np.zeros(4, np.int32))
        for bad in (np.nan, np.inf):
            with pytest.raises(ModelError, match="not finite"):
                advanced(one, numbers, [0, bad, 0, 0])
        with pytest.raises(ModelError, match=f"keeps 6 bytes of the master, and it has {width}"):
            advanced(one, Numbers(numbers.published, b"123456"), [0] * 4)
    with pytest.raises(ModelError, match="do not fit"):
        master.read(frame(3, 1), Numbers(dump_params(frame(2, 1).suffix, np.zeros(3, np.int32)), bytes(20)))


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


def fleet(publish, *, whole=True, shared_key=False, devices=20, rounds=15, rate=0.005, seed=3, publish_max=640):
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
        places = [np.flatnonzero(delta).astype(np.uint32) for delta in deltas]
        total = summed(
            640, [(whole_units(at, delta.ravel()[at], 640), 1) for at, delta in zip(places, deltas, strict=True)]
        )
        numbers, _ = advanced(one, numbers, ring.mean_step(total, 1.0), publish_max)
        current = load_params(one.suffix, numbers.published).astype(np.float64).reshape(64, 10)
        if publish == "nearest":
            numbers = master.first(one, current.ravel().astype(np.int32))
    return float(np.mean(np.argmax(tests @ current, axis=1) == truth))


def test_a_fleet_of_int8_models_learns_as_one_of_floats_does_and_stalls_without_a_master():
    as_floats, with_master, without = fleet("float", whole=False), fleet("master"), fleet("nearest")
    assert as_floats > 0.75
    assert with_master > as_floats - 0.05
    assert without < 0.4


def test_a_fleet_learns_as_well_where_a_version_may_change_a_twentieth_of_the_parameters():
    assert fleet("master", publish_max=32) > fleet("master") - 0.05
