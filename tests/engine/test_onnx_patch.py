"""Tuned constants written back into an ONNX file: in the file's own layout and type, and nothing else changed."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engine.models import onnx_file
from engine.models.graph import ModelError
from engine.models.onnx import patch, read
from tests.engine.test_onnx import (
    FLOAT,
    Net,
    QuantizedNet,
    chain_of_int8,
    channels_last,
    flatten_dense,
    normalised,
    qlinear,
    run_graph,
)


def all_new(graph, seed=1):
    """Other numbers for every constant that can be written back."""
    rng, values = np.random.default_rng(seed), {}
    for tensor in graph.tensors:
        if tensor.origin is None or tensor.dtype not in {"float32", "int8", "int32"}:
            continue
        if tensor.dtype == "float32":
            values[tensor.index] = rng.normal(0, 0.3, tensor.shape).astype(np.float32)
        else:
            low, high = (-127, 128) if tensor.dtype == "int8" else (-3000, 3000)
            values[tensor.index] = rng.integers(low, high, tensor.shape).astype(tensor.dtype)
    return values


def check_written(net, count, step=1e-5, *, exact=True):
    """The written file holds what was asked for, and answers as its graph does; `exact`: the way back is exact."""
    data = net.bytes()
    graph = read(data)
    values = all_new(graph)
    assert len(values) == count
    written = patch(data, graph, values)
    again = read(written)
    for index, expected in values.items():
        assert np.array_equal(again.tensors[index].data, expected)
    window = net.rng.normal(0, 1, (1, *net.input)).astype(np.float32)
    model = onnx.load_model_from_string(written)
    expected = channels_last(ReferenceEvaluator(model).run(None, {"x": window})[0])
    (answer,) = run_graph(again, channels_last(window))
    assert np.abs(answer - expected).max() <= step
    assert not np.allclose(run_graph(graph, channels_last(window))[0], expected, atol=1e-3)
    back = patch(written, again, {index: graph.tensors[index].data for index in values})
    assert (onnx.load_model_from_string(back) == onnx.load_model_from_string(data)) is exact
    for old, new in zip(graph.tensors, read(back).tensors, strict=True):
        assert np.array_equal(old.data, new.data) if old.data is not None else new.data is None
    return data, written


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("conv", 2),
        ("depthwise", 2),
        ("depthwise with multiplier", 1),
        ("flatten, dense", 3),
        ("reshape, matmul", 2),
        ("torch view", 2),
        ("residual", 5),
        ("gated", 2),
        ("transposed and reshaped", 3),
    ],
)
def test_what_is_written_into_a_float_model_is_what_the_reference_computes_with(name, count):
    net = Net(3, 9, 8)
    FLOAT[name][0](net)
    check_written(net, count)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_what_is_written_into_an_int8_model_is_what_the_reference_computes_with(kind, per_channel):
    net = QuantizedNet(3, 9, 8, kind=kind, per_channel=per_channel)
    chain_of_int8(net)
    data, written = check_written(net, 6, step=0.0401, exact=False)  # one bias is kept as real numbers
    dtypes = {tensor.name: tensor.data_type for tensor in onnx.load_model_from_string(data).graph.initializer}
    assert dtypes == {t.name: t.data_type for t in onnx.load_model_from_string(written).graph.initializer}
    assert TensorProto.INT32 in dtypes.values()


def test_what_is_written_into_qlinear_operators_is_what_the_reference_computes_with():
    net = QuantizedNet(3, 9, 8)
    qlinear(net, np.int8)
    check_written(net, 3, step=0.0301)


def test_weights_of_uint8_are_written_as_uint8():
    net = QuantizedNet(3, 9, 8)
    net.through(0.03)
    stored = net.rng.integers(1, 256, (4, 3, 3, 3)).astype(np.uint8)
    given = [net.constant(stored, np.uint8), net.constant(0.01), net.constant(128, np.uint8)]
    net.nodes.append(helper.make_node("DequantizeLinear", given, ["w"]))
    net.do("Conv", "w", net.weights(4))
    net.through(0.05)
    data, written = check_written(net, 2, step=0.0501, exact=False)
    before, after = (onnx.load_model_from_string(file).graph.initializer for file in (data, written))
    (place,) = [
        at for at, tensor in enumerate(before) if tensor.data_type == TensorProto.UINT8 and len(tensor.dims) == 4
    ]
    assert after[place].data_type == TensorProto.UINT8
    assert np.array_equal(read(data).tensors[2].data, stored.transpose(0, 2, 3, 1).astype(int) - 128)
    assert not np.array_equal(numpy_helper.to_array(after[place]), stored)


def test_constants_in_typed_fields_and_in_constant_nodes_are_written_in_their_form():
    net = Net(4)
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], net.rng.normal(0, 1, 12).tolist())
    assert not weights.raw_data
    net.constants.append(weights)
    bias = numpy_helper.from_array(np.arange(3, dtype=np.float32))
    net.nodes.append(helper.make_node("Constant", [], ["b"], value=bias))
    net.do("Gemm", "w", "b")
    _, written = check_written(net, 2)
    model = onnx.load_model_from_string(written)
    assert len(model.graph.initializer[0].float_data) == 12
    assert not model.graph.initializer[0].raw_data
    assert model.graph.node[0].op_type == "Constant"


def test_what_was_computed_from_several_constants_is_refused():
    net = Net(3, 9, 8)
    normalised(net)
    graph = read(net.bytes())
    weights = graph.tensors[graph.operators[0].inputs[1]]
    with pytest.raises(
        ModelError, match="computed from several constants of the file; export the model with its batch"
    ):
        patch(net.bytes(), graph, {weights.index: weights.data})


def test_what_does_not_fit_or_is_used_twice_is_refused():
    net = Net(4)
    shared = net.constant(np.eye(4))
    net.do("Gemm", shared, net.weights(4))
    net.do("Gemm", shared)
    data = net.bytes()
    graph = read(data)
    first, second = (op.inputs[1] for op in graph.operators)
    new = np.arange(16, dtype=np.float32).reshape(4, 4)
    both = patch(data, graph, {first: new, second: new})
    assert np.array_equal(read(both).tensors[second].data, new)
    with pytest.raises(ModelError, match=f"would change tensor {second}"):
        patch(data, graph, {first: new})
    with pytest.raises(ModelError, match="was to be written twice"):
        patch(data, graph, {first: new, second: new + 1})
    for values in (new.astype(np.float64), new[:3], np.full((4, 4), np.nan, np.float32)):
        with pytest.raises(ModelError, match="was to be written"):
            patch(data, graph, {first: values})
    with pytest.raises(ModelError, match="is no constant"):
        patch(data, graph, {0: np.zeros((1, 4), np.float32)})
    other = Net(3, 9, 8)
    flatten_dense(other)
    with pytest.raises(ModelError, match="read from another file"):
        patch(other.bytes(), graph, {})


def test_an_unknown_field_and_the_opset_survive():
    net = Net(4)
    net.do("Gemm", net.weights(4, 4))
    data = net.bytes(opset=13) + b"\xfa\x7f\x03abc"  # field 2047, bytes 'abc'
    written = patch(data, read(data), all_new(read(data)))
    assert b"\xfa\x7f\x03abc" in written
    assert onnx.load_model_from_string(written).opset_import[0].version == 13
    assert len(written) == len(data)


def test_constants_without_raw_bytes_keep_their_numbers_exactly():
    values = np.array([1e-45, -0.0, 3.4e38, 1 / 3], np.float32)
    proto = helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4)
    onnx_file.write_constant(proto, values)
    assert numpy_helper.to_array(proto).tobytes() == values.tobytes()
