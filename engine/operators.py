"""What each kind of operator means in kernel calls, forward and backward side by side; layers are in `layers.py`.

`OPERATORS` is the one table: what is in it our own kernels can run and differentiate. A forward function records how
the output is made; a backward function turns the gradient of the output, which is complete and has passed the
operator's own clamp, into gradients of the inputs that want one.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engine import int8, layers
from engine.kernels import activation, layout, pointwise, pool
from engine.models.graph import ModelError
from engine.recording import flat, seen4

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from engine.models.graph import Operator
    from engine.recording import Recording
    from engine.tape import Room


def add(recording: Recording, operator: Operator) -> None:
    """The sum of two tensors; the second may be a constant or one number per channel."""
    first, second, output = _pair(recording, operator)
    if recording.is_int8(operator.outputs[0]):
        rule = _rule(recording, operator, int8.add_rule)
        recording.tape.call(pointwise.add_int8, first, second, rule, output)
    else:
        recording.tape.call(pointwise.add_float, first, second, *recording.range_of(operator), output)


def add_back(recording: Recording, operator: Operator) -> None:
    """Both inputs get the gradient as it is; the last to ask takes over its room."""
    grad = recording.grad(operator.outputs[0])
    wanting = [index for index in operator.inputs[:2] if recording.flows(index)]
    for index in wanting:
        same = recording.values[index].shape == grad.shape
        if index == wanting[-1] and same and recording.hand_over(index, grad):
            return
        target, begun = recording.give(index)
        if same:
            recording.tape.call(pointwise.pass_back, flat(grad), begun, flat(target))
        else:
            recording.tape.call(pointwise.sum_back, grad, begun, target)


def multiply(recording: Recording, operator: Operator) -> None:
    """The product of two tensors; the second may be a constant or one number per channel."""
    first, second, output = _pair(recording, operator)
    if recording.is_int8(operator.outputs[0]):
        rule = _rule(recording, operator, int8.mul_rule)
        recording.tape.call(pointwise.mul_int8, first, second, rule, output)
    else:
        recording.tape.call(pointwise.mul_float, first, second, *recording.range_of(operator), output)


def multiply_back(recording: Recording, operator: Operator) -> None:
    """Each input's gradient is that of the product times the other input."""
    grad = recording.grad(operator.outputs[0])
    for index, other in (operator.inputs[:2], operator.inputs[1::-1]):
        if not recording.flows(index):
            continue
        target, begun = recording.give(index)
        if recording.is_int8(other):
            scale, zero = recording.quantization(other)
            recording.tape.call(pointwise.mul_back_int8, grad, recording.value(other), zero, scale, begun, target)
        else:
            recording.tape.call(pointwise.mul_back_float, grad, recording.value(other), begun, target)


def reshape(recording: Recording, operator: Operator) -> None:
    """The same bytes under another shape."""
    output = recording.tensor(operator.outputs[0])
    entering = recording.value(operator.inputs[0])
    if prod(seen4(output)) != prod(entering.shape):
        raise ModelError(f"operator {operator.index} (RESHAPE) mixes windows; export the model for one window")
    recording.values[operator.outputs[0]] = entering.seen_as(seen4(output))


def reshape_back(recording: Recording, operator: Operator) -> None:
    """The gradient is the output's own, seen in the input's shape."""
    _pass_whole(recording, operator)


def requantize(recording: Recording, operator: Operator) -> None:
    """QUANTIZE: float32 to int8, or int8 to int8 at another scale."""
    source, output = recording.value(operator.inputs[0]), recording.make(operator.outputs[0])
    scale, zero = recording.quantization(operator.outputs[0])
    if source.dtype == np.float32:
        recording.tape.call(layout.quantize_float, flat(source), scale, zero, flat(output))
    else:
        table = int8.requantize_table(recording.quantization(operator.inputs[0]), (scale, zero))
        recording.tape.call(pointwise.lookup_int8, flat(source), recording.table("table", table), flat(output))


def dequantize(recording: Recording, operator: Operator) -> None:
    """DEQUANTIZE: int8 to float32."""
    source, output = recording.value(operator.inputs[0]), recording.make(operator.outputs[0])
    scale, zero = recording.quantization(operator.inputs[0])
    recording.tape.call(layout.dequantize_int8, flat(source), zero, scale, flat(output))


def straight_back(recording: Recording, operator: Operator) -> None:
    """Through a change of scale the gradient of real values goes as it is."""
    _pass_whole(recording, operator)


def concatenate(recording: Recording, operator: Operator) -> None:
    """The parts side by side along one axis; int8 parts must share the output's scale."""
    output = recording.make(operator.outputs[0])
    integers = recording.is_int8(operator.outputs[0])
    for index, first, outer, width, whole in _parts(recording, operator):
        part = recording.value(index)
        if integers and recording.quantization(index) != recording.quantization(operator.outputs[0]):
            raise ModelError(
                f"operator {operator.index} (CONCATENATION) joins parts of different scales; export it again"
            )
        kernel = layout.place_int8 if integers else layout.place_float
        recording.tape.call(kernel, part.seen_as((1, outer, width)), first, output.seen_as((1, outer, whole)))


def concatenate_back(recording: Recording, operator: Operator) -> None:
    """Each part takes its stretch of the gradient."""
    grad = recording.grad(operator.outputs[0])
    for index, first, outer, width, whole in _parts(recording, operator):
        if recording.flows(index):
            target, begun = recording.give(index)
            seen, part = grad.seen_as((1, outer, whole)), target.seen_as((1, outer, width))
            recording.tape.call(layout.crop_back, seen, 0, 0, first, begun, part)


def pad(recording: Recording, operator: Operator) -> None:
    """Zeros around the image (an int8 tensor's zero point)."""
    top, left, front = _paddings(recording, operator)
    source, output = recording.value(operator.inputs[0]), recording.make(operator.outputs[0])
    if recording.is_int8(operator.outputs[0]):
        zero = recording.quantization(operator.outputs[0])[1]
        recording.tape.call(layout.pad_int8, source, top, left, front, zero, output)
    else:
        recording.tape.call(layout.pad_float, source, top, left, front, 0.0, output)


def pad_back(recording: Recording, operator: Operator) -> None:
    """The inside of the gradient."""
    target, begun = recording.give(operator.inputs[0])
    recording.tape.call(
        layout.crop_back, recording.grad(operator.outputs[0]), *_paddings(recording, operator), begun, target
    )


def average_pool(recording: Recording, operator: Operator) -> None:
    """The mean over a window, of what of it lies inside the image."""
    source, output = recording.value(operator.inputs[0]), recording.make(operator.outputs[0])
    geometry = _pool_geometry(recording, operator)
    low, high = recording.range_of(operator)
    if recording.is_int8(operator.outputs[0]):
        sums = recording.scratch(source.shape[2:], np.int32)
        recording.tape.call(pool.average_pool_int8, source, low, high, geometry, sums, output)
    else:
        recording.tape.call(pool.average_pool_float, source, low, high, geometry, output)


def average_pool_back(recording: Recording, operator: Operator) -> None:
    """The gradient spread evenly over the window."""
    target, begun = recording.give(operator.inputs[0])
    geometry = _pool_geometry(recording, operator)
    recording.tape.call(pool.average_pool_back, recording.grad(operator.outputs[0]), geometry, begun, target)


def max_pool(recording: Recording, operator: Operator) -> None:
    """The largest in a window."""
    source, output = recording.value(operator.inputs[0]), recording.make(operator.outputs[0])
    kernel = pool.max_pool_int8 if recording.is_int8(operator.outputs[0]) else pool.max_pool_float
    recording.tape.call(kernel, source, *recording.range_of(operator), _pool_geometry(recording, operator), output)


def max_pool_back(recording: Recording, operator: Operator) -> None:
    """The gradient goes to the first of the largest, row by row."""
    target, begun = recording.give(operator.inputs[0])
    source, output = recording.value(operator.inputs[0]), recording.value(operator.outputs[0])
    kernel = pool.max_pool_back_int8 if recording.is_int8(operator.outputs[0]) else pool.max_pool_back_float
    recording.tape.call(
        kernel, source, output, recording.grad(operator.outputs[0]), _pool_geometry(recording, operator), begun,
        recording.scratch(source.shape[2:], np.uint8), target,
    )  # fmt: skip


def mean(recording: Recording, operator: Operator) -> None:
    """The mean over height and width."""
    source, output = recording.value(operator.inputs[0]), recording.make(operator.outputs[0])
    _check_mean(recording, operator)
    channels = source.shape[2]
    if recording.is_int8(operator.outputs[0]):
        rule = int8.mean_rule(
            recording.quantization(operator.inputs[0]), recording.quantization(operator.outputs[0]),
            source.shape[0] * source.shape[1],
        )  # fmt: skip
        recording.tape.call(
            pool.mean_int8, source, recording.table("rule", rule), recording.scratch((channels,), np.int32),
            output.seen_as((1, 1, channels)),
        )  # fmt: skip
    else:
        geometry = recording.table("geometry", _whole(source))
        recording.tape.call(
            pool.average_pool_float, source, -np.inf, np.inf, geometry, output.seen_as((1, 1, channels))
        )


def mean_back(recording: Recording, operator: Operator) -> None:
    """The gradient spread evenly over the image."""
    target, begun = recording.give(operator.inputs[0])
    grad = recording.grad(operator.outputs[0]).seen_as((1, 1, target.shape[2]))
    recording.tape.call(pool.average_pool_back, grad, recording.table("geometry", _whole(target)), begun, target)


def logistic(recording: Recording, operator: Operator) -> None:
    """The logistic function, 1 / (1 + exp(-x))."""
    source, output = recording.value(operator.inputs[0]), recording.make(operator.outputs[0])
    if recording.is_int8(operator.outputs[0]):
        _check_unit_range(recording, operator)
        table = recording.table("table", int8.logistic_table(recording.quantization(operator.inputs[0])))
        recording.tape.call(pointwise.lookup_int8, flat(source), table, flat(output))
    else:
        recording.tape.call(activation.logistic_float, flat(source), flat(output))


def logistic_back(recording: Recording, operator: Operator) -> None:
    """The gradient times y * (1 - y)."""
    target, begun = recording.give(operator.inputs[0])
    output, grad = recording.value(operator.outputs[0]), recording.grad(operator.outputs[0])
    kernel = activation.logistic_back_int8 if recording.is_int8(operator.outputs[0]) else activation.logistic_back_float
    recording.tape.call(kernel, flat(output), flat(grad), begun, flat(target))


def softmax(recording: Recording, operator: Operator) -> None:
    """The softmax over the last axis; a training's loss has its own, so this one has no gradient."""
    source, output = recording.value(operator.inputs[0]), recording.make(operator.outputs[0])
    beta = float(operator.options["beta"])
    if recording.is_int8(operator.outputs[0]):
        _check_unit_range(recording, operator)
        table = int8.softmax_table(recording.quantization(operator.inputs[0])[0], beta)
        recording.tape.call(activation.softmax_int8, source, recording.table("table", table), output)
    else:
        recording.tape.call(activation.softmax_float, source, beta, output)


def no_back(_: Recording, operator: Operator) -> None:
    """Refuse: `scheme.resolve` lets no such operator into a trainable part."""
    raise ModelError(f"operator {operator.index} ({operator.kind}) has no gradient here; choose what trains after it")


class Meaning(NamedTuple):
    """How one kind of operator is run and differentiated, and what it keeps: 'input', 'inputs', 'output' or ''.

    `clamps`: an int8 output was rounded into its range, so the gradient stops at the ends of it.
    """

    forward: Callable[[Recording, Operator], None]
    backward: Callable[[Recording, Operator], None]
    keeps: str
    clamps: bool


OPERATORS = {
    "CONV_2D": Meaning(layers.forward, layers.backward, "layer", clamps=True),
    "DEPTHWISE_CONV_2D": Meaning(layers.forward, layers.backward, "layer", clamps=True),
    "FULLY_CONNECTED": Meaning(layers.forward, layers.backward, "layer", clamps=True),
    "ADD": Meaning(add, add_back, "", clamps=True),
    "MUL": Meaning(multiply, multiply_back, "inputs", clamps=True),
    "AVERAGE_POOL_2D": Meaning(average_pool, average_pool_back, "", clamps=False),
    "MAX_POOL_2D": Meaning(max_pool, max_pool_back, "input and output", clamps=False),
    "MEAN": Meaning(mean, mean_back, "", clamps=True),
    "RESHAPE": Meaning(reshape, reshape_back, "", clamps=False),
    "PAD": Meaning(pad, pad_back, "", clamps=False),
    "CONCATENATION": Meaning(concatenate, concatenate_back, "", clamps=False),
    "LOGISTIC": Meaning(logistic, logistic_back, "output", clamps=False),
    "SOFTMAX": Meaning(softmax, no_back, "", clamps=False),
    "QUANTIZE": Meaning(requantize, straight_back, "", clamps=True),
    "DEQUANTIZE": Meaning(dequantize, straight_back, "", clamps=False),
}


def _ordered(recording: Recording, operator: Operator) -> tuple[int, int]:
    """Give the two inputs' tensors, first one that was computed and has the output's shape."""
    first, second = operator.inputs[:2]
    shape = recording.tensor(operator.outputs[0]).shape
    leads = recording.tensor(first).data is None and recording.tensor(first).shape == shape
    ordered = (first, second) if leads else (second, first)
    if recording.tensor(ordered[0]).data is not None or recording.tensor(ordered[0]).shape != shape:
        raise ModelError(f"operator {operator.index} ({operator.kind}) widens both its inputs; export the model again")
    return ordered


def _pair(recording: Recording, operator: Operator) -> tuple[Room, Room, Room]:
    """Give both inputs, the larger one first, and the output."""
    first, second = (recording.value(index) for index in _ordered(recording, operator))
    output = recording.make(operator.outputs[0])
    if first.batched and second.batched and first.shape == second.shape:
        return flat(first), flat(second), flat(output)
    return first, second, output


def _rule(recording: Recording, operator: Operator, rule: Callable[..., NDArray[np.int64]]) -> Room:
    a, b = _ordered(recording, operator)
    given = (recording.quantization(index) for index in (a, b, operator.outputs[0]))
    return recording.table("rule", rule(*given, operator.activation))


def _pass_whole(recording: Recording, operator: Operator) -> None:
    """Let the input's gradient be the output's, or have it added."""
    grad = recording.grad(operator.outputs[0])
    if not recording.hand_over(operator.inputs[0], grad):
        target, begun = recording.give(operator.inputs[0])
        recording.tape.call(pointwise.pass_back, flat(grad), begun, flat(target))


def _parts(recording: Recording, operator: Operator) -> list[tuple[int, int, int, int, int]]:
    """Give (tensor, first, outer, width, whole): rows of `width` that stand at `first` in rows of `whole`."""
    leaving = recording.tensor(operator.outputs[0]).shape
    axis = int(operator.options["axis"]) % len(leaving)
    if axis == 0:
        raise ModelError(f"operator {operator.index} (CONCATENATION) joins windows; export the model for one window")
    inner, outer = prod(leaving[axis + 1 :]), prod(leaving[1:axis])
    parts, first = [], 0
    for index in operator.inputs:
        width = recording.tensor(index).shape[axis] * inner
        parts.append((index, first, outer, width, leaving[axis] * inner))
        first += width
    return parts


def _paddings(recording: Recording, operator: Operator) -> tuple[int, int, int]:
    """Give what is put above, to the left and in front of the channels."""
    amounts = recording.tensor(operator.inputs[1]).data
    entering = recording.tensor(operator.inputs[0])
    if amounts is None or amounts.shape != (len(entering.shape), 2) or amounts[0].any():
        raise ModelError(f"operator {operator.index} (PAD) has no constant amounts per axis; export the model again")
    before = [0] * (4 - len(entering.shape)) + [int(n) for n in amounts[1:, 0]]
    return before[-3] if len(before) > 2 else 0, before[-2] if len(before) > 1 else 0, before[-1]


def _pool_geometry(recording: Recording, operator: Operator) -> Room:
    window = int(operator.options["filter_height"]), int(operator.options["filter_width"])
    entering = seen4(recording.tensor(operator.inputs[0]))
    leaving = seen4(recording.tensor(operator.outputs[0]))
    return recording.table("geometry", layers.geometry_of(operator, window, entering[:2], leaving[:2]))


def _check_mean(recording: Recording, operator: Operator) -> None:
    axes = recording.tensor(operator.inputs[1]).data
    dimensions = len(recording.tensor(operator.inputs[0]).shape)
    if axes is None or dimensions != 4 or sorted(int(axis) % 4 for axis in axes.ravel()) != [1, 2]:
        raise ModelError(f"operator {operator.index} (MEAN) is not over height and width; export the model again")


def _check_unit_range(recording: Recording, operator: Operator) -> None:
    if recording.quantization(operator.outputs[0]) != (1 / 256, -128):
        raise ModelError(
            f"operator {operator.index} ({operator.kind}) has an output of scale and zero point "
            f"{recording.quantization(operator.outputs[0])}; the format knows (1/256, -128) only: export it again"
        )


def _whole(image: Room) -> NDArray[np.int64]:
    return np.array([*image.shape[:2], 1, 1, 0, 0, 1, 1], np.int64)
