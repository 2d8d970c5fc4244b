"""The frozen part of a model: windows in, features out; and the whole model as deployed.

Our own kernels run it where they know every operator: an int8 model then gives the numbers of the TFLite reference
kernels, the same on every processor, and at a fraction of their time. Where an operator is unknown to them the model
runtime steps in (`engine/models/interpreter.py`), with its reference kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engine.kernels.loss import largest_logit
from engine.models.cuts import answer_of, maker_of
from engine.models.graph import ModelError
from engine.models.interpreter import open_model, quantised
from engine.models.tflite import cut_prefix
from engine.program import Runner
from engine.train import real_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.models.graph import Content, Graph
    from engine.models.scheme import Suffix

BATCH = 32


def features(data: Content, graph: Graph, suffix: Suffix, windows: NDArray[Any]) -> NDArray[Any]:
    """Run the frozen part of the file `data`, read as `graph`, over windows [n, *window]: what enters the suffix.

    Windows are real numbers, float32, or already stored as the model's input is. The result is as stored, [n, ...].

    Raises:
        ModelError: neither our kernels nor a model runtime can run it.
        ValueError: windows of another shape, NaN or infinity.
    """
    stored = stored_windows(graph, windows)
    if suffix.cut == 0 or suffix.entering == graph.inputs[0]:
        return stored
    return _run(data, graph, suffix.entering, stored)


def predict(data: Content, graph: Graph, windows: NDArray[Any]) -> NDArray[np.int32]:
    """Give the most likely class of each window, int32 [n], as the model file itself answers; of equals the lowest.

    Raises as `features` does.
    """
    answer = graph.tensors[answer_of(graph)]
    logits = real_values(answer, answers(data, graph, windows)).reshape(len(windows), -1)
    found = np.empty(len(windows), np.int32)
    largest_logit(np.ascontiguousarray(logits), found)
    return found


def answers(data: Content, graph: Graph, windows: NDArray[Any]) -> NDArray[Any]:
    """Give the model's answer before a final SOFTMAX, as stored, [n, ...]. Raises as `features` does."""
    return _run(data, graph, answer_of(graph), stored_windows(graph, windows))


def stored_windows(graph: Graph, windows: NDArray[Any]) -> NDArray[Any]:
    """Give windows as the model's input stores them; float32 ones are quantised with its scale, ties to even."""
    if len(graph.inputs) != 1:
        raise ModelError(f"the model has {len(graph.inputs)} inputs; one with a single input can be run")
    entry = graph.tensors[graph.inputs[0]]
    if windows.shape[1:] != entry.shape[1:]:
        raise ValueError(f"windows are {windows.shape}; the model takes [n, *{entry.shape[1:]}]")
    if windows.dtype == np.dtype(entry.dtype) and entry.dtype != "float32":
        return windows
    if windows.dtype != np.float32:
        raise ValueError(f"windows are {windows.dtype}; give float32 real numbers, or {entry.dtype} as stored")
    return quantised(windows, entry)


def _run(data: Content, graph: Graph, wanted: int, stored: NDArray[Any]) -> NDArray[Any]:
    """Give the tensor `wanted` for stored windows, [n, ...]: by our kernels if they can, else by a model runtime."""
    try:
        runner = Runner(graph, wanted, batch=BATCH)
    except ModelError:
        last = maker_of(graph, wanted)
        shape = graph.tensors[wanted].shape[1:]
        return open_model(cut_prefix(data, last + 1, wanted))(stored).reshape(len(stored), *shape)
    return runner(stored)
