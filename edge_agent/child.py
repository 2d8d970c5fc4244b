"""Child processes of the agent: numbers live there, and die with it.

A `Child` is one process: a task goes in through its stdin, one framed answer comes out of its stdout, its stderr is
the agent's log. A thread of its own moves these bytes, reaps the process and posts one `Ended`; nothing else. In the
child, `begin` must be the first call and `answer` the last. One that lingers goes round by round, as long as rounds
follow each other: `tasks` in place of `begin`, and an `Ended` each time. See `edge_agent.trainer`.

A task is its length as u32, then CBOR. An answer is `HANS`, the length as u32, CRC-32, then CBOR: the child's peak
memory in kB, its seconds of processor, and what it answers. A child that dies half-way leaves no whole frame.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import cbor2

from edge_agent import host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ANSWER_BYTES_MAX: Final = 4 << 20
KILL_S: Final = 5.0
LINGER_S: Final = 5.0  # then a child that waits for another task ends
_FRAME: Final = struct.Struct("<4sII")
_LENGTH: Final = struct.Struct("<I")
_MAGIC: Final = b"HANS"
_PR_SET_PDEATHSIG: Final = 1
# One thread each: a device has other work, and every thread reserves a stack and an arena.
ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


class Ended(NamedTuple):
    """A task has ended, and with it the child, unless that waits for another. `answer` is None when it gave none."""

    child: Child
    answer: Any
    reason: str  # of an end without an answer
    peak_rss_kb: int  # of one that gave no answer, no less than the agent's own: the kernel counts from the fork on
    cpu_s: float
    wall_s: float


class Child:
    """One running child. `post` is called once for each task, from the child's thread, with its end.

    One that `lingers` waits after an answer for another task, for a moment, with its libraries loaded.
    """

    def __init__(self, module: str, task: Any, post: Callable[[Ended], None], *, lingers: bool = False) -> None:
        self._post = post
        self._lingers = lingers
        self._lock = threading.Lock()
        self._waits = False  # for another task
        self._told_s = 0.0  # seconds of processor of the tasks that have ended
        self._tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._tasks.put(cbor2.dumps(task))
        self._began = time.monotonic()
        # From the caller's thread, never from one that ends: the death signal follows the thread that forked.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
        )
        self._thread = threading.Thread(target=self._attend, name=module, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def cpu_s(self) -> float:
        """The seconds of processor that its task has taken until now; 0 while it waits for one."""
        return 0.0 if self._waits else max(0.0, host.cpu_s(self._process.pid) - self._told_s)

    def give(self, task: Any) -> bool:
        """Hand over another task, if it waits for one; False where it does not, or is gone."""
        with self._lock:
            waits, self._waits = self._waits, False
            gone = waits and os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            if waits:
                self._began = time.monotonic()
                self._tasks.put(b"" if gone else cbor2.dumps(task))
        return waits and not gone

    def kill(self) -> None:
        """End it now, and return when it is gone. The end of its task is posted all the same."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        with self._lock:
            self._lingers = self._waits = False
        self._tasks.put(b"")
        self._thread.join(KILL_S)

    def _attend(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        framed, owes = b"", False
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin, self._process.stdout as stdout:
            while task := self._next():
                owes = True
                stdin.write(_LENGTH.pack(len(task)) + task)
                stdin.flush()
                framed = _read_frame(stdout)
                if not self._lingers or (said := _unframe(framed)) is None:
                    break
                owes = False
                with self._lock:
                    self._waits, self._told_s = self._lingers, self._told_s + said[1]
                self._post(self._ended(*said, ""))
        _, status, usage = os.wait4(self._process.pid, 0)
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        if owes:
            cpu_s = usage.ru_utime + usage.ru_stime - self._told_s
            peak_rss_kb, _, answer = _unframe(framed) or (usage.ru_maxrss, cpu_s, None)
            self._post(self._ended(peak_rss_kb, cpu_s, answer, "" if answer else why(code)))

    def _next(self) -> bytes:
        """The next task; nothing once no more is to come."""
        with contextlib.suppress(queue.Empty):
            return self._tasks.get(timeout=LINGER_S)
        with self._lock:
            if self._waits:
                self._waits = False
                return b""
        return self._tasks.get()  # it has come just now

    def _ended(self, peak_rss_kb: int, cpu_s: float, answer: Any, reason: str) -> Ended:
        return Ended(self, answer, reason, peak_rss_kb, cpu_s, time.monotonic() - self._began)


def begin() -> tuple[Any, Callable[[Any], None]]:
    """Tie this process to its parent and read the task: (task, the function that answers).

    Everything else that writes to stdout from now on lands in the log. Exits when the parent is gone already.
    """
    return next(tasks())


def tasks() -> Iterator[tuple[Any, Callable[[Any], None]]]:
    """As `begin`, for a child that lingers: one task after the other, until no more is to come."""
    tie_to_parent()
    os.nice(10)
    out = os.dup(1)
    os.dup2(2, 1)
    before_s = 0.0

    def answer(tree: Any) -> None:
        content = cbor2.dumps([_peak_rss_kb(), time.process_time() - before_s, tree])
        with open(out, "wb", closefd=False) as file:
            file.write(_FRAME.pack(_MAGIC, len(content), zlib.crc32(content)) + content)

    stdin = sys.stdin.buffer
    while len(head := stdin.read(_LENGTH.size)) == _LENGTH.size:
        task = cbor2.loads(stdin.read(*_LENGTH.unpack(head)))
        yield task, answer
        del task
        _rest()
        before_s = time.process_time()


def _rest() -> None:
    """Give back what the last task took, and forget its peak."""
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def tie_to_parent() -> None:
    """Die with the agent from now on, and leave no core file. Exits when it is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        raise SystemExit("the agent that started this child is gone")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _peak_rss_kb() -> int:
    """The most memory this process has had since it became this program, or since its last task (VmHWM of proc(5))."""
    return (host.status_bytes("VmHWM:") or 0) // 1024


def allocated_bytes() -> int:
    """What this process has allocated, as RLIMIT_DATA counts it (VmData of proc(5))."""
    return host.status_bytes("VmData:") or 0


def _read_frame(stdout: IO[bytes]) -> bytes:
    """The bytes of an answer, fewer or other ones where none comes."""
    head = stdout.read(_FRAME.size)
    length = _FRAME.unpack(head)[1] if len(head) == _FRAME.size else 0
    return head + stdout.read(min(length, ANSWER_BYTES_MAX))


def _unframe(framed: bytes) -> tuple[int, float, Any] | None:
    """(peak memory in kB, seconds of processor, answer), or None when the frame is not whole."""
    if len(framed) < _FRAME.size:
        return None
    magic, length, checksum = _FRAME.unpack_from(framed)
    content = framed[_FRAME.size :]
    if magic != _MAGIC or len(content) != length or zlib.crc32(content) != checksum:
        return None
    peak_rss_kb, cpu_s, answer = cbor2.loads(content)
    return peak_rss_kb, cpu_s, answer


def why(code: int) -> str:
    """A sentence for an exit status without an answer."""
    if code >= 0:
        return f"the child ended with status {code} and without an answer; its complaint is in the log"
    name = signal.Signals(-code).name
    hint = {
        "SIGKILL": "killed, by the agent or by a kernel that ran out of memory",
        "SIGABRT": "it gave up, most often because its memory limit is too low",
        "SIGSEGV": "it crashed, most often because its memory limit is too low",
    }
    return f"the child was ended by {name}: {hint.get(name, 'see the log')}"
