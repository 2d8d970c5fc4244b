"""Deliberate damage: one agent, then the coordinator, then the MQTT server get SIGKILL, each in the midst of its work.

    ARMED ──its round is open, and the victim is busy──▶ DOWN ──a second──▶ STARTED ──heard of again──▶ BACK

SIGKILL cannot be caught, so it leaves what a power cut leaves to a process: its files, as far as they were written.
When to strike is decided by the fleet's progress and not by the clock, so every run is hit in the same places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final, Literal, Protocol

from firmware_sim.processes import is_training

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.mqtt_server import Server
    from firmware_sim.processes import Program
    from firmware_sim.watch import Watch

DOWN_S: Final = 1.0
ROUNDS_TIMES_MAX: Final = 10
Target = Literal["agent", "coordinator", "MQTT server"]


class Trouble(Protocol):
    """Whoever strikes a fleet."""

    blows: list[Blow]

    @property
    def goes_on(self) -> bool:
        """Whether it wants more rounds than there are."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing is down, and everyone who was is heard of again."""

    @property
    def down(self) -> frozenset[str]:
        """The names of the programs that are down on purpose."""

    def tick(self, watch: Watch, now_s: float) -> str:
        """Strike or mend, if it is time, and return what to tell the onlooker, or ''."""


@dataclass
class Crew:
    """The processes that a fleet is made of, and what to do as soon as the MQTT server answers again."""

    server: Server
    coordinator: Program
    agents: dict[str, Program]
    on_server_restart: Callable[[], None]


@dataclass
class Blow:
    """One kill and what followed; times are monotonic seconds, 0 until they come."""

    round_id: int  # planned; then the round that was open
    target: Target
    victim: str = ""
    doing: str = ""
    stored: int = 0  # updates of the open round that were stored by then
    killed_s: float = 0.0
    started_s: float = 0.0
    back_s: float = 0.0
    births_before: dict[str, int] = field(default_factory=dict)


def plan(rounds: int) -> list[Blow]:
    """One blow a quarter of the way, at half and at three quarters; fewer when there is no round left to heal in."""
    targets: tuple[Target, ...] = ("agent", "coordinator", "MQTT server")
    at = [max(number, round(rounds * number / 4)) for number in (1, 2, 3)]
    return [Blow(round_id, target) for round_id, target in zip(at, targets, strict=True) if round_id < rounds]


class Chaos:
    """Strikes `blows` one after the other, each when the one before is healed."""

    def __init__(self, blows: list[Blow], crew: Crew, seed: int) -> None:
        self.blows = blows
        self._crew = crew
        self._chance = Random(seed)
        # an odd seed hits an agent while it trains, an even one as it sends
        self._while_sending = seed % 2 == 0
        self._round = 0  # the last that was open

    @property
    def goes_on(self) -> bool:
        """Whether a blow is still to come, or to heal: rounds may be faster than they are. Not for ever, though."""
        is_over = all(blow.back_s for blow in self.blows)
        return not is_over and self._round < ROUNDS_TIMES_MAX * self.blows[-1].round_id

    @property
    def is_settled(self) -> bool:
        """Whether nothing is down, and everyone who was is heard of again."""
        return not any(blow.killed_s and not blow.back_s for blow in self.blows)

    @property
    def down(self) -> frozenset[str]:
        """The names of the programs that are down on purpose."""
        struck = (blow for blow in self.blows if blow.killed_s and not blow.started_s and blow.target != "MQTT server")
        return frozenset(self._program(blow).name for blow in struck)

    def tick(self, watch: Watch, now_s: float) -> str:
        """Strike, start again or notice, if it is time; return what to tell the onlooker, or ''."""
        self._round = max(self._round, watch.open_round)
        current = next((blow for blow in self.blows if not blow.back_s), None)
        if current is None:
            return ""
        if not current.killed_s:
            return self._strike(current, watch, now_s) if watch.open_round >= current.round_id else ""
        if not current.started_s:
            return self._start(current, now_s) if now_s >= current.killed_s + DOWN_S else ""
        if self._is_back(current, watch):
            current.back_s = now_s
            return f"{current.victim} is back after {now_s - current.killed_s:.1f} s"
        return ""

    def _strike(self, blow: Blow, watch: Watch, now_s: float) -> str:
        stored = len(watch.accepted.get(watch.open_round, ()))
        if blow.target == "agent":
            self._choose_agent(blow, watch)
        elif max(1, len(self._crew.agents) // 3) <= stored < len(self._crew.agents):  # some are stored, some are not
            blow.victim = "the coordinator" if blow.target == "coordinator" else f"the MQTT server ({self._server})"
            blow.doing = f"with {stored} of {len(self._crew.agents)} updates stored"
        if not blow.victim:
            return ""
        blow.round_id, blow.stored, blow.killed_s = watch.open_round, stored, now_s
        blow.births_before = dict(watch.births)
        if blow.target == "MQTT server":
            self._crew.server.kill()
        else:
            self._program(blow).kill()
        return f"round {blow.round_id}: killed {blow.victim} {blow.doing}"

    def _choose_agent(self, blow: Blow, watch: Watch) -> None:
        sending = [device_id for device_id in watch.just_finished if self._crew.agents[device_id].is_running]
        if self._while_sending and watch.open_round == blow.round_id:
            if sending:
                blow.victim, blow.doing = self._chance.choice(sending), "as it sent its update"
            return
        reported = watch.accepted.get(watch.open_round, set())
        training = [
            device_id
            for device_id, program in self._crew.agents.items()
            if device_id not in reported and program.is_running and is_training(program.pid)
        ]
        if training:
            blow.victim, blow.doing = self._chance.choice(training), "while it trained"

    def _start(self, blow: Blow, now_s: float) -> str:
        blow.started_s = now_s
        if blow.target == "MQTT server":
            self._crew.server.restart()
            self._crew.on_server_restart()
        else:
            self._program(blow).start()
        return ""

    def _is_back(self, blow: Blow, watch: Watch) -> bool:
        """The coordinator has heard of the victim again; or, if it was the victim or deaf, of everyone."""
        born = {device_id for device_id, count in watch.births.items() if count > blow.births_before.get(device_id, 0)}
        return blow.victim in born if blow.target == "agent" else len(born) == len(self._crew.agents)

    def _program(self, blow: Blow) -> Program:
        return self._crew.coordinator if blow.target == "coordinator" else self._crew.agents[blow.victim]

    @property
    def _server(self) -> str:
        return f"{self._crew.server.name} {self._crew.server.version}"
