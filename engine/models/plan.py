"""What trains: the last dense layers of a model, and where the frozen part before them ends.

`last-k` names the last k FULLY_CONNECTED layers. Everything before the first of them is frozen: the interpreter runs
it once per window and hands its output, the *features*, to the trainable layers, which live on as one flat float32
array of params. Its layout, everywhere in the project: for each layer the weights [outputs][inputs], row by row (the
file's own order), then the bias [outputs].
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from engine.models.graph import ABSENT, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.models.graph import Graph, Operator, Tensor

TRAINABLE_ACTIVATIONS = ("NONE", "RELU")
PASSED_OVER = ("RESHAPE", "QUANTIZE", "DEQUANTIZE")  # change nothing of a row of real numbers
FEATURE_DTYPES = ("int8", "float32")

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Layer:
    """One trainable dense layer; `activation` is 'NONE' or 'RELU'."""

    inputs: int
    outputs: int
    activation: str

    @property
    def num_params(self) -> int:
        """Weights and biases together."""
        return self.inputs * self.outputs + self.outputs


@dataclass(frozen=True, slots=True)
class Head:
    """The trainable part of one graph.

    `cut` is the index of its first operator; `feature_tensor` the tensor that enters it. A feature's real value is
    (stored - feature_zero_point) * feature_scale; a float model has scale 1 and zero-point 0.
    """

    cut: int
    feature_tensor: int
    feature_scale: float
    feature_zero_point: int
    layers: tuple[Layer, ...]

    @property
    def num_params(self) -> int:
        """The length P of the flat params array."""
        return sum(layer.num_params for layer in self.layers)


def head_of(graph: Graph, train: str) -> Head:
    """Find the trainable part of `graph` for `train` = 'last-1', 'last-2', ...

    Raises ModelError, naming operator, index and tensor, where something other than dense layers stands there.
    """
    dense = [_layer_operator(graph, index) for index in _dense_operators(graph, train)]
    for (_, before), (index, after) in pairwise(dense):
        if before.outputs != after.inputs:
            raise ModelError(
                f"{_place(graph, graph.operators[index])} takes {after.inputs} numbers, and the dense layer before it "
                f"makes {before.outputs}; export the model again"
            )
    entering = graph.tensors[graph.operators[dense[0][0]].inputs[0]]
    scale, zero_point = _feature_quantization(entering, dense[0][1].inputs)
    return Head(dense[0][0], entering.index, scale, zero_point, tuple(layer for _, layer in dense))


def params_of(graph: Graph, head: Head) -> NDArray[np.float32]:
    """Return the file's own weights and biases of the head as real numbers, float32 [P] in the flat layout."""
    dense = [op for op in graph.operators[head.cut :] if op.kind == "FULLY_CONNECTED"]
    parts = []
    for operator, layer in zip(dense, head.layers, strict=True):
        parts.append(_real(graph.tensors[operator.inputs[1]]))
        bias = operator.inputs[2] if len(operator.inputs) > 2 else ABSENT
        parts.append(np.zeros(layer.outputs, np.float32) if bias == ABSENT else _real(graph.tensors[bias]))
    return np.concatenate(parts)


def reset_params(head: Head, seed: int) -> NDArray[np.float32]:
    """Return fresh params, float32 [P]: the same bits on every machine for the same head and seed.

    Weights are uniform in +-sqrt(6/inputs) before a RELU (He et al. 2015) and in +-sqrt(3/inputs) otherwise; biases
    are zero. The number at flat index i is splitmix64 of (seed, i) (Steele et al. 2014): integers, one IEEE square
    root, one product, so no mathematics library has a say in it.
    """
    parts, start = [], 0
    for layer in head.layers:
        count = layer.inputs * layer.outputs
        bound = math.sqrt((6.0 if layer.activation == "RELU" else 3.0) / layer.inputs)
        top = (_splitmix64(seed, start, count) >> np.uint64(40)).astype(np.int64)  # 24 bits
        steps = (2 * top + 1 - (1 << 24)).astype(np.float64) / float(1 << 24)  # exact, inside (-1, 1)
        parts += [(steps * bound).astype(np.float32), np.zeros(layer.outputs, np.float32)]
        start += layer.num_params
    return np.concatenate(parts)


def _splitmix64(seed: int, start: int, count: int) -> NDArray[np.uint64]:
    """Mix (seed, index) for index in start..start+count-1; the seed is mixed first, so seeds share no stretch."""
    key = _mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], np.uint64) + _GOLDEN)
    return _mix(key + np.arange(start + 1, start + count + 1, dtype=np.uint64) * _GOLDEN)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _dense_operators(graph: Graph, train: str) -> list[int]:
    """Walk back from the output until `train`'s dense layers are found; return their operator indices in order."""
    wanted = re.fullmatch(r"last-([1-9][0-9]?)", train)
    if not wanted:
        raise ModelError(f"train is {train!r}; write last-1, last-2 and so on, for the last dense layers")
    if len(graph.outputs) != 1:
        raise ModelError(f"the model has {len(graph.outputs)} outputs; one with a single output can be trained")
    found: list[int] = []
    for index in range(len(graph.operators) - 1, -1, -1):
        operator = graph.operators[index]
        _check_in_chain(graph, operator)
        if operator.kind == "FULLY_CONNECTED" and operator.activation in TRAINABLE_ACTIVATIONS:
            found.insert(0, index)
        elif not _is_passed_over(graph, operator):
            raise _refusal(graph, operator, train, len(found))
        if len(found) == int(wanted[1]):
            return found
    raise ModelError(f"the model has {len(found)} dense layers at its end, and {train} wants more; {_advice(found)}")


def _check_in_chain(graph: Graph, operator: Operator) -> None:
    """Refuse a trainable part that branches: each operator's one output feeds the next operator, and nothing else."""
    following = graph.operators[operator.index + 1 :]
    after = following[0].inputs[:1] if following else graph.outputs
    used_later = [op.index for op in following[1:] if set(operator.outputs) & set(op.inputs)]
    exported = bool(following) and bool(set(operator.outputs) & set(graph.outputs))
    if len(operator.outputs) != 1 or not operator.inputs or operator.outputs != after or used_later or exported:
        raise ModelError(
            f"{_place(graph, operator)} branches in the trainable part; only a plain chain of dense layers trains: "
            "choose last-1 or another model"
        )


def _is_passed_over(graph: Graph, operator: Operator) -> bool:
    if operator.kind == "SOFTMAX":  # the loss brings its own
        return operator.index == len(graph.operators) - 1 or all(
            op.kind in PASSED_OVER for op in graph.operators[operator.index + 1 :]
        )
    if operator.kind not in PASSED_OVER or operator.inputs[0] == ABSENT:
        return False
    before, after = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    return before.shape == after.shape and len(before.shape) == 2


def _refusal(graph: Graph, operator: Operator, train: str, found: int) -> ModelError:
    kind = operator.kind if operator.activation == "NONE" else f"{operator.kind} with {operator.activation}"
    advice = _advice([0] * found)
    return ModelError(
        f"operator {operator.index} ({kind}, {_output_name(graph, operator)!r}) stands in the trainable part; "
        f"{train} can train FULLY_CONNECTED with NONE or RELU only; {advice}"
    )


def _advice(found: list[int]) -> str:
    return f"choose last-{len(found)} or another model" if found else "choose another model"


def _place(graph: Graph, operator: Operator) -> str:
    return f"operator {operator.index} ({operator.kind}, {_output_name(graph, operator)!r})"


def _output_name(graph: Graph, operator: Operator) -> str:
    return graph.tensors[operator.outputs[0]].name if operator.outputs else ""


def _layer_operator(graph: Graph, index: int) -> tuple[int, Layer]:
    """Check the constants of one dense operator; return its index and its layer."""
    operator = graph.operators[index]
    where = _place(graph, operator)
    if len(operator.inputs) < 2 or operator.inputs[1] == ABSENT:
        raise ModelError(f"{where} has no weights; export the model again")
    weights = graph.tensors[operator.inputs[1]]
    if weights.data is None or len(weights.shape) != 2 or 0 in weights.shape or weights.quantized_axis != 0:
        raise ModelError(f"{where} has no constant weights [outputs, inputs]; export the model with them inside")
    if operator.options.get("weights_format", 0) != 0 or weights.dtype not in FEATURE_DTYPES:
        raise ModelError(f"{where} has weights of {weights.dtype} in a packed format; export it as int8 or float32")
    outputs, inputs = weights.shape
    bias = operator.inputs[2] if len(operator.inputs) > 2 else ABSENT
    if bias != ABSENT:
        data, kinds = graph.tensors[bias].data, ("int32", "float32")
        if data is None or data.shape != (outputs,) or graph.tensors[bias].dtype not in kinds:
            raise ModelError(f"{where} has no constant bias [{outputs}] of int32; export the model again")
    for tensor in (weights, *([graph.tensors[bias]] if bias != ABSENT else [])):
        if (tensor.dtype == "float32") != (len(tensor.scale) == 0):
            raise ModelError(f"{where} has constants without a scale; export it as fully int8, or float32")
    entering = graph.tensors[operator.inputs[0]]
    if math.prod(entering.shape) != inputs:
        raise ModelError(f"{where} takes {entering.shape} for {inputs} inputs; one row per window can be trained")
    return index, Layer(inputs, outputs, operator.activation)


def _feature_quantization(tensor: Tensor, inputs: int) -> tuple[float, int]:
    if tensor.dtype == "float32" and len(tensor.scale) == 0:
        return 1.0, 0
    if tensor.dtype != "int8" or len(tensor.scale) != 1 or float(tensor.scale[0]) <= 0:
        raise ModelError(
            f"tensor {tensor.index} ({tensor.name!r}), the {inputs} features, is {tensor.dtype} with "
            f"{len(tensor.scale)} scales; export the model as fully int8, or float32"
        )
    return float(tensor.scale[0]), int(tensor.zero_point[0]) if len(tensor.zero_point) else 0


def _real(tensor: Tensor) -> NDArray[np.float32]:
    """Dequantise a constant, per tensor or per output row, and lay it flat; float64 inside, rounded once."""
    assert tensor.data is not None, "a head's constants were checked when it was found"
    if len(tensor.scale) == 0:
        return tensor.data.astype(np.float32).ravel()
    rows = (-1,) + (1,) * (len(tensor.shape) - 1)
    zero_point = tensor.zero_point if len(tensor.zero_point) else np.zeros(1, np.int64)
    steps = tensor.data.astype(np.float64) - zero_point.reshape(rows).astype(np.float64)
    return (steps * tensor.scale.reshape(rows).astype(np.float64)).astype(np.float32).ravel()
