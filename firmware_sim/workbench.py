"""The budgeted search on a real model and real windows: `firmware-sim scheme`.

Every `train` starts from the file's own params and is measured as deployed: the tuned integers are put into the graph,
and its answers are compared with the labels of windows set aside. Each is tried with two rates, and the better one
counts, since biases alone bear a larger rate than weights do. Features are computed once for each cut, and kept for
the last one asked for. What is printed is in points, hundredths of the windows that measure; one window is the
smallest difference there is, so a gain of a point or less is noise on a few hundred windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edge_agent import datafile, screen
from engine.frozen import features
from engine.models import tflite
from engine.models.cuts import layers_of
from engine.models.gradients import place
from engine.models.scheme import SHARES, resolve
from engine.program import memory_of
from engine.train import Recipe, evaluate, fine_tune, with_constants
from firmware_sim.data import DataError
from firmware_sim.scheme import best_measured, contributions, finalists, search, search_steps, trials

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from edge_agent.datafile import Data, Part
    from edge_agent.screen import Screen
    from engine.models.graph import Graph
    from engine.models.scheme import Suffix
    from firmware_sim.scheme import Contributions, Scheme

EPOCHS: Final = 3
BATCH_SIZE: Final = 16
LEARNING_RATES: Final = (0.003, 0.03)
WINDOWS_MAX: Final = 1024  # of those that train, and of those that measure


@dataclass(frozen=True)
class Found:
    """What the search came to. `before` is the file's accuracy; `schemes` are the measured ones, best first."""

    graph: Graph
    contributions: Contributions
    schemes: tuple[Scheme, ...]
    before: float
    windows: int
    test_windows: int

    @property
    def train(self) -> str:
        """The best scheme, as a plan names it."""
        return self.schemes[0].train


def find(model: Path, data: Path, memory_bytes: int, seed: int, shown: Screen) -> Found:
    """Search the best `train` of `model` (.tflite) on `data` (see `edge_agent/datafile.py`) in `memory_bytes`.

    Raises ModelError, DataError, DataFileError and TrainingError, each one sentence, and OSError.
    """
    bench = Workbench(model.read_bytes(), datafile.read(data), seed, shown)
    shown.begin("what each part brings", sum(1 for _ in trials(bench.graph)))
    found = contributions(bench.graph, bench.measure)
    shown.begin("searching", search_steps(found))
    chosen = finalists(search(bench.graph, found, bench.weigh, memory_bytes, seed, reach=shown.reach))
    shown.begin("training the best", len(chosen))
    bench.measured.clear()
    best = tuple(best_measured(chosen, bench.measure))
    shown.end()
    return Found(bench.graph, found, best, bench.before(), *bench.counts)


def lines(found: Found) -> list[str]:
    """What was found, for a terminal."""
    layers = layers_of(found.graph)
    rows = []
    for depth in sorted(found.contributions.biases):
        operator = layers[-depth]
        shares = (found.contributions.weights.get((operator, share)) for share in SHARES)
        rows.append(
            (
                place(found.graph, found.graph.operators[operator]),
                _points(found.contributions.biases[depth] if depth > 1 else None),
                *map(_points, shares),
            )
        )
    tried = [
        (scheme.train + " ", f"{scheme.memory_bytes}", _percent(found.contributions.base + scheme.expected),
         _percent(scheme.accuracy or 0.0))
        for scheme in found.schemes
    ]  # fmt: skip
    return [
        f"{found.windows} windows train, {found.test_windows} measure",
        f"accuracy {_percent(found.before)} as it is, {_percent(found.contributions.base)} with {layers[-1]}:w trained",
        "",
        *screen.table(("points gained ", "biases from here", *SHARES), rows),
        "",
        *screen.table(("train ", "bytes", "expected", "measured"), tried),
        "",
        f'train = "{found.train}"',
    ]


class Workbench:
    """One model (`.tflite` bytes) and one set of labelled windows."""

    def __init__(self, model: bytes, data: Data, seed: int, shown: Screen) -> None:
        self.graph = tflite.read(model)
        self._model, self._seed, self._shown = model, seed, shown
        self._mine, self._test = (self._fitted(part) for part in (data.mine, data.test))
        self.measured: dict[str, float] = {}
        self._at = -1
        self._features: tuple[NDArray[Any], ...] = ()

    @property
    def counts(self) -> tuple[int, int]:
        """How many windows train, and how many measure."""
        return len(self._mine[1]), len(self._test[1])

    def weigh(self, train: str) -> int:
        """The bytes in which `train` trains."""
        return memory_of(self.graph, resolve(self.graph, train), BATCH_SIZE)

    def before(self) -> float:
        """The share of right answers of the file as it is."""
        suffix = resolve(self.graph, "last-1")
        return self._scored(self.graph, suffix)

    def measure(self, train: str) -> float:
        """The share of right answers on the windows set aside, after training `train` on the others."""
        if train not in self.measured:
            suffix = resolve(self.graph, train)
            self.measured[train] = max(self._trained(suffix, rate) for rate in LEARNING_RATES)
            self._shown.reach(len(self.measured))
        return self.measured[train]

    def _trained(self, suffix: Suffix, rate: float) -> float:
        recipe = Recipe(EPOCHS, BATCH_SIZE, rate, 0.0, self._seed)
        tuned = fine_tune(self.graph, suffix, self._features_at(suffix)[0], self._mine[1], recipe)
        return self._scored(with_constants(self.graph, tuned.constants), suffix)

    def _scored(self, graph: Graph, suffix: Suffix) -> float:
        score = evaluate(graph, suffix, self._features_at(suffix)[1], self._test[1])
        return score.correct / score.count

    def _features_at(self, suffix: Suffix) -> tuple[NDArray[Any], ...]:
        if self._at != suffix.cut:
            parts = (self._mine, self._test)
            self._features = tuple(features(self._model, self.graph, suffix, windows) for windows, _ in parts)
            self._at = suffix.cut
        return self._features

    def _fitted(self, part: Part) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Some of the part's windows, drawn by the seed, as the model's input stores them, and their labels."""
        entry = self.graph.tensors[self.graph.inputs[0]]
        if part.windows.shape[1:] != entry.shape[1:]:
            raise DataError(f"a window is {list(part.windows.shape[1:])}, and the model takes {list(entry.shape[1:])}")
        rows = np.random.default_rng(self._seed).permutation(len(part.labels))[:WINDOWS_MAX]
        return datafile.fitted(part.windows[rows], entry.dtype), part.labels[rows]


def _points(gain: float | None) -> str:
    return "" if gain is None else f"{100 * gain:+.1f}"


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.1f} %"
