"""Local fine-tuning: features, labels and a model file's graph in, the tuned constants out.

The frozen part of a model has already turned windows into features (`engine/frozen.py`); what trains is the rest, in
the file's own numbers: int8 weights are int8 all the while, and each step rounds them stochastically. One call is one
round's work on one device: shuffle, forward, loss, backward, step, for some epochs. Momentum starts at zero in every
call and is forgotten afterwards.

The same inputs give the same bits on every processor: all arithmetic is in `engine.kernels` in a fixed order, the
order of the examples comes from the recipe's seed, and so does the rounding, entry by entry.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.kernels.loss import largest_logit, mse_forward, softmax_forward
from engine.kernels.optimize import all_finite
from engine.kernels.shuffle import shuffle
from engine.models.scheme import constants_of, params_of
from engine.program import Runner, Training
from engine.recording import Descent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    from numpy.typing import NDArray

    from engine.models.graph import Graph
    from engine.models.scheme import Suffix

    Labels: TypeAlias = NDArray[np.int32]

EVALUATION_BATCH = 64


class TrainingError(Exception):
    """Training cannot give a usable result; the message says what is wrong and how to mend it."""


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune. `seed` is `mix_seed(plan seed, device, round)`; `learning_rate` that of real-valued weights."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    seed: int
    proximal: float = 0.0  # how hard parameters are pulled to where they started (FedProx's mu)


@dataclass(frozen=True)
class Progress:
    """Where a fine-tuning is: steps done of all, and the mean loss of the epoch so far."""

    epoch: int
    steps_done: int
    steps_in_all: int
    loss: float


@dataclass(frozen=True)
class Tuned:
    """What came of it: `constants` to patch into the file, by tensor, and the same as flat `params` [P].

    `losses` are each epoch's mean losses, every batch's taken before its step; `saturated` counts how often an int8
    weight wanted to leave [-127, 127]; `memory_bytes` is the arena it trained in. `gradient` [P], of real numbers,
    is the mean of all steps' gradients before they were corrected, where a correction was given.
    """

    constants: dict[int, NDArray[Any]]
    params: NDArray[Any]
    losses: tuple[float, ...]
    saturated: int
    memory_bytes: int
    gradient: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Score:
    """How well a model does on labelled features: right answers, examples, mean cross-entropy in nats.

    For real-valued targets `correct` is 0 and the loss is the mean squared error.
    """

    correct: int
    count: int
    loss: float


def mix_seed(plan_seed: int, device_id: str, round_id: int) -> int:
    """Give a seed in [0, 2^64): SHA-256 of the three, so that no two devices or rounds share a shuffle or rounding."""
    text = f"{plan_seed}\n{round_id}\n{device_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def fine_tune(
    graph: Graph,
    suffix: Suffix,
    features: NDArray[Any],
    targets: NDArray[Any],
    recipe: Recipe,
    *,
    correction: NDArray[np.float32] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Tuned:
    """Train `suffix` from the file's own constants on `features` [n, ...], as stored at the cut.

    `targets` are labels, integers [n], or float32 [n, d] for a model that answers with d real numbers (then the loss
    is the mean squared error). `correction` [P] is added to every step's gradient of real-valued parameters (SCAFFOLD).
    `progress` is told about every step.

    Raises:
        TrainingError: no examples, a recipe or shapes that do not fit, NaN or infinite numbers in or out.
        ModelError: an operator that cannot train.
    """
    _check_recipe(recipe)
    count = len(features)
    if count == 0:
        raise TrainingError("There is nothing to train on: this device has no labelled samples.")
    regression = targets.dtype == np.float32
    batch = min(recipe.batch_size, count)
    descent = Descent(recipe.learning_rate, recipe.momentum, recipe.proximal, correction)
    training = Training(graph, suffix, descent, batch=batch, seed=recipe.seed, regression=regression)
    features, targets = _checked(graph, suffix, features, targets, training.classes)
    order = np.arange(count, dtype=np.int64)
    losses, done, in_all = [], 0, recipe.epochs * -(-count // batch)
    for epoch in range(recipe.epochs):
        shuffle(order, np.uint64(recipe.seed), np.uint64(epoch * count))
        total = 0.0
        for start in range(0, count, batch):
            chosen = order[start : start + batch]
            total += training.step(features, targets, chosen)
            if not math.isfinite(total):
                raise _diverged(recipe)
            done += 1
            if progress is not None:
                progress(Progress(epoch, done, in_all, total / min(start + batch, count)))
        losses.append(total / count)
    if not training.is_sound():
        raise _diverged(recipe)
    params = params_of(with_constants(graph, training.changed()), suffix)
    gradient = None if correction is None else training.mean_gradient()
    constants = constants_of(graph, suffix, params)
    return Tuned(constants, params, tuple(losses), training.saturated, training.num_bytes, gradient)


def evaluate(graph: Graph, suffix: Suffix, features: NDArray[Any], targets: NDArray[Any]) -> Score:
    """Score the graph's answer, as deployed, on `features` [n, ...] and `targets`. Raises as Deployed.score."""
    return Deployed(graph, suffix).score(features, targets)


def right(graph: Graph, suffix: Suffix, features: NDArray[Any], labels: Labels) -> NDArray[np.bool_]:
    """Which of `features` [n, ...] the graph, as deployed, answers with their label, bool [n]. Raises as `evaluate`."""
    return Deployed(graph, suffix).right(features, labels)


class Deployed:
    """The graph's trainable part as deployed, ready to answer, again and again, on batches of up to `batch`."""

    def __init__(self, graph: Graph, suffix: Suffix, batch: int = EVALUATION_BATCH) -> None:
        self._graph, self._suffix, self._batch = graph, suffix, batch
        self._runner = Runner(graph, suffix.answer, first=suffix.cut, entering=suffix.entering, batch=batch)

    def answers(self, features: NDArray[Any]) -> NDArray[Any]:
        """The answers to `features` [n, ...], as stored, [n, ...]."""
        return self._runner(features)

    def score(self, features: NDArray[Any], targets: NDArray[Any]) -> Score:
        """How well it answers `features` [n, ...], by their `targets`; none give Score(0, 0, 0.0).

        Raises:
            TrainingError: shapes that do not fit, or NaN or infinite numbers.
        """
        correct, count, loss = 0, len(features), 0.0
        for real, mine in self._answered(features, targets):
            if targets.dtype == np.float32:
                loss += float(mse_forward(real, mine))
                continue
            correct += int(np.count_nonzero(_guesses(real) == mine))
            loss += float(softmax_forward(real, mine, np.empty(real.shape, np.float64)))
        if not math.isfinite(loss):
            raise TrainingError("The model's outputs are not finite: its parameters or features are too large.")
        return Score(correct, count, loss / count if count else 0.0)

    def right(self, features: NDArray[Any], labels: Labels) -> NDArray[np.bool_]:
        """Which of `features` [n, ...] it answers with their label, bool [n]. Raises as `score`."""
        found = [_guesses(real) == mine for real, mine in self._answered(features, labels)]
        return np.concatenate([np.empty(0, np.bool_), *found])

    def _answered(
        self, features: NDArray[Any], targets: NDArray[Any]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        """The answers in real numbers, float32 [m, width], and their targets, batch by batch."""
        answer = self._graph.tensors[self._suffix.answer]
        width = math.prod(answer.shape[1:])
        features, targets = _checked(self._graph, self._suffix, features, targets, width)
        for start in range(0, len(features), self._batch):
            part = features[start : start + self._batch]
            real = real_values(answer, self._runner(part).reshape(len(part), width))
            yield real, targets[start : start + self._batch].copy()


def with_constants(graph: Graph, constants: Mapping[int, NDArray[Any]]) -> Graph:
    """Give the graph with other constants, by tensor: what a patched file would read as."""
    return replace(
        graph,
        tensors=tuple(
            replace(tensor, data=constants[tensor.index]) if tensor.index in constants else tensor
            for tensor in graph.tensors
        ),
    )


def real_values(tensor: Any, stored: NDArray[Any]) -> NDArray[np.float32]:
    """Turn what is stored of an activation into real numbers: (stored - zero point) * scale, float32."""
    if stored.dtype == np.float32:
        return stored
    zero = np.float32(tensor.zero_point[0] if len(tensor.zero_point) else 0)
    real: NDArray[np.float32] = (stored.astype(np.float32) - zero) * np.float32(tensor.scale[0])
    return real


def _guesses(real: NDArray[np.float32]) -> NDArray[np.int32]:
    guesses = np.empty(len(real), np.int32)
    largest_logit(real, guesses)
    return guesses


def _check_recipe(recipe: Recipe) -> None:
    if recipe.epochs < 1 or recipe.batch_size < 1:
        raise TrainingError(
            f"The recipe asks for {recipe.epochs} epochs of batches of {recipe.batch_size}: both must be 1 or more."
        )
    if not (0.0 < recipe.learning_rate < math.inf and 0.0 <= recipe.momentum < 1.0):
        raise TrainingError(
            f"The recipe's learning rate {recipe.learning_rate} must be positive and its momentum "
            f"{recipe.momentum} at least 0 and below 1."
        )
    if not 0.0 <= recipe.proximal < math.inf:
        raise TrainingError(f"The recipe's proximal term {recipe.proximal} must be 0 or more, and finite.")
    if not 0 <= recipe.seed < 2**64:
        raise TrainingError("The recipe's seed must be in [0, 2^64): use mix_seed.")


def _checked(
    graph: Graph, suffix: Suffix, features: NDArray[Any], targets: NDArray[Any], width: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give features and targets as kernels take them, fresh and contiguous, after a look at every one."""
    entering = graph.tensors[suffix.entering]
    if features.shape[1:] != entering.shape[1:] or features.dtype != np.dtype(entering.dtype):
        raise TrainingError(
            f"Features are {features.dtype} {features.shape}, but {entering.dtype} {entering.shape[1:]} a window enter."
        )
    features = np.array(features, order="C")
    if features.dtype == np.float32 and not all_finite(features.reshape(-1)):
        raise TrainingError("A feature is NaN or infinite: look at the samples or their normalisation.")
    if targets.dtype == np.float32:
        if targets.shape != (len(features), width):
            raise TrainingError(
                f"Targets have the shape {targets.shape}, but the model gives {width} numbers a window."
            )
        targets = np.array(targets, order="C")
        if not all_finite(targets.reshape(-1)):
            raise TrainingError("A target is NaN or infinite: look at the samples.")
        return features, targets
    if targets.shape != (len(features),):
        raise TrainingError(f"There are {len(features)} rows of features and labels of shape {targets.shape}.")
    whole = np.array(targets, dtype=np.int64)
    if len(whole) and (whole.min() < 0 or whole.max() >= width):
        raise TrainingError(f"A label lies outside 0 .. {width - 1}: the data belongs to another model.")
    return features, whole.astype(np.int32)


def _diverged(recipe: Recipe) -> TrainingError:
    return TrainingError(
        f"Training diverged: a number became NaN or infinite within {recipe.epochs} epochs at learning rate "
        f"{recipe.learning_rate}. Lower the learning rate or the momentum."
    )
