"""ONNX files that cannot be read, or were made to harm: each is refused with a sentence, and costs little."""

import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.models import onnx_file
from engine.models.graph import FILE_BYTES_MAX, ModelError
from engine.models.onnx import patch, read
from tests.engine.test_onnx import Net, QuantizedNet, chain_of_int8, kinds


def refused(net_or_bytes, sentence):
    data = net_or_bytes if isinstance(net_or_bytes, bytes) else net_or_bytes.bytes()
    with pytest.raises(ModelError, match=sentence):
        read(data)


def net_of(op, *constants, shape=(3, 8, 8), **attributes):
    net = Net(*shape)
    net.do(op, *[net.constant(array, array.dtype) for array in constants], **attributes)
    return net


REAL = np.ones((4, 3, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (net_of("Conv", REAL.astype(np.float16)), r"constant 'c0' of the model has data type 10; export it as float32"),
        (net_of("Conv", REAL.astype(np.float64)), r"node 0 \(Conv, 'conv0'\) takes the constant 'c0' of float64"),
        (net_of("Conv", REAL[:, :2]), r"has weights \(4, 2, 3, 3\) in 1 groups for 3 channels"),
        (net_of("Conv", REAL, group=3), "in 3 groups for 3 channels"),
        (net_of("Conv", REAL, REAL[0, 0]), r"has a bias \(3, 3\) for 4 channels"),
        (net_of("Conv", REAL, strides=[0, 1]), "no small positive number"),
        (net_of("Conv", REAL, strides=[1]), "has 1 strides for an image of 2 axes"),
        (net_of("Conv", REAL, strides=3), "has an attribute 'strides' of another type"),
        (net_of("Conv", REAL, pads=[-1, 0, 0, 0]), "has the pads"),
        (net_of("Conv", REAL, dilations=[9, 9]), "kernel larger than its input"),
        (net_of("Conv", REAL, shape=(3, 8)), r"has weights \(4, 3, 3, 3\) for an input \(1, 3, 8\)"),
        (net_of("MaxPool", kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1, shape=(3, 9, 9)), "ceil_mode"),
        (net_of("MaxPool", kernel_shape=[2]), r"has a window \(2,\)"),
        (net_of("AveragePool", kernel_shape=[3, 3], pads=[2, 0, 0, 0]), "does not count its padding"),
        (net_of("Gemm", np.ones((4, 4), np.float32), shape=(4,), alpha=2.0), "has alpha, beta or transA"),
        (net_of("Gemm", np.ones((5, 4), np.float32), shape=(4,)), r"has weights \(4, 5\) for an input \(1, 4\)"),
        (net_of("Reshape", np.array([1, 7], np.int64)), r"node 0 \(Reshape, 'reshape0'\) makes \(1, 7\) out of"),
        (net_of("Reshape", np.array([-2, -96], np.int64)), "export it again, with one window"),
        (net_of("Transpose", perm=[0, 0, 1, 2]), "has the axes"),
        (net_of("Transpose", perm=[1, 0, 2, 3]), "moves the axis of the windows"),
        (net_of("Reshape", np.array([3, 64])), "makes .3, 64. of one window; export it with the axis"),
        (net_of("Squeeze", np.array([2, 9])), r"has the axes .2, 9. for .1, 3, 8, 8."),
        (net_of("Unsqueeze", np.array([1, -5])), r"has the axes .1, -5. for"),
        (net_of("Squeeze", np.array([0])), "makes .3, 8, 8. of one window"),
        (net_of("Add", np.ones((2, 3, 8, 8), np.float32)), "of one window"),
        (net_of("Clip", np.float32(-3), np.float32(3)), "clips to other bounds"),
        (net_of("Pad", np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.float32(2)), "pads with something else than zeros"),
        (net_of("Pad", np.array([0, 0, -1, 1, 0, 0, 1, 1])), "small positive ones"),
        (net_of("Softmax", axis=1), "runs over axis 1"),
        (net_of("Add", np.ones((5, 1, 1), np.float32)), "combines"),
        (net_of("Gelu"), r"node 0 \(Gelu, 'gelu0'\) is an operator that cannot be read"),
        (net_of("Cast", to=6), "another type"),
        (net_of("QuantizeLinear", np.float32(0)), "a scale that is no positive number"),
        (net_of("QuantizeLinear", np.float32(np.nan)), "a scale that is no positive number"),
        (net_of("QuantizeLinear", np.ones(3, np.float32)), "has 3 scales where one is needed"),
        (net_of("QuantizeLinear", np.float32(1), np.uint16(0)), "data type 4|quantised as uint16"),
        (net_of("ReduceMean", np.array([0, 1])), "runs over the axes"),
        (net_of("Conv", np.ones((1, 3, 3, 3), np.float32), np.ones((1,), np.float32), auto_pad="SAME"), ""),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_node_and_reason(net, sentence):
    if not sentence:
        read(net.bytes())  # the last one is sound, so that the list is known to depend on what is wrong
        return
    refused(net, sentence)


def test_constants_in_another_file_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(REAL.tobytes())
    model = net_of("Conv", REAL).model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    refused(model.SerializeToString(), "constant 'c0' of the model is kept in another file; export the model as one")


def test_an_operator_without_a_kind_is_kept_where_the_file_states_its_shape():
    net = Net(3, 8, 8)
    net.do("Conv", net.weights(4, 3, 3, 3))
    net.do("Gelu")
    gelu = helper.make_tensor_value_info(net.name, TensorProto.FLOAT, ["n", 4, 6, 6])
    net.do("Conv", net.weights(2, 4, 1, 1))
    graph = read(net.bytes(value_info=[gelu]))
    assert kinds(graph) == ["CONV_2D", "ONNX_Gelu", "CONV_2D"]
    assert graph.tensors[graph.operators[1].outputs[0]].shape == (1, 6, 6, 4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.opset_import[0].__setattr__("version", 6), "has 1 nodes of opset 6"),
        (lambda m: m.opset_import.__delitem__(slice(None)), "of opset 0"),
        (lambda m: m.graph.node.__delitem__(slice(None)), "has 0 nodes"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "ghost"), "takes 'ghost', which no node before it makes"),
        (lambda m: m.graph.node[0].output.__setitem__(0, "other"), "the model's output 'conv0' is made by no node"),
        (lambda m: m.graph.node[0].output.__delitem__(slice(None)), "makes nothing"),
        (
            lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", 8),
            "with one window",
        ),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim[2].ClearField("dim_value"), "every other size fixed"),
        (lambda m: m.graph.input[0].type.tensor_type.__setattr__("elem_type", 10), "TYPE_10"),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "without a shape"),
        (lambda m: m.graph.input[0].type.ClearField("tensor_type"), "no tensor"),
        (lambda m: m.graph.initializer[0].__setattr__("raw_data", b"123"), "3 bytes or numbers for 432"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 1 << 60), "bytes or numbers for"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), r"has the shape \(-4, 3, 3, 3\)"),
        (lambda m: m.graph.initializer[0].dims.extend([1] * 9), "has the shape"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(change, sentence):
    model = net_of("Conv", REAL).model()
    read(model.SerializeToString())
    change(model)
    refused(model.SerializeToString(), sentence)


def test_bytes_that_are_no_onnx_file_are_refused():
    data = net_of("Conv", REAL).bytes()
    for wrong in (b"", b"\x08", b"TFL3" * 9, data[:-1], data[: len(data) // 2], b"\xff" * 50, b"\x0b" * 50):
        refused(wrong, "is no sound .onnx file|has 0 nodes")
    refused(bytes(FILE_BYTES_MAX + 1), "at most")
    refused(data.replace(b"conv0", b"con\xff\xfe"), "is no sound .onnx file")


def test_a_file_that_a_parser_would_make_large_objects_of_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(onnx.ModelProto, "FromString", lambda _: pytest.fail("was parsed"), raising=False)
    start = time.thread_time()
    # Empty nodes (two bytes each, and a large object each), in a larger and a smaller file; numbers; strings.
    for field, count in (
        (b"\x0a\x00", 3 << 20),
        (b"\x0a\x00", 1 << 19),
        (b"\x08\x00", 30 << 20),
        (b"\x1a\x01a", 1 << 20),
    ):
        length = len(field) * count
        varint = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128, length >> 21])
        with pytest.raises(ModelError, match="export it without debug notes"):
            onnx_file.open_file(b"\x3a" + varint + field * count)
    assert time.thread_time() - start < 15


@pytest.mark.parametrize("op", ["Gemm", "Transpose", "QuantizeLinear", "Reshape"])
def test_a_small_file_that_lays_out_a_large_constant_many_times_is_refused(monkeypatch, op):
    made = onnx_file.OnnxFile.__init__
    monkeypatch.setattr(made, "__defaults__", (1 << 20, *made.__defaults__[1:]))
    net = Net(64)
    name = net.constant(np.zeros((64, 64)))
    others = {"QuantizeLinear": [net.constant(1.0)], "Reshape": [net.constant([4096], np.int64)]}.get(op, [])
    for _ in range(300):
        net.do(*(("Gemm", name) if op == "Gemm" else (op, *others)), **({} if op == "Gemm" else {"entering": name}))
    refused(net, "take over .* bytes when they are laid out")


@pytest.mark.parametrize("op", ["MaxPool", "Add", "Concat"])
def test_many_nodes_cost_no_more_than_their_number(op):
    net = Net(2, 4, 4)
    for _ in range(3000):
        if op == "MaxPool":
            net.do("MaxPool", kernel_shape=[2, 2], strides=[1, 1], pads=[1, 0, 0, 1])
        else:
            net.do("Add", "x") if op == "Add" else net.do("Concat", axis=1)
    start = time.thread_time()
    assert len(read(net.bytes()).operators) >= 3000
    assert time.thread_time() - start < 6


def test_a_missing_package_is_said_plainly(monkeypatch):
    data = net_of("Conv", REAL).bytes()
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(data, r"install hedgerow\[onnx\]")


def test_a_graph_that_goes_round_in_circles_is_refused():
    net = Net(4)
    net.do("Add", "add1")
    net.do("Add", "add0")
    refused(net, "takes 'add1', which no node before it makes")
    twice = Net(4)
    twice.do("Relu")
    twice.do("Relu", entering="x")
    twice.nodes[1].output[0] = "relu0"
    twice.name = "relu0"
    read(twice.bytes())  # two values of one name: the later one counts, and nothing is read before it is there


def test_a_node_without_an_output_is_never_taken_into_another():
    for op, count in (("BatchNormalization", 4), ("Relu", 0)):
        net = Net(3, 8, 8)
        net.do("Conv", net.weights(4, 3, 3, 3))
        net.do(op, *[net.constant(np.ones(4 if count == 4 else ())) for _ in range(count)])
        del net.nodes[1].output[:]
        net.do("Tanh", entering="x")
        refused(net, f"node 1 .{op}, .* makes nothing")


def test_weights_that_are_computed_are_refused():
    net = Net(3, 8, 8)
    made = net.do("Add", net.constant(np.zeros(1)), entering=net.constant(REAL))
    net.do("Conv", made, entering="x")
    refused(net, "constants folded")


def test_weights_with_a_zero_point_are_refused():
    net = QuantizedNet(3, 9, 8)
    net.through(0.03)
    given = [net.constant(np.ones((4, 3, 3, 3)), np.uint8), net.constant(0.01), net.constant(127, np.uint8)]
    net.nodes.append(helper.make_node("DequantizeLinear", given, ["w"]))
    net.do("Conv", "w")
    refused(net, r"node 3 \(Conv, 'conv3'\) has weights with a zero-point; export it with symmetric int8 weights")


def test_sub_byte_and_float8_weights_are_refused():
    net = QuantizedNet(3, 9, 8)
    chain_of_int8(net)
    model = net.model()
    for wrong in (TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.INT16, TensorProto.UINT16):
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        for tensor in changed.graph.initializer:
            if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4:
                array = numpy_helper.to_array(tensor).astype(np.int16)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
                tensor.data_type = wrong
        refused(changed.SerializeToString(), "data type|zero-point of int8|quantised as")


def test_a_written_file_is_refused_where_reading_it_again_shows_more_than_was_meant(monkeypatch):
    net = Net(4)
    net.do("Gemm", net.weights(4, 4), net.weights(4))
    data = net.bytes()
    graph = read(data)
    weights = graph.tensors[graph.operators[0].inputs[1]]
    from engine.models import onnx as module

    spoiled = lambda proto, values: onnx_file.write_constant(proto, values[::-1])  # noqa: E731
    monkeypatch.setattr(module, "write_constant", spoiled)
    with pytest.raises(ModelError, match=f"would change tensor {weights.index}"):
        patch(data, graph, {weights.index: weights.data + np.float32(1)})
