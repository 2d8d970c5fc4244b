"""What turns the published parameters of one version into those of a later one, in as few bytes as an update.

A patch is an exact update of whole numbers in the format of `payload.py`, context-coded: it is made once for many
devices, and read where there is time, in a training child. Its numbers say, per parameter,

    lane 'int8'       how many wire units (frame.unit stored steps each) the stored integer grew
    lane 'float32'    how much the upper 16 bits of the float grew as an integer, modulo 2^16; the lower are zero in
                      every published version (engine/master.py), so the sign is just another bit

Both add up: the patch from version a to v is the sum of those from a to a+1, ..., v-1 to v, in any grouping. Nothing
in a patch says which version it starts from. Whoever applies one compares the result's SHA-256 with the wanted one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.codec import payload
from engine.codec.header import CodecError
from engine.codec.update import Update
from engine.frame import WEIGHT_MAX
from engine.kernels.optimize import all_finite
from engine.models.graph import ModelError
from engine.models.scheme import dump_params, load_params

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from engine.frame import Frame
    from engine.models.graph import Content

    Differences = NDArray[np.int64]

CODING: payload.Coding = "context"
UNIT_MAX = 2**31 - 1
_LOWER_BITS = 16
_MODULUS = 1 << (32 - _LOWER_BITS)


def make(frame: Frame, before: bytes, after: bytes) -> bytes:
    """The patch from `before` to `after`, both as scheme.dump_params writes published parameters.

    Raises:
        CodecError: they do not fit the frame, or differ by what is no whole number of units.
    """
    old, new = _stored(frame, before), _stored(frame, after)
    changed = np.flatnonzero(old != new)
    grown = new[changed].astype(np.int64) - old[changed].astype(np.int64)
    if frame.lane == "float32":
        if bool((grown % (1 << _LOWER_BITS)).any()):
            raise CodecError("The versions differ in the lower half of a float: no patch leads from one to the other.")
        return _coded(frame, changed, _wrapped(grown >> _LOWER_BITS))
    unit = frame.unit[changed]
    if bool((grown % unit).any()):
        raise CodecError("The versions differ by a part of a unit: no patch leads from one to the other.")
    return _coded(frame, changed, grown // unit)


def merge(frame: Frame, patches: Iterable[bytes]) -> bytes:
    """The patch that does what these do one after the other. Raises CodecError where one is none of this frame."""
    total = np.zeros(frame.suffix.num_params, dtype=np.int64)
    for patch in patches:
        read = _read(frame, patch)
        total[read.indices] += read.values.astype(np.int64)
    changed = np.flatnonzero(total % _MODULUS if frame.lane == "float32" else total)
    return _coded(frame, changed, _wrapped(total[changed]) if frame.lane == "float32" else total[changed])


def apply(frame: Frame, published: Content, patch: bytes) -> bytes:
    """The parameters that `patch` makes of `published`. Time and memory are bounded by the frame.

    Raises:
        CodecError: `patch` is no patch of this frame; `published` does not belong to it; or the result holds what no
            version does: a weight beyond +-127, a bias beyond 32 bits, a float that is not finite.
    """
    new, read = _stored(frame, published).copy(), _read(frame, patch)
    places, grown = read.indices, read.values.astype(np.int64)
    if frame.lane == "float32":
        new[places] = (new[places] + (grown << _LOWER_BITS)) & 0xFFFFFFFF
        params = new.view(np.float32)
        if not all_finite(params):
            raise CodecError("The patch makes a float that is not finite.")
        return dump_params(frame.suffix, params)
    moved = new[places] + grown * frame.unit[places]
    if bool((np.abs(moved) > frame.limit[places]).any()):
        raise CodecError(f"The patch moves a weight beyond {WEIGHT_MAX}, or a bias beyond 32 bits.")
    new[places] = moved
    return dump_params(frame.suffix, new)


def _coded(frame: Frame, places: NDArray[np.int64], values: Differences) -> bytes:
    """The patch in which the parameters at these places grow by these values, none of them zero."""
    if bool((np.abs(values) > UNIT_MAX).any()):
        raise CodecError("A parameter moved by more units than a patch holds.")
    update = Update("int8", frame.suffix.num_params, places.astype(np.uint32), values.astype(np.int32))
    return payload.encode(update, frame.shapes, value_bits=0, coding=CODING).payload


def _read(frame: Frame, patch: bytes) -> Update:
    """The numbers of a patch; of a float model, too, they are whole, as in lane 'int8'. Raises CodecError."""
    largest = UNIT_MAX if frame.lane == "int8" else _MODULUS // 2
    size = frame.suffix.num_params
    return payload.decode(patch, frame.shapes, lane="int8", k_max=size, coding=CODING, unit_max=largest)


def _stored(frame: Frame, published: Content) -> NDArray[np.int32] | NDArray[np.uint32]:
    """The parameters as integers [P], to be read alone: int8 weights and biases, or the bit patterns of floats."""
    try:
        params = load_params(frame.suffix, published)
    except ModelError as error:
        raise CodecError(f"The parameters do not belong to this patch's model: {error}.") from error
    return params.view(np.uint32) if frame.lane == "float32" else params


def _wrapped(differences: Differences) -> Differences:
    """The numbers of least magnitude that are the same modulo 2^16."""
    half = _MODULUS // 2
    wrapped: Differences = (differences + half) % _MODULUS - half
    return wrapped
