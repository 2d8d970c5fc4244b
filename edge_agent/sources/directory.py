"""A directory into which somebody puts .npy, .npz or .csv files: each new one is read once.

A file is taken when two looks find it unchanged, so that none is read while it is being written. Which were taken is
remembered over restarts, in a small file to which each adds a line: name, time and size. Only the newest NAMES_MAX that
lie there are looked at and remembered. A file that is written anew is new.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from edge_agent import flash
from edge_agent.sources.contents import SUFFIXES, pieces_of
from edge_agent.sources.windower import HOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

NAMES_MAX: Final = 4096
PERIOD_S_MIN: Final = 0.05


class Found(NamedTuple):
    """One file as a look finds it; in the order in which files are read."""

    time_ns: int
    name: str
    size_bytes: int


class Directory:
    """The files under `path`, looked for every `period_s`; `memory` is the file that remembers those taken."""

    def __init__(self, path: Path, memory: Path, period_s: float, drop: Callable[[str], None]) -> None:
        self._path, self._memory, self._period_s, self._drop = path, memory, max(period_s, PERIOD_S_MIN), drop
        self._taken, self._line_count = _remembered(memory)
        self._last_look: set[Found] = set()
        self._is_open = True

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """See `edge_agent.sources.source.Source`."""
        while self._is_open:
            found = self._look()
            self._taken &= set(found)
            for file in found:
                if file in self._last_look and file not in self._taken:
                    self._take(file)
                    yield from pieces_of(self._path / file.name, self._drop)
                    yield HOLE  # whether the next file goes on where this one ends nobody knows
            self._last_look = set(found)
            time.sleep(self._period_s)

    def close(self) -> None:
        """See `edge_agent.sources.source.Source`."""
        self._is_open = False

    def _take(self, file: Found) -> None:
        """Remember it, before it is read: a file that brings this process down must not do so again."""
        self._taken.add(file)
        self._line_count += 1
        try:
            if self._line_count > 2 * NAMES_MAX:
                self._line_count = len(self._taken)
                flash.write_file(self._memory, b"".join(map(_line, sorted(self._taken))), synced=False)
            else:
                with self._memory.open("ab") as lines:
                    lines.write(_line(file))
        except OSError:
            self._drop("not remembered")

    def _look(self) -> list[Found]:
        """The newest files, oldest first."""
        with os.scandir(self._path) as entries:
            found = (_found(entry) for entry in entries if entry.name.endswith(SUFFIXES) and entry.name[0] != ".")
            return sorted(heapq.nlargest(NAMES_MAX, (file for file in found if file is not None)))


def _found(entry: os.DirEntry[str]) -> Found | None:
    try:
        status = entry.stat()
        return Found(status.st_mtime_ns, entry.name, status.st_size) if entry.is_file() else None
    except OSError:
        return None  # it is gone already


def _line(file: Found) -> bytes:
    return msgspec.json.encode(file) + b"\n"


def _remembered(memory: Path) -> tuple[set[Found], int]:
    """(the files taken, how many lines say so); a line that a power cut tore says nothing."""
    lines = (flash.read_file(memory) or b"").splitlines()
    taken = set()
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):
            taken.add(msgspec.json.decode(line, type=Found))
    return taken, len(lines)
