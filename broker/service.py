"""The coordinator's shell: one loop, one inbox, one owner of everything that changes.

The link's thread, the signal handler and the clock may only put into the inbox. The loop takes what is there, asks
the machine (`broker.coordinator`), and performs the effects in order. Stores that stand together become one
transaction, ahead of everything said after them: nobody acknowledges what is not on disk. Whatever goes wrong with
the store ends the process with status 1, before anything is said; to start again is to recover.

Each event that had effects becomes one line of key=value on the log.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import time
from typing import TYPE_CHECKING, Final

import msgspec

from broker import turns, wiring
from broker.admission import gate, holder
from broker.aggregate.rules import AggregateError, rule_named
from broker.claims import concerns
from broker.config import EMBEDDED, Config
from broker.coordinator import Coordinator
from broker.database import StoreError
from broker.effects import (
    Aggregate,
    Aggregated,
    AggregateFailed,
    CommitRound,
    CommitStage,
    Connected,
    Disconnected,
    FleetRead,
    Publish,
    Received,
    RoundsRead,
    SendChunk,
    SendPatch,
    StageWished,
    StoreEpoch,
    StoreInvited,
    StoreRound,
    StoreSeen,
    StoreTrial,
    StoreUpdate,
    Tick,
)
from broker.estimates import FILE_NAME as ESTIMATES_FILE
from broker.estimates import Estimates
from broker.evaluate import EvaluateError, HeldOut
from broker.evaluate import load as load_held_out
from broker.lease import only_one
from broker.log import new_reason, tell
from broker.metrics import Metrics
from broker.refusals import DAY_S, PAUSE_S, Tally
from broker.rows import Cost
from broker.shelf import Shelf
from broker.store import Store
from broker.versions import Frames, next_version, restored
from broker.voice import Identity
from broker.wiring import ServiceError
from engine.codec.header import CodecError
from engine.models.graph import ModelError
from wire import envelope, keys, topics
from wire.link import Arrived, LinkDown, LinkEvent, LinkUp
from wire.log_line import line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from broker.effects import Event
    from broker.mqtt_server import Server
    from broker.turns import Told
    from engine.frame import Frame
    from wire.link import Link
    from wire.messages import Manifest, Message, Plan

STUCK_S: Final = 300.0  # one turn holds the sum and the evaluation of a version, and no more
POLL_S: Final = 0.5  # how soon the operator's wishes are seen
INBOX_MAX: Final = 8_192  # messages that wait; more are dropped before anything is done for them
EVENTS_MAX: Final = 64  # handled together, so that a burst of updates shares its disk flushes


def serve(config: Config, say: Callable[[str], None]) -> None:
    """Coordinate until SIGTERM or SIGINT, once nobody else does; `say` takes the lines of the log.

    Raises ServiceError, StoreError, ConfigError, KeyTextError, AggregateError or EvaluateError, each one sentence.
    """
    place = config.store_place()
    with only_one(place, say) as term, contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(place, make=False, term=term))
        service = Service(config, store, say)
        url, server = config.mqtt.url, None
        if url == EMBEDDED:
            server = wiring.embedded(config)
            stack.callback(server.stop)
            url = server.url
            say(line("mqtt-server", url=url, name=server.name, version=server.version, server_pid=server.pid))
        if config.http.port:
            files = wiring.file_server(config, place)
            stack.callback(files.stop)
            say(line("http-server", url=config.http.url, port=files.port))
        if config.metrics.port:
            health = wiring.health_server(config, place, service)
            stack.callback(health.stop)
            say(line("health-server", port=health.port))
        service.run(wiring.link(config, url, service.coordinator.last_will, service.post), server)


class Service:
    """Owns the machine, the store and the link for one run."""

    def __init__(self, config: Config, store: Store, say: Callable[[str], None]) -> None:
        self._store = store
        self._say = say
        self._fleet = config.fleet.id
        self._rule = rule_named(config.aggregate.rule)
        self._config = config
        self._sign = keys.load_signer(config.path(config.key.file))
        self._store_counter = store.change_counter()
        snapshot = store.snapshot()
        if snapshot.manifest is None:
            raise ServiceError(f"{store.place} holds no model: make a new directory with broker init")
        self._enrolled = snapshot.fleet, snapshot.tags
        self._paused = False
        self._manifest = snapshot.manifest  # the newest version's, as the store has it
        self._frames = Frames(store)
        self._held_out = _held_out(config, snapshot.manifest, self._frames)
        # what may be guessed about draws and pauses must not be known beforehand: seeded by the operating system
        chance = random.Random(os.urandom(16))  # noqa: S311
        self._estimates = Estimates(config.path(ESTIMATES_FILE))
        admit, holds = gate(self._frame_of), holder(self._frame_of, self._estimates, store.roster.waits)
        identity = Identity(self._fleet, self._sign, keys.verifier, admit, config.http.url.rstrip("/"), holds)
        self.coordinator = Coordinator(identity, snapshot, chance)
        self.metrics = Metrics(self.coordinator.refused_count, snapshot.manifest.model_version)
        self.metrics.read_tags(snapshot.tags)
        self._claims = wiring.claims(config, store, self._sign, self.coordinator.refused_count)
        self._tally = Tally(self.coordinator.refused_count)
        self._tally_at_s = time.monotonic() + PAUSE_S
        self._inbox: queue.SimpleQueue[LinkEvent | None] = queue.SimpleQueue()
        self._shelf = Shelf(store)
        self._stopping = False
        self._ready = False
        self._poll_at_s = 0.0
        self._turned_s = time.monotonic()
        self._link_up = False
        self._opened_id = 0  # of the round that was opened last in this run
        self._started = (time.monotonic(), 0, 0)  # of the open round: seconds, and the link's bytes up and down

    def post(self, event: LinkEvent) -> None:
        """Hand over what the link has to say; from its own thread. A flood is cut: who hears nothing asks again."""
        if not isinstance(event, Arrived) or self._inbox.qsize() < INBOX_MAX:
            self._inbox.put(event)

    def run(self, link: Link, server: Server | None = None) -> None:
        """Serve until a signal says stop, then say goodbye."""
        self._link = link
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        for event in self._wishes():  # before the link: what is unwanted shall not be opened first
            self._perform(self._handle(event))
        link.start()
        try:
            while not self._stopping:
                self._turn(server)
            link.publish(*self.coordinator.last_will(), retain=True)
            self._keep_tally()
        finally:
            link.stop()
            for number, action in before.items():
                signal.signal(number, action)
        self._say(line("stopped"))

    def trouble(self) -> str:
        """Why only a restart helps, in a sentence; empty while the loop turns. From any thread."""
        still_s = time.monotonic() - self._turned_s
        return f"the loop has not turned for {still_s:.0f} s" if still_s > STUCK_S else ""

    def unready(self) -> str:
        """Why no device can be served now, in a sentence; empty when they can. From any thread."""
        return "" if self._link_up else "there is no session with the MQTT server"

    # One turn of the loop

    def _turn(self, server: Server | None) -> None:
        effects: list[Told] = []
        events = (*self._gather(), *self._poll(server))
        began_s = time.monotonic()
        for event in events:
            effects += self._handle(event)
        self._perform(effects)
        self._turned_s = time.monotonic()
        if events:
            self.metrics.turned(self._turned_s - began_s)

    def _gather(self) -> list[Event]:
        """Wait for the first event, take those that are there already, and put a Tick behind when it is time."""
        events: list[Event] = []
        timeout = self._seconds_to_wait()
        with contextlib.suppress(queue.Empty):
            while len(events) < EVENTS_MAX and not self._stopping:
                arrived = self._inbox.get(timeout=timeout) if timeout > 0 else self._inbox.get_nowait()
                timeout = 0.0
                if isinstance(arrived, LinkDown):
                    self._say(line("link-down", reason=arrived.reason))
                if isinstance(arrived, LinkUp | LinkDown):
                    self._link_up = isinstance(arrived, LinkUp)
                if arrived is not None:
                    events.append(_translate(arrived))
        wake_at_ms = self.coordinator.wake_at_ms
        if wake_at_ms is not None and _now_ms() >= wake_at_ms:
            events.append(Tick())
        return events

    def _seconds_to_wait(self) -> float:
        seconds = self._poll_at_s - time.monotonic()
        wake_at_ms = self.coordinator.wake_at_ms
        if wake_at_ms is not None:
            seconds = min(seconds, (wake_at_ms - _now_ms()) / 1000)
        return max(0.0, seconds)

    def _poll(self, server: Server | None) -> Iterator[Event]:
        """What the operator changed in the store since the last look; and whether our threads and children live."""
        if time.monotonic() < self._poll_at_s:
            return
        self._poll_at_s = time.monotonic() + POLL_S
        if not self._link.is_alive():
            raise ServiceError("the link's thread has ended, which is a fault of ours")
        if server is not None and not wiring.is_running(server):
            wiring.restart(server)
            self._say(line("mqtt-server", url=server.url, name=server.name, server_pid=server.pid))
        if time.monotonic() >= self._tally_at_s:
            self._keep_tally()
        counter = self._store.change_counter()
        if counter == self._store_counter:
            return
        self._store_counter = counter
        yield from self._wishes()

    def _wishes(self) -> Iterator[Event]:
        """What the operator wants, as the store has it now; to say it again does no harm."""
        fleet = self._store.fleet()
        tags = self._store.roster.tags()
        if (fleet, tags) != self._enrolled:
            self._enrolled = fleet, tags
            self.metrics.read_tags(tags)
            yield FleetRead(fleet, tags)
        waiting, unwanted = self._store.waiting_rounds(), self._store.unwanted_rounds()
        paused, self._paused = self._paused, self._store.stages.is_paused()
        if waiting or unwanted or paused is not self._paused:
            yield RoundsRead(waiting, unwanted, self._paused)
        version, wish = self._store.stages.wished()
        if version:
            yield StageWished(self._store.stages.version(version), wish == "promote")

    def _keep_tally(self) -> None:
        self._tally_at_s = time.monotonic() + PAUSE_S
        if fresh := self._tally.fresh():
            self._store.refusals.add(int(time.time() // DAY_S), fresh)

    def _handle(self, event: Event) -> list[Told]:
        refused = dict(self.coordinator.refused_count)
        try:
            if isinstance(event, Received) and concerns(event.topic):
                told = self._claims.handle(event.topic, event.payload, _now_ms(), time.time())
                if told:
                    # look at the store now: what we store ourselves its counter does not tell, and a birth may follow
                    self._store_counter, self._poll_at_s = -1, 0.0
                return told
            effects = self.coordinator.handle(event, _now_ms())
        except Exception as error:
            if isinstance(error, StoreError) or not isinstance(event, Received):
                raise
            # One message that we fail at must not stop the fleet, now and at each of its resends.
            return [line("fault", topic=event.topic, error=f"{type(error).__name__}: {error}")]
        reason = new_reason(refused, self.coordinator.refused_count)
        return tell(event, effects, reason, self.coordinator.pending_count)

    # Effects

    def _perform(self, effects: Sequence[Told]) -> None:
        """Perform in order, and what follows from the answers as well."""
        turns.take(effects, self._store_all, self._perform_one)

    def _store_all(self, effects: list[StoreUpdate | StoreSeen]) -> None:
        self._store.apply_all(effects)
        for effect in effects:
            if isinstance(effect, StoreUpdate):
                self.metrics.stored(effect.row)

    def _perform_one(self, effect: Told) -> Sequence[Told]:
        """Perform one effect; return what follows from its answer."""
        match effect:
            case str():
                self._say(effect)
            case Publish(topic=topic, payload=payload, retain=retain):
                self._publish(topic, payload, retain=retain)
            case SendChunk():
                self._say_sealed(effect.topic, self._shelf.chunk(effect))
            case SendPatch():
                self._send_patch(effect)
            case Aggregate():
                return self._handle(self._aggregate(effect))
            case StoreEpoch(epoch=epoch):
                self._store.apply(effect)
                self.metrics.epoch_began()
                self._say(line("epoch" if self._ready else "ready", epoch=epoch, pid=os.getpid()))
                self._ready = True
            case StoreInvited():
                self._store.apply(effect)
            case StoreRound(row=row) if row.status == "closed":
                self._store.apply(effect)
                self.metrics.round_cancelled()
                self._say(line("round-cancelled", round=row.round_id))
            case StoreRound(row=row) if row.round_id == self._opened_id:
                self._store.apply(effect)
                self._say(line("round-share", round=row.round_id, draw=row.draw))
            case StoreRound(row=row):
                self._store.apply(effect)
                self._opened_id = row.round_id
                self._started = (time.monotonic(), self._link.bytes_up, self._link.bytes_down)
                self._say(line("round-open", round=row.round_id, version=row.base_version))
            case StoreTrial(row=trial):
                self._store.apply(effect)
                told = {"won": trial.won, "lost": trial.lost, "refused": trial.refused}
                self._say(line("tried", device=trial.device_id, version=trial.model_version, **told))
            case CommitRound():
                self._commit(effect)
            case CommitStage():
                self._commit_stage(effect)
        return ()

    def _send_patch(self, effect: SendPatch) -> None:
        device, train = topics.parse(effect.topic).device_id, self._config.model.train
        patch = self._shelf.patch(effect, self._frames.under(self._manifest, train))
        if patch is None:
            told = (line("chunk", device=device, file=part.file.name, index=part.index) for part in effect.otherwise)
            self._perform([each for pair in zip(effect.otherwise, told, strict=True) for each in pair])
            return
        self._say_sealed(effect.topic, patch)
        known = {"base_version": effect.base_version, "version": effect.model_version, "bytes": len(patch.payload)}
        self._say(line("patch", device=device, **known))

    def _say_sealed(self, topic: str, message: Message) -> None:
        self._publish(topic, envelope.seal(message, topic, self._sign))

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._link.publish(topic, payload, retain)
        self.metrics.sent(topic)

    def _aggregate(self, effect: Aggregate) -> Aggregated | AggregateFailed:
        try:
            made = next_version(
                effect,
                self._store,
                self._rule,
                self._config.aggregate,
                frames=self._frames,
                held_out=self._held_out,
                estimates=self._estimates,
            )
        except (AggregateError, CodecError, EvaluateError, ModelError, OSError) as error:
            self._say(line("aggregate-failed", round=effect.round_id, reason=str(error)))
            return AggregateFailed(effect.round_id, str(error))
        if made.held_count:
            self._say(line("weights-held", round=effect.round_id, count=made.held_count))
        return made.answer

    def _frame_of(self, plan: Plan) -> Frame:
        return self._frames.under(self._manifest, plan.train)

    def _commit(self, effect: CommitRound) -> None:
        since, link_up, link_down = self._started
        # what the link receives went up from the devices, what it sends goes down to them
        cost = Cost(self._link.bytes_down - link_down, self._link.bytes_up - link_up, time.monotonic() - since)
        self._store.apply(effect, cost)
        self.metrics.round_closed(effect, cost.seconds)
        self._manifest = effect.manifest
        self._shelf.forget()
        if effect.made.model:
            self._say(line("rescaled", round=effect.row.round_id, scale_epoch=effect.manifest.scale_epoch))
        self._say(
            line(
                "round-closed",
                round=effect.row.round_id,
                version=effect.manifest.model_version,
                members=len(effect.members),
                patch_bytes=len(effect.made.patch),
                accuracy="none" if effect.made.accuracy is None else f"{effect.made.accuracy:.4f}",
                bytes_up=cost.bytes_up,
                bytes_down=cost.bytes_down,
                seconds=f"{cost.seconds:.3f}",
            )
        )

    def _commit_stage(self, effect: CommitStage) -> None:
        """A candidate that is good changes its stage; what is restored becomes a version of its own."""
        if effect.restored:
            numbers = restored(effect, self._store, self._frames, self._config.model.train)
            effect = msgspec.structs.replace(effect, numbers=numbers)
        self._store.apply(effect)
        self._manifest = effect.manifest
        self._shelf.forget()
        self.metrics.staged(effect)
        told = {"restored": effect.restored, "rolled_back": effect.put_out} if effect.restored else {}
        version = effect.manifest.model_version
        self._say(line("restored" if effect.restored else "promoted", version=version, **told, why=effect.why))

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stopping = True
        self._inbox.put(None)  # SimpleQueue.put is reentrant, which a signal handler needs


def _translate(event: LinkEvent) -> Event:
    match event:
        case LinkUp():
            return Connected()
        case LinkDown():
            return Disconnected()
        case Arrived(topic=topic, payload=payload):
            return Received(topic, payload)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _held_out(config: Config, manifest: Manifest, frames: Frames) -> HeldOut | None:
    if not config.evaluate.data:
        return None
    return load_held_out(config.path(config.evaluate.data), frames.under(manifest, config.model.train))
