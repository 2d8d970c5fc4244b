"""Constants written back into a `.tflite` file: only they change, every runtime takes the file, and nothing slips."""

import dataclasses

import numpy as np
import pytest

from engine.models.fold import fold
from engine.models.graph import ABSENT, Graph, ModelError, Operator, Tensor
from engine.models.tflite import patch, patch_scales, read
from tests.engine.graph_tflite import write
from tests.engine.models_at_hand import SHIPPED, each_model, loaded, random_input

WRIST = (SHIPPED / "wrist.tflite").read_bytes()


def trainable(graph):
    """Weights and biases that no other tensor shares its bytes with."""
    wanted = [op.inputs[1:3] for op in graph.operators if "CONV_2D" in op.kind or op.kind == "FULLY_CONNECTED"]
    found = [graph.tensors[index] for pair in wanted for index in pair if index != ABSENT]
    place = [tensor.data.__array_interface__["data"][0] for tensor in found]
    return [tensor for tensor, at in zip(found, place, strict=True) if place.count(at) == 1]


def changed_constants(graph, seed=0):
    rng = np.random.default_rng(seed)
    values = {}
    for tensor in trainable(graph):
        if tensor.dtype == "float32":
            values[tensor.index] = rng.normal(0, 0.1, tensor.shape).astype(np.float32)
        else:
            values[tensor.index] = rng.integers(-127, 128, tensor.shape).astype(tensor.dtype)
    return values


def answer(data, index=None):
    opened = loaded(data)
    graph = read(data)
    opened.set_tensor(graph.inputs[0], random_input(graph))
    opened.invoke()
    return opened.get_tensor(graph.outputs[0] if index is None else index)


@each_model
def test_the_runtime_sees_exactly_the_constants_that_were_written(path):
    data = path.read_bytes()
    graph = read(data)
    constants = changed_constants(graph)
    written = patch(data, graph, constants)
    assert len(written) == len(data)
    opened, again = loaded(written), read(written)
    assert len(constants) >= 4
    for tensor in again.tensors:
        expected = constants.get(tensor.index, graph.tensors[tensor.index].data)
        assert np.array_equal(tensor.data, expected) if expected is not None else tensor.data is None
        if tensor.index in constants:
            assert np.array_equal(opened.get_tensor(tensor.index), expected)
    assert not np.array_equal(answer(written), answer(data))
    assert patch(written, again, {index: graph.tensors[index].data for index in constants}) == data


def test_no_byte_but_those_of_the_constants_is_another():
    graph = read(WRIST)
    tensor = trainable(graph)[-2]
    written = patch(WRIST, graph, {tensor.index: ~tensor.data})
    different = np.flatnonzero(np.frombuffer(WRIST, np.uint8) != np.frombuffer(written, np.uint8))
    first = tensor.data.__array_interface__["data"][0] - np.frombuffer(WRIST, np.uint8).__array_interface__["data"][0]
    assert different.tolist() == list(range(first, first + tensor.data.nbytes))
    assert patch(WRIST, graph, {}) == WRIST


def test_scales_are_written_and_the_runtime_uses_them():
    data = (SHIPPED / "digits.tflite").read_bytes()
    graph = read(data)
    last = graph.operators[-2]
    weights, bias = (graph.tensors[index] for index in last.inputs[1:3])
    scales = {weights.index: weights.scale * np.float32(2), bias.index: bias.scale * np.float32(2)}
    written = patch_scales(data, graph, scales)
    assert len(written) == len(data)
    again = read(written)
    for tensor in graph.tensors:
        assert np.array_equal(again.tensors[tensor.index].scale, scales.get(tensor.index, tensor.scale))
    details = {entry["index"]: entry for entry in loaded(written).get_tensor_details()}
    assert np.array_equal(details[weights.index]["quantization_parameters"]["scales"], weights.scale * np.float32(2))
    logits = graph.tensors[last.outputs[0]]
    before, after = (answer(cut(data), logits.index).astype(int) for data in (data, written))
    apart = 2 * (before - logits.zero_point[0]) - (after - logits.zero_point[0])
    assert np.abs(apart[(after > -128) & (after < 127)]).max() <= 1
    assert not np.array_equal(before, after)


def cut(data):
    from engine.models.tflite import cut_prefix

    graph = read(data)
    return cut_prefix(data, len(graph.operators) - 1, graph.operators[-2].outputs[0])


def small_graph(kinds=("FULLY_CONNECTED", "FULLY_CONNECTED"), width=4):
    none = np.zeros(0, np.float32), np.zeros(0, np.int64)
    tensors, operators = [Tensor(0, "in", (1, width), "float32", *none, 0, None)], []
    for index, kind in enumerate(kinds):
        entering, place = tensors[-1].index, len(tensors)
        tensors.append(Tensor(place, f"w{index}", (width, width), "float32", *none, 0, np.eye(width, dtype=np.float32)))
        tensors.append(Tensor(place + 1, f"b{index}", (width,), "float32", *none, 0, np.zeros(width, np.float32)))
        tensors.append(Tensor(place + 2, f"out{index}", (1, width), "float32", *none, 0, None))
        operators.append(Operator(index, kind, (entering, place, place + 1), (place + 2,), "NONE", {}))
    return Graph(tuple(tensors), tuple(operators), (0,), (tensors[-1].index,))


def test_a_constant_that_two_tensors_share_is_written_for_both_or_refused():
    data = write(small_graph(), buffers={5: 2})
    graph, new = read(data), np.arange(4, dtype=np.float32)
    assert np.array_equal(read(patch(data, graph, {2: new, 5: new})).tensors[5].data, new)
    for constants in ({2: new}, {5: new}, {2: new, 5: new + 1}, {2: new, 1: np.eye(4, dtype=np.float32)}):
        with pytest.raises(
            ModelError, match=r"tensor [25] \('b[01]'\) shares its bytes with tensor [25] of subgraph 0"
        ):
            patch(data, graph, constants)


def test_a_constant_that_another_subgraph_uses_is_refused():
    data = write(small_graph(), more_subgraphs=(small_graph(),))
    graph = read(data)
    assert patch(data, graph, {2: np.ones(4, np.float32)}) != data  # each subgraph has constants of its own here
    from engine.models import tflite

    users = tflite._buffer_users(tflite._open(data))
    second = next(number for number, who in users.items() if (1, 2) in who)
    first = next(number for number, who in users.items() if (0, 2) in who)
    entry = tflite._open(data).tables(2)[1].tables(0)[2]
    shared = bytearray(data)
    at = entry.field_at(2, 4)
    assert int.from_bytes(shared[at : at + 4], "little") == second
    shared[at : at + 4] = first.to_bytes(4, "little")
    with pytest.raises(ModelError, match="shares its bytes with tensor 2 of subgraph 1"):
        patch(bytes(shared), read(bytes(shared)), {2: np.ones(4, np.float32)})


@pytest.mark.parametrize(
    ("index", "values", "sentence"),
    [
        (0, np.zeros((1, 4), np.float32), r"tensor 0 \('in'\) is no constant of the model"),
        (99, np.zeros(4, np.float32), "tensor 99 is not one of the 7"),
        (-1, np.zeros(4, np.float32), "tensor -1 is not one of the 7"),
        (2, np.zeros(5, np.float32), r"'b0'\) is float32 \(4,\), and float32 \(5,\) was to be written"),
        (2, np.zeros(4, np.float64), r"float64 \(4,\) was to be written"),
        (2, np.zeros((1, 4), np.float32), r"float32 \(1, 4\) was to be written"),
        (2, np.array([0, 1, np.nan, 3], np.float32), "with NaN or infinity"),
        (1, np.full((4, 4), np.inf, np.float32), "with NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused(index, values, sentence):
    data = write(small_graph())
    with pytest.raises(ModelError, match=sentence):
        patch(data, read(data), {index: values})


@pytest.mark.parametrize(
    ("scale", "sentence"),
    [
        (np.ones(2, np.float32), "has 1 scales"),
        (np.ones(1, np.float64), "float64"),
        (np.array([np.nan], np.float32), "no positive number"),
        (np.array([-1], np.float32), "no positive number"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scale, sentence):
    graph = read(WRIST)
    with pytest.raises(ModelError, match=sentence):
        patch_scales(WRIST, graph, {graph.inputs[0]: scale})
    unscaled = write(small_graph())
    with pytest.raises(ModelError, match="has 0 scales"):
        patch_scales(unscaled, read(unscaled), {1: np.ones(1, np.float32)})


def test_a_graph_of_another_file_is_refused():
    with pytest.raises(ModelError, match="read from another file"):
        patch(WRIST, read((SHIPPED / "digits.tflite").read_bytes()), {})


def test_constants_that_lie_over_the_files_structure_are_refused():
    data = write(small_graph())
    graph, broken = read(data), bytearray(data)
    from engine.models import tflite

    root = tflite._open(data)
    place = root.tables(4)[2].field_at(0, 4)  # the buffer of a bias now begins inside the operators' vector
    target = root.tables(2)[0].vector_at(1)[0] - 4
    struct_count = int.from_bytes(data[target : target + 4], "little")
    assert struct_count == 1
    at = data.index((16).to_bytes(4, "little"), place + 4)
    broken[place : place + 4] = (at - place).to_bytes(4, "little")
    read(bytes(broken))
    overlapping = dataclasses.replace(graph)
    for values in (np.full(4, 7, np.float32), np.full(4, -1e30, np.float32)):
        try:
            written = patch(bytes(broken), overlapping, {2: values})
        except ModelError:
            continue
        assert read(written).operators == graph.operators


def test_a_folded_constant_is_not_in_the_file_and_is_refused():
    graph = small_graph(("FULLY_CONNECTED",))
    none = np.zeros(0, np.float32), np.zeros(0, np.int64)
    half = Tensor(4, "half", (4, 4), "float16", *none, 0, np.eye(4, dtype=np.float16))
    tensors = (graph.tensors[0], dataclasses.replace(graph.tensors[1], data=None), *graph.tensors[2:], half)
    operators = (
        Operator(0, "DEQUANTIZE", (4,), (1,), "NONE", {}),
        dataclasses.replace(graph.operators[0], index=1),
    )
    data = write(Graph(tensors, operators, graph.inputs, graph.outputs))
    folded = fold(read(data))
    assert np.array_equal(folded.tensors[1].data, np.eye(4))
    with pytest.raises(ModelError, match=r"tensor 1 \('w0'\) is no constant of the model"):
        patch(data, folded, {1: np.eye(4, dtype=np.float32)})
    assert patch(data, folded, {2: np.ones(4, np.float32)}) != data
