"""The estimate that both sides keep of a device's delta (EF21: Richtarik et al. 2021, arXiv:2106.05203).

    d = delta, shrunk to an L2 norm of clip_norm if it is longer
    sent = decode(code(largest of d - estimate))          estimate = hold(estimate + sent)

Error feedback remembers what an update left out; EF21 remembers what all of them together have said. So the coordinator
has a whole delta of each device, from updates that carry a hundredth of it, and can rank each parameter. Rounded values
cost nothing in the end: the next update starts from what was said, not from what was meant.

Both sides must hold the same estimate to the bit, so adding is one thing, here, for both: in lane 'int8' whole units,
held to +-254, which binary16 stores exactly; in lane 'float32' a sum in float32, held to +-64 and rounded to binary16.
An update says which one it builds on: in front of its payload (engine/codec/payload.py, whose first byte is its format)
stand the byte 0xE1 and the number of the round whose update made that estimate, 8 bytes, little-endian; 0 for none.

A device keeps its estimate in one file: 28 bytes (magic "HES1", n, the scale epoch, the round, CRC-32 of all the rest;
little-endian), then n binary16.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from engine.codec import residual
from engine.codec.header import CodecError
from engine.codec.residual import Owed
from engine.codec.update import Update
from engine.kernels.quantize import UNIT_MAX, VALUE_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.codec.residual import Sending
    from engine.codec.update import Lane
    from engine.frame import Frame
    from engine.models.graph import Content

MAGIC: Final = b"HES1"
MARK: Final = b"\xe1"  # no format of a payload
PREFIX_BYTES: Final = 9
_PREFIX: Final = struct.Struct("<cQ")
_HEADER: Final = struct.Struct("<4sIQQ")
_CHECKSUM: Final = struct.Struct("<I")
_AGAIN: Final = "the next update builds on nothing"


@dataclass(frozen=True, eq=False)
class Estimate:
    """What is known of a device's delta: float16 [P], units in lane 'int8'; the round whose update made it, or 0."""

    values: NDArray[np.float16]
    round_id: int = 0


class Said(NamedTuple):
    """What came of a delta: the payload, the estimate once that is accepted, and what bytes left out, for the owner."""

    payload: bytes
    estimate: Estimate
    note: str


def nothing(size: int) -> Estimate:
    """What is known of a device before its first update."""
    return Estimate(np.zeros(size, np.float16))


def say(delta: NDArray[Any], estimate: Estimate, frame: Frame, sending: Sending, round_id: int) -> Said:
    """Turn this round's `delta` [P] into a payload that brings `estimate` nearer to it. Raises as residual.step does.

    Of `sending` neither momentum nor decay is heard: there is no debt.
    """
    if len(estimate.values) != frame.suffix.num_params:
        raise CodecError(f"An estimate of {len(estimate.values)} parameters is not of this model.")
    known = estimate.values.astype(np.int32) * frame.unit if frame.lane == "int8" else _reals(estimate)
    room = max(sending.bytes_max - PREFIX_BYTES, 1) if sending.bytes_max else 0
    plain = sending._replace(bytes_max=room, momentum=0.0, decay=1.0)
    made = residual.step(delta, Owed(-known), frame, plain, 0)
    prefix = _PREFIX.pack(MARK, estimate.round_id)
    return Said(prefix + made.payload, added(estimate, made.update, round_id), made.note)


def added(estimate: Estimate, update: Update, round_id: int) -> Estimate:
    """The estimate after the accepted update of this round. The one that was is left alone."""
    values, limit = estimate.values.copy(), UNIT_MAX if update.lane == "int8" else VALUE_LIMIT
    sums = values[update.indices].astype(np.float32) + update.values.astype(np.float32)
    values[update.indices] = np.clip(sums, -limit, limit).astype(np.float16)
    return Estimate(values, round_id)


def split(payload: bytes) -> tuple[int | None, bytes]:
    """(the round of the estimate that it builds on, the payload proper); None where it builds on no estimate."""
    if payload[:1] != MARK:
        return None, payload
    if len(payload) < PREFIX_BYTES:
        raise CodecError("The update is cut short.")
    return _PREFIX.unpack_from(payload)[1], payload[PREFIX_BYTES:]


def as_update(estimate: Estimate, lane: Lane) -> Update:
    """The estimate as an update that carries every parameter but those at 0."""
    places = np.flatnonzero(estimate.values).astype(np.uint32)
    chosen, size = estimate.values[places], len(estimate.values)
    return Update(lane, size, places, chosen.astype(np.int32) if lane == "int8" else chosen.astype(np.float32))


def dump(estimate: Estimate, scale_epoch: int) -> bytes:
    """Give the bytes to keep on flash."""
    head = _HEADER.pack(MAGIC, len(estimate.values), scale_epoch, estimate.round_id)
    numbers = estimate.values.astype("<f2").tobytes()
    return head + _CHECKSUM.pack(zlib.crc32(numbers, zlib.crc32(head))) + numbers


def load(kept: Content, size: int, scale_epoch: int) -> Estimate:
    """Read what `dump` kept for a model of `size` parameters in this scale epoch.

    Raises CodecError where the bytes are damaged, or belong to another model or scale epoch, or are no estimate.
    """
    start = _HEADER.size + _CHECKSUM.size
    if len(kept) < start or kept[: len(MAGIC)] != MAGIC:
        raise CodecError(f"What is kept on flash is no estimate of lane hardened; {_AGAIN}.")
    _, count, epoch, round_id = _HEADER.unpack_from(kept)
    checksum = zlib.crc32(memoryview(kept)[start:], zlib.crc32(kept[: _HEADER.size]))
    if _CHECKSUM.pack(checksum) != kept[_HEADER.size : start] or len(kept) - start != 2 * count:
        raise CodecError(f"The estimate on flash is damaged; {_AGAIN}.")
    if (count, epoch) != (size, scale_epoch):
        raise CodecError(f"The estimate on flash is of another model or scale epoch; {_AGAIN}.")
    return Estimate(np.frombuffer(kept, "<f2", offset=start).astype(np.float16), round_id)


def _reals(estimate: Estimate) -> NDArray[np.float32]:
    reals: NDArray[np.float32] = estimate.values.astype(np.float32)
    return reals
