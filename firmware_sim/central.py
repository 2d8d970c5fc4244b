"""The baseline: the same model, trainable part and kernels with all data in one place, as well tuned as we know how.

What a fleet reaches is only good or bad beside what it could reach without its constraints. So the baseline sees
every share at once, starts from the same numbers, trains with the same kernels, and picks its learning rate and number
of epochs on a fifth of the shares that it sets aside. The test data is scored once, with that choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.frame import Frame
    from engine.train import Recipe, Score
    from firmware_sim.data import Examples, Shares

LEARNING_RATES: Final = (0.01, 0.03, 0.1)
EPOCHS: Final = (10, 30, 90)
BATCH_SIZE: Final = 16
MOMENTUM: Final = 0.9
VALIDATION_RATE: Final = 0.2


@dataclass(frozen=True)
class Central:
    """What one place reaches on the test, with the learning rate and epochs that it chose; and where it started."""

    accuracy: float
    accuracy_start: float
    learning_rate: float
    epochs: int


def train_centrally(model: bytes, trained: str, shares: Shares, seed: int) -> Central:
    """Train what `trained` ('last-2') names of `model` (.tflite bytes) on all shares together; see the module.

    `seed` resets that part exactly as `broker init` does. Raises ModelError or TrainingError of the engine.
    """
    from engine import frozen
    from engine.frame import frame_of
    from engine.models.scheme import reset_params

    frame = frame_of(model, trained)
    bench = _Bench(frame, reset_params(frame.graph, frame.suffix, seed), seed)

    def seen(examples: Examples) -> tuple[NDArray[Any], NDArray[np.int32]]:
        windows, labels = examples
        return frozen.features(model, frame.graph, frame.suffix, windows), labels

    fleet, test = seen(shares.fleet()), seen(shares.test)
    rate, epochs = _choose(bench, *fleet)
    params = bench.train(*fleet, rate, epochs)
    return Central(_rate(bench.score(*test, params)), _rate(bench.score(*test, bench.start)), rate, epochs)


@dataclass(frozen=True, eq=False)
class _Bench:
    """A model to train from `start` [P], again and again."""

    frame: Frame
    start: NDArray[Any]
    seed: int

    def train(self, features: NDArray[Any], labels: NDArray[np.int32], rate: float, epochs: int) -> NDArray[Any]:
        """The params that come of it."""
        from engine.train import fine_tune

        graph = self.frame.graph_with(self.start)
        return fine_tune(graph, self.frame.suffix, features, labels, _recipe(rate, epochs, self.seed)).params

    def score(self, features: NDArray[Any], labels: NDArray[np.int32], params: NDArray[Any]) -> Score:
        """How good they are."""
        from engine.train import evaluate

        return evaluate(self.frame.graph_with(params), self.frame.suffix, features, labels)


def _choose(bench: _Bench, features: NDArray[Any], labels: NDArray[np.int32]) -> tuple[float, int]:
    """The learning rate and epochs that do best on a fifth set aside; of equals the lower loss, then the cheaper."""
    order = np.random.default_rng(bench.seed).permutation(len(labels))
    cut = round(len(labels) * VALIDATION_RATE)
    aside, rest = order[:cut], order[cut:]
    ranked = []
    for rate in LEARNING_RATES:
        for epochs in EPOCHS:
            params = bench.train(features[rest], labels[rest], rate, epochs)
            score = bench.score(features[aside], labels[aside], params)
            ranked.append((-score.correct, round(score.loss, 4), epochs, rate))
    _, _, epochs, rate = min(ranked)
    return rate, epochs


def _recipe(rate: float, epochs: int, seed: int) -> Recipe:
    from engine.train import Recipe

    return Recipe(epochs, BATCH_SIZE, rate, MOMENTUM, seed)


def _rate(score: Score) -> float:
    return score.correct / score.count if score.count else 0.0
