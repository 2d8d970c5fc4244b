"""The coordinator's own copy of a model, finer than what it publishes, so that a version costs little to send.

Two things would be lost without it. A mean of integer steps is no integer: rounded at once, a mean below half a step
would vanish in every round, and the fleet would stand still. And a round moves nearly every parameter a little, while
a device pays for each one that it must be told. So the coordinator keeps a *master* and publishes of its movement only
what is worth a device's bytes: whole units, the largest first, at most so many parameters a version. What is held back
stays owed and is published by a later version: error feedback, as devices do it (Tang et al. 2019, DoubleSqueeze).

Lane 'int8': the master M is int64, in units of 2^-16 of a stored step; Q is what devices have.

    version 1     M = Q * 2^16                     Q are the numbers of the model file
    a round       M = M + round(step * unit * 2^16), halves to even; weights held to +-127
    owed          R = M - Q * 2^16
    published     Q = Q + unit * c,  c = floor(R / (unit * 2^16) + 1/2) for the largest |R| * scale, else 0

Lane 'float32': the master is float32. What is published are floats whose lower 16 bits are zero (bfloat16), version 1
included, so that two versions differ in whole multiples of 2^16 of the bit pattern, and a patch carries half of it.

    a round       M = M + step
    published     Q = M rounded to its upper 16 bits, halves to even, for the largest |M - Q|, else Q

M is kept with its version and backed up, is never sent, and is never made from Q again: what Q lost is in M alone.
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
    Floats = NDArray[np.float32]

FRACTION_BITS = 16
_HALF = 1 << (FRACTION_BITS - 1)
_NOT_FINITE = "the next parameters are not finite: the learning rate is too large, or an update is"


class Numbers(NamedTuple):
    """A version's numbers as they are kept: `published` for everybody, `remainder` for the coordinator alone."""

    published: bytes  # as scheme.dump_params writes them
    remainder: bytes  # int8: R, int32 of the weights, then int64 of the biases; float32: M, float32 [P]. Little-endian


class Advanced(NamedTuple):
    """A version's numbers, and how many weights wanted to leave the int8 range and were held in it."""

    numbers: Numbers
    held_count: int


def first(frame: Frame, params: NDArray[Any]) -> Numbers:
    """The numbers of version 1: `params` [P] as scheme gives them, a weight of -128 held to -127. Raises ModelError."""
    if frame.lane == "float32":
        whole = params.astype(np.float32)
        return Numbers(dump_params(frame.suffix, _upper(whole)), whole.astype("<f4").tobytes())
    return write(frame, np.clip(params.astype(np.int64), -frame.limit, frame.limit) << FRACTION_BITS)


def advance(frame: Frame, before: Numbers, step: NDArray[np.float64], *, publish_max: int) -> Advanced:
    """The numbers after `step` float64 [P], in wire units (lane 'int8') or real numbers (lane 'float32').

    At most `publish_max` of the published parameters are others than before; of equal debts the lowest index is paid.

    Raises:
        ModelError: the kept bytes do not belong to this frame, or the result is not finite.
    """
    if not bool(np.isfinite(step).all()):
        raise ModelError(_NOT_FINITE)
    if frame.lane == "float32":
        return Advanced(_advance_floats(frame, before, step, publish_max), 0)
    wanted = read(frame, before) + _to_fixed(step * frame.unit)
    bound = frame.limit << FRACTION_BITS
    held = np.clip(wanted, -bound, bound)
    published = load_params(frame.suffix, before.published).astype(np.int64)
    owed, unit = held - (published << FRACTION_BITS), frame.unit.astype(np.int64)
    change = (owed + unit * _HALF) // (unit << FRACTION_BITS)
    # a whole unit up or down may not fit any more into the 32 bits of a bias
    change = np.clip(change, -((frame.limit + published) // unit), (frame.limit - published) // unit)
    moved = np.flatnonzero(change)
    paid = _largest(moved, np.abs(owed[moved]) * frame.scale[moved].astype(np.float64), publish_max)
    published[paid] += change[paid] * unit[paid]
    held_count = int(np.count_nonzero((held != wanted) & _is_weight(frame)))
    return Advanced(_numbers(frame, published, held), held_count)


def read(frame: Frame, numbers: Numbers) -> Master:
    """The master of an int8 model, int64 [P] in units of 2^-16 of a stored step. ModelError for other bytes."""
    published = load_params(frame.suffix, numbers.published).astype(np.int64)
    weights = _is_weight(frame)
    split = 4 * int(np.count_nonzero(weights))
    _check_kept(numbers, split + 8 * int(np.count_nonzero(~weights)))
    owed = np.empty(len(published), dtype=np.int64)
    owed[weights] = np.frombuffer(numbers.remainder[:split], dtype="<i4")
    owed[~weights] = np.frombuffer(numbers.remainder[split:], dtype="<i8")
    return (published << FRACTION_BITS) + owed


def write(frame: Frame, master: Master) -> Numbers:
    """Publish all of an int8 model's master, rounded to the nearest stored step with halves upwards."""
    return _numbers(frame, (master + _HALF) >> FRACTION_BITS, master)


def _numbers(frame: Frame, published: Master, master: Master) -> Numbers:
    """What is kept of a master of which `published` int64 [P] is known to everybody."""
    owed, weights = master - (published << FRACTION_BITS), _is_weight(frame)
    remainder = owed[weights].astype("<i4").tobytes() + owed[~weights].astype("<i8").tobytes()
    return Numbers(dump_params(frame.suffix, published.astype(np.int32)), remainder)


def _advance_floats(frame: Frame, before: Numbers, step: NDArray[np.float64], publish_max: int) -> Numbers:
    published = load_params(frame.suffix, before.published).copy()
    _check_kept(before, 4 * len(published))
    with np.errstate(over="ignore"):  # asked next
        master: Floats = np.frombuffer(before.remainder, "<f4").astype(np.float32, copy=False) + step.astype(np.float32)
    rounded = _upper(master)
    moved = np.flatnonzero(rounded != published)
    paid = _largest(moved, np.abs(master[moved].astype(np.float64) - published[moved]), publish_max)
    published[paid] = rounded[paid]
    return Numbers(dump_params(frame.suffix, published), master.astype("<f4", copy=False).tobytes())


def _largest(candidates: NDArray[np.int64], owed: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Those `most` of the candidate indices whose debts, `owed`, are the largest."""
    if len(candidates) <= most:
        return candidates
    order = np.argsort(-owed, kind="stable")
    return np.take(candidates, order[:most])


def _upper(values: Floats) -> Floats:
    """Round to floats whose lower 16 bits are zero, halves to even. ModelError where the result is not finite."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    if not bool(np.isfinite(values).all() and np.isfinite(rounded).all()):
        raise ModelError(_NOT_FINITE)
    return rounded


def _is_weight(frame: Frame) -> NDArray[np.bool_]:
    return np.equal(frame.limit, WEIGHT_MAX)


def _check_kept(numbers: Numbers, expected: int) -> None:
    if len(numbers.remainder) != expected:
        raise ModelError(
            f"the store keeps {len(numbers.remainder)} bytes of the master, and it has {expected}: it is of another "
            "model or of an older program; restore the store from a backup, or begin a new one with broker init"
        )


def _to_fixed(steps: NDArray[np.float64]) -> Master:
    """Round to units of 2^-16; beyond any limit is held first, so that the conversion always has a result."""
    largest = float(2**32)
    fixed: Master = np.rint(np.clip(steps, -largest, largest) * float(1 << FRACTION_BITS)).astype(np.int64)
    return fixed
