"""Child processes of the agent: numbers live there, and die with it.

A `Child` is one process: a task goes in through its stdin, one framed answer comes out of its stdout, its stderr is
the agent's log. A thread of its own moves these bytes, reaps the process and posts one `Ended`; nothing else. In the
child, `begin` must be the first call and `answer` the last: see `edge_agent.trainer`.

The frame is `HANS`, the length as u32, CRC-32, then CBOR: the child's peak memory in kB, and its answer. A child that
dies half-way leaves no whole frame.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import cbor2

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_BYTES_MAX: Final = 4 << 20
KILL_S: Final = 5.0
_FRAME: Final = struct.Struct("<4sII")
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
    """A child is gone. `answer` is None when it gave none."""

    child: Child
    answer: Any
    reason: str  # of an end without an answer
    peak_rss_kb: int  # of one that gave no answer, no less than the agent's own: the kernel counts from the fork on
    cpu_s: float
    wall_s: float


class Child:
    """One running child. `post` is called once, from the child's thread, with its end."""

    def __init__(self, module: str, task: Any, post: Callable[[Ended], None]) -> None:
        self._post = post
        self._task = cbor2.dumps(task)
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

    def kill(self) -> None:
        """End it now, and return when it is gone. Its end is posted all the same."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        self._thread.join(KILL_S)

    def _attend(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(self._task)
        with self._process.stdout as stdout:
            framed = stdout.read(ANSWER_BYTES_MAX)
        _, status, usage = os.wait4(self._process.pid, 0)
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        peak_rss_kb, answer = _unframe(framed) or (usage.ru_maxrss, None)
        cpu_s = usage.ru_utime + usage.ru_stime
        wall_s = time.monotonic() - self._began
        self._post(Ended(self, answer, "" if answer else why(code), peak_rss_kb, cpu_s, wall_s))


def begin() -> tuple[Any, Callable[[Any], None]]:
    """Tie this process to its parent and read the task: (task, the function that answers).

    Everything else that writes to stdout from now on lands in the log. Exits when the parent is gone already.
    """
    tie_to_parent()
    os.nice(10)
    out = os.dup(1)
    os.dup2(2, 1)

    def answer(tree: Any) -> None:
        content = cbor2.dumps([_peak_rss_kb(), tree])
        with os.fdopen(out, "wb") as file:
            file.write(_FRAME.pack(_MAGIC, len(content), zlib.crc32(content)) + content)

    return cbor2.loads(sys.stdin.buffer.read()), answer


def tie_to_parent() -> None:
    """Die with the agent from now on, and leave no core file. Exits when it is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        raise SystemExit("the agent that started this child is gone")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _peak_rss_kb() -> int:
    """The most memory this process has had since it became this program (VmHWM of proc(5))."""
    return _status_kb("VmHWM:")


def allocated_bytes() -> int:
    """What this process has allocated, as RLIMIT_DATA counts it (VmData of proc(5))."""
    return _status_kb("VmData:") * 1024


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def _unframe(framed: bytes) -> tuple[int, Any] | None:
    """(peak memory in kB, answer), or None when the frame is not whole."""
    if len(framed) < _FRAME.size:
        return None
    magic, length, checksum = _FRAME.unpack_from(framed)
    content = framed[_FRAME.size :]
    if magic != _MAGIC or len(content) != length or zlib.crc32(content) != checksum:
        return None
    peak_rss_kb, answer = cbor2.loads(content)
    return peak_rss_kb, answer


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
