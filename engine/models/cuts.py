"""Where a model can be cut in two, what its layers and blocks are, and what each costs.

A *layer* is an operator with constant weights: CONV_2D, DEPTHWISE_CONV_2D or FULLY_CONNECTED. Layers are counted up to
the *answer*: the tensor the loss looks at, which is the model's output or, where the model ends in a SOFTMAX, what goes
into it. A model can be cut between two operators where exactly one computed tensor is live (an articulation point of
its data flow): that tensor alone then enters the second part. Operators that only compute the shape argument of a
RESHAPE are no data flow and are looked through.

A *block* is what lies between two such cuts, with two additions that make the word mean what people mean by it:

- a residual unit, up to and including its ADD, is one block, since its inside cannot be cut;
- a depthwise layer and the 1x1 convolution right after it are one block;
- any other layer is a block of its own, but a dense layer that ends a model and follows a convolution belongs to the
  block before it.

So `blocks-2` is ResNet-8's last two residual units and its dense layer, a DS-CNN's last two depthwise pairs and its
dense layer, and an autoencoder's last two dense layers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from engine.models.fold import live_operators
from engine.models.graph import ABSENT, ModelError

if TYPE_CHECKING:
    from engine.models.graph import Graph, Operator

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
PASSED_OVER = ("SOFTMAX", "QUANTIZE", "DEQUANTIZE")  # after the answer: the loss brings its own softmax
FEATURES_FORMAT = b"features 1"  # a new number where our kernels come to compute other bits


@dataclass(frozen=True, slots=True)
class Cut:
    """A place to cut: before `operator`, where tensor `entering` alone is live.

    MACs are for one sample, forward. `saved_bytes` is what training all layers behind the cut keeps of one sample
    until its gradient: what a layer, a MUL, a LOGISTIC or a MAX_POOL_2D takes, and one bit for each other element that
    an activation or a clamp may stop.
    """

    operator: int
    entering: int
    entering_bytes: int
    frozen_macs: int
    suffix_macs: int
    saved_bytes: int


def answer_of(graph: Graph) -> int:
    """Return the tensor of the logits: the model's output, or what enters its final SOFTMAX.

    QUANTIZE and DEQUANTIZE at the end are passed over, and a RESHAPE that changes nothing. Raises ModelError for a
    model without exactly one output, or whose output no operator makes.
    """
    if len(graph.outputs) != 1:
        raise ModelError(f"the model has {len(graph.outputs)} outputs; one with a single output can be trained")
    makers = {tensor: operator for operator in graph.operators for tensor in operator.outputs}
    answer, has_softmax = graph.outputs[0], False
    while answer in makers:
        operator = makers[answer]
        before = operator.inputs[0] if operator.inputs else -1
        is_same = (
            operator.kind == "RESHAPE" and before >= 0 and graph.tensors[before].shape == graph.tensors[answer].shape
        )
        if not is_same and (operator.kind not in PASSED_OVER or (operator.kind == "SOFTMAX" and has_softmax)):
            return answer
        has_softmax = has_softmax or operator.kind == "SOFTMAX"
        answer = before
    raise ModelError("no operator of the model makes its output; export the model again")


def layers_of(graph: Graph) -> tuple[int, ...]:
    """Return the indices of the operators with weights, up to the answer."""
    last = maker_of(graph, answer_of(graph))
    return tuple(op.index for op in graph.operators[: last + 1] if is_layer(graph, op))


def is_layer(graph: Graph, operator: Operator) -> bool:
    """Whether the operator has weights that are constants of the model."""
    weights = operator.inputs[1] if len(operator.inputs) > 1 else ABSENT
    return (
        operator.kind in LAYERS
        and bool(operator.outputs)
        and weights != ABSENT
        and graph.tensors[weights].data is not None
    )


def maker_of(graph: Graph, tensor: int) -> int:
    """Return the index of the operator that makes `tensor`."""
    return next(op.index for op in graph.operators if tensor in op.outputs)


def articulations(graph: Graph) -> tuple[tuple[int, int], ...]:
    """Return (operator index, tensor) for every place before an operator where that one computed tensor is live.

    Only places up to the operator that makes the answer are listed, in execution order.
    """
    last = maker_of(graph, answer_of(graph))
    used_at: dict[int, int] = {}
    operators = [graph.operators[index] for index in live_operators(graph)]
    for operator in operators:
        used_at.update(dict.fromkeys(operator.inputs, operator.index))
    live = {tensor for tensor in graph.inputs if tensor in used_at}
    places = []
    for operator in operators:
        if operator.index > last:
            break
        if len(live) == 1:
            places.append((operator.index, next(iter(live))))
        live |= {tensor for tensor in operator.outputs if tensor in used_at}
        live -= {tensor for tensor in operator.inputs if used_at.get(tensor) == operator.index}
    return tuple(places)


def blocks_of(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Return the layers of each block, in execution order; the module's opening says what a block is."""
    starts = {place for place, _ in articulations(graph)}
    pieces: list[list[int]] = []
    previous = -1
    for layer in layers_of(graph):
        if not pieces or any(previous < start <= layer for start in starts):
            pieces.append([])
        pieces[-1].append(layer)
        previous = layer
    blocks: list[list[int]] = []
    for piece in pieces:
        is_end = piece is pieces[-1] and len(piece) == 1 and graph.operators[piece[0]].kind == "FULLY_CONNECTED"
        joins = bool(blocks) and (
            (is_end and graph.operators[blocks[-1][-1]].kind != "FULLY_CONNECTED") or _is_pair(graph, blocks[-1], piece)
        )
        if joins:
            blocks[-1] += piece
        else:
            blocks.append(list(piece))
    return tuple(map(tuple, blocks))


def _is_pair(graph: Graph, before: list[int], after: list[int]) -> bool:
    if len(before) != 1 or len(after) != 1:
        return False
    first, second = graph.operators[before[0]], graph.operators[after[0]]
    is_pointwise = second.kind == "CONV_2D" and graph.tensors[second.inputs[1]].shape[1:3] == (1, 1)
    return first.kind == "DEPTHWISE_CONV_2D" and is_pointwise


def macs_of(graph: Graph, operator: Operator) -> int:
    """Return the multiplications of one forward pass of one sample; 0 for an operator without weights."""
    if not is_layer(graph, operator):
        return 0
    weights, leaving = graph.tensors[operator.inputs[1]].shape, graph.tensors[operator.outputs[0]].shape
    each = prod(weights[1:3]) if operator.kind == "DEPTHWISE_CONV_2D" else prod(weights[1:])
    return prod(leaving) * each


def cuts(graph: Graph) -> tuple[Cut, ...]:
    """Return every place to cut that leaves a layer behind it, with its cost, in execution order."""
    last, layers = maker_of(graph, answer_of(graph)), layers_of(graph)
    macs = [macs_of(graph, operator) for operator in graph.operators[: last + 1]]
    return tuple(
        Cut(
            operator=place,
            entering=tensor,
            entering_bytes=_bytes_of(graph, tensor),
            frozen_macs=sum(macs[:place]),
            suffix_macs=sum(macs[place:]),
            saved_bytes=_saved_bytes(graph, place, last),
        )
        for place, tensor in articulations(graph)
        if layers and place <= layers[-1]
    )


def frozen_digest(graph: Graph, cut: int, entering: int) -> bytes:
    """Return 32 bytes that name the frozen part before operator `cut`, which makes tensor `entering`.

    They cover its operators, the shapes and quantization of their tensors and all their constants, and nothing of what
    trains: two files whose digests are equal make the same features of a window, on the engine's own kernels.
    """
    digest = hashlib.sha256(FEATURES_FORMAT)
    named = [*graph.inputs, entering]
    for operator in graph.operators[:cut]:
        head = (operator.kind, operator.inputs, operator.outputs, operator.activation, sorted(operator.options.items()))
        digest.update(repr(head).encode())
        named += [tensor for tensor in (*operator.inputs, *operator.outputs) if tensor != ABSENT]
    for index in dict.fromkeys(named):
        tensor = graph.tensors[index]
        quantization = (tensor.scale.tolist(), tensor.zero_point.tolist(), tensor.quantized_axis)
        digest.update(repr((index, tensor.shape, tensor.dtype, quantization)).encode())
        digest.update(b"" if tensor.data is None else hashlib.sha256(tensor.data.tobytes()).digest())
    return digest.digest()


def _saved_bytes(graph: Graph, first: int, last: int) -> int:
    operators = [graph.operators[index] for index in live_operators(graph) if first <= index <= last]
    kept = {op.inputs[0] for op in operators if op.kind in {*LAYERS, "MAX_POOL_2D", "LOGISTIC"}}
    kept |= {tensor for op in operators if op.kind == "MUL" for tensor in op.inputs}
    gated = {
        tensor
        for op in operators
        for tensor in op.outputs
        if op.kind in {*LAYERS, "ADD", "MUL", "QUANTIZE"} and tensor not in kept and op.index != last
    }
    masks = sum((prod(graph.tensors[tensor].shape) + 7) // 8 for tensor in gated)
    return sum(_bytes_of(graph, tensor) for tensor in kept) + masks


def _bytes_of(graph: Graph, tensor: int) -> int:
    entry = graph.tensors[tensor]
    return prod(entry.shape) * (0 if entry.dtype.startswith("TYPE_") else np.dtype(entry.dtype).itemsize)
