"""The world: one heap of happenings, one clock, one seed, one digest.

Everything that takes time is a happening: a callable and the millisecond at which it is called. Two happenings of
one millisecond are called in the order in which they were planned. All chance comes from one generator that the
seed starts, and everything that happened goes into one SHA-256, so a seed names a whole run: the same seed gives
the same digest, in any process, on any day.

The product's machines run here unchanged. `device` and `station` perform their effects on a simulated card, a fake
database and a fake network; `weather` says what goes wrong; `auditor` watches.
"""

from __future__ import annotations

import collections
import hashlib
import heapq
import random
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from msgspec.structs import replace

from broker.effects import Mode, Ring, RoundRow
from firmware_sim import attacks, keyring, witness
from firmware_sim.attacker import Attacker
from firmware_sim.auditor import Auditor
from firmware_sim.database import Database, ModelVersion
from firmware_sim.device import Device
from firmware_sim.gateway import Gateway
from firmware_sim.gusts import Gusts
from firmware_sim.mqtt import Server
from firmware_sim.power import Sun
from firmware_sim.station import Station
from firmware_sim.thermal import Air
from firmware_sim.weather import CALM
from firmware_sim.web import URL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from firmware_sim.lesson import Lesson
    from firmware_sim.weather import Weather
    from wire.envelope import Opened
    from wire.messages import Plan

STORY_LINES: Final = 60
LASTS_MS: Final = 180_000
RING: Final = 3  # devices that try a version

Fate: TypeAlias = Literal["", "cut before", "cut after", "cut within", "exit before", "exit after", "exit within"]


class Cut(NamedTuple):
    """A scripted end: of this actor, at its effect with this number (from 0), in this way.

    `within` an effect it is the number of a disk operation, of all of its life; what it cuts is not begun.
    """

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


class World:
    """A fleet, its coordinator, an MQTT server and the weather over them."""

    def __init__(
        self,
        seed: int,
        weather: Weather,
        *,
        devices: int = 10,
        real_keys: bool = False,
        cut: Cut | None = None,
        spared: frozenset[str] = frozenset(),
        lesson: Lesson = witness,
        dishonest: Mapping[str, str] | None = None,
    ) -> None:
        self.seed = seed
        self.weather = weather
        self.real_keys = real_keys
        self.lesson = lesson
        self.random = random.Random(f"world/{seed}")
        self.now_ms = 0
        self.tally: collections.Counter[str] = collections.Counter()  # faults by kind
        self.effect_count: collections.Counter[str] = collections.Counter()  # by actor
        self.operation_count: collections.Counter[str] = collections.Counter()  # on a device's card, by device
        self.happening_count = 0
        self.delivered_count = 0
        self.story: collections.deque[Line] = collections.deque(maxlen=STORY_LINES)
        self.faulty: set[str] = set()  # devices whose every update must be refused
        self.gone_count = 0  # devices that never come back
        self.happened: list[str] = []  # every fault that had its way, as kind#number
        self.opened: dict[tuple[str, bytes], Opened] = {}  # retained messages, by topic and bytes
        self.cut_off: set[str] = set()  # client ids that no server can be reached from
        self._dice: dict[str, random.Random] = {}  # by kind of fault
        self._drawn: collections.Counter[str] = collections.Counter()  # faults by kind, the spared ones as well
        self._spared = spared  # faults that are drawn and do not happen: kind#number, or kind#* for all of a kind
        self._cut = cut
        self._heap: list[tuple[int, int, Callable[..., object], tuple[object, ...]]] = []
        self._planned = 0
        self._digest = hashlib.sha256()
        self.url = URL if self.chance(weather.http_rate, "http") else ""  # where model files are besides
        names = [f"device-{index:02}" for index in range(devices)]
        self.coordinator_key = keyring.make(keyring.COORDINATOR, seed, real=real_keys)
        device_keys = {name: keyring.make(name, seed, real=real_keys) for name in names}
        self.late = {name for name in names if self.chance(weather.enrol_late_rate, "enrol_late")}
        fleet = self._fleet = {name: key.text for name, key in device_keys.items()}
        self.dishonest = attacks.drawn(self, names) if dishonest is None else dict(dishonest)  # with their attacks
        self.honest_places = tuple(index for index, name in enumerate(names) if name not in self.dishonest)
        self.plan, self.database = self._found({name: text for name, text in fleet.items() if name not in self.late})
        self.auditor = Auditor(self, fleet)
        self.mode: Mode = "buffered" if self.chance(weather.buffered_rate, "buffered") else "synchronous"
        self.staged = self.chance(weather.staged_rate, "staged")
        self.bad: set[int] = set()  # versions that are worse than the ones before
        self.takes_turns = self.chance(weather.turns_rate, "turns")
        self.sun = Sun(random.Random(f"sun/{seed}"), weather.panel_w)  # over all devices
        self.air = Air(random.Random(f"air/{seed}"), hot_rate=weather.hot_day_rate, hot_c=weather.hot_day_c)
        self._lay_lines(names)
        self.devices = [Device(self, name, index, device_keys[name]) for index, name in enumerate(names)]
        self.device = {device.name: device for device in self.devices}
        self.station = Station(self)
        self.attacker = Attacker(self)
        self.rogues = [attacks.Rogue(self, name, attack) for name, attack in self.dishonest.items()]
        self._gusts = Gusts(self)

    def _lay_lines(self, names: list[str]) -> None:
        """MQTT servers, and who is behind the gateway or on a slow line."""
        weather = self.weather
        self._slow = {name for name in names if self.chance(weather.slow_rate, "slow")}
        self.server = Server(self, "server")
        self._far: set[str] = set()  # the devices behind the gateway
        self.gateway: Gateway | None = None
        if self.chance(weather.gateway_rate, "gateway"):
            behind = names[: (len(names) + 1) // 2]
            self.gateway = Gateway(self, behind)
            self._far = set(behind)

    # Happenings

    def at(self, delay_ms: int, call: Callable[..., object], *args: object) -> None:
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

    def draw(self, below: int) -> int:
        """A whole number from 0 on, below `below`, which is at least 1."""
        return int(self.random.random() * below)

    def chance(self, rate: float, fault: str) -> bool:
        """Does this fault happen now? Each kind has its own dice, so that to spare one kind moves no other's."""
        if rate <= 0:
            return False
        dice = self._dice.get(fault)
        if dice is None:
            dice = self._dice[fault] = random.Random(f"{fault}/{self.seed}")
        return dice.random() < rate and self.happens(fault)

    def happens(self, fault: str) -> bool:
        """Count and name a fault that was drawn; False for one that is spared."""
        self._drawn[fault] += 1
        name = f"{fault}#{self._drawn[fault]}"
        if self._spared and (name in self._spared or f"{fault}#*" in self._spared):
            return False
        self.tally[fault] += 1
        self.happened.append(name)
        return True

    def fate(self, actor: str, cut_rate: float, exit_rate: float) -> Fate:
        """What becomes of an actor at its next effect: usually nothing."""
        index = self.effect_count[actor]
        self.effect_count[actor] = index + 1
        fate: Fate = ""
        if self._cut is not None:
            fate = self._cut.fate if (actor, index) == self._cut[:2] and not self._cut.fate.endswith("within") else ""
        elif cut_rate > 0 or exit_rate > 0:
            fate = self._drawn_fate(cut_rate, exit_rate)
        return fate if fate and self.happens(f"{actor.partition('-')[0]} {fate}") else ""

    def fate_within(self, actor: str, cut_rate: float, exit_rate: float) -> Fate:
        """What becomes of a device at its next disk operation: usually nothing."""
        index = self.operation_count[actor]
        self.operation_count[actor] = index + 1
        fate: Fate = ""
        if self._cut is not None:
            fate = self._cut.fate if (actor, index) == self._cut[:2] and self._cut.fate.endswith("within") else ""
        elif cut_rate > 0 or exit_rate > 0:
            drawn = self.random.random()
            fate = "cut within" if drawn < cut_rate else "exit within" if drawn < cut_rate + exit_rate else ""
        return fate if fate and self.happens(f"device {fate}") else ""

    def _drawn_fate(self, cut_rate: float, exit_rate: float) -> Fate:
        drawn = self.random.random()
        if drawn < cut_rate:
            return "cut before" if drawn < cut_rate / 2 else "cut after"
        if drawn < cut_rate + exit_rate:
            return "exit before" if drawn < cut_rate + exit_rate / 2 else "exit after"
        return ""

    # The network

    def server_of(self, client_id: str) -> Server:
        """The MQTT server that this program connects to."""
        return self.gateway.server if self.gateway is not None and client_id in self._far else self.server

    def speed_of(self, client_id: str) -> int:
        """Bytes a second on its line; 0: as many as there are."""
        return self.weather.slow_bytes_per_s if client_id in self._slow else 0

    # The operator

    def enrol_late(self) -> None:
        """Enrol whoever is not enrolled yet."""
        if self.late:
            self.late.clear()
            self.tell_fleet()

    def enrol(self, name: str) -> None:
        """Take a device back into the fleet."""
        if name in self.late:
            self.late.discard(name)
            self.tell_fleet()

    def tell_fleet(self) -> None:
        """The operator's list of who is in the fleet has changed."""
        self.database.enrol({name: text for name, text in self._fleet.items() if name not in self.late})
        self.station.read_fleet()

    def request_round(self, updates_min: int, cohort_max: int = 0, lasts_ms: int = LASTS_MS, enough: int = 0) -> int:
        """Ask for one more round, of the world's mode; it closes at once with `enough` updates. Returns its number."""
        wish = RoundRow(0, self.plan, "waiting", updates_min, cohort_max, lasts_ms)
        ring = Ring(worse_rate=0.02, error_rate=0.5) if self.staged else None
        round_id = self.database.request_round(replace(wish, mode=self.mode, updates_enough=enough, ring=ring))
        if ring is not None:
            plan = replace(self.plan, lane="trial")
            self.database.request_round(
                RoundRow(0, plan, "waiting", 1, min(RING, len(self.devices)), lasts_ms, ring=ring)
            )
        self.note("operator", f"requests round {round_id}: {updates_min} updates, cohort {cohort_max or 'of all'}")
        self.station.read_rounds()
        return round_id

    def spoil(self, version: int, *, is_tried: bool) -> None:
        """A version was made; it may be a bad one, if somebody is to try it."""
        if is_tried and self.chance(self.weather.bad_version_rate, "bad_version"):
            self.bad.add(version)

    def cancel_round(self, round_id: int) -> None:
        """Give up a round, whatever has become of it."""
        self.note("operator", f"cancels round {round_id}, which is {self.database.rounds[round_id].status}")
        self.database.cancel_round(round_id)
        self.station.read_rounds()

    def heal(self) -> None:
        """From now on nothing breaks; who is off comes back, but for the devices that are gone for good."""
        self.note("weather", "heals")
        self.weather = CALM
        self._gusts.end()
        self.cut_off.clear()
        self.faulty = set()
        self.enrol_late()
        for device in self.devices:
            device.heal()

    def _found(self, fleet: dict[str, str]) -> tuple[Plan, Database]:
        """The plan of all rounds, and what `broker init` leaves: version 1 of the model."""
        first = self.lesson.first(len(fleet) + len(self.late))
        version = ModelVersion(first.manifest, first.params, first.remainder)
        return first.plan, Database(fleet, version, first.contents)
