"""ONNX's layers as the engine's operators: convolutions, dense layers, pools, sums, products and activations.

Each handler takes the workbench and a node, and makes the node's output. A layer whose input stands as int8, whose
weights are int8 constants, and whose output goes into a QuantizeLinear, is one int8 operator; the activation between
is fused into it. What is not of that form is computed on real numbers, which is what the file says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from engine.models.graph import ABSENT
from engine.models.onnx_build import IMAGE, Constant, Quantization, Value, elements
from engine.models.onnx_file import RANK_MAX
from engine.models.onnx_quantization import bias_steps, quantization_of, real_constant
from engine.models.onnx_windows import geometry, padded

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from numpy.typing import NDArray

    from engine.models.onnx_build import Workbench
    from engine.models.onnx_file import Node

    Handler: TypeAlias = Callable[[Workbench, Node], None]

UNIT = Quantization(np.array([1 / 256], np.float32), np.array([-128]))  # what int8 LOGISTIC and SOFTMAX answer in
SIGNED_UNIT = Quantization(np.array([1 / 128], np.float32), np.array([0]))  # and TANH
ENDLESS = 3.0e38


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with weights, in the engine's layout, before its output is known."""

    kind: str
    inputs: Value
    weights: Constant  # [O, KH, KW, C], [1, KH, KW, C] or [O, I]
    bias: Constant | None  # [O]
    channels_axis: int
    shape: tuple[int, ...]  # of the output, ONNX's
    options: dict[str, int]


@dataclass(frozen=True, slots=True)
class Tail:
    """What follows a layer and becomes part of it: an activation, and a QuantizeLinear; `name` is what comes out."""

    name: str
    activation: str = "NONE"
    known: Quantization | None = None


def conv(bench: Workbench, node: Node) -> None:
    """Conv, with one group or one per channel; other groupings keep their narrow weights."""
    bias = constant_input(bench, node, 2) if len(node.inputs) > 2 and node.inputs[2] else None
    finish_layer(bench, node, conv_layer(bench, node, bench.value(node, 0), constant_input(bench, node, 1), bias))


def conv_layer(bench: Workbench, node: Node, given: Value, known: Constant, bias: Constant | None) -> Layer:
    """Return a convolution with weights [O, C / groups, *kernel] in the engine's layout; its input may get a PAD."""
    given = bench.image(node, given)
    if known.data.ndim != len(given.shape):
        raise node.refusal(f"has weights {known.data.shape} for an input {given.shape}; export it again")
    form = known.data.shape if known.data.ndim == 4 else (*known.data.shape[:2], 1, known.data.shape[2])
    known, group, channels = known.reshaped(form), node.integer("group", 1), given.shape[1]
    if group < 1 or form[1] * group != channels or form[0] % group or not form[0]:
        raise node.refusal(f"has weights {form} in {group} groups for {channels} channels; export it again")
    if bias is not None and bias.data.shape != form[:1]:
        raise node.refusal(f"has a bias {bias.data.shape} for {form[0]} channels; export it again")
    about = geometry(node, given, (form[2], form[3]))
    given, padding = padded(bench, given, about)
    shape, options = (1, form[0], *about.sizes[-(len(given.shape) - 2) :]), about.options(padding)
    if group == channels > 1 and form[1] == 1:
        options["multiplier"] = form[0] // group
        return Layer("DEPTHWISE_CONV_2D", given, known.transposed((1, 2, 3, 0)), bias, 3, shape, options)
    return Layer("CONV_2D", given, known.transposed((0, 2, 3, 1)), bias, 0, shape, options)


def dense(bench: Workbench, node: Node) -> None:
    """Gemm, and MatMul with constant weights, with the Add behind it as its bias."""
    known, bias = constant_input(bench, node, 1), None
    layer = dense_layer(bench, node, bench.value(node, 0), known)
    outputs = layer.shape[-1]
    if node.op == "Gemm":
        bias = _bias(node, constant_input(bench, node, 2), outputs) if any(node.inputs[2:]) else None
    elif (user := bench.only_user(node.outputs[0])) and user.op == "Add" and len(user.inputs) == 2:
        added = bench.constant(next((name for name in user.inputs if name != node.outputs[0]), ""))
        if (
            added is not None
            and added.data.size == outputs == (*added.data.shape, 0)[0 if added.data.ndim == 1 else -2]
        ):
            bias, node = added.reshaped((outputs,)), user
            bench.done.add(user.index)
    finish_layer(bench, node, replace(layer, bias=bias))


def dense_layer(bench: Workbench, node: Node, given: Value, known: Constant) -> Layer:
    """Return a dense layer without bias; weights are [I, O], or [O, I] where the node has transB."""
    if node.integer("transA", 0) or node.real("alpha", 1.0) != 1 or node.real("beta", 1.0) != 1:
        raise node.refusal("has alpha, beta or transA; export it with alpha = beta = 1 and transA = 0")
    given = given if given.unrolled else bench.plain(given)
    if known.data.ndim != 2 or len(given.shape) < 2:
        raise node.refusal(f"multiplies {given.shape} by {known.data.shape}; only a matrix of weights can be read")
    weights = known if node.integer("transB", 0) else known.transposed((1, 0))
    outputs, inputs = weights.data.shape
    if inputs != given.shape[-1] or not outputs:
        raise node.refusal(f"has weights {weights.data.shape} for an input {given.shape}; export it again")
    if given.unrolled:
        channels, height, width = given.unrolled
        weights = weights.reshaped((outputs, channels, height, width)).transposed((0, 2, 3, 1))
        weights, given = weights.reshaped((outputs, inputs)), replace(given, unrolled=None)
    options = {"weights_format": 0, "keep_dimensions": int(len(given.shape) > 2)}
    return Layer("FULLY_CONNECTED", given, weights, None, 0, (*given.shape[:-1], outputs), options)


def finish_layer(bench: Workbench, node: Node, layer: Layer) -> None:
    """Make the layer: int8 where its input, weights and output are, on real numbers otherwise."""
    about, known = bench.quantization(layer.inputs), layer.weights.quantization
    check_weights(node, layer)
    if about and known and layer.inputs.is_real and (end := tail(bench, node, quantized=True)).known:
        bias = bias_steps(node, layer.bias, about, known) if layer.bias else None
        make_layer(bench, replace(layer, bias=bias), end)
        return
    weights = real_constant(node, layer.weights)
    bias = real_constant(node, layer.bias) if layer.bias else None
    weights, bias, node = _normalised(bench, node, weights, bias, layer.channels_axis)
    layer = replace(layer, inputs=bench.real(layer.inputs), weights=weights, bias=bias)
    make_layer(bench, layer, tail(bench, node, quantized=False))


def check_weights(node: Node, layer: Layer) -> None:
    """Raise ModelError for int8 weights that are not symmetric, or whose scales are not one per output."""
    known = layer.weights.quantization
    if known is not None and len(known.scale) > 1 and known.axis != layer.channels_axis:
        raise node.refusal("has weights with scales along another axis than its outputs; export it again")
    if known is not None and known.zero_point.any():
        raise node.refusal(
            "has weights with a zero-point; export it with symmetric int8 weights (in ONNX Runtime: weight_type=QInt8)"
        )


def make_layer(bench: Workbench, layer: Layer, end: Tail, *, is_real: bool | None = None) -> None:
    """Emit the operator of a layer whose constants are in their final form."""
    weights = bench.add_constant(layer.weights)
    bias = bench.add_constant(layer.bias) if layer.bias else ABSENT
    order = IMAGE[len(layer.shape)] if layer.kind != "FULLY_CONNECTED" else tuple(range(len(layer.shape)))
    real = end.known is None if is_real is None else is_real
    made = Value(ABSENT, layer.shape, order, real)
    made = replace(made, tensor=bench.add(end.name, made.stored_shape, end.known))
    bench.emit(layer.kind, (layer.inputs.tensor, weights, bias), (made.tensor,), end.activation, **layer.options)
    bench.values[end.name] = made


def tail(bench: Workbench, node: Node, *, quantized: bool, fuses: bool = True) -> Tail:
    """Take what follows a node into its operator: an activation, if it `fuses` one, and if asked for QuantizeLinear.

    Without a QuantizeLinear that stands alone there, a quantised tail takes nothing, and its `known` is None.
    """
    end, taken = Tail(node.outputs[0]), []
    user = bench.only_user(end.name)
    if fuses and user and (activation := fused_activation(bench, user)):
        end, taken = Tail(user.outputs[0], activation), [user.index]
        user = bench.only_user(end.name)
    if quantized:
        if user is None or user.op != "QuantizeLinear":
            return Tail(node.outputs[0])
        known, _ = quantization_of(bench, user, 1)
        end, taken = Tail(user.outputs[0], end.activation, known), [*taken, user.index]
    bench.done.update(taken)
    return end


def fused_activation(bench: Workbench, node: Node) -> str:
    """Return the activation that a node is ('RELU', 'RELU6', 'RELU_N1_TO_1'), or '' where it is none of these."""
    if node.op == "Relu":
        return "RELU"
    if node.op != "Clip":
        return ""
    low, high = (
        (bench.numbers(node, position) or (node.real(name, free),))[0]
        for position, name, free in ((1, "min", -ENDLESS), (2, "max", ENDLESS))
    )
    if low == 0 and high >= ENDLESS:
        return "RELU"
    return {(0, 6): "RELU6", (-1, 1): "RELU_N1_TO_1"}.get((low, high), "")


def arithmetic(bench: Workbench, node: Node) -> None:
    """Add, Sub, Mul and Div of values and constants, with broadcasting."""
    kind = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV"}[node.op]
    operands = [bench.known(node, position) for position in (0, 1)]
    abouts = [
        operand.quantization if isinstance(operand, Constant) else bench.quantization(operand) for operand in operands
    ]
    if kind in {"ADD", "MUL"} and all(abouts) and (end := tail(bench, node, quantized=True)).known:
        combine(bench, node, kind, operands, end)
        return
    operands = [
        real_constant(node, operand) if isinstance(operand, Constant) else bench.real(operand) for operand in operands
    ]
    combine(bench, node, kind, operands, tail(bench, node, quantized=False))


def combine(bench: Workbench, node: Node, kind: str, operands: list[Value | Constant], end: Tail) -> None:
    """Emit an operator on two operands, brought into one order of axes."""
    shapes = [operand.data.shape if isinstance(operand, Constant) else operand.shape for operand in operands]
    rank = max(map(len, shapes))
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError as why:
        raise node.refusal(f"combines {shapes[0]} with {shapes[1]}; export it again") from why
    values = [operand for operand in operands if isinstance(operand, Value)]
    if not values or rank > RANK_MAX:
        raise node.refusal(f"combines {shapes[0]} with {shapes[1]}; export the model with its constants folded")
    if shape[:1] != (1,):
        raise node.refusal(f"makes {shape} of one window; export it with the axis of the windows first")
    unrolled = values[0].unrolled if len(values) == 2 and values[0].unrolled == values[1].unrolled else None
    if unrolled is None:
        values = [bench.plain(value) if value.unrolled else value for value in values]
    values = [bench.widened(value, rank) if len(value.shape) < rank else value for value in values]
    order = next((value.order for value in values if value.order == IMAGE.get(rank)), values[0].order)
    waiting, tensors = iter(values), []
    for operand in operands:
        if isinstance(operand, Constant):
            tensors.append(bench.add_constant(_in_order(operand, rank, order)))
        else:
            tensors.append(bench.ordered(next(waiting), order).tensor)
    made = Value(ABSENT, shape, order, end.known is None, unrolled)
    made = replace(made, tensor=bench.add(end.name, made.stored_shape, end.known))
    bench.emit(kind, (tensors[0], tensors[1]), (made.tensor,), end.activation)
    bench.values[end.name] = made


def activation(bench: Workbench, node: Node) -> None:
    """Sigmoid, Tanh and LeakyRelu; and Relu and Clip that stand alone, as those of a sum with zero."""
    given, fused = bench.value(node, 0), fused_activation(bench, node)
    if node.op == "Clip" and not fused:
        raise node.refusal("clips to other bounds than [0, 6], [-1, 1] or [0, endless); train a model with such ones")
    end = Tail(node.outputs[0])
    if bench.quantization(given) and given.is_real:
        end = tail(bench, node, quantized=True, fuses=False)
    if end.known is None:
        given = bench.real(given)
    if fused:
        zero = Constant(np.zeros((1,) * len(given.shape), np.int8 if end.known else np.float32), "zero", None)
        about = replace(end.known, zero_point=np.zeros(1, np.int64)) if end.known else None
        combine(bench, node, "ADD", [given, replace(zero, quantization=about)], replace(end, activation=fused))
        return
    kind, fixed, options = {
        "Sigmoid": ("LOGISTIC", UNIT, {}),
        "Tanh": ("TANH", SIGNED_UNIT, {}),
        "LeakyRelu": ("LEAKY_RELU", end.known, {"alpha": node.real("alpha", 0.01)}),
    }[node.op]
    shape = bench.tensor(given).shape
    made = replace(given, tensor=bench.add(node.outputs[0], shape, end.known and fixed))
    bench.emit(kind, (given.tensor,), (made.tensor,), "NONE", **options)
    if end.known:
        made = replace(bench.requantized(made, end.known, end.name), is_real=False)
    bench.values[end.name] = made


def softmax(bench: Workbench, node: Node) -> None:
    """Softmax and LogSoftmax over the last axis."""
    given = bench.plain(bench.value(node, 0))
    rank = len(given.shape)
    axis = node.integer("axis", -1 if bench.file.opset >= 13 else 1) % max(rank, 1)
    if not rank:
        raise node.refusal("runs over a single number; export the model again")
    if axis != rank - 1 and elements(given.shape[axis:]) != given.shape[axis]:
        raise node.refusal(f"runs over axis {axis} of {given.shape}; export it over the last one")
    if axis != rank - 1:
        given = replace(given, tensor=bench.reshape(given.tensor, (1, given.shape[axis])))
    end = Tail(node.outputs[0])
    if node.op == "Softmax" and bench.quantization(given) and given.is_real:
        end = tail(bench, node, quantized=True, fuses=False)
    if end.known is None:
        given = bench.real(given)
    made = replace(given, tensor=bench.add(node.outputs[0], bench.tensor(given).shape, end.known and UNIT))
    options = {"beta": 1.0} if node.op == "Softmax" else {}
    bench.emit("SOFTMAX" if node.op == "Softmax" else "LOG_SOFTMAX", (given.tensor,), (made.tensor,), "NONE", **options)
    made = replace(made, tensor=bench.reshape(made.tensor, made.shape))
    if end.known:
        made = replace(bench.requantized(made, end.known, end.name), is_real=False)
    bench.values[end.name] = made


def batch_normalization(bench: Workbench, node: Node) -> None:
    """A BatchNormalization that follows no convolution: a product and a sum per channel."""
    given = bench.real(bench.value(node, 0))
    factor, offset = _factors(bench, node)
    form = (1, -1, *[1] * (len(given.shape) - 2))
    if len(given.shape) < 2 or given.shape[1] != len(factor):
        raise node.refusal(f"has {len(factor)} channels for {given.shape}; export it again")
    made, name = f"{node.outputs[0]} before its offset", node.outputs[0]
    combine(bench, node, "MUL", [given, Constant(factor.reshape(form), f"{name} factor", None)], Tail(made))
    second: list[Value | Constant] = [bench.values[made], Constant(offset.reshape(form), f"{name} offset", None)]
    combine(bench, node, "ADD", second, tail(bench, node, quantized=False))


def constant_input(bench: Workbench, node: Node, position: int) -> Constant:
    """Return an input that must be a constant."""
    name = node.inputs[position] if position < len(node.inputs) else ""
    known = bench.constant(name)
    if known is None:
        raise node.refusal(f"takes {name!r} where a constant is needed; export the model with its weights inside")
    return known


def _bias(node: Node, known: Constant, outputs: int) -> Constant:
    """Return the bias [O] of a Gemm; one number for all is repeated."""
    if known.data.size == outputs:
        return known.reshaped((outputs,))
    if known.data.size != 1:
        raise node.refusal(f"has a bias {known.data.shape} for {outputs} outputs; export it again")
    return Constant(np.full(outputs, real_constant(node, known).data.reshape(-1)[0]), known.name, None)


def _normalised(
    bench: Workbench, node: Node, weights: Constant, bias: Constant | None, axis: int
) -> tuple[Constant, Constant | None, Node]:
    """Fold the BatchNormalization that alone follows a layer into its constants; they then have no origin."""
    user = bench.only_user(node.outputs[0])
    if user is None or user.op != "BatchNormalization" or user.inputs[0] != node.outputs[0]:
        return weights, bias, node
    factor, offset = _factors(bench, user)
    channels = weights.data.shape[axis]
    if len(factor) != channels:
        raise user.refusal(f"has {len(factor)} channels for {channels}; export it again")
    bench.done.add(user.index)
    along = [1] * weights.data.ndim
    along[axis] = channels
    with np.errstate(all="ignore"):
        scaled = weights.data * factor.reshape(along)
        moved = offset if bias is None else bias.data * factor + offset
    return Constant(scaled, weights.name, None), Constant(moved, f"{weights.name} bias", None), user


def _factors(bench: Workbench, node: Node) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (factor, offset) per channel, float32, of a BatchNormalization in inference: x * factor + offset."""
    if node.integer("training_mode", 0):
        raise node.refusal("is in training mode; export the model for inference")
    with np.errstate(all="ignore"):  # NaN among them is refused below
        scale, bias, mean, variance = (
            real_constant(node, constant_input(bench, node, position)).data.reshape(-1).astype(np.float64)
            for position in (1, 2, 3, 4)
        )
    if not len(scale) == len(bias) == len(mean) == len(variance):
        raise node.refusal("has constants of different lengths; export it again")
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + node.real("epsilon", 1e-5))
        offset = (bias - mean * factor).astype(np.float32)
        factor = factor.astype(np.float32)
    if not bool(np.isfinite(factor).all() and np.isfinite(offset).all()):
        raise node.refusal("divides by a variance of zero or less; export the trained model again")
    return factor, offset


def _in_order(known: Constant, rank: int, order: tuple[int, ...]) -> Constant:
    """Return a constant operand with as many axes as the result, in its stored order."""
    wide = known.reshaped((1,) * (rank - known.data.ndim) + known.data.shape)
    moved = wide.transposed(tuple(axis for axis in order if axis >= 0))
    shape = iter(moved.data.shape)
    return moved.reshaped(tuple(1 if axis < 0 else next(shape) for axis in order))
