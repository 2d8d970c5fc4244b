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
from engine.codec.update import Update, dense
from engine.frame import WEIGHT_MAX
from engine.models.graph import ModelError
from engine.models.scheme import dump_params, load_params

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from engine.frame import Frame

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
    if frame.lane == "float32":
        grown = new - old
        if bool((grown % (1 << _LOWER_BITS)).any()):
            raise CodecError("The versions differ in the lower half of a float: no patch leads from one to the other.")
        return _coded(frame, _wrapped(grown >> _LOWER_BITS))
    unit = frame.unit.astype(np.int64)
    if bool(((new - old) % unit).any()):
        raise CodecError("The versions differ by a part of a unit: no patch leads from one to the other.")
    return _coded(frame, (new - old) // unit)


def merge(frame: Frame, patches: Iterable[bytes]) -> bytes:
    """The patch that does what these do one after the other. Raises CodecError where one is none of this frame."""
    total = np.zeros(frame.suffix.num_params, dtype=np.int64)
    for patch in patches:
        read = _read(frame, patch)
        total[read.indices] += read.values.astype(np.int64)
    return _coded(frame, _wrapped(total) if frame.lane == "float32" else total)


def apply(frame: Frame, published: bytes, patch: bytes) -> bytes:
    """The parameters that `patch` makes of `published`. Time and memory are bounded by the frame.

    Raises:
        CodecError: `patch` is no patch of this frame; `published` does not belong to it; or the result holds what no
            version does: a weight beyond +-127, a bias beyond 32 bits, a float that is not finite.
    """
    old, grown = _stored(frame, published), dense(_read(frame, patch)).astype(np.int64)
    if frame.lane == "float32":
        bits = (old + (grown << _LOWER_BITS)) & 0xFFFFFFFF
        params = bits.astype(np.uint32).view(np.float32)
        if not bool(np.isfinite(params).all()):
            raise CodecError("The patch makes a float that is not finite.")
        return dump_params(frame.suffix, params)
    new = old + grown * frame.unit
    if bool((np.abs(new) > frame.limit)[grown != 0].any()):
        raise CodecError(f"The patch moves a weight beyond {WEIGHT_MAX}, or a bias beyond 32 bits.")
    return dump_params(frame.suffix, new.astype(np.int32))


def _coded(frame: Frame, differences: Differences) -> bytes:
    indices = np.flatnonzero(differences)
    values = differences[indices]
    if bool((np.abs(values) > UNIT_MAX).any()):
        raise CodecError("A parameter moved by more units than a patch holds.")
    update = Update("int8", len(differences), indices.astype(np.uint32), values.astype(np.int32))
    return payload.encode(update, frame.shapes, value_bits=0, coding=CODING).payload


def _read(frame: Frame, patch: bytes) -> Update:
    """The numbers of a patch; of a float model, too, they are whole, as in lane 'int8'. Raises CodecError."""
    largest = UNIT_MAX if frame.lane == "int8" else _MODULUS // 2
    size = frame.suffix.num_params
    return payload.decode(patch, frame.shapes, lane="int8", k_max=size, coding=CODING, unit_max=largest)


def _stored(frame: Frame, published: bytes) -> Differences:
    """The parameters as integers, int64 [P]: int8 weights and int32 biases, or the bit patterns of floats."""
    try:
        params = load_params(frame.suffix, published)
    except ModelError as error:
        raise CodecError(f"The parameters do not belong to this patch's model: {error}.") from error
    stored: Differences = (params.view(np.uint32) if frame.lane == "float32" else params).astype(np.int64)
    return stored


def _wrapped(differences: Differences) -> Differences:
    """The numbers of least magnitude that are the same modulo 2^16."""
    half = _MODULUS // 2
    wrapped: Differences = (differences + half) % _MODULUS - half
    return wrapped
