"""The models of the fine-tuning benchmark: which files, which operators train, and the same network for every peer.

Peers get float32 weights: those of the model's float file, or, where the float file is none (KWS), the int8 weights
times their scale. The engine gets the int8 file. Both see the same batch: int8 numbers, and what they mean as real
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers import network
from engine.models import tflite

if TYPE_CHECKING:
    from pathlib import Path

    from engine.models.graph import Graph, Operator, Tensor

BATCH = 16
SAME = 0  # TFLite's number for this padding
MODES = ("last", "last_two", "full")


@dataclass(frozen=True)
class Model:
    """`trains` gives each mode's first operator that trains, and the learning rate at which the loss falls there.

    `classes` is 0 for a model that rebuilds its input.
    """

    name: str
    int8_file: str
    float_file: str
    classes: int
    trains: dict[str, tuple[int, float]]


MODELS = (
    Model(
        "resnet8",
        "pretrainedResnet_quant",
        "pretrainedResnet",
        classes=10,
        trains={"last": (14, 1e-2), "last_two": (4, 1e-5), "full": (0, 1e-7)},
    ),
    Model(
        "kws",
        "kws_ref_model",
        "kws_ref_model",
        classes=12,
        trains={"last": (11, 1e-2), "last_two": (5, 3e-4), "full": (0, 1e-4)},
    ),
    Model(
        "vww",
        "vww_96_int8",
        "vww_96_float",
        classes=2,
        trains={"last": (29, 3e-2), "last_two": (23, 3e-3), "full": (0, 3e-4)},
    ),
    Model(
        "ad",
        "ad01_int8",
        "ad01_fp32",
        classes=0,
        trains={"last": (9, 1e-3), "last_two": (8, 1e-4), "full": (0, 3e-7)},
    ),
)


def real(stored: Any, tensor: Tensor) -> Any:
    """What stored numbers mean, float32; one scale, or one per slice of the tensor's quantised axis."""
    if not tensor.scale.size:
        return np.ascontiguousarray(stored, np.float32)
    shape = [1] * stored.ndim
    if tensor.scale.size > 1:
        shape[tensor.quantized_axis] = -1
    values = (stored.astype(np.float64) - tensor.zero_point.reshape(shape)) * tensor.scale.reshape(shape)
    return np.ascontiguousarray(values, np.float32)


def export(models: Path, model: Model, path: Path) -> None:
    """Write the model as the peers read it, and beside it the batch as ours does, int8."""
    quantised = tflite.read((models / f"{model.int8_file}.tflite").read_bytes())
    graph = tflite.read((models / f"{model.float_file}.tflite").read_bytes())
    stored, targets = _batch(models, quantised, model)
    arrays = {"x": real(stored, quantised.tensors[quantised.inputs[0]]), "y": targets}
    operators = [operator for operator in graph.operators if operator.kind != "SOFTMAX"]
    layers = []
    for operator in operators:
        constants = [graph.tensors[number] for number in operator.inputs if graph.tensors[number].data is not None]
        if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            arrays[f"w{operator.index}"], arrays[f"b{operator.index}"] = (real(t.data, t) for t in constants)
        layers.append(_layer(graph, operator))
    head = {
        "entering": graph.inputs[0],
        "answer": operators[-1].outputs[0],
        "classes": model.classes,
        "rates": [list(pair) for pair in model.trains.values()],
    }
    network.save(path, head, layers, arrays)
    np.save(path.with_suffix(".windows.npy"), stored)
    np.save(path.with_suffix(".targets.npy"), targets)


def _batch(directory: Path, graph: Graph, model: Model) -> tuple[Any, Any]:
    """One batch: int8 windows [n, ...] and targets, int32 [n] or the float32 windows themselves [n, ...].

    They lie where the model's own data lie, so that int8 and float32 give about the same loss: the samples that come
    with the models, KWS's with noise on it, or else blurred noise in place of a picture. Labels are drawn.
    """
    random = np.random.default_rng(8)
    entering = graph.tensors[graph.inputs[0]]
    shape = (BATCH, *entering.shape[1:])
    if model.name == "ad":
        frames = np.load(directory / "ad_sample_f32_frames128.npy")
        clips = np.stack([frames[start : start + 5].reshape(-1) for start in range(0, 12 * BATCH, 12)])
        values = clips / entering.scale[0] + entering.zero_point[0]
    elif model.name == "kws":
        values = np.load(directory / "kws_sample_int8.npy") + random.normal(0, 10, shape)
    else:
        values = 50 * _blurred(random.normal(0, 1, shape)) + random.normal(0, 30, (BATCH, 1, 1, 1))
    stored = np.clip(np.rint(values), -128, 127).astype(np.int8)
    if model.classes:
        return stored, random.integers(0, model.classes, BATCH).astype(np.int32)
    return stored, real(stored, entering)


def _blurred(noise: Any) -> Any:
    """Blur over rows and columns, with standard deviation 1."""
    for _ in range(6):
        for axis in (1, 2):
            noise = (noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)) / 3
    return noise / noise.std()


def _layer(graph: Graph, operator: Operator) -> dict[str, Any]:
    inputs = [number for number in operator.inputs if graph.tensors[number].data is None]
    options = operator.options
    strides = (options.get("stride_height", 1), options.get("stride_width", 1))
    window = (options.get("filter_height", 1), options.get("filter_width", 1))
    if "CONV" in operator.kind:
        window = graph.tensors[operator.inputs[1]].shape[1:3]
    pads = (0, 0, 0, 0)
    if options.get("padding", 1) == SAME:
        height, width = graph.tensors[inputs[0]].shape[1:3]
        pads = (*_same(height, window[0], strides[0]), *_same(width, window[1], strides[1]))
    return {
        "operator": operator.index,
        "kind": operator.kind,
        "inputs": inputs,
        "output": operator.outputs[0],
        "relu": operator.activation == "RELU",
        "strides": strides,
        "pads": pads,
        "window": window,
    }


def _same(size: int, window: int, stride: int) -> tuple[int, int]:
    """How many rows TFLite's SAME adds before and behind."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2
