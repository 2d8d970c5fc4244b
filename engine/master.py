"""The coordinator's own copy of an int8 model, finer than what it publishes: without it small steps would be lost.

A mean of integer steps is no integer. Rounded to int8 at once, a mean below half a step would vanish in every round,
and the fleet would stand still. So the coordinator keeps a *master* M, int64, in units of 2^-16 of a stored step:

    version 1     M = Q * 2^16                     Q are the numbers of the model file
    a round       M = M + round(step * unit * 2^16), halves to even; weights held to +-127
    published     Q = floor(M / 2^16 + 1/2)        int8 weights, int32 biases: what every device receives

M is kept with its version and backed up, is never sent, and is never made from Q again: what Q lost to rounding is in
M alone. What is kept of it is therefore just that, M - Q * 2^16, two bytes a parameter; with Q it is M, exactly.

A float model's master is what it publishes, float32, and nothing more is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from engine.frame import WEIGHT_MAX
from engine.models.graph import ModelError
from engine.models.scheme import dump_params, load_params

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.frame import Frame

    Master = NDArray[np.int64]

FRACTION_BITS = 16
_HALF = 1 << (FRACTION_BITS - 1)


class Numbers(NamedTuple):
    """A version's numbers as they are kept: `published` for everybody, `remainder` for the coordinator alone."""

    published: bytes  # as scheme.dump_params writes them
    remainder: bytes  # int16 [P], little-endian: M - Q * 2^16; empty in lane 'float32'


def first(frame: Frame, params: NDArray[Any]) -> Numbers:
    """The numbers of version 1: `params` [P] as scheme gives them, a weight of -128 held to -127."""
    if frame.lane == "float32":
        return Numbers(dump_params(frame.suffix, params), b"")
    return write(frame, np.clip(params.astype(np.int64), -frame.limit, frame.limit) << FRACTION_BITS)


def advance(frame: Frame, before: Numbers, step: NDArray[np.float64]) -> tuple[Numbers, int]:
    """The numbers after `step` float64 [P], in wire units (lane 'int8') or real numbers (lane 'float32').

    Returns:
        The next numbers; and how many weights wanted to leave the int8 range and were held in it.

    Raises:
        ModelError: the kept bytes do not belong to this frame, or the result is not finite.
    """
    if not bool(np.isfinite(step).all()):
        raise ModelError("the next parameters are not finite: the learning rate is too large, or an update is")
    if frame.lane == "float32":
        with np.errstate(over="ignore"):  # asked below
            after = (load_params(frame.suffix, before.published) + step.astype(np.float32)).astype(np.float32)
        if not bool(np.isfinite(after).all()):
            raise ModelError("the next parameters are not finite: the learning rate is too large, or an update is")
        return Numbers(dump_params(frame.suffix, after), b""), 0
    wanted = read(frame, before) + _to_fixed(step * frame.unit)
    bound = frame.limit << FRACTION_BITS
    held = np.clip(wanted, -bound, bound)
    return write(frame, held), int(np.count_nonzero((held != wanted) & (frame.limit == WEIGHT_MAX)))


def read(frame: Frame, numbers: Numbers) -> Master:
    """The master, int64 [P] in units of 2^-16 of a stored step. Raises ModelError where the bytes are others."""
    published = load_params(frame.suffix, numbers.published).astype(np.int64)
    if len(numbers.remainder) != 2 * len(published):
        raise ModelError(
            f"the master keeps {len(numbers.remainder)} bytes beside {len(published)} parameters: it is of another "
            "model; restore the store from a backup"
        )
    return (published << FRACTION_BITS) + np.frombuffer(numbers.remainder, dtype="<i2").astype(np.int64)


def write(frame: Frame, master: Master) -> Numbers:
    """What is published of a master, rounded to nearest with halves upwards, and what is kept beside it."""
    published = (master + _HALF) >> FRACTION_BITS
    remainder = (master - (published << FRACTION_BITS)).astype("<i2")
    return Numbers(dump_params(frame.suffix, published.astype(np.int32)), remainder.tobytes())


def _to_fixed(steps: NDArray[np.float64]) -> Master:
    """Round to units of 2^-16; beyond any limit is held first, so that the conversion always has a result."""
    largest = float(2**32)
    fixed: Master = np.rint(np.clip(steps, -largest, largest) * float(1 << FRACTION_BITS)).astype(np.int64)
    return fixed
