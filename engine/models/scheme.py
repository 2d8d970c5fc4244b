"""What trains: which layers, which of their weights, and where the frozen part before them ends.

A plan says `train`, in one of these forms (a *layer* is an operator with weights, `engine/models/cuts.py`):

    last-3              weights and bias of the last three layers
    bias-3              the biases alone of the last three layers
    blocks-2            all layers of the last two blocks
    full                all layers
    9:b,10:w/4,14:w     operator by operator: its bias; its bias and a quarter of its weights; its bias and all of them

A share, w/2 w/4 w/8, takes that part of a layer's *input* channels (of a depthwise layer's channels): those whose real
weights have the largest L2 norm (Lin et al. 2022, "On-Device Training Under 256KB Memory", section 3.2).

`resolve` turns `train` into a Suffix. Everything before its cut is frozen and runs once per window; what enters the
rest is a single tensor, the *features*. What trains is one flat array, the *params*: layer by layer in execution
order, the chosen weights in the file's own order, then the bias. In the int8 lane params are int32 and hold the stored
integers, int8 weights and int32 biases; in the float lane they are float32.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models.cuts import answer_of, articulations, blocks_of, layers_of, maker_of
from engine.models.fold import live_operators
from engine.models.gradients import check_operator, lane_of, place
from engine.models.graph import ABSENT, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.models.graph import Content, Graph, Operator

DEAD_SCALE = 1e-6  # an output channel with a smaller step has no say in the answer, and its gradient explodes
UNIT_MAX = 1 << 20
SHARES = {"w": 1, "w/2": 2, "w/4": 4, "w/8": 8}

_NAMED = re.compile(r"(last|bias|blocks)-([1-9][0-9]{0,2})")
_LISTED = re.compile(r"([0-9]{1,5}):(b|w|w/2|w/4|w/8)")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class TrainedLayer:
    """What trains of one layer, and where it lies in the flat params: its weights from `first` on, then its bias.

    `channels` are the input channels whose weights train (of a depthwise layer, its channels), ascending, all of them
    listed when all train; None means that only the bias does. `weights` and `bias` are tensor indices, the bias
    ABSENT where the layer has none of its own.
    """

    operator: int
    channels: tuple[int, ...] | None
    first: int
    num_weights: int
    num_bias: int
    weights: int
    bias: int


@dataclass(frozen=True, slots=True)
class Suffix:
    """The trainable part of a model.

    `cut` is the index of its first operator, `entering` the one tensor that enters it, `answer` the tensor of the
    logits (before a final SOFTMAX). `lane` is 'int8' or 'float32'; `num_params` the length P of the flat params.
    """

    train: str
    cut: int
    entering: int
    answer: int
    layers: tuple[TrainedLayer, ...]
    lane: str
    num_params: int


def resolve(graph: Graph, train: str) -> Suffix:
    """Find the trainable part of `graph` for `train`; the module's opening shows the forms it may have.

    Raises ModelError, which names the operator in the way, and says what to choose instead.
    """
    wishes = _wishes(graph, train)
    answer, first = answer_of(graph), min(wishes)
    places = [(at, tensor) for at, tensor in articulations(graph) if at <= first]
    if not places:
        raise ModelError(
            f"{place(graph, graph.operators[first])} cannot train: more than one tensor is live at every place before "
            "it; export the model with one input"
        )
    cut, entering = places[-1]
    last = maker_of(graph, answer)
    operators = [graph.operators[index] for index in live_operators(graph) if cut <= index <= last]
    lane = _checked_lane(graph, operators, max(wishes))
    _check_sources(graph, operators, entering)
    shared, readers = shared_constants(graph), _readers(graph)
    layers, start = [], 0
    for index in sorted(wishes):
        layer = _layer(graph, index, wishes[index], bias_of(graph.operators[index], shared), start)
        _check_own(graph, layer, shared, readers)
        layers.append(layer)
        start += layers[-1].num_weights + layers[-1].num_bias
    return Suffix(train, cut, entering, answer, tuple(layers), lane, start)


def shared_constants(graph: Graph) -> frozenset[int]:
    """Return the constants whose bytes another tensor of the file has too, so that neither can be written back alone.

    Converters keep equal constants once, such as biases that are all zero.
    """
    at: dict[int, list[int]] = {}
    for tensor in graph.tensors:
        if tensor.data is not None and tensor.data.size:
            at.setdefault(tensor.data.__array_interface__["data"][0], []).append(tensor.index)
    return frozenset(index for users in at.values() if len(users) > 1 for index in users)


def bias_of(operator: Operator, shared: frozenset[int]) -> int:
    """Return the tensor of a layer's bias, or ABSENT where it has none of its own: a shared one stays as it is."""
    bias = operator.inputs[2] if len(operator.inputs) > 2 else ABSENT
    return ABSENT if bias in shared else bias


def params_of(graph: Graph, suffix: Suffix) -> NDArray[Any]:
    """Return the file's own params: int32 [P] as stored, or float32 [P] in the float lane."""
    parts = []
    for layer in suffix.layers:
        if layer.channels is not None:
            data = _data(graph, layer.weights)
            parts.append((data if layer.num_weights == data.size else data[..., list(layer.channels)]).ravel())
        if layer.num_bias:
            parts.append(_data(graph, layer.bias).ravel())
    params: NDArray[Any] = np.concatenate(parts, dtype=_dtype(suffix))
    return params


def constants_of(graph: Graph, suffix: Suffix, params: NDArray[Any]) -> dict[int, NDArray[Any]]:
    """Return the tensors that change, by index, in the file's shape and dtype: what to patch into the file.

    `params` is [P] as from `params_of`; views of it are among them. ModelError where it has another length, or int8
    weights out of range.
    """
    _check_length(suffix, len(params))
    changed: dict[int, NDArray[Any]] = {}
    for layer in suffix.layers:
        behind = layer.first + layer.num_weights
        if layer.channels is not None:
            given = params[layer.first : behind]
            if suffix.lane == "int8" and bool((np.abs(given) > 128).any() or (given == 128).any()):
                raise ModelError(f"the params of operator {layer.operator} are no int8 weights; fetch the model again")
            old = _data(graph, layer.weights)
            changed[layer.weights] = given.astype(old.dtype, copy=False).reshape(*old.shape[:-1], len(layer.channels))
            if given.size < old.size:
                whole = old.copy()
                whole[..., list(layer.channels)], changed[layer.weights] = changed[layer.weights], whole
        if layer.num_bias:
            old, given = _data(graph, layer.bias), params[behind : behind + layer.num_bias]
            changed[layer.bias] = given.astype(old.dtype, copy=False).reshape(old.shape)
    return changed


def scales_of(graph: Graph, suffix: Suffix) -> NDArray[np.float32]:
    """Return float32 [P]: how large one stored step is in real numbers; 1 everywhere in the float lane.

    A weight's is its output channel's scale s_w, a bias's is s_x * s_w with s_x the scale of the layer's input.
    """
    if suffix.lane == "float32":
        return np.ones(suffix.num_params, np.float32)
    parts = []
    for layer in suffix.layers:
        steps = _channel_scales(graph, layer)
        if layer.channels is not None:
            shape = (*graph.tensors[layer.weights].shape[:-1], len(layer.channels))
            if _is_depthwise(graph, layer):
                parts.append(np.broadcast_to(steps[list(layer.channels)], shape).ravel())
            else:
                parts.append(np.broadcast_to(steps.reshape(-1, *[1] * (len(shape) - 1)), shape).ravel())
        if layer.num_bias:
            parts.append((steps.astype(np.float64) * _input_scale(graph, layer)).astype(np.float32))
    return np.concatenate(parts)


def units_of(graph: Graph, suffix: Suffix) -> NDArray[np.int32]:
    """Return int32 [P]: how many stored steps one unit of an update is; 1 for weights and in the float lane.

    A bias is stored s_x times finer than a weight (32 bits instead of 8). Its unit is the power of two nearest to
    1/s_x, at least 1, so that a unit is about s_w in real numbers, and an update's integers stay small.
    """
    units = np.ones(suffix.num_params, np.int32)
    if suffix.lane == "int8":
        for layer in suffix.layers:
            behind = layer.first + layer.num_weights
            units[behind : behind + layer.num_bias] = _power_of_two(1.0 / _input_scale(graph, layer))
    return units


def shapes_of(graph: Graph, suffix: Suffix) -> tuple[tuple[int, int], ...]:
    """Return rows x columns of each tensor that trains, in the order of the params: weights, then the bias.

    The rows of a convolution or a dense layer are its output channels. A depthwise layer's channels are its columns,
    because they come last in the file, and a bias is one row.
    """
    shapes = []
    for layer in suffix.layers:
        if layer.channels is not None:
            outputs = graph.tensors[layer.weights].shape[0]
            columns = len(layer.channels) if _is_depthwise(graph, layer) else layer.num_weights // outputs
            shapes.append((layer.num_weights // columns, columns))
        if layer.num_bias:
            shapes.append((1, layer.num_bias))
    return tuple(shapes)


def dump_params(suffix: Suffix, params: NDArray[Any]) -> bytes:
    """Write params [P] as bytes: per layer int8 weights, then little-endian int32 biases; all float32 in that lane."""
    _check_length(suffix, len(params))
    if suffix.lane == "float32":
        return params.astype("<f4", copy=False).tobytes()
    parts = []
    for layer in suffix.layers:
        behind = layer.first + layer.num_weights
        weights = params[layer.first : behind]
        assert not len(weights) or (weights.min() >= -128 and weights.max() <= 127), "params hold int8 weights"
        parts += [weights.astype(np.int8).tobytes(), params[behind : behind + layer.num_bias].astype("<i4").tobytes()]
    return b"".join(parts)


def load_params(suffix: Suffix, data: Content) -> NDArray[Any]:
    """Read what `dump_params` wrote: int32 [P], or float32 [P], `data` itself. ModelError for another length."""
    if suffix.lane == "float32":
        expected = 4 * suffix.num_params
    else:
        expected = sum(layer.num_weights + 4 * layer.num_bias for layer in suffix.layers)
    if len(data) != expected:
        raise ModelError(
            f"params of {len(data)} bytes do not fit {suffix.train}, which has {expected}; fetch them again"
        )
    if suffix.lane == "float32":
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    parts, at = [], 0
    for layer in suffix.layers:
        parts.append(np.frombuffer(data, np.int8, layer.num_weights, at).astype(np.int32))
        parts.append(np.frombuffer(data, "<i4", layer.num_bias, at + layer.num_weights).astype(np.int32))
        at += layer.num_weights + 4 * layer.num_bias
    return np.concatenate(parts)


def reset_params(graph: Graph, suffix: Suffix, seed: int) -> NDArray[Any]:
    """Return fresh params, like `params_of`'s: the same bits on every machine for the same suffix and seed.

    Weights are uniform in +-sqrt(6/fan-in) before a RELU (He et al. 2015) and in +-sqrt(3/fan-in) otherwise, in the
    int8 lane rounded to the file's scales and clamped; dead channels and biases are zero. The number at flat index i
    is splitmix64 of (seed, i) (Steele et al. 2014): integers, one IEEE root, products and quotients.
    """
    params = np.zeros(suffix.num_params, _dtype(suffix))
    scales = scales_of(graph, suffix).astype(np.float64)
    for layer in suffix.layers:
        span = slice(layer.first, layer.first + layer.num_weights)
        shape = graph.tensors[layer.weights].shape
        fan_in = math.prod(shape[1:3] if _is_depthwise(graph, layer) else shape[1:])
        bound = math.sqrt((3.0 if graph.operators[layer.operator].activation == "NONE" else 6.0) / fan_in)
        top = (_splitmix64(seed, layer.first, layer.num_weights) >> np.uint64(40)).astype(np.int64)  # 24 bits
        real = (2 * top + 1 - (1 << 24)).astype(np.float64) / float(1 << 24) * bound
        if suffix.lane == "float32":
            params[span] = real.astype(np.float32)
        else:
            alive = scales[span] >= DEAD_SCALE
            steps = np.where(alive, real, 0.0) / np.where(alive, scales[span], 1.0)
            params[span] = np.clip(np.rint(steps), -127, 127).astype(np.int32)
    return params


def _wishes(graph: Graph, train: str) -> dict[int, str]:
    """Read `train` into what trains of each operator: 'b', 'w', 'w/2', 'w/4' or 'w/8'."""
    layers = layers_of(graph)
    if not layers:
        raise ModelError("the model has no layer with weights before its output; choose another model")
    named = _NAMED.fullmatch(train)
    if train == "full":
        return dict.fromkeys(layers, "w")
    if named is None:
        return _listed_wishes(graph, train, layers)
    kind, count = named[1], int(named[2])
    blocks = blocks_of(graph) if kind == "blocks" else tuple((layer,) for layer in layers)
    if count > len(blocks):
        what = "blocks" if kind == "blocks" else "layers with weights"
        raise ModelError(f"the model has {len(blocks)} {what}, and {train} wants more; choose {kind}-{len(blocks)}")
    chosen = [layer for block in blocks[-count:] for layer in block]
    return dict.fromkeys(chosen, "b" if kind == "bias" else "w")


def _listed_wishes(graph: Graph, train: str, layers: tuple[int, ...]) -> dict[int, str]:
    wishes: dict[int, str] = {}
    for item in train.split(","):
        found = _LISTED.fullmatch(item)
        if found is None:
            raise ModelError(
                f"train is {train!r}, and {item!r} says nothing; "
                "write last-2, bias-4, blocks-2, full, or a list like 9:b,10:w/4,14:w"
            )
        index = int(found[1])
        if index not in layers:
            what = place(graph, graph.operators[index]) if index < len(graph.operators) else f"operator {index}"
            raise ModelError(
                f"{what} is no layer with weights before the output; those are {', '.join(map(str, layers))}"
            )
        if index in wishes:
            raise ModelError(f"train names operator {index} twice; name it once")
        wishes[index] = found[2]
    return wishes


def _check_sources(graph: Graph, operators: list[Operator], entering: int) -> None:
    """Refuse an operator that reads what no operator makes: a variable, which some formats know."""
    made = {entering}
    for operator in operators:
        taken = operator.inputs[:1] if operator.kind == "RESHAPE" else operator.inputs
        if any(t != ABSENT and t not in made and graph.tensors[t].data is None for t in taken):
            raise ModelError(f"{place(graph, operator)} reads a tensor that nothing makes; export the model again")
        made.update(operator.outputs)


def _checked_lane(graph: Graph, operators: list[Operator], last: int) -> str:
    """Return the lane of the operators behind the cut, the last trained layer's, once all of them fit it."""
    operator = graph.operators[last]
    try:
        lane = lane_of(graph, operator)
        for operator in reversed(operators):  # the last obstacle decides what may train instead
            check_operator(graph, operator, lane)
    except ModelError as error:
        raise ModelError(f"{error}; or choose {_instead(graph, operator.index)}") from None
    return lane


def _instead(graph: Graph, obstacle: int) -> str:
    """Name the longest last-k that stays behind operator `obstacle`."""
    behind = [at for at, _ in articulations(graph) if at > obstacle]
    count = sum(layer >= behind[0] for layer in layers_of(graph)) if behind else 0
    return f"last-{count}" if count else "another model"


def _readers(graph: Graph) -> dict[int, list[int]]:
    """Return for each tensor the operators that read or make it."""
    found: dict[int, list[int]] = {}
    for operator in graph.operators:
        for tensor in {*operator.inputs, *operator.outputs} - {ABSENT}:
            found.setdefault(tensor, []).append(operator.index)
    return found


def _check_own(graph: Graph, layer: TrainedLayer, shared: frozenset[int], readers: dict[int, list[int]]) -> None:
    """Refuse a layer whose constants that would train are not its own."""
    where = place(graph, graph.operators[layer.operator])
    if layer.channels is None and layer.bias == ABSENT:
        raise ModelError(
            f"{where} has no bias of its own to train; choose its weights, as in last-1 or {layer.operator}:w"
        )
    if layer.channels is not None and layer.weights in shared:
        raise ModelError(
            f"{where} has weights whose bytes the file keeps for another layer too; "
            "convert the model again, or choose layers after it"
        )
    for tensor in (layer.weights, layer.bias):
        others = [other for other in readers.get(tensor, ()) if other != layer.operator]
        if others:
            raise ModelError(
                f"{where} shares {graph.tensors[tensor].name!r} with {place(graph, graph.operators[others[0]])}; "
                "constants of two layers cannot train: choose layers after them"
            )


def _layer(graph: Graph, index: int, wish: str, bias: int, start: int) -> TrainedLayer:
    weights = graph.operators[index].inputs[1]
    channels = None if wish == "b" else _largest_channels(graph, index, SHARES[wish])
    num_weights = 0 if channels is None else math.prod(graph.tensors[weights].shape[:-1]) * len(channels)
    num_bias = 0 if bias == ABSENT else math.prod(graph.tensors[bias].shape)
    return TrainedLayer(index, channels, start, num_weights, num_bias, weights, bias)


def _largest_channels(graph: Graph, index: int, divisor: int) -> tuple[int, ...]:
    """Choose the channels with the largest L2 norm of real weights, at least one; ties go to the lowest channel.

    Sums are float64 elementwise, row after row, so every machine chooses the same.
    """
    operator = graph.operators[index]
    weights = graph.tensors[operator.inputs[1]]
    data = _data(graph, weights.index)
    count = data.shape[-1]
    if divisor == 1:
        return tuple(range(count))
    scale = weights.scale.astype(np.float64) if len(weights.scale) else np.ones(1)
    along = (-1,) if operator.kind == "DEPTHWISE_CONV_2D" else (-1, *[1] * (data.ndim - 1))
    real = (data.astype(np.float64) * scale.reshape(along)).reshape(-1, count)
    norms = np.zeros(count)
    for row in real:
        norms += row * row
    order = np.argsort(-norms, kind="stable")
    return tuple(sorted(order[: max(1, count // divisor)].tolist()))


def _channel_scales(graph: Graph, layer: TrainedLayer) -> NDArray[np.float32]:
    """Return s_w for each output channel, float32 [O], also where the file has one for all."""
    weights = graph.tensors[layer.weights]
    count = weights.shape[-1 if _is_depthwise(graph, layer) else 0]
    return np.broadcast_to(weights.scale.astype(np.float32), (count,))


def _input_scale(graph: Graph, layer: TrainedLayer) -> float:
    return float(graph.tensors[graph.operators[layer.operator].inputs[0]].scale[0])


def _is_depthwise(graph: Graph, layer: TrainedLayer) -> bool:
    return graph.operators[layer.operator].kind == "DEPTHWISE_CONV_2D"


def _power_of_two(value: float) -> int:
    mantissa, exponent = math.frexp(min(max(value, 1.0), float(UNIT_MAX)))  # value = mantissa * 2**exponent, from 0.5
    return int(min(1 << (exponent if mantissa >= 0.75 else exponent - 1), UNIT_MAX))


def _data(graph: Graph, tensor: int) -> NDArray[Any]:
    data = graph.tensors[tensor].data
    assert data is not None, "the constants of a suffix were checked when it was resolved"
    return data


def _dtype(suffix: Suffix) -> type[np.int32 | np.float32]:
    return np.int32 if suffix.lane == "int8" else np.float32


def _check_length(suffix: Suffix, length: int) -> None:
    if length != suffix.num_params:
        raise ModelError(f"{length} params do not fit {suffix.train}, which has {suffix.num_params}; fetch them again")


def _splitmix64(seed: int, start: int, count: int) -> NDArray[np.uint64]:
    """Mix (seed, index) for index in start..start+count-1; the seed is mixed first, so seeds share no stretch."""
    key = _mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], np.uint64) + _GOLDEN)
    return _mix(key + np.arange(start + 1, start + count + 1, dtype=np.uint64) * _GOLDEN)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
