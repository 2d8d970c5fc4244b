"""A child that goes on: packets both ways for as long as it lives, beside `edge_agent.child`, which is for one answer.

    agent ── task, then whatever is told ──▶ child          one socket pair (SOCK_SEQPACKET), which keeps packets whole
    agent ◀───────────── reports ─────────── child          without a frame of ours, and ends when either side does

A thread of the agent's reads reports, reaps the child and posts one `Gone`. Telling never waits: what does not fit into
the socket is not told, and the caller counts it. In the child, `begin` must be the first call. It dies with its agent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from edge_agent import child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKET_BYTES_MAX: Final = 128 * 1024  # the largest payload of a link is 120,000 bytes
KILL_S: Final = 5.0


class Gone(NamedTuple):
    """The child is gone; `reason` is a sentence about its exit status, and empty when that was 0."""

    stream: Stream
    reason: str
    peak_rss_kb: int
    cpu_s: float
    wall_s: float


class Stream:
    """One running child. `hear` takes its reports and `post` its end, both in a thread of the stream's own."""

    def __init__(self, module: str, task: bytes, hear: Callable[[bytes], None], post: Callable[[Gone], None]) -> None:
        self._hear, self._post = hear, post
        self._began = time.monotonic()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._socket.sendall(task)
            # From the caller's thread, never from one that ends: the death signal follows the thread that forked.
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=2,  # the log
                env={**os.environ, **child.ENVIRONMENT},
            )
        self._thread = threading.Thread(target=self._attend, name=module, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The process id."""
        pid: int = self._process.pid
        return pid

    def tell(self, packet: bytes) -> bool:
        """Hand a packet over, from any thread, without waiting; False when there is no room for it, or no child."""
        with contextlib.suppress(OSError):
            self._socket.send(packet, socket.MSG_DONTWAIT)
            return True
        return False

    def kill(self) -> None:
        """End it now, and return when it is gone. Its end is posted all the same."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        self._thread.join(KILL_S)

    def _attend(self) -> None:
        with self._socket:
            while packet := self._receive():
                self._hear(packet)
        _, status, usage = os.wait4(self._process.pid, 0)
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        wall_s, cpu_s = time.monotonic() - self._began, usage.ru_utime + usage.ru_stime
        self._post(Gone(self, child.why(code) if code else "", usage.ru_maxrss, cpu_s, wall_s))

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(PACKET_BYTES_MAX)
        except ConnectionResetError:  # it ended before it had read all that it was told
            return b""


def begin() -> tuple[bytes, Callable[[bytes], None], Iterator[bytes]]:
    """Tie this process to its parent: (the task, the function that reports, what is told from now on).

    Everything that writes to stdout lands in the log. Exits when the parent is gone already.
    """
    child.tie_to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, it is meant for the agent, which ends this child
    ours = socket.socket(fileno=os.dup(0))
    return ours.recv(PACKET_BYTES_MAX), ours.sendall, iter(lambda: ours.recv(PACKET_BYTES_MAX), b"")
