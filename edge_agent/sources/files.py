"""Samples from a file: an .npz with `x`, float32 windows [n, ...], and `y`, integer labels [n] (-1: not known).

Imports NumPy, so it runs in a command of its own (`edge-agent samples add`) and never in the agent.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edge_agent import samples
from edge_agent.sources.settings import SourceError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Labelled(NamedTuple):
    """What a file holds."""

    windows: NDArray[np.float32]  # [n, ...]
    labels: NDArray[np.int32]  # [n]; -1 is not known


class Added(NamedTuple):
    """What came of it."""

    windows: int
    numbers: tuple[int, int]  # of the first and the last window
    labelled: int  # in the whole store, now


def read_npz(path: Path) -> Labelled:
    """Read and check the file. Without `y` every label is -1. Raises SourceError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            windows = np.asarray(arrays["x"])
            labels = np.asarray(arrays["y"]) if "y" in arrays.files else np.full(len(windows), samples.UNKNOWN)
    except KeyError as error:
        raise SourceError(
            f"{path} has no array x: save it with numpy.savez({path.name!r}, x=windows, y=labels)"
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"cannot read {path} as an .npz file: {error}") from error
    if windows.dtype.kind != "f" or windows.ndim < 2 or len(windows) == 0:
        raise SourceError(f"x in {path} is {windows.dtype} {windows.shape}: float32 windows [n, ...] are needed")
    if labels.dtype.kind not in "iu" or labels.shape != (len(windows),):
        raise SourceError(f"y in {path} is {labels.dtype} {labels.shape}: {len(windows)} integers are needed")
    if labels.min() < samples.UNKNOWN or labels.max() > samples.LABEL_MAX:
        raise SourceError(f"a label in {path} lies outside {samples.UNKNOWN} .. {samples.LABEL_MAX}")
    finite = np.isfinite(windows).reshape(len(windows), -1).all(axis=1)
    if not finite.all():
        raise SourceError(f"window {int(np.argmin(finite))} of {path} holds NaN or infinity: leave it out")
    return Labelled(np.ascontiguousarray(windows, dtype="<f4"), labels.astype(np.int32))


def add_npz(path: Path, store: Path, capacity: int) -> Added:
    """Append what `path` holds to the sample store, which is made if need be. Raises SourceError, SamplesError."""
    source = read_npz(path)
    kept = samples.create(store, source.windows.shape[1:], capacity)
    numbers = kept.extend([window.tobytes() for window in source.windows], [int(label) for label in source.labels])
    kept.sync()
    return Added(len(numbers), (numbers[0], numbers[-1]), kept.count_labelled())
