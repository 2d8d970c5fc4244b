"""A real fleet on one machine: an MQTT server, a coordinator, many `edge-agent` processes, and someone who watches.

    set up ─▶ start ─▶ rounds (chaos strikes, the tap listens, the lineage is recomputed) ─▶ drain ─▶ measure ─▶ stop

The programs are the ones that anyone installs, started with configuration files; nothing of them runs in this
process. It only starts, reads logs and store, kills where chaos says so, and stops. Whatever happens here (an error,
Ctrl-C, SIGKILL), no process stays behind: see firmware_sim.processes.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from broker import mqtt_server
from broker.aggregate.rules import rule_named
from broker.config import Aggregate as Rule
from broker.config import load
from broker.registry import model_of, params_bytes_of
from broker.store import Store
from broker.views import ask_for_rounds
from engine.frame import frame_of
from engine.master import Numbers
from firmware_sim import processes
from firmware_sim.chaos import Blow, Chaos, Crew, Trouble, plan
from firmware_sim.lineage import Lineage, Verdict, judge
from firmware_sim.processes import Program
from firmware_sim.screen import Row
from firmware_sim.site import Site, Wish, prepare
from firmware_sim.tap import Heard, Tap
from firmware_sim.watch import Watch, follow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker.mqtt_server import Server
    from broker.rows import StoredUpdate, VersionRow
    from firmware_sim.screen import Screen
    from wire.messages import Update

POLL_S: Final = 0.03
STAGGER_S: Final = 0.15  # between two agents' starts: a start costs about 0.4 s of a core
PRESENT_TIMEOUT_S: Final = 120.0
SILENCE_S: Final = 180.0  # no line in any log for so long: something is wrong
DRAIN_TIMEOUT_S: Final = 60.0
IDLE_S: Final = 2.0
EXTRA_ROUNDS_MAX: Final = 2  # opened to fold in updates that came after the last round had closed


class FleetError(RuntimeError):
    """The fleet did not get on; the sentence says who and ends with the end of that program's log."""


@dataclass(frozen=True)
class Scene:
    """Where a fleet runs and what befalls it, if not everything on one address with the demo's three kills."""

    device_url: str = ""  # where devices find the MQTT server; empty: where it is
    before: Callable[[str], Sequence[str]] = lambda _device_id: ()  # what stands before the command of a device's agent
    trouble: Callable[[Crew], Trouble] | None = None
    calm_s: float = DRAIN_TIMEOUT_S  # how long the outboxes may take to empty when all trouble is over


@dataclass
class Outcome:
    """What was measured. Bytes are of MQTT PUBLISH packets as the tap heard them."""

    site: Site
    verdict: Verdict
    heard: Heard
    updates: dict[bytes, Update]  # every update that the tap heard, by digest
    stored: list[StoredUpdate]
    rows: list[Row]
    blows: list[Blow]
    sealed_bytes: list[int]  # whole MQTT payload of every finished update
    idle_rss_bytes: list[int]
    trainer_peak_bytes: list[int]
    trainer_failures: list[str]
    server_name: str
    server_version: str
    notes: list[str] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    trainer_cpu_s: list[float] = field(default_factory=list)  # of every training child


def run(wish: Wish, directory: Path, screen: Screen) -> Outcome:
    """Make the fleet in `directory` (empty) and run its rounds. Raises FleetError, MqttServerError, ModelError."""
    screen.status("starting an MQTT server")
    return run_in(Scene(), mqtt_server.start(directory / "mqtt"), wish, directory, screen)


def run_in(scene: Scene, server: Server, wish: Wish, directory: Path, screen: Screen) -> Outcome:
    """The same in a scene of the caller's, with an MQTT server that listens already and is stopped at the end."""
    try:
        site = prepare(wish, directory, server.url, scene.device_url)
        cpu_before, wall_before = _cpu_s(), time.monotonic()
        with processes.interruptible():
            outcome = _Run(scene, wish, site, server, screen).whole()
    finally:
        with processes.uninterrupted():
            server.stop()
    outcome.cpu_s = _cpu_s() - cpu_before
    outcome.wall_s = time.monotonic() - wall_before
    return outcome


class _Run:
    """One run of one fleet, from its start to its end."""

    def __init__(self, scene: Scene, wish: Wish, site: Site, server: Server, screen: Screen) -> None:
        self._scene = scene
        self._wish = wish
        self._site = site
        self._screen = screen
        agents = {device_id: self._agent(device_id) for device_id in site.devices}
        serve = [*command_of("broker"), "serve", "--config", str(site.broker_config)]
        coordinator = Program("coordinator", serve, site.log("coordinator"))
        self._tap = Tap(server.url, wish.fleet, site.devices, site.coordinator, Random(wish.seed))
        self._crew = Crew(server, coordinator, agents, self._tap.reconnect)
        kills = Chaos(plan(wish.rounds) if wish.chaos else [], self._crew, wish.seed)
        self._chaos: Trouble = scene.trouble(self._crew) if scene.trouble is not None else kills
        self._watch: Watch = follow(coordinator.log, {name: program.log for name, program in agents.items()})
        first = Numbers(params_bytes_of(site.first.manifest, site.first.blobs.__getitem__), site.first.remainder)
        base = model_of(site.first.manifest, site.first.blobs.__getitem__)
        self._lineage = Lineage(frame_of(base, wish.train), first, rule_named(Rule().rule), 1.0)
        self._rows: list[Row] = []
        self._notes: list[str] = []
        self._heard_of_s = time.monotonic()
        self._requested = 0
        self._store_counter = 0
        self._closed_s = 0.0  # when the round before closed, or the first was asked for

    def whole(self) -> Outcome:
        """Start, run all rounds, drain, measure; stop everything in any case."""
        try:
            self._start()
            with Store(self._site.store, read_only=True) as store:
                self._request(self._wish.rounds)
                self._rounds(store)
                self._drain(store)
                rss = self._idle_rss()
                self._lineage.advance(store, self._tap.update)
                stored = store.updates()
        finally:
            with processes.uninterrupted():
                self._stop()
        return self._outcome(stored, rss)

    # Start and stop

    def _agent(self, device_id: str) -> Program:
        command = [*command_of("edge-agent"), "run", "--config", str(self._site.agent_config(device_id))]
        return Program(device_id, [*self._scene.before(device_id), *command], self._site.log(device_id))

    def _start(self) -> None:
        self._screen.status("starting the coordinator and the agents")
        if not self._tap.start():
            raise FleetError(f"the auditor cannot connect to the MQTT server at {self._crew.server.url}")
        self._crew.coordinator.start()
        for program in self._crew.agents.values():
            program.start()
            time.sleep(STAGGER_S)
        until = time.monotonic() + PRESENT_TIMEOUT_S
        while missing := set(self._crew.agents) - set(self._watch.births):
            self._look()
            if time.monotonic() > until:
                name = min(missing)
                raise FleetError(f"the coordinator never heard of {name}:\n{self._crew.agents[name].tail()}")
            time.sleep(POLL_S)

    def _stop(self) -> None:
        self._screen.status("stopping")
        processes.stop_all(self._crew.agents.values())
        processes.stop_all([self._crew.coordinator])
        self._tap.stop()

    # Rounds

    def _request(self, count: int) -> None:
        """Ask for rounds as `broker round open --count` does."""
        config = load(self._site.broker_config)
        with Store(self._site.store) as store:
            ask_for_rounds(config, store, count=count)
        self._requested += count
        self._closed_s = time.monotonic()

    def _rounds(self, store: Store) -> None:
        """Watch until every requested round has closed."""
        while True:
            self._look()
            if said := self._chaos.tick(self._watch, time.monotonic()):
                self._screen.note(said)
            self._show(store)
            if len(self._rows) >= self._requested:
                if self._chaos.goes_on:
                    self._request(1)
                elif self._chaos.is_settled:
                    return
            self._check_alive()
            time.sleep(POLL_S)

    def _drain(self, store: Store) -> None:
        """Let every outbox empty, and every stored update be counted: by one more round if need be."""
        until = time.monotonic() + self._scene.calm_s
        extra = 0
        while True:
            self._look()
            waiting, pending = self._watch.waiting, [row for row in store.updates() if row.counted_in is None]
            if not waiting and pending and extra < EXTRA_ROUNDS_MAX:
                extra += 1
                self._notes.append(f"{len(pending)} updates came after the last round: one more round counted them")
                self._screen.note(self._notes[-1])
                self._request(1)
                self._rounds(store)
            elif not (waiting or pending) or time.monotonic() > until:
                return
            time.sleep(POLL_S)

    def _show(self, store: Store) -> None:
        stored = len(self._watch.accepted.get(self._watch.open_round, ()))
        self._screen.status(f"round {self._watch.open_round}: {stored} of {len(self._crew.agents)} updates stored")
        if (counter := store.change_counter()) == self._store_counter:
            return
        self._store_counter = counter
        closed = store.versions()[len(self._rows) + 1 :]
        for version in closed:
            row = self._row(version)
            self._rows.append(row)
            self._screen.row(row)
        if closed:
            self._lineage.advance(store, self._tap.update)

    def _row(self, version: VersionRow) -> Row:
        """A closed round, with the bytes that the tap heard and the seconds that passed since the one before it."""
        now = time.monotonic()
        seconds, self._closed_s = now - self._closed_s, now
        heard = self._tap.heard
        up, down = heard.bytes_of("up"), heard.bytes_of("dn")
        before_up = sum(row.bytes_up for row in self._rows)
        before_down = sum(row.bytes_down for row in self._rows)
        devices = len(self._crew.agents)
        return Row(
            version.round_id,
            version.members,
            devices,
            version.accuracy,
            up - before_up,
            down - before_down,
            seconds,
        )

    def _look(self) -> None:
        if self._watch.look():
            self._heard_of_s = time.monotonic()

    def _check_alive(self) -> None:
        """Nobody may end unasked, and somebody must say something now and then."""
        for program in (self._crew.coordinator, *self._crew.agents.values()):
            if not program.is_running and program.name not in self._chaos.down:
                raise FleetError(f"{program.name} ended by itself:\n{program.tail()}")
        if time.monotonic() > self._heard_of_s + SILENCE_S:
            raise FleetError(f"nothing happened for {SILENCE_S:.0f} s:\n{self._crew.coordinator.tail()}")

    # Figures

    def _idle_rss(self) -> list[int]:
        """Memory of each agent once it has nothing to do."""
        until = time.monotonic() + DRAIN_TIMEOUT_S
        pids = [program.pid for program in self._crew.agents.values()]
        while any(processes.children_of(pid) for pid in pids) and time.monotonic() < until:
            time.sleep(POLL_S)
        time.sleep(IDLE_S)
        return [processes.rss_bytes(pid) for pid in pids]

    def _outcome(self, stored: list[StoredUpdate], rss: list[int]) -> Outcome:
        watch, heard = self._watch, self._tap.heard
        verdict = judge(watch.finished, stored, watch.refused, self._lineage)
        updates = {digest: update for digest in heard.sealed if (update := self._tap.update(digest)) is not None}
        sizes = [made.sealed_bytes or len(heard.sealed[digest][1]) for digest, made in watch.finished.items()]
        return Outcome(
            site=self._site,
            verdict=verdict,
            heard=heard,
            updates=updates,
            stored=stored,
            rows=self._rows,
            blows=self._chaos.blows,
            sealed_bytes=sizes,
            idle_rss_bytes=rss,
            trainer_peak_bytes=[peak * 1024 for peak in watch.trainer_peaks_kb],
            trainer_failures=watch.failures,
            trainer_cpu_s=watch.trainer_cpu_s,
            server_name=self._crew.server.name,
            server_version=self._crew.server.version,
            notes=self._notes,
        )


def command_of(script: str) -> list[str]:
    """How to start one of our programs: the installed script beside this Python, or its module."""
    installed = Path(sys.executable).with_name(script)
    if installed.is_file():
        return [str(installed)]
    module = {"edge-agent": "edge_agent.cli", "broker": "broker.cli.main"}[script]
    return [sys.executable, "-c", f"from {module} import main; main(prog_name={script!r})"]


def _cpu_s() -> float:
    """User and system seconds of this process and of every child, and its children, that has ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
