"""The one seam between the engine and a model runtime: LiteRT, or tflite-runtime where LiteRT is not installed.

Our own kernels run what they know (`engine/frozen.py`); a runtime runs the rest of the frozen part, and shows what
others will see of a tuned file. Both runtimes speak the same interface and carry the same reference kernels. Those are
the default: their numbers are the same on every processor, whereas the optimised kernels of x86-64 and aarch64 differ
in the last place, and a device could not be checked by repeating its work elsewhere. Windows go through in batches of a
fixed size, so that memory does not grow with their number.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models.graph import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from numpy.typing import NDArray

    from engine.models.graph import Tensor

    RunBatch: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]

RUNTIMES = ("ai_edge_litert", "tflite_runtime")
BATCH = 32


def runtime_name() -> str:
    """Return which runtime is used, 'ai_edge_litert' or 'tflite_runtime'; ModelError where neither is installed."""
    return _runtime()[0]


def open_model(data: bytes, batch: int = BATCH, *, fast: bool = False) -> RunBatch:
    """Load a `.tflite` file; return `run`, which takes windows [n, *window] and returns its raw output [n, d].

    Windows are float32 real numbers (m/s^2, pixel/16), which `run` quantises with the model's own input scale, or
    numbers as the input stores them; an int8 output is returned as it is. One window is handled at a time by a model
    that cannot be resized. `fast` takes the runtime's optimised kernels, whose last bits depend on the processor.
    `run` raises ValueError for windows of another shape and for NaN or infinity; `open_model` raises ModelError.
    """
    interpreter = _allocate(data, batch, fast=fast)
    entry, leaving = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    size, window = int(entry["shape"][0]), tuple(int(n) for n in entry["shape"][1:])

    def run(windows: NDArray[Any]) -> NDArray[Any]:
        stored = _stored(windows, window, entry)
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


def quantised(windows: NDArray[np.float32], tensor: Tensor) -> NDArray[Any]:
    """Give float32 windows [n, *window] as the model's input `tensor` stores them: ties to even, clamped.

    Raises ValueError for windows of another shape or type and for NaN or infinity, ModelError for an input without a
    scale.
    """
    scale = (float(tensor.scale[0]), int(tensor.zero_point[0])) if len(tensor.scale) == 1 else (0.0, 0)
    kind = np.dtype(tensor.dtype) if not tensor.dtype.startswith("TYPE_") else np.dtype(np.void)
    return _stored(windows, tensor.shape[1:], {"dtype": kind, "quantization": scale})


def _runtime() -> tuple[str, Any]:
    for name in RUNTIMES:
        try:
            return name, importlib.import_module(f"{name}.interpreter")
        except ImportError:
            continue
    raise ModelError(
        "no model runtime is installed; install hedgerow[agent] (tflite-runtime up to Python 3.11, LiteRT after it)"
    )


def _allocate(data: bytes, batch: int, *, fast: bool) -> Any:
    """Open the file for `batch` windows, or for one where the graph holds its batch size fixed."""
    interpreter = _load(data, fast=fast)
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
    interpreter = _load(data, fast=fast)
    try:
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as why:
        raise ModelError(f"the model runtime cannot prepare the model ({why}); convert it again") from why
    return interpreter


def _load(data: bytes, *, fast: bool) -> Any:
    _, module = _runtime()
    kernels = module.OpResolverType.AUTO if fast else module.OpResolverType.BUILTIN_REF
    try:
        return module.Interpreter(
            model_content=bytes(data),
            num_threads=1,
            experimental_op_resolver_type=kernels,
        )
    except (RuntimeError, ValueError) as why:
        raise ModelError(f"the model runtime refuses the model file ({why}); convert it again") from why


def _stored(windows: NDArray[Any], window: tuple[int, ...], entry: dict[str, Any]) -> NDArray[Any]:
    """Give windows as the input tensor stores them."""
    if windows.shape[1:] == window and windows.dtype == entry["dtype"] and windows.dtype != np.float32:
        return windows
    return _quantise(_checked(windows, window), entry)


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
