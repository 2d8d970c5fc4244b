"""Layers that stay on a device: the last of those that train, which each device has its own of.

    params [P] = [ what the fleet shares | own ]        first parameter of the last K trained layers ─┘

The fleet learns what is below them, and each device its own way to read it (Arivazhagan et al. 2019, FedPer,
arXiv:1912.00818). A version brings numbers for them, too: those that a device begins with.

What is its own a device keeps on flash in 49 bytes (magic "HOWN", the lane's letter, P, the SHA-256 of the base file,
since its scales say what the numbers mean, CRC-32 of all the rest; little-endian) and n int32 or float32.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine.codec.error import CodecError
from engine.models.graph import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.frame import Frame
    from engine.models.scheme import Suffix

_MAGIC: Final = b"HOWN"
_HEADER: Final = struct.Struct("<4scQ32s")
_CHECKSUM: Final = struct.Struct("<I")
_AGAIN: Final = "it begins again with the version's"


@dataclass(frozen=True, eq=False)
class Own:
    """A device's own last layers: the last of P = `size` parameters, int32 or float32, in the scales of a base file."""

    params: NDArray[Any]
    size: int
    base: bytes  # the file's SHA-256


def own_of(params: NDArray[Any], frame: Frame) -> Own:
    """These are the last parameters of a version in this frame."""
    return Own(params, frame.suffix.num_params, hashlib.sha256(frame.model).digest())


def shared_count(suffix: Suffix, keep_local: int) -> int:
    """How many of the P parameters the fleet shares. Raises ModelError where none would be."""
    if keep_local >= len(suffix.layers):
        raise ModelError(
            f"{suffix.train} trains {len(suffix.layers)} layers, and keep_local = {keep_local} leaves nothing for the "
            f"fleet: let it be {len(suffix.layers) - 1} at most"
        )
    return suffix.layers[-keep_local].first if keep_local else suffix.num_params


def with_own(params: NDArray[Any], own: Own | None) -> NDArray[Any]:
    """The parameters [P] of a version with a device's own at their end: a copy, or `params` where it has none."""
    if own is None:
        return params
    worn = params.copy()
    worn[len(params) - len(own.params) :] = own.params
    return worn


def dump(own: Own) -> bytes:
    """Give the bytes to keep."""
    letter, dtype = (b"f", "<f4") if own.params.dtype == np.float32 else (b"i", "<i4")
    head, body = _HEADER.pack(_MAGIC, letter, own.size, own.base), own.params.astype(dtype).tobytes()
    return head + _CHECKSUM.pack(zlib.crc32(head + body)) + body


def load(kept: bytes, frame: Frame) -> Own:
    """Read what `dump` gave. Raises CodecError for what is damaged, or of another model or scale epoch."""
    body = kept[_HEADER.size + _CHECKSUM.size :]
    head, checksum = kept[: _HEADER.size], kept[_HEADER.size : _HEADER.size + _CHECKSUM.size]
    if _CHECKSUM.pack(zlib.crc32(head + body)) != checksum or len(body) % 4:
        raise CodecError(f"the layers of its own are damaged on flash: {_AGAIN}")
    letter, dtype = (b"f", np.float32) if frame.lane == "float32" else (b"i", np.int32)
    own = own_of(np.frombuffer(body, np.dtype(dtype).newbyteorder("<")).astype(dtype), frame)
    if head != _HEADER.pack(_MAGIC, letter, own.size, own.base) or len(own.params) >= own.size:
        raise CodecError(f"the layers of its own are of another model or scale epoch: {_AGAIN}")
    return own
