"""The agent's shell: one loop, one owner, no lock.

The link's thread, a child's thread, signals and the clock only *put* into the inbox. The loop takes one event at a
time, asks the machine in `edge_agent.agent` what follows, and performs the effects in their order: what must be on
flash is there before anything speaks of it. One key=value line per event that had effects goes to stdout.

What the world does wrong ends the program with one sentence: the disk is full, the lock is taken. Starting up again
is the recovery; the outbox on flash is the memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import queue
import random
import signal
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import msgspec

from edge_agent import budget, child, config, effects, flash, host, samples, slots, status, story, storyfile, traffic
from edge_agent import predictions as watch
from edge_agent.agent import Agent, Identity
from edge_agent.disk import FULL, Directory
from edge_agent.first_model import FirstModel
from edge_agent.home_assistant import HomeAssistant
from edge_agent.log import log
from edge_agent.probation import Answered, Ended, Failed, Looked, Started
from edge_agent.ranges import Fetcher
from edge_agent.runtime import installed_runtime
from edge_agent.stream import Gone
from edge_agent.systemd import Notifier
from edge_agent.trainings import Trainings
from wire import keys, topics
from wire.link import Arrived, Link, LinkDown, LinkEvent, LinkUp

if TYPE_CHECKING:
    from edge_agent.effects import Effect, Event

READING_MS: Final = 10_000
INBOX_MAX: Final = 200  # messages beyond are dropped: whoever needs an answer asks again
_VOLATILE: Final = frozenset(
    {"temperature_c", "battery_rate", "busy_rate", "joules_today", "rss_kb", "account"}
)  # new figures that are worth no write


class ServiceError(Exception):
    """The agent cannot start, or not go on; one sentence."""


class Stop(msgspec.Struct, frozen=True):
    """A signal asked the agent to end."""

    signal_name: str


class Tell(msgspec.Struct, frozen=True):
    """A signal asked for the story."""


Item: TypeAlias = "Event | LinkDown | child.Ended | watch.Event | Tell | Stop"


def run(settings: config.Config) -> None:
    """Run until SIGTERM or SIGINT. Raises ServiceError with one sentence when it cannot start, or not go on."""
    root = settings.device.state
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (root / "lock").open("a") as lock:  # whoever is refused must not empty it
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ServiceError(f"another agent runs with {root}: one state directory, one agent") from error
            lock.truncate(0)
            _open(settings).run()
    except OSError as error:
        _give_up(settings, error)


def _open(settings: config.Config) -> Service:
    try:
        return Service(settings)
    except (flash.FlashError, config.ConfigError, ValueError) as error:  # KeyTextError is a ValueError
        raise ServiceError(str(error)) from error


def _give_up(settings: config.Config, error: OSError) -> NoReturn:
    root = settings.device.state
    what = f"cannot use {error.filename or root}: {error.strerror or error}"
    if error.errno in FULL:
        what += f"; free some space on the disk of {root}, at least 1 MB, and start the agent again"
    raise ServiceError(f"{what}. Nothing was sent that is not on flash") from error


class Service:
    """Everything that one running agent holds. `run` is its whole life."""

    def __init__(self, settings: config.Config) -> None:
        self._settings = settings
        self._root = settings.device.state
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._flash = flash.Flash(Directory(self._root))
        self._kept = self._flash.load(int.from_bytes(os.urandom(4), "big"))  # what is on flash now
        self._story = story.Story(_life(settings))
        self._limits = settings.budget.limits()
        self._predictions = watch.Predictions(settings, self._inbox.put)
        self._ledger = traffic.Ledger(self._flash.disk, self._limits, written=self._written_bytes)
        self._began = time.monotonic()
        self._systemd = Notifier()
        self._connection = 0  # written by the link's thread alone
        self._slots = slots.Note(self._flash.disk, self._now_ms, log, must_answer=settings.source is not None)
        self._trainings = Trainings(settings, self._flash, self._inbox.put)
        self._fetcher = Fetcher(self._inbox.put, self._ledger.meter.on_fetched, settings.mqtt.ca_file)
        self._samples: samples.Samples | None = None
        self._samples_reason = ""
        self._link_reason: str | None = ""  # None: it is up
        self._sensors, self._host = host.Sensors(), host.Host()
        self._num_examples = 0
        self._dropped = 0
        self._next_reading_ms = 0
        self._next_status_ms = 0
        self._shown: dict[str, Any] = {}
        self._agent, self._first, self._link = self._assemble()
        self._home = HomeAssistant(settings, self._predictions.topic, self._link.publish)

    def _assemble(self) -> tuple[Agent, FirstModel, Link]:
        device, mqtt = self._settings.device, self._settings.mqtt
        identity = Identity(
            fleet=device.fleet,
            device_id=device.id,
            sign=self._story.overhear(keys.load_signer(device.key)),
            verify_coordinator=keys.verifier(device.coordinator_key),
            software=_software(),
            runtime=installed_runtime(),
        )
        disk = self._flash.disk
        has_none = slots.load(disk) is None and flash.load_model(disk) is None
        first = FirstModel(identity, self._limits, wanted=has_none and self._settings.source is not None)
        every_ms = self._settings.telemetry.every_s * 1000
        agent = Agent(identity, self._kept, self._limits, _jitter(), telemetry_ms=every_ms)
        link = Link(
            mqtt.url,
            f"{device.fleet}-{device.id}",
            filters=topics.device_filters(device.fleet, device.id) + self._predictions.filters,
            will=self._next_will,
            post=self._post,
            jitter=_jitter(),  # of its own: it draws in its own thread, and the machine's draws are in the story
            username=mqtt.username,
            password=config.password(self._settings),
            ca_file=mqtt.ca_file,
            cert_file=mqtt.cert_file,
            key_file=mqtt.key_file,
            meter=self._ledger.meter,
        )
        return agent, first, link

    def run(self) -> None:
        """Boot, serve events, and end well or badly; the story of it is on flash in either case."""
        ending = "crash"
        try:
            self._listen()
            self._boot()
            while not isinstance(item := self._next(), Stop):
                self._on_item(item)
            ending = item.signal_name
            self._slots.tell(Ended())
            if self._link_reason is None:  # first, so that presence is right although no will is published
                self._home.goodbye(self._look())
                self._link.publish(*self._agent.last_will(self._connection))
        except Exception as error:
            ending = storyfile.ending_of(error)
            raise
        finally:
            self._trainings.stop("the agent ends")
            self._predictions.stop()
            self._fetcher.stop()
            self._link.stop()
            self._leave(ending)

    def _listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, _frame: self._inbox.put(Stop(signal.Signals(n).name)))
        signal.signal(signal.SIGUSR1, lambda _n, _frame: self._inbox.put(Tell()))
        with contextlib.suppress(OSError):  # a full disk: then nobody can ask for the story, and nothing else is lost
            (self._root / "lock").write_text(str(os.getpid()))

    def _boot(self) -> None:
        if self._ledger.damaged:
            log("traffic-lost", reason="the account of bytes was damaged, and begins anew")
        if self._kept.outbox:
            log("outbox-found", round=self._kept.outbox_round_id, digest=_hex_digest(self._kept.outbox))
        self._slots.tell(Started())
        self._handle(effects.Booted())
        self._handle(self._reading())
        self._link.start()
        self._predictions.start(self._link.publish)
        self._systemd.ready(f"device {self._settings.device.id}")
        log("ready", pid=os.getpid(), device=self._settings.device.id, rss_kb=_rss_kb())

    def _leave(self, ending: str) -> None:
        self._systemd.ends()
        log("end", reason=ending)
        self._link_reason = "the agent has ended"
        self._tell(ending)
        try:
            status.write(self._root, self._look())
            self._ledger.save()
        except OSError as error:  # the disk that ended us may be full; what matters is in the slots
            log("status-lost", reason=str(error))

    def _tell(self, ending: str) -> None:
        try:
            self._story.save(self._root / "story", ending)
        except OSError as error:
            log("story-lost", reason=str(error))

    # What comes

    def _next(self) -> Item:
        """The next event: a due reading or tick, or else whatever comes before those are due."""
        now = self._now_ms()
        self._systemd.goes_on()
        if now >= self._next_status_ms:
            self._show(now)
        if now >= self._next_reading_ms or self._ledger.has_moved():
            if not self._link.is_alive():
                raise ServiceError("the link's thread has ended, which is a fault of ours; starting again mends it")
            return self._reading()
        wake = self._agent.wake_at_ms
        if wake is not None and now >= wake:  # also while messages pour in
            return effects.Tick()
        due = min(self._next_reading_ms, self._next_status_ms)
        until = due if wake is None else min(wake, due)
        try:
            return self._inbox.get(timeout=(until - now) / 1000)
        except queue.Empty:
            return self._next()

    def _on_item(self, item: Event | LinkDown | child.Ended | watch.Event | Tell) -> None:
        match item:
            case LinkDown(reason=reason):
                self._link_reason = reason
                log("link", up=0, reason=reason)
                self._handle(effects.Disconnected())
            case effects.Connected():
                self._link_reason = None
                log("link", up=1, reason="")
                self._handle(item)
            case child.Ended():
                self._ledger.train(item.cpu_s)
                self._next_reading_ms = 0  # what that took of the day's energy is known before anything else starts
                if (meant := self._trainings.on_ended(item)) is not None:
                    self._handle(meant)
            case Answered() | Failed():
                self._slots.tell(item)
            case Gone() | watch.LabelCame() | watch.Again():
                self._predictions.on_event(item)
            case Tell():
                self._tell(story.ASKED)
            case _:
                self._handle(item)

    def _post(self, event: LinkEvent) -> None:
        """Called in the link's thread."""
        match event:
            case LinkUp():
                self._inbox.put(effects.Connected(self._connection))
            case Arrived(topic=topic, payload=payload) if not self._predictions.takes(topic, payload):
                if self._inbox.qsize() < INBOX_MAX:
                    self._inbox.put(effects.Received(topic, payload))
                else:
                    self._dropped += 1
            case LinkDown():
                self._inbox.put(event)

    def _next_will(self) -> tuple[str, bytes]:
        """Called in the link's thread before each attempt to connect."""
        self._connection += 1
        return self._agent.last_will(self._connection)

    def _reading(self) -> effects.Reading:
        self._next_reading_ms = self._now_ms() + READING_MS
        self._host = self._sensors.read()
        self._num_examples = self._count_examples()
        self._slots.tell(Looked(self._link_reason is None))
        account = self._ledger.look()
        reading = effects.Reading(
            **self._host._asdict(),
            num_examples=self._num_examples,
            bytes_up=self._link.bytes_up,
            bytes_down=self._link.bytes_down,
            day_bytes_left=account.day_left,
            month_bytes_left=account.month_left,
            traffic=account.total,
            local_minute=host.local_minute(time.time()),
            day_joules_left=self._limits.day_joules_max - self._joules_today() if self._limits.day_joules_max else None,
        )
        self._predictions.spend(spent=budget.link_refusal(self._limits, reading) is not None)
        return reading

    def _joules_today(self) -> float:
        """What trainings have taken since 00:00 UTC, the running one included; estimated."""
        return self._limits.core_w * (self._ledger.look().core_s_today + self._trainings.running_core_s())

    def _count_examples(self) -> int:
        try:
            self._samples = self._samples or samples.Samples(self._settings.samples_path)
            return self._samples.count() if self._settings.samples.unlabelled else self._samples.count_labelled()
        except (samples.SamplesError, OSError) as error:
            if str(error) != self._samples_reason:
                log("samples", reason=str(error))
            self._samples, self._samples_reason = None, str(error)
            return 0

    # What follows

    def _handle(self, event: Event) -> None:
        now = self._now_ms()
        followed = [*self._story.handle(self._agent, event, now), *self._first.handle(event, now, self._agent.work)]
        for effect in followed:
            self._perform(effect)
        if followed:
            what, names = storyfile.name_of(event), ",".join(storyfile.names_of(followed))
            log("handled", what=what, effects=names, work=self._agent.work.value, why=self._agent.reason)

    def _perform(self, effect: Effect | effects.TakeModel) -> None:
        match effect:
            case effects.Persist(durable=durable):
                self._persist(durable)
            case effects.Publish(topic=topic, payload=payload):
                self._link.publish(topic, payload)
            case effects.FetchRanges():
                self._fetcher.fetch(effect)
            case effects.StartTraining(job=job):
                if (failed := self._trainings.start(job)) is not None:
                    self._inbox.put(failed)
            case effects.StopTraining(reason=reason):
                self._trainings.stop(reason)
            case effects.SetLabel(window=window, label=label):
                if self._samples is not None:
                    self._samples.set_label(window, label)
            case effects.TakeModel(version=version, file=file):
                self._trainings.take(flash.Model(version, "", (file,)))
            case effects.Forget(keep_files=files, keep_residuals=residuals):
                self._flash.forget(files, residuals, slots.files(self._flash.disk))
            case _:
                if (answer := self._flash.perform(effect)) is not None:
                    self._inbox.put(answer)

    def _persist(self, durable: effects.Durable) -> None:
        before = self._kept
        self._flash.save(durable)
        self._kept = durable
        if durable.outbox and durable.outbox != before.outbox:
            digest, size = _hex_digest(durable.outbox), len(durable.outbox)
            log("outbox", round=durable.outbox_round_id, digest=digest, bytes=size)
        elif before.outbox and not durable.outbox:
            verdict = self._agent.receipt.verdict if self._agent.receipt else ""
            log("receipt", round=before.outbox_round_id, verdict=verdict, digest=_hex_digest(before.outbox))

    # What is told

    def _show(self, now_ms: int) -> None:
        """Leave the status if it says something new. A full disk is no reason to stop working."""
        self._next_status_ms = now_ms + status.WRITE_MS_MIN
        look = self._look()
        self._home.tell(look, now_ms)
        shown = {key: value for key, value in msgspec.structs.asdict(look).items() if key not in _VOLATILE}
        if shown == self._shown:
            return
        self._shown = shown
        try:
            status.write(self._root, look)
            self._ledger.save_if_due()
        except OSError as error:
            log("status-lost", reason=str(error))

    def _look(self) -> status.Status:
        agent, durable, refused = self._agent, self._agent.durable, dict(self._agent.refused_count)
        if self._dropped:
            refused["too-many"] = self._dropped
        return status.Status(
            device_id=self._settings.device.id,
            fleet=self._settings.device.fleet,
            pid=os.getpid(),
            boot=durable.boot,
            link_up=self._link_reason is None,
            link_reason=self._link_reason or "",
            work=agent.work.value,
            reason=agent.reason,
            model_version=durable.model_version,
            last_round_id=durable.last_round_id,
            outbox_round_id=durable.outbox_round_id,
            outbox_bytes=len(durable.outbox),
            num_examples=self._num_examples,
            bytes_up=self._link.bytes_up,
            bytes_down=self._link.bytes_down,
            reconnects=self._link.reconnects,
            refused=refused,
            **self._host._asdict(),
            rss_kb=_rss_kb(),
            joules_today=self._joules_today(),
            limits=budget.in_words(self._limits),
            note=self._trainings.note,
            account=self._ledger.shown(),
            watching=self._predictions.look(),
            in_use=self._slots.shown,
        )

    def _written_bytes(self) -> int | None:
        """To the card: by us, by children that have ended, and by the one that watches, which lives."""
        own, watching = host.written_bytes(), self._predictions.pid
        return own and own + ((watching and host.written_bytes(pid=str(watching))) or 0)

    def _now_ms(self) -> int:
        return int((time.monotonic() - self._began) * 1000)


def _life(settings: config.Config) -> storyfile.Life:
    device, every_ms = settings.device, settings.telemetry.every_s * 1000
    told = device.coordinator_key, settings.budget.limits(), every_ms, installed_runtime()
    return storyfile.Life(device.fleet, device.id, _software(), *told)


def _jitter() -> random.Random:
    """Not for secrets: it only spreads a fleet's resends and reconnections."""
    return random.Random(os.urandom(16))  # noqa: S311


def _software() -> str:
    try:
        return f"edge-agent-{metadata.version('hedgerow')}"
    except metadata.PackageNotFoundError:
        return "edge-agent"


def _hex_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _rss_kb() -> int:
    return (host.rss_bytes() or 0) // 1024
