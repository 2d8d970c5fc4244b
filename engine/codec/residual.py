"""Error feedback: what an update leaves out stays owed and joins the next one.

    d = delta, shrunk to an L2 norm of clip_norm if it is longer
    u = d + residual           sent = decode(compress(u))           residual = u - sent

Nothing is lost, only late: after any number of rounds, sum(sent) + residual = sum(d), up to float32 rounding (Seide et
al. 2014; Stich, Cordonnier, Jaggi 2018). The clip stands before the sum, so that it bounds what *this* round's data can
say; a debt from earlier rounds is never clipped away. `sent` is what the coordinator will read from the payload, to
the bit, so quantisation errors are owed as well.

A residual is kept on flash as 12 bytes of header (magic "HRES", n, CRC-32 of the numbers; little-endian) and n float32.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from engine.codec.sparse import CodecError, compress
from engine.kernels.optimize import all_finite, clip_to_norm
from engine.kernels.sparsify import fold_in, take_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

MAGIC = b"HRES"
_HEADER = struct.Struct("<4sII")


def step(delta: Floats, residual: Floats, k: int, value_bits: int, clip_norm: float) -> tuple[bytes, Floats]:
    """Turn this round's `delta` float32 [P] and the `residual` [P] into a payload and the new residual.

    `clip_norm` may be infinite. Both inputs are left alone.

    Raises:
        CodecError: lengths that differ, a clip_norm that is not positive, NaN or infinite numbers.
    """
    if delta.shape != residual.shape or delta.ndim != 1:
        raise CodecError(f"A delta of shape {delta.shape} does not fit a residual of {residual.shape}.")
    if not clip_norm > 0.0:
        raise CodecError(f"The clip norm {clip_norm} is not positive.")
    clipped = np.array(delta, dtype=np.float32, order="C")
    if not math.isfinite(clip_to_norm(clipped, float(clip_norm))):
        raise CodecError("The delta holds NaN or infinite values: training went wrong, nothing is sent.")
    total = np.empty_like(clipped)
    fold_in(clipped, np.array(residual, dtype=np.float32, order="C"), total)
    payload, sent = compress(total, k, value_bits)
    owed = np.empty_like(total)
    take_out(total, sent.indices, sent.values, owed)
    return payload, owed


def dump_residual(residual: Floats) -> bytes:
    """Give the bytes to keep on flash for `residual` float32 [P]."""
    numbers = residual.astype("<f4").tobytes()
    return _HEADER.pack(MAGIC, len(residual), zlib.crc32(numbers)) + numbers


def load_residual(kept: bytes, size: int) -> Floats:
    """Read a residual of `size` parameters.

    Raises:
        CodecError: the bytes are damaged or belong to a model of another size; the caller starts from zeros.
    """
    if len(kept) < _HEADER.size:
        raise CodecError("The residual file is cut short; starting again from zero loses only what was still owed.")
    magic, count, checksum = _HEADER.unpack_from(kept)
    numbers = kept[_HEADER.size :]
    if magic != MAGIC or len(numbers) != 4 * count or zlib.crc32(numbers) != checksum:
        raise CodecError("The residual file is damaged; starting again from zero loses only what was still owed.")
    if count != size:
        raise CodecError(f"The residual belongs to a model of {count} parameters, this one has {size}.")
    residual = np.frombuffer(numbers, dtype="<f4").astype(np.float32)
    if not all_finite(residual):
        raise CodecError("The residual file holds NaN or infinite values; start again from zero.")
    return residual
