"""The story of one agent: its last events, what followed from each, and enough of them to live it again elsewhere.

    lines, to be read only ─▶ part: checkpoint, event, event, … ─▶ part: checkpoint, event, …  (the newest last)

`Story.handle` stands between a shell and the machine. It keeps each event as it came, the signatures that were made
over it (who lives it again has no key), and a digest of each effect. A part begins with the machine's checkpoint, so
the oldest parts can lose their contents, and then their lines, while what is left can still be lived again:
`firmware-sim replay` builds the same machine and compares. An event that raised stands last, with no effects.

No key, no password and no sample is in a story. What arrived over MQTT is, what the host said of itself, and the update
that a training left: it is published anyway, but only to the coordinator, so a story is for those who run the fleet.
"""

from __future__ import annotations

import collections
import os
import signal
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from edge_agent import flash, status, storyfile
from edge_agent.storyfile import LENGTH_MAX, Entry, Life, Record, StoryError
from wire.messages import fit_reason

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agent.agent import Agent
    from edge_agent.effects import Effect, Event
    from wire.envelope import Sign

BYTES_MAX: Final = 256 * 1000  # of the parts; one event more may be over it, until the next comes
EVENT_BYTES_MAX: Final = 128 * 1024  # no message of the contract has more; what has is told, and not kept
PARTS: Final = 4  # of a full story: what is forgotten at a time
PATIENCE_S: Final = 10.0
ASKED: Final = "not yet, it was asked for while the agent ran"


class _Part(Struct):
    entries: list[Entry]
    bytes_count: int = 0

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.bytes_count += _size(entry)

    def finish(self, names: tuple[str, ...], digests: bytes, signed: tuple[bytes, ...]) -> None:
        """Say what followed from the last event."""
        self.bytes_count -= _size(self.entries[-1])
        self.add(msgspec.structs.replace(self.entries.pop(), effects=names, digests=digests, signed=signed))


class Story:
    """What one agent remembers of its life: no more than `length_max` events and about `bytes_max` bytes of them."""

    def __init__(self, life: Life, *, length_max: int = LENGTH_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._life = life
        self._length_max, self._bytes_max = length_max, bytes_max
        self._lines: collections.deque[Entry] = collections.deque()
        self._parts: collections.deque[_Part] = collections.deque()
        self._forgotten_count = 0
        self._signed: list[bytes] = []

    def overhear(self, sign: Sign) -> Sign:
        """`sign`, with its answers remembered. A will's, made in another thread, may be among them, and is harmless."""

        def overheard(data: bytes) -> bytes:
            signature = sign(data)
            self._signed.append(storyfile.digest_of(data) + signature)
            return signature

        return overheard

    def handle(self, agent: Agent, event: Event, now_ms: int) -> list[Effect]:
        """Let the agent decide, and remember what came and what followed; of what raises, only what came."""
        part = self._begin(agent, event, now_ms)
        self._signed = []
        followed = agent.handle(event, now_ms)
        part.finish(storyfile.names_of(followed), storyfile.digests_of(followed), tuple(self._signed))
        return followed

    def record(self, ending: str) -> Record:
        """Everything remembered, and why the program ends."""
        entries = (*self._lines, *(entry for part in self._parts for entry in part.entries))
        return Record(storyfile.VERSION, self._life, fit_reason(ending), self._forgotten_count, entries)

    def save(self, path: Path, ending: str) -> None:
        """Write it to `path`, mode 0600."""
        flash.write_file(path, storyfile.encode(self.record(ending)))

    def _begin(self, agent: Agent, event: Event, now_ms: int) -> _Part:
        content = storyfile.encode(event)
        checkpoint = b""
        if self._needs_part():
            self._parts.append(_Part([]))
            checkpoint = storyfile.encode(agent.checkpoint())
        if len(content) > EVENT_BYTES_MAX:
            content = b""
        part = self._parts[-1]
        part.add(Entry(now_ms, storyfile.name_of(event), None, content=content, checkpoint=checkpoint))
        self._trim()
        return part

    def _needs_part(self) -> bool:
        if not self._parts:
            return True
        last = self._parts[-1]
        is_full = len(last.entries) * PARTS >= self._length_max or last.bytes_count * PARTS >= self._bytes_max
        return is_full or not last.entries[-1].content

    def _trim(self) -> None:
        """Take the contents of the oldest parts, and then the oldest lines, until both bounds hold."""
        parts = self._parts
        while len(parts) > 1 and (self._kept_count() > self._length_max or self._kept_bytes() > self._bytes_max):
            self._lines.extend(Entry(entry.at_ms, entry.event, entry.effects) for entry in parts.popleft().entries)
        while self._lines and len(self._lines) + self._kept_count() > self._length_max:
            self._lines.popleft()
            self._forgotten_count += 1

    def _kept_count(self) -> int:
        return sum(len(part.entries) for part in self._parts)

    def _kept_bytes(self) -> int:
        return sum(part.bytes_count for part in self._parts)


# What is told


def ask(root: Path) -> None:
    """Have the agent that runs with `root` leave its story now; if none runs, its last one stands.

    Raises StoryError when there is neither, or the agent does not answer.
    """
    path = root / "story"
    if status.is_running(root):
        before = _stamp(path)
        _signal(root)
        until = time.monotonic() + PATIENCE_S
        while _stamp(path) == before:
            if time.monotonic() > until:
                raise StoryError(f"the agent of {root} leaves no story within {PATIENCE_S:.0f} s: its log says why")
            time.sleep(0.05)
    elif not path.exists():
        raise StoryError(f"no agent has run with {root} yet: edge-agent run starts one")


def as_lines(record: Record) -> list[str]:
    """What a person reads, the newest event last."""
    read_only = len(record.entries) - len(record.replayable)
    told = [as_line(entry) for entry in record.entries]
    if read_only:
        told.insert(read_only, f"(the {read_only} events above can only be read; firmware-sim replay begins here)")
    return [head(record), *told]


def head(record: Record) -> str:
    """Whose story it is, how much of it there is, and how it ended."""
    life, count, forgotten = record.life, len(record.entries), record.forgotten_count
    of = f"the last {count} events of {count + forgotten}" if forgotten else f"{count} events"
    return f"{life.device_id} of {life.fleet}, {life.software}: {of}; its end: {record.ending}"


def as_line(entry: Entry) -> str:
    """One event and what followed from it."""
    followed = "raised" if entry.effects is None else ", ".join(entry.effects)
    return f"{entry.at_ms / 1000:12.3f} s  {entry.event:18} {followed}".rstrip()


def as_tree(record: Record) -> dict[str, Any]:
    """The same for scripts. `effects` is null for the event that raised."""
    return {
        "device_id": record.life.device_id,
        "fleet": record.life.fleet,
        "software": record.life.software,
        "ending": record.ending,
        "forgotten_count": record.forgotten_count,
        "replayable_count": len(record.replayable),
        "events": [{"at_ms": e.at_ms, "event": e.event, "effects": e.effects} for e in record.entries],
    }


def _size(entry: Entry) -> int:
    return len(entry.content) + len(entry.checkpoint) + len(entry.digests) + sum(map(len, entry.signed))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def _signal(root: Path) -> None:
    """Send SIGUSR1 to the process that wrote its number into the lock, which it does once it listens."""
    text = (root / "lock").read_text("ascii", "replace")
    if not (text.isascii() and text.isdigit() and int(text) > 1):
        raise StoryError(f"the agent of {root} is starting: ask again in a moment")
    try:
        os.kill(int(text), signal.SIGUSR1)
    except OSError as error:
        raise StoryError(f"cannot ask process {text}, the agent of {root}: {error.strerror}; be its user") from error
