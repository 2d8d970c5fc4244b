"""The float32 twin of an int8 model: the same operators on the real values, for a baseline that rounds nothing.

Weights and biases are what the int8 ones mean; activations are not rounded and have no upper end. The engine's own
float lane runs and trains it, so that a comparison differs in the arithmetic and in nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from engine.models.cuts import is_layer
from engine.models.graph import ABSENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.models.graph import Graph, Tensor


def float_twin(graph: Graph) -> Graph:
    """Give the graph with every int8 tensor, and every int32 bias, as float32."""
    tensors = [_real(t, None) if t.dtype == "int8" and t.data is None else t for t in graph.tensors]
    for operator in graph.operators:
        if not is_layer(graph, operator):
            continue
        weights = graph.tensors[operator.inputs[1]]
        along = [1] * len(weights.shape)
        along[-1 if operator.kind == "DEPTHWISE_CONV_2D" else 0] = -1
        scale = weights.scale.reshape(along) if len(weights.scale) > 1 else weights.scale
        assert weights.data is not None, "a layer has constant weights"
        tensors[weights.index] = _real(weights, (weights.data * scale).astype(np.float32))
        if len(operator.inputs) > 2 and operator.inputs[2] != ABSENT:
            bias = graph.tensors[operator.inputs[2]]
            assert bias.data is not None, "a bias is constant"
            unit = weights.scale.astype(np.float64) * graph.tensors[operator.inputs[0]].scale[0]
            tensors[bias.index] = _real(bias, (bias.data * unit).astype(np.float32))
    return replace(graph, tensors=tuple(tensors))


def _real(tensor: Tensor, data: NDArray[np.float32] | None) -> Tensor:
    scale, zero_point = np.zeros(0, np.float32), np.zeros(0, np.int64)
    return replace(tensor, dtype="float32", data=data, scale=scale, zero_point=zero_point)
