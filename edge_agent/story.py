"""The last thousand events and what followed from them, in memory; on flash when the program ends.

One line per event: when, what came, which effects it had. It is what an engineer reads after a failure that the log
rotated away, and it holds no payloads: nothing of the samples, keys or updates.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final, NamedTuple

import cbor2

from edge_agent import flash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LENGTH_MAX: Final = 1000


class Entry(NamedTuple):
    """One event. `at_ms` counts from the start of the program."""

    at_ms: int
    event: str
    effects: tuple[str, ...]


class Story:
    """A bounded list of entries; the oldest are forgotten."""

    def __init__(self, length_max: int = LENGTH_MAX) -> None:
        self._entries: collections.deque[Entry] = collections.deque(maxlen=length_max)

    def add(self, at_ms: int, event: str, effects: Sequence[str]) -> None:
        """Remember one event and the names of its effects."""
        self._entries.append(Entry(at_ms, event, tuple(effects)))

    def entries(self) -> tuple[Entry, ...]:
        """Everything remembered, oldest first."""
        return tuple(self._entries)

    def save(self, path: Path, ending: str) -> None:
        """Write everything and why the program ends to `path`."""
        flash.write_file(path, cbor2.dumps({"ending": ending, "entries": [list(entry) for entry in self._entries]}))


def load(path: Path) -> tuple[str, tuple[Entry, ...]]:
    """(why the program ended, entries) of a saved story."""
    tree = cbor2.loads(path.read_bytes())
    return tree["ending"], tuple(Entry(at_ms, event, tuple(effects)) for at_ms, event, effects in tree["entries"])
