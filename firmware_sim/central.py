"""The baseline: the same model, head and kernels with all data in one place, as well tuned as we know how.

What a fleet reaches is only good or bad beside what it could reach without its constraints. So the baseline sees
every share at once, starts from the same head, trains with the same kernels, and picks its learning rate and number
of epochs on a fifth of the shares that it sets aside. The test data is scored once, with that choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.models.plan import Head
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
    """Train the layers `trained` ('last-2') of `model` (.tflite bytes) on all shares together; see the module.

    `seed` resets the head exactly as `broker init` does. Raises ModelError or TrainingError of the engine.
    """
    from engine.models import interpreter, plan, tflite
    from engine.train import evaluate, fine_tune

    graph = tflite.read(model)
    head = plan.head_of(graph, trained)
    start = plan.reset_params(head, seed)

    def seen(examples: Examples) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        windows, labels = examples
        return interpreter.features(model, graph, head, windows), labels

    fleet, test = seen(shares.fleet()), seen(shares.test)
    rate, epochs = _choose(*fleet, start, head, seed)
    params = fine_tune(*fleet, start, head, _recipe(rate, epochs, seed))
    return Central(_rate(evaluate(*test, params, head)), _rate(evaluate(*test, start, head)), rate, epochs)


def _choose(
    features: NDArray[np.float32], labels: NDArray[np.int32], start: NDArray[np.float32], head: Head, seed: int
) -> tuple[float, int]:
    """The learning rate and epochs that do best on a fifth set aside; of equals the lower loss, then the cheaper."""
    from engine.train import evaluate, fine_tune

    order = np.random.default_rng(seed).permutation(len(labels))
    cut = round(len(labels) * VALIDATION_RATE)
    aside, rest = order[:cut], order[cut:]
    ranked = []
    for rate in LEARNING_RATES:
        for epochs in EPOCHS:
            params = fine_tune(features[rest], labels[rest], start, head, _recipe(rate, epochs, seed))
            score = evaluate(features[aside], labels[aside], params, head)
            ranked.append((-score.correct, round(score.loss, 4), epochs, rate))
    _, _, epochs, rate = min(ranked)
    return rate, epochs


def _recipe(rate: float, epochs: int, seed: int) -> Recipe:
    from engine.train import Recipe

    return Recipe(epochs, BATCH_SIZE, rate, MOMENTUM, seed)


def _rate(score: Score) -> float:
    return score.correct / score.count if score.count else 0.0
