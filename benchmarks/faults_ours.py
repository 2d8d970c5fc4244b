"""Our side of the fault benchmark: real processes, a real MQTT server, and the auditor's word on what became of it.

The fleet is the demo's, smaller: `broker serve`, one `edge-agent` a device, the digits. Devices reach the MQTT server
through a gate; the coordinator and the tap sit beside it. A finished update is one that a device's log calls written to
its outbox; counted is what the recomputed lineage of the versions proves, see firmware_sim.lineage.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.faults_scripts import COORDINATOR, MQTT_SERVER, ROUNDS
from benchmarks.gate import Gate
from broker import mqtt_server
from broker.store import Store
from firmware_sim import data, fleet
from firmware_sim.demo import MODELS_DIR
from firmware_sim.fleet import Scene
from firmware_sim.processes import is_training
from firmware_sim.screen import Lines
from firmware_sim.site import Recipe, Wish

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from benchmarks.faults_scripts import Script
    from firmware_sim.chaos import Blow, Crew
    from firmware_sim.fleet import Outcome
    from firmware_sim.watch import Watch

DEVICES: Final = 3
CALM_S: Final = 300.0
# so many epochs that a training takes some seconds, within which a link can be cut
RECIPE: Final = Recipe(epochs=150, batch_size=16, learning_rate=0.001, momentum=0.9, keep_rate=0.01, value_bits=4)


@dataclass(frozen=True)
class Result:
    """What became of the work of one run. `at_stake`: finished before the fault was over, and in no model before it."""

    finished: int
    counted: int
    at_stake: int
    at_stake_counted: int
    seconds: float  # from the request of the first round until the last finished work is in a model
    double_counted: int = 0
    note: str = ""


class Struck:
    """A fleet as a script sees it, and what strikes as the fleet sees it: `Side` and `Trouble` in one."""

    def __init__(self, script: Script, crew: Crew, gate: Gate) -> None:
        self.devices = frozenset(crew.agents)
        self.open_round = 0
        self.blows: list[Blow] = []
        self.goes_on = False
        self.is_settled = False
        self.down: frozenset[str] = frozenset()
        self.began_unix_s = 0.0
        self.at_stake: frozenset[tuple[str, int]] = frozenset()  # (device_id, round_id)
        self._since = 0
        self._crew = crew
        self._gate = gate
        self._watch: Watch | None = None
        self._steps = script(self)

    def tick(self, watch: Watch, _now_s: float) -> str:
        """One step of the script."""
        self.began_unix_s = self.began_unix_s or time.time()
        self._watch, self.open_round = watch, watch.open_round
        try:
            next(self._steps)
        except StopIteration:
            self.is_settled = True
        return ""

    def training(self) -> AbstractSet[str]:
        """Devices with a child that works, and not on what an earlier round left to do."""
        busy = {name for name, program in self._crew.agents.items() if program.is_running and is_training(program.pid)}
        return busy - self.finished()

    def finished(self) -> AbstractSet[str]:
        """By the devices' own logs."""
        return {device for device, round_id in self._made() if round_id == self.open_round}

    def stored(self) -> AbstractSet[str]:
        """By the coordinator's log."""
        return self._watch.accepted.get(self.open_round, set()) if self._watch is not None else set()

    def shut(self) -> None:
        """Cut the link of every device."""
        self._gate.shut()

    def open(self) -> None:
        """Mend it."""
        self._gate.open()

    def kill(self, name: str) -> None:
        """A training child dies with its agent."""
        if name == MQTT_SERVER:
            self._crew.server.kill()
            return
        self.down |= {name}
        self._program(name).kill()

    def start(self, name: str) -> None:
        """Start it again."""
        if name == MQTT_SERVER:
            self._crew.server.restart()
            self._crew.on_server_restart()
            return
        self._program(name).start()
        self.down -= {name}

    def strike(self) -> None:
        """From now on, what is in no model is at stake: the open round."""
        self._since = self.open_round

    def heal(self) -> None:
        """It was what is finished by now."""
        self.at_stake = frozenset(key for key in self._made() if key[1] >= self._since)

    def _made(self) -> list[tuple[str, int]]:
        made = self._watch.finished.values() if self._watch is not None else ()
        return [(one.device_id, one.round_id) for one in made]

    def _program(self, name: str) -> fleet.Program:
        return self._crew.coordinator if name == COORDINATOR else self._crew.agents[name]


def run(script: Script, seed: int, tell: Callable[[str], None]) -> Result:
    """Run the script on a fleet of its own. Raises FleetError, MqttServerError, DataError."""
    directory = Path(tempfile.mkdtemp(prefix="hedgerow-faults-"))
    server = mqtt_server.start(directory / "mqtt")
    gate = Gate(server.port)
    found: list[Struck] = []

    def trouble(crew: Crew) -> Struck:
        found.append(Struck(script, crew, gate))
        return found[-1]

    try:
        scene = Scene(device_url=f"mqtt://127.0.0.1:{gate.port}", trouble=trouble, calm_s=CALM_S)
        outcome = fleet.run_in(scene, server, wish(seed), directory, Lines(tell))
        return _result(outcome, found[-1])
    finally:
        gate.close()
        shutil.rmtree(directory, ignore_errors=True)


def wish(seed: int) -> Wish:
    """The demo's fleet, smaller."""
    shares = data.share(data.digits(), DEVICES, seed)
    model = (MODELS_DIR / "digits.tflite").read_bytes()
    return Wish("faults", "digits", model, shares, RECIPE, ROUNDS, seed, train="last-3")


def _result(outcome: Outcome, struck: Struck) -> Result:
    verdict = outcome.verdict
    with Store(outcome.site.store, read_only=True) as store:
        last_unix_s = store.versions()[-1].created_unix_s
    missing = {*verdict.lost, *verdict.refused}
    note = ", ".join(f"{device} in round {round_id}" for device, round_id in sorted(missing))
    return Result(
        finished=verdict.finished,
        counted=verdict.finished - len(missing),
        at_stake=len(struck.at_stake),
        at_stake_counted=len(struck.at_stake - missing),
        seconds=last_unix_s - struck.began_unix_s,
        double_counted=len(verdict.double_counted) + len(verdict.unknown),
        note=f"not counted: {note}" if note else "",
    )
