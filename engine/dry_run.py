"""The dry run: the same made-up features through a version on every machine, before anybody relies on it.

Whoever publishes a version runs it on features that are drawn from nothing but their number, and writes the SHA-256 of
the answers beside it. A device does the same and must find the same: then its parameters, its kernels and its processor
are what they should be. It says nothing about how good the version is.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine.kernels.shuffle import FIRST, GOLDEN, SECOND
from engine.models.scheme import load_params
from engine.train import Deployed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.frame import Frame
    from engine.models.graph import Content

WINDOWS: Final = 16
ONE_BELOW: Final = np.float32(1.0 / 8_388_608)  # 2^-23, exactly


def golden(frame: Frame, params: Content) -> bytes:
    """The SHA-256 of a version's answers to the made-up features, as WIRE.md says. Raises ModelError.

    `params` are those of the version, as scheme.dump_params writes them.
    """
    return golden_of(Deployed(frame.graph_with(load_params(frame.suffix, params)), frame.suffix, batch=WINDOWS), frame)


def golden_of(version: Deployed, frame: Frame) -> bytes:
    """The same of one that is ready to answer."""
    entering = frame.graph.tensors[frame.suffix.entering]
    answers = version.answers(made_up((WINDOWS, *entering.shape[1:]), np.dtype(entering.dtype)))
    return hashlib.sha256(answers.astype(answers.dtype.newbyteorder("<")).tobytes()).digest()


def made_up(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Features [n, ...] that anybody can draw again: splitmix64 (Steele et al. 2014) of seed 0 and their number.

    int8 takes its lowest byte, float32 its upper 24 bits as a number from -1 to below 1, exactly.
    """
    drawn = _splitmix64(math.prod(shape)).reshape(shape)
    if dtype == np.int8:
        return drawn.astype(np.uint8).view(np.int8)
    return (drawn >> np.uint64(40)).astype(np.float32) * ONE_BELOW - np.float32(1.0)


def _splitmix64(count: int) -> NDArray[np.uint64]:
    z = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
