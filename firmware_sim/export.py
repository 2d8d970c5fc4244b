"""Real data as one file for `edge-agent finetune`: windows that train, windows that measure, and a change of scene.

A shipped model was trained on clean data; a device sees its own. A *shift* makes the difference on purpose, the same
for both parts, so that what fine-tuning gains back can be measured:

    contrast   pictures of low contrast, brighter, with sensor noise      rot90    a camera mounted on its side
    invert     negatives                                                   noise    a loud room around each word

The file is an .npz with `windows`, `labels`, `test_windows` and `test_labels`; no window is in both parts. Of
pictures the test is the set's own; of speech it is speakers whom training never hears.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from firmware_sim import speech
from firmware_sim.data import CIFAR_LABELS, DataError, read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

PICTURE_SHIFTS: Final = ("contrast", "rot90", "invert")
SPEECH_SHIFTS: Final = ("noise",)
CONTRAST: Final = (0.6, 100.0, 8.0)  # factor around 128, new middle, standard deviation of the noise
NOISE_SNR_DB: Final = 0.0  # as loud as the word
NOISE_COPIES: Final = 4  # a training clip is heard this often, each time in other noise


def cifar10(directory: Path, shift: str | None, seed: int) -> Arrays:
    """CIFAR-10's training and test pictures, uint8 [n, 32, 32, 3], with one of PICTURE_SHIFTS or none.

    Raises DataError where `directory` holds no CIFAR-10, or for another shift.
    """
    if not (directory / CIFAR_LABELS).is_file():
        raise DataError(f"{directory} holds no {CIFAR_LABELS}: --data takes the folder of the CIFAR-10 sample")
    dataset = read(directory)
    assert dataset.is_test is not None, "CIFAR-10 knows its test rows"
    pictures = dataset.windows.astype(np.uint8)
    parts: Arrays = {}
    for name, rows, chance in (("", ~dataset.is_test, seed), ("test_", dataset.is_test, seed + 1)):
        parts[f"{name}windows"] = shift_pictures(pictures[rows], shift, chance)
        parts[f"{name}labels"] = dataset.labels[rows]
    return parts


def speech_commands(directory: Path, shift: str | None, speakers: int, seed: int) -> Arrays:
    """Windows of spoken words, float32 [n, 49, 10, 1]; all clips of `speakers` speakers measure, the others train.

    Raises DataError where `directory` holds no Speech Commands, for another shift, or too many speakers.
    """
    if shift not in (None, *SPEECH_SHIFTS):
        raise DataError(f"speech cannot be shifted by {shift}: choose {', '.join(SPEECH_SHIFTS)}")
    clips = speech.read_clips(directory)
    measures = speech.measuring_speakers(clips, speakers, seed)
    mine, test = clips.take(~measures), clips.take(measures)
    copies = (
        [mine] if shift is None else [speech.add_noise(mine, NOISE_SNR_DB, seed + at) for at in range(NOISE_COPIES)]
    )
    heard = test if shift is None else speech.add_noise(test, NOISE_SNR_DB, seed + NOISE_COPIES)
    return {
        "windows": np.concatenate([speech.front_end(copy.samples) for copy in copies]),
        "labels": np.tile(mine.labels, len(copies)),
        "test_windows": speech.front_end(heard.samples),
        "test_labels": test.labels,
    }


def shift_pictures(pictures: NDArray[np.uint8], shift: str | None, seed: int) -> NDArray[np.uint8]:
    """`pictures` uint8 [n, height, width, 3] as another camera sees them. Raises DataError for an unknown shift."""
    known: dict[str | None, Callable[[], NDArray[np.uint8]]] = {
        None: lambda: pictures,
        "contrast": lambda: _contrast(pictures, seed),
        "rot90": lambda: np.ascontiguousarray(np.rot90(pictures, 1, (1, 2))),
        "invert": lambda: np.uint8(255) - pictures,
    }
    if shift not in known:
        raise DataError(f"pictures cannot be shifted by {shift}: choose {', '.join(PICTURE_SHIFTS)}")
    return known[shift]()


def write(path: Path, arrays: Arrays) -> str:
    """Write `arrays` to `path`, compressed, and return one line that says what is there. Raises DataError."""
    try:
        with path.open("wb") as file:  # an open file: NumPy would add .npz to a name without it
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    trains, measures = len(arrays["labels"]), len(arrays["test_labels"])
    shape = "x".join(map(str, arrays["windows"].shape[1:]))
    return f"wrote {path}: {trains} windows of {shape} to train on, {measures} to measure with"


def _contrast(pictures: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    factor, middle, deviation = CONTRAST
    noise = np.random.default_rng(seed).normal(0.0, deviation, pictures.shape)
    changed = (pictures.astype(np.float32) - 128.0) * factor + middle + noise
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)
