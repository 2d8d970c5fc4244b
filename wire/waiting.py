"""What waits to be sent: a bounded queue between any thread that publishes and the one thread of the link.

It is open only while the link is up. A bell, a socket pair, wakes the link's thread, which sleeps in a selector.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import threading
from typing import NamedTuple


class Outgoing(NamedTuple):
    """One publish that waits."""

    topic: str
    payload: bytes
    retain: bool
    qos: int = 1


class Waiting:
    """Bounded by a count of messages and by bytes of payload; over either bound the newest is dropped and counted."""

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self.dropped = 0
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._lock = threading.Lock()  # never held while anything but this class runs
        self._queue: collections.deque[Outgoing] = collections.deque()
        self._bytes = 0
        self._is_open = False

    def put(self, outgoing: Outgoing) -> bool:
        """Append, or drop and count when closed or full; was there room?"""
        size = len(outgoing.payload)
        with self._lock:
            is_full = len(self._queue) >= self._count_max or self._bytes + size > self._bytes_max
            if is_full or not self._is_open:
                self.dropped += 1
                return False
            self._queue.append(outgoing)
            self._bytes += size
            return True

    def take(self) -> Outgoing | None:
        """The oldest, or None."""
        with self._lock:
            if not self._queue:
                return None
            outgoing = self._queue.popleft()
            self._bytes -= len(outgoing.payload)
            return outgoing

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._queue

    def open(self) -> None:
        """Take publishes from now on."""
        with self._lock:
            self._is_open = True

    def close(self) -> None:
        """Forget everything, counted as dropped, and take nothing more."""
        with self._lock:
            self._is_open = False
            self.dropped += len(self._queue)
            self._queue.clear()
            self._bytes = 0


class Bell:
    """Wakes a thread that waits in a selector until `sock` is readable. Takes no lock.

    Who is to be woken looks, after `silence`, for whatever was left for it before a `ring`: then none is missed.
    """

    def __init__(self) -> None:
        self._is_rung = False
        self.sock, self._out = socket.socketpair()
        self.sock.setblocking(False)
        self._out.setblocking(False)

    def ring(self) -> None:
        """Make `sock` readable; from any thread, and from a signal handler."""
        if not self._is_rung:
            self._is_rung = True
            with contextlib.suppress(OSError):  # it is closed: nobody is left to wake
                self._out.send(b"w")

    def silence(self) -> None:
        """Read what `ring` wrote."""
        with contextlib.suppress(BlockingIOError):
            while self.sock.recv(4096):
                pass
        self._is_rung = False  # last: a ring in between would be read here, and be the last one that anybody hears

    def release(self) -> None:
        """Close the socket pair, at the very end."""
        self.sock.close()
        self._out.close()
