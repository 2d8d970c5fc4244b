"""Real data for a simulated fleet: published sets as they are published, split into private shares.

    load_digits, MNIST with writers, WISDM-51, CIFAR-10, Speech Commands
        --read-->  Dataset  --share-->  Shares  --write-->  .npz

No set is shipped: scikit-learn brings the digits, the others are read from a folder that the user names, and which
set it is shows from the files' names. What makes a share private is the split. Where the set knows people, a device
is a person, or a few of them; where it does not, the labels are dealt unevenly by a Dirichlet distribution (Hsu, Qi,
Brown 2019, arXiv:1909.06335). The rows that measure are never in a share.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from firmware_sim.models.split import digits_split

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Examples = tuple[NDArray[np.float32], NDArray[np.int32]]

ALPHA: Final = 0.5
EXAMPLES_MIN: Final = 10  # what the poorest device gets
TEST_PEOPLE_RATE: Final = 0.25
TEST_TIME_RATE: Final = 0.25
WISDM_ROWS: Final = 200  # 10 s at 20 Hz
WISDM_ACTIVITIES: Final = "ABCDEG"  # walking, jogging, stairs, sitting, standing, brushing teeth
MNIST_FILES: Final = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "qmnist-test-labels-idx2-int.gz")
WISDM_FILES: Final = "wisdm51_watch_accel_raw_*.npz"
CIFAR_IMAGES: Final = "cifar10_batch_*.png"
CIFAR_LABELS: Final = "cifar10_labels.js"
CIFAR_TEST_BATCH: Final = 50  # batches 0-49 are CIFAR-10's training rows in order, 50 the first 1000 test rows


class DataError(ValueError):
    """Data that cannot be read, or not be split as wished; the sentence says what and how to mend."""


@dataclass(frozen=True)
class Dataset:
    """Labelled windows: `windows` float32 [n, *shape], `labels` int32 [n] from 0.

    `owners` names the person behind each row, or is None where the set knows none. `is_test` marks the rows that
    the set itself keeps for measuring, or is None where `share` has to choose them.
    """

    name: str
    windows: NDArray[np.float32]
    labels: NDArray[np.int32]
    owners: NDArray[np.str_] | None = None
    is_test: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Shares:
    """What each device holds, and what nobody holds: device id → (windows, labels), and the test's pair."""

    devices: dict[str, Examples]
    test: Examples

    def write(self, directory: Path) -> None:
        """Write `<device id>.npz` for each device and `test.npz`, with arrays x float32 and y int32."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, (windows, labels) in {**self.devices, "test": self.test}.items():
            np.savez_compressed(directory / f"{name}.npz", x=windows, y=labels)

    def fleet(self) -> Examples:
        """All shares in one place: what federated learning does without, and a baseline may use."""
        shares = list(self.devices.values())
        return np.concatenate([x for x, _ in shares]), np.concatenate([y for _, y in shares])


def digits() -> Dataset:
    """scikit-learn's handwritten digits without the rows that taught the shipped model: 8x8x1 in 0..1, 10 classes."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    rows = digits_split()
    chosen = np.concatenate([rows["fleet"], rows["test"]])
    windows = (bunch.images[chosen] / 16.0).astype(np.float32)[..., np.newaxis]
    is_test = np.arange(len(chosen)) >= len(rows["fleet"])
    return Dataset("digits", windows, bunch.target[chosen].astype(np.int32), None, is_test)


def read(directory: Path) -> Dataset:
    """Read the set in `directory`, recognised by its files' names. Raises DataError, one line, if there is none."""
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder: --data takes the folder that holds a data set's files")
    for pattern, reader in _readers():
        if next(directory.glob(pattern), None) is not None:
            return reader(directory)
    looked_for = ", ".join(pattern for pattern, _ in _readers())
    raise DataError(f"{directory} holds no data set that is known here: looked for {looked_for}")


def share(dataset: Dataset, devices: int, seed: int, alpha: float = ALPHA) -> Shares:
    """Split `dataset` among `devices`: by person where people are known, else Dirichlet(`alpha`) over labels.

    The same arguments give the same shares. Raises DataError when there are too few people or rows.
    """
    if devices < 1 or not 0.0 < alpha < float("inf"):
        raise DataError(f"cannot split data among {devices} devices with alpha {alpha}: both must be above 0")
    chance = np.random.default_rng(seed)
    is_test = dataset.is_test if dataset.is_test is not None else _test_people(dataset, chance)
    rows = np.flatnonzero(~is_test)
    if dataset.owners is not None:
        parts = _by_person(rows, dataset.owners, devices, chance)
    else:
        parts = _by_label(rows, dataset.labels, devices, chance, alpha)
    width = max(2, len(str(devices)))
    ids = [f"device-{number:0{width}}" for number in range(1, devices + 1)]
    held = {device: _take(dataset, np.sort(part)) for device, part in zip(ids, parts, strict=True)}
    return Shares(held, _take(dataset, np.flatnonzero(is_test)))


def _take(dataset: Dataset, rows: NDArray[np.intp]) -> Examples:
    return np.ascontiguousarray(dataset.windows[rows]), dataset.labels[rows]


def _test_people(dataset: Dataset, chance: np.random.Generator) -> NDArray[np.bool_]:
    """A quarter of the people measure, whole: the others have never seen their handwriting."""
    assert dataset.owners is not None, "a reader marks the test rows, or names the people"
    people = np.unique(dataset.owners)
    chosen = chance.permutation(people)[: round(TEST_PEOPLE_RATE * len(people))]
    return np.isin(dataset.owners, chosen)


def _by_person(
    rows: NDArray[np.intp], owners: NDArray[np.str_], devices: int, chance: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Deal the people out in an order drawn by lot, each to the device that holds the fewest people, then rows."""
    people, counts = np.unique(owners[rows], return_counts=True)
    if devices > len(people):
        raise DataError(f"{devices} devices are too many: the data comes from {len(people)} people, one a device")
    held: list[list[str]] = [[] for _ in range(devices)]
    size = [0] * devices
    for index in chance.permutation(len(people)):
        poorest = min(range(devices), key=lambda device: (len(held[device]), size[device]))
        held[poorest].append(str(people[index]))
        size[poorest] += int(counts[index])
    return [rows[np.isin(owners[rows], names)] for names in held]


def _by_label(
    rows: NDArray[np.intp], labels: NDArray[np.int32], devices: int, chance: np.random.Generator, alpha: float
) -> list[NDArray[np.intp]]:
    """Deal each label by shares drawn from Dirichlet(alpha); then the richest give until nobody starves."""
    if len(rows) < devices * EXAMPLES_MIN:
        raise DataError(f"{len(rows)} examples are too few for {devices} devices: each needs {EXAMPLES_MIN}")
    parts: list[list[int]] = [[] for _ in range(devices)]
    for label in np.unique(labels[rows]):
        mine = chance.permutation(rows[labels[rows] == label])
        cuts = (np.cumsum(chance.dirichlet(np.full(devices, alpha)))[:-1] * len(mine)).astype(np.intp)
        for part, piece in zip(parts, np.split(mine, cuts), strict=True):
            part.extend(piece.tolist())
    while len(poorest := min(parts, key=len)) < EXAMPLES_MIN:
        richest = max(parts, key=len)
        poorest.append(richest.pop(int(chance.integers(len(richest)))))
    return [np.array(part, dtype=np.intp) for part in parts]


def _readers() -> list[tuple[str, Callable[[Path], Dataset]]]:
    from firmware_sim.speech import SPEECH_FILES, read_speech

    return [(MNIST_FILES[0], _mnist), (WISDM_FILES, _wisdm), (CIFAR_LABELS, _cifar), (SPEECH_FILES, read_speech)]


def _mnist(directory: Path) -> Dataset:
    """MNIST's 10,000 test digits with the writers of QMNIST, made as small as the shipped model: 8x8x1 in 0..1.

    28x28 is padded to 32x32 and averaged in blocks of 4x4, which is how the optdigits of scikit-learn were made
    (from bitmaps). QMNIST's first 10,000 rows are the same digits in the same order; column 2 is the writer.
    """
    images, labels, extended = (_idx(directory, name) for name in MNIST_FILES)
    rows = len(labels)
    if len(images) != rows or len(extended) < rows or not np.array_equal(extended[:rows, 0], labels):
        raise DataError(f"{directory}: the images, labels and writers are not of the same digits; fetch them again")
    padded = np.pad(images.astype(np.float32) / 255.0, ((0, 0), (2, 2), (2, 2)))
    windows = padded.reshape(rows, 8, 4, 8, 4).mean(axis=(2, 4), dtype=np.float32)[..., np.newaxis]
    owners = np.array([f"writer-{writer}" for writer in extended[:rows, 2]])
    return Dataset("mnist-writers", windows, labels.astype(np.int32), owners)


def _idx(directory: Path, name: str) -> NDArray[Any]:
    """Read one gzipped idx file: two zero bytes, a type, the number of dimensions, each size, then the numbers."""
    path = directory / name
    try:
        data = gzip.decompress(path.read_bytes())
        kind: np.dtype[Any] = np.dtype({8: "u1", 12: ">i4"}[data[2]])
        start = 4 + 4 * data[3]
        shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
        return np.frombuffer(data, kind, offset=start).reshape(shape)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: the set needs {', '.join(MNIST_FILES)}") from error
    except (OSError, EOFError, IndexError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a gzipped idx file ({error}); fetch it again") from error


def _wisdm(directory: Path) -> Dataset:
    """WISDM-51's raw smartwatch accelerometer: windows of 10 s, [200, 1, 3] in m/s^2, six activities.

    Windows do not overlap, and are in the order of time for each person and activity: the last quarter of each
    measures, so the test is later than all training.
    """
    path = min(directory.glob(WISDM_FILES))
    try:
        with np.load(path) as arrays:
            subject, activity, xyz = (arrays[name] for name in ("subject", "activity", "xyz"))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} does not hold the arrays subject, activity and xyz ({error})") from error
    pieces, labels, owners, is_test = [], [], [], []
    for person in np.unique(subject):
        for label, letter in enumerate(WISDM_ACTIVITIES):
            rows = np.flatnonzero((subject == person) & (activity == ord(letter)))
            count = len(rows) // WISDM_ROWS
            pieces.append(xyz[rows[: count * WISDM_ROWS]].reshape(count, WISDM_ROWS, 1, 3))
            labels += [label] * count
            owners += [f"person-{person}"] * count
            is_test += [at >= count - round(TEST_TIME_RATE * count) for at in range(count)]
    windows = np.concatenate(pieces).astype(np.float32)
    return Dataset("wisdm-watch", windows, np.array(labels, np.int32), np.array(owners), np.array(is_test))


def _cifar(directory: Path) -> Dataset:
    """CIFAR-10 as ConvNetJS publishes it: PNGs of 1000 rows of 1024 pixels; 32x32x3 in 0..255, 10 classes."""
    from PIL import Image

    text = (directory / CIFAR_LABELS).read_text(encoding="ascii")
    labels = np.array(json.loads(text[text.index("[") : text.rindex("]") + 1]), dtype=np.int32)
    batches = sorted((int(path.stem.rpartition("_")[2]), path) for path in directory.glob(CIFAR_IMAGES))
    if not batches or batches[0][0] == CIFAR_TEST_BATCH or batches[-1][0] != CIFAR_TEST_BATCH:
        raise DataError(
            f"{directory} needs cifar10_batch_{CIFAR_TEST_BATCH}.png, which measures, and at least one other batch"
        )
    pieces, rows = [], []
    for number, path in batches:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32).reshape(-1, 32, 32, 3)
        pieces.append(pixels)
        rows.append(np.arange(number * 1000, number * 1000 + len(pixels)))
    order = np.concatenate(rows)
    return Dataset("cifar10", np.concatenate(pieces), labels[order], None, order >= CIFAR_TEST_BATCH * 1000)
