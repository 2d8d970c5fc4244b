"""What a payload begins with: the kind of its numbers, how many there are, and how each tensor is written.

    byte    3, the format
    byte    bits 0-3 value_bits, 0 .. 8; bit 4 lane, 1 is 'float32'; bits 5-6 layout, 0 'tensors', 1 'flat', 2 'context'
    varint  n, how many parameters the model trains
    varint  k, how many of them are in this update, k <= n
    bits    in layout 'tensors' a description of each tensor; in 'flat' of all parameters taken for one tensor; in
            'context' none. Nothing at all where k is 0.

Varint: 7 bits a byte, lowest first, the top bit set on all but the last byte; at most 5 bytes, none more than needed.
Bits: bit j is bit j % 8, of weight 2^(j % 8), of byte j // 8, counted from behind k; numbers lowest bit first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from engine.codec.error import CodecError
from engine.kernels.gaps import GAPS, MAPPED, PARAMETER_MAX, WHOLE
from engine.kernels.quantize import SCALE_MAX, UNIT_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.codec.update import Lane

__all__ = ["CodecError"]  # it is made elsewhere

FORMAT = 3
SIZE_MAX = 2**28
VALUE_BITS_MAX = 8
PARAMETER_BITS = 5
_SCALE_BITS, _STEP_PARAMETER = 8, 2

Layout: TypeAlias = Literal["tensors", "flat", "context"]
LAYOUTS: tuple[Layout, ...] = ("tensors", "flat", "context")


@dataclass(frozen=True)
class Part:
    """How one tensor of `size` parameters, flat index `first` and on, is written; what is not used is 0.

    `mode` is GAPS, MAPPED or WHOLE of engine/kernels/gaps.py.
    """

    first: int
    size: int
    count: int = 0
    mode: int = GAPS
    gap_parameter: int = 0
    scale: int = 0
    magnitude_parameter: int = 0


@dataclass(frozen=True)
class Header:
    """What a payload says in front of its entries; these begin `bits` bits behind byte `start`.

    There is a part for each tensor in layout 'tensors', one in 'flat', and none in 'context'.
    """

    lane: Lane
    value_bits: int
    layout: Layout
    size: int
    count: int
    parts: tuple[Part, ...] = ()
    start: int = 0
    bits: int = 0


class BitWriter:
    """Bits, lowest first."""

    def __init__(self) -> None:
        self.number, self.length = 0, 0

    def put(self, number: int, width: int) -> None:
        """Append the `width` bits of `number`."""
        self.number |= number << self.length
        self.length += width

    def tobytes(self) -> bytes:
        """Give all bits, and zeros up to a whole byte."""
        return self.number.to_bytes((self.length + 7) // 8, "little")

    def put_rice(self, number: int, parameter: int) -> None:
        """Append the Rice code of `number`."""
        self.put(1 << (number >> parameter), (number >> parameter) + 1)
        self.put(number & ((1 << parameter) - 1), parameter)


class BitReader:
    """Reads what BitWriter wrote, from byte `start` of `data` on. Raises CodecError at its end."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data, self.start, self.position = data, 8 * start, 8 * start

    def get(self, width: int) -> int:
        """Read `width` bits."""
        first, behind = self.position >> 3, (self.position + width + 7) >> 3
        if behind > len(self.data):
            raise CodecError("The update ends inside its header.")
        number = int.from_bytes(self.data[first:behind], "little") >> (self.position & 7)
        self.position += width
        return number & ((1 << width) - 1)

    def get_rice(self, parameter: int, highest: int) -> int:
        """Read the Rice code of a number up to `highest`."""
        run = 0
        while not self.get(1):
            run += 1
            if run > highest >> parameter:
                raise CodecError("A number in the update's header is too large.")
        return run << parameter | self.get(parameter)


def varint(number: int) -> bytes:
    """The shortest varint of a number from 0 to 2^35 - 1."""
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def read_varint(payload: bytes, position: int) -> tuple[int, int]:
    """Read the varint at `position`; return it and the position behind it. Raises CodecError."""
    number = 0
    for group in range(5):
        if position >= len(payload):
            raise CodecError("The update ends inside its header.")
        byte = payload[position]
        position += 1
        number |= (byte & 0x7F) << (7 * group)
        if byte < 0x80:
            if byte == 0 and group:
                raise CodecError("A number in the update's header is longer than it need be.")
            return number, position
    raise CodecError("A number in the update's header is longer than five bytes.")


def read_counts(payload: bytes) -> Header:
    """Read everything in front of the parts. Raises CodecError."""
    if len(payload) < 2 or payload[0] != FORMAT:
        raise CodecError(f"The update does not start with format {FORMAT}: it is empty or of another version.")
    value_bits, reals, layout = payload[1] & 15, bool(payload[1] & 16), payload[1] >> 5
    if value_bits > VALUE_BITS_MAX or (reals and not value_bits) or layout >= len(LAYOUTS):
        raise CodecError(f"The update's second byte is {payload[1]}, which says nothing.")
    size, position = read_varint(payload, 2)
    count, position = read_varint(payload, position)
    if size > SIZE_MAX or count > size:
        raise CodecError(f"The update claims {count} of {size} parameters.")
    if count == 0 and layout:
        raise CodecError("The update is empty, and laid out in a way that only entries need.")
    return Header("float32" if reals else "int8", value_bits, LAYOUTS[layout], size, count, (), position)


def size_of(shapes: Sequence[tuple[int, int]]) -> int:
    """How many parameters tensors of these shapes have."""
    size = 0
    for rows, columns in shapes:
        size += rows * columns
    return size


def empty_parts(shapes: Sequence[tuple[int, int]]) -> list[Part]:
    """Give a part for each tensor, with nothing in it."""
    parts, first = [], 0
    for rows, columns in shapes:
        parts.append(Part(first, rows * columns))
        first += rows * columns
    return parts


def levels_of(lane: Lane, value_bits: int, scale: int) -> int:
    """How many magnitudes a tensor's codes may have; 0 means any."""
    if value_bits == 0:
        return 0
    levels: int = 1 << (value_bits - 1)
    return levels if lane == "float32" else min(levels, scale)


def write_head(header: Header) -> tuple[bytes, BitWriter]:
    """Give the bytes in front of the parts, and the parts' bits, to which their entries may be appended."""
    second = header.value_bits | (header.lane == "float32") << 4 | LAYOUTS.index(header.layout) << 5
    writer = BitWriter()
    left, scale = header.count, None
    for part in header.parts:
        if not left:
            break
        if part is not header.parts[-1]:
            writer.put(bool(part.count), 1)
            if not part.count:
                continue
            writer.put(part.count - 1, (min(left, part.size) - 1).bit_length())
        left -= part.count
        _write_part(writer, part, header, scale)
        scale = part.scale
    return bytes([FORMAT, second]) + varint(header.size) + varint(header.count), writer


def read_head(payload: bytes, shapes: Sequence[tuple[int, int]]) -> Header:
    """Read and check everything in front of the entries. Raises CodecError."""
    return read_parts(payload, read_counts(payload), shapes)


def read_parts(payload: bytes, header: Header, shapes: Sequence[tuple[int, int]]) -> Header:
    """Read and check what stands between `header`, as `read_counts` gave it, and the entries. Raises CodecError."""
    wanted = size_of(shapes)
    if header.size != wanted:
        raise CodecError(f"The update is for {header.size} parameters, but this model trains {wanted}.")
    if header.layout == "context":
        return header
    parts = [Part(0, header.size)] if header.layout == "flat" else empty_parts(shapes)
    reader = BitReader(payload, header.start)
    left, scale = header.count, None
    for at, part in enumerate(parts):
        if not left:
            break
        count = left
        if at < len(parts) - 1:
            if not reader.get(1):
                continue
            count = reader.get((min(left, part.size) - 1).bit_length()) + 1
        if count > min(left, part.size):
            raise CodecError(f"The update claims {count} values of tensor {at}, which has {part.size}.")
        left -= count
        parts[at] = _read_part(reader, part, count, header, scale)
        scale = parts[at].scale
    bits = reader.position - reader.start
    return Header(
        header.lane, header.value_bits, header.layout, header.size, header.count, tuple(parts), header.start, bits
    )


def _write_part(writer: BitWriter, part: Part, header: Header, before: int | None) -> None:
    """Write how one tensor's entries are coded; `before` is the scale of the last tensor that had any."""
    if part.count < part.size:
        writer.put(part.mode == MAPPED, 1)
        if part.mode == GAPS:
            writer.put(part.gap_parameter, PARAMETER_BITS)
    if header.value_bits and before is None:
        writer.put(part.scale, _SCALE_BITS)
    elif header.value_bits and before is not None:
        step = part.scale - before
        writer.put_rice(2 * step if step >= 0 else -2 * step - 1, _STEP_PARAMETER)
    if levels_of(header.lane, header.value_bits, part.scale) != 1:
        writer.put(part.magnitude_parameter, PARAMETER_BITS)


def _read_part(reader: BitReader, part: Part, count: int, header: Header, before: int | None) -> Part:
    mode, gap_parameter, scale, magnitude_parameter = WHOLE, 0, 0, 0
    if count < part.size:
        mode = MAPPED if reader.get(1) else GAPS
        gap_parameter = reader.get(PARAMETER_BITS) if mode == GAPS else 0
    if header.value_bits:
        lowest, highest = (0, SCALE_MAX) if header.lane == "float32" else (1, UNIT_MAX)
        if before is None:
            scale = reader.get(_SCALE_BITS)
        else:
            step = reader.get_rice(_STEP_PARAMETER, 2 * highest)
            scale = before + (step // 2 if step % 2 == 0 else -(step + 1) // 2)
        if not lowest <= scale <= highest:
            raise CodecError(f"The scale of a tensor of the update is {scale}, outside {lowest} to {highest}.")
    levels = levels_of(header.lane, header.value_bits, scale)
    if levels != 1:
        magnitude_parameter = reader.get(PARAMETER_BITS)
    too_large = levels and magnitude_parameter and 1 << magnitude_parameter >= levels
    if max(gap_parameter, magnitude_parameter) > PARAMETER_MAX or too_large:
        raise CodecError(f"The update claims Rice parameters {gap_parameter} and {magnitude_parameter}.")
    return Part(part.first, part.size, count, mode, gap_parameter, scale, magnitude_parameter)
