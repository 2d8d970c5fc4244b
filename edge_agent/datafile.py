"""DATA of `edge-agent finetune`: an .npz file, or a folder with one sub-folder of .npy files for each class.

    windows        [n, ...]   float32: real values (pixels 0..255, m/s^2); int8 or uint8: as the model stores them
    labels         int [n]    0 .. classes - 1
    test_windows, test_labels (both or neither)   what measures; else every window whose number `is_held_out` chooses

A folder's classes are its sub-folders in the order of their names, or their numbers where all names are numbers; each
.npy file is one window. Imports NumPy: for commands, never for the agent.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_agent.samples import is_held_out

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

HELD_OUT_RATE: Final = 0.2
STORED: Final = ("int8", "uint8")


class DataFileError(ValueError):
    """DATA cannot be used; the sentence says what, where and how to mend it."""


@dataclass(frozen=True)
class Part:
    """Labelled windows: float32, int8 or uint8 [n, ...], and int32 [n]."""

    windows: NDArray[Any]
    labels: NDArray[np.int32]


@dataclass(frozen=True)
class Data:
    """What trains and what measures; no window is in both. `classes` names the labels, where a folder named them."""

    mine: Part
    test: Part
    classes: tuple[str, ...] = ()


def read(path: Path) -> Data:
    """Read DATA at `path`. Raises DataFileError, one sentence."""
    if path.is_dir():
        whole, classes = _folder(path)
        return _split(whole, path, classes)
    if not zipfile.is_zipfile(path):
        raise DataFileError(f"cannot read {path}: it is no folder and no .npz file; save one with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: np.asarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataFileError(f"cannot read {path} as an .npz file: {error}") from error
    whole = _part(found, "", path)
    if "test_windows" not in found and "test_labels" not in found:
        return _split(whole, path)
    test = _part(found, "test_", path)
    if test.windows.shape[1:] != whole.windows.shape[1:] or test.windows.dtype != whole.windows.dtype:
        raise DataFileError(
            f"test_windows in {path} are {_form(test.windows)} and windows are {_form(whole.windows)}: make them alike"
        )
    return Data(whole, test)


def fitted(windows: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Turn stored `windows` into those of a model whose input is `dtype`; real ones (float32) are left to the engine.

    Between uint8 and int8 all numbers move by 128, as TensorFlow Lite moves its zero-points, so pixels 0..255 may be
    given to an int8 model. A float32 model takes stored numbers for real ones.

    Raises DataFileError for an input that is neither float32, int8 nor uint8.
    """
    if dtype not in ("float32", *STORED):
        raise DataFileError(f"the model's input is {dtype}: a model with int8, uint8 or float32 input is needed")
    if windows.dtype in (np.float32, np.dtype(dtype)):
        return np.ascontiguousarray(windows)
    if dtype == "float32":
        return windows.astype(np.float32)
    return (windows.astype(np.int16) + (-128 if dtype == "int8" else 128)).astype(dtype)


def _part(arrays: dict[str, NDArray[Any]], prefix: str, path: Path) -> Part:
    for name in (f"{prefix}windows", f"{prefix}labels"):
        if name not in arrays:
            raise DataFileError(
                f"{path} has no array {name}: save it with numpy.savez({path.name!r}, windows=..., labels=...)"
            )
    windows, labels = arrays[f"{prefix}windows"], arrays[f"{prefix}labels"]
    if windows.dtype.kind == "f":
        windows = windows.astype(np.float32)
    if (windows.dtype != np.float32 and str(windows.dtype) not in STORED) or windows.ndim < 2 or not len(windows):
        raise DataFileError(
            f"{prefix}windows in {path} are {_form(windows)}: float32, int8 or uint8 [n, ...] are needed"
        )
    if labels.dtype.kind not in "iu" or labels.shape != (len(windows),):
        raise DataFileError(f"{prefix}labels in {path} are {_form(labels)}: {len(windows)} integers are needed")
    if labels.min() < 0 or labels.max() >= 2**31:
        raise DataFileError(f"a label in {path} lies outside 0 .. 2147483647: leave unknown windows out")
    if windows.dtype == np.float32:
        finite = np.isfinite(windows).reshape(len(windows), -1).all(axis=1)
        if not finite.all():
            raise DataFileError(
                f"{prefix}window {int(np.argmin(finite))} of {path} holds NaN or infinity: leave it out"
            )
    return Part(windows, labels.astype(np.int32))


def _folder(path: Path) -> tuple[Part, tuple[str, ...]]:
    names = [entry.name for entry in path.iterdir() if entry.is_dir()]
    numbered = bool(names) and all(name.isdecimal() for name in names)
    names = sorted(names, key=int) if numbered else sorted(names)
    windows: list[NDArray[Any]] = []
    labels: list[int] = []
    for order, name in enumerate(names):
        for file in sorted((path / name).glob("*.npy")):
            windows.append(_window(file))
            labels.append(int(name) if numbered else order)
            if windows[-1].shape != windows[0].shape or windows[-1].dtype != windows[0].dtype:
                raise DataFileError(f"{file} is {_form(windows[-1])}, others are {_form(windows[0])}: make them alike")
    if not windows:
        raise DataFileError(f"{path} holds no .npy file in a sub-folder: make one sub-folder for each class")
    arrays = {"windows": np.stack(windows), "labels": np.array(labels)}
    return _part(arrays, "", path), () if numbered else tuple(names)


def _window(file: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataFileError(f"cannot read {file} as an .npy file: {error}") from error


def _split(whole: Part, path: Path, classes: tuple[str, ...] = ()) -> Data:
    """Set aside what measures: by a hash of each window's number, so the same windows every time."""
    aside = np.array([is_held_out(number, HELD_OUT_RATE) for number in range(1, len(whole.labels) + 1)])
    if aside.all() or not aside.any():
        raise DataFileError(f"{path} has {len(aside)} windows, too few to set some aside: add windows, or test_windows")
    mine, test = (Part(whole.windows[rows], whole.labels[rows]) for rows in (~aside, aside))
    return Data(mine, test, classes)


def _form(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
