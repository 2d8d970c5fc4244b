"""The payload of an update, format 3: the one door from numbers to bytes, and back.

A header says what the payload holds (header.py). Behind it come the entries, bits on from the header's, each an index
and a value in Golomb-Rice codes (engine/kernels/gaps.py), and zero bits up to a whole byte; or, in layout 'context',
what the context coder makes of them all (engine/kernels/context.py).

A reader refuses whatever a writer would not have written: another format, n or a k beyond the plan's, counts that do
not add up, an index beyond its tensor, a code longer than it need be, bits set in the padding, bytes missing or left
over. Its time and memory are bounded by n, k and the payload's length, which it checks first.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from engine.codec import context
from engine.codec.header import (
    PARAMETER_BITS,
    SIZE_MAX,
    VALUE_BITS_MAX,
    CodecError,
    Header,
    Layout,
    Part,
    empty_parts,
    levels_of,
    read_counts,
    read_head,
    read_parts,
    size_of,
    write_head,
)
from engine.codec.update import Update
from engine.kernels import gaps
from engine.kernels.gaps import GAPS, MAPPED, WHOLE
from engine.kernels.optimize import all_finite
from engine.kernels.quantize import UNIT_MAX, quantize_reals, quantize_units, restore_reals, restore_units
from engine.kernels.reduce import units_within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from engine.codec.update import Lane

    Values: TypeAlias = NDArray[np.int32] | NDArray[np.float32]

Coding: TypeAlias = Literal["rice", "context"]
_ERRORS = {
    gaps.ENDS_EARLY: "The update is cut short.",
    gaps.OUT_OF_RANGE: "An index or a value in the update reaches beyond its tensor or its levels.",
    gaps.NOT_SHORTEST: "A value in the update is escaped and need not be.",
    gaps.MISCOUNTED: "A map in the update has another number of ones than its tensor has values.",
}


@dataclass(frozen=True, eq=False)
class Coded:
    """An update's bytes, and exactly what `decode` reads from them: what was meant minus that stays owed."""

    payload: bytes
    sent: Update


@dataclass(frozen=True, eq=False)
class _Planned:
    """An update, ready to be written in `bits` bits behind n and k."""

    header: Header
    bits: int
    indices: NDArray[np.uint32]
    codes: NDArray[np.int32]
    scales: NDArray[np.int64]
    sent: Update


def encode(update: Update, shapes: Sequence[tuple[int, int]], *, value_bits: int, coding: Coding) -> Coded:
    """Code an update to tensors of `shapes`; the same update always becomes the same bytes.

    Values are rounded to `value_bits` bits, or kept where that is 0, which only whole units can be. Of several ways to
    write the update the shortest is taken. A real value above 64 is sent as 64.

    Raises:
        CodecError: real numbers that are NaN or infinite, units that are 0, or beyond 254 and to be rounded; indices
            that do not increase; shapes of another size; value_bits that the lane does not have.
    """
    _check(update, shapes, value_bits)
    by_tensor = _plan(update, shapes, value_bits, "tensors")
    flat = _plan(update, shapes, value_bits, "flat")
    shortest = flat if flat.bits < by_tensor.bits else by_tensor
    if coding == "context" and len(update.indices):
        start, _ = write_head(replace(by_tensor.header, layout="context", parts=()))
        body = context.write(
            by_tensor.codes,
            by_tensor.indices,
            by_tensor.scales,
            shapes,
            lane=update.lane,
            value_bits=value_bits,
            bytes_max=(shortest.bits + 7) // 8,
        )
        if body is not None:
            return Coded(start + body, by_tensor.sent)
    return Coded(_written(shortest), shortest.sent)


def decode(
    payload: bytes,
    shapes: Sequence[tuple[int, int]],
    *,
    lane: Lane,
    k_max: int,
    coding: Coding,
    unit_max: int = UNIT_MAX,
) -> Update:
    """Read an update of `lane` to tensors of `shapes`, of which the plan allows `k_max` values.

    A plan of coding 'rice' has no context-coded tensors. `unit_max` bounds whole units, up to 2^31 - 1.

    Raises:
        CodecError: the payload is not one that `encode` writes for such a plan.
    """
    header = read_counts(payload)
    if header.count > k_max:
        raise CodecError(f"The update holds {header.count} values, but the plan allows {k_max}.")
    if header.lane != lane:
        raise CodecError(
            f"The update is of lane {header.lane}, but this model's is {lane}: it belongs to another plan."
        )
    if header.layout == "context" and coding != "context":
        raise CodecError("The update is context-coded, which its plan does not allow.")
    header = read_parts(payload, header, shapes)
    if header.layout == "context":
        indices, codes, ends, scales = context.read(
            payload[header.start :], header.count, shapes, lane=lane, value_bits=header.value_bits
        )
    else:
        indices, codes = _read_entries(payload, header)
        ends, scales = _ends(header.parts), np.array([part.scale for part in header.parts], dtype=np.int64)
    values = _restored(codes, ends, header.value_bits, scales, lane)
    if lane == "int8" and not units_within(values, unit_max):
        raise CodecError(f"A unit in the update is larger than {unit_max}.")
    return Update(lane, header.size, indices, values)


def describe(payload: bytes, shapes: Sequence[tuple[int, int]]) -> Header:
    """Read and check only what is in front of the entries. Raises CodecError."""
    return read_head(payload, shapes)


def count_of(payload: bytes) -> int:
    """How many values a payload says it holds. Raises CodecError for a header of another format."""
    return read_counts(payload).count


def _check(update: Update, shapes: Sequence[tuple[int, int]], value_bits: int) -> None:
    size, lowest = size_of(shapes), 1 if update.lane == "float32" else 0
    if update.size != size or size > SIZE_MAX:
        raise CodecError(f"An update to {update.size} parameters does not fit a model that trains {size}.")
    if bool((update.indices[1:] <= update.indices[:-1]).any()) or (len(update.indices) and update.indices[-1] >= size):
        raise CodecError("The indices of an update are to increase strictly, and to lie inside it.")
    if not lowest <= value_bits <= VALUE_BITS_MAX:
        raise CodecError(f"Values of lane {update.lane} take {lowest} to {VALUE_BITS_MAX} bits, not {value_bits}.")
    if update.lane == "float32":
        if not all_finite(update.values):
            raise CodecError("The update holds NaN or infinite values: training went wrong, nothing is sent.")
    elif not units_within(update.values, UNIT_MAX if value_bits else 2**31 - 1):
        raise CodecError(f"A unit of the update is 0, or beyond {UNIT_MAX} and to be rounded.")


def _ends(parts: Sequence[Part]) -> NDArray[np.int64]:
    return np.array(list(itertools.accumulate(part.count for part in parts)), dtype=np.int64)


def _table(header: Header) -> NDArray[np.int64]:
    rows = [
        (
            part.mode,
            part.first,
            part.size,
            part.count,
            part.gap_parameter,
            part.magnitude_parameter,
            levels_of(header.lane, header.value_bits, part.scale),
        )
        for part in header.parts
    ]
    return np.array(rows, dtype=np.int64).reshape(len(rows), 7)


def _plan(update: Update, shapes: Sequence[tuple[int, int]], value_bits: int, layout: Layout) -> _Planned:
    """Round the update's values, choose how to write each tensor, and count the bits behind n and k."""
    indices = np.ascontiguousarray(update.indices, dtype=np.uint32)
    parts = empty_parts([(1, update.size)] if layout == "flat" else shapes)
    behind = [0, *np.searchsorted(indices, [part.first + part.size for part in parts]).tolist()]
    parts = [replace(part, count=behind[at + 1] - behind[at]) for at, part in enumerate(parts)]
    codes, scales, sent = _rounded(update, value_bits, _ends(parts))
    parts = [replace(part, scale=int(scale)) for part, scale in zip(parts, scales, strict=True)]
    header = Header(update.lane, value_bits, layout, update.size, len(indices), tuple(parts))
    table, gap_bits = _table(header), np.zeros(len(parts), dtype=np.int64)
    gaps.choose_parameters(indices, codes, table, gap_bits)
    parts = [_chosen(part, row, int(taken)) for part, row, taken in zip(parts, table, gap_bits, strict=True)]
    header = replace(header, parts=tuple(parts))
    _, described = write_head(header)
    bits = described.length + gaps.entries_bits(indices, codes, _table(header))
    return _Planned(header, bits, indices, codes, scales, Update(update.lane, update.size, indices, sent))


def _chosen(part: Part, row: NDArray[np.int64], gap_bits: int) -> Part:
    mode = GAPS
    if part.count == part.size:
        mode = WHOLE
    elif part.size < gap_bits + PARAMETER_BITS:
        mode = MAPPED
    return replace(
        part,
        mode=mode,
        gap_parameter=int(row[gaps.GAP_PARAMETER]) if mode == GAPS else 0,
        magnitude_parameter=int(row[gaps.MAGNITUDE_PARAMETER]),
    )


def _written(planned: _Planned) -> bytes:
    head, described = write_head(planned.header)
    buffer = np.zeros((planned.bits + 7) // 8, dtype=np.uint8)
    buffer[: (described.length + 7) // 8] = np.frombuffer(described.tobytes(), dtype=np.uint8)
    gaps.write_entries(planned.indices, planned.codes, _table(planned.header), described.length, buffer)
    return head + buffer.tobytes()


def _rounded(
    update: Update, value_bits: int, ends: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], Values]:
    """Give the codes, each tensor's scale, and the values that they stand for."""
    scales = np.zeros(len(ends), dtype=np.int64)
    if value_bits == 0:
        codes = np.array(update.values, dtype=np.int32, order="C")
        return codes, scales, codes
    codes = np.empty(len(update.indices), dtype=np.int32)
    if update.lane == "float32":
        quantize_reals(np.array(update.values, dtype=np.float32, order="C"), ends, value_bits, scales, codes)
    else:
        quantize_units(np.array(update.values, dtype=np.int32, order="C"), ends, value_bits, scales, codes)
    return codes, scales, _restored(codes, ends, value_bits, scales, update.lane)


def _restored(
    codes: NDArray[np.int32], ends: NDArray[np.int64], value_bits: int, scales: NDArray[np.int64], lane: Lane
) -> Values:
    if value_bits == 0:
        return codes
    if lane == "float32":
        reals = np.empty(len(codes), dtype=np.float32)
        restore_reals(codes, ends, value_bits, scales, reals)
        return reals
    units = np.empty(len(codes), dtype=np.int32)
    restore_units(codes, ends, value_bits, scales, units)
    return units


def _read_entries(payload: bytes, header: Header) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    if header.count > 8 * len(payload):
        raise CodecError(f"The update is cut short: {len(payload)} bytes cannot hold {header.count} values.")
    # a bytearray, because kernels take memory that may be written
    body = np.frombuffer(bytearray(payload[header.start :]), dtype=np.uint8)
    indices, codes = np.empty(header.count, dtype=np.uint32), np.empty(header.count, dtype=np.int32)
    position = gaps.read_entries(body, header.bits, _table(header), indices, codes)
    if position < 0:
        raise CodecError(_ERRORS[position])
    used = (position + 7) // 8
    if position % 8 and body[position // 8] >> (position % 8):
        raise CodecError("The padding after the update's values is not zero.")
    if used != len(body):
        raise CodecError(f"The update has {len(body) - used} bytes too many.")
    return indices, codes
