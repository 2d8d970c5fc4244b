"""ONNX files: the graph read from one answers as ONNX's own reference evaluator does, and takes its constants back.

A graph is run here by writing it as a `.tflite` file and giving that to the runtime: nothing of the reader's own view
of ONNX is used to check it.
"""

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engine.models.graph import ABSENT, Tensor
from engine.models.onnx import read
from tests.engine.graph_tflite import write
from tests.engine.models_at_hand import loaded


class Net:
    """A chain of nodes under construction; every call appends one and returns the name of what it makes."""

    opset = 17

    def __init__(self, *shape, seed=0, dtype=TensorProto.FLOAT):
        self.nodes, self.constants, self.rng = [], [], np.random.default_rng(seed)
        self.input, self.name, self.dtype = shape, "x", dtype

    def constant(self, array, dtype=np.float32):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def weights(self, *shape):
        return self.constant(self.rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape))

    def do(self, op, *inputs, entering=None, domain="", **attributes):
        made = f"{op.lower()}{len(self.nodes)}"
        given = [self.name if entering is None else entering, *inputs]
        self.nodes.append(helper.make_node(op, given, [made], name=made, domain=domain, **attributes))
        self.name = made
        return made

    def model(self, opset=None, outputs=None, value_info=(), ir_version=8):
        shapes = dict.fromkeys(outputs or [self.name])
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", self.dtype, ["n", *self.input])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
            self.constants,
            value_info=value_info,
        )
        imports = [helper.make_opsetid("", opset or self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)

    def bytes(self, **options):
        return self.model(**options).SerializeToString()


def channels_last(array):
    """An array of ONNX's [N, C, H, W] or [N, C, L] as the engine stores it."""
    if array.ndim == 3:
        return array.transpose(0, 2, 1)[:, None]
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def with_biases(graph):
    """The graph with a bias of zeros where a convolution has none, for the runtime insists on one."""
    tensors, operators = list(graph.tensors), []
    for op in graph.operators:
        if "CONV_2D" in op.kind and op.inputs[2] == ABSENT:
            given, weights = (graph.tensors[index] for index in op.inputs[:2])
            index, count = len(tensors), graph.tensors[op.outputs[0]].shape[-1]
            scale = given.scale * weights.scale
            bias = np.zeros(count, np.int32 if len(scale) else np.float32)
            zero_point = np.zeros(len(scale), np.int64)
            tensors.append(Tensor(index, "no bias", (count,), bias.dtype.name, scale, zero_point, 0, bias))
            op = dataclasses.replace(op, inputs=(*op.inputs[:2], index))  # noqa: PLW2901
        operators.append(op)
    return dataclasses.replace(graph, tensors=tuple(tensors), operators=tuple(operators))


def run_graph(graph, *given):
    opened = loaded(write(with_biases(graph)))
    for index, array in zip(graph.inputs, given, strict=True):
        opened.set_tensor(index, array)
    opened.invoke()
    return [opened.get_tensor(index) for index in graph.outputs]


def both(net, *, stored=None, opset=None, real=None):
    """The graph, its answer and the reference's, for one random window."""
    model = net.model(opset=opset)
    window = net.rng.normal(0, 1, (1, *net.input)).astype(np.float32) if real is None else real
    graph = read(model.SerializeToString())
    expected = ReferenceEvaluator(model).run(None, {"x": window})[0]
    (answer,) = run_graph(graph, channels_last(window) if stored is None else stored(window))
    return graph, answer, expected


def kinds(graph):
    return [op.kind for op in graph.operators]


def conv_net(**attributes):
    net = Net(3, 9, 8)
    net.do("Conv", net.weights(5, 3, 3, 3), net.weights(5), **attributes)
    return net


def clip(low, high):
    def add(net):
        net.do("Conv", net.weights(4, 3, 1, 1))
        bounds = [net.constant(bound) if bound is not None else "" for bound in (low, high)]
        net.do("Clip", *bounds)

    return add


def flatten_dense(net):
    net.do("Conv", net.weights(4, 3, 3, 3))
    net.do("Relu")
    net.do("Flatten")
    net.do("Gemm", net.weights(6, 4 * 7 * 6), net.weights(6), transB=1)


def reshape_matmul(net):
    net.do("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.do("Reshape", net.constant([0, -1], np.int64))
    net.do("MatMul", net.constant(net.rng.normal(0, 0.1, (3 * 4 * 4, 7))))
    net.do("Add", net.weights(7))
    net.do("Relu")


def torch_view(net):
    """x.view(x.size(0), -1) as older exporters write it."""
    source = net.do("Conv", net.weights(4, 3, 3, 3))
    net.do("Shape")
    net.do("Gather", net.constant(0, np.int64), axis=0)
    size = net.do("Unsqueeze", net.constant([0], np.int64))
    shape = net.do("Concat", net.constant([-1], np.int64), entering=size, axis=0)
    net.do("Reshape", shape, entering=source)
    net.do("Gemm", net.weights(5, 4 * 7 * 6), transB=1)


def residual(net):
    first = net.do("Conv", net.weights(4, 3, 3, 3), pads=[1, 1, 1, 1])
    net.do("Relu")
    net.do("Conv", net.weights(4, 4, 3, 3), net.weights(4), pads=[1, 1, 1, 1])
    net.do("Add", first)
    net.do("Relu")
    net.do("GlobalAveragePool")
    net.do("Flatten")
    net.do("Gemm", net.weights(5, 4), net.weights(5), transB=1)
    net.do("Softmax")


def normalised(net):
    net.do("Conv", net.weights(4, 3, 3, 3), net.weights(4))
    values = [net.rng.uniform(0.5, 2, 4), net.rng.normal(0, 1, 4), net.rng.normal(0, 1, 4), net.rng.uniform(0.5, 2, 4)]
    net.do("BatchNormalization", *[net.constant(v) for v in values])
    net.do("Relu")


def normalised_alone(net):
    values = [net.rng.uniform(0.5, 2, 3), net.rng.normal(0, 1, 3), net.rng.normal(0, 1, 3), net.rng.uniform(0.5, 2, 3)]
    net.do("BatchNormalization", *[net.constant(v) for v in values])


def joined(net):
    left = net.do("Conv", net.weights(4, 3, 1, 1))
    right = net.do("Conv", net.weights(2, 3, 1, 1), entering="x")
    net.do("Concat", left, entering=right, axis=1)
    net.do("ReduceMean", axes=[2, 3], keepdims=0)


def gated(net):
    image = net.do("Conv", net.weights(4, 3, 1, 1))
    net.do("GlobalAveragePool")
    net.do("Conv", net.weights(4, 4, 1, 1))
    net.do("Sigmoid")
    net.do("Mul", image)


def back_and_forth(net):
    net.do("Conv", net.weights(4, 3, 3, 3))
    net.do("Transpose", perm=[0, 2, 3, 1])
    net.do("Add", net.constant(np.arange(4)))
    net.do("Reshape", net.constant([1, -1], np.int64))
    net.do("Gemm", net.weights(5, 4 * 7 * 6), transB=1)


def flattened_arithmetic(net):
    net.do("Flatten")
    net.do("Mul", net.constant(2.5))
    net.do("Tanh")


FLOAT = {
    "conv": (lambda net: net.do("Conv", net.weights(5, 3, 3, 3), net.weights(5)), ["CONV_2D"]),
    "conv same": (lambda net: net.do("Conv", net.weights(5, 3, 3, 3), pads=[1, 1, 1, 1]), ["CONV_2D"]),
    "conv auto": (
        lambda net: net.do("Conv", net.weights(5, 3, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2]),
        ["CONV_2D"],
    ),
    "conv same lower": (
        lambda net: net.do("Conv", net.weights(5, 3, 2, 2), auto_pad="SAME_LOWER", strides=[2, 2]),
        ["PAD", "CONV_2D"],
    ),
    "conv stride 2 of an even image": (
        lambda net: net.do("Conv", net.weights(5, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
        ["PAD", "CONV_2D"],
    ),
    "conv lopsided": (
        lambda net: net.do("Conv", net.weights(5, 3, 3, 3), pads=[2, 0, 1, 3], strides=[1, 2]),
        ["PAD", "CONV_2D"],
    ),
    "conv dilated": (lambda net: net.do("Conv", net.weights(5, 3, 2, 3), dilations=[2, 1]), ["CONV_2D"]),
    "depthwise": (
        lambda net: net.do("Conv", net.weights(3, 1, 3, 3), net.weights(3), group=3, pads=[1, 1, 1, 1]),
        ["DEPTHWISE_CONV_2D"],
    ),
    "depthwise with multiplier": (
        lambda net: net.do("Conv", net.weights(6, 1, 3, 3), group=3),
        ["DEPTHWISE_CONV_2D"],
    ),
    "clip 0 6": (clip(0, 6), ["CONV_2D"]),
    "clip 0": (clip(0, None), ["CONV_2D"]),
    "clip -1 1": (clip(-1, 1), ["CONV_2D"]),
    "flatten, dense": (flatten_dense, ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]),
    "reshape, matmul": (reshape_matmul, ["MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED"]),
    "torch view": (torch_view, ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]),
    "residual": (
        residual,
        ["CONV_2D", "ADD", "CONV_2D", "ADD", "MEAN", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX"],
    ),
    "batch normalisation": (normalised, ["CONV_2D"]),
    "batch normalisation alone": (normalised_alone, ["MUL", "ADD"]),
    "joined": (joined, ["CONV_2D", "CONV_2D", "CONCATENATION", "MEAN"]),
    "gated": (gated, ["CONV_2D", "MEAN", "CONV_2D", "LOGISTIC", "MUL"]),
    "average": (
        lambda net: net.do("AveragePool", kernel_shape=[3, 3], strides=[2, 2]),
        ["AVERAGE_POOL_2D"],
    ),
    "average same": (
        lambda net: net.do("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        ["AVERAGE_POOL_2D"],
    ),
    "average that counts its padding": (
        lambda net: net.do("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        ["PAD", "AVERAGE_POOL_2D"],
    ),
    "maximum same": (lambda net: net.do("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), ["MAX_POOL_2D"]),
    "maximum of an even image": (
        lambda net: net.do("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        ["PADV2", "MAX_POOL_2D"],
    ),
    "maximum of what is never negative": (
        lambda net: [net.do("Relu"), net.do("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
        ["ADD", "PAD", "MAX_POOL_2D"],
    ),
    "maximum of everything": (lambda net: net.do("GlobalMaxPool"), ["MAX_POOL_2D"]),
    "pad": (lambda net: net.do("Pad", net.constant([0, 0, 1, 2, 0, 1, 0, 3], np.int64)), ["PAD"]),
    "leaky": (lambda net: net.do("LeakyRelu", alpha=0.3), ["LEAKY_RELU"]),
    "transposed and reshaped": (back_and_forth, ["CONV_2D", "ADD", "RESHAPE", "FULLY_CONNECTED"]),
    "flattened arithmetic": (
        flattened_arithmetic,
        ["RESHAPE", "RESHAPE", "TRANSPOSE", "RESHAPE", "MUL", "TANH"],
    ),
}


@pytest.mark.parametrize("name", FLOAT)
def test_a_float_model_answers_as_the_reference_does(name):
    build, expected_kinds = FLOAT[name]
    net = Net(3, 9, 8)
    build(net)
    graph, answer, expected = both(net)
    expected = channels_last(expected)
    assert answer.shape == expected.shape
    assert np.abs(answer - expected).max() < 1e-5
    assert np.ptp(expected) > 0
    assert kinds(graph) == expected_kinds


def test_a_model_of_rows_in_time_is_an_image_of_height_one():
    net = Net(3, 40)
    net.do("Conv", net.weights(6, 3, 5), net.weights(6), strides=[2], pads=[2, 2])
    net.do("Relu")
    net.do("MaxPool", kernel_shape=[2], strides=[2])
    net.do("Conv", net.weights(6, 1, 3), group=6)
    net.do("AveragePool", kernel_shape=[2])
    net.do("Flatten")
    net.do("Gemm", net.weights(4, 6 * 7), net.weights(4), transB=1)
    graph, answer, expected = both(net)
    assert graph.tensors[0].shape == (1, 1, 40, 3)
    assert np.abs(answer - expected).max() < 1e-5
    assert "TRANSPOSE" not in kinds(graph)


def test_a_model_that_takes_its_channels_last_takes_them_so():
    net = Net(9, 8, 3)
    net.do("Transpose", perm=[0, 3, 1, 2])
    net.do("Conv", net.weights(4, 3, 3, 3), net.weights(4))
    net.do("Relu")
    net.do("Transpose", perm=[0, 2, 3, 1])
    graph, answer, expected = both(net, stored=lambda window: window)
    assert kinds(graph) == ["CONV_2D"]
    assert graph.tensors[0].shape == (1, 9, 8, 3)
    assert np.abs(answer - expected).max() < 1e-5


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 20])
def test_old_and_new_forms_of_operators_are_read(opset):
    net = Net(3, 8, 8)
    net.do("Pad", **({"pads": [0, 0, 1, 1, 0, 0, 1, 1]} if opset < 11 else {}))
    if opset >= 11:
        net.nodes[-1].input.append(net.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    net.do("Conv", net.weights(4, 3, 3, 3))
    if opset < 11:
        net.do("Clip", min=0.0, max=6.0)
    else:
        net.do("Clip", net.constant(0.0), net.constant(6.0))
    if opset < 18:
        net.do("ReduceMean", axes=[2, 3])
    else:
        net.do("ReduceMean", net.constant([2, 3], np.int64))
    if opset < 13:
        net.do("Squeeze", axes=[2, 3])
    else:
        net.do("Squeeze", net.constant([2, 3], np.int64))
    net.do("Gemm", net.weights(4, 5))
    net.do("Softmax")
    graph, answer, expected = both(net, opset=opset)
    assert kinds(graph) == ["PAD", "CONV_2D", "MEAN", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX"]
    assert graph.operators[1].activation == "RELU6"
    assert np.abs(answer - expected).max() < 1e-5


# int8


class QuantizedNet(Net):
    """A net whose steps go through int8 or uint8 numbers; scales are chosen so that nothing much is clamped."""

    opset = 21

    def __init__(self, *shape, kind=np.int8, per_channel=False, seed=0):
        super().__init__(*shape, seed=seed)
        self.kind, self.per_channel = kind, per_channel

    def point(self, shift):
        return self.constant(np.array(shift + (128 if self.kind == np.uint8 else 0)), self.kind)

    def through(self, scale, shift=0):
        """QuantizeLinear and DequantizeLinear."""
        self.scale = np.float32(scale)
        self.do("QuantizeLinear", self.constant(self.scale), self.point(shift))
        return self.do("DequantizeLinear", self.constant(self.scale), self.point(shift))

    def quantized_weights(self, *shape, axis=0):
        real = self.rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)
        others = tuple(a for a in range(len(shape)) if a != axis)
        scale = np.abs(real).max(axis=others if self.per_channel else None) / 127
        along = [1] * len(shape)
        along[axis] = -1
        stored = np.rint(real / (scale.reshape(along) if self.per_channel else scale)).astype(np.int8)
        self.weight_scale = np.asarray(scale, np.float32)
        return stored

    def dequantized(self, stored, scale, axis=0):
        made = f"w{len(self.nodes)}"
        zero_point = np.zeros(np.shape(scale), stored.dtype)
        given = [self.constant(stored, stored.dtype), self.constant(scale), self.constant(zero_point, stored.dtype)]
        self.nodes.append(helper.make_node("DequantizeLinear", given, [made], axis=axis))
        return made

    def layer(self, op, *shape, bias="int32", activation=None, axis=0, **attributes):
        """A layer with weights and bias, an activation, and the way through int8."""
        weights = self.dequantized(self.quantized_weights(*shape, axis=axis), self.weight_scale, axis)
        real, inputs = self.rng.normal(0, 0.3, shape[axis]), [weights]
        scale = np.float32(self.scale * self.weight_scale)
        if bias == "int32":
            inputs.append(self.dequantized(np.rint(real / scale).astype(np.int32), scale))
        elif bias == "float":
            inputs.append(self.constant(real))
        self.do(op, *inputs, **attributes)
        if activation:
            self.do(activation)


def chain_of_int8(net):
    net.through(0.03, 5)
    net.layer("Conv", 6, 3, 3, 3, pads=[1, 1, 1, 1], activation="Relu")
    first = net.through(0.02, -128)
    net.layer("Conv", 6, 1, 3, 3, pads=[1, 1, 1, 1], group=6, bias="float")
    net.through(0.02, 4)
    net.do("Add", first)
    net.through(0.025, -20)
    net.do("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.through(0.025, -20)
    net.do("Flatten")
    net.through(0.025, -20)
    net.layer("Gemm", 5, 6 * 4 * 4, transB=1)
    net.through(0.04, 3)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_model_of_quantize_and_dequantize_nodes_is_int8_throughout_and_off_by_one_step_at_most(kind, per_channel):
    net = QuantizedNet(3, 9, 8, kind=kind, per_channel=per_channel)
    chain_of_int8(net)
    graph, answer, expected = both(net)
    assert kinds(graph) == [
        "QUANTIZE", "CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED", "DEQUANTIZE",
    ]  # fmt: skip
    assert graph.operators[1].activation == "RELU"
    assert all(tensor.dtype in {"int8", "int32"} for tensor in graph.tensors[1:-1])
    assert [len(graph.tensors[op.inputs[1]].scale) for op in graph.operators if "CONV" in op.kind] == (
        [6, 6] if per_channel else [1, 1]
    )
    assert np.abs(answer - expected).max() < 0.04 * 1.01
    assert len(np.unique(expected)) > 3


def test_weights_kept_as_real_numbers_behind_a_quantize_are_int8():
    net = QuantizedNet(3, 9, 8)
    net.through(0.03)
    real = net.rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32)
    source = net.name
    net.do("QuantizeLinear", net.constant(0.01), net.constant(0, np.int8), entering=net.constant(real))
    weights = net.do("DequantizeLinear", net.constant(0.01), net.constant(0, np.int8))
    net.do("Conv", weights, net.weights(4), entering=source)
    net.through(0.02)
    graph, answer, expected = both(net)
    assert kinds(graph) == ["QUANTIZE", "CONV_2D", "DEQUANTIZE"]
    assert np.abs(answer - channels_last(expected)).max() < 0.02 * 1.01


def test_a_layer_whose_answer_is_not_quantised_is_computed_on_real_numbers():
    net = QuantizedNet(3, 9, 8)
    net.through(0.03)
    net.layer("Conv", 4, 3, 3, 3)
    graph, answer, expected = both(net)
    assert kinds(graph) == ["QUANTIZE", "DEQUANTIZE", "CONV_2D"]
    assert np.abs(answer - channels_last(expected)).max() < 1e-5


def qlinear(net, kind):
    point = lambda shift: net.constant(np.array(shift + (128 if kind == np.uint8 else 0)), kind)  # noqa: E731
    net.do("QuantizeLinear", net.constant(0.03), point(5))
    stored = net.quantized_weights(6, 3, 3, 3)
    scale = net.weight_scale
    bias = net.rng.integers(-900, 900, 6)
    zero = net.constant(np.zeros(scale.shape), np.int8)
    net.do(
        "QLinearConv", net.constant(0.03), point(5), net.constant(stored, np.int8), net.constant(scale), zero,
        net.constant(0.02), point(-7), net.constant(bias, np.int32), strides=[2, 2],
    )  # fmt: skip
    net.do("Flatten")
    dense = net.quantized_weights(6 * 4 * 3, 5, axis=1)
    dense_scale, zero = net.weight_scale, net.constant(np.zeros(net.weight_scale.shape), np.int8)
    net.do(
        "QLinearMatMul", net.constant(0.02), point(-7), net.constant(dense, np.int8), net.constant(dense_scale), zero,
        net.constant(0.03), point(2),
    )  # fmt: skip
    net.do("DequantizeLinear", net.constant(0.03), point(2))


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_a_model_of_qlinear_operators_is_off_by_one_step_at_most(kind):
    net = QuantizedNet(3, 9, 8, kind=kind, per_channel=False)
    qlinear(net, kind)
    graph, answer, expected = both(net)
    assert kinds(graph) == ["QUANTIZE", "CONV_2D", "RESHAPE", "FULLY_CONNECTED", "DEQUANTIZE"]
    assert np.abs(answer - expected).max() < 0.03 * 1.01
    assert len(np.unique(expected)) > 3


def test_an_input_of_uint8_is_given_128_less():
    net = QuantizedNet(3, 9, 8, kind=np.uint8)
    net.dtype = TensorProto.UINT8
    net.scale = np.float32(0.02)
    net.do("DequantizeLinear", net.constant(0.02), net.point(0))
    net.layer("Conv", 4, 3, 3, 3)
    net.through(0.03)
    window = net.rng.integers(0, 256, (1, 3, 9, 8)).astype(np.uint8)
    graph, answer, expected = both(net, real=window, stored=lambda w: (channels_last(w).astype(int) - 128).astype("i1"))
    assert kinds(graph) == ["CONV_2D", "DEQUANTIZE"]
    assert (graph.tensors[0].dtype, graph.tensors[0].zero_point.tolist()) == ("int8", [0])
    assert np.abs(answer - channels_last(expected)).max() < 0.03 * 1.01


@pytest.mark.parametrize("op", ["Tanh", "GlobalAveragePool", "Concat", "MaxPool"])
@pytest.mark.parametrize("quantized", [False, True])
def test_an_activation_behind_an_operator_that_fuses_none_is_kept(op, quantized):
    net = QuantizedNet(3, 9, 8) if quantized else Net(3, 9, 8)
    through = net.through if quantized else lambda *_: None
    through(0.03)
    if op == "Concat":
        net.do("Concat", net.name, axis=1)
    else:
        net.do(op, **({"kernel_shape": [2, 2]} if op == "MaxPool" else {}))
    if op == "MaxPool":
        through(0.03)
    net.do("Relu")
    through(0.02, -30)
    graph, answer, expected = both(net)
    assert np.abs(answer - channels_last(expected)).max() <= (0.0201 if quantized else 1e-5)
    assert (expected == 0).any()
    assert [op.activation for op in graph.operators].count("RELU") == 1


def test_an_int32_bias_with_a_scale_of_its_own_keeps_its_real_values():
    net = QuantizedNet(3, 9, 8)
    net.through(0.03)
    weights = net.dequantized(net.quantized_weights(4, 3, 3, 3), net.weight_scale)
    bias = net.dequantized(np.array([-50, 0, 30, 70], np.int32), np.float32(0.01))
    net.do("Conv", weights, bias)
    net.through(0.02)
    graph, answer, expected = both(net)
    stored = graph.tensors[graph.operators[1].inputs[2]]
    assert stored.dtype == "int32"
    assert np.allclose(stored.data * stored.scale, [-0.5, 0, 0.3, 0.7], atol=float(stored.scale[0]))
    assert np.abs(answer - channels_last(expected)).max() < 0.02 * 1.01
