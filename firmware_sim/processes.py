"""Real programs as children: started so that none outlives us, stopped in order, measured by the operating system.

A child is tied to us three times over: it is stopped in order at the end, it gets SIGKILL when the thread that
started it dies (PR_SET_PDEATHSIG, so start children from the main thread), and it looks at its parent once more
after asking for that. It has a session of its own: Ctrl-C is for us, who then stop it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_agent import host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

STOP_TIMEOUT_S: Final = 5.0
AGAIN_S: Final = 0.5
ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)

# Replaces itself with the program, so the pid is the program's. Its parent may be gone before prctl: look again after.
_TETHER: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class Program:
    """One program that may be started, killed and started again; its output is appended to `log`."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process; 0 when none was started."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; from the main thread."""
        assert not self.is_running, f"{self.name} is running already"
        with self.log.open("ab", buffering=0) as log:
            log.write(b"\n")  # a process that was killed may have left half a line
            tether = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid())]
            self._process = subprocess.Popen(
                [*tether, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ask_to_stop(self) -> None:
        """Send SIGTERM, and do not wait."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, until: float) -> None:
        """Wait until the monotonic time `until` for it to end; then kill it."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, until - time.monotonic()))
        self.kill()

    def tail(self, lines: int = 6) -> str:
        """The end of its log, for an error message."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])


def stop_all(programs: Iterable[Program], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Ask all to stop at once, then wait for each; whoever takes longer than `timeout_s` is killed."""
    programs = list(programs)
    for program in programs:
        program.ask_to_stop()
    until = time.monotonic() + timeout_s
    for program in programs:
        program.wait(until)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process as Linux counts it; 0 when it is gone."""
    return host.rss_bytes(pid=str(pid)) or 0


def listener_pid(port: int) -> int:
    """The process of this machine that listens on a TCP port, if we may know it; else 0."""
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text("ascii", "replace").splitlines()[1:]
    ]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it has ended, or is none of ours
            if str(descriptor.readlink()) in sockets:
                return int(descriptor.parts[2])
    return 0


def children_of(pid: int) -> set[str]:
    """The ids of the children that the process has now, as the kernel writes them."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return {child for task in tasks for child in (task / "children").read_text("ascii").split()}
    except OSError:
        return set()


def is_training(pid: int) -> bool:
    """Whether an agent trains now: a child of it holds a lock, as one does that works and does not wait (proc(5))."""
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text("ascii").splitlines()]
    except OSError:
        return False
    holders = {words[4] for words in locks if words[1] == "FLOCK"}
    return not holders.isdisjoint(children_of(pid))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block with KeyboardInterrupt.

    Python swallows an exception that a destructor or a callback of C code raises; so the signal comes again after
    AGAIN_S, until the block has ended.
    """

    def stop(_number: int, _frame: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        raise KeyboardInterrupt

    with _on_signal(stop):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C or SIGTERM does not keep us from stopping what we started."""
    with _on_signal(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _on_signal(action: Callable[[int, object], None] | signal.Handlers) -> Iterator[None]:
    """What asks us to end does `action` meanwhile; where it is ignored (a shell's background job), it stays so."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    numbers = [number for number in ENDINGS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, action) for number in numbers}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, former in before.items():
            signal.signal(number, former)
