"""Model files that are damaged or made to harm: whatever the bytes, reading them ends in a graph or a ModelError."""

import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.graph import ABSENT, FILE_BYTES_MAX, Graph, ModelError, Operator, Tensor
from engine.models.scheme import constants_of, params_of, resolve
from engine.models.tflite import IDENTIFIER, cut_prefix, patch, read
from tests.engine.graph_tflite import write

SHIPPED = Path(__file__).parents[2] / "firmware_sim" / "models"
WRIST = (SHIPPED / "wrist.tflite").read_bytes()
DIGITS = (SHIPPED / "digits.tflite").read_bytes()
EXTREMES = (0, 1, 4, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFC, 0xFFFF_FFFF)


def structure_of(data):
    """Positions of the bytes that are not weights: the ones that can lead a reader astray."""
    start, free = np.frombuffer(data, np.uint8).__array_interface__["data"][0], np.ones(len(data), bool)
    for tensor in read(data).tensors:
        if tensor.data is not None:
            first = tensor.data.__array_interface__["data"][0] - start
            free[first : first + tensor.data.nbytes] = False
    return np.flatnonzero(free).tolist()


STRUCTURE = structure_of(WRIST)


def use(data):
    """Do everything a device does with a file before it runs it; return whether it was taken."""
    try:
        graph = read(data)
        suffix = resolve(graph, "last-2")
        read(cut_prefix(data, suffix.cut, suffix.entering))
        patch(data, graph, constants_of(graph, suffix, params_of(graph, suffix)))
    except ModelError:
        return False
    return True


def test_the_sound_files_are_taken_and_have_little_structure():
    assert use(WRIST)
    assert use(DIGITS)
    assert 3000 < len(STRUCTURE) < 20000


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(STRUCTURE), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_load_or_are_refused(changes):
    data = bytearray(WRIST)
    for at, value in changes:
        data[at] = value
    use(bytes(data))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(STRUCTURE), st.sampled_from(EXTREMES)), min_size=1, max_size=3))
def test_extreme_offsets_and_lengths_load_or_are_refused(changes):
    data = bytearray(WRIST)
    for at, value in changes:
        struct.pack_into("<I", data, min(at & ~3, len(data) - 4), value)
    use(bytes(data))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, len(WRIST) - 1))
def test_a_file_that_ends_early_loads_or_is_refused(length):
    use(WRIST[:length])


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=400))
def test_any_bytes_behind_the_mark_load_or_are_refused(tail):
    use(struct.pack("<I", 16) + IDENTIFIER + tail)


def test_hundreds_of_random_flips_load_or_are_refused_and_both_happen():
    rng, taken = random.Random(11), 0
    for _ in range(300):
        data = bytearray(WRIST)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.choice(STRUCTURE)] ^= 1 << rng.randrange(8)
        taken += use(bytes(data))
    assert 15 < taken < 285


def test_any_file_cut_anywhere_near_its_beginning_is_refused():
    for length in range(64):
        assert not use(DIGITS[:length])


def many_references(count, target_bytes):
    """A file whose subgraph lists one tensor `count` times; the tensor has a name of `target_bytes`."""
    data = bytearray(struct.pack("<I4s", 32, IDENTIFIER))
    data += struct.pack("<HHHHH", 10, 12, 4, 0, 8) + bytes(14)  # root's vtable at 8: version, subgraphs
    data += struct.pack("<iII", 32 - 8, 3, 4)  # root at 32; its vector of subgraphs follows at 44
    data += struct.pack("<II", 1, 8 + 4)  # one subgraph, at 48 + 12 = 60
    data += struct.pack("<HHHH", 6, 8, 4, 0)  # its vtable at 52
    data += struct.pack("<iI", 60 - 52, 4)  # subgraph at 60; its vector of tensors at 68
    tensor = 68 + 4 + 4 * count + 12
    data += struct.pack("<I", count) + b"".join(struct.pack("<I", tensor - (72 + 4 * k)) for k in range(count))
    data += struct.pack("<HHHHHH", 12, 8, 0, 0, 0, 4)  # the tensor's vtable: only a name
    data += struct.pack("<iI", 12, 4) + struct.pack("<I", target_bytes) + b"x" * target_bytes
    return bytes(data)


def test_a_small_file_that_would_take_for_ever_is_refused_quickly():
    with pytest.raises(ModelError, match="names buffer 0 of 0"):
        read(many_references(1, 100))  # the file is built as meant: its first tensor is reached
    start = time.thread_time()
    with pytest.raises(ModelError, match="too intricate"):
        read(many_references(400_000, 4000) + b"\0")
    assert time.thread_time() - start < 10


def test_a_file_that_is_too_large_or_no_model_is_refused_by_its_first_bytes():
    with pytest.raises(ModelError, match="at most"):
        read(bytes(FILE_BYTES_MAX + 1))
    with pytest.raises(ModelError, match="TFL3"):
        read(b"PK\x03\x04" + bytes(200))
    with pytest.raises(ModelError, match="TFL3"):
        read(b"")


def chain(*operators, shape=(1, 4), outputs=(2,)):
    """A written graph of four tensors without constants, and ADD operators with these (inputs, outputs)."""
    none = np.zeros(0, np.float32), np.zeros(0, np.int64)
    tensors = [Tensor(index, f"t{index}", shape, "float32", *none, 0, None) for index in range(4)]
    made = [Operator(index, "ADD", given, left, "NONE", {}) for index, (given, left) in enumerate(operators)]
    return write(Graph(tuple(tensors), tuple(made), (0,), outputs))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (chain(((0, 2), (1,)), ((0, 0), (2,))), r"operator 0 \(ADD\) uses tensor 2 before operator 1 \(ADD\) makes it"),
        (chain(((0, 1), (1,)), ((1, 1), (2,))), r"operator 0 \(ADD\) uses tensor 1 before operator 0 \(ADD\) makes it"),
        (chain(((0, 0), (1,)), ((1, 1), (1,))), r"operator 1 \(ADD\) makes tensor 1, which is there already"),
        (chain(((0, 0), (0,))), r"operator 0 \(ADD\) makes tensor 0, which is there already"),
        (chain(((0, 4), (1,))), r"operator 0 \(ADD\) names a tensor outside the 4 of the model"),
        (chain(((0, -2), (1,))), r"operator 0 \(ADD\) names a tensor outside the 4 of the model"),
        (chain(((0, 0), (-1,))), r"operator 0 \(ADD\) names a tensor outside the 4 of the model"),
        (chain(((0, 0), (1,)), outputs=(4,)), "the model's output list names a tensor outside"),
        (
            chain(((0, 0), (1,)), shape=(1, 1 << 15, 1 << 14)),
            r"has the shape \(1, 32768, 16384\); export it with",
        ),
        (chain(((0, 0), (1,)), shape=(1,) * 9), "has the shape"),
        (chain(((0, 0), (1,)), shape=(1, -1)), "has the shape"),
    ],
)
def test_a_graph_that_cannot_be_run_in_its_order_or_be_held_is_refused(data, sentence):
    with pytest.raises(ModelError, match=sentence):
        read(data)


def test_a_graph_in_its_order_is_read_with_inputs_left_out():
    graph = read(chain(((0, -1), (1,)), ((1, 0), (2,)), shape=(1, 1 << 14, 1 << 14)))
    assert [op.inputs for op in graph.operators] == [(0, ABSENT), (1, 0)]


def test_numbers_of_an_operator_that_are_no_numbers_are_refused():
    for beta, is_read in ((1.0, True), (float("nan"), False), (float("inf"), False)):
        none = np.zeros(0, np.float32), np.zeros(0, np.int64)
        tensors = tuple(Tensor(index, f"t{index}", (1, 4), "float32", *none, 0, None) for index in range(2))
        data = write(Graph(tensors, (Operator(0, "SOFTMAX", (0,), (1,), "NONE", {"beta": beta}),), (0,), (1,)))
        if is_read:
            assert read(data).operators[0].options == {"beta": 1.0}
            continue
        with pytest.raises(ModelError, match=r"operator 0 \(SOFTMAX\) has NaN or infinity among its numbers"):
            read(data)
