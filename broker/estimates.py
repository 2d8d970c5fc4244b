"""What the coordinator holds of every device in lane hardened: one memory-mapped file, a row of float16 for each.

    64 bytes   magic "HEF1", P, padding
    a row      the device's id, 64 bytes, then two slots: round, sound?, CRC-32; P float16, padding

A row is written into the older of its slots, and `flush` is on disk before the version that counts it is committed. So
after a power cut one slot is whole, and what it lacks is in the store: the payloads of updates that no version counts.
A row says which round it contains, and an update that it contains is not added again: the sum may be made as often as
need be. The file is made sparse, and takes room as devices appear.

Where the file was lost, or another machine has coordinated meanwhile, an update may build on what no row holds. Such
work was accepted, and counts for what it says by itself; but its row is not *sound*, and the device's next update is
answered `unfounded` (`broker.verdicts`), by which it starts from nothing.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from engine.codec import estimate
from engine.codec.estimate import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from engine.codec.update import Update

FILE_NAME: Final = "estimates.f16"
_HEAD: Final = struct.Struct("<4sQ52x")
_MAGIC: Final = b"HEF1"
_ID_BYTES: Final = 64  # as long as a device's id may be
_SLOT: Final = struct.Struct("<Q?3xI")
_CHECKSUM_BYTES: Final = 4
_ROWS: Final = 64  # by which the file grows


class Row(NamedTuple):
    """What is held of a device. Sound: the device holds the same."""

    estimate: Estimate
    is_sound: bool = True


class Said(NamedTuple):
    """One accepted update of a device, read: the round of the estimate that it builds on, 0 for none."""

    round_id: int
    follows: int
    update: Update


def after(row: Row, said: Iterable[Said]) -> Row:
    """The row once it contains these updates, in the order of their rounds; those that it contains change nothing."""
    for round_id, follows, update in said:
        if round_id <= row.estimate.round_id:
            continue
        builds_on_row = follows == row.estimate.round_id
        base = row.estimate if builds_on_row else estimate.nothing(len(row.estimate.values))
        row = Row(estimate.added(base, update, round_id), follows == 0 or (builds_on_row and row.is_sound))
    return row


class Estimates:
    """The file at `path`. Nothing is there until the first row is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: Rows | None = None

    def of(self, size: int) -> Rows:
        """The rows for models of `size` parameters. A file for another number of them, or that is none, begins anew."""
        if self._rows is None or self._rows.size != size:
            self.close()
            self._rows = Rows(self._path, size)
        return self._rows

    def flush(self) -> None:
        """Return when every row is on disk."""
        if self._rows is not None:
            self._rows.flush()

    def close(self) -> None:
        """Let go of the file."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None


class Rows:
    """What is held of each device, `size` numbers each."""

    def __init__(self, path: Path, size: int) -> None:
        self.size = size
        self._slot_bytes = _SLOT.size + -(-2 * size // 16) * 16
        self._row_bytes = _ID_BYTES + 2 * self._slot_bytes
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        head = _HEAD.pack(_MAGIC, size)
        if os.pread(self._file, _HEAD.size, 0) != head:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, head, 0)
        rooms = max(os.fstat(self._file).st_size - _HEAD.size, 0) // self._row_bytes
        self._grow(max(rooms, _ROWS))
        names = ((self._name(row), row) for row in range(self._rooms))
        self._places = {name.decode("ascii"): row for name, row in names if name.isascii() and name}

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
        os.close(self._file)

    def row(self, device_id: str) -> Row:
        """What is held of a device; nothing of one that has no row, or none that is whole."""
        found = [row for row, _ in self._slots(device_id) if row is not None]
        return max(found, key=lambda row: row.estimate.round_id, default=Row(estimate.nothing(self.size)))

    def holds(self, device_id: str, round_id: int) -> bool:
        """Is the estimate that the update of this round made held, as the device holds it?"""
        row = self.row(device_id)
        return row.is_sound and row.estimate.round_id == round_id

    def put(self, device_id: str, row: Row) -> None:
        """Write a device's row over the older of its two; it is on disk after `flush`."""
        if device_id not in self._places:
            self._add(device_id)
        _, at = min(self._slots(device_id), key=lambda slot: 0 if slot[0] is None else slot[0].estimate.round_id)
        numbers = row.estimate.values.astype("<f2").tobytes()
        head = _SLOT.pack(row.estimate.round_id, row.is_sound, 0)[:-_CHECKSUM_BYTES]
        checksum = _checksum(device_id, head, numbers).to_bytes(_CHECKSUM_BYTES, "little")
        os.pwrite(self._file, head + checksum + numbers, at)  # a full disk is an error; through the map it is a signal

    def flush(self) -> None:
        """Return when every row is on disk."""
        os.fdatasync(self._file)

    def _slots(self, device_id: str) -> list[tuple[Row | None, int]]:
        """What the two slots of a device hold, None where one is empty or torn; and where they are."""
        if device_id not in self._places:
            return []
        first = self._at(self._places[device_id]) + _ID_BYTES
        return [(self._read(device_id, at), at) for at in (first, first + self._slot_bytes)]

    def _read(self, device_id: str, at: int) -> Row | None:
        start = at + _SLOT.size
        head, numbers = self._map[at:start], self._map[start : start + 2 * self.size]
        round_id, is_sound, checksum = _SLOT.unpack(head)
        if not round_id or _checksum(device_id, head[:-_CHECKSUM_BYTES], numbers) != checksum:
            return None
        return Row(Estimate(np.frombuffer(numbers, "<f2").astype(np.float16), round_id), is_sound)

    def _add(self, device_id: str) -> None:
        row, name = max(self._places.values(), default=-1) + 1, device_id.encode("ascii")
        assert 0 < len(name) <= _ID_BYTES, "an id has 1 to 64 letters"
        if row >= self._rooms:
            self._map.close()
            self._grow(self._rooms + _ROWS)
        os.pwrite(self._file, name, self._at(row))
        self._places[device_id] = row

    def _grow(self, rooms: int) -> None:
        os.ftruncate(self._file, _HEAD.size + rooms * self._row_bytes)
        self._rooms, self._map = rooms, mmap.mmap(self._file, 0, prot=mmap.PROT_READ)

    def _name(self, row: int) -> bytes:
        return self._map[self._at(row) : self._at(row) + _ID_BYTES].rstrip(b"\0")

    def _at(self, row: int) -> int:
        return _HEAD.size + row * self._row_bytes


def _checksum(device_id: str, head: bytes, numbers: bytes) -> int:
    """Of whose they are, too: a name may be torn, and then its row is nobody's."""
    return zlib.crc32(numbers, zlib.crc32(head, zlib.crc32(device_id.encode("ascii"))))
