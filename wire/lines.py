"""The loop that drives lines: one thread, one selector, one connection or ten thousand.

A line (see wire.link) says which socket it watches, for what, and when it is due; the loop waits for the first of all
that, and lets those lines take a step whose turn it is. What else it decides is how many connect at the same time: a
server that comes back is not called by everybody at once.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import math
import selectors
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from wire.waiting import Bell

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from wire.link import Line

CONNECTING_MAX: Final = 100  # what mosquitto's queue of unanswered calls holds
SLICE_S: Final = 0.2  # after so much reading, lines that are due have their turn: no crowd may keep them from a ping


class _Watched(NamedTuple):
    """What the selector has of a line. The descriptor is kept because a closed socket no longer tells it."""

    line: Line
    sock: socket.socket
    descriptor: int
    events: int


class Lines:
    """Many lines, none of them with a thread of its own. All but `hurry` belong to the thread that calls `turn`."""

    def __init__(self, connecting_max: int = CONNECTING_MAX) -> None:
        self._connecting_max = connecting_max
        self._selector = selectors.DefaultSelector()
        self._bell = Bell()
        self._selector.register(self._bell.sock, selectors.EVENT_READ)
        self._watched: dict[Line, _Watched] = {}
        self._due: list[tuple[float, int, Line]] = []  # a heap; of a line's entries only the armed one counts
        self._armed: dict[Line, float] = {}
        self._order = itertools.count()
        self._connecting: set[Line] = set()
        self._queue: collections.OrderedDict[Line, None] = collections.OrderedDict()  # want to connect, and may not yet
        self._hurried: collections.deque[Line] = collections.deque()
        self._ready: collections.deque[tuple[selectors.SelectorKey, int]] = collections.deque()
        self._stepping: Line | None = None
        self._thread: int | None = None

    def hurry(self, line: Line) -> None:
        """Let the line take a step soon; from any thread, and from a signal handler: it takes no lock."""
        if threading.get_ident() != self._thread:
            self._hurried.append(line)
            self._bell.ring()
        elif line is not self._stepping:  # it looks itself before its step ends
            self._hurried.append(line)

    def turn(self, until_s: float = math.inf) -> None:
        """Wait until something happens on a line, or until the monotonic time `until_s`; take the steps that follow."""
        self._thread = threading.get_ident()
        if not self._ready:
            self._ready.extend(self._selector.select(self._timeout_s(until_s)))
        self._serve_ready(time.monotonic() + SLICE_S)
        now_s = time.monotonic()
        for line in [*self._take_hurried(), *self._take_due(now_s)]:
            self._step(line, 0, now_s)

    def close(self) -> None:
        """Watch nothing any more, at the very end."""
        self._selector.close()
        self._bell.release()

    def _timeout_s(self, until_s: float) -> float | None:
        if self._hurried:
            return 0.0
        first_s = min(until_s, self._due[0][0]) if self._due else until_s
        return None if first_s == math.inf else max(0.0, first_s - time.monotonic())

    def _serve_ready(self, until_s: float) -> None:
        """Let lines step that can read or write. Who is not reached by then is the first of the next turn."""
        while self._ready and (now_s := time.monotonic()) < until_s:
            key, events = self._ready.popleft()
            if key.data is None:
                self._bell.silence()
            elif key.data.line.sock is key.data.sock:  # else it was for a connection that has ended meanwhile
                self._step(key.data.line, events, now_s)

    def _take_hurried(self) -> Iterable[Line]:
        lines = dict.fromkeys(self._hurried.popleft() for _ in range(len(self._hurried)))
        return lines.keys()

    def _take_due(self, now_s: float) -> list[Line]:
        lines = []
        while self._due and self._due[0][0] <= now_s:
            at_s, _, line = heapq.heappop(self._due)
            if self._armed.get(line) == at_s:
                del self._armed[line]
                lines.append(line)
        return lines

    def _step(self, line: Line, ready: int, now_s: float) -> None:
        if line.wants_connection(now_s) and len(self._connecting) >= self._connecting_max:
            self._queue[line] = None
            return
        self._stepping = line
        line.step(ready, now_s)
        self._stepping = None
        self._watch(line)
        self._admit(line)
        self._arm(line)

    def _watch(self, line: Line) -> None:
        """Tell the selector what the line watches now."""
        old, sock = self._watched.get(line), line.sock
        if old is not None and old.sock is sock and old.events == line.wanted:
            return
        if old is not None and old.sock is not sock:
            with contextlib.suppress(KeyError):
                self._selector.unregister(old.descriptor)
            del self._watched[line]
        if sock is None:
            return
        new = self._watched[line] = _Watched(line, sock, sock.fileno(), line.wanted)
        if old is not None and old.sock is sock:
            self._selector.modify(sock, new.events, new)
        else:
            self._selector.register(sock, new.events, new)

    def _admit(self, line: Line) -> None:
        """Keep account of who connects; where there is room, the next one that waits may begin."""
        if line.is_connecting:
            self._connecting.add(line)
        else:
            self._connecting.discard(line)
        if self._queue and len(self._connecting) < self._connecting_max:
            self._hurried.append(self._queue.popitem(last=False)[0])

    def _arm(self, line: Line) -> None:
        due_s = line.due_s
        armed_s = self._armed.get(line, math.inf)
        if due_s < armed_s:
            self._armed[line] = due_s
            heapq.heappush(self._due, (due_s, next(self._order), line))
