"""Whole steps: what goes in comes out, what is damaged is refused, and not one step is ever lost."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.codec import payload as door
from engine.codec import sparse
from engine.codec.header import CodecError
from engine.codec.residual import dump_residual, load_residual, step_exact
from engine.codec.steps import Steps, decode, dense, describe, encode
from engine.kernels import steps as kernels
from tests import naive_steps as naive

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/codec_v2.json").read_text())
fast = settings(deadline=None, max_examples=60)
integers = st.one_of(st.integers(-3, 3), st.integers(-254, 254)).filter(bool)


def trained(size, seed=0, spread=1.0):
    """Steps as stochastic rounding leaves them: mostly -1, 0 and 1."""
    return np.rint(np.random.default_rng(seed).standard_t(3, size) * spread).astype(np.int32)


def update(size, count, seed=0, spread=1.0):
    chance = np.random.default_rng(seed)
    indices = np.sort(chance.choice(size, count, replace=False)).astype(np.uint32)
    units = np.clip(np.rint(chance.standard_t(2, count) * spread), -254, 254).astype(np.int16)
    return Steps(size, indices, np.where(units == 0, 1, units).astype(np.int16))


def same(one, other):
    return (
        one.size == other.size and np.array_equal(one.indices, other.indices) and np.array_equal(one.units, other.units)
    )


# The kernels and their twins


@fast
@given(st.lists(integers, max_size=40), st.integers(0, 7))
def test_units_are_coded_as_the_twin_codes_them(values, parameter):
    units = np.array(values, np.int16)
    assert kernels.units_bits(units, parameter) == naive.units_bits(values, parameter)
    assert kernels.best_units_parameter(units) == naive.best_units_parameter(values)
    coded = naive.encode_units(values, parameter)
    buffer = np.zeros(len(coded), np.uint8)
    kernels.encode_units(units, parameter, buffer)
    assert buffer.tobytes() == coded
    back = np.empty(len(values), np.int16)
    assert kernels.decode_units(buffer, parameter, back) == naive.units_bits(values, parameter)
    assert back.tolist() == values == naive.decode_units(coded, parameter, len(values))


@fast
@given(st.integers(0, 2**32), st.integers(1, 50), st.floats(0.01, 100.0), st.integers(0, 12))
def test_steps_are_clipped_and_folded_as_the_twin_does_it(seed, size, clip_norm, power):
    chance = np.random.default_rng(seed)
    steps = trained(size, seed, 20.0)
    scale = chance.uniform(0, 0.1, size).astype(np.float32)
    unit = (1 << chance.integers(0, power + 1, size)).astype(np.int32)
    residual = chance.integers(-5000, 5000, size).astype(np.int32)
    want, norm = naive.clip_steps(steps, scale, clip_norm)
    assert kernels.clip_steps(steps, scale, clip_norm) == norm
    assert np.array_equal(steps, want)
    total, magnitude = np.empty(size, np.int32), np.empty(size, np.float32)
    assert kernels.fold_units(steps, residual, unit, scale, total, magnitude) == 0
    want_total, want_magnitude, _ = naive.fold_units(steps, residual, unit, scale)
    assert total.tolist() == want_total
    assert np.array_equal(magnitude.view(np.uint32), want_magnitude.view(np.uint32))
    indices = np.arange(0, size, 2, dtype=np.uint32)
    units, owed = np.empty(len(indices), np.int16), np.empty(size, np.int32)
    kernels.take_units(total, unit, indices, units, owed)
    assert (units.tolist(), owed.tolist()) == naive.take_units(total, unit, indices)


def test_units_are_judged_and_added_as_the_twin_does_it():
    for values in ([1, -254], [0, 3], [255], [-32768], []):
        units = np.array(values, np.int16)
        assert kernels.units_within_limit(units) == naive.units_within_limit(values)
    some, total = update(30, 9, 4, 30.0), np.arange(30, dtype=np.int64)
    want = naive.scatter_units(total, some.indices, some.units, 4096)
    kernels.scatter_units(total, some.indices, some.units, 4096)
    assert total.tolist() == want


# The format


@pytest.mark.parametrize("size", [0, 1, 2, 63, 1000, 100_000])
@pytest.mark.parametrize("spread", [0.5, 4.0, 200.0])
def test_the_reader_sees_exactly_what_was_written(size, spread):
    for count in sorted({0, min(1, size), size // 100, size}):
        some = update(size, count, size + count, spread)
        coded = encode(some)
        assert same(decode(coded, size=size, k_max=count), some)
        assert describe(coded).count == door.count_of(coded) == count


@fast
@given(st.dictionaries(st.integers(0, 3000), integers, max_size=60))
def test_any_update_survives_the_way_and_has_one_form(entries):
    indices = np.array(sorted(entries), np.uint32)
    some = Steps(3001, indices, np.array([entries[int(i)] for i in indices], np.int16))
    again = decode(encode(some), size=3001, k_max=60)
    assert same(again, some)
    assert encode(again) == encode(some)


def test_mostly_single_steps_cost_little_more_than_their_places():
    some = Steps(17_098, update(17_098, 171, 2).indices, np.resize([1, -1, 1, 1, 2], 171).astype(np.int16))
    assert 8 * len(encode(some)) / 171 < 8.3 + 2.5  # log2 of 100 plus the code's loss, and the units
    assert len(encode(some)) < len(sparse.compress(dense(some).astype(np.float32), 171, 4)[0])


def test_large_steps_never_cost_more_than_their_escape():
    wide = Steps(300, np.arange(300, dtype=np.uint32), np.full(300, -254, np.int16))
    narrow = Steps(300, np.arange(300, dtype=np.uint32), np.ones(300, np.int16))
    mixed = Steps(300, wide.indices, np.where(wide.indices == 7, 254, 1).astype(np.int16))
    assert len(encode(mixed)) - len(encode(narrow)) == 3  # 25 bits in place of 2
    assert len(encode(wide)) <= len(encode(narrow)) + 300


def test_a_unit_that_no_model_can_take_is_not_written():
    for unit in (0, 255, -300):
        with pytest.raises(CodecError, match="0 or larger than 254"):
            encode(Steps(3, np.array([1], np.uint32), np.array([unit], np.int16)))


@pytest.mark.parametrize("vector", GOLDEN["vectors"], ids=lambda vector: vector["name"])
def test_golden_payloads_decode_and_are_written_again_to_the_bit(vector):
    coded = bytes.fromhex(vector["payload"])
    some = decode(coded, size=vector["size"], k_max=len(vector["indices"]))
    assert some.indices.tolist() == vector["indices"]
    assert some.units.tolist() == vector["units"]
    assert encode(some) == coded


def test_a_golden_payload_reads_by_hand_as_its_docstring_says():
    coded = bytes.fromhex(next(v for v in GOLDEN["vectors"] if v["name"] == "by hand")["payload"])
    # n=10, indices 1 and 6: gaps 1 and 4 with b=1 are "1 1" and "00 1 0"; units +1 and -3 with c=0: "0 1" and "1 00 1"
    assert coded == bytes([2, 10, 2, 1, 0, 0b010011, 0b100110])


def valid():
    return encode(update(1000, 20, 5, 3.0))


def with_bytes(position, *values):
    coded = bytearray(valid())
    coded[position : position + len(values)] = bytes(values)
    return bytes(coded)


BAD = {
    "empty": (b"", 1000, "empty or of another version"),
    "another version": (with_bytes(0, 1), 1000, "another version"),
    "cut in the header": (valid()[:5], 1000, "ends inside its header"),
    "a varint too long": (b"\x02" + b"\xff" * 9, 1000, "longer than five bytes"),
    "a varint longer than needed": (b"\x02\x80\x00" + valid()[3:], 1000, "longer than it need be"),
    "more values than parameters": (bytes([2, 5, 6, 0, 0, 255, 255]), 5, "claims 6 of 5"),
    "another size": (with_bytes(1, 0xE9), 1000, "this model trains 1000"),
    "a size beyond all models": (b"\x02\xff\xff\xff\xff\x0f\x01" + valid()[4:], 1000, "claims 1 of 4294967295"),
    "a gap parameter too large": (with_bytes(4, 31), 1000, "Rice parameters 31"),
    "a unit parameter too large": (with_bytes(5, 8), 1000, "and 8 for 20"),
    "no values but a parameter": (bytes([2, 5, 0, 1, 0]), 5, "for 0 values"),
    "no values but a byte": (bytes([2, 5, 0, 0, 0, 0]), 5, "1 bytes too many"),
    "only a header": (valid()[:6], 1000, "cannot hold 20"),
    "units that end early": (valid()[:-1], 1000, "units are cut short"),
    "a byte left over": (valid() + b"\0", 1000, "1 bytes too many"),
    "indices that end early": (bytes([2, 200, 1, 1, 0, 0, 0]), 200, "indices are cut short"),
    "an index at the size": (bytes([2, 3, 1, 1, 0, 0b110, 2]), 3, "beyond its 3"),
    "padding after the indices": (bytes([2, 8, 1, 0, 0, 0b11, 2]), 8, "after the update's indices"),
    "padding after the units": (bytes([2, 8, 1, 0, 0, 1, 0b110]), 8, "after the update's units"),
    "a unit of 255": (bytes([2, 8, 1, 0, 0, 1, 0, 0, 0xFC, 1]), 8, "larger than 254"),
    "an escape that need not be": (bytes([2, 8, 1, 0, 0, 1, 0, 0, 0x1E, 0]), 8, "need not be"),
    "a sign and no unit": (bytes([2, 8, 1, 0, 0, 1]), 8, "units are cut short"),
    "an escape that ends early": (bytes([2, 8, 1, 0, 0, 1, 0, 0, 0]), 8, "units are cut short"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_update_is_refused_with_a_sentence(name):
    coded, size, sentence = BAD[name]
    with pytest.raises(CodecError, match=sentence):
        decode(coded, size=size, k_max=1000)


def test_more_values_than_the_plan_allows_are_refused():
    with pytest.raises(CodecError, match="the plan allows 19"):
        decode(valid(), size=1000, k_max=19)


def test_a_plan_takes_only_the_formats_of_its_lane():
    real, _ = sparse.compress(np.ones(1000, np.float32), 20, 4)
    assert same(door.decode(valid(), "int8", size=1000, k_max=20), update(1000, 20, 5, 3.0))
    assert len(door.decode(real, "float32", size=1000, k_max=20).indices) == 20
    for lane, coded in (("int8", real), ("float32", valid()), ("int8", b""), ("int8", b"\x07")):
        with pytest.raises(CodecError, match=f"format of {lane} models"):
            door.decode(coded, lane, size=1000, k_max=20)
    assert (door.lane_of(0), door.lane_of(1), door.lane_of(8)) == ("int8", "float32", "float32")
    with pytest.raises(CodecError, match="does not start with format 1"):
        door.count_of(b"\x07")


def damage(coded, chance):
    """Cut, insert, overwrite or flip a bit, at a random place."""
    place = int(chance.integers(0, len(coded) + 1))
    match chance.integers(0, 4):
        case 0:
            del coded[place:]
        case 1:
            coded[place:place] = chance.bytes(int(chance.integers(1, 5)))
        case 2:
            coded[place : place + 1] = chance.bytes(1)
        case _:
            coded[place : place + 1] = bytes(b ^ (1 << int(chance.integers(0, 8))) for b in coded[place : place + 1])


def test_twenty_thousand_damaged_payloads_are_refused_or_within_bounds():
    chance = np.random.default_rng(5)
    starts = [encode(update(500, k, k, spread)) for k, spread in ((0, 1.0), (1, 1.0), (25, 2.0), (60, 100.0))]
    refused = accepted = 0
    for turn in range(20_000):
        coded = bytearray(starts[turn % len(starts)])
        for _ in range(chance.integers(1, 4)):
            damage(coded, chance)
        try:
            some = decode(bytes(coded), size=500, k_max=60)
        except CodecError:
            refused += 1
            continue
        accepted += 1
        assert len(some.indices) <= 60
        assert kernels.units_within_limit(some.units)
        assert not len(some.indices) or some.indices[-1] < 500
        assert (np.diff(some.indices.astype(np.int64)) > 0).all()
    assert refused > 10_000
    assert accepted > 1_000


# Error feedback


def lossy_rounds(clip_norm):
    """Give (sum of clipped steps, sum of what was sent, what is owed) after 1000 rounds."""
    size = 120
    unit = np.where(np.arange(size) % 6 == 5, 256, 1).astype(np.int32)
    scale = np.where(unit > 1, 0.01 / 256, 0.01).astype(np.float32)
    owed, taken, sent = np.zeros(size, np.int32), np.zeros(size, np.int64), np.zeros(size, np.int64)
    for number in range(1000):
        steps = trained(size, number) * np.where(unit > 1, 150, 1).astype(np.int32)
        taken += naive.clip_steps(steps, scale, clip_norm)[0]
        coded, owed = step_exact(steps, owed, unit, scale, k=5, clip_norm=clip_norm)
        sent += dense(decode(coded, size=size, k_max=5)) * unit
    return taken, sent, owed


@pytest.mark.parametrize("clip_norm", [math.inf, 0.1])
def test_over_a_thousand_lossy_rounds_not_one_step_is_lost(clip_norm):
    taken, sent, owed = lossy_rounds(clip_norm)
    assert np.array_equal(sent + owed, taken)
    assert np.count_nonzero(sent) > 100
    assert np.abs(owed).max() < 254 * 256


@fast
@given(st.integers(0, 2**32), st.integers(1, 60), st.data())
def test_one_exact_step_sends_the_largest_and_owes_the_rest(seed, size, data):
    chance = np.random.default_rng(seed)
    unit = (1 << chance.integers(0, 10, size)).astype(np.int32)
    scale = chance.uniform(0, 1, size).astype(np.float32)
    residual = chance.integers(-(2**17), 2**17, size).astype(np.int32)
    k = data.draw(st.integers(0, size))
    delta = trained(size, seed, 50.0)
    before = delta.copy(), residual.copy()
    coded, owed = step_exact(delta, residual, unit, scale, k=k, clip_norm=math.inf)
    assert np.array_equal(delta, before[0])
    assert np.array_equal(residual, before[1])
    some = decode(coded, size=size, k_max=k)
    assert np.array_equal(dense(some) * unit + owed, delta.astype(np.int64) + residual)
    _, magnitude, _ = naive.fold_units(delta, residual, unit, scale)
    ranked = sorted(range(size), key=lambda i: (-magnitude[i], i))
    assert some.indices.tolist() == sorted(i for i in ranked[:k] if magnitude[i] > 0)


def test_a_step_beyond_what_a_unit_holds_is_sent_in_part():
    one, real = np.ones(3, np.int32), np.ones(3, np.float32)
    coded, owed = step_exact(
        np.array([300, -7, 0], np.int32), np.zeros(3, np.int32), one, real, k=3, clip_norm=math.inf
    )
    assert dense(decode(coded, size=3, k_max=3)).tolist() == [254, -7, 0]
    assert owed.tolist() == [46, 0, 0]


def test_less_than_a_unit_is_never_sent_and_never_lost():
    unit, scale = np.array([64, 1], np.int32), np.array([1 / 64, 1], np.float32)
    owed = np.zeros(2, np.int32)
    seen = []
    for _ in range(5):
        coded, owed = step_exact(np.array([-30, 0], np.int32), owed, unit, scale, k=2, clip_norm=math.inf)
        seen.append(dense(decode(coded, size=2, k_max=2)).tolist()[0])
    assert seen == [0, 0, -1, 0, -1]
    assert owed.tolist() == [-150 + 128, 0]


@pytest.mark.parametrize(
    ("delta", "residual", "unit", "limits", "sentence"),
    [
        ([1, 2], [0], [1, 1], (1.0, 1), "does not fit a residual"),
        ([1, 2], [0, 0], [1], (1.0, 1), "do not belong together"),
        ([1], [0], [1], (0.0, 1), "not positive"),
        ([1], [0], [1], (float("nan"), 1), "not positive"),
        ([1], [0], [1], (1.0, 2), "Cannot send 2 of 1"),
        ([2**31 - 1], [1], [1], (math.inf, 1), "more steps than 32 bits"),
        ([-(2**31) + 1], [-9], [1], (math.inf, 1), "more steps than 32 bits"),
    ],
)
def test_numbers_that_cannot_become_an_update_are_refused(delta, residual, unit, limits, sentence):
    delta, residual, unit = (np.array(values, np.int32) for values in (delta, residual, unit))
    with pytest.raises(CodecError, match=sentence):
        step_exact(delta, residual, unit, np.ones(len(delta), np.float32), k=limits[1], clip_norm=limits[0])


def test_a_residual_survives_flash_and_damage_to_it_is_seen():
    residual = trained(50, 1, 1000.0)
    kept = dump_residual(residual, 3)
    loaded = load_residual(kept, 50, "int8", 3)
    assert loaded.dtype == np.int32
    assert np.array_equal(loaded, residual)
    loaded[0] = 1  # it may be written
    for place in range(len(kept)):
        damaged = bytearray(kept)
        damaged[place] ^= 4
        with pytest.raises(CodecError, match="damaged"):
            load_residual(bytes(damaged), 50, "int8", 3)
    for length in (0, 5, 20, 21, 100, len(kept) - 1):
        with pytest.raises(CodecError, match=r"cut short|damaged"):
            load_residual(kept[:length], 50, "int8", 3)


def test_a_residual_of_another_model_lane_or_scale_epoch_is_let_go():
    kept = dump_residual(trained(50), 3)
    with pytest.raises(CodecError, match="of 50 int8 parameters, this one has 51"):
        load_residual(kept, 51, "int8", 3)
    with pytest.raises(CodecError, match="this one has 50 float32"):
        load_residual(kept, 50, "float32", 3)
    with pytest.raises(CodecError, match="of scale epoch 3, the model of 4"):
        load_residual(kept, 50, "int8", 4)
    with pytest.raises(CodecError, match="damaged, or of another program version"):
        load_residual(b"HRES" + bytes(40), 50, "int8", 3)


def build_golden():
    """The golden vectors, made anew: `python -m tests.engine.test_steps` along with docs/WIRE.md."""
    some = {
        "by hand": Steps(10, np.array([1, 6], np.uint32), np.array([1, -3], np.int16)),
        "nothing": Steps(17_098, np.zeros(0, np.uint32), np.zeros(0, np.int16)),
        "one": Steps(1, np.zeros(1, np.uint32), np.array([-254], np.int16)),
        "escapes": Steps(40, np.array([0, 3, 39], np.uint32), np.array([254, 1, -16], np.int16)),
        "many single steps": update(17_098, 40, 1, 0.5),
        "wide": update(2_000, 40, 2, 60.0),
    }
    return {
        "vectors": [
            {
                "name": name,
                "size": one.size,
                "indices": one.indices.tolist(),
                "units": one.units.tolist(),
                "payload": encode(one).hex(),
            }
            for name, one in some.items()
        ]
    }


if __name__ == "__main__":
    (Path(__file__).parents[1] / "golden/codec_v2.json").write_text(json.dumps(build_golden(), indent=1) + "\n")
