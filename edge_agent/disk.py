"""The operations on files that `edge_agent.flash` is made of: the words, and the real disk.

Everything that must survive a power cut goes through these few, so that the same code runs on a device's card and on
the simulated one, which loses, tears and reorders what was not synced. Names are relative to a root, with at most one
directory: `state.a`, `files/1f…`. Contents become durable by `sync` of the file, names by `sync_directory` of the
directory; before that a power cut may keep any part of them.

Every OSError is left to the caller.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # what a disk without room says
_PIECE_BYTES: Final = 256 * 1024


class Disk(Protocol):
    """A tree of files. Descriptors are numbers, as the operating system's are."""

    def place(self, name: str = "") -> Path:
        """Where a person finds it."""

    # Contents

    def open(self, name: str, *, empty: bool = False) -> int:
        """Open a file to read and write, mode 0600; it is made if it is not there, and emptied if so wished."""

    def close(self, descriptor: int) -> None:
        """Give the descriptor back. Syncs nothing."""

    def read_at(self, descriptor: int, offset: int, length: int) -> bytes:
        """The bytes there, fewer where the file ends."""

    def write_at(self, descriptor: int, offset: int, data: bytes) -> None:
        """Write all of `data`."""

    def reserve(self, descriptor: int, size_bytes: int) -> None:
        """Make room for so many bytes from the start; the file is at least so long then."""

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Make the file so long."""

    def sync(self, descriptor: int) -> None:
        """Return when the content and the length are durable."""

    def drop_cache(self, descriptor: int) -> None:
        """Let what is read of the file from now on come from the card, as far as it is synced."""

    # Names

    def read(self, name: str) -> bytes | None:
        """The whole content; None when there is no such file."""

    def view(self, name: str) -> memoryview:
        """The whole content, as it is, without memory for it; what is written to it nobody else sees."""

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content, piece by piece."""

    def size_bytes(self, name: str) -> int | None:
        """How long the file is; None when there is none."""

    def names(self, directory: str) -> list[str]:
        """What is in the directory."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name in its directory, in place of what bore that."""

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""

    def make_directory(self, name: str) -> None:
        """Make a directory, mode 0700, if it is not there."""

    def sync_directory(self, name: str) -> None:
        """Return when all that was named, renamed and deleted in the directory is durable."""


class Directory:
    """The real disk: what the operating system keeps under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def place(self, name: str = "") -> Path:
        """Where a person finds it."""
        return self._root / name

    def open(self, name: str, *, empty: bool = False) -> int:
        """Open a file to read and write."""
        how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if empty else 0)
        return os.open(self.place(name), how, 0o600)

    def close(self, descriptor: int) -> None:
        """Give the descriptor back."""
        os.close(descriptor)

    def read_at(self, descriptor: int, offset: int, length: int) -> bytes:
        """The bytes there."""
        return os.pread(descriptor, length, offset)

    def write_at(self, descriptor: int, offset: int, data: bytes) -> None:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written

    def reserve(self, descriptor: int, size_bytes: int) -> None:
        """Make room for so many bytes."""
        os.posix_fallocate(descriptor, 0, size_bytes)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Make the file so long."""
        os.ftruncate(descriptor, size_bytes)

    def sync(self, descriptor: int) -> None:
        """Return when the content and the length are durable."""
        os.fsync(descriptor)

    def drop_cache(self, descriptor: int) -> None:
        """Let what is read from now on come from the card; advice, which Linux follows for clean pages."""
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, name: str) -> bytes | None:
        """The whole content; None when there is no such file."""
        try:
            return self.place(name).read_bytes()
        except FileNotFoundError:
            return None

    def view(self, name: str) -> memoryview:
        """The whole content, mapped: the page cache has it, and lets go of it where memory is short."""
        with self.place(name).open("rb") as file:
            is_empty = not os.fstat(file.fileno()).st_size  # nothing cannot be mapped
            return memoryview(b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content, piece by piece."""
        with self.place(name).open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece

    def size_bytes(self, name: str) -> int | None:
        """How long the file is; None when there is none."""
        try:
            return self.place(name).stat().st_size
        except FileNotFoundError:
            return None

    def names(self, directory: str) -> list[str]:
        """What is in the directory."""
        return [path.name for path in self.place(directory).iterdir()]

    def rename(self, old: str, new: str) -> None:
        """Give a file another name."""
        self.place(old).replace(self.place(new))

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        self.place(name).unlink(missing_ok=True)

    def make_directory(self, name: str) -> None:
        """Make a directory, if it is not there."""
        self.place(name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def sync_directory(self, name: str) -> None:
        """Return when what happened to the names in the directory is durable."""
        descriptor = os.open(self.place(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
