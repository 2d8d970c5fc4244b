"""The agent's side of watching: starts the child, publishes predictions, hears labels. Without `[source]`: nothing.

    child ── report ──▶ JSON on hedgerow/{device}/prediction, QoS 0, dropped while the link is down
    hedgerow/{device}/label ──▶ the window with that number goes to the samples, with its label
    [source] topic ──▶ child

Reports are published by the thread that reads them, so neither training nor a busy loop delays one. A child that died
comes back after a pause, which doubles with each death and is short again for one that lived long; a source that is
over stays so. Labels come from the owner's own MQTT server and are not signed: who may write to that topic teaches this
device. Let the server's access list say who may.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from edge_agent import samples, stream, watching
from edge_agent.log import log
from edge_agent.probation import Answered, Failed
from edge_agent.stream import Gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.config import Config

    Publish: TypeAlias = Callable[[str, bytes, bool, int], bool]

PAUSE_S: Final = (1.0, 300.0)  # after the first death in a row, and at most
LASTED_S: Final = 60.0  # who lived so long dies for the first time again
LABELS_MAX: Final = 100  # that wait to be written
LABEL_BYTES_MAX: Final = 256
SHOWN_S: Final = 60.0  # a status that tells nothing but more windows is worth a write to the card so often


class Label(Struct, frozen=True):
    """What arrives on the topic of labels, as JSON."""

    window: Annotated[int, Meta(ge=1, le=(1 << 53) - 1)]
    label: Annotated[int, Meta(ge=0, le=samples.LABEL_MAX)]


class LabelCame(Struct, frozen=True):
    """A label waits to be written."""


class Again(Struct, frozen=True):
    """The pause after a death is over."""


Event: TypeAlias = Gone | LabelCame | Again | Answered | Failed


class Prediction(Struct, frozen=True):
    """What is published, as JSON. `label` is null of an anomaly score, `score` too where no model is here yet."""

    window: int | None  # the number that a label names; null: this one is not kept
    label: int | None
    score: float | None
    version: int  # 0: none
    unix_ms: int


class Shown(Struct, frozen=True):
    """What a status says of it."""

    source: str = ""  # "": none is configured
    reason: str = ""  # why nothing, or an older version, predicts
    windows: int = 0
    per_minute: float = 0.0
    last: Prediction | None = None
    labels: int = 0
    restarts: int = 0
    dropped: dict[str, int] = {}


class Predictions:
    """The watching of one agent. `post` takes events for `on_event`, from threads of their own."""

    def __init__(self, settings: Config, post: Callable[[Event], None]) -> None:
        self._settings, self._post = settings, post
        self._source = settings.source
        self._publish: Publish = lambda *_: False
        self._stream: stream.Stream | None = None
        self._report = watching.Report()
        self._last: Prediction | None = None
        self._spent = self._stopped = False
        self._reason = ""
        self._windows = self._taken = self._restarts = self._deaths = 0
        self._answered = 0  # the version that the last answers were of; written by the stream's thread
        self._earlier: dict[str, int] = {}  # what earlier children dropped
        self._unsent: dict[str, int] = {}  # written by the stream's thread alone
        self._unheard: dict[str, int] = {}  # by the link's
        self._unlearnt: dict[str, int] = {}  # by the loop's
        self._labels: queue.Queue[bytes] = queue.Queue(LABELS_MAX)
        self._shown, self._shown_s = Shown(), 0.0

    @property
    def topic(self) -> str:
        """Where predictions are published."""
        return "" if self._source is None else self._source.prediction_topic(self._settings.device.id)

    @property
    def pid(self) -> int | None:
        """The process id of the child; None while there is none."""
        return None if self._stream is None else self._stream.pid

    @property
    def filters(self) -> tuple[str, ...]:
        """What the link must subscribe to besides."""
        if self._source is None:
            return ()
        return (self._label_topic, *([self._source.topic] if self._source.kind == "mqtt" else []))

    def start(self, publish: Publish) -> None:
        """Begin to watch, if there is a source."""
        self._publish = publish
        if self._source is not None and not self._stopped:
            task = watching.Task(
                self._source,
                str(self._settings.device.state),
                str(self._settings.waiting_path),
                self._settings.samples.capacity,
            )
            self._report, self._answered = watching.Report(), 0
            packet = watching.task_bytes(task)
            try:
                self._stream = stream.Stream("edge_agent.watching", packet, self._on_report, self._post)
            except OSError as error:
                self._come_back(f"the child cannot be started: {error.strerror or error}", 0.0)
            else:
                log("watching", source=self._source.place, pid=self._stream.pid)

    def stop(self) -> None:
        """End the child; nothing is started any more."""
        self._stopped = True
        if self._stream is not None:
            self._stream.kill()

    def spend(self, *, spent: bool) -> None:
        """Say whether the owner's budget of bytes is spent: then nothing is published."""
        self._spent = spent

    def takes(self, topic: str, payload: bytes) -> bool:
        """Take a message that is for this side, without waiting; called in the link's thread."""
        if topic not in self.filters:
            return False
        if topic == self._label_topic:
            self._take_label(payload)
        elif self._stream is None or not self._stream.tell(payload or b"\n"):  # an empty packet would mean the end
            _count(self._unheard, "too fast")
        return True

    def on_event(self, event: Event) -> None:
        """Do what an event asks for; called in the loop."""
        match event:
            case LabelCame():
                self._learn(self._labels.get_nowait())
            case Again():
                self.start(self._publish)
            case Gone():
                self._on_gone(event)

    def look(self) -> Shown:
        """What a status says; the same for a minute, unless there is more news than one more window."""
        if self._source is None:
            return self._shown
        now_s, windows, shown = time.monotonic(), self._windows, self._shown
        news = (self._why, self._restarts, self._taken, self._last and self._last.version)
        since_s = now_s - self._shown_s
        told = (shown.reason, shown.restarts, shown.labels, shown.last and shown.last.version)
        if shown.source and since_s < SHOWN_S and news == told:
            return shown
        rate = (windows - shown.windows) / max(since_s, 1e-3) * 60 if shown.source else 0.0
        self._shown_s = now_s
        dropped = _sum(self._earlier, self._report.dropped, self._unsent, self._unheard, self._unlearnt)
        self._shown = Shown(
            self._source.place, self._why, windows, rate, self._last, self._taken, self._restarts, dropped
        )
        return self._shown

    # In the stream's thread

    def _on_report(self, packet: bytes) -> None:
        failures = self._report.failures
        try:
            self._report = report = msgspec.msgpack.decode(packet, type=watching.Report)
        except msgspec.MsgspecError:
            _count(self._unsent, "damaged")  # a child that ran wild; it will not live long
            return
        if report.failures > failures:
            self._answered = 0
            self._post(Failed(report.reason))
        if report.version not in (0, self._answered):
            self._answered = report.version
            self._post(Answered(report.version))
        if not report.unix_ms:
            return
        self._windows += 1
        self._reason = ""  # why the one before ended
        self._last = Prediction(report.window or None, report.label, report.score, report.version, report.unix_ms)
        if self._spent:
            _count(self._unsent, "budget spent")
        elif not self._publish(self.topic, msgspec.json.encode(self._last), False, 0):
            _count(self._unsent, "not sent")

    # In the link's thread

    def _take_label(self, payload: bytes) -> None:
        try:
            self._labels.put_nowait(payload[: LABEL_BYTES_MAX + 1])
        except queue.Full:
            _count(self._unheard, "labels too fast")
        else:
            self._post(LabelCame())

    # In the loop

    @property
    def _label_topic(self) -> str:
        return "" if self._source is None else self._source.label_topic(self._settings.device.id)

    @property
    def _why(self) -> str:
        return self._reason or self._report.reason

    def _learn(self, payload: bytes) -> None:
        try:
            label = msgspec.json.decode(payload[:LABEL_BYTES_MAX], type=Label)
            teach(self._settings, label.window, label.label)
        except (msgspec.MsgspecError, samples.SamplesError, OSError) as error:
            why = str(error) if isinstance(error, samples.SamplesError) else "a label is no {window, label}"
            _count(self._unlearnt, "labels refused")
            log("label-dropped", reason=why)
        else:
            self._taken += 1

    def _on_gone(self, gone: Gone) -> None:
        report, self._stream = self._report, None
        self._earlier, self._report = _sum(self._earlier, report.dropped), watching.Report()
        log("watching-ended", peak_rss_kb=gone.peak_rss_kb, cpu_s=gone.cpu_s, reason=report.reason or gone.reason)
        if report.has_ended and not report.reason:
            self._reason = "the source is over"
        elif not self._stopped:
            if not report.has_ended:
                self._post(Failed(gone.reason))
            self._come_back(report.reason if report.has_ended else gone.reason, gone.wall_s)

    def _come_back(self, reason: str, lived_s: float) -> None:
        """Start the child again after a pause."""
        self._reason = reason
        self._deaths = 1 if lived_s >= LASTED_S else self._deaths + 1
        self._restarts += 1
        pause_s = min(PAUSE_S[1], PAUSE_S[0] * 2.0 ** min(self._deaths - 1, 20))
        log("watching-rests", pause_s=pause_s, reason=reason)
        timer = threading.Timer(pause_s, self._post, [Again()])
        timer.daemon = True
        timer.start()


def teach(settings: Config, window: int, label: int) -> None:
    """Give the window of a prediction its label, and let it train from now on. Raises SamplesError and OSError.

    The samples get a copy first, so that a power cut in between costs nothing; said twice, it is there once.
    """
    waiting = samples.Samples(settings.waiting_path)
    found = waiting.read(window)
    if found is None:
        raise samples.SamplesError(f"window {window} does not wait for a label: it is too old, or never was kept")
    content, before = found
    if before != samples.UNKNOWN:
        raise samples.SamplesError(f"window {window} has a label already: {before}")
    if settings.waiting_path != settings.samples_path:
        samples.create(settings.samples_path, waiting.shape, settings.samples.capacity).append(content, label)
    waiting.set_label(window, label)


def as_lines(shown: Shown) -> list[str]:
    """What a person reads of it."""
    if not shown.source:
        return []
    last, dropped = shown.last, ", ".join(f"{count} {why}" for why, count in sorted(shown.dropped.items()))
    restarts = f", {shown.restarts} restarts" if shown.restarts else ""
    lines = [
        f"watching {shown.source}: {shown.windows} windows, {shown.per_minute:.1f} a minute{restarts}",
        f"why no newer prediction: {shown.reason}" if shown.reason else "",
        "" if last is None else f"last window: {_in_words(last)}",
        f"{shown.labels} labels taken" if shown.labels else "",
        f"dropped: {dropped}" if dropped else "",
    ]
    return [line for line in lines if line]


def _in_words(last: Prediction) -> str:
    number = f"number {last.window}" if last.window else "not kept"
    if last.score is None:
        return f"{number}, no prediction"
    what = f"error {last.score:.4f}" if last.label is None else f"label {last.label}, {last.score:.0%} sure"
    return f"{number}, {what}, by version {last.version}"


def _count(counts: dict[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1


def _sum(*counts: dict[str, int]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for reason, count in each.copy().items():
            total[reason] = total.get(reason, 0) + count
    return total
