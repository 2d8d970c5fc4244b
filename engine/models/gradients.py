"""Which operators have a gradient here, and in which form: the door through which a trainable part must pass.

The part of a model behind the cut runs on the engine's own kernels, forward and backward. `check_operator` refuses
what they do not know, naming the operator, and says how to mend it. Two lanes exist: `int8`, where weights are int8
with zero-point 0, biases int32 and activations int8 with one scale each; and `float32` for everything.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from engine.models.cuts import LAYERS
from engine.models.graph import ABSENT, ModelError
from engine.models.shapes import check_shapes

if TYPE_CHECKING:
    from engine.models.graph import Graph, Operator, Tensor

POOLS = ("AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN")
KINDS = (*LAYERS, "ADD", *POOLS, "RESHAPE", "PAD", "CONCATENATION", "MUL", "LOGISTIC", "QUANTIZE", "DEQUANTIZE")
INPUTS = {  # the least and the most that a kind takes; where nothing is said, one
    "CONV_2D": (2, 3), "DEPTHWISE_CONV_2D": (2, 3), "FULLY_CONNECTED": (2, 3), "ADD": (2, 2), "MUL": (2, 2),
    "MEAN": (2, 2), "PAD": (2, 2), "RESHAPE": (1, 2), "CONCATENATION": (1, 64),
}  # fmt: skip
ACTIVATIONS = ("NONE", "RELU", "RELU6")
NAME_SHOWN = 60  # converters join the names of all that they fused with semicolons, a layer's own at the end
BIAS_DTYPES = {"int8": "int32", "float32": "float32"}


def place(graph: Graph, operator: Operator) -> str:
    """Name an operator for a human: index, kind and the name of what it makes."""
    name = graph.tensors[operator.outputs[0]].name.rpartition(";")[2] if operator.outputs else ""
    return f"operator {operator.index} ({operator.kind}, {name[:NAME_SHOWN]!r})"


def lane_of(graph: Graph, operator: Operator) -> str:
    """Return 'int8' or 'float32', the lane of a layer. Raises ModelError where its weights belong to neither."""
    where = place(graph, operator)
    if len(operator.inputs) < 2 or operator.inputs[1] == ABSENT:
        raise ModelError(f"{where} has no weights; export the model again")
    weights, entering = graph.tensors[operator.inputs[1]], graph.tensors[operator.inputs[0]]
    ndim = 2 if operator.kind == "FULLY_CONNECTED" else 4
    if weights.data is None or len(weights.shape) != ndim or 0 in weights.shape:
        raise ModelError(f"{where} has no constant weights of {ndim} dimensions; export the model with them inside")
    if weights.dtype not in BIAS_DTYPES or weights.dtype != entering.dtype:
        raise ModelError(
            f"{where} has {weights.dtype} weights and {entering.dtype} activations; "
            "export the model as fully int8, or as float32"
        )
    return weights.dtype


def check_operator(graph: Graph, operator: Operator, lane: str) -> None:
    """Raise ModelError if `operator` cannot stand in a trainable part of this lane ('int8' or 'float32')."""
    where = place(graph, operator)
    if operator.kind not in KINDS:
        raise ModelError(
            f"{where} stands in the trainable part, and its gradient is not known; choose what trains after it"
        )
    if operator.activation not in ACTIVATIONS:
        raise ModelError(f"{where} has the activation {operator.activation}, whose gradient is not known")
    least, most = INPUTS.get(operator.kind, (1, 1))
    given = operator.inputs[:2] if operator.kind in LAYERS else operator.inputs
    if len(operator.outputs) != 1 or not least <= len(operator.inputs) <= most or ABSENT in given:
        raise ModelError(
            f"{where} has {len(operator.inputs)} inputs and {len(operator.outputs)} outputs, as no such operator has; "
            "export the model again"
        )
    if operator.kind in LAYERS:
        _check_layer(graph, operator, lane)
    _check_activations(graph, operator, lane)
    match operator.kind:
        case "ADD":
            _check_add(graph, operator)
        case "MUL":
            _check_mul(graph, operator)
        case "MEAN":
            _check_constant(graph, operator, {(1, 2), (2, 1), (-3, -2), (-2, -3)}, "takes its mean over other axes")
        case "PAD":
            _check_pad(graph, operator)
        case "CONCATENATION":
            ndim = len(graph.tensors[operator.outputs[0]].shape)
            if operator.options.get("axis", -1) not in {-1, ndim - 1}:
                raise ModelError(f"{where} joins along axis {operator.options['axis']}; only the last can train")
    check_shapes(graph, operator)


def _check_layer(graph: Graph, operator: Operator, lane: str) -> None:
    where = place(graph, operator)
    if lane_of(graph, operator) != lane:
        raise ModelError(
            f"{where} is {lane_of(graph, operator)} in a part that trains as {lane}; export it as one kind"
        )
    weights, entering = graph.tensors[operator.inputs[1]], graph.tensors[operator.inputs[0]]
    axis = 3 if operator.kind == "DEPTHWISE_CONV_2D" else 0
    _check_form(graph, operator, weights, entering)
    bias = operator.inputs[2] if len(operator.inputs) > 2 else ABSENT
    if bias != ABSENT:
        data, expected = graph.tensors[bias].data, BIAS_DTYPES[lane]
        if data is None or data.size != weights.shape[axis] or graph.tensors[bias].dtype != expected:
            raise ModelError(f"{where} has no constant bias [{weights.shape[axis]}] of {expected}; export it again")
    if lane == "float32":
        if len(weights.scale):
            raise ModelError(f"{where} has float32 weights with a scale; export the model again")
        return
    count = len(weights.scale)
    if (
        count not in {1, weights.shape[axis]}
        or (count > 1 and weights.quantized_axis != axis)
        or weights.zero_point.any()
    ):
        raise ModelError(
            f"{where} has int8 weights that are not symmetric, with one scale or one per output channel; "
            "convert the model again with TensorFlow Lite's full-integer quantization"
        )


def _check_form(graph: Graph, operator: Operator, weights: Tensor, entering: Tensor) -> None:
    where, options = place(graph, operator), operator.options
    if operator.kind == "FULLY_CONNECTED":
        if options.get("weights_format", 0) != 0:
            raise ModelError(f"{where} has weights in a packed format; export it as int8 or float32")
        if prod(entering.shape) != weights.shape[1]:
            raise ModelError(
                f"{where} takes {entering.shape} for {weights.shape[1]} inputs; one row per window can be trained"
            )
        return
    if len(entering.shape) != 4 or entering.shape[3] != weights.shape[3]:
        what = "a multiplier" if operator.kind == "DEPTHWISE_CONV_2D" else "groups"
        raise ModelError(
            f"{where} takes {entering.shape} for weights {weights.shape}; a layer with {what} cannot train"
        )
    if (options.get("dilation_height", 1), options.get("dilation_width", 1)) != (1, 1):
        raise ModelError(f"{where} is dilated; only a convolution with dilation 1 can train")


def _check_activations(graph: Graph, operator: Operator, lane: str) -> None:
    if operator.kind in {"QUANTIZE", "DEQUANTIZE"}:
        allowed = {"int8", "float32"} if lane == "int8" else {"float32"}
    else:
        allowed = {lane}
    entering = operator.inputs if operator.kind in {"ADD", "MUL", "CONCATENATION"} else operator.inputs[:1]
    for tensor in (graph.tensors[index] for index in (*entering, *operator.outputs)):
        if tensor.dtype not in allowed or tensor.dtype.startswith("TYPE_"):
            raise ModelError(
                f"{place(graph, operator)} works on {tensor.dtype} ({tensor.name!r}) in a part that trains as {lane}; "
                "export the model as fully int8, or as float32"
            )
        if tensor.dtype == "int8" and (len(tensor.scale) != 1 or tensor.scale[0] <= 0 or len(tensor.zero_point) > 1):
            raise ModelError(f"{place(graph, operator)} has no scale for {tensor.name!r}; convert the model again")
        if tensor.dtype == "int8" and not all(-128 <= zero <= 127 for zero in tensor.zero_point.tolist()):
            raise ModelError(f"{place(graph, operator)} has a zero-point beyond int8; convert the model again")
        if tensor.data is None and (tensor.shape[:1] != (1,) or 0 in tensor.shape or len(tensor.shape) > 4):
            raise ModelError(
                f"{place(graph, operator)} works on {tensor.name!r} of shape {tensor.shape}; "
                "a trainable part keeps one window per row, in at most 4 dimensions: export the model with batch 1"
            )


def _check_add(graph: Graph, operator: Operator) -> None:
    shapes = {graph.tensors[index].shape for index in operator.inputs}
    if len(operator.inputs) != 2 or len(shapes) != 1 or any(graph.tensors[i].data is not None for i in operator.inputs):
        raise ModelError(f"{place(graph, operator)} adds {shapes}; two computed tensors of one shape can train")


def _check_mul(graph: Graph, operator: Operator) -> None:
    first, second = (graph.tensors[index].shape for index in operator.inputs[:2])
    wide, narrow = (first, second) if prod(first) >= prod(second) else (second, first)
    if narrow != wide and prod(narrow) not in {1, wide[-1]}:
        raise ModelError(f"{place(graph, operator)} multiplies {first} by {second}; one value per channel can train")


def _check_constant(graph: Graph, operator: Operator, allowed: set[tuple[int, ...]], otherwise: str) -> None:
    data = graph.tensors[operator.inputs[1]].data if len(operator.inputs) > 1 else None
    if data is None or tuple(data.ravel().tolist()) not in allowed or len(graph.tensors[operator.inputs[0]].shape) != 4:
        raise ModelError(f"{place(graph, operator)} {otherwise}; only height and width of [n, h, w, c] can train")


def _check_pad(graph: Graph, operator: Operator) -> None:
    data = graph.tensors[operator.inputs[1]].data if len(operator.inputs) == 2 else None
    if data is None or data.shape != (4, 2) or data[0].any() or data[3].any() or (data < 0).any():
        raise ModelError(f"{place(graph, operator)} pads other than the height and width of [n, h, w, c] with zeros")
