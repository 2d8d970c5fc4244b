"""A whole fleet that adapts: int8 devices and a fixed-point master against float32 devices and a float32 mean.

Everything an update goes through is real: whole steps, units, the payload's bytes, the exact sum, the master. Nothing
is left out of an update, so that what is compared is the arithmetic. Both fleets see the same data in the same order.

    digits    the shipped model's dense head, reset; MNIST digits as 8x8, labels dealt by Dirichlet(0.5)
    CIFAR-10  ResNet-8's last two blocks; negatives of the pictures, labels dealt by Dirichlet(0.5)
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.float_twin import float_twin
from engine import frozen, master, ring, train
from engine.codec import payload, residual
from engine.frame import frame_of
from engine.models import scheme
from firmware_sim import export
from firmware_sim.data import Dataset, read, share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from engine.frame import Frame
    from firmware_sim.data import Shares

    Example = tuple[NDArray[Any], NDArray[np.int32]]

SEEDS: Final = (1, 2, 3)
BATCH: Final = 16
ALPHA: Final = 0.5


@dataclass(frozen=True)
class Setting:
    """One fleet: how many devices, their learning rate, how many rounds of one epoch each."""

    name: str
    train: str
    devices: int
    rate: float
    rounds: int


DIGITS: Final = (
    Setting("digits, 20 devices, rate 0.05", "last-2", 20, 0.05, 20),
    Setting("digits, 100 devices, rate 0.02", "last-2", 100, 0.02, 20),
    Setting("digits, 20 devices, rate 0.005", "last-2", 20, 0.005, 20),
)
PICTURES: Final = Setting("CIFAR-10 invert, 20 devices, rate 0.002", "blocks-2", 20, 0.002, 10)


def run(models: Path, data: Path, digits_model: bytes, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run every setting; give one row each, with the accuracy after every round, mean over SEEDS."""
    writers = replace(read(data / "mnist_test_writers"), owners=None)
    order = np.random.default_rng(1).permutation(len(writers.labels))
    digits = replace(writers, is_test=np.isin(np.arange(len(order)), order[: len(order) // 4]))
    rows = [_setting(setting, frame_of(digits_model, setting.train), digits, tell, reset=True) for setting in DIGITS]
    resnet = (models / "mlperf_tiny/pretrainedResnet_quant.tflite").read_bytes()
    arrays = export.cifar10(data / "cifar10_3k", "invert", seed=1)
    pictures = Dataset(
        "cifar10", np.concatenate([arrays["windows"], arrays["test_windows"]]).astype(np.float32),
        np.concatenate([arrays["labels"], arrays["test_labels"]]), None,
        np.repeat([False, True], [len(arrays["labels"]), len(arrays["test_labels"])]),
    )  # fmt: skip
    return [*rows, _setting(PICTURES, frame_of(resnet, PICTURES.train), pictures, tell, reset=False)]


def _setting(
    setting: Setting, frame: Frame, data: Dataset, tell: Callable[[str], None], *, reset: bool
) -> dict[str, Any]:
    curves: dict[str, list[list[float]]] = {"int8": [], "float": []}
    for seed in SEEDS:
        shares = share(data, setting.devices, seed, ALPHA)
        params = scheme.reset_params(frame.graph, frame.suffix, seed) if reset else _own(frame)
        curves["int8"].append(_int8(setting, frame, shares, params, seed))
        curves["float"].append(_float(setting, frame, shares, params, seed))
        tell(f"{setting.name}, seed {seed}: int8 {curves['int8'][-1][-1]:.3f}, float {curves['float'][-1][-1]:.3f}")
    means = {lane: [statistics.mean(at) for at in zip(*found, strict=True)] for lane, found in curves.items()}
    return {
        "setting": setting.name, "devices": setting.devices, "rate": setting.rate, "rounds": setting.rounds,
        "curves": means, "accuracy": {lane: curve[-1] for lane, curve in means.items()},
        "scores": {lane: [curve[-1] for curve in found] for lane, found in curves.items()},
        "int8_over_float": means["int8"][-1] / means["float"][-1],
    }  # fmt: skip


def _own(frame: Frame) -> NDArray[Any]:
    return scheme.params_of(frame.graph, frame.suffix)


def _int8(setting: Setting, frame: Frame, shares: Shares, params: NDArray[Any], seed: int) -> list[float]:
    """The product's own way: published int8 → steps → payload → exact sum → master. Accuracy after each round."""
    held, test = _features(frame, shares)
    numbers = master.first(frame, params)
    owed = dict.fromkeys(held, residual.nothing_owed(frame))
    size, found = frame.suffix.num_params, []
    everything = residual.Sending(size, value_bits=0, coding="rice", clip_norm=math.inf)
    for number in range(setting.rounds):
        published = scheme.load_params(frame.suffix, numbers.published)
        graph, updates = frame.graph_with(published), []
        for device, (features, labels) in held.items():
            recipe = _recipe(setting, seed, device, number)
            local = train.fine_tune(graph, frame.suffix, features, labels, recipe).params
            sent = residual.step(local.astype(np.int64) - published, owed[device], frame, everything, number + 1)
            owed[device] = sent.owed
            update = payload.decode(sent.payload, frame.shapes, lane="int8", k_max=size, coding="rice")
            updates.append(ring.Member((device, number), update, len(labels)))
        step = ring.mean_step(ring.add_all(ring.empty(ring.Purpose(size, "int8")), updates), 1.0)
        numbers = master.advance(frame, numbers, step, publish_max=size).numbers
        now = frame.graph_with(scheme.load_params(frame.suffix, numbers.published))
        found.append(_accuracy(train.evaluate(now, frame.suffix, *test)))
    return found


def _float(setting: Setting, frame: Frame, shares: Shares, params: NDArray[Any], seed: int) -> list[float]:
    """The same fleet in float32, from the same start: a mean of float32 deltas, added to a float32 model."""
    held, test = _features(frame, shares)
    twin = float_twin(frame.graph_with(params))
    suffix = scheme.resolve(twin, setting.train)
    entering = frame.graph.tensors[frame.suffix.entering]
    base = scheme.params_of(twin, suffix)
    held = {device: (train.real_values(entering, features), labels) for device, (features, labels) in held.items()}
    test = train.real_values(entering, test[0]), test[1]
    weight, found = sum(len(labels) for _, labels in held.values()), []
    for number in range(setting.rounds):
        graph = train.with_constants(twin, scheme.constants_of(twin, suffix, base))
        mean = np.zeros(suffix.num_params)
        for device, (features, labels) in held.items():
            local = train.fine_tune(graph, suffix, features, labels, _recipe(setting, seed, device, number)).params
            mean += (local.astype(np.float64) - base) * (len(labels) / weight)
        base = (base + mean).astype(np.float32)
        now = train.with_constants(twin, scheme.constants_of(twin, suffix, base))
        found.append(_accuracy(train.evaluate(now, suffix, *test)))
    return found


def _features(frame: Frame, shares: Shares) -> tuple[dict[str, Example], Example]:
    def through(example: Example) -> Example:
        return frozen.features(frame.model, frame.graph, frame.suffix, example[0]), example[1]

    return {device: through(example) for device, example in shares.devices.items()}, through(shares.test)


def _recipe(setting: Setting, seed: int, device: str, number: int) -> train.Recipe:
    return train.Recipe(1, BATCH, setting.rate, 0.0, train.mix_seed(seed, device, number))


def _accuracy(score: train.Score) -> float:
    return score.correct / score.count


def smallest(rows: Sequence[dict[str, Any]]) -> float:
    """The worst of all settings: accuracy of the int8 fleet over that of the float fleet."""
    return min(row["int8_over_float"] for row in rows)
