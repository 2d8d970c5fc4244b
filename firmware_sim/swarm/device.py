"""One device of a swarm: the product's own agent and link, and around them a shell as thin as it can be.

It performs the agent's effects in order, as `edge_agent.service` does: what must be on flash is there before anything
speaks of it. Keys, signatures, offers, wants, chunks, patches, updates, receipts and resends are real. Only two things
are not: flash is memory (firmware_sim.swarm.flash), and the training child takes a drawn time and answers with one of a
few payloads that the product's codec made for the plan.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from edge_agent import effects
from edge_agent.agent import Agent, Identity
from edge_agent.budget import Limits
from firmware_sim.swarm.flash import Depot, Flash
from wire import keys, topics
from wire.link import Arrived, LinkDown, LinkUp, new_line
from wire.messages import digest_of
from wire.meter import Meter

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from edge_agent.effects import Durable, Effect, Event, Job
    from wire.envelope import Verify
    from wire.lines import Lines
    from wire.link import LinkEvent
    from wire.link_terms import Settings

READING_MS: Final = 60_000
EXAMPLES: Final = 40
CORRECT, HELD_OUT = 3, 4


class Clock:
    """One clock for all devices, and what is to be done when."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def now_ms(self) -> int:
        """Milliseconds since the swarm began."""
        return int((time.monotonic() - self._began_s) * 1000)

    @property
    def due_s(self) -> float:
        """The monotonic time of the first thing to do."""
        return self._began_s + (self._due[0][0] + 1) / 1000 if self._due else math.inf

    def at(self, at_ms: int, do: Callable[[], None]) -> None:
        """Let `do` be called at that time."""
        heapq.heappush(self._due, (at_ms, next(self._order), do))

    def run_due(self) -> None:
        """Do what is due by now."""
        now_ms = self.now_ms
        while self._due and self._due[0][0] <= now_ms:
            heapq.heappop(self._due)[2]()


@dataclass
class Tally:
    """What happened to all devices together. Digests are of sealed updates."""

    up: int = 0  # connected now
    training: int = 0  # now
    reconnects: int = 0
    sent: int = 0  # messages handed to the link
    received: int = 0
    resent: int = 0  # updates sent again, each time
    resent_updates: int = 0  # updates that were sent more than once
    last_reason: str = ""  # why a connection ended, or could not begin
    finished: dict[bytes, str] = field(default_factory=dict)  # digest → device
    verdicts: dict[bytes, str] = field(default_factory=dict)  # digest → what its receipt said

    @property
    def lacking(self) -> list[tuple[bytes, str]]:
        """Every update that is on flash and has no receipt yet, with its device."""
        return [(digest, name) for digest, name in self.finished.items() if digest not in self.verdicts]

    def count_verdicts(self) -> collections.Counter[str]:
        """How many receipts said what."""
        return collections.Counter(self.verdicts.values())


@dataclass(frozen=True)
class Ground:
    """What all devices of a swarm stand on."""

    fleet: str
    settings: Settings  # of every link, but for who it is
    verify_coordinator: Verify
    lines: Lines
    clock: Clock
    chance: random.Random
    train_s: float  # how long a training takes on average
    tally: Tally = field(default_factory=Tally)
    depot: Depot = field(default_factory=Depot)
    payloads: list[bytes] = field(default_factory=list)  # what a training may answer


class Device:
    """One device, which is there until the swarm ends."""

    __slots__ = (
        "_armed_ms",
        "_connection",
        "_ground",
        "_job",
        "_meter",
        "_next_reading_ms",
        "_outbox",
        "_sends",
        "agent",
        "downs",
        "flash",
        "is_up",
        "line",
        "name",
    )

    def __init__(self, ground: Ground, name: str, key: bytes) -> None:
        self.name = name
        self.is_up = False
        self.downs = 0  # connections that ended
        self.flash = Flash(ground.depot)
        self._ground = ground
        self._meter = Meter()
        self._connection = 0
        self._job: Job | None = None
        self._outbox = b""  # the sealed update that is on flash now
        self._sends = 0  # of that update
        self._armed_ms: int | None = None
        self._next_reading_ms = 0
        identity = Identity(ground.fleet, name, keys.signer(key), ground.verify_coordinator, "firmware-sim-swarm")
        durable = self.flash.load(first_boot=ground.chance.getrandbits(32))
        self.agent = Agent(identity, durable, Limits(), ground.chance)
        self.line = new_line(
            ground.settings._replace(
                client_id=f"{ground.fleet}-{name}",
                filters=topics.device_filters(ground.fleet, name),
                will=self._next_will,
            ),
            post=self._on_link,
            jitter=ground.chance,
            hurry=ground.lines.hurry,
            meter=self._meter,
        )

    def start(self) -> None:
        """Boot, and connect."""
        self._handle(effects.Booted())
        self._read_host()
        self._ground.lines.hurry(self.line)

    def durable(self) -> Durable:
        """What is on flash, read back."""
        return self.flash.load()

    # What comes

    def _on_link(self, event: LinkEvent) -> None:
        tally = self._ground.tally
        match event:
            case LinkUp():
                self.is_up = True
                tally.up += 1
                tally.reconnects += self.downs > 0
                self._handle(effects.Connected(self._connection))
            case Arrived(topic=topic, payload=payload):
                tally.received += 1
                self._handle(effects.Received(topic, payload))
            case LinkDown(reason=reason):
                tally.up -= self.is_up
                self.downs += self.is_up
                self.is_up = False
                tally.last_reason = reason
                self._handle(effects.Disconnected())

    def _next_will(self) -> tuple[str, bytes]:
        self._connection += 1
        return self.agent.last_will(self._connection)

    def _read_host(self) -> None:
        self._next_reading_ms = self._ground.clock.now_ms + READING_MS
        up, down = self._meter.bytes_sent, self._meter.bytes_received
        self._handle(effects.Reading(num_examples=EXAMPLES, bytes_up=up, bytes_down=down))

    def _on_time(self) -> None:
        now_ms, self._armed_ms = self._ground.clock.now_ms, None
        wake_ms = self.agent.wake_at_ms
        if wake_ms is not None and now_ms >= wake_ms:
            self._handle(effects.Tick())
        elif now_ms >= self._next_reading_ms:
            self._read_host()
        else:
            self._arm()

    def _arm(self) -> None:
        wake_ms = self.agent.wake_at_ms
        at_ms = self._next_reading_ms if wake_ms is None else min(wake_ms, self._next_reading_ms)
        if self._armed_ms is None or at_ms < self._armed_ms:
            self._armed_ms = at_ms
            self._ground.clock.at(at_ms, lambda: self._on_time() if self._armed_ms == at_ms else None)

    # What follows

    def _handle(self, event: Event) -> None:
        """Let the agent decide, perform what it decides, and then whatever the answers to that bring."""
        events = collections.deque([event])
        while events:
            for effect in self.agent.handle(events.popleft(), self._ground.clock.now_ms):
                answer = self._perform(effect)
                if answer is not None:
                    events.append(answer)
        self._arm()

    def _perform(self, effect: Effect) -> Event | None:
        flash = self.flash
        match effect:
            case effects.Persist(durable=durable):
                self._persist(durable)
            case effects.Publish(topic=topic, payload=payload):
                self._publish(topic, payload)
            case effects.OpenFile(file=file):
                return flash.open_file(file)
            case effects.WriteChunk(file=file, index=index, data=data):
                flash.write_chunk(file, index, data)
            case effects.SealFile(file=file):
                return flash.seal_file(file)
            case effects.WritePatch(file=file, patch=patch):
                return flash.write_patch(file, patch)
            case effects.DropPatch(file=file):
                flash.write_patch(file, None)
            case effects.FetchRanges(file=file):
                return effects.FetchFailed(file.digest, "a swarm fetches over MQTT alone")
            case effects.StartTraining(job=job):
                self._train(job)
            case effects.StopTraining():
                self._end_training()
            case effects.Forget(keep_files=keep_files):
                flash.forget(keep_files)
            case effects.SetLabel():
                pass  # there are no windows
        return None

    def _persist(self, durable: Durable) -> None:
        self.flash.save(durable)
        tally, before = self._ground.tally, self._outbox
        if durable.outbox and durable.outbox != before:
            self._sends = 0
            tally.finished[digest_of(durable.outbox)] = self.name
        elif before and not durable.outbox and self.agent.receipt is not None:
            tally.verdicts[digest_of(before)] = self.agent.receipt.verdict
        self._outbox = durable.outbox

    def _publish(self, topic: str, payload: bytes) -> None:
        tally = self._ground.tally
        if self._outbox and payload == self._outbox:
            self._sends += 1
            tally.resent += self._sends > 1
            tally.resent_updates += self._sends == 2
        tally.sent += 1
        self.line.publish(topic, payload)

    # The training child, which is none

    def _train(self, job: Job) -> None:
        ground = self._ground
        self._job = job
        ground.tally.training += 1
        takes_ms = int(ground.train_s * ground.chance.uniform(0.5, 1.5) * 1000)
        ground.clock.at(ground.clock.now_ms + takes_ms, lambda: self._finish(job))

    def _end_training(self) -> None:
        self._ground.tally.training -= self._job is not None
        self._job = None

    def _finish(self, job: Job) -> None:
        if self._job is not job:
            return  # it was told to stop
        self._end_training()
        if not self.flash.prepare(job):
            self._handle(effects.PatchFailed(job.round_id, "the patch makes something else than the manifest says"))
            return
        payload = self._ground.chance.choice(self._ground.payloads)
        self._handle(effects.Trained(job.round_id, payload, EXAMPLES, CORRECT, HELD_OUT))
