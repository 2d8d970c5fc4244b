"""The one seam between the engine and a model runtime: LiteRT, or tflite-runtime where LiteRT is not installed.

Both speak the same interface and carry the same reference kernels. Those are used here, not the fast ones: the
features of a window are then the same bits on every processor, whereas the optimised kernels of x86-64 and aarch64
differ in the last place, and a device could not be checked by repeating its work elsewhere. Windows go through in
batches of a fixed size, so that memory does not grow with their number.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models.graph import ModelError
from engine.models.tflite import cut_prefix

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from numpy.typing import NDArray

    from engine.models.graph import Graph
    from engine.models.plan import Head

    RunBatch: TypeAlias = Callable[[NDArray[np.float32]], NDArray[Any]]

RUNTIMES = ("ai_edge_litert", "tflite_runtime")
BATCH = 32


def runtime_name() -> str:
    """Return which runtime is used, 'ai_edge_litert' or 'tflite_runtime'; ModelError where neither is installed."""
    return _runtime()[0]


def open_model(data: bytes, batch: int = BATCH) -> RunBatch:
    """Load a `.tflite` file; return `run`, which takes float32 windows [n, *window] and returns its raw output [n, d].

    Windows are real numbers (m/s^2, pixel/16): `run` quantises them with the model's own input scale, ties to even,
    clamped; an int8 output is returned as it is. One window is handled at a time by a model that cannot be resized.
    `run` raises ValueError for windows of another shape and for NaN or infinity; `open_model` raises ModelError.
    """
    interpreter = _allocate(data, batch)
    entry, leaving = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    size, window = int(entry["shape"][0]), tuple(int(n) for n in entry["shape"][1:])

    def run(windows: NDArray[np.float32]) -> NDArray[Any]:
        stored = _quantise(_checked(windows, window), entry)
        parts = [np.zeros((0, int(np.prod(leaving["shape"][1:]))), leaving["dtype"])]
        for start in range(0, len(stored), size):
            part = stored[start : start + size]
            full = np.zeros((size, *window), stored.dtype)
            full[: len(part)] = part
            interpreter.set_tensor(entry["index"], full)
            interpreter.invoke()
            parts.append(interpreter.get_tensor(leaving["index"]).reshape(size, -1)[: len(part)])
        return np.concatenate(parts)

    return run


def features(data: bytes, graph: Graph, head: Head, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run the frozen part of the model `data` (read as `graph`) over float32 windows [n, *window].

    Returns the real values of the tensor that enters the trainable part, float32 [n, head.layers[0].inputs].
    Raises ModelError for a model the runtime refuses, ValueError for windows it cannot take.
    """
    if head.cut == 0:  # nothing is frozen, and a runtime may refuse a model without operators
        entry = graph.tensors[head.feature_tensor]
        details = {"dtype": np.dtype(entry.dtype), "quantization": (head.feature_scale, head.feature_zero_point)}
        stored = _quantise(_checked(windows, entry.shape[1:]), details).reshape(len(windows), head.layers[0].inputs)
    else:
        stored = open_model(cut_prefix(data, head.cut, head.feature_tensor))(windows)
    steps = stored.astype(np.float32) - np.float32(head.feature_zero_point)
    return steps * np.float32(head.feature_scale)


def _runtime() -> tuple[str, Any]:
    for name in RUNTIMES:
        try:
            return name, importlib.import_module(f"{name}.interpreter")
        except ImportError:
            continue
    raise ModelError(
        "no model runtime is installed; install hedgerow[agent] (tflite-runtime up to Python 3.11, LiteRT after it)"
    )


def _allocate(data: bytes, batch: int) -> Any:
    """Open the file for `batch` windows, or for one where the graph holds its batch size fixed."""
    interpreter = _load(data)
    entries, leaving = interpreter.get_input_details(), interpreter.get_output_details()
    if len(entries) != 1 or len(leaving) != 1:
        raise ModelError(f"the model has {len(entries)} inputs and {len(leaving)} outputs; one of each can be run")
    try:
        interpreter.resize_tensor_input(entries[0]["index"], [batch, *entries[0]["shape"][1:]])
        interpreter.allocate_tensors()
        if interpreter.get_output_details()[0]["shape"][0] == batch:
            return interpreter
    except (RuntimeError, ValueError):  # a RESHAPE that names the batch size; loaded anew below
        pass
    interpreter = _load(data)
    try:
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as why:
        raise ModelError(f"the model runtime cannot prepare the model ({why}); convert it again") from why
    return interpreter


def _load(data: bytes) -> Any:
    _, module = _runtime()
    try:
        return module.Interpreter(
            model_content=bytes(data),
            num_threads=1,
            experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF,
        )
    except (RuntimeError, ValueError) as why:
        raise ModelError(f"the model runtime refuses the model file ({why}); convert it again") from why


def _checked(windows: NDArray[np.float32], window: tuple[int, ...]) -> NDArray[np.float32]:
    if windows.shape[1:] != window or windows.dtype != np.float32:
        raise ValueError(f"windows are {windows.dtype} {windows.shape}; the model takes float32 [n, *{window}]")
    finite = np.isfinite(windows).all(axis=tuple(range(1, windows.ndim)))
    if not finite.all():
        raise ValueError(f"window {int(np.argmin(finite))} holds NaN or infinity; drop it before the model sees it")
    return windows


def _quantise(windows: NDArray[np.float32], entry: dict[str, Any]) -> NDArray[Any]:
    """Turn real numbers into the input tensor's stored ones; division and rounding are exact IEEE steps."""
    kind = np.dtype(entry["dtype"])
    if kind == np.float32:
        return windows
    if kind not in {np.dtype(np.int8), np.dtype(np.uint8)} or not entry["quantization"][0]:
        raise ModelError(f"the model's input is {kind} without a scale; convert it with int8 or float32 input")
    scale, zero_point = entry["quantization"]
    limits = np.iinfo(kind)
    steps = np.rint(windows / np.float32(scale)) + np.float32(zero_point)
    stored: NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(kind)
    return stored
