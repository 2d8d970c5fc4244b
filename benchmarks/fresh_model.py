"""A small convolutional network that knows nothing, as a full-integer `.tflite` file: a fleet teaches all of it.

Pictures [28, 28, 1] go through two 3x3 convolutions (8 and 16 channels, each with RELU and a 2x2 maximum), a dense
layer of 128 and one of 10. Weights are uniform as He et al. (2015) draw them, biases zero. A converter would choose
each range by what it sees; here numbers still have far to go, so weights may grow to HEADROOM times the largest that
was drawn, a hidden activation to HEADROOM times the largest on `examples`, and an answer to +-LOGITS.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine.models.graph import Graph, Operator, Tensor
from engine.program import Runner
from tests.engine.graph_tflite import write

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE: Final = 28
CHANNELS: Final = (8, 16)
HIDDEN: Final = 128
HEADROOM: Final = 3.0
LOGITS: Final = 24.0
SEED: Final = 2026
SAME: Final = 0  # TFLite's numbers of a padding
NO_SCALE: Final = np.zeros(0, np.float32)
NO_ZERO: Final = np.zeros(0, np.int64)


def fresh_convolution(examples: NDArray[np.float32], classes: int) -> bytes:
    """Give the file. `examples` float32 [n, 28, 28, 1] in 0..1 tell how large activations are."""
    graph = _real_network(classes)
    return write(_quantised(graph, examples))


class _Drawing:
    """A float network, drawn operator by operator."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.chance = np.random.default_rng(SEED)

    def tensor(self, shape: tuple[int, ...], data: NDArray[Any] | None = None) -> int:
        index = len(self.tensors)
        dtype = "float32" if data is None else str(data.dtype)
        self.tensors.append(Tensor(index, f"t{index}", shape, dtype, NO_SCALE, NO_ZERO, 0, data))
        return index

    def operator(self, kind: str, inputs: tuple[int, ...], shape: tuple[int, ...], act: str, **options: int) -> int:
        made = self.tensor(shape)
        self.operators.append(Operator(len(self.operators), kind, inputs, (made,), act, options))
        return made

    def weights(self, shape: tuple[int, ...], gain: float) -> tuple[int, int]:
        bound = math.sqrt(gain / math.prod(shape[1:]))
        drawn = self.chance.uniform(-bound, bound, shape).astype(np.float32)
        return self.tensor(shape, drawn), self.tensor(shape[:1], np.zeros(shape[0], np.float32))


def _real_network(classes: int) -> Graph:
    draw = _Drawing()
    entering = x = draw.tensor((1, SIZE, SIZE, 1))
    size, depth = SIZE, 1
    for channels in CHANNELS:
        constants = draw.weights((channels, 3, 3, depth), 6.0)
        strides = {"padding": SAME, "stride_height": 1, "stride_width": 1}
        x = draw.operator("CONV_2D", (x, *constants), (1, size, size, channels), "RELU", **strides)
        size, depth = size // 2, channels
        strides = {"padding": SAME, "stride_height": 2, "stride_width": 2}
        x = draw.operator(
            "MAX_POOL_2D", (x,), (1, size, size, depth), "NONE", filter_height=2, filter_width=2, **strides
        )
    flat = size * size * depth
    row = draw.tensor((2,), np.array([-1, flat], np.int32))
    x = draw.operator("RESHAPE", (x, row), (1, flat), "NONE")
    x = draw.operator("FULLY_CONNECTED", (x, *draw.weights((HIDDEN, flat), 6.0)), (1, HIDDEN), "RELU")
    x = draw.operator("FULLY_CONNECTED", (x, *draw.weights((classes, HIDDEN), 3.0)), (1, classes), "NONE")
    return Graph(tuple(draw.tensors), tuple(draw.operators), (entering,), (x,))


def _quantised(graph: Graph, examples: NDArray[np.float32]) -> Graph:
    """Give every tensor of the float graph its range, and its constants as integers."""
    tensors = list(graph.tensors)
    tensors[graph.inputs[0]] = _activation(tensors[graph.inputs[0]], 0.0, 1.0)
    for operator in graph.operators:
        made, entering = graph.tensors[operator.outputs[0]], tensors[operator.inputs[0]]
        if operator.kind in ("MAX_POOL_2D", "RESHAPE"):
            tensors[made.index] = replace(made, dtype="int8", scale=entering.scale, zero_point=entering.zero_point)
            continue
        if made.index == graph.outputs[0]:
            tensors[made.index] = _activation(made, -LOGITS, LOGITS)
        else:
            largest = float(Runner(graph, made.index, batch=len(examples))(examples).max())
            tensors[made.index] = _activation(made, 0.0, HEADROOM * largest)
        weights, bias = (graph.tensors[index] for index in operator.inputs[1:])
        assert weights.data is not None, "a layer has constant weights"
        scale = np.full(weights.shape[0], HEADROOM * np.abs(weights.data).max() / 127, np.float32)
        stored = np.rint(weights.data / scale[0]).astype(np.int8)
        zeros = np.zeros(len(scale), np.int64)
        tensors[weights.index] = replace(weights, dtype="int8", scale=scale, zero_point=zeros, data=stored)
        tensors[bias.index] = replace(
            bias, dtype="int32", scale=scale * entering.scale[0], zero_point=zeros, data=np.zeros(len(scale), np.int32)
        )
    return replace(graph, tensors=tuple(tensors))


def _activation(tensor: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    zero = np.array([round(-128 - low / scale)], np.int64)
    return replace(tensor, dtype="int8", scale=np.array([scale], np.float32), zero_point=zero)
