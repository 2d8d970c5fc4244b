"""The world: one heap of happenings, one clock, one seed, one digest.

Everything that takes time is a happening: a callable and the millisecond at which it is called. Two happenings of
one millisecond are called in the order in which they were planned. All chance comes from one generator that the
seed starts, and everything that happened goes into one SHA-256, so a seed names a whole run: the same seed gives
the same digest, in any process, on any day.

The product's machines run here unchanged. `device` and `station` perform their effects on a fake flash, a fake
database and a fake network; `weather` says what goes wrong; `auditor` watches.
"""

from __future__ import annotations

import collections
import hashlib
import heapq
import random
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from firmware_sim import keyring, witness
from firmware_sim.attacker import Attacker
from firmware_sim.auditor import Auditor
from firmware_sim.database import Database, ModelVersion
from firmware_sim.device import Device
from firmware_sim.link import Server
from firmware_sim.station import Station
from firmware_sim.weather import CALM
from firmware_sim.web import URL
from wire import chunks
from wire.messages import MODEL_FILE, PARAMS_FILE, Manifest, Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware_sim.weather import Weather

STORY_LINES: Final = 60
LASTS_MS: Final = 180_000

Fate: TypeAlias = Literal["", "cut before", "cut after", "exit before", "exit after"]


class Cut(NamedTuple):
    """A scripted end: of this actor, at its effect with this number (from 0), in this way."""

    actor: str
    effect: int
    fate: Fate


class Line(NamedTuple):
    """One line of the story."""

    at_ms: int
    who: str
    what: str
    bytes_count: int

    def __str__(self) -> str:
        """One line of text."""
        size = f"  ({self.bytes_count} bytes)" if self.bytes_count else ""
        return f"{self.at_ms / 1000:9.3f} s  {self.who:14} {self.what}{size}"


PLAN: Final = Plan(
    model="witness",
    train="last-1",
    lane="economy",
    num_params=1,
    epochs=1,
    batch_size=1,
    learning_rate=0.1,
    momentum=0.0,
    clip_norm=1.0,
    keep_count=1,
    value_bits=0,
    seed=7,
    num_examples_min=5,
    num_examples_max=64,
    trainer_memory_bytes_max=64 << 20,
    trainer_ms_max=60_000,
)


class World:
    """A fleet, its coordinator, an MQTT server and the weather over them."""

    def __init__(
        self, seed: int, weather: Weather, *, devices: int = 10, real_keys: bool = False, cut: Cut | None = None
    ) -> None:
        self.seed = seed
        self.weather = weather
        self.real_keys = real_keys
        self.random = random.Random(f"world/{seed}")
        self.now_ms = 0
        self.tally: collections.Counter[str] = collections.Counter()  # faults by kind
        self.effect_count: collections.Counter[str] = collections.Counter()  # by actor
        self.happening_count = 0
        self.delivered_count = 0
        self.story: collections.deque[Line] = collections.deque(maxlen=STORY_LINES)
        self.faulty: set[str] = set()  # devices whose every update must be refused
        self._cut = cut
        self._heap: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._planned = 0
        self._digest = hashlib.sha256()
        self.url = URL if self.chance(weather.http_rate, "http") else ""  # where model files are besides
        names = [f"device-{index:02}" for index in range(devices)]
        self.coordinator_key = keyring.make(keyring.COORDINATOR, seed, real=real_keys)
        device_keys = {name: keyring.make(name, seed, real=real_keys) for name in names}
        self.late = {name for name in names if self.chance(weather.enrol_late_rate, "enrol_late")}
        fleet = {name: key.text for name, key in device_keys.items()}
        self.database = self._found({name: text for name, text in fleet.items() if name not in self.late})
        self._fleet = fleet
        self.auditor = Auditor(self, fleet)
        self.server = Server(self)
        self.devices = [Device(self, name, index, device_keys[name]) for index, name in enumerate(names)]
        self.station = Station(self)
        self.attacker = Attacker(self)
        self._plan_gust()

    # Happenings

    def at(self, delay_ms: int, call: Callable[..., None], *args: object) -> None:
        """Call `call(*args)` after `delay_ms`."""
        self._planned += 1
        heapq.heappush(self._heap, (self.now_ms + delay_ms, self._planned, call, args))

    def run(self, until_ms: int, *, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass up to `until_ms`, or until `until()` holds; whether it does."""
        heap = self._heap
        while heap and heap[0][0] <= until_ms:
            if until is not None and until():
                return True
            self.now_ms, _, call, args = heapq.heappop(heap)
            self.happening_count += 1
            call(*args)
        self.now_ms = max(self.now_ms, until_ms)
        return until is not None and until()

    def note(self, who: str, what: str, data: bytes = b"") -> None:
        """Put a line into the story and into the digest."""
        self._digest.update(f"{self.now_ms} {who} {what}\n".encode() + data)
        self.story.append(Line(self.now_ms, who, what, len(data)))

    @property
    def digest(self) -> str:
        """The name of everything that happened so far."""
        return self._digest.hexdigest()

    # Chance

    def chance(self, rate: float, fault: str) -> bool:
        """Does this fault happen now? Counted if it does; a rate of zero draws nothing."""
        if rate <= 0 or self.random.random() >= rate:
            return False
        self.tally[fault] += 1
        return True

    def fate(self, actor: str, cut_rate: float, exit_rate: float) -> Fate:
        """What becomes of an actor at its next effect: usually nothing."""
        index = self.effect_count[actor]
        self.effect_count[actor] = index + 1
        if self._cut is not None:
            return self._cut.fate if (actor, index) == self._cut[:2] else ""
        if cut_rate <= 0 and exit_rate <= 0:
            return ""
        drawn = self.random.random()
        if drawn < cut_rate:
            return "cut before" if drawn < cut_rate / 2 else "cut after"
        if drawn < cut_rate + exit_rate:
            return "exit before" if drawn < cut_rate + exit_rate / 2 else "exit after"
        return ""

    # What happens by itself

    def _plan_gust(self) -> None:
        total = sum(rate for rate, _ in self._gusts())
        if total > 0:
            self.at(1 + int(self.random.expovariate(total)), self._gust)

    def _gust(self) -> None:
        """One fault of those that come at their own time, drawn by its frequency."""
        drawn = self.random.random() * sum(rate for rate, _ in self._gusts())
        for rate, blow in self._gusts():
            drawn -= rate
            if rate and drawn < 0:
                blow()
                break
        self._plan_gust()

    def _gusts(self) -> list[tuple[float, Callable[[], None]]]:
        weather, devices = self.weather, len(self.devices)
        return [
            (_per_ms(weather.power_cut_every_ms) * devices, lambda: self.random.choice(self.devices).power_off()),
            (_per_ms(weather.link_break_every_ms) * (devices + 1), self._break_link),
            (_per_ms(weather.server_restart_every_ms), self._restart_server),
            (_per_ms(weather.coordinator_cut_every_ms), self.station.cut),
            (_per_ms(weather.cancel_every_ms), self._cancel_any),
            (_per_ms(weather.forge_every_ms), self.attacker.forge),
            (_per_ms(weather.replay_every_ms), self.attacker.replay),
        ]

    def _break_link(self) -> None:
        line = self.random.choice([self.station.line, *(device.line for device in self.devices)])
        if line is not None and line.connection is not None and line.connection.flows:
            self.tally["link_break"] += 1
            self.note("weather", f"breaks the line of {line.client_id}")
            self.server.lose(line.connection, silent=self.random.random() < self.weather.silent_rate)

    def _restart_server(self) -> None:
        if self.server.up:
            self.tally["server_restart"] += 1
            keep = not self.chance(self.weather.retained_lost_rate, "retained_lost")
            self.note("weather", "restarts the MQTT server" + ("" if keep else ", which forgets what it retained"))
            self.server.restart(1 + self.random.randrange(self.weather.server_down_ms_max), keep_retained=keep)

    def _cancel_any(self) -> None:
        living = [row.round_id for row in self.database.rounds.values() if row.status != "closed"]
        if living:
            self.tally["cancel"] += 1
            self.cancel_round(self.random.choice(living))

    # The operator

    def enrol_late(self) -> None:
        """Enrol whoever is not enrolled yet."""
        if self.late:
            self.late = set()
            self.database.fleet = dict(self._fleet)
            self.station.read_fleet()

    def request_round(self, updates_min: int, cohort_max: int = 0, lasts_ms: int = LASTS_MS) -> int:
        """Ask for one more round; returns its number."""
        round_id = self.database.request_round(PLAN, updates_min, cohort_max, lasts_ms)
        self.note("operator", f"requests round {round_id}: {updates_min} updates, cohort {cohort_max or 'of all'}")
        self.station.read_rounds()
        return round_id

    def cancel_round(self, round_id: int) -> None:
        """Give up a round, whatever has become of it."""
        self.note("operator", f"cancels round {round_id}, which is {self.database.rounds[round_id].status}")
        self.database.unwanted.add(round_id)
        self.station.read_rounds()

    def heal(self) -> None:
        """From now on nothing breaks; who is off comes back, but for the devices that are gone for good."""
        self.note("weather", "heals")
        self.weather = CALM
        self.faulty = set()
        self.enrol_late()
        for device in self.devices:
            device.heal()

    def _found(self, fleet: dict[str, str]) -> Database:
        """What `broker init` leaves: version 1 of the model, in small chunks so that fetching takes a while."""
        params = witness.empty(len(fleet) + len(self.late))
        base = witness.base(0, params)
        files = (chunks.split(MODEL_FILE, base, chunk_bytes=32), chunks.split(PARAMS_FILE, params))
        manifest = Manifest("witness", 1, 0, PLAN.num_params, files, base_version=1)
        contents = {file.digest: data for file, data in zip(files, (base, params), strict=True)}
        return Database(fleet, ModelVersion(manifest, params), contents)


def _per_ms(every_ms: int) -> float:
    return 1 / every_ms if every_ms else 0.0
