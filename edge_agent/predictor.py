"""The prediction child: windows in, labels out, by the model version that is in use here (`edge_agent.slots`).

    base file + params ─▶ the version, one int8 model        windows ─▶ model ─▶ label

Its first form is for files: `edge-agent predict`. Like the trainer it is a process of its own, so that neither the
agent nor a command pays for NumPy and the model runtime, and it dies with whoever started it.
"""

from __future__ import annotations

import queue
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from edge_agent import child, flash, slots
from edge_agent.disk import Directory
from wire.messages import MODEL_FILE, PARAMS_FILE

if TYPE_CHECKING:
    from edge_agent.disk import Disk
    from engine.frame import Frame


class PredictionError(Exception):
    """Nothing was predicted; the sentence says why."""


class Prediction(NamedTuple):
    """The labels of all windows; `correct` of `known` is the accuracy where the file brought labels."""

    model_version: int
    labels: list[int]
    correct: int
    known: int


def predict(root: Path, source: Path) -> Prediction:
    """Run the child over the .npz file `source` with the state directory `root`. Raises PredictionError."""
    ends: queue.SimpleQueue[child.Ended] = queue.SimpleQueue()
    running = child.Child("edge_agent.predictor", {"root": str(root), "source": str(source)}, ends.put)
    try:
        ended = ends.get()
    finally:
        running.kill()
    if not ended.answer:
        raise PredictionError(ended.reason)
    if ended.answer["reason"]:
        raise PredictionError(ended.answer["reason"])
    return Prediction(**ended.answer["prediction"])


def main() -> int:
    """Run as `python -m edge_agent.predictor`: exit status 0 with labels, 1 with a reason."""
    task, tell = child.begin()
    reason, prediction = "", None
    try:
        prediction = _predict(Path(task["root"]), Path(task["source"]))
    except (PredictionError, OSError, ImportError, MemoryError, ValueError) as error:
        reason = str(error) or type(error).__name__
    tell({"reason": reason, "prediction": prediction._asdict() if prediction else None})
    return 1 if reason else 0


def _predict(root: Path, source: Path) -> Prediction:
    import numpy as np

    from edge_agent.sources.files import read_npz
    from edge_agent.sources.settings import SourceError
    from engine import frozen
    from engine.models import tflite

    disk = Directory(root)
    kept = slots.load(disk)
    model = flash.load_model(disk) if kept is None else kept.now  # none is taken into use before a child has tried it
    if model is None:
        raise PredictionError(f"no model is on flash under {root} yet: it comes with the first round that trains here")
    try:
        windows, labels = read_npz(source)
        whole = whole_file(disk, model)
        answers = frozen.predict(whole, tflite.read(whole), windows)
    except SourceError as error:
        raise PredictionError(str(error)) from error
    known = labels >= 0
    correct = int(np.count_nonzero(answers[known] == labels[known]))
    return Prediction(model.version, [int(label) for label in answers], correct, int(np.count_nonzero(known)))


def whole_file(disk: Disk, model: flash.Model) -> bytes:
    """The version as one .tflite file. Its base alone, where no parameters belong to it: it holds a version's own.

    Raises PredictionError and ModelError.
    """
    from engine.frame import frame_of

    base = content_of(disk, model, MODEL_FILE)
    if all(file.name != PARAMS_FILE for file in model.files):
        return base
    frame = frame_of(base, model.train)
    return frame.file_with(_own_params(disk, frame, content_of(disk, model, PARAMS_FILE)))


def _own_params(disk: Disk, frame: Frame, raw: bytes) -> bytes:
    """The version's parameters, with the layers that are this device's own, if it has such."""
    from edge_agent import residuals
    from engine.models.scheme import dump_params, load_params
    from engine.own import with_own

    _, durable = flash.load_durable(disk)
    kept = disk.read(flash.residual_name(durable.residual_round_id)) or b""
    own = residuals.own_of(kept, frame)
    return dump_params(frame.suffix, with_own(load_params(frame.suffix, raw), own))


def content_of(disk: Disk, model: flash.Model, name: str) -> bytes:
    """One file of this version. Raises PredictionError where it is not whole on flash."""
    data = flash.read_model_file(disk, model.files, name)
    if data is None:
        raise PredictionError(f"{name} of version {model.version} is not whole on flash: wait for the next round")
    return data


def as_json(prediction: Prediction) -> str:
    """One JSON object."""
    tree: dict[str, Any] = prediction._asdict()
    return msgspec.json.encode(tree).decode()


if __name__ == "__main__":
    raise SystemExit(main())
