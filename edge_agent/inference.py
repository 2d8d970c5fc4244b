"""The model version in use, ready to answer for one window: loaded again when the slots on flash say another.

    in_use, durable state on flash ── changed? ──▶ load the next, run it once ──▶ it answers from now on
                                                     └─ cannot be ─▶ the one before goes on, and the reason is told

Only NumPy and a model runtime are loaded, no kernels and so no compiler: this runs day and night. The runtime's
reference kernels give the numbers that `engine.frozen.predict` gives. A model whose output has the shape of its input
gives the window back as well as it can, and its answer is how badly: the mean squared error.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from edge_agent import flash, slots
from edge_agent.disk import Directory
from edge_agent.predictor import PredictionError, whole_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edge_agent.disk import Disk

LOOK_S: Final = 1.0  # how often it is asked whether another version is in use
AGAIN_S: Final = 60.0  # after a version could not be loaded
_NOTES: Final = ("in_use", "model", "state.a", "state.b")  # whatever changes the version or its own layers


class Answer(NamedTuple):
    """Of one window: the likeliest label and how sure the model is (0 to 1), or no label and the error, from 0 on."""

    label: int | None
    score: float


class Loaded(NamedTuple):
    """A version that can answer."""

    number: int
    origin: tuple[Any, ...]  # what it was made of: the same need not be loaded again
    answer: Callable[[NDArray[np.float32]], Answer]


class InUse:
    """The version that predicts here, of windows of `shape`, by the state directory `root`."""

    def __init__(self, root: Path, shape: tuple[int, ...]) -> None:
        self.reason = ""  # why nothing, or an older version, predicts
        self.failures = 0  # how often the version in use could not be loaded
        self._root, self._disk, self._shape = root, Directory(root), shape
        self._loaded: Loaded | None = None
        self._stamps: list[tuple[int, ...]] = []
        self._look_s = self._again_s = 0.0

    def now(self) -> Loaded | None:
        """The version that answers now; None where there is none."""
        now_s = time.monotonic()
        if now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            stamps = [_stamp(self._root / name) for name in _NOTES]
            if stamps != self._stamps or (self.reason and now_s >= self._again_s):
                self._stamps, self._again_s = stamps, now_s + AGAIN_S
                self._load_next()
        return self._loaded

    def _load_next(self) -> None:
        """Take the next version, once it has answered; until then, and if it cannot be, the one before goes on."""
        try:
            self._loaded = load(self._disk, self._shape, self._loaded)
            self.reason = ""
        except (PredictionError, OSError, ImportError, MemoryError, ValueError) as error:  # ModelError is a ValueError
            self.reason = str(error) or type(error).__name__
            self.failures += 1


def load(disk: Disk, shape: tuple[int, ...], before: Loaded | None) -> Loaded:
    """Load the version in use; `before` itself where it is that. Raises PredictionError and ValueError."""
    kept = slots.load(disk)
    model = flash.load_model(disk) if kept is None else kept.now
    if model is None:
        raise PredictionError("no model is on flash yet: it is fetched once the link is up")
    _, durable = flash.load_durable(disk)
    origin = (model.version, model.train, model.files, durable.residual_round_id)
    if before is not None and before.origin == origin:
        return before
    return Loaded(model.version, origin, _answering(whole_file(disk, model), shape))


def _answering(whole: bytes, shape: tuple[int, ...]) -> Callable[[NDArray[np.float32]], Answer]:
    import numpy as np

    from engine.models import tflite
    from engine.models.cuts import answer_of, maker_of
    from engine.models.fold import fold
    from engine.models.interpreter import open_model

    graph = fold(tflite.read(whole))
    entry, leaving = (graph.tensors[index] for index in (graph.inputs[0], answer_of(graph)))
    if entry.shape[1:] != shape:
        raise PredictionError(
            f"[source] window = {list(shape)}, but the model takes {list(entry.shape[1:])}: change it"
        )
    run = open_model(tflite.cut_prefix(whole, maker_of(graph, answer_of(graph)) + 1, answer_of(graph)), batch=1)
    is_copy = leaving.shape[1:] == entry.shape[1:]

    def answer(window: NDArray[np.float32]) -> Answer:
        real = _real(leaving, run(window[None])[0])
        label, score = _error(window.reshape(-1), real) if is_copy else _likeliest(real)
        return Answer(label, float(f"{score:.6g}"))  # more digits are not known, and cost bytes

    answer(np.zeros(shape, np.float32))
    return answer


def _real(tensor: Any, stored: NDArray[Any]) -> NDArray[np.float64]:
    """What is stored of an activation, as real numbers."""
    import numpy as np

    if stored.dtype == np.float32:
        return stored.astype(np.float64)
    zero = float(tensor.zero_point[0]) if len(tensor.zero_point) else 0.0
    return (stored.astype(np.float64) - zero) * float(tensor.scale[0])


def _likeliest(logits: NDArray[np.float64]) -> Answer:
    import numpy as np

    odds = np.exp(logits - logits.max())
    label = int(np.argmax(logits))  # of equals the lowest, as everywhere
    return Answer(label, float(odds[label] / odds.sum()))


def _error(window: NDArray[np.float32], copy: NDArray[np.float64]) -> Answer:
    import numpy as np

    return Answer(None, float(np.mean((window - copy) ** 2)))


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when the file does."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return (status.st_mtime_ns, status.st_ino, status.st_size)
    return ()
