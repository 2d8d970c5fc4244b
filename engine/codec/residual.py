"""Error feedback: what an update leaves out stays owed and joins the next one.

    d = delta, shrunk to an L2 norm of clip_norm if it is longer
    u = d + residual           sent = decode(code(largest of u))           residual = u - sent

Nothing is lost, only late: after any number of rounds sum(sent) + residual = sum(d) (Seide et al. 2014; Stich,
Cordonnier, Jaggi 2018). The clip stands before the sum, so that it bounds what *this* round's data can say; a debt
from earlier rounds is never clipped away. `sent` is what the coordinator will read from the payload, to the bit.

An int8 model's delta is a vector of whole steps, and so are its residual and what is sent: the equation is exact
(`step_exact`). A float model's is real, and the equation holds up to float32 rounding (`step`); its values are rounded
to a few bits, and that error is owed as well.

A residual is kept on flash as 21 bytes of header (magic "HRE2", the lane's letter, n, the scale epoch, CRC-32 of all
the rest; little-endian) and n int32 or float32. Steps are counted in the model's own scales, so the steps of another
scale epoch mean something else, and are let go.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from engine.codec import steps
from engine.codec.header import CodecError
from engine.codec.sparse import compress
from engine.kernels.optimize import all_finite, clip_to_norm
from engine.kernels.sparsify import choose_largest, fold_in, take_out
from engine.kernels.steps import LARGEST, clip_steps, fold_units, take_units

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.codec.payload import Lane

    Floats = NDArray[np.float32]
    Integers = NDArray[np.int32]

MAGIC = b"HRE2"
_HEADER = struct.Struct("<4scIQ")
_CHECKSUM = struct.Struct("<I")
_LANES: dict[bytes, tuple[Lane, str]] = {b"i": ("int8", "<i4"), b"f": ("float32", "<f4")}
_TOO_FAR = "A parameter moved by more steps than 32 bits hold: training went wrong, nothing is sent."
_AGAIN = "starting again from zero loses only what was still owed"


def step(delta: Floats, residual: Floats, k: int, value_bits: int, clip_norm: float) -> tuple[bytes, Floats]:
    """Turn this round's `delta` float32 [P] and the `residual` [P] into a payload and the new residual.

    `clip_norm` may be infinite. Both inputs are left alone.

    Raises:
        CodecError: lengths that differ, a clip_norm that is not positive, NaN or infinite numbers.
    """
    _check(delta, residual, clip_norm)
    clipped = np.array(delta, dtype=np.float32, order="C")
    if not math.isfinite(clip_to_norm(clipped, float(clip_norm))):
        raise CodecError("The delta holds NaN or infinite values: training went wrong, nothing is sent.")
    total = np.empty_like(clipped)
    fold_in(clipped, np.array(residual, dtype=np.float32, order="C"), total)
    payload, sent = compress(total, k, value_bits)
    owed = np.empty_like(total)
    take_out(total, sent.indices, sent.values, owed)
    return payload, owed


def step_exact(
    delta: Integers, residual: Integers, unit: Integers, scale: Floats, *, k: int, clip_norm: float
) -> tuple[bytes, Integers]:
    """Turn this round's `delta` int32 [P], in stored steps, and the `residual` [P] into a payload and the new residual.

    `delta` may be of a wider type; what it holds may not. One wire unit of parameter i is `unit[i]` int32 >= 1 steps, a
    power of two; one step is `scale[i]` float32 in real numbers. `clip_norm` is real too, may be infinite, and is kept
    up to the rounding of steps. Of all entries the k with the largest |u| * unit * scale are sent, of equal ones the
    lowest index. The inputs are left alone.

    Raises:
        CodecError: lengths that differ, a clip_norm that is not positive, or a sum of steps beyond 32 bits.
    """
    _check(delta, residual, clip_norm)
    if len(delta) and int(np.abs(delta.astype(np.int64)).max()) > LARGEST:
        raise CodecError(_TOO_FAR)
    if not 0 <= k <= len(delta):
        raise CodecError(f"Cannot send {k} of {len(delta)} values.")
    clipped = np.array(delta, dtype=np.int32, order="C")
    unit, scale = np.array(unit, dtype=np.int32, order="C"), np.array(scale, dtype=np.float32, order="C")
    if not clipped.shape == unit.shape == scale.shape:
        raise CodecError(f"{len(clipped)} steps, {len(unit)} units and {len(scale)} scales do not belong together.")
    clip_steps(clipped, scale, float(clip_norm))
    total, magnitude = np.empty_like(clipped), np.empty_like(scale)
    if fold_units(clipped, np.array(residual, dtype=np.int32, order="C"), unit, scale, total, magnitude):
        raise CodecError(_TOO_FAR)
    room = np.empty(k, dtype=np.uint32)
    count = choose_largest(magnitude.view(np.uint32), k, np.empty(2048, dtype=np.int64), room)
    indices, units, owed = room[:count].copy(), np.empty(count, dtype=np.int16), np.empty_like(total)
    take_units(total, unit, indices, units, owed)
    return steps.encode(steps.Steps(len(delta), indices, units)), owed


def dump_residual(residual: Integers | Floats, scale_epoch: int = 0) -> bytes:
    """Give the bytes to keep on flash for `residual` int32 or float32 [P]."""
    letter = b"i" if residual.dtype == np.int32 else b"f"
    numbers = residual.astype(_LANES[letter][1]).tobytes()
    head = _HEADER.pack(MAGIC, letter, len(residual), scale_epoch)
    return head + _CHECKSUM.pack(zlib.crc32(head + numbers)) + numbers


def load_residual(kept: bytes, size: int, lane: Lane, scale_epoch: int = 0) -> Integers | Floats:
    """Read a residual of `size` parameters: int32 [size] in lane 'int8', float32 [size] in lane 'float32'.

    Raises:
        CodecError: the bytes are damaged, or belong to a model of another size or lane or to another scale epoch; the
            caller starts from zeros.
    """
    start = _HEADER.size + _CHECKSUM.size
    if len(kept) < start:
        raise CodecError(f"The residual file is cut short; {_AGAIN}.")
    magic, letter, count, epoch = _HEADER.unpack_from(kept)
    numbers = kept[start:]
    checksum = _CHECKSUM.pack(zlib.crc32(kept[: _HEADER.size] + numbers))
    whole = magic == MAGIC and letter in _LANES and len(numbers) == 4 * count
    if not whole or checksum != kept[_HEADER.size : start]:
        raise CodecError(f"The residual file is damaged, or of another program version; {_AGAIN}.")
    named, dtype = _LANES[letter]
    if count != size or named != lane:
        raise CodecError(f"The residual belongs to a model of {count} {named} parameters, this one has {size} {lane}.")
    if epoch != scale_epoch:
        raise CodecError(f"The residual is of scale epoch {epoch}, the model of {scale_epoch}; {_AGAIN}.")
    residual = np.frombuffer(numbers, dtype=dtype).astype(dtype[1:])
    if lane == "float32" and not all_finite(residual):
        raise CodecError("The residual file holds NaN or infinite values; start again from zero.")
    return residual


def _check(delta: Integers | Floats, residual: Integers | Floats, clip_norm: float) -> None:
    if delta.shape != residual.shape or delta.ndim != 1:
        raise CodecError(f"A delta of shape {delta.shape} does not fit a residual of {residual.shape}.")
    if not clip_norm > 0.0:
        raise CodecError(f"The clip norm {clip_norm} is not positive.")
