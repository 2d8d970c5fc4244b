"""What every payload format begins with, and the gaps between indices that every format codes alike.

A format is a module beside this one; its first byte says which. Numbers in headers are varints: 7 bits a byte, lowest
first, the top bit set on all but the last byte; at most 5 bytes, none more than needed. Bit j of a coded part is bit
j % 8 of its byte j // 8, and a part ends with zero bits up to a whole byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.kernels.gaps import ENDS_EARLY, OUT_OF_RANGE, rice_bits, rice_decode, rice_encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE_MAX = 2**28


class CodecError(Exception):
    """Bytes that are no update, or numbers that cannot become one; the message says which and where."""


def whole_bytes(bits: int) -> int:
    """How many bytes hold so many bits."""
    return (bits + 7) // 8


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


def read_counts(payload: bytes, version: int) -> tuple[int, int, int]:
    """Read the format byte, n and k; return (n, k, the position behind them). Raises CodecError."""
    if not payload or payload[0] != version:
        raise CodecError(f"The update does not start with format {version}: it is empty or of another version.")
    size, position = read_varint(payload, 1)
    count, position = read_varint(payload, position)
    return size, count, position


def check_counts(size: int, count: int) -> None:
    """Refuse counts that no update has. Raises CodecError."""
    if size > SIZE_MAX or count > size:
        raise CodecError(f"The update claims {count} of {size} parameters.")


def check_wanted(size: int, count: int, *, wanted: int, k_max: int) -> None:
    """Refuse an update of another model, or of more values than the plan allows. Raises CodecError."""
    if size != wanted:
        raise CodecError(f"The update is for {size} parameters, but this model trains {wanted}.")
    if count > k_max:
        raise CodecError(f"The update holds {count} values, but the plan allows {k_max}.")


def write_gaps(indices: NDArray[np.uint32], parameter: int) -> bytes:
    """Code strictly increasing indices with Rice parameter `parameter`; whole bytes."""
    gaps = np.zeros(whole_bytes(rice_bits(indices, parameter)), dtype=np.uint8)
    rice_encode(indices, parameter, gaps)
    return gaps.tobytes()


def read_gaps(body: NDArray[np.uint8], parameter: int, size: int, count: int) -> tuple[NDArray[np.uint32], int]:
    """Read `count` indices below `size` from the start of `body`; return them and how many bytes they took.

    Raises:
        CodecError: an index beyond `size`, bytes that end early, or padding that is not zero.
    """
    indices = np.empty(count, dtype=np.uint32)
    bits = rice_decode(body, parameter, size, indices)
    if bits == OUT_OF_RANGE:
        raise CodecError(f"An index in the update reaches beyond its {size} parameters.")
    if bits == ENDS_EARLY:
        raise CodecError("The update's indices are cut short.")
    if bits % 8 and body[bits // 8] >> (bits % 8):
        raise CodecError("The padding after the update's indices is not zero.")
    return indices, whole_bytes(bits)
