"""Folding: constants in disguise are constants, shape arithmetic is left out, and whatever touches the data stays."""

import dataclasses
import time

import numpy as np
import pytest

from engine.models import fold as folding
from engine.models.fold import fold, live_operators
from engine.models.graph import Graph, ModelError, Operator, Tensor
from engine.models.tflite import read
from tests.engine.graph_tflite import write
from tests.engine.models_at_hand import each_model, loaded

FLOAT = (np.zeros(0, np.float32), np.zeros(0, np.int64))


def tensor(index, shape, dtype="float32", data=None, scale=FLOAT):
    return Tensor(index, f"t{index}", shape, dtype, *scale, 0, data)


def operator(index, kind, inputs, outputs, **options):
    return Operator(index, kind, inputs, outputs, "NONE", options)


def flattening(*, more=(), outputs=(7,)):
    """[1, 2, 3, 2] -> SHAPE, STRIDED_SLICE, PACK with 12 -> RESHAPE -> LOGISTIC, as Keras' Flatten is converted."""
    ints = lambda *values: np.array(values, np.int32)  # noqa: E731
    tensors = [
        tensor(0, (1, 2, 3, 2)),
        tensor(1, (4,), "int32"),
        tensor(2, (1,), "int32", ints(0)),
        tensor(3, (1,), "int32", ints(1)),
        tensor(4, (), "int32"),
        tensor(5, (), "int32", np.array(12, np.int32)),
        tensor(6, (2,), "int32"),
        tensor(7, (1, 12)),
        tensor(8, (1, 12)),
        tensor(9, (2,), "int32"),
    ]
    operators = (
        operator(0, "SHAPE", (0,), (1,), out_type=2),
        operator(1, "STRIDED_SLICE", (1, 2, 3, 3), (4,), shrink=1),
        operator(2, "PACK", (4, 5), (6,), values_count=2, axis=0),
        operator(3, "RESHAPE", (0, 6), (7,)),
        operator(4, "LOGISTIC", (7,), (8,)),
        *more,
    )
    return Graph(tuple(tensors), operators, (0,), outputs)


def test_a_flatten_for_any_batch_is_one_reshape_and_its_tensor_has_the_shape_the_runtime_makes():
    graph = read(write(flattening(outputs=(8,))))
    assert live_operators(graph) == (3, 4)
    opened = loaded(write(flattening(outputs=(8,))))
    given = np.arange(12, dtype=np.float32).reshape(1, 2, 3, 2)
    opened.set_tensor(0, given)
    opened.invoke()
    answer = opened.get_tensor(8)
    assert answer.shape == graph.tensors[graph.operators[3].outputs[0]].shape
    assert np.allclose(answer, 1 / (1 + np.exp(-given.reshape(1, 12))))


@pytest.mark.parametrize(
    ("more", "outputs", "live"),
    [
        ([], (8, 6), (0, 1, 2, 3, 4)),  # the shape itself is an answer
        ([operator(5, "ADD", (6, 6), (9,))], (8,), (3, 4)),  # used for nothing at all
        ([operator(5, "ADD", (6, 6), (9,))], (8, 9), (0, 1, 2, 3, 4, 5)),
        ([operator(5, "CUSTOM", (8, 6), (9,))], (8,), (0, 1, 2, 3, 4, 5)),  # used beside the data
    ],
)
def test_shape_arithmetic_that_is_used_for_more_stays(more, outputs, live):
    assert live_operators(flattening(more=more, outputs=outputs)) == live


def test_an_operator_on_the_data_that_ends_in_a_shape_stays():
    graph = flattening(outputs=(8,))
    asked = dataclasses.replace(graph.operators[0], kind="ARG_MAX")  # its result depends on the window
    assert live_operators(dataclasses.replace(graph, operators=(asked, *graph.operators[1:]))) == (0, 1, 2, 3, 4)


def test_a_shape_that_is_reshaped_as_data_stays():
    graph = flattening(more=[operator(5, "RESHAPE", (6, 2), (9,))], outputs=(8, 9))
    assert live_operators(graph) == (0, 1, 2, 3, 4, 5)


@each_model
def test_models_without_such_operators_are_left_as_they_are(path):
    graph = read(path.read_bytes())
    assert live_operators(graph) == tuple(range(len(graph.operators)))
    assert fold(graph) == graph


def unpacking(stored, made=None):
    made = tensor(1, stored.shape) if made is None else made
    others = [tensor(2, (1, 2, 3)), tensor(3, (1, 2, 3))]
    operators = (operator(0, "DEQUANTIZE", (0,), (1,)), operator(1, "ADD", (2, 1), (3,)))
    return Graph((stored, made, *others), operators, (2,), (3,))


@pytest.mark.parametrize(
    "stored",
    [
        tensor(0, (2, 3), "float16", np.array([[1, -2, 0.1], [3e-6, 60000, -0.0]], np.float16)),
        tensor(
            0, (2, 3), "int8", np.array([[1, -128, 127], [0, 5, -6]], np.int8),
            (np.array([0.3], np.float32), np.array([-7])),
        ),
        tensor(
            0, (2, 3), "int8", np.array([[1, -128, 127], [0, 5, -6]], np.int8),
            (np.array([0.3, 0.007], np.float32), np.array([0, 3])),
        ),
    ],
    ids=["float16", "int8", "int8 per channel"],
)  # fmt: skip
def test_a_constant_that_is_unpacked_is_what_the_runtime_makes_of_it(stored):
    graph = read(write(unpacking(stored)))
    folded = fold(graph)
    assert live_operators(graph) == (0, 1)
    assert live_operators(folded) == (1,)
    assert folded.operators == graph.operators
    assert not folded.tensors[1].data.flags.writeable
    if len(stored.scale) < 2:
        opened = loaded(write(unpacking(stored)))
        opened.set_tensor(2, np.zeros((1, 2, 3), np.float32))
        opened.invoke()
        assert np.array_equal(opened.get_tensor(3)[0], folded.tensors[1].data)
    else:
        expected = [[(v - z) * s for v in row] for row, z, s in zip(stored.data.tolist(), (0, 3), (0.3, 0.007))]  # noqa: B905
        assert np.allclose(folded.tensors[1].data, expected)


def test_a_dequantize_of_data_stays():
    graph = unpacking(tensor(0, (2, 3), "int8", None, (np.array([0.3], np.float32), np.array([0]))))
    assert fold(graph) == graph


@pytest.mark.parametrize(
    ("graph", "sentence"),
    [
        (unpacking(tensor(0, (2, 3), "int8", np.zeros((2, 3), np.int8))), "unpacks a constant of int8"),
        (unpacking(tensor(0, (2, 3), "int32", np.zeros((2, 3), np.int32))), "unpacks a constant of int32"),
        (
            unpacking(tensor(0, (2, 3), "float16", np.zeros((2, 3), np.float16)), tensor(1, (3, 2))),
            r"operator 0 \(DEQUANTIZE\) makes \(3, 2\) out of \(2, 3\)",
        ),
    ],
)
def test_a_constant_that_cannot_be_unpacked_is_refused(graph, sentence):
    with pytest.raises(ModelError, match=sentence):
        fold(graph)


def test_a_small_file_cannot_ask_for_endless_constants(monkeypatch):
    monkeypatch.setattr(folding, "FOLDED_BYTES_MAX", 1 << 20)
    stored = tensor(0, (1 << 16,), "float16", np.zeros(1 << 16, np.float16))
    made = [tensor(index, (1 << 16,)) for index in range(1, 1001)]
    operators = tuple(operator(index - 1, "DEQUANTIZE", (0,), (index,)) for index in range(1, 1001))
    start = time.thread_time()
    with pytest.raises(ModelError, match=r"operator 4 \(DEQUANTIZE\) is one of many that unpack constants"):
        fold(Graph((stored, *made), operators, (), (1000,)))
    assert time.thread_time() - start < 2
