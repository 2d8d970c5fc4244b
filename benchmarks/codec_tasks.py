"""The fleets whose updates the codec benchmark codes: five models, all of each trains, data of people or dealt evenly.

    digits 0.98 M   float32, two convolutions and two dense layers from fresh numbers; scikit-learn's digits
    digits          int8, the shipped model; MNIST's digits as 8x8
    ResNet-8        int8, MLPerf Tiny's; negatives of CIFAR-10's pictures
    KWS             int8, MLPerf Tiny's DS-CNN; spoken words in noise as loud as they are
    AD              int8, MLPerf Tiny's autoencoder, which rebuilds five frames of sound; frames of spoken words

Ten devices, four a round, forty rounds. Uneven: a device holds what a few people wrote or said, or labels dealt by
Dirichlet(0.5) where the set knows no people. AD's own data, ToyADMOS, is not to be had here: its microphone hears
people instead of toy cars, as loud on average as the one clip that comes with the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.fleet_tasks import EVEN, Fleet
from engine import frozen, train
from engine.frame import frame_of
from engine.models import scheme
from firmware_sim import data as datasets
from firmware_sim import export, speech
from tests.engine.tiny_tflite import SAME, VALID, Array, Node, model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from engine.frame import Frame
    from firmware_sim.data import Dataset

UNEVEN: Final = 0.5
DEVICES: Final = 10
BATCH: Final = 16
NOISES: Final = 4
AD_FRAMES: Final = 5
AD_BANDS: Final = 128
AD_SPECTRUM: Final = 1024  # samples of a frame; the next begins half of it later


@dataclass(frozen=True)
class Learning:
    """`reset`: what trains starts from fresh numbers. `most`: how many examples a device holds at most."""

    epochs: int
    rate: float
    most: int
    reset: bool = False


@dataclass(frozen=True, eq=False)
class Task:
    """One fleet, in the form that `federation.run` takes; `rebuilds`: the model answers with its own input."""

    name: str
    frame: Frame
    data: Dataset
    alpha: float
    learning: Learning
    rebuilds: bool = False
    per_round: int = 4
    rounds: int = 40

    def fleet(self, seed: int) -> Fleet:
        """Deal the data, and take them through the frozen part."""
        shares = datasets.share(self.data, DEVICES, seed, self.alpha)
        held = {name: self._through(share, self.learning.most) for name, share in shares.devices.items()}
        graph, suffix = self.frame.graph, self.frame.suffix
        first = scheme.reset_params(graph, suffix, seed) if self.learning.reset else scheme.params_of(graph, suffix)
        return Fleet(first, held, self._through(shares.test, 400))

    def recipe(self, seed: int, device: str, round_id: int) -> train.Recipe:
        """How one device trains in one round."""
        return train.Recipe(
            self.learning.epochs, BATCH, self.learning.rate, 0.0, train.mix_seed(seed, device, round_id)
        )

    def _through(self, share: tuple[NDArray[Any], NDArray[Any]], most: int) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = np.random.default_rng(len(share[1])).permutation(len(share[1]))[:most]
        frame, windows = self.frame, np.ascontiguousarray(share[0][rows])
        features = frozen.features(frame.model, frame.graph, frame.suffix, windows)
        if not self.rebuilds:
            return features, share[1][rows]
        return features, train.real_values(frame.graph.tensors[frame.suffix.entering], features).reshape(len(rows), -1)


def tasks(models: Path, data: Path, shipped: Path) -> dict[str, Callable[[bool], Task]]:
    """By name, what makes a task of a model, with data dealt evenly or not. `models` holds mlperf_tiny/."""
    tiny = models / "mlperf_tiny"
    return {
        "digits 0.98 M": lambda even: _digits_large(even=even),
        "digits": lambda even: _digits(shipped, data, even=even),
        "ResNet-8": lambda even: _pictures(tiny, data, even=even),
        "KWS": lambda even: _words(tiny, data, even=even),
        "AD": lambda even: _sounds(tiny, data, even=even),
    }


def _digits_large(*, even: bool) -> Task:
    frame = frame_of(large_digits_model(), "full")
    return Task("digits 0.98 M", frame, datasets.digits(), _alpha(even=even), Learning(2, 0.05, 64, reset=True))


def _digits(shipped: Path, data: Path, *, even: bool) -> Task:
    frame = frame_of((shipped / "digits.tflite").read_bytes(), "full")
    dataset = datasets.read(data / "mnist_test_writers")
    return Task("digits", frame, _evened(dataset, even=even), _alpha(even=even), Learning(2, 0.02, 64))


def _pictures(tiny: Path, data: Path, *, even: bool) -> Task:
    frame = frame_of((tiny / "pretrainedResnet_quant.tflite").read_bytes(), "full")
    parts = export.cifar10(data / "cifar10_3k", "invert", seed=1)
    counts = [len(parts["labels"]), len(parts["test_labels"])]
    dataset = datasets.Dataset(
        "cifar10",
        np.concatenate([parts["windows"], parts["test_windows"]]).astype(np.float32),
        np.concatenate([parts["labels"], parts["test_labels"]]),
        None,
        np.repeat([False, True], counts),
    )
    return Task("ResNet-8", frame, dataset, _alpha(even=even), Learning(1, 0.002, 64))


def _words(tiny: Path, data: Path, *, even: bool) -> Task:
    frame = frame_of((tiny / "kws_ref_model.tflite").read_bytes(), "full")
    clips = speech.read_clips(data / "speech_commands_300")
    heard = [speech.front_end(speech.add_noise(clips, 0.0, seed).samples) for seed in range(NOISES)]
    dataset = datasets.Dataset(
        "speech", np.concatenate(heard), np.tile(clips.labels, NOISES), np.tile(clips.speakers, NOISES)
    )
    return Task("KWS", frame, _evened(dataset, even=even), _alpha(even=even), Learning(1, 0.001, 64))


def _sounds(tiny: Path, data: Path, *, even: bool) -> Task:
    frame = frame_of((tiny / "ad01_int8.tflite").read_bytes(), "full")
    clips = speech.read_clips(data / "speech_commands_300")
    windows = log_mel_windows(clips.samples)
    count = len(windows) // len(clips.labels)
    sample = np.load(tiny / "ad_sample_f32_frames128.npy")
    windows = (windows - windows.mean()) / windows.std() * sample.std() + sample.mean()
    dataset = datasets.Dataset(
        "sounds", windows.astype(np.float32), np.repeat(clips.labels, count), np.repeat(clips.speakers, count)
    )
    return Task("AD", frame, _evened(dataset, even=even), _alpha(even=even), Learning(1, 1e-6, 128), rebuilds=True)


def _alpha(*, even: bool) -> float:
    return EVEN if even else UNEVEN


def _evened(dataset: Dataset, *, even: bool) -> Dataset:
    """The set without its people, if so wished, and a quarter of its rows set aside to measure."""
    if not even:
        return dataset
    is_test = np.random.default_rng(1).random(len(dataset.labels)) < datasets.TEST_PEOPLE_RATE
    return replace(dataset, owners=None, is_test=is_test)


def log_mel_windows(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Windows [n, 640] of clips [c, 16000]: five frames after one another, each 128 mel bands in decibels.

    Frames of 1024 samples every 512 under a Hann window, as the autoencoder's own front end has them; triangles on
    the mel scale of 2595 log10(1 + f / 700) with equal areas, from 0 to 8000 Hz.
    """
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(AD_SPECTRUM) / AD_SPECTRUM)
    top = 2595.0 * np.log10(1.0 + speech.RATE_HZ / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, AD_BANDS + 2) / 2595.0) - 1.0)
    places = np.linspace(0.0, speech.RATE_HZ / 2, AD_SPECTRUM // 2 + 1)[:, np.newaxis]
    rising = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    bands = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (edges[2:] - edges[:-2])
    windows = []
    for clip in samples:
        starts = range(0, len(clip) - AD_SPECTRUM + 1, AD_SPECTRUM // 2)
        frames = np.stack([clip[start : start + AD_SPECTRUM] * hann for start in starts])
        decibels = 10.0 * np.log10(np.square(np.abs(np.fft.rfft(frames))) @ bands + 1e-10)
        windows += [decibels[at : at + AD_FRAMES].ravel() for at in range(len(decibels) - AD_FRAMES + 1)]
    return np.stack(windows)


def large_digits_model() -> bytes:
    """A float32 `.tflite` for windows [8, 8, 1], 979,306 parameters, all of them zero: a fleet draws its own."""

    def zeros(*shape: int) -> Array:
        return Array(shape, "float32", data=np.zeros(shape, np.float32))

    def room(*shape: int) -> Array:
        return Array(shape, "float32")

    flat = Array((2,), "int32", data=np.array([-1, 1024], np.int32))
    tensors = [
        room(1, 8, 8, 1), zeros(32, 3, 3, 1), zeros(32), room(1, 8, 8, 32), zeros(64, 3, 3, 32), zeros(64),
        room(1, 8, 8, 64), room(1, 4, 4, 64), flat, room(1, 1024), zeros(928, 1024), zeros(928), room(1, 928),
        zeros(10, 928), zeros(10), room(1, 10),
    ]  # fmt: skip
    strides = {"stride_width": 1, "stride_height": 1}
    halving = {"padding": VALID, "stride_width": 2, "stride_height": 2, "filter_width": 2, "filter_height": 2}
    operators = [
        Node("CONV_2D", (0, 1, 2), (3,), "RELU", {"padding": SAME} | strides),
        Node("CONV_2D", (3, 4, 5), (6,), "RELU", {"padding": SAME} | strides),
        Node("MAX_POOL_2D", (6,), (7,), "NONE", halving),
        Node("RESHAPE", (7, 8), (9,)),
        Node("FULLY_CONNECTED", (9, 10, 11), (12,), "RELU"),
        Node("FULLY_CONNECTED", (12, 13, 14), (15,)),
    ]
    return model(tensors, operators, [0], [15])
