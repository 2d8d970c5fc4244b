"""The coordinator's side of the simulated fleet: the shell around the product's own coordinator.

It performs the coordinator's effects in order, as `broker.service` does, and can die before or after any one of
them. What survives is in `world.database`; the next coordinator is built from its snapshot.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Final

from broker.coordinator import Coordinator
from broker.effects import (
    Aggregate,
    Aggregated,
    AggregateFailed,
    CommitRound,
    Connected,
    Disconnected,
    Effect,
    Event,
    FleetRead,
    Publish,
    Received,
    RoundsRead,
    SendChunk,
    SendPatch,
    StoreEpoch,
    StoreRound,
    StoreSeen,
    StoreUpdate,
    Tick,
)
from broker.voice import Identity
from firmware_sim import keyring, witness
from firmware_sim.link import Line
from wire import chunks, envelope, topics
from wire.messages import Patch

if TYPE_CHECKING:
    from firmware_sim.world import Fate, World
    from wire.messages import Message

EXIT_MS: Final = 2_000


class Station:
    """The machine that the coordinator runs on. `coordinator` is None while it is down."""

    def __init__(self, world: World) -> None:
        self.coordinator: Coordinator | None = None
        self.line: Line | None = None
        self.life = 0
        self._world = world
        self._armed_ms: int | None = None
        world.at(1 + world.random.randrange(2_000), self._start)

    def cut(self) -> None:
        """The machine loses power, now."""
        if self.coordinator is not None:
            self._world.tally["coordinator_cut"] += 1
            self._stop(1 + self._world.random.randrange(self._world.weather.coordinator_down_ms_max), silent=True)

    def read_fleet(self) -> None:
        """The operator changed the fleet in the database."""
        self.handle(FleetRead(dict(self._world.database.fleet)))

    def read_rounds(self) -> None:
        """The operator requested or cancelled a round in the database."""
        database = self._world.database
        self.handle(RoundsRead(database.waiting(), database.unwanted_rounds()))

    def handle(self, event: Event) -> None:
        """Let the coordinator decide, and perform what it decides."""
        if self.coordinator is None:
            return
        world, weather = self._world, self._world.weather
        for effect in self.coordinator.handle(event, world.now_ms):
            fate = world.fate(
                keyring.COORDINATOR, weather.coordinator_cut_at_effect_rate, weather.coordinator_exit_at_effect_rate
            )
            if not fate:
                self._perform(effect)
            else:
                self._end(effect, fate)
                return
        self._arm()

    # Life

    def _start(self) -> None:
        world = self._world
        self.life += 1
        self._armed_ms = None
        world.note(keyring.COORDINATOR, f"starts, life {self.life}")
        identity = Identity(keyring.FLEET, world.coordinator_key.sign, keyring.verifier, witness.admit, world.url)
        chance = random.Random(f"{world.seed}/coordinator/{self.life}")
        self.coordinator = Coordinator(identity, world.database.snapshot(), chance)
        self.line = Line(
            world,
            keyring.COORDINATOR,
            topics.coordinator_filters(keyring.FLEET),
            self._will,
            on_up=lambda: self.handle(Connected()),
            on_down=lambda: self.handle(Disconnected()),
            on_message=lambda topic, payload: self.handle(Received(topic, payload)),
        )
        self.read_rounds()
        self._arm()

    def _stop(self, down_ms: int, *, silent: bool) -> None:
        self._world.note(keyring.COORDINATOR, "is down")
        self.coordinator = None
        self.life += 1
        if self.line is not None:
            self.line.stop(silent=silent)
            self.line = None
        self._world.at(down_ms, self._start)

    def _end(self, effect: Effect, fate: Fate) -> None:
        """Die at this effect: done or not, by power or by the process alone."""
        world = self._world
        if fate.endswith("after"):
            self._perform(effect)
        world.tally[f"coordinator {fate}"] += 1
        world.note(keyring.COORDINATOR, f"{fate} {type(effect).__name__}")
        if fate.startswith("cut"):
            self.cut()
        else:
            self._stop(EXIT_MS, silent=False)

    def _will(self) -> tuple[str, bytes, bool]:
        assert self.coordinator is not None, "a coordinator that is down does not connect"
        return (*self.coordinator.last_will(), True)

    # The clock

    def _arm(self) -> None:
        if self.coordinator is None or self.coordinator.wake_at_ms is None:
            return
        at_ms = max(self.coordinator.wake_at_ms, self._world.now_ms)
        if self._armed_ms is None or at_ms < self._armed_ms:
            self._armed_ms = at_ms
            self._world.at(at_ms - self._world.now_ms, self._tick, self.life, at_ms)

    def _tick(self, life: int, at_ms: int) -> None:
        if life != self.life or at_ms != self._armed_ms or self.coordinator is None:
            return
        self._armed_ms = None
        wake_at_ms = self.coordinator.wake_at_ms
        if wake_at_ms is None or wake_at_ms > self._world.now_ms:
            self._arm()
            return
        self.handle(Tick())
        if self.life == life and self.coordinator is not None:
            self._world.auditor.on_tick(keyring.COORDINATOR, self._world.now_ms, self.coordinator.wake_at_ms)

    # Effects

    def _perform(self, effect: Effect) -> None:
        database = self._world.database
        match effect:
            case Publish(topic=topic, payload=payload, retain=retain):
                self._publish(topic, payload, retain=retain)
            case SendChunk(topic=topic, file=file, index=index):
                self._say(topic, chunks.chunk_at(database.file(file.digest), file, index))
            case SendPatch():
                self._send_patch(effect)
            case StoreEpoch(epoch=epoch):
                database.epoch = epoch
            case StoreSeen():
                pass  # for the operator's eyes only
            case StoreUpdate(row=row):
                self._world.note(keyring.COORDINATOR, f"stores round {row.round_id} of {row.device_id}", row.digest)
                database.store_update(row)
            case StoreRound(row=row):
                self._world.note(keyring.COORDINATOR, f"stores round {row.round_id}: {row.status}")
                database.store_round(row)
            case Aggregate():
                self._aggregate(effect)
            case CommitRound():
                self._world.note(keyring.COORDINATOR, f"commits round {effect.row.round_id}", effect.made.params)
                database.commit_round(effect)

    def _send_patch(self, effect: SendPatch) -> None:
        """Never shorter than the chunks, and sent all the same: that patches do their work is what is to be seen."""
        database, file = self._world.database, effect.file
        base = database.base_of_patch(effect.base_version)
        if base is None:
            for part in effect.otherwise:
                self._perform(part)
            return
        base_digest = hashlib.sha256(base).digest()
        payload = witness.patch(base_digest, database.file(file.digest))
        self._say(effect.topic, Patch(file.digest, effect.base_version, base_digest, payload))

    def _say(self, topic: str, message: Message) -> None:
        self._publish(topic, envelope.seal(message, topic, self._world.coordinator_key.sign), retain=False)

    def _publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if self.line is not None:
            self.line.publish(topic, payload, retain=retain)

    def _aggregate(self, work: Aggregate) -> None:
        world, database = self._world, self._world.database
        takes_ms = 1 + world.random.randrange(world.weather.aggregate_ms_max)
        event: Event = AggregateFailed(work.round_id, "out of memory")
        if not world.chance(world.weather.aggregate_fails_rate, "aggregate_fails"):
            rows = [database.updates[member.device_id, member.round_id] for member in work.members]
            params = witness.add(database.lineage[-1].params, [row.payload for row in rows])
            grows = work.may_rescale and world.chance(world.weather.rescale_rate, "rescale")
            model = witness.base(work.manifest.scale_epoch + 1, params) if grows else b""
            event = Aggregated(work.round_id, params, None, None, model=model)
        world.at(takes_ms, self._answer, self.life, event)

    def _answer(self, life: int, event: Event) -> None:
        if life == self.life:
            self.handle(event)
