"""The coordinator's side of the simulated fleet: the shell around the product's own coordinator.

It performs the coordinator's effects in order and can die before or after any one of them. What survives is in
`world.database`; the next coordinator is built from its snapshot. In some worlds it takes its events in turns, several
at once, and is held up by a sum, as `broker.service` is; in the others each event has its effects at once, and sums are
made beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from typing import TYPE_CHECKING, Final

from broker import turns
from broker.coordinator import Coordinator
from broker.effects import (
    Aggregate,
    AggregateFailed,
    CommitRound,
    CommitStage,
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
    StoreInvited,
    StoreRound,
    StoreSeen,
    StoreTrial,
    StoreUpdate,
    Tick,
)
from firmware_sim import keyring, voices
from firmware_sim.link import Line
from wire import chunks, topics
from wire.messages import Patch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from firmware_sim.world import Fate, World
    from wire.messages import Message

EXIT_MS: Final = 2_000
EVENTS_MAX: Final = 64  # as in broker.service


class _Dead(Exception):  # noqa: N818 - no error: the end of a life
    """The coordinator has died in the midst of a turn."""


class Station:
    """The machine that the coordinator runs on. `coordinator` is None while it is down."""

    def __init__(self, world: World) -> None:
        self.coordinator: Coordinator | None = None
        self.line: Line | None = None
        self.skew = 0  # how many versions its program is ahead of ours
        self.life = 0
        self._world = world
        self._armed_ms: int | None = None
        self._inbox: list[Event] = []  # where it takes turns
        self._busy_until_ms = 0
        world.at(1 + world.random.randrange(2_000), self._start)

    def cut(self) -> None:
        """The machine loses power, now."""
        if self.coordinator is not None:
            self._stop(1 + self._world.random.randrange(self._world.weather.coordinator_down_ms_max), silent=True)

    def upgrade(self, skew: int) -> None:
        """Another version of the program takes the place of this one."""
        self.skew = skew
        if self.coordinator is not None:
            self._world.note(keyring.COORDINATOR, f"becomes version {skew:+}")
            self._stop(EXIT_MS, silent=False)

    def read_fleet(self) -> None:
        """The operator changed the fleet in the database."""
        self.handle(FleetRead(dict(self._world.database.fleet)))

    def read_rounds(self) -> None:
        """The operator requested or cancelled a round in the database."""
        database = self._world.database
        self.handle(RoundsRead(database.waiting(), database.unwanted_rounds()))

    def handle(self, event: Event) -> None:
        """Let the coordinator decide, and perform what it decides, now or when its turn comes."""
        if self.coordinator is None:
            return
        if self._world.takes_turns:
            self._inbox.append(event)
            if len(self._inbox) == 1:
                self._plan_turn()
            return
        for effect in self.coordinator.handle(event, self._world.now_ms):
            if not self._survives([effect]):
                return
        self._arm()

    # Turns

    def _plan_turn(self) -> None:
        weather = self._world.weather
        if self._world.chance(weather.stall_rate, "stall"):
            self._busy_until_ms = self._world.now_ms + self._world.draw(weather.stall_ms_max)
        delay_ms = max(1, self._busy_until_ms - self._world.now_ms)
        self._world.at(delay_ms, self._turn, self.life)

    def _turn(self, life: int) -> None:
        if life != self.life or self.coordinator is None:
            return
        events, self._inbox = self._inbox[:EVENTS_MAX], self._inbox[EVENTS_MAX:]
        effects = [effect for event in events for effect in self.coordinator.handle(event, self._world.now_ms)]
        with contextlib.suppress(_Dead):
            turns.take(effects, self._store, self._one)
            self._arm()
            if any(isinstance(event, Tick) for event in events):
                self._audit_tick()
        if self._inbox:
            self._plan_turn()

    def _store(self, effects: list[StoreUpdate | StoreSeen]) -> None:
        if effects and not self._survives(effects):
            raise _Dead

    def _one(self, effect: turns.Told) -> list[Effect]:
        assert not isinstance(effect, str), "nothing is logged here"
        if not self._survives([effect]):
            raise _Dead
        if not isinstance(effect, Aggregate) or self.coordinator is None:
            return []
        takes_ms, event = self._sum(effect)
        self._busy_until_ms = self._world.now_ms + takes_ms
        return self.coordinator.handle(event, self._world.now_ms)

    def _survives(self, effects: Sequence[Effect]) -> bool:
        """Perform these as one, or die before or after it."""
        weather = self._world.weather
        fate = self._world.fate(
            keyring.COORDINATOR, weather.coordinator_cut_at_effect_rate, weather.coordinator_exit_at_effect_rate
        )
        if not fate.endswith("before"):
            for effect in effects:
                self._perform(effect)
        if fate:
            self._end(effects[0], fate)
        return not fate

    # Life

    def _start(self) -> None:
        world = self._world
        self.life += 1
        self._armed_ms = None
        world.note(keyring.COORDINATOR, f"starts, life {self.life}")
        identity = voices.Coordinator(
            keyring.FLEET, world.coordinator_key.sign, keyring.verifier, world.lesson.admit, world.url, skew=self.skew
        )
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
        self._inbox = []
        self._busy_until_ms = 0
        self.life += 1
        if self.line is not None:
            self.line.stop(silent=silent)
            self.line = None
        self._world.at(down_ms, self._start)

    def _end(self, effect: Effect, fate: Fate) -> None:
        """Die at this effect, by power or by the process alone."""
        world = self._world
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
        if self.life == life and not self._world.takes_turns:
            self._audit_tick()

    def _audit_tick(self) -> None:
        if self.coordinator is not None:
            self._world.auditor.on_tick(keyring.COORDINATOR, self._world.now_ms, self.coordinator.wake_at_ms)

    # Effects

    def _perform(self, effect: Effect) -> None:
        database = self._world.database
        match effect:
            case Publish(topic=topic, payload=payload, retain=retain):
                self._publish(topic, payload, retain=retain)
            case SendChunk(topic=topic, file=file, index=index):
                self._say(topic, chunks.chunk_at(database.blob(file.digest), file, index))
            case SendPatch():
                self._send_patch(effect)
            case StoreEpoch(epoch=epoch):
                database.store_epoch(epoch)
            case StoreSeen() | StoreInvited():
                pass  # for the operator's eyes only
            case StoreUpdate(row=row):
                self._world.note(keyring.COORDINATOR, f"stores round {row.round_id} of {row.device_id}", row.digest)
                database.store_update(row)
            case StoreRound(row=row):
                self._world.note(keyring.COORDINATOR, f"stores round {row.round_id}: {row.status}")
                database.store_round(row)
            case Aggregate() if not self._world.takes_turns:
                takes_ms, event = self._sum(effect)
                self._world.at(takes_ms, self._answer, self.life, event)
            case StoreTrial(row=trial):
                self._world.note(
                    keyring.COORDINATOR, f"stores trial {trial.round_id} of {trial.device_id}", trial.digest
                )
                database.store_trial(trial)
            case CommitRound():
                self._world.note(keyring.COORDINATOR, f"commits round {effect.row.round_id}", effect.made.params)
                database.commit_round(effect)
                self._world.spoil(effect.manifest.model_version, is_tried=effect.row.ring is not None)
            case CommitStage():
                version = effect.manifest.model_version
                self._world.note(keyring.COORDINATOR, f"promotes version {version}, restored: {effect.restored}")
                database.commit_stage(effect)

    def _send_patch(self, effect: SendPatch) -> None:
        """Never shorter than the chunks, and sent all the same: that patches do their work is what is to be seen."""
        database, file = self._world.database, effect.file
        base = database.base_of_patch(effect.base_version, effect.model_version)
        if base is None:
            for part in effect.otherwise:
                self._perform(part)
            return
        base_digest = hashlib.sha256(base).digest()
        payload = self._world.lesson.patch(base, database.blob(file.digest))
        self._say(effect.topic, Patch(file.digest, effect.base_version, base_digest, payload))

    def _say(self, topic: str, message: Message) -> None:
        self._publish(topic, voices.seal(message, topic, self._world.coordinator_key.sign, self.skew), retain=False)

    def _publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if self.line is not None:
            self.line.publish(topic, payload, retain=retain)

    def _sum(self, work: Aggregate) -> tuple[int, Event]:
        """How long the next parameters take, and the answer."""
        world = self._world
        takes_ms = 1 + world.random.randrange(world.weather.aggregate_ms_max)
        event: Event = AggregateFailed(work.round_id, "out of memory")
        if not world.chance(world.weather.aggregate_fails_rate, "aggregate_fails"):
            grows = work.may_rescale and world.chance(world.weather.rescale_rate, "rescale")
            event = world.lesson.advance(work, world.database, grows=grows)
        return takes_ms, event

    def _answer(self, life: int, event: Event) -> None:
        if life == self.life:
            self.handle(event)
