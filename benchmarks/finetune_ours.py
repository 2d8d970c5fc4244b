"""Hedgerow in the fine-tuning benchmark: the steps that `edge-agent finetune` takes, timed like those of a peer.

`python -m benchmarks.finetune_ours MODELS_DIRECTORY MODEL NETWORK.npz MODE FROZEN`: the batch lies beside NETWORK.npz,
and FROZEN says how a step comes by its features: `cached` (computed once, as the product does it), or in every step
anew, by our `own` kernels or by the `runtime` that this environment holds, with its fastest kernels. `full` has no
frozen part.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.models.graph import Graph
    from engine.models.scheme import Suffix

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def main(directory: str, name: str, batch: str, mode: str, frozen: str) -> None:
    """Measure one model in one mode."""
    import numpy as np

    from benchmarks import finetune_models
    from benchmarks.peers import network
    from engine.kernels._jit import kernels_in_use
    from engine.models import scheme, tflite
    from engine.program import Training
    from engine.recording import Descent

    import_s = time.process_time()
    model = next(model for model in finetune_models.MODELS if model.name == name)
    data = (Path(directory) / f"{model.int8_file}.tflite").read_bytes()
    graph = tflite.read(data)
    first, rate = model.trains[mode]
    suffix = scheme.resolve(graph, _trained(graph, first))
    windows, targets = (np.load(Path(batch).with_suffix(f".{what}.npy")) for what in ("windows", "targets"))
    count = len(windows)
    descent = Descent(rate, 0.0)
    training = Training(graph, suffix, descent, batch=count, seed=1, regression=not model.classes)
    run, by = _frozen(data, graph, suffix, frozen, count)
    everything = np.arange(count, dtype=np.int64)
    features = run(windows)

    def cached_step() -> float:
        return training.step(features, targets, everything) / count

    def whole_step() -> float:
        return training.step(run(windows), targets, everything) / count

    step = cached_step if frozen == "cached" or mode == "full" else whole_step
    more = {"kernels": kernels_in_use(), "frozen_by": by, "arena_mb": training.num_bytes / 2**20}
    network.report(import_s, step, **more)


def _trained(graph: Graph, first: int) -> str:
    """Name every layer from the first that trains, in the words of a plan."""
    operators = graph.operators[first:]
    return ",".join(f"{operator.index}:w" for operator in operators if operator.kind in LAYERS)


def _frozen(data: bytes, graph: Graph, suffix: Suffix, frozen: str, count: int) -> tuple[Callable[[Any], Any], str]:
    """Give the frozen part as a function of windows, and who runs it."""
    from engine.models.interpreter import open_model, runtime_name
    from engine.models.tflite import cut_prefix
    from engine.program import Runner

    if suffix.entering == graph.inputs[0]:
        return (lambda windows: windows), "nobody"
    if frozen != "runtime":
        return Runner(graph, suffix.entering, batch=count), "own kernels"
    shape = graph.tensors[suffix.entering].shape[1:]
    run = open_model(cut_prefix(data, suffix.cut, suffix.entering), batch=count, fast=True)
    return (lambda windows: run(windows).reshape(count, *shape)), runtime_name()


if __name__ == "__main__":
    main(*sys.argv[1:])
