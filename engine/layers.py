"""Layers with weights, forward and backward: convolution, depthwise convolution, dense.

A dense layer is a 1x1 convolution over its rows. Forward, int8 layers are computed in integers, exactly as the TFLite
reference kernels do. Backward (gradients of real values, straight through the rounding, Bengio et al. 2013):

    inputs    sums over scale[o] * W8                 weights    sums over (stored - zero point) * gradient

and the update turns the latter into steps of an int8 weight with the factor rate * input scale / weight scale[o]. That
is one step of SGD on the real-valued weight seen through its scale: quantisation-aware scaling (Lin et al. 2022, eq.
2-4) without ever forming 1 / scale^2. A channel with a scale below 1e-6 is dead and stays as it is.

A layer's gradient is applied as soon as it is formed, so that only one is in memory at a time; the gradient of its
inputs is formed before, from the old weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import drift, int8
from engine.kernels import conv_layout as room
from engine.kernels import update
from engine.kernels.conv import conv_forward_float, conv_forward_int8, conv_forward_real, pack_float, pack_pairs
from engine.kernels.conv_backward import (
    bias_gradient,
    conv_backward_inputs,
    conv_backward_weights_float,
    conv_backward_weights_int8,
    pack_inputs_float,
    pack_inputs_int8,
)
from engine.kernels.depthwise import (
    depthwise_backward_inputs,
    depthwise_backward_weights_float,
    depthwise_backward_weights_int8,
    depthwise_forward_float,
    depthwise_forward_int8,
    pack_depthwise_float,
    pack_depthwise_inputs_float,
    pack_depthwise_inputs_int8,
    pack_depthwise_int8,
)
from engine.kernels.layout import take_float, take_int8
from engine.models.graph import ABSENT, ModelError
from engine.models.scheme import DEAD_SCALE
from engine.recording import seen4
from engine.tape import Late

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.models.graph import Operator
    from engine.models.scheme import TrainedLayer
    from engine.recording import Recording
    from engine.tape import Room

STEP_MAX = 2.0  # of an int8 weight in one step: a layer with huge inputs must not be thrown off by one batch
SAME = 0  # the format's number for padding that keeps the size


@dataclass(frozen=True)
class _Shape:
    """What a layer looks like to its kernels: everything as a convolution."""

    source: Room  # the input, seen as rows of the layer's width
    outputs: int
    weights: tuple[int, int, int, int]
    out: tuple[int, int, int]
    geometry: NDArray[np.int64]
    depthwise: bool = False


def forward(recording: Recording, operator: Operator) -> None:
    """Record the layer's output: int8, float32, or the real numbers before rounding where the loss wants them."""
    shape = _shape_of(recording, operator)
    output = recording.make(operator.outputs[0]).seen_as(shape.out)
    weights = recording.parameter(operator.inputs[1], shape.weights)
    if _is_int8(recording, operator):
        _forward_int8(recording, operator, shape, weights, output)
    else:
        _forward_float(recording, operator, shape, weights, output)
    layer = recording.layers.get(operator.index)
    if layer is not None and layer.channels is not None and len(layer.channels) < shape.weights[3]:
        recording.inputs_kept[operator.index] = _take(recording, shape.source, layer.channels)


def backward(recording: Recording, operator: Operator) -> None:
    """Record the gradient of the layer's input, and the step of its parameters if it trains."""
    shape = _shape_of(recording, operator)
    grad = recording.grad(operator.outputs[0]).seen_as(shape.out)
    if recording.flows(operator.inputs[0]):
        _grad_inputs(recording, operator, shape, grad)
    layer = recording.layers.get(operator.index)
    if layer is not None and layer.channels is not None:
        _step_weights(recording, operator, layer, shape, grad)
    if layer is not None and layer.num_bias:
        _step_bias(recording, operator, layer, shape, grad)


def needs_input(recording: Recording, operator: Operator) -> bool:
    """Whether the way back needs the whole input of the layer: all channels of its weights train."""
    layer = recording.layers.get(operator.index)
    if layer is None or layer.channels is None:
        return False
    return len(layer.channels) == recording.tensor(operator.inputs[1]).shape[-1]


def _shape_of(recording: Recording, operator: Operator) -> _Shape:
    """See the layer as a convolution; ModelError for what no kernel knows (a multiplier, packed weights)."""
    weights = recording.tensor(operator.inputs[1]).shape
    entering = recording.value(operator.inputs[0])
    height, width, channels = entering.shape
    where = f"operator {operator.index} ({operator.kind})"
    if operator.kind == "FULLY_CONNECTED":
        outputs, inputs = weights
        rows = height * width * channels // inputs
        if rows * inputs != height * width * channels or operator.options.get("weights_format", 0):
            raise ModelError(f"{where} takes {entering.shape} for {inputs} inputs; export the model again")
        source, plain = entering.seen_as((1, rows, inputs)), np.array([1, 1, 1, 1, 0, 0, 1, 1], np.int64)
        return _Shape(source, outputs, (outputs, 1, 1, inputs), (1, rows, outputs), plain)
    depthwise = operator.kind == "DEPTHWISE_CONV_2D"
    if weights[3] != channels:
        raise ModelError(f"{where} has weights {weights} over {channels} channels; grouped layers cannot be run here")
    outputs = weights[3] if depthwise else weights[0]
    out = seen4(recording.tensor(operator.outputs[0]))
    geometry = geometry_of(operator, (weights[1], weights[2]), (height, width), (out[0], out[1]))
    four = (weights[0], weights[1], weights[2], weights[3])
    return _Shape(entering, outputs, four, out, geometry, depthwise=depthwise)


def geometry_of(
    operator: Operator, window: tuple[int, int], entering: tuple[int, int], leaving: tuple[int, int]
) -> NDArray[np.int64]:
    """Give KH, KW, SH, SW, PT, PL, DH, DW of a convolution or pool; SAME padding puts the odd row below and right."""
    strides = int(operator.options["stride_height"]), int(operator.options["stride_width"])
    dilations = int(operator.options.get("dilation_height", 1)), int(operator.options.get("dilation_width", 1))
    before = []
    for given, out, taps, stride, dilation in zip(entering, leaving, window, strides, dilations, strict=True):
        missing = (out - 1) * stride + (taps - 1) * dilation + 1 - given
        before.append(max(missing, 0) // 2 if operator.options["padding"] == SAME else 0)
    return np.array([*window, *strides, *before, *dilations], np.int64)


def _is_int8(recording: Recording, operator: Operator) -> bool:
    weights, entering = recording.tensor(operator.inputs[1]), recording.value(operator.inputs[0])
    if weights.dtype not in {"int8", "float32"} or np.dtype(weights.dtype) != entering.dtype:
        raise ModelError(
            f"operator {operator.index} ({operator.kind}) has {weights.dtype} weights over {entering.dtype}; "
            "export the model as fully int8, or as float32"
        )
    return weights.dtype == "int8"


def _scales(recording: Recording, operator: Operator, shape: _Shape) -> NDArray[np.float32]:
    """Give the weights' scale of each output."""
    weights = recording.tensor(operator.inputs[1])
    scale = weights.scale
    if weights.zero_point.any():
        raise ModelError(f"operator {operator.index} has weights with a zero point; convert it with symmetric weights")
    if len(scale) not in {1, shape.outputs}:
        raise ModelError(
            f"operator {operator.index} has {len(scale)} scales for {shape.outputs} outputs; export it again"
        )
    return np.ascontiguousarray(np.broadcast_to(scale, (shape.outputs,)))


def _bias(recording: Recording, operator: Operator, shape: _Shape, dtype: Any) -> Room:
    index = operator.inputs[2] if len(operator.inputs) > 2 else ABSENT
    if index == ABSENT:
        return recording.table("no bias", np.zeros(shape.outputs, dtype))
    return recording.parameter(index, (shape.outputs,))


def _forward_int8(recording: Recording, operator: Operator, shape: _Shape, weights: Room, output: Room) -> None:
    tape, geometry = recording.tape, recording.table("geometry", shape.geometry)
    scale_in, zero_in = recording.quantization(operator.inputs[0])
    scales = _scales(recording, operator, shape)
    bias = _bias(recording, operator, shape, np.int32)
    height, width, channels = shape.out[0], shape.out[1], shape.source.shape[2]
    if shape.depthwise:
        packed = recording.scratch((room.depthwise_size(*shape.weights[1:]),), np.float32)
        scratch = recording.scratch((room.depthwise_forward_bytes(height, width, channels, shape.geometry),), np.uint8)
        tape.call(pack_depthwise_int8, weights, packed)
    else:
        packed = recording.scratch((room.pairs_size(*shape.weights, shape.geometry),), np.int16)
        needed = room.forward_bytes(height, width, channels, shape.outputs, 2, shape.geometry)
        scratch = recording.scratch((needed,), np.uint8)
        tape.call(pack_pairs, weights, geometry, packed)
    if operator.outputs[0] == recording.real_answer:
        real = recording.table("scale", (scales.astype(np.float64) * scale_in).astype(np.float32))
        tape.call(conv_forward_real, shape.source, zero_in, packed, bias, real, geometry, scratch, output)
        return
    scale_out, zero_out = recording.quantization(operator.outputs[0])
    if operator.kind == "FULLY_CONNECTED":
        multiplier, shift = int8.dense_multipliers(scale_in, scales, scale_out, shape.outputs)
    else:
        multiplier, shift = int8.conv_multipliers(scale_in, scales, scale_out)
    low, high = recording.range_of(operator)
    tape.call(
        depthwise_forward_int8 if shape.depthwise else conv_forward_int8,
        shape.source, zero_in, packed, bias, recording.table("multiplier", multiplier),
        recording.table("shift", shift), zero_out, low, high, True, geometry, scratch, output,
    )  # fmt: skip


def _forward_float(recording: Recording, operator: Operator, shape: _Shape, weights: Room, output: Room) -> None:
    tape = recording.tape
    height, width, channels = shape.out[0], shape.out[1], shape.source.shape[2]
    if shape.depthwise:
        packed = recording.scratch((room.depthwise_size(*shape.weights[1:]),), np.float32)
        scratch = recording.scratch((room.depthwise_forward_bytes(height, width, channels, shape.geometry),), np.uint8)
    else:
        packed = recording.scratch((room.packed_size(*shape.weights),), np.float32)
        needed = room.forward_bytes(height, width, channels, shape.outputs, 4, shape.geometry)
        scratch = recording.scratch((needed,), np.uint8)
    tape.call(pack_depthwise_float if shape.depthwise else pack_float, weights, packed)
    tape.call(
        depthwise_forward_float if shape.depthwise else conv_forward_float,
        shape.source, packed, _bias(recording, operator, shape, np.float32), *recording.range_of(operator),
        recording.table("geometry", shape.geometry), scratch, output,
    )  # fmt: skip


def _grad_inputs(recording: Recording, operator: Operator, shape: _Shape, grad: Room) -> None:
    tape, geometry = recording.tape, recording.table("geometry", shape.geometry)
    weights = recording.parameter(operator.inputs[1], shape.weights)
    (height, width, channels), (out_height, out_width, _) = shape.source.shape, shape.out
    if shape.depthwise:
        packed = recording.scratch((room.depthwise_size(*shape.weights[1:]),), np.float32)
        needed = room.depthwise_inputs_bytes(height, width, out_height, out_width, channels, shape.geometry)
    else:
        packed = recording.scratch((room.packed_inputs_size(*shape.weights, shape.geometry),), np.float32)
        needed = room.inputs_bytes(height, width, channels, out_height, out_width, shape.outputs, shape.geometry)
    if weights.dtype == np.int8:
        scales = recording.table("scales", _scales(recording, operator, shape))
        pack = pack_depthwise_inputs_int8 if shape.depthwise else pack_inputs_int8
        tape.call(pack, weights, scales, geometry, packed)
    else:
        tape.call(pack_depthwise_inputs_float if shape.depthwise else pack_inputs_float, weights, geometry, packed)
    target, begun = recording.give(operator.inputs[0])
    tape.call(
        depthwise_backward_inputs if shape.depthwise else conv_backward_inputs,
        grad, packed, geometry, begun, recording.scratch((needed,), np.uint8), target.seen_as(shape.source.shape),
    )  # fmt: skip


def _step_weights(recording: Recording, operator: Operator, layer: TrainedLayer, shape: _Shape, grad: Room) -> None:
    """Form the gradient of the weights that train, and take the step."""
    assert layer.channels is not None, "a layer whose weights train has channels"
    assert recording.descent is not None, "whoever trains says how"
    tape, weights = recording.tape, recording.params[layer.weights]
    count, taps = len(layer.channels), shape.weights[1] * shape.weights[2]
    if shape.depthwise and count < shape.outputs:
        grad = _take(recording, grad, layer.channels)
    rows, columns = (taps, count) if shape.depthwise else (taps * count, shape.outputs)
    gradient = recording.scratch((rows, 16 * room.blocks_of(columns)), np.float32)
    tape.call(clear, gradient)
    _grad_weights(recording, operator, shape, grad, gradient=gradient, count=count)
    drift.record(recording, _weights_part(recording, operator, layer, shape), gradient)
    _add_momentum(recording, gradient)
    channels = recording.table("channels", np.array(layer.channels, np.int64))
    if weights.dtype == np.int8:
        scale_in = recording.quantization(operator.inputs[0])[0]
        steps = _steps(recording, operator, shape, scale_in)
        step = recording.table("step", steps)
        chosen = steps[list(layer.channels)] if shape.depthwise else steps
        tape.call(update.limit_steps, gradient, recording.table("step", chosen), STEP_MAX)
        take_step = update.update_depthwise_int8 if shape.depthwise else update.update_int8
        tape.call(take_step, weights, channels, gradient, step, Late(layer.weights), recording.tally)
    else:
        take_step = update.update_depthwise_float if shape.depthwise else update.update_float
        tape.call(take_step, weights, channels, gradient, recording.descent.learning_rate, recording.tally)


def _grad_weights(
    recording: Recording, operator: Operator, shape: _Shape, grad: Room, *, gradient: Room, count: int
) -> None:
    """Add up the gradient of the weights of `count` input channels."""
    source = recording.inputs_kept.get(operator.index, shape.source)
    geometry, (out_height, out_width, _) = recording.table("geometry", shape.geometry), shape.out
    if shape.depthwise:
        needed = room.depthwise_weights_bytes(out_height, out_width, count, shape.geometry)
    else:
        needed = room.weights_bytes(out_height, out_width, count, shape.outputs, shape.geometry)
    scratch = recording.scratch((needed,), np.uint8)
    if source.dtype == np.int8:
        zero_in = recording.quantization(operator.inputs[0])[1]
        kernel = depthwise_backward_weights_int8 if shape.depthwise else conv_backward_weights_int8
        recording.tape.call(kernel, source, zero_in, grad, geometry, scratch, gradient)
    else:
        kernel = depthwise_backward_weights_float if shape.depthwise else conv_backward_weights_float
        recording.tape.call(kernel, source, grad, geometry, scratch, gradient)


def _step_bias(recording: Recording, operator: Operator, layer: TrainedLayer, shape: _Shape, grad: Room) -> None:
    tape = recording.tape
    bias = recording.params[layer.bias]
    gradient = recording.scratch((1, shape.outputs), np.float32)
    tape.call(clear, gradient)
    tape.call(bias_gradient, grad, gradient.seen_as((shape.outputs,)))
    drift.record(recording, _bias_part(recording, operator, layer, shape), gradient)
    _add_momentum(recording, gradient)
    flat_gradient = gradient.seen_as((shape.outputs,))
    if bias.dtype == np.int32:
        scale_in = recording.quantization(operator.inputs[0])[0]
        step = recording.table("step", _steps(recording, operator, shape, 1.0 / scale_in))
        tape.call(update.update_bias, bias, flat_gradient, step, Late(layer.bias), recording.tally)
    else:
        assert recording.descent is not None, "whoever trains says how"
        tape.call(update.update_bias_float, bias, flat_gradient, recording.descent.learning_rate, recording.tally)


def _weights_part(recording: Recording, operator: Operator, layer: TrainedLayer, shape: _Shape) -> drift.Part:
    """How the gradient of a layer's weights lies."""
    (_, height, width, inputs), channels = shape.weights, np.array(layer.channels, np.int64)
    taps = np.arange(height * width, dtype=np.int64) * inputs
    whole = recording.params[layer.weights].dtype == np.int8
    steps = _scales(recording, operator, shape).astype(np.float64) if whole else np.ones(shape.outputs)
    unit = recording.quantization(operator.inputs[0])[0] if whole else 1.0
    if shape.depthwise:
        return drift.Part(layer.weights, layer.first, taps, channels, False, steps[channels], unit)
    rows = (taps[:, None] + channels).ravel()
    columns = np.arange(shape.outputs, dtype=np.int64) * (height * width * inputs)
    return drift.Part(layer.weights, layer.first, rows, columns, True, steps, unit)


def _bias_part(recording: Recording, operator: Operator, layer: TrainedLayer, shape: _Shape) -> drift.Part:
    """How the gradient of a layer's bias lies."""
    steps = np.ones(shape.outputs)
    if recording.params[layer.bias].dtype == np.int32:
        steps = _scales(recording, operator, shape) * recording.quantization(operator.inputs[0])[0]
    columns = np.arange(shape.outputs, dtype=np.int64)
    first = layer.first + layer.num_weights
    return drift.Part(layer.bias, first, np.zeros(1, np.int64), columns, False, steps, 1.0)


def _steps(recording: Recording, operator: Operator, shape: _Shape, factor: float) -> NDArray[np.float32]:
    """Give rate * factor / weight scale of each output, float32; zero for a dead channel."""
    assert recording.descent is not None, "whoever trains says how"
    scales = _scales(recording, operator, shape).astype(np.float64)
    alive = scales >= DEAD_SCALE
    steps = np.where(alive, recording.descent.learning_rate * factor, 0.0) / np.where(alive, scales, 1.0)
    with np.errstate(over="ignore"):  # a step without bound moves nothing, and is told as a number that is none
        rounded: NDArray[np.float32] = steps.astype(np.float32)
    return rounded


def _add_momentum(recording: Recording, gradient: Room) -> None:
    assert recording.descent is not None, "whoever trains says how"
    if recording.descent.momentum:
        velocity = recording.table("velocity", np.broadcast_to(np.float32(0), gradient.shape))
        recording.tape.call(update.momentum_step, velocity, gradient, recording.descent.momentum)


def _take(recording: Recording, room: Room, channels: tuple[int, ...]) -> Room:
    """Record the copy of some channels of a room."""
    chosen = recording.table("channels", np.array(channels, np.int64))
    taken = recording.tape.room("kept", (*room.shape[:2], len(channels)), room.dtype, batched=True)
    recording.tape.call(take_int8 if room.dtype == np.int8 else take_float, room, chosen, taken)
    return taken


def clear(array: NDArray[Any]) -> None:
    """Set all entries to zero."""
    array.fill(0)
