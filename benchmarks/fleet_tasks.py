"""The fleets that benchmarks teach: which model, whose data, how a device trains.

    digits      the shipped model's two dense layers, made anew; MNIST's digits as 8x8, labels dealt by Dirichlet(0.5)
                (`digits-iid`: dealt evenly); 100 devices
    writers     a small convolution of 103,018 parameters that knows nothing, all of it trains; MNIST's digits as
                they are, 28x28, each device holds what a few writers wrote; 100 devices
    wisdm       the shipped wrist model's two dense layers, whose head knows nothing; each device is one person who
                wears a watch, six activities; 20 devices
    resnet8     ResNet-8's last two blocks; negatives of CIFAR-10's pictures, labels dealt by Dirichlet(0.5); 20 devices

What a device holds has already been through the frozen part, as `edge-agent` caches it. The rows that measure are
nobody's: other writers, later minutes of the same people, the sets' own test rows.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.fresh_model import fresh_convolution
from engine import frozen, train
from engine.frame import frame_of
from engine.models import scheme
from firmware_sim import export
from firmware_sim.data import MNIST_FILES, Dataset, read, share

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from engine.frame import Frame

    Example = tuple[NDArray[Any], NDArray[np.int32]]  # features as stored at the cut [n, ...], labels [n]

BATCH: Final = 16
EVEN: Final = 1e6  # a Dirichlet distribution that deals labels evenly
CALIBRATION_ROWS: Final = 256


@dataclass(frozen=True)
class Learning:
    """What a device does with its share in a round."""

    epochs: int
    rate: float
    batch: int = BATCH


@dataclass(frozen=True, eq=False)
class Task:
    """One fleet to teach. `data.windows` are features, as they are stored at the cut of `frame`.

    With `reset` the part that trains starts from fresh numbers, drawn by the run's seed; else from the file's own.
    """

    name: str
    frame: Frame
    data: Dataset
    reset: bool
    devices: int
    per_round: int
    rounds: int
    learning: Learning
    alpha: float = 0.5  # of the Dirichlet distribution, where the data know no people

    def fleet(self, seed: int, devices: int = 0) -> Fleet:
        """Deal the data to the task's devices, or to as many as wished, and draw the first parameters."""
        shares = share(self.data, devices or self.devices, seed, self.alpha)
        frame = self.frame
        params = (
            scheme.reset_params(frame.graph, frame.suffix, seed)
            if self.reset
            else scheme.params_of(frame.graph, frame.suffix)
        )
        return Fleet(params, dict(shares.devices), shares.test)

    def recipe(self, seed: int, device: str, round_id: int) -> train.Recipe:
        """The recipe of one device in one round."""
        learning = self.learning
        return train.Recipe(learning.epochs, learning.batch, learning.rate, 0.0, train.mix_seed(seed, device, round_id))


@dataclass(frozen=True, eq=False)
class Fleet:
    """What one seed makes of a task: first parameters [P], what each device holds, and what measures."""

    params: NDArray[Any]
    held: dict[str, Example]
    test: Example


def build(name: str, models: Path, data: Path, shipped: Path) -> Task:
    """Give the task `name`, one of NAMES. `models` holds mlperf_tiny/, `data` the sets, `shipped` our own models."""
    return _MAKERS[name](models, data, shipped)


def _digits(alpha: float) -> Any:
    def make(_models: Path, data: Path, shipped: Path) -> Task:
        dataset = replace(read(data / "mnist_test_writers"), owners=None)
        order = np.random.default_rng(1).permutation(len(dataset.labels))
        dataset = replace(dataset, is_test=np.isin(np.arange(len(order)), order[: len(order) // 4]))
        frame = frame_of((shipped / "digits.tflite").read_bytes(), "last-2")
        name = "digits" if alpha < EVEN else "digits-iid"
        return Task(name, frame, _features(frame, dataset), True, 100, 10, 200, Learning(5, 0.05), alpha)

    return make


def _writers(_models: Path, data: Path, _shipped: Path) -> Task:
    folder = data / "mnist_test_writers"
    pixels = np.frombuffer(gzip.decompress((folder / MNIST_FILES[0]).read_bytes()), np.uint8, offset=16)
    windows = pixels.reshape(-1, 28, 28, 1).astype(np.float32) / np.float32(255.0)
    dataset = replace(read(folder), windows=windows)
    frame = frame_of(fresh_convolution(windows[:CALIBRATION_ROWS], classes=10), "full")
    return Task("writers", frame, _features(frame, dataset), False, 100, 10, 200, Learning(2, 0.1))


def _wisdm(_models: Path, data: Path, shipped: Path) -> Task:
    frame = frame_of((shipped / "wrist.tflite").read_bytes(), "last-2")
    dataset = read(data / "wisdm51_raw_part1")
    return Task("wisdm", frame, _features(frame, dataset), True, 20, 10, 200, Learning(4, 0.005))


def _resnet8(models: Path, data: Path, _shipped: Path) -> Task:
    frame = frame_of((models / "mlperf_tiny/pretrainedResnet_quant.tflite").read_bytes(), "blocks-2")
    parts = export.cifar10(data / "cifar10_3k", "invert", seed=1)
    dataset = Dataset(
        "cifar10", np.concatenate([parts["windows"], parts["test_windows"]]).astype(np.float32),
        np.concatenate([parts["labels"], parts["test_labels"]]), None,
        np.repeat([False, True], [len(parts["labels"]), len(parts["test_labels"])]),
    )  # fmt: skip
    return Task("resnet8", frame, _features(frame, dataset), False, 20, 10, 100, Learning(1, 0.004))


def _features(frame: Frame, dataset: Dataset) -> Dataset:
    return replace(dataset, windows=frozen.features(frame.model, frame.graph, frame.suffix, dataset.windows))


_MAKERS: Final = {
    "digits": _digits(0.5), "digits-iid": _digits(EVEN), "writers": _writers, "wisdm": _wisdm, "resnet8": _resnet8,
}  # fmt: skip
NAMES: Final = tuple(_MAKERS)
