"""A flatbuffer, read with every step checked: tables, vectors and numbers inside bytes that come from elsewhere.

Tables point to each other with byte offsets. A table begins with the distance to its *vtable*, which says where each
field lies (0: the field has its default); strings, vectors and tables inside are reached over a further offset.
Every offset and every length is checked before it is followed, and each look pays from a budget, so that tables which
overlap cannot make a small file a long reading. Whatever the bytes, a step here gives a value or raises ModelError.

Layout: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray  # noqa: TC002

from engine.models.graph import ModelError

READ_COST = 16  # what a look into the file costs beside its bytes
NAME_BYTES_MAX = 4096
_NUMBERS = {letter: struct.Struct("<" + letter) for letter in "bBHiIQf"}


@dataclass(slots=True)
class File:
    """The bytes, and how many more of them this reading may touch."""

    data: memoryview
    budget: int

    def unpack(self, letter: str, at: int) -> Any:
        """Return the little-endian number at byte `at`; `letter` is that of `struct`."""
        number = _NUMBERS[letter]
        self.check(at, number.size, number.size)
        return number.unpack_from(self.data, at)[0]

    def check(self, at: int, size: int, cost: int) -> None:
        """Pay `cost`; raise ModelError unless `size` bytes at `at` are in the file and the budget lasts."""
        if at < 0 or size < 0 or at + size > len(self.data):
            raise ModelError(
                f"the model file is damaged: it points to {size} bytes at {at}, but ends at {len(self.data)}; "
                "fetch or export it again"
            )
        self.budget -= READ_COST + cost
        if self.budget < 0:
            raise ModelError(
                "the model file is damaged or too intricate to read; fetch it again or export a smaller one"
            )


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the flatbuffer at byte `at`, whose vtable lies at byte `vtable`."""

    file: File
    at: int
    vtable: int
    vtable_bytes: int

    def field_at(self, field: int, size: int) -> int:
        """Return the byte where a field's value stands, or 0 where it is absent (byte 0 is the root offset)."""
        entry = 4 + 2 * field
        if entry + 2 > self.vtable_bytes:
            return 0
        offset: int = self.file.unpack("H", self.vtable + entry)
        if offset:
            self.file.check(self.at + offset, size, 0)
        return self.at + offset if offset else 0

    def number(self, field: int, letter: str, default: float = 0) -> Any:
        """Return a field that is a number, or its default."""
        at = self.field_at(field, _NUMBERS[letter].size)
        return self.file.unpack(letter, at) if at else default

    def target(self, field: int) -> int:
        """Return the byte that an offset field points to, or 0 where it is absent."""
        at = self.field_at(field, 4)
        return at + int(self.file.unpack("I", at)) if at else 0

    def vector_at(self, field: int, item_bytes: int = 4) -> tuple[int, int]:
        """Return (byte of the first item, number of items) of a vector field; (0, 0) where it is absent."""
        at = self.target(field)
        if not at:
            return 0, 0
        count: int = self.file.unpack("I", at)
        self.file.check(at + 4, count * item_bytes, count * item_bytes)
        return at + 4, count

    def constant_at(self, field: int) -> tuple[int, int]:
        """Return (first byte, length) of a byte vector that is not looked into; (0, 0) where it is absent."""
        at = self.target(field)
        if not at:
            return 0, 0
        count: int = self.file.unpack("I", at)
        self.file.check(at + 4, count, 0)
        return at + 4, count

    def vector(self, field: int, dtype: str) -> NDArray[Any]:
        """Return a vector of numbers as a read-only view; empty where it is absent."""
        first, count = self.vector_at(field, np.dtype(dtype).itemsize)
        return np.frombuffer(self.file.data, dtype, count, first)

    def integers(self, field: int) -> tuple[int, ...]:
        """Return a vector of int32."""
        return tuple(self.vector(field, "<i4").tolist())

    def text(self, field: int) -> str:
        """Return a string; bytes that are no UTF-8 become U+FFFD."""
        first, count = self.vector_at(field, 1)
        if count > NAME_BYTES_MAX:
            raise ModelError(f"the model file has a name of {count} bytes; export it with shorter names")
        return str(self.file.data[first : first + count], "utf-8", "replace")

    def table(self, field: int) -> Table | None:
        """Return the table that a field points to."""
        at = self.target(field)
        return table_at(self.file, at) if at else None

    def tables(self, field: int) -> list[Table]:
        """Return the tables that a vector of offsets points to."""
        first, count = self.vector_at(field)
        items = range(first, first + 4 * count, 4)
        return [table_at(self.file, item + int(self.file.unpack("I", item))) for item in items]


def table_at(file: File, at: int) -> Table:
    """Return the table at byte `at`."""
    vtable = at - int(file.unpack("i", at))
    vtable_bytes = int(file.unpack("H", vtable))
    file.check(vtable, vtable_bytes, 0)
    return Table(file, at, vtable, vtable_bytes)
