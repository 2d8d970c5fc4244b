"""How good is a version? The coordinator's own held-out windows through the model, with the trainable part exchanged.

The frozen part never changes, so the windows go through it once; after that a version costs only its head.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.models import interpreter, tflite
from engine.models.graph import ModelError
from engine.models.plan import head_of
from engine.train import Score, TrainingError, evaluate

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from engine.models.plan import Head


class EvaluateError(Exception):
    """The held-out data cannot be used, or cannot be used with this model. One line."""


@dataclass(frozen=True)
class HeldOut:
    """Features of the held-out windows, float32 [n, d], and their labels, int32 [n]."""

    head: Head
    features: NDArray[np.float32]
    labels: NDArray[np.int32]

    def score(self, params: bytes) -> Score:
        """Right answers, count and mean loss of these parameters (little-endian float32 [P])."""
        try:
            return evaluate(self.features, self.labels, np.frombuffer(params, dtype="<f4"), self.head)
        except TrainingError as error:
            raise EvaluateError(str(error)) from error


def load(path: Path, model: bytes, train: str) -> HeldOut:
    """Read x float32 [n, *window] and y int [n] from the .npz at `path` and run the frozen part of `model` over x."""
    try:
        with np.load(path, allow_pickle=False) as data:
            windows, labels = data["x"].astype(np.float32), data["y"].astype(np.int32)
    except OSError as error:
        raise EvaluateError(f"cannot read the held-out data {path}: {error.strerror or error}") from error
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise EvaluateError(f"{path} is no .npz with x (windows) and y (labels): {error}") from error
    if labels.shape != (len(windows),) or not len(labels):
        raise EvaluateError(f"{path} has {len(windows)} windows in x and labels of shape {labels.shape} in y")
    try:
        graph = tflite.read(model)
        head = head_of(graph, train)
        features = interpreter.features(model, graph, head, windows)
    except (ModelError, ValueError) as error:
        raise EvaluateError(f"{path} does not fit the model: {error}") from error
    return HeldOut(head, features, labels)
