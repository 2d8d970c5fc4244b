"""One device that adapts to a change of scene: int8 against float32, and against the last layer alone.

    CIFAR-10, ResNet-8    the camera changes (contrast, rot90, invert). 1,400 changed training pictures, of which 1,400
                          train and 600 others choose the rate; 1,000 changed test pictures measure.
    Speech, DS-CNN        the room is as loud as the word. Ten commands and one clip of each of 20 other words, by 26
                          speakers in five groups. Each group measures once; the next one chooses the rate; the other
                          three train, every clip in eight different noises.

All methods go through the same steps: the same examples, epochs, batches and schedule (two thirds of the epochs at the
rate, the last third at a fifth of it), the rate chosen on examples that neither train nor measure, by two seeds, and
five fresh seeds scored once. `float` is the engine's own float lane on the dequantised operators.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.float_twin import float_twin
from engine import frozen, train
from engine.models import scheme, tflite
from firmware_sim import export, speech

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from engine.models.graph import Graph
    from engine.models.scheme import Suffix

    Example = tuple[NDArray[Any], NDArray[np.int32]]  # features, labels

CHOOSING_SEEDS: Final = (101, 102)
SEEDS: Final = (1, 2, 3, 4, 5)
BATCH: Final = 16
EPOCHS: Final = 9
PICTURE_RATES: Final = {
    "last": (0.03, 0.1, 0.3, 1.0, 3.0),
    "int8": (0.001, 0.002, 0.004, 0.008, 0.016),
    "float": (0.0005, 0.001, 0.002, 0.004),
}
SPEECH_RATES: Final = {
    "last": (0.03, 0.1, 0.3, 1.0, 3.0),
    "int8": (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016),
    "float": (0.0001, 0.0002, 0.0005, 0.001, 0.002),
}
SETTLING: Final = (3, 0.2)  # the last third of the epochs at a fifth of the rate
PICTURES: Final = ("pretrainedResnet_quant.tflite", "blocks-2")
COMMANDS: Final = ("kws_ref_model.tflite", "full")
TRAINING_PICTURES: Final = 1400
GROUPS: Final = 5
NOISES: Final = (8, 4)  # of a clip that trains, of one that chooses or measures
SNR_DB: Final = 0.0


@dataclass(frozen=True)
class Part:
    """Examples as the model's input stores them, int8 [n, ...], and their labels [n]."""

    windows: NDArray[np.int8]
    labels: NDArray[np.int32]


@dataclass(frozen=True)
class Fold:
    """Examples in their three roles; none is in two."""

    trains: Part
    chooses: Part
    measures: Part


@dataclass(frozen=True)
class Task:
    """One model and one change; with several folds, all of them are measured and counted together."""

    name: str
    model: bytes
    suffix: str
    rates: dict[str, tuple[float, ...]]  # what each method may choose from
    folds: tuple[Fold, ...]


@dataclass(frozen=True)
class Learner:
    """A graph, what of it trains, and how examples become what enters there."""

    graph: Graph
    suffix: Suffix
    features: Callable[[Part], NDArray[Any]]


def tasks(models: Path, data: Path) -> list[Task]:
    """The three cameras and the loud room, from the folders FLEET_MODELS and FLEET_DATA name."""
    return [*(_pictures(models, data, shift) for shift in export.PICTURE_SHIFTS), _speech(models, data)]


def run(task: Task, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure all methods on one task; give one row."""
    found = {method: _measured(task, method, tell) for method in task.rates}
    before = found["int8"]["before"]
    return {
        "task": task.name, "trains": task.suffix, "epochs": EPOCHS, "before": before, **found,
        "gain_over_float_gain": (found["int8"]["accuracy"] - before) / (found["float"]["accuracy"] - before),
        "points_over_last": 100.0 * (found["int8"]["accuracy"] - found["last"]["accuracy"]),
    }  # fmt: skip


def _measured(task: Task, method: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Choose a rate for each fold, then score five fresh seeds over all folds."""
    learner = _learner(task, method)
    examples = [
        [(learner.features(part), part.labels) for part in (fold.trains, fold.chooses, fold.measures)]
        for fold in task.folds
    ]
    rates = []
    for trains, chooses, _ in examples:
        tried = {}
        for rate in task.rates[method]:
            graphs = [_tuned(task, learner, trains, rate, seed) for seed in CHOOSING_SEEDS]
            tried[rate] = sum(_right(learner, graph, chooses) for graph in graphs) / len(graphs) / len(chooses[1])
        rates.append(max(tried, key=lambda rate: tried[rate]))
        tell(f"{task.name}, {method}: " + ", ".join(f"{rate:g} {score:.3f}" for rate, score in tried.items()))
    count = sum(len(measures[1]) for _, _, measures in examples)
    scores = []
    for seed in SEEDS:
        right = [
            _right(learner, _tuned(task, learner, trains, rate, seed), measures)
            for (trains, _, measures), rate in zip(examples, rates, strict=True)
        ]
        scores.append(sum(right) / count)
    before = sum(_right(learner, learner.graph, measures) for _, _, measures in examples) / count
    mean, spread = statistics.mean(scores), statistics.stdev(scores)
    tell(f"{task.name}, {method}: {before:.3f} -> {mean:.3f} +- {spread:.3f}")
    return {"before": before, "accuracy": mean, "spread": spread, "scores": scores, "rates": rates}


def _learner(task: Task, method: str) -> Learner:
    graph = tflite.read(task.model)
    suffix = scheme.resolve(graph, "last-1" if method == "last" else task.suffix)
    entering = graph.tensors[suffix.entering]

    def features(part: Part) -> NDArray[Any]:
        return frozen.features(task.model, graph, suffix, part.windows)

    if method != "float":
        return Learner(graph, suffix, features)
    twin = float_twin(graph)
    return Learner(twin, scheme.resolve(twin, task.suffix), lambda part: train.real_values(entering, features(part)))


def _tuned(task: Task, learner: Learner, trained: Example, rate: float, seed: int) -> Graph | None:
    """The graph after training; None where the rate is too large."""
    graph = learner.graph
    parts, factor = SETTLING
    for epoch in range(EPOCHS):
        settles = epoch >= EPOCHS - EPOCHS // parts
        recipe = train.Recipe(
            1, BATCH, rate * (factor if settles else 1.0), 0.0, train.mix_seed(seed, task.name, epoch)
        )
        try:
            tuned = train.fine_tune(graph, learner.suffix, *trained, recipe)
        except train.TrainingError:
            return None
        graph = train.with_constants(graph, tuned.constants)
    return graph


def _right(learner: Learner, graph: Graph | None, examples: Example) -> int:
    try:
        return 0 if graph is None else train.evaluate(graph, learner.suffix, *examples).correct
    except train.TrainingError:
        return 0


def _pictures(models: Path, data: Path, shift: str) -> Task:
    name, suffix = PICTURES
    arrays = export.cifar10(data / "cifar10_3k", shift, seed=1)
    stored = {key: (arrays[key].astype(np.int16) - 128).astype(np.int8) for key in ("windows", "test_windows")}
    mine, others = np.split(np.arange(len(stored["windows"])), [TRAINING_PICTURES])
    trains, chooses = (Part(stored["windows"][rows], arrays["labels"][rows]) for rows in (mine, others))
    fold = Fold(trains, chooses, Part(stored["test_windows"], arrays["test_labels"]))
    return Task(f"CIFAR-10 {shift}", (models / "mlperf_tiny" / name).read_bytes(), suffix, PICTURE_RATES, (fold,))


def _speech(models: Path, data: Path) -> Task:
    name, suffix = COMMANDS
    model = (models / "mlperf_tiny" / name).read_bytes()
    clips = speech.read_clips(data / "speech_commands_300")
    first = np.unique(clips.words, return_index=True)[1]
    rows = np.union1d(np.flatnonzero(clips.labels != speech.UNKNOWN), first)
    clips = clips.take(rows)
    people = np.random.default_rng(1).permutation(np.unique(clips.speakers))
    group = np.array([int(np.flatnonzero(people == speaker)[0]) % GROUPS for speaker in clips.speakers])
    graph = tflite.read(model)
    heard = [
        frozen.stored_windows(graph, speech.front_end(speech.add_noise(clips, SNR_DB, seed).samples))
        for seed in range(sum(NOISES))
    ]

    def part(rows: NDArray[np.bool_], seeds: range) -> Part:
        return Part(np.concatenate([heard[seed][rows] for seed in seeds]), np.tile(clips.labels[rows], len(seeds)))

    many, few = range(NOISES[0]), range(NOISES[0], sum(NOISES))
    folds = []
    for at in range(GROUPS):
        measures, chooses = group == at, group == (at + 1) % GROUPS
        folds.append(Fold(part(~measures & ~chooses, many), part(chooses, few), part(measures, few)))
    return Task("Speech, loud room", model, suffix, SPEECH_RATES, tuple(folds))
