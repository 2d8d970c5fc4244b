"""Room for weights that have outgrown their scale: only the coordinator gives it, and rarely.

An int8 weight reaches from -127 to 127 steps of its channel's scale, and devices hold it there while they train. One
or two such weights are nothing: a converter chooses the scale so that every channel has one. Where at least CROWD_MIN
of a channel's weights and more than CROWD_SHARE of them are published as -127 or 127, its scale grows by GROWTH, and
the same real weights are fewer steps:

    s' = s * GROWTH       weights' = weights * s / s'       biases' = biases * s / s', since a bias is stored in s_x * s

The base file changes (scales, and the channel's weights that do not train), so a scale epoch begins: every device
fetches the base again, with the version's numbers in it, and lets go of its residual, which counts in the old steps.
That is why it is rare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engine import master
from engine.frame import WEIGHT_MAX, frame_of
from engine.models import tflite
from engine.models.scheme import DEAD_SCALE, load_params

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.frame import Frame
    from engine.master import Numbers
    from engine.models.graph import Content, Graph
    from engine.models.scheme import TrainedLayer

CROWD_SHARE = 0.1
CROWD_MIN = 4
GROWTH = 2.0  # exact in every float: halving a master loses at most its last bit


def grown(frame: Frame, numbers: Numbers) -> tuple[Frame, Numbers] | None:
    """Give crowded channels a larger scale: the new frame, and the same version in it; None where none is crowded.

    The new base file holds the version's published params. Where it would choose other channels to train than the old
    one did, it is None as well: they are the lineage's for ever. A float model is never crowded.
    """
    if frame.lane == "float32":
        return None
    at_end = np.abs(load_params(frame.suffix, numbers.published)) >= WEIGHT_MAX
    change, whole, any_crowded = _Change(frame.graph), master.read(frame, numbers), False
    for layer in frame.suffix.layers:
        groups = _groups(frame.graph, layer)
        count = len(frame.graph.tensors[layer.weights].scale)
        crowd = np.bincount(groups[at_end[layer.first : layer.first + layer.num_weights]], minlength=count)
        crowded = (crowd >= CROWD_MIN) & (crowd > CROWD_SHARE * np.bincount(groups, minlength=count))
        crowded &= frame.graph.tensors[layer.weights].scale >= DEAD_SCALE  # a dead channel does not train
        if crowded.any():
            any_crowded = True
            _shrink(whole, layer, groups, change.grow(layer, crowded))
    if not any_crowded:
        return None
    after = frame_of(change.written(frame.model), frame.suffix.train)
    if after.suffix != frame.suffix:
        return None
    moved = master.write(after, whole)
    holding = after.holding(moved.published)
    return None if holding is None else (holding, moved)


class _Change:
    """What changes in the base file, by tensor."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._scales: dict[int, NDArray[np.float32]] = {}
        self._constants: dict[int, NDArray[Any]] = {}

    def grow(self, layer: TrainedLayer, crowded: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Grow the scales of one layer's crowded channels; return old over new scale for each scale it has."""
        weights = self._graph.tensors[layer.weights]
        scale = weights.scale.astype(np.float32)
        after = np.where(crowded, scale * np.float32(GROWTH), scale)
        ratio: NDArray[np.float64] = scale.astype(np.float64) / after.astype(np.float64)
        assert weights.data is not None, "what trains is a constant of the file"
        along = [1] * weights.data.ndim
        along[weights.quantized_axis] = -1
        self._scales[layer.weights] = after
        self._constants[layer.weights] = np.clip(
            np.rint(weights.data * ratio.reshape(along)), -WEIGHT_MAX, WEIGHT_MAX
        ).astype(np.int8)
        if layer.num_bias:
            bias = self._graph.tensors[layer.bias].scale.astype(np.float64) / ratio
            self._scales[layer.bias] = bias.astype(np.float32)
        return ratio

    def written(self, model: Content) -> bytes:
        """The base file with all of it."""
        return tflite.patch_scales(tflite.patch(model, self._graph, self._constants), self._graph, self._scales)


def _groups(graph: Graph, layer: TrainedLayer) -> NDArray[np.int64]:
    """Which of the layer's scales each of its trained weights has, int64 [num_weights]."""
    weights = graph.tensors[layer.weights]
    channels = layer.channels or ()
    shape = (*weights.shape[:-1], len(channels))
    if len(weights.scale) == 1:
        return np.zeros(layer.num_weights, dtype=np.int64)
    if weights.quantized_axis == len(shape) - 1:
        return np.broadcast_to(np.array(channels, dtype=np.int64), shape).reshape(-1)
    first = np.arange(shape[0], dtype=np.int64).reshape(-1, *[1] * (len(shape) - 1))
    return np.broadcast_to(first, shape).reshape(-1)


def _shrink(
    whole: NDArray[np.int64], layer: TrainedLayer, groups: NDArray[np.int64], ratio: NDArray[np.float64]
) -> None:
    """Express one layer's master in the new steps, in place, rounded to its 2^-16."""
    behind = layer.first + layer.num_weights
    whole[layer.first : behind] = np.rint(whole[layer.first : behind] * ratio[groups]).astype(np.int64)
    if layer.num_bias:
        each = np.broadcast_to(ratio, (layer.num_bias,))
        whole[behind : behind + layer.num_bias] = np.rint(whole[behind : behind + layer.num_bias] * each)
