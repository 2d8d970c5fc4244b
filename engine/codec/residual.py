"""Error feedback: what an update leaves out stays owed and joins the next one.

    d = delta, shrunk to an L2 norm of clip_norm if it is longer
    u = d + residual           sent = decode(code(largest of u))           residual = u - sent

Nothing is lost, only late: after any number of rounds sum(sent) + residual = sum(d) (Seide et al. 2014; Stich,
Cordonnier, Jaggi 2018). The clip stands before the sum, so that it bounds what *this* round's data can say; a debt
from earlier rounds is never clipped away. `sent` is what the coordinator will read from the payload, to the bit. An
int8 model's delta is a vector of whole steps, and so are its residual and what is sent, rounded or not: the equation is
exact. A float model's is real, and the equation holds up to float32 rounding.

Two things a plan may ask for change the equation on purpose.

    momentum   v = momentum * v + d, which joins in place of d; v = 0 where something was sent     (Lin et al. 2018, 3)
    decay      residual and v times decay ^ missed, before anything joins

Momentum lets a parameter that waits gather speed as it would have in the model; every d counts up to 1 / (1 - momentum)
times, so the plan's learning rate is meant for that. Decay lets an old debt fade: a round that starts from version b
missed b - a - 1 versions if the round that left the debt started from version a.

What is owed is kept on flash in one file: 30 bytes of header (magic "HRE3", the lane's letter, 1 if there is a
velocity, n, the scale epoch, the base version of the round that left it, CRC-32 of all the rest; little-endian), then
n int32 or float32, and n more for the velocity. Steps are counted in the model's own scales, so the steps of another
scale epoch mean something else, and are let go.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from engine.codec.fitting import Wish, fit
from engine.codec.header import CodecError
from engine.codec.largest import largest
from engine.codec.update import Update
from engine.kernels.optimize import all_finite, clip_to_norm
from engine.kernels.sparsify import decay_reals, fold_in, pick, take_out
from engine.kernels.steps import LARGEST, clip_steps, decay_steps, fold_units, gather_steps, take_units, units_at
from engine.kernels.update import momentum_step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.codec.payload import Coding
    from engine.codec.update import Lane
    from engine.frame import Frame
    from engine.models.graph import Content

    Floats = NDArray[np.float32]
    Integers = NDArray[np.int32]

MAGIC = b"HRE3"
_HEADER = struct.Struct("<4sc?IQQ")
_CHECKSUM = struct.Struct("<I")
_LANES: dict[bytes, tuple[Lane, str]] = {b"i": ("int8", "<i4"), b"f": ("float32", "<f4")}
_LETTERS: dict[Lane, bytes] = {lane: letter for letter, (lane, _) in _LANES.items()}
_TOO_FAR = "A parameter moved by more steps than 32 bits hold: training went wrong, nothing is sent."
_NOT_FINITE = "The delta holds NaN or infinite values: training went wrong, nothing is sent."
_AGAIN = "starting again from zero loses only what was still owed"
_SHARE_BITS = 32  # of what is left of a debt
_MOMENTUM_BITS = 16


@dataclass(frozen=True, eq=False)
class Owed:
    """What earlier updates left out: `residual` [P], and the `velocity` [P] of momentum correction, if there is one.

    Both are int32 in lane 'int8', float32 in lane 'float32'. `base_version` is of the round that left them.
    """

    residual: Integers | Floats
    velocity: Integers | Floats | None = None
    base_version: int = 0


class Sending(NamedTuple):
    """How an update is made of a delta, as the plan says."""

    k: int  # values at most
    value_bits: int  # 0: whole units, exactly; else rounded
    coding: Coding
    clip_norm: float  # real; may be infinite
    bytes_max: int = 0  # of the payload; 0: any number
    momentum: float = 0.0  # of what is owed; 0: none
    decay: float = 1.0  # what is left of a debt per version missed


class Sent(NamedTuple):
    """What came of a delta."""

    payload: bytes
    update: Update  # exactly what the payload says
    owed: Owed
    note: str  # what the limit of bytes left out, for the owner; "" if nothing


class _Sum(NamedTuple):
    """All that could be sent now. `magnitudes` say how much of it counts, in real numbers, to choose by."""

    total: Integers | Floats
    velocity: Integers | Floats | None
    magnitudes: Floats


def nothing_owed(frame: Frame) -> Owed:
    """What a device owes before its first update."""
    size = frame.suffix.num_params
    return Owed(np.zeros(size, np.int32) if frame.lane == "int8" else np.zeros(size, np.float32))


def step(delta: NDArray[Any], owed: Owed, frame: Frame, sending: Sending, base_version: int) -> Sent:
    """Turn this round's `delta` [P] and what is owed into a payload and what is owed next.

    The delta is float32, or whole steps of any integer type, in the frame's lane; the round started from
    `base_version`. Of all entries the k with the largest magnitude in real numbers are sent, of equal ones the lowest
    index, and fewer where `bytes_max` says so. The inputs are left alone.

    Raises:
        CodecError: numbers that do not belong together, are not finite, or reach beyond 32 bits; a k, a clip norm,
            bits, momentum or decay that make no sense; or a limit of bytes in which not one value fits.
    """
    _check(delta, owed, frame, sending)
    share = _share(sending.decay, max(base_version - owed.base_version - 1, 0))
    whole = frame.lane == "int8"
    total, velocity, magnitudes = (_whole_sum if whole else _real_sum)(delta, owed, frame, sending, share)
    chosen = largest(magnitudes, sending.k)
    ranks = np.empty(len(chosen), np.float32)
    pick(magnitudes, chosen, ranks)
    values: Integers | Floats = ranks
    if whole:
        values = np.empty(len(chosen), np.int32)
        units_at(total, frame.unit, chosen, values)
    meant = Update(frame.lane, len(total), chosen, values)
    coded, note = fit(Wish(meant, ranks, frame.shapes, sending.value_bits, sending.coding), sending.bytes_max)
    sent = coded.sent
    if not whole:
        take_out(total, sent.indices, sent.values)
    elif take_units(total, frame.unit, sent.indices, sent.values):
        raise CodecError(_TOO_FAR)
    if velocity is not None:
        velocity[sent.indices] = 0
    return Sent(coded.payload, sent, Owed(total, velocity, base_version), note)


def dump_owed(owed: Owed, scale_epoch: int) -> bytes:
    """Give the bytes to keep on flash."""
    letter = b"i" if owed.residual.dtype == np.int32 else b"f"
    parts = [owed.residual] if owed.velocity is None else [owed.residual, owed.velocity]
    head = _HEADER.pack(MAGIC, letter, len(parts) > 1, len(owed.residual), scale_epoch, owed.base_version)
    numbers = [np.ascontiguousarray(part, dtype=_LANES[letter][1]).data for part in parts]
    checksum = zlib.crc32(head)
    for part in numbers:
        checksum = zlib.crc32(part, checksum)
    return b"".join([head, _CHECKSUM.pack(checksum), *numbers])


def load_owed(kept: Content, size: int, lane: Lane, scale_epoch: int) -> Owed:
    """Read what `dump_owed` kept for a model of `size` parameters in this lane and scale epoch.

    Raises:
        CodecError: the bytes are damaged, or belong to a model of another size or lane or to another scale epoch; the
            caller starts from `nothing_owed`.
    """
    start = _HEADER.size + _CHECKSUM.size
    if len(kept) < start:
        raise CodecError(f"The residual file is cut short; {_AGAIN}.")
    magic, letter, moving, count, epoch, base_version = _HEADER.unpack_from(kept)
    checksum = zlib.crc32(memoryview(kept)[start:], zlib.crc32(kept[: _HEADER.size]))
    whole = magic == MAGIC and letter in _LANES and len(kept) - start == 4 * count * (1 + moving)
    if not whole or _CHECKSUM.pack(checksum) != kept[_HEADER.size : start]:
        raise CodecError(f"The residual file is damaged, or of another program version; {_AGAIN}.")
    named, dtype = _LANES[letter]
    if count != size or named != lane:
        raise CodecError(f"The residual belongs to a model of {count} {named} parameters, this one has {size} {lane}.")
    if epoch != scale_epoch:
        raise CodecError(f"The residual is of scale epoch {epoch}, the model of {scale_epoch}; {_AGAIN}.")
    numbers = np.require(np.frombuffer(kept, dtype=dtype, offset=start), dtype[1:], ("C", "W"))
    if lane == "float32" and not all_finite(numbers):
        raise CodecError("The residual file holds NaN or infinite values; start again from zero.")
    return Owed(numbers[:count], numbers[count:] if moving else None, base_version)


def _whole_sum(delta: NDArray[Any], owed: Owed, frame: Frame, sending: Sending, share: int) -> _Sum:
    """In whole steps. A magnitude is that of the whole units in a sum: less is not sent."""
    if len(delta) and not -LARGEST <= int(delta.min()) <= int(delta.max()) <= LARGEST:
        raise CodecError(_TOO_FAR)
    joining = np.array(delta, dtype=np.int32, order="C")
    clip_steps(joining, frame.scale, float(sending.clip_norm))
    residual, velocity = _residual(owed, share), _velocity(owed, sending)
    beyond = 0
    for old in (residual, velocity):
        if old is not None and share != 1 << _SHARE_BITS:
            decay_steps(old, share)
    if velocity is not None:
        # below 1 by the plan's own bound, and after rounding too
        momentum = min(int(sending.momentum * (1 << _MOMENTUM_BITS) + 0.5), (1 << _MOMENTUM_BITS) - 1)
        beyond += gather_steps(velocity, joining, momentum)
        joining = velocity
    total, magnitudes = np.empty_like(residual), np.empty(len(residual), np.float32)
    beyond += fold_units(joining, residual, frame.unit, frame.scale, total, magnitudes)
    if beyond:
        raise CodecError(_TOO_FAR)
    return _Sum(total, velocity, magnitudes)


def _real_sum(delta: NDArray[Any], owed: Owed, _frame: Frame, sending: Sending, share: int) -> _Sum:
    """In real numbers, which are their own magnitudes: signs do not matter there."""
    joining = np.array(delta, dtype=np.float32, order="C")
    if not math.isfinite(clip_to_norm(joining, float(sending.clip_norm))):
        raise CodecError(_NOT_FINITE)
    residual, velocity = _residual(owed, share), _velocity(owed, sending)
    for old in (residual, velocity):
        if old is not None and share != 1 << _SHARE_BITS:
            decay_reals(old, share / (1 << _SHARE_BITS))
    if velocity is not None:
        momentum_step(velocity.reshape(1, -1), joining.reshape(1, -1), np.float32(sending.momentum))
    fold_in(joining, residual, joining)
    if not all_finite(joining):
        raise CodecError(_NOT_FINITE)
    return _Sum(joining, velocity, joining)


def _residual(owed: Owed, share: int) -> Any:
    """What is owed, as kernels take it; a copy where it is to decay."""
    if share != 1 << _SHARE_BITS:
        return owed.residual.copy()
    return np.require(owed.residual, requirements=("C", "W"))


def _velocity(owed: Owed, sending: Sending) -> Any:
    """A copy of the velocity to go on with; None where the plan wants none, which lets go of an old one."""
    if not sending.momentum:
        return None
    return np.zeros_like(owed.residual) if owed.velocity is None else owed.velocity.copy()


def _share(decay: float, missed: int) -> int:
    """What is left of a debt after so many missed versions, in units of 2^-32: decay ^ missed, in integers."""
    one = 1 << _SHARE_BITS
    share, factor = one, int(decay * one + 0.5)
    while missed and share:
        if missed & 1:
            share = share * factor >> _SHARE_BITS
        factor = factor * factor >> _SHARE_BITS
        missed >>= 1
    return share


def _check(delta: NDArray[Any], owed: Owed, frame: Frame, sending: Sending) -> None:
    if delta.shape != owed.residual.shape or delta.ndim != 1:
        raise CodecError(f"A delta of shape {delta.shape} does not fit a residual of {owed.residual.shape}.")
    if len(delta) != frame.suffix.num_params:
        trains = frame.suffix.num_params
        raise CodecError(f"A delta of {len(delta)} parameters is not of this model, which trains {trains}.")
    if owed.residual.dtype != (np.int32 if frame.lane == "int8" else np.float32):
        raise CodecError(f"A residual of {owed.residual.dtype} does not fit a model of lane {frame.lane}.")
    if not 0 <= sending.k <= len(delta):
        raise CodecError(f"Cannot send {sending.k} of {len(delta)} values.")
    if not sending.clip_norm > 0.0:
        raise CodecError(f"The clip norm {sending.clip_norm} is not positive.")
    if not (0.0 <= sending.momentum < 1.0 and 0.0 <= sending.decay <= 1.0):
        raise CodecError(
            f"A momentum of {sending.momentum} must be below 1, a decay of {sending.decay} at most 1, neither negative."
        )
