"""The update payload: what goes in comes out, what is damaged is refused, what is left out stays owed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.codec.header import CodecError
from engine.codec.residual import dump_residual, load_residual, step
from engine.codec.sparse import Header, Sparse, compress, decode, dense, describe
from tests import naive

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/codec_v1.json").read_text())
fast = settings(deadline=None, max_examples=40)


def heavy(size, seed=0):
    return np.random.default_rng(seed).standard_t(3, size).astype(np.float32)


def same(one, other):
    return (
        one.size == other.size
        and np.array_equal(one.indices, other.indices)
        and np.array_equal(one.values.view(np.uint32), other.values.view(np.uint32))
    )


@pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 65, 1000, 100_000])
@pytest.mark.parametrize("value_bits", range(1, 9))
def test_the_reader_sees_exactly_what_the_writer_said_it_would(size, value_bits):
    update = heavy(size)
    for k in sorted({0, min(1, size), size // 100, size}):
        payload, sent = compress(update, k, value_bits)
        assert same(decode(payload, size=size, k_max=k), sent)
        assert sent.indices.tolist() == naive.choose_largest(update, k) if size <= 1000 else len(sent.indices) == k
        assert describe(payload).count == k


@fast
@given(st.lists(st.floats(-1e3, 1e3, width=32), max_size=60), st.integers(1, 8), st.data())
def test_any_update_survives_the_way(values, value_bits, data):
    update = np.array(values, np.float32)
    k = data.draw(st.integers(0, len(values)))
    payload, sent = compress(update, k, value_bits)
    assert same(decode(payload, size=len(values), k_max=k), sent)
    assert (np.abs(sent.values) <= 64).all()


def test_zeros_are_never_sent():
    payload, sent = compress(np.array([0, -0.0, 3, 0, -1], np.float32), 5, 4)
    assert sent.indices.tolist() == [2, 4]
    assert describe(payload).count == 2


def test_a_large_value_saturates_and_the_rest_stays_owed():
    delta = np.array([100, -2000, 1], np.float32)
    payload, owed = step(delta, np.zeros(3, np.float32), 2, 8, math.inf)
    assert dense(decode(payload, size=3, k_max=2)).tolist() == [64, -64, 0]
    assert owed.tolist() == [36, -1936, 1]


@pytest.mark.parametrize("vector", GOLDEN["vectors"], ids=lambda vector: vector["name"])
def test_golden_payloads_decode_and_are_written_again_to_the_bit(vector):
    payload = bytes.fromhex(vector["payload"])
    sparse = decode(payload, size=vector["size"], k_max=vector["count"])
    assert sparse.indices.tolist() == vector["indices"]
    assert sparse.values.astype("<f4").tobytes().hex() == vector["values"]
    update = np.frombuffer(bytes.fromhex(vector["update"]), "<f4")
    again, sent = compress(update, vector["k"], vector["value_bits"])
    assert again == payload
    assert same(sent, sparse)


def test_a_golden_payload_reads_by_hand_as_its_docstring_says():
    payload = bytes.fromhex(next(v for v in GOLDEN["vectors"] if v["name"] == "by hand")["payload"])
    # n=10, indices 1 and 6: gaps 1 and 4; b=1: "1 1" and "00 1 0"; 2-bit values +1 (level 1) and -1/4 (level 0)
    head = bytes([1, 10, 2, 1, 2]) + np.float32(1).tobytes()
    assert payload == head + bytes([0b010011, 0b0110])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_indices_cost_at_most_two_per_cent_more_than_any_code_must(seed):
    size, k = 1_000_000, 10_000
    payload, _ = compress(heavy(size, seed), k, 1)
    header = describe(payload)
    index_bits = 8 * (len(payload) - header.header_bytes - k // 8)
    bound = (math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1)) / math.log(2)
    assert 1 <= index_bits / bound <= 1.02


def valid():
    payload, _ = compress(heavy(1000), 20, 3)
    return payload


def with_bytes(position, *values):
    payload = bytearray(valid())
    payload[position : position + len(values)] = bytes(values)
    return bytes(payload)


SCALE = 6
BAD = {
    "empty": (b"", "empty or of another version"),
    "another version": (with_bytes(0, 2), "another version"),
    "cut in the header": (valid()[:8], "ends inside its header"),
    "cut in a varint": (b"\x01\xff", "ends inside its header"),
    "a varint too long": (b"\x01" + b"\xff" * 9, "longer than five bytes"),
    "a varint longer than needed": (b"\x01\x80\x00" + valid()[3:], "longer than it need be"),
    "no values but a scale": (bytes([1, 5, 0, 0, 4]) + np.float32(1).tobytes(), "scale"),
    "no values and a scale of minus zero": (bytes([1, 5, 0, 0, 4, 0, 0, 0, 0x80]), "scale"),
    "more values than parameters": (bytes([1, 5, 6, 0, 4]) + np.float32(1).tobytes(), "claims 6 of 5"),
    "another size": (with_bytes(1, 0xE9), "this model trains 1000"),
    "a size beyond all models": (b"\x01\xff\xff\xff\xff\x0f\x01" + valid()[4:], "claims 1 of 4294967295"),
    "a Rice parameter too large": (with_bytes(4, 31), "Rice parameter 31"),
    "values of no bits": (with_bytes(5, 0), "0 bits a value"),
    "values of nine bits": (with_bytes(5, 9), "9 bits a value"),
    "scale zero": (with_bytes(SCALE, 0, 0, 0, 0), "scale"),
    "scale negative": (with_bytes(SCALE, 0, 0, 0x80, 0xBF), "scale"),
    "scale infinite": (with_bytes(SCALE, 0, 0, 0x80, 0x7F), "scale"),
    "scale NaN": (with_bytes(SCALE, 0, 0, 0xC0, 0x7F), "scale"),
    "scale just above 64": (with_bytes(SCALE, 1, 0, 0x80, 0x42), "scale"),
    "cut in the values": (valid()[:-1], "cut short|beyond|too many|padding"),
    "only a header": (valid()[:10], "cut short"),
    "a byte left over": (valid() + b"\0", "cut short|too many|padding|beyond"),
    "padding after the values": (valid()[:-1] + bytes([valid()[-1] | 0x80]), "after the update's values"),
    "padding after the indices": (bytes([1, 8, 1, 0, 8, 0, 0, 0x80, 0x3F, 0b11, 0]), "after the update's indices"),
    "a byte between": (bytes([1, 8, 1, 0, 8, 0, 0, 0x80, 0x3F, 1, 0, 0]), "1 bytes too many"),
    "an index at the size": (bytes([1, 3, 1, 1, 8, 0, 0, 0x80, 0x3F, 0b110, 0]), "beyond its 3"),
    "a run too long": (bytes([1, 3, 1, 0, 8, 0, 0, 0x80, 0x3F, 0, 0, 0, 0, 1, 0]), "beyond its 3"),
    "low bits that end early": (bytes([1, 200, 1, 1, 6, 8, 0, 0, 0x80, 0x3F, 0b100, 0]), "indices are cut short"),
    "indices that end early": (bytes([1, 200, 1, 1, 0, 8, 0, 0, 0x80, 0x3F, 0, 0]), "indices are cut short"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_update_is_refused_with_a_sentence(name):
    payload, sentence = BAD[name]
    with pytest.raises(CodecError, match=sentence):
        decode(payload, size=describe_size(name), k_max=1000)


def describe_size(name):
    sizes = {"padding after the indices": 8, "a byte between": 8, "an index at the size": 3, "a run too long": 3}
    return sizes.get(name, 200 if name.endswith("end early") else 1000)


def test_more_values_than_the_plan_allows_are_refused():
    with pytest.raises(CodecError, match="the plan allows 19"):
        decode(valid(), size=1000, k_max=19)


def damage(payload, chance):
    """Cut, insert, overwrite or flip a bit, at a random place."""
    place = int(chance.integers(0, len(payload) + 1))
    match chance.integers(0, 4):
        case 0:
            del payload[place:]
        case 1:
            payload[place:place] = chance.bytes(int(chance.integers(1, 5)))
        case 2:
            payload[place : place + 1] = chance.bytes(1)
        case _:
            payload[place : place + 1] = bytes(
                b ^ (1 << int(chance.integers(0, 8))) for b in payload[place : place + 1]
            )


def test_twenty_thousand_damaged_payloads_are_refused_or_within_bounds():
    chance = np.random.default_rng(5)
    kinds = [(0, 4), (1, 1), (25, 4), (60, 8)]
    starts = [compress(heavy(500, seed), k, bits)[0] for seed, (k, bits) in enumerate(kinds)]
    refused = accepted = 0
    for turn in range(20_000):
        payload = bytearray(starts[turn % len(starts)])
        for _ in range(chance.integers(1, 4)):
            damage(payload, chance)
        try:
            sparse = decode(bytes(payload), size=500, k_max=60)
        except CodecError:
            refused += 1
            continue
        accepted += 1
        assert len(sparse.indices) == len(sparse.values) <= 60
        assert (np.diff(sparse.indices.astype(np.int64)) > 0).all()
        assert not len(sparse.indices) or sparse.indices[-1] < 500
        assert (np.abs(sparse.values) <= 64).all()
    assert refused > 1000
    assert accepted > 1000


def test_the_header_says_what_is_inside():
    payload, sent = compress(np.array([0, 2, 0, -1], np.float32), 2, 4)
    assert describe(payload) == Header(size=4, count=2, parameter=0, value_bits=4, scale=2.0, header_bytes=9)
    assert dense(sent).tolist() == [0, 2, 0, -2 * (6 / 8) ** 2]


def test_what_cannot_be_sent_is_refused():
    update = heavy(10)
    for k, value_bits in [(-1, 4), (11, 4), (3, 0), (3, 9)]:
        with pytest.raises(CodecError, match="Cannot send"):
            compress(update, k, value_bits)
    update[4] = np.nan
    with pytest.raises(CodecError, match="NaN"):
        compress(update, 3, 4)


@pytest.mark.parametrize("value_bits", [1, 2, 4, 8])
def test_nothing_is_lost_only_late_through_a_thousand_rounds(value_bits):
    size, chance = 300, np.random.default_rng(value_bits)
    residual = np.zeros(size, np.float32)
    given_up, sent = np.zeros(size), np.zeros(size)
    for _ in range(1000):
        delta = (chance.standard_t(3, size) * 0.02 + 0.001).astype(np.float32)
        given_up += naive.clip_to_norm(delta, 0.5)[0]
        payload, residual = step(delta, residual, 6, value_bits, 0.5)
        sent += dense(decode(payload, size=size, k_max=6))
    error = np.abs(sent + residual - given_up)
    assert error.max() <= 1e-6 * np.abs(given_up).max()
    assert np.abs(residual).max() < 0.5 * np.abs(given_up).max()


def test_the_delta_is_clipped_and_the_debt_is_not():
    delta, debt = np.array([3, 4, 0], np.float32), np.array([0, 0, 60], np.float32)
    payload, owed = step(delta, debt, 1, 8, 1.0)
    assert dense(decode(payload, size=3, k_max=1)).tolist() == [0, 0, 60]
    assert owed.tolist() == np.array([0.6, 0.8, 0], np.float32).tolist()
    assert delta.tolist() == [3, 4, 0]
    assert debt.tolist() == [0, 0, 60]


def test_a_step_that_makes_no_sense_is_refused():
    zeros = np.zeros(3, np.float32)
    for delta, residual, clip_norm, sentence in [
        (zeros, zeros[1:], 1.0, "does not fit"),
        (zeros, zeros, 0.0, "clip norm"),
        (zeros, zeros, math.nan, "clip norm"),
        (np.array([0, np.nan, 0], np.float32), zeros, 1.0, "NaN"),
        (np.array([0, np.inf, 0], np.float32), zeros, 1.0, "NaN"),
        (zeros, np.array([0, 0, np.inf], np.float32), 1.0, "NaN"),
    ]:
        with pytest.raises(CodecError, match=sentence):
            step(delta, residual, 1, 4, clip_norm)


def test_a_residual_survives_flash_and_damage_to_it_is_seen():
    residual = heavy(50)
    kept = dump_residual(residual)
    assert len(kept) == 21 + 200
    assert np.array_equal(load_residual(kept, 50, "float32"), residual)
    load_residual(kept, 50, "float32")[0] = 1  # it may be written
    for place in range(len(kept)):
        damaged = bytearray(kept)
        damaged[place] ^= 4
        with pytest.raises(CodecError, match="damaged"):
            load_residual(bytes(damaged), 50, "float32")
    for length in (0, 5, 20, 21, 100, 220):
        with pytest.raises(CodecError, match=r"cut short|damaged"):
            load_residual(kept[:length], 50, "float32")
    with pytest.raises(CodecError, match="this one has 51"):
        load_residual(kept, 51, "float32")
    residual[7] = np.nan
    with pytest.raises(CodecError, match="NaN"):
        load_residual(dump_residual(residual), 50, "float32")


def test_a_sparse_update_becomes_dense_where_it_says():
    sparse = Sparse(5, np.array([1, 4], np.uint32), np.array([2, -3], np.float32))
    assert dense(sparse).tolist() == [0, 2, 0, 0, -3]
