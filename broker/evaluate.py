"""How good is a version? The coordinator's own held-out windows through the model, as devices will run it.

Only what trains ever changes, so the windows go through the frozen part once; after that a version costs the rest of
the model, in its own int8 numbers.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import frozen
from engine.models.graph import ModelError
from engine.models.scheme import constants_of, load_params
from engine.train import Score, TrainingError, evaluate, with_constants

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from engine.frame import Frame


class EvaluateError(Exception):
    """The held-out data cannot be used, or cannot be used with this model. One line."""


@dataclass(frozen=True)
class HeldOut:
    """What enters the trainable part for each held-out window, as stored [n, ...], and their labels, int32 [n]."""

    features: NDArray[Any]
    labels: NDArray[np.int32]

    def score(self, frame: Frame, params: bytes) -> Score:
        """Right answers, count and mean loss of the base in `frame` with these parameters (scheme.dump_params)."""
        try:
            constants = constants_of(frame.graph, frame.suffix, load_params(frame.suffix, params))
            return evaluate(with_constants(frame.graph, constants), frame.suffix, self.features, self.labels)
        except (TrainingError, ModelError) as error:
            raise EvaluateError(str(error)) from error


def load(path: Path, frame: Frame) -> HeldOut:
    """Read x float32 [n, *window] and y int [n] from the .npz at `path` and run the frozen part of the model over x."""
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
        features = frozen.features(frame.model, frame.graph, frame.suffix, windows)
    except ValueError as error:  # ModelError among them
        raise EvaluateError(f"{path} does not fit the model: {error}") from error
    return HeldOut(features, labels)
