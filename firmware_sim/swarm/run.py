"""A swarm: thousands of the product's own agents over thousands of real MQTT connections, from one process.

    MQTT server (ours, or any) ─▶ coordinator, a process ─▶ everyone connects ─▶ rounds ─▶ the audit ─▶ stop

It is how an operator finds out what his MQTT server and his machine bear. The coordinator is the real program, in a
fleet of its own beside those that the server may carry already. What each device does is in firmware_sim.swarm.device.
At the end the store is asked for every update that a device has finished, by its digest: what has a receipt and is not
there is lost.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from broker import mqtt_server
from broker.store import Store
from edge_agent import host
from firmware_sim import processes
from firmware_sim.fleet import FleetError, command_of
from firmware_sim.processes import Program
from firmware_sim.swarm import site as sites
from firmware_sim.swarm.device import Clock, Device, Ground
from firmware_sim.swarm.outcome import Outcome, Three
from firmware_sim.swarm.screen import Look
from firmware_sim.swarm.site import Access, SwarmSite
from firmware_sim.swarm.watch import Watch
from wire import keys, topics
from wire.lines import Lines
from wire.link import new_line
from wire.link_terms import LinkEvent, Settings, server_of
from wire.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.mqtt_server import Server
    from firmware_sim.swarm.screen import SwarmScreen

LOOK_S: Final = 0.5
SETTLE_S: Final = 3.0  # after the last birth, before memory is read
SILENCE_S: Final = 360.0  # nothing new for so long, and it is given up; a lost birth is said again after 300 s
GOODBYE_S: Final = 20.0
SWEEP_S: Final = 5.0
VERIFIED_MAX: Final = 64
FILES_SPARE: Final = 100  # descriptors of a process that are no connections
LOCAL: Final = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Wish:
    """Which swarm. No round closes without updates of this `share` of the devices. `access`: None: a server of ours."""

    devices: int
    rounds: int
    seed: int
    train_s: float
    share: float
    lasts_s: int
    access: Access | None

    @property
    def fleet(self) -> str:
        """A fleet of its own, so that two swarms and the fleets of the server keep apart."""
        return f"swarm-{self.seed}"


def run(wish: Wish, directory: Path | None, screen: SwarmScreen) -> Outcome:
    """Run the swarm. Its files are in `directory`, which is empty or not there; None: one that is deleted.

    Raises FleetError, MqttServerError, StoreError or ModelError, each a sentence.
    """
    _allow_files(wish.devices)
    temporary = directory is None
    try:
        home = _home(directory)
    except OSError as error:
        raise FleetError(f"cannot use {directory}: {error.strerror}") from error
    try:
        with processes.interruptible():
            return _in(home, wish, screen)
    finally:
        if temporary:
            shutil.rmtree(home, ignore_errors=True)


def _in(home: Path, wish: Wish, screen: SwarmScreen) -> Outcome:
    server = mqtt_server.start(home / "mqtt") if wish.access is None else None
    try:
        access = wish.access or Access(server.url if server is not None else "")
        settings = _settings(access)
        screen.note(f"{wish.devices:,} devices of fleet {wish.fleet} against {access.url}")
        site = sites.prepare(home, wish.fleet, wish.devices, access)
        return _Run(wish, site, settings, _server_pid(server, settings), screen).whole()
    finally:
        if server is not None:
            with processes.uninterrupted():
                server.stop()


def _home(directory: Path | None) -> Path:
    if directory is None:
        return Path(tempfile.mkdtemp(prefix="hedgerow-swarm-"))
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FleetError(f"{directory} is not empty, and nothing is overwritten: name another --dir")
    return directory.absolute()


def _allow_files(devices: int) -> None:
    """Raise the limit on open files as far as need be; servers that we start inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = devices + FILES_SPARE
    if hard != resource.RLIM_INFINITY and need > hard:
        raise FleetError(
            f"{devices} devices need {need} open files and this process may have {hard}: at most "
            f"{hard - FILES_SPARE} devices here, or raise the hard limit (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _settings(access: Access) -> Settings:
    """What all links have in common; with TLS, one context for all of them."""
    try:
        server, tls = server_of(access.url, access.ca_file)
        password = access.password
    except (ValueError, OSError) as error:
        raise FleetError(str(error)) from error
    context = tls() if tls is not None else None
    shared = (lambda: context) if context is not None else None
    return Settings(server, "", (), None, username=access.username or None, password=password, tls=shared)


def _server_pid(server: Server | None, settings: Settings) -> int:
    """The MQTT server's process; 0 where it is on another machine, or may not be looked at."""
    if server is not None:
        return server.pid
    return processes.listener_pid(settings.server.port) if settings.server.host in LOCAL else 0


class _Run:
    """One run of one swarm."""

    def __init__(self, wish: Wish, site: SwarmSite, settings: Settings, server_pid: int, screen: SwarmScreen) -> None:
        self._wish = wish
        self._site = site
        self._screen = screen
        self._server_pid = server_pid
        command = [*command_of("broker"), "serve", "--config", str(site.config_path)]
        self._coordinator = Program("coordinator", command, site.log)
        self._watch = Watch(site.log)
        payloads = sites.payloads_of(site)  # first, so that what it takes is no memory of connections
        self._lines = Lines()
        # what everyone is told is checked once: ten thousand checks of the same bytes would only measure ourselves
        verify = functools.lru_cache(VERIFIED_MAX)(keys.verifier(site.coordinator))
        self._ground = Ground(
            wish.fleet, settings, verify, self._lines, Clock(), Random(wish.seed), wish.train_s, payloads=payloads
        )
        self._tally = self._ground.tally
        self._devices: list[Device] = []
        self._doing = "starting"
        self._next_look_s = 0.0
        self._last_look = (time.monotonic(), 0, 0, 0.0)  # when; messages sent, received; the coordinator's CPU seconds
        self._marks: tuple[int, ...] = ()  # what must change now and then
        self._marked_s = 0.0
        self._orderly = False

    def whole(self) -> Outcome:
        """Connect everyone, run the rounds, audit; stop everything in any case."""
        try:
            self._try()
            before = self._gauge(processes.rss_bytes)
            self._connect()
            memory = self._gauge(processes.rss_bytes).since(before)
            began, cpu_before = time.monotonic(), self._gauge(host.cpu_s)
            self._rounds()
            cpu, wall_s = self._gauge(host.cpu_s).since(cpu_before), time.monotonic() - began
            held = sum(device.is_up and device.downs == 0 for device in self._devices)
            self._orderly = True
        finally:
            with processes.uninterrupted():
                self._stop()
        with Store(self._site.store, read_only=True) as store:
            counted_in = {row.digest: row.counted_in for row in store.updates()}
        return Outcome(
            devices=self._wish.devices,
            held=held,
            tally=self._tally,
            closed=self._watch.closed,
            coordinator_counts=self._watch.counts,
            counted_in=counted_in,
            memory=memory,
            cpu_s=cpu,
            wall_s=wall_s,
            dropped=sum(device.line.dropped for device in self._devices),
        )

    # The stages

    def _try(self) -> None:
        """Let one device connect, which tells whether anybody can; then the coordinator."""
        self._start(list(self._site.keys)[:1])
        self._until(lambda: self._tally.up == 1 or bool(self._tally.last_reason), "the first device connects")
        if self._tally.last_reason:
            raise FleetError(self._tally.last_reason)
        self._coordinator.start()
        told = self._watch.counts
        self._until(lambda: told["ready"] + told["link-down"] > 0, "the coordinator connects")
        if not told["ready"]:
            raise FleetError(f"the coordinator cannot connect:\n{self._coordinator.tail()}")

    def _connect(self) -> None:
        """Let all other devices connect, and wait until the coordinator has heard of each."""
        self._start(list(self._site.keys)[1:])
        gc.collect()
        gc.freeze()  # what lives to the end need not be looked at again and again
        count = self._wish.devices
        self._until(lambda: self._tally.up == count and len(self._watch.births) == count, "everyone connects")
        settled_s = time.monotonic() + SETTLE_S
        self._until(lambda: time.monotonic() >= settled_s, "everyone is there")
        self._screen.note(f"{count:,} connections, and as many births heard")

    def _start(self, names: list[str]) -> None:
        for name in names:
            device = Device(self._ground, name, self._site.keys[name])
            self._devices.append(device)
            device.start()

    def _rounds(self) -> None:
        """Until every round has closed, and every update has its receipt."""
        wish, watch, tally = self._wish, self._watch, self._tally
        sites.request(self._site, wish.rounds, math.ceil(wish.share * wish.devices), wish.lasts_s)
        told = 0

        def are_over() -> bool:
            nonlocal told
            for closed in watch.closed[told:]:
                told += 1
                self._screen.note(f"round {closed.round_id}: {closed.members:,} updates in {closed.seconds:.1f} s")
            self._doing = f"round {watch.open_round} of {wish.rounds}"
            quiet = not tally.training and len(tally.finished) == len(tally.verdicts)
            return quiet and len(watch.closed) >= wish.rounds

        self._until(are_over, "rounds")

    def _until(self, is_done: Callable[[], bool], doing: str) -> None:
        """Drive all lines until then. Raises FleetError when the coordinator ends, or nothing happens any more."""
        self._doing, self._marked_s = doing, time.monotonic()
        while not is_done():
            self._lines.turn(min(self._next_look_s, self._ground.clock.due_s))
            self._ground.clock.run_due()
            if time.monotonic() >= self._next_look_s:
                self._look()
                self._check()

    # What is told

    def _look(self) -> None:
        self._watch.look()
        now_s, tally = time.monotonic(), self._tally
        at_s, sent, received, cpu_s = self._last_look
        coordinator_cpu_s = host.cpu_s(self._coordinator.pid)
        self._last_look = (now_s, tally.sent, tally.received, coordinator_cpu_s)
        seconds = max(now_s - at_s, 1e-3)
        self._screen.look(
            Look(
                doing=self._doing,
                devices=self._wish.devices,
                connected=tally.up,
                born=len(self._watch.births),
                training=tally.training,
                finished=len(tally.finished),
                receipted=len(tally.verdicts),
                resent=tally.resent,
                reconnects=tally.reconnects,
                last_reason=tally.last_reason,
                up_per_s=(tally.sent - sent) / seconds,
                down_per_s=(tally.received - received) / seconds,
                coordinator_cpu_rate=(coordinator_cpu_s - cpu_s) / seconds,
                server_rss_bytes=processes.rss_bytes(self._server_pid) if self._server_pid else 0,
                rss_bytes=processes.rss_bytes(os.getpid()),
            )
        )
        self._next_look_s = time.monotonic() + LOOK_S

    def _check(self) -> None:
        """The coordinator may not end unasked, and something must happen now and then."""
        if self._coordinator.pid and not self._coordinator.is_running:
            raise FleetError(f"the coordinator ended by itself:\n{self._coordinator.tail()}")
        tally, watch = self._tally, self._watch
        marks = (tally.up, len(watch.births), len(tally.finished), len(tally.verdicts), len(watch.closed))
        if marks != self._marks:
            self._marks, self._marked_s = marks, time.monotonic()
        elif time.monotonic() > self._marked_s + SILENCE_S:
            raise FleetError(f"nothing happened for {SILENCE_S:.0f} s while {self._doing}: {self._lacking()}")

    def _lacking(self) -> str:
        """Who has not got what everyone should have."""
        down = [device.name for device in self._devices if not device.is_up]
        unheard = [device.name for device in self._devices if device.is_up and device.name not in self._watch.births]
        outboxes = [device.name for device in self._devices if device.durable().outbox]
        parts = [
            f"{len(names):,} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for names, what in ((down, "not connected"), (unheard, "not heard of"), (outboxes, "without a receipt"))
            if names
        ]
        reason = f"; a link said: {self._tally.last_reason}" if self._tally.last_reason else ""
        return (", ".join(parts) or "everyone is there and has its receipts, and the round does not close") + reason

    def _gauge(self, of: Callable[[int], float]) -> Three:
        server = of(self._server_pid) if self._server_pid else 0
        return Three(of(os.getpid()), of(self._coordinator.pid), server)

    # The end

    def _stop(self) -> None:
        processes.stop_all([self._coordinator])
        if self._orderly:
            self._say_goodbye()
        if self._wish.access is not None and self._devices:
            self._sweep()

    def _say_goodbye(self) -> None:
        """End every session in order, so that the MQTT server need not publish thousands of wills."""
        for device in self._devices:
            device.line.stop()
        until_s = time.monotonic() + GOODBYE_S
        while any(not device.line.is_over for device in self._devices) and time.monotonic() < until_s:
            self._lines.turn(until_s)

    def _sweep(self) -> None:
        """Take back what the coordinator left retained on a server that is not ours."""
        fleet, lines, events = self._wish.fleet, Lines(), list[LinkEvent]()
        settings = self._ground.settings._replace(
            client_id=f"{fleet}-sweep", filters=(topics.shared(fleet, "state"),), will=None
        )
        line = new_line(settings, post=events.append, jitter=Random(), hurry=lines.hurry, meter=Meter())
        lines.hurry(line)
        until_s = time.monotonic() + SWEEP_S
        while not events and time.monotonic() < until_s:
            lines.turn(until_s)
        for kind in topics.SHARED_KINDS:
            line.publish(topics.shared(fleet, kind), b"", retain=True)
        line.stop()
        while not line.is_over and time.monotonic() < until_s:
            lines.turn(until_s)
        lines.close()
