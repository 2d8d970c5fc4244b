"""The payload of an update to an int8 model: a few chosen stored numbers, and by how many whole units each moved.

Format 2 carries integers exactly. A device that was sent the int8 numbers Q and trained them to W owes the steps
W - Q; they are sent in *units* of the plan's model: one step for a weight, a power of two of them for a bias (whose
steps are far finer), so that a unit of either is about as large in real numbers. Integers are unsigned.

    header   byte     format, 2
             varint   n, how many parameters the model trains
             varint   k, how many of them are in this update, k <= n
             byte     b, the Rice parameter of the gaps, 0 .. 30
             byte     c, the Rice parameter of the units, 0 .. 7
    gaps     k Golomb-Rice codes, as in format 1, then zero bits up to a whole byte
    units    k codes, then zero bits up to a whole byte

Units: of u, from -254 to 254 and never 0, one bit for the sign (1 is negative); then of m = |u| - 1 the number of
zero bits m >> c, a one bit, and the low c bits of m, lowest first. Where m >> c is 16 or more: 16 zero bits, and then
the 8 bits of m. With k = 0 nothing follows the header, and b and c are 0.

Where the gaps end is known only when they are read. A reader refuses whatever it would not have written: another
format, n or a k beyond the plan's, an index of n or more, a unit beyond 254, an escape where there need be none, bits
set in the padding, bytes missing or left over. Its time and memory are bounded by k and the payload's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.codec.header import (
    CodecError,
    check_counts,
    check_wanted,
    read_counts,
    read_gaps,
    varint,
    whole_bytes,
    write_gaps,
)
from engine.kernels import gaps
from engine.kernels.steps import (
    ENDS_EARLY,
    NOT_SHORTEST,
    OUT_OF_RANGE,
    PARAMETER_MAX,
    UNITS_MAX,
    best_units_parameter,
    decode_units,
    encode_units,
    units_bits,
    units_within_limit,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 2
BITS_MIN = 3  # of one value: its gap at least one bit, its unit at least two


@dataclass(frozen=True)
class Steps:
    """A decoded update: `units` int16 [k], none zero, at `indices` uint32 [k], strictly increasing, of `size`."""

    size: int
    indices: NDArray[np.uint32]
    units: NDArray[np.int16]


@dataclass(frozen=True)
class Header:
    """What a payload's header says; `header_bytes` is its own length."""

    size: int
    count: int
    gap_parameter: int
    unit_parameter: int
    header_bytes: int


def encode(steps: Steps) -> bytes:
    """Code an update; the same update always becomes the same bytes.

    Raises:
        CodecError: a unit that is 0 or beyond 254.
    """
    if not units_within_limit(steps.units):
        raise CodecError(f"An update's unit is 0 or larger than {UNITS_MAX}.")
    count = len(steps.indices)
    gap_parameter = gaps.best_parameter(steps.indices) if count else 0
    unit_parameter = best_units_parameter(steps.units) if count else 0
    coded = np.zeros(whole_bytes(units_bits(steps.units, unit_parameter)), dtype=np.uint8)
    encode_units(steps.units, unit_parameter, coded)
    head = bytes([FORMAT]) + varint(steps.size) + varint(count) + bytes([gap_parameter, unit_parameter])
    return head + write_gaps(steps.indices, gap_parameter) + coded.tobytes()


def decode(payload: bytes, *, size: int, k_max: int) -> Steps:
    """Read an update of a model with `size` parameters, of which the plan allows `k_max`.

    Raises:
        CodecError: the payload is not one that `encode` writes for this size and k_max.
    """
    header = describe(payload)
    check_wanted(header.size, header.count, wanted=size, k_max=k_max)
    if 8 * (len(payload) - header.header_bytes) < BITS_MIN * header.count:
        raise CodecError(f"The update is cut short: {len(payload)} bytes cannot hold {header.count} values.")
    # a bytearray, because kernels take memory that may be written
    body = np.frombuffer(bytearray(payload[header.header_bytes :]), dtype=np.uint8)
    indices, used = read_gaps(body, header.gap_parameter, size, header.count)
    return Steps(size, indices, _read_units(body[used:], header))


def describe(payload: bytes) -> Header:
    """Read and check the header only.

    Raises:
        CodecError: the header is not one that `encode` writes.
    """
    size, count, position = read_counts(payload, FORMAT)
    if len(payload) < position + 2:
        raise CodecError("The update ends inside its header.")
    gap_parameter, unit_parameter = payload[position], payload[position + 1]
    check_counts(size, count)
    idle = not count and gap_parameter + unit_parameter > 0
    if idle or gap_parameter > gaps.PARAMETER_MAX or unit_parameter > PARAMETER_MAX:
        raise CodecError(f"The update claims Rice parameters {gap_parameter} and {unit_parameter} for {count} values.")
    return Header(size, count, gap_parameter, unit_parameter, position + 2)


def dense(steps: Steps) -> NDArray[np.int64]:
    """Give the update as a vector int64 [size] of units, zero where nothing was sent."""
    vector = np.zeros(steps.size, dtype=np.int64)
    vector[steps.indices] = steps.units
    return vector


def _read_units(coded: NDArray[np.uint8], header: Header) -> NDArray[np.int16]:
    units = np.empty(header.count, dtype=np.int16)
    bits = decode_units(coded, header.unit_parameter, units)
    if bits == ENDS_EARLY:
        raise CodecError("The update's units are cut short.")
    if bits == OUT_OF_RANGE:
        raise CodecError(f"A unit in the update is larger than {UNITS_MAX}.")
    if bits == NOT_SHORTEST:
        raise CodecError("A unit in the update is escaped and need not be.")
    if whole_bytes(bits) != len(coded):
        raise CodecError(f"The update has {len(coded) - whole_bytes(bits)} bytes too many.")
    if bits % 8 and coded[-1] >> (bits % 8):
        raise CodecError("The padding after the update's units is not zero.")
    return units
