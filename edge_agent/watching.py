"""The child that watches: source → window → the version in use → one report, for as long as it lives.

    source ─▶ windower ─▶ window ─┬─▶ store of windows that wait for a label, one in `keep_every`
                                  └─▶ version in use ─▶ label and score ─▶ report ─▶ the agent, which publishes it

It is started by `edge_agent.predictions` where a config has a section `[source]`, runs in a process of its own with a
memory limit and at the agent's priority, above that of training, and dies with its agent. What it cannot go on without
ends it with one sentence in its last report; the agent starts it again after a pause.
"""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edge_agent import child, samples, stream
from edge_agent.inference import InUse
from edge_agent.sources.settings import Settings, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

MEMORY_BYTES: Final = 96 << 20  # beyond what the libraries take: two versions at once, windows, a file being read
TELL_S: Final = 1.0  # what was dropped is told no more often, unless a window comes


class Task(msgspec.Struct, frozen=True):
    """What the agent hands to this child."""

    source: Settings
    root: str  # the state directory
    windows: str  # the file of windows that wait for a label
    capacity: int  # of it


class Report(msgspec.Struct, frozen=True):
    """What it hands back, after each window, when something was dropped, and at its end."""

    window: int = 0  # its number in the store; 0: it is not kept
    label: int | None = None
    score: float | None = None  # None: nothing predicts
    version: int = 0
    unix_ms: int = 0  # when it was answered, by the clock of the host; 0: no window
    dropped: dict[str, int] = {}  # since this child began, by reason
    reason: str = ""  # why nothing, or an older version, predicts; at the end, why
    has_ended: bool = False  # the source has; with a reason, because of a fault
    failures: int = 0  # of the version in use, since this child began: it could not be loaded, or ate the memory


def task_bytes(task: Task) -> bytes:
    """The packet that carries it."""
    return msgspec.msgpack.encode(task, enc_hook=str)


def task_of(packet: bytes) -> Task:
    """The task that a packet is."""
    return msgspec.msgpack.decode(packet, type=Task, dec_hook=lambda kind, value: kind(value))


class Watch:
    """One life of the child. `tell` takes its reports, `heard` gives what arrives on the source's topic."""

    def __init__(self, task: Task, tell: Callable[[bytes], None], heard: Iterator[bytes]) -> None:
        self._task, self._heard = task, heard
        self._tell = tell
        self._root = Path(task.root)
        self._in_use = InUse(self._root, task.source.window)
        self._dropped: dict[str, int] = {}
        self._tell_s = 0.0
        self._windows = 0

    def run(self) -> None:
        """Watch until the source is over. Raises SourceError, SamplesError, OSError."""
        from edge_agent.sources.source import open_source
        from edge_agent.sources.windower import Windower

        source = self._task.source
        store = samples.create(Path(self._task.windows), source.window, self._task.capacity)
        windower = Windower(source.window, source.hop_count, self.drop)
        with contextlib.closing(open_source(source, self._root / "seen", self._heard, self.drop)) as opened:
            for piece in opened.pieces():
                for window in windower.take(piece):
                    self._on_window(window, store)
        self.end("")

    def end(self, reason: str, failures: int = 0) -> None:
        """Say that it is over, and why; and of how many failures of the version that tells."""
        failures += self._in_use.failures
        self._report(Report(dropped=self._dropped, reason=reason, has_ended=True, failures=failures))

    def drop(self, reason: str) -> None:
        """Count what was dropped for this reason."""
        self._dropped[reason] = self._dropped.get(reason, 0) + 1
        if time.monotonic() >= self._tell_s:
            self._tell_s = time.monotonic() + TELL_S
            told = Report(dropped=self._dropped, reason=self._in_use.reason, failures=self._in_use.failures)
            self._report(told)

    def _report(self, report: Report) -> None:
        self._tell(msgspec.msgpack.encode(report))

    def _on_window(self, window: NDArray[np.float32], store: samples.Samples) -> None:
        kept = self._keep(window, store) if self._windows % self._task.source.keep_every == 0 else 0
        self._windows += 1
        version = self._in_use.now()
        answer = None if version is None else version.answer(window)
        self._report(
            Report(
                window=kept,
                label=None if answer is None else answer.label,
                score=None if answer is None else answer.score,
                version=0 if version is None else version.number,
                unix_ms=time.time_ns() // 1_000_000,
                dropped=self._dropped,
                reason=self._in_use.reason,
                failures=self._in_use.failures,
            )
        )

    def _keep(self, window: NDArray[np.float32], store: samples.Samples) -> int:
        """Its number in the store; 0 where the card has no room for it."""
        try:
            return store.append(window.astype("<f4").tobytes())
        except OSError:
            self.drop("not kept")
            return 0


def main() -> int:
    """Run as `python -m edge_agent.watching`: exit status 0 when its last report says why it ends."""
    packet, tell, heard = stream.begin()
    watch = Watch(task_of(packet), tell, heard)
    try:
        _limit_memory()
        watch.run()
    except (SourceError, samples.SamplesError, OSError, ImportError, MemoryError) as error:
        watch.end(_in_words(error), failures=int(isinstance(error, MemoryError)))
    return 0


def _in_words(error: Exception) -> str:
    """One sentence."""
    match error:
        case OSError(filename=str(name)):
            return f"cannot use {name}: {error.strerror}"
        case ImportError():
            return f"a library is missing: {error}; install it with pip install 'hedgerow[agent]'"
        case MemoryError():
            return f"out of memory: {MEMORY_BYTES >> 20} MB are allowed beyond what the libraries take"
    return str(error)


def _limit_memory() -> None:
    """Set the limit on what may be allocated; the libraries are loaded first, and their share does not count."""
    import numpy as np  # noqa: F401

    from engine.models.interpreter import runtime_name

    with contextlib.suppress(ValueError):  # windows are kept without one; why none predicts is told with each
        runtime_name()
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = child.allocated_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


if __name__ == "__main__":
    raise SystemExit(main())
