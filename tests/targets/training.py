"""Train models and print a digest of all that came of it: `python -m tests.targets.training [STEPS]`.

Two machines agree to the bit where they print the same. The shipped models' ends are trained; where FLEET_MODELS names
a folder with `mlperf_tiny`, those models too: int8 and float32, in part and in full. The windows are drawn, labels too:
nothing is learnt that is worth learning, but every weight moves.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

from engine.frozen import features
from engine.kernels._jit import kernels_in_use
from engine.models import scheme, tflite
from engine.train import Recipe, evaluate, fine_tune

ROOT = Path(__file__).parents[2]
SHIPPED = {"digits.tflite": ["last-2", "blocks-2"], "wrist.tflite": ["last-2"]}
MLPERF_TINY = {
    "kws_ref_model.tflite": ["full", "bias-4"],
    "ad01_int8.tflite": ["full"],
    "pretrainedResnet_quant.tflite": ["full"],
    "vww_96_int8.tflite": ["blocks-4"],
    "pretrainedResnet.tflite": ["full"],
}
BATCH = 4


def main(steps: int) -> None:
    """Print one JSON object: what runs, and a digest for each model and train rule."""
    folders = [(ROOT / "firmware_sim/models", SHIPPED)]
    if "FLEET_MODELS" in os.environ:
        folders.append((Path(os.environ["FLEET_MODELS"]) / "mlperf_tiny", MLPERF_TINY))
    found = {
        f"{name} {train}": trained((folder / name).read_bytes(), train, steps)
        for folder, files in folders
        for name, trains in files.items()
        for train in trains
    }
    print(json.dumps({"in use": kernels_in_use(), **found}))


def trained(data: bytes, train: str, steps: int) -> str:
    """Give the digest of features, parameters, losses and score of one training."""
    graph = tflite.read(data)
    suffix = scheme.resolve(graph, train)
    entry = graph.tensors[graph.inputs[0]]
    drawn = np.random.default_rng(2026).integers(-128, 128, (2 * BATCH, *entry.shape[1:]), dtype=np.int8)
    windows = drawn if entry.dtype == "int8" else drawn.astype(np.float32) / np.float32(64)
    given = features(data, graph, suffix, windows)
    labels = np.arange(2 * BATCH) % graph.tensors[suffix.answer].shape[-1]
    recipe = Recipe(epochs=-(-steps // 2), batch_size=BATCH, learning_rate=0.001, momentum=0.0, seed=7)
    tuned = fine_tune(graph, suffix, given, labels, recipe)
    score = evaluate(graph, suffix, given, labels)
    numbers = np.array([*tuned.losses, tuned.saturated, score.loss, score.correct])
    assert not np.array_equal(tuned.params, scheme.params_of(graph, suffix)), "nothing was trained"
    return hashlib.sha256(given.tobytes() + tuned.params.tobytes() + numbers.tobytes()).hexdigest()[:16]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
