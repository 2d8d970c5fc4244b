"""A model told in numbers: its layers, what is dead or saturated in them, and what training behind each cut costs.

`inspect` looks at the graph alone and runs nothing; times are measured by who calls it. A *dead* channel is an output
channel whose weights are all zero or whose scale is below 1e-6: it says the same whatever comes in, and is never
trained. A *saturated* weight stands at -127 or 127 and cannot grow further in that direction; quantizers put at least
one weight of every channel there, so a share of a few percent is what a healthy file has.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models.cuts import cuts, is_layer, layers_of, macs_of
from engine.models.graph import ABSENT, ModelError
from engine.models.scheme import DEAD_SCALE, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from engine.models.cuts import Cut
    from engine.models.graph import Graph, Operator
    from engine.models.scheme import Suffix


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One layer. `shape` is its output's, `weights` its weights' in the file's order.

    `scale_*` are over its output channels, None for float weights, and so is `saturated_share`, a share of all weights.
    """

    operator: int
    kind: str
    name: str
    activation: str
    shape: tuple[int, ...]
    weights: tuple[int, ...]
    dtype: str
    num_params: int
    macs: int
    scale_min: float | None
    scale_median: float | None
    scale_max: float | None
    num_channels: int
    num_dead: int
    saturated_share: float | None


@dataclass(frozen=True, slots=True)
class CutFacts:
    """What training all layers behind one cut costs; `train` names them.

    `memory_bytes` is what the training program takes for one batch, or None where nobody planned it. `refusal` says
    why these layers cannot train, and is empty where they can.
    """

    cut: Cut
    train: str
    num_params: int
    memory_bytes: int | None
    refusal: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A whole model. `inputs` and `outputs` are (name, dtype, shape); `kinds` counts operators.

    `macs` are for one sample, forward; `batch` is what the cuts' `memory_bytes` were planned for.
    """

    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    kinds: dict[str, int]
    macs: int
    num_params: int
    num_channels: int
    num_dead: int
    layers: tuple[LayerFacts, ...]
    cuts: tuple[CutFacts, ...]
    batch: int


def inspect(graph: Graph, batch: int, memory_of: Callable[[Graph, Suffix, int], int] | None = None) -> ModelFacts:
    """Tell `graph` in numbers; `memory_of(graph, suffix, batch)` plans the bytes of a training (engine/program.py).

    Raises ModelError for a graph without one output; a part that cannot train is told as a refusal.
    """
    layers = tuple(_layer_facts(graph, op) for op in graph.operators if is_layer(graph, op))
    kinds: dict[str, int] = {}
    for operator in graph.operators:
        kinds[operator.kind] = kinds.get(operator.kind, 0) + 1
    return ModelFacts(
        inputs=tuple(_seen_from_outside(graph, tensor) for tensor in graph.inputs),
        outputs=tuple(_seen_from_outside(graph, tensor) for tensor in graph.outputs),
        kinds=kinds,
        macs=sum(layer.macs for layer in layers),
        num_params=sum(layer.num_params for layer in layers),
        num_channels=sum(layer.num_channels for layer in layers),
        num_dead=sum(layer.num_dead for layer in layers),
        layers=layers,
        cuts=tuple(_cut_facts(graph, cut, batch, memory_of) for cut in _distinct(graph, cuts(graph))),
        batch=batch,
    )


def dead_channels(graph: Graph, operator: Operator) -> NDArray[np.bool_]:
    """Return bool [O]: which output channels of a layer are dead."""
    weights = graph.tensors[operator.inputs[1]]
    data = weights.data
    assert data is not None, "a layer has constant weights"
    rows = _rows(operator, data)
    dead: NDArray[np.bool_] = ~rows.any(axis=1)
    if len(weights.scale):
        dead |= np.broadcast_to(weights.scale < DEAD_SCALE, dead.shape)
    return dead


def _layer_facts(graph: Graph, operator: Operator) -> LayerFacts:
    weights = graph.tensors[operator.inputs[1]]
    assert weights.data is not None, "a layer has constant weights"
    bias = operator.inputs[2] if len(operator.inputs) > 2 else ABSENT
    dead, scale = dead_channels(graph, operator), weights.scale
    leaving = graph.tensors[operator.outputs[0]]
    saturated = float(np.mean((weights.data == 127) | (weights.data == -127))) if weights.dtype == "int8" else None
    return LayerFacts(
        operator=operator.index,
        kind=operator.kind,
        name=leaving.name,
        activation=operator.activation,
        shape=leaving.shape,
        weights=weights.shape,
        dtype=weights.dtype,
        num_params=prod(weights.shape) + (0 if bias == ABSENT else prod(graph.tensors[bias].shape)),
        macs=macs_of(graph, operator),
        scale_min=float(scale.min()) if len(scale) else None,
        scale_median=float(np.median(scale)) if len(scale) else None,
        scale_max=float(scale.max()) if len(scale) else None,
        num_channels=len(dead),
        num_dead=int(dead.sum()),
        saturated_share=saturated,
    )


def _rows(operator: Operator, data: NDArray[Any]) -> NDArray[Any]:
    """Return the weights as [output channel][everything else]."""
    along = -1 if operator.kind == "DEPTHWISE_CONV_2D" else 0
    return np.moveaxis(data, along, 0).reshape(data.shape[along], -1)


def _distinct(graph: Graph, places: tuple[Cut, ...]) -> list[Cut]:
    """Of cuts with the same layers behind them, take the last: it keeps the most frozen."""
    layers = layers_of(graph)
    last = {next(layer for layer in layers if layer >= cut.operator): cut for cut in places}
    return list(last.values())


def _cut_facts(graph: Graph, cut: Cut, batch: int, memory_of: Callable[[Graph, Suffix, int], int] | None) -> CutFacts:
    train = f"last-{sum(layer >= cut.operator for layer in layers_of(graph))}"
    try:
        suffix = resolve(graph, train)
        memory_bytes = None if memory_of is None else memory_of(graph, suffix, batch)
    except ModelError as error:
        return CutFacts(cut, train, 0, None, str(error))
    return CutFacts(cut, train, suffix.num_params, memory_bytes, "")


def _seen_from_outside(graph: Graph, tensor: int) -> tuple[str, str, tuple[int, ...]]:
    entry = graph.tensors[tensor]
    return entry.name, entry.dtype, entry.shape
