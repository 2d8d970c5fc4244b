"""A device's card: the disk under the product's own flash code, with a page cache above it that a power cut empties.

    write ─▶ cache ──sync of the file──▶ card          name, rename, delete ─▶ cache ──sync of the directory──▶ card

What is read is the cache. A power cut leaves the card, and of what was not synced whatever chance took along: each
sector by itself, one of them perhaps half written, and of each directory's changes the first few. A process that
merely dies leaves the cache as it is. After a sync that failed the cache still shows what was written and calls it
clean, so that no later sync writes it: it is gone with the next power cut (Rebello et al., "Can Applications Recover
from fsync Failures?", USENIX ATC 2020).

Only what was written is held, and what cache and card agree on is held once: a card may reserve 128 kB twice, and
there may be a hundred thousand of them. Contents are immutable bytes, directories are copied when they change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECTOR_BYTES: Final = 512

Operation: TypeAlias = Literal["grow", "write", "truncate", "sync", "name", "sync names"]


class Chance(Protocol):
    """What a power cut asks: a `random.Random`, or a test that goes through all answers."""

    def random(self) -> float:
        """From 0 on, below 1: what is below one half is lost."""

    def randrange(self, stop: int, /) -> int:
        """A whole number below `stop`."""


class _File:
    """One file: what is read of it, and what is on the card."""

    __slots__ = ("data", "kept", "kept_size", "lost", "size", "unsynced")

    def __init__(self, data: bytes = b"", size: int = 0) -> None:
        self.data = self.kept = data  # what was written; zeros follow up to the size
        self.size = self.kept_size = size
        self.unsynced: tuple[tuple[int, int], ...] = ()  # ranges of sectors: first, and the one behind the last
        self.lost = False  # has a sync failed since the last power cut? then the card may lack what is called clean

    def is_clean(self) -> bool:
        return not self.unsynced and self.size == self.kept_size

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > self.size:
            self.resize(end)
        self.data = self.data[:offset].ljust(offset, b"\0") + data + self.data[end:]
        self._touch(offset, end)

    def resize(self, size: int) -> None:
        stale = min(size, len(self.kept))
        if self.size < stale:  # it was longer once: zeros take the place of what was cut off
            self._touch(self.size, stale)
        self.data, self.size = self.data[:size], size

    def _touch(self, start: int, end: int) -> None:
        touched = (start // SECTOR_BYTES, -(-end // SECTOR_BYTES))
        if touched not in self.unsynced:
            self.unsynced += (touched,)

    def sectors(self) -> list[int]:
        """The unsynced ones, each once, in the order in which they were written first."""
        return list(dict.fromkeys(sector for first, end in self.unsynced for sector in range(first, end)))

    def sync(self) -> int:
        """Bring everything unsynced to the card; how many sectors."""
        sectors = self.sectors()
        if self.lost:
            for sector in sectors:
                self.keep(sector)
        else:
            self.kept = self.data
        self.kept_size, self.unsynced = self.size, ()
        return len(sectors)

    def keep(self, sector: int, length: int = SECTOR_BYTES) -> None:
        """Bring the first `length` bytes of one sector to the card."""
        start, end = sector * SECTOR_BYTES, sector * SECTOR_BYTES + length
        new = self.data[start:end].ljust(length, b"\0")
        self.kept = self.kept[:start].ljust(start, b"\0") + new + self.kept[end:]

    def drop_cache(self) -> None:
        if self.lost:
            cached, self.data = self.data, self.kept
            for sector in self.sectors():
                start, end = sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES
                self.data = self.data[:start].ljust(start, b"\0") + cached[start:end] + self.data[end:]
            self.data, self.lost = self.data[: self.size], False

    def forget_cache(self) -> None:
        self.kept = self.kept[: self.kept_size]
        self.data, self.size, self.unsynced, self.lost = self.kept, self.kept_size, (), False


class _Directory:
    """One directory: the names that are seen, those on the card, and the changes between, in order."""

    __slots__ = ("entries", "kept", "unsynced")

    def __init__(self, entries: dict[str, _File | _Directory]) -> None:
        self.entries = self.kept = entries
        self.unsynced: list[dict[str, _File | _Directory | None]] = []  # each happens whole or not; None: no such name

    def change(self, change: dict[str, _File | _Directory | None]) -> None:
        if self.entries is self.kept:
            self.entries = dict(self.kept)
        self.unsynced.append(change)
        _apply(self.entries, change)

    def sync(self) -> None:
        self.kept = self.entries
        self.unsynced = []

    def forget_cache(self, changes_kept: int) -> None:
        self.kept = dict(self.kept)
        for change in self.unsynced[:changes_kept]:
            _apply(self.kept, change)
        self.entries = self.kept
        self.unsynced = []


class Card:
    """The `edge_agent.disk.Disk` of one simulated device.

    `begin` is called before each operation that changes something. It may raise OSError, which fails the operation, or
    anything else, before which the operation has not begun. `coin` tells for each sector of a sync that fails whether
    it reached the card all the same.
    """

    def __init__(self, begin: Callable[[Operation], None], coin: Callable[[], bool]) -> None:
        self.bytes_written = 0
        self.sync_count = 0
        self._begin = begin
        self._coin = coin
        self._root = _Directory({})
        self._open: dict[int, _File] = {}
        self._next_descriptor = 0
        self._dirty: dict[_File, None] = {}  # files of which something is unsynced, or which failed to sync

    # Power

    def cut(self, chance: Chance, *, tear: bool = False) -> None:
        """The power fails: what is on the card is what is there. With `tear` one unsynced sector is half written."""
        unsynced = self._unsynced()
        torn = chance.randrange(len(unsynced)) if tear and unsynced else -1
        for file in self._dirty:
            if file.size != file.kept_size and chance.random() >= 0.5:
                file.kept_size = file.size
        for number, (file, sector) in enumerate(unsynced):
            if number == torn:
                file.keep(sector, chance.randrange(SECTOR_BYTES))
            elif chance.random() >= 0.5:
                file.keep(sector)
                self.bytes_written += SECTOR_BYTES
        for file in self._dirty:
            file.forget_cache()
        for directory in self._directories():
            if directory.unsynced:
                directory.forget_cache(chance.randrange(len(directory.unsynced) + 1))
        self._dirty.clear()
        self._open.clear()

    def has_unsynced(self) -> bool:
        """Is there a sector that a power cut could tear?"""
        return bool(self._unsynced())

    def _unsynced(self) -> list[tuple[_File, int]]:
        return [(file, sector) for file in self._dirty for sector in file.sectors()]

    def survivor(self) -> Card:
        """What a power cut now would leave if chance took nothing along: a card to read from."""
        card = Card(_refuse, bool)
        card._root = _survivor(self._root)
        return card

    # What befalls a card by itself

    def rot(self, name: str, position: int) -> None:
        """One bit of the content is no longer what was written."""
        file = self._file(name)
        assert file is not None, f"{name} cannot rot, it is not there"
        file.data, file.kept = _flip(file.data, position), _flip(file.kept, position)

    def lose(self, name: str) -> None:
        """The file is gone, from the card as well."""
        directory, leaf = self._parent(name)
        directory.entries, directory.kept = (
            {other: entry for other, entry in entries.items() if other != leaf}
            for entries in (directory.entries, directory.kept)
        )

    # Contents

    def place(self, name: str = "") -> Path:
        """Where a person finds it."""
        return Path("/card") / name

    def open(self, name: str, *, empty: bool = False) -> int:
        """Open a file to read and write."""
        directory, leaf = self._parent(name)
        file = directory.entries.get(leaf)
        if file is None:
            self._begin("name")
            file = _File()
            directory.change({leaf: file})
        assert isinstance(file, _File), f"{name} is a directory"
        self._next_descriptor += 1
        self._open[self._next_descriptor] = file
        if empty and file.size:
            self.truncate(self._next_descriptor, 0)
        return self._next_descriptor

    def close(self, descriptor: int) -> None:
        """Give the descriptor back."""
        self._open.pop(descriptor, None)

    def read_at(self, descriptor: int, offset: int, length: int) -> bytes:
        """The bytes there."""
        file = self._open[descriptor]
        length = max(0, min(length, file.size - offset))
        return file.data[offset : offset + length].ljust(length, b"\0")

    def write_at(self, descriptor: int, offset: int, data: bytes) -> None:
        """Write all of `data`; of a write that fails half may be there."""
        file = self._open[descriptor]
        try:
            self._begin("write" if offset + len(data) <= file.size else "grow")
        except OSError:
            if offset + len(data) <= file.size and self._coin():
                self._dirty[file] = None
                file.write(offset, data[: len(data) // 2])
            raise
        self._dirty[file] = None
        file.write(offset, data)

    def reserve(self, descriptor: int, size_bytes: int) -> None:
        """Make room for so many bytes."""
        file = self._open[descriptor]
        if size_bytes > file.size:
            self._begin("grow")
            self._dirty[file] = None
            file.resize(size_bytes)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Make the file so long."""
        file = self._open[descriptor]
        if size_bytes != file.size:
            self._begin("truncate")
            self._dirty[file] = None
            file.resize(size_bytes)

    def sync(self, descriptor: int) -> None:
        """Return when the content and the length are durable."""
        file = self._open[descriptor]
        try:
            self._begin("sync")
        except OSError:
            self._fail_to_sync(file)
            raise
        self.sync_count += 1
        self.bytes_written += SECTOR_BYTES * file.sync()
        if not file.lost:
            self._dirty.pop(file, None)

    def drop_cache(self, descriptor: int) -> None:
        """Let what is read from now on come from the card, as far as it is synced."""
        self._open[descriptor].drop_cache()

    def _fail_to_sync(self, file: _File) -> None:
        if file.is_clean():
            return
        for sector in file.sectors():
            if self._coin():
                file.keep(sector)
        file.unsynced, file.lost = (), True

    # Names

    def read(self, name: str) -> bytes | None:
        """The whole content; None when there is no such file."""
        file = self._file(name)
        return None if file is None else file.data.ljust(file.size, b"\0")

    def view(self, name: str) -> memoryview:
        """The whole content, as it is."""
        content = self.read(name)
        if content is None:
            raise FileNotFoundError(name)
        return memoryview(content)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content, piece by piece."""
        content = self.read(name)
        if content is None:
            raise FileNotFoundError(name)
        yield content

    def size_bytes(self, name: str) -> int | None:
        """How long the file is; None when there is none."""
        file = self._file(name)
        return None if file is None else file.size

    def names(self, directory: str) -> list[str]:
        """What is in the directory."""
        return list(self._directory(directory).entries)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name."""
        directory, leaf = self._parent(old)
        file = directory.entries.get(leaf)
        if file is None:
            raise FileNotFoundError(old)
        self._begin("name")
        directory.change({leaf: None, new.rpartition("/")[2]: file})

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        directory, leaf = self._parent(name)
        if leaf in directory.entries:
            self._begin("name")
            directory.change({leaf: None})

    def make_directory(self, name: str) -> None:
        """Make a directory, if it is not there."""
        if name and name not in self._root.entries:
            self._begin("name")
            self._root.change({name: _Directory({})})

    def sync_directory(self, name: str) -> None:
        """Return when what happened to the names in the directory is durable."""
        self._begin("sync names")
        directory = self._directory(name)
        self.sync_count += 1
        self.bytes_written += SECTOR_BYTES * bool(directory.unsynced)
        directory.sync()

    def _directory(self, name: str) -> _Directory:
        directory = self._root.entries.get(name) if name else self._root
        if not isinstance(directory, _Directory):
            raise FileNotFoundError(name)
        return directory

    def _directories(self) -> list[_Directory]:
        return [self._root, *(entry for entry in self._root.entries.values() if isinstance(entry, _Directory))]

    def _parent(self, name: str) -> tuple[_Directory, str]:
        directory, _, leaf = name.rpartition("/")
        return self._directory(directory), leaf

    def _file(self, name: str) -> _File | None:
        head, _, leaf = name.rpartition("/")
        directory = self._root.entries.get(head) if head else self._root
        file = directory.entries.get(leaf) if isinstance(directory, _Directory) else None
        return file if isinstance(file, _File) else None


def _apply(entries: dict[str, _File | _Directory], change: dict[str, _File | _Directory | None]) -> None:
    for name, entry in change.items():
        if entry is None:
            entries.pop(name, None)
        else:
            entries[name] = entry


def _survivor(directory: _Directory) -> _Directory:
    return _Directory(
        {
            name: _survivor(entry)
            if isinstance(entry, _Directory)
            else _File(entry.kept[: entry.kept_size], entry.kept_size)
            for name, entry in directory.kept.items()
        }
    )


def _flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes(byte ^ 1 for byte in data[position : position + 1]) + data[position + 1 :]


def _refuse(operation: Operation) -> None:
    raise AssertionError(f"what would survive is only looked at: {operation}")
