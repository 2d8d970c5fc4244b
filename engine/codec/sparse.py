"""The payload of an update: a few chosen parameters, where they are, and roughly how much they changed.

An update is coded in three parts, and nothing else is in the payload. Integers are unsigned.

    header   byte     format, 1
             varint   n, how many parameters the model trains
             varint   k, how many of them are in this update, k <= n
             byte     b, the Rice parameter, 0 .. 30
             byte     value_bits, 1 .. 8
             float32  scale, little-endian; 0 < scale <= 64, or +0 when k is 0
    gaps     k Golomb-Rice codes, then zero bits up to a whole byte
    values   k codes of value_bits bits, then zero bits up to a whole byte

Varint: 7 bits a byte, lowest first, the top bit set on all but the last byte; at most 5 bytes, none more than needed.
Bits: bit j of a part is bit j % 8 (of weight 2^(j % 8)) of its byte j // 8.
Gaps: of the strictly increasing indices i, gap[0] = i[0] and gap[j] = i[j] - i[j-1] - 1; a gap is written as
(gap >> b) zero bits, a one bit, then its low b bits, lowest first.
Values: a code's lowest bit is the sign (1 is negative), the rest the level; with L = 2^(value_bits - 1) the value is
scale * ((level + 1) / L)^2, rounded to float32 once. With value_bits 1 every value is +scale or -scale.

The length of the values is known from k, so the gaps are all between. A reader refuses whatever it would not have
written: another format, n or a k beyond the plan's, an index of n or more, bits set in the padding, bytes missing or
left over. Its time and memory are bounded by n, k and the payload's length, which it checks first.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.codec.header import (
    SIZE_MAX,
    CodecError,
    check_counts,
    check_wanted,
    read_counts,
    read_gaps,
    varint,
    whole_bytes,
    write_gaps,
)
from engine.kernels.gaps import PARAMETER_MAX, best_parameter
from engine.kernels.optimize import all_finite
from engine.kernels.quantize import VALUE_LIMIT, dequantize, pack_codes, quantize, unpack_codes, value_scale
from engine.kernels.sparsify import choose_largest, pick

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
VALUE_BITS_MAX = 8
_TAIL = struct.Struct("<BBf")


@dataclass(frozen=True)
class Sparse:
    """A decoded update: `values` float32 [k] at `indices` uint32 [k], strictly increasing, of a vector of `size`."""

    size: int
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Header:
    """What a payload's header says; `header_bytes` is its own length."""

    size: int
    count: int
    parameter: int
    value_bits: int
    scale: float
    header_bytes: int


def compress(update: NDArray[np.float32], k: int, value_bits: int) -> tuple[bytes, Sparse]:
    """Code the `k` largest entries of `update` float32 [P] in `value_bits` bits each.

    Fewer are sent if fewer are not zero; of equal magnitudes the lowest index goes first. A magnitude above 64
    is sent as 64.

    Returns:
        The payload, and exactly what `decode` will read from it: the residual is `update` minus that.

    Raises:
        CodecError: NaN or infinite entries, or a k or value_bits that the format cannot carry.
    """
    if not (0 <= k <= len(update) <= SIZE_MAX and 1 <= value_bits <= VALUE_BITS_MAX):
        raise CodecError(
            f"Cannot send {k} of {len(update)} values in {value_bits} bits: k is 0 to the size, bits are 1 to 8."
        )
    update = np.array(update, dtype=np.float32, order="C")
    if not all_finite(update):
        raise CodecError("The update holds NaN or infinite values: training went wrong, nothing is sent.")
    room = np.empty(k, dtype=np.uint32)
    count = choose_largest(update.view(np.uint32), k, np.empty(2048, dtype=np.int64), room)
    indices = room[:count].copy()
    values = np.empty(count, dtype=np.float32)
    pick(update, indices, values)
    return _encode(len(update), indices, values, value_bits)


def decode(payload: bytes, *, size: int, k_max: int) -> Sparse:
    """Read an update of a model with `size` parameters, of which the plan allows `k_max`.

    Raises:
        CodecError: the payload is not one that `compress` writes for this size and k_max.
    """
    header = describe(payload)
    check_wanted(header.size, header.count, wanted=size, k_max=k_max)
    values_bytes = whole_bytes(header.count * header.value_bits)
    gaps_bytes = len(payload) - header.header_bytes - values_bytes
    if 8 * gaps_bytes < header.count * (1 + header.parameter):
        raise CodecError(f"The update is cut short: {len(payload)} bytes cannot hold {header.count} values.")
    # a bytearray, because a kernel is compiled anew for memory that may not be written
    body = np.frombuffer(bytearray(payload[header.header_bytes :]), dtype=np.uint8)
    indices, used = read_gaps(body[:gaps_bytes], header.parameter, size, header.count)
    if used != gaps_bytes:
        raise CodecError(f"The update has {gaps_bytes - used} bytes too many.")
    codes = np.empty(header.count, dtype=np.uint8)
    if not unpack_codes(body[gaps_bytes:], header.value_bits, codes):
        raise CodecError("The padding after the update's values is not zero.")
    values = np.empty(header.count, dtype=np.float32)
    dequantize(codes, header.value_bits, np.float32(header.scale), values)
    return Sparse(size, indices, values)


def describe(payload: bytes) -> Header:
    """Read and check the header only.

    Raises:
        CodecError: the header is not one that `compress` writes.
    """
    size, count, position = read_counts(payload, FORMAT)
    if len(payload) < position + _TAIL.size:
        raise CodecError("The update ends inside its header.")
    parameter, value_bits, scale = _TAIL.unpack_from(payload, position)
    check_counts(size, count)
    if parameter > PARAMETER_MAX or not 1 <= value_bits <= VALUE_BITS_MAX:
        raise CodecError(f"The update claims Rice parameter {parameter} and {value_bits} bits a value.")
    good = 0.0 < scale <= VALUE_LIMIT if count else (scale == 0.0 and math.copysign(1.0, scale) > 0)
    if not good:
        raise CodecError(f"The update's scale {scale} is outside (0, {VALUE_LIMIT:g}].")
    return Header(size, count, parameter, value_bits, scale, position + _TAIL.size)


def dense(sparse: Sparse) -> NDArray[np.float32]:
    """Give the update as a vector float32 [size], zero where nothing was sent."""
    vector = np.zeros(sparse.size, dtype=np.float32)
    vector[sparse.indices] = sparse.values
    return vector


def _encode(
    size: int, indices: NDArray[np.uint32], values: NDArray[np.float32], value_bits: int
) -> tuple[bytes, Sparse]:
    count = len(indices)
    # Numba hands a float32 back as a Python float; the kernels below are compiled for the float32 it is
    scale = np.float32(value_scale(values, value_bits)) if count else np.float32(0.0)
    codes = np.empty(count, dtype=np.uint8)
    quantize(values, value_bits, scale, codes)
    parameter = best_parameter(indices)
    packed = np.zeros(whole_bytes(count * value_bits), dtype=np.uint8)
    pack_codes(codes, value_bits, packed)
    head = bytes([FORMAT]) + varint(size) + varint(count) + _TAIL.pack(parameter, value_bits, scale)
    sent = np.empty(count, dtype=np.float32)
    dequantize(codes, value_bits, scale, sent)
    return head + write_gaps(indices, parameter) + packed.tobytes(), Sparse(size, indices, sent)
