"""A gale: the storm's faults, and real ones. For some time everything that can fail does; then calm, and the judge.

    python -m tests.real.gale --seconds 300 --seed 7      status 1 if a finished update was lost or counted twice

Real agents, a real coordinator and a real MQTT server, each device in a network namespace of its own (tests.real.nets).
Wires drop packets and are slow, and change; plugs are pulled; power goes, and takes along what a device's kernel still
held; whoever it hits gets SIGKILL at moments that the seed draws, also several at once, and is started again within
seconds. What is finished is what devices' logs say; what is
counted is what the lineage of the versions proves (firmware_sim.lineage). One JSON object goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from broker import mqtt_server
from firmware_sim import data, fleet
from firmware_sim.demo import DIGITS, MODELS_DIR
from firmware_sim.fleet import Scene
from firmware_sim.screen import Lines
from firmware_sim.site import Wish
from tests.real import nets

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware_sim.chaos import Blow, Crew
    from firmware_sim.fleet import Outcome
    from firmware_sim.watch import Watch

DEVICES: Final = 3
PORT: Final = 1883
PAUSE_S: Final = 2.5  # the mean of the time between two blows
DOWN_S: Final = (0.2, 3.0)
LOSS_RATE_MAX: Final = 0.1
BITS_PER_S: Final = (200_000, 2_000_000)
CALM_S: Final = 240.0
COORDINATOR: Final = "coordinator"
SERVER: Final = "MQTT server"
AGENT: Final = "agent"
POWER: Final = "power"
PLUG: Final = "plug"


class Gale:
    """Strikes for `seconds` from its first tick, then mends everything: a `Trouble` as firmware_sim.chaos has it.

    An agent:   up ──SIGKILL──▶ down ──▶ up
    Its power:  up ──plug──▶ dying ──SIGKILL, and its namespace with all its sockets──▶ down ──▶ up
    Its plug:   up ──▶ out ──▶ up        a device has one trouble at a time, and so have coordinator and MQTT server
    """

    def __init__(self, crew: Crew, wires: nets.Nets, seed: int, seconds: float) -> None:
        self.blows: list[Blow] = []
        self.goes_on = True
        self.struck: Counter[str] = Counter()  # by what was struck
        self._crew = crew
        self._wires = wires
        self._chance = Random(seed)
        self._seconds = seconds
        self._ends_s = 0.0
        self._next_s = 0.0
        self._out: dict[str, tuple[str, float]] = {}  # who has a trouble → which, and until when
        self._dying_s: dict[str, float] = {}  # whose power goes, and when

    @property
    def is_settled(self) -> bool:
        """Whether the gale is over and everything runs."""
        return not self.goes_on

    @property
    def down(self) -> frozenset[str]:
        """Programs that are down on purpose."""
        return frozenset(name for name, (trouble, _) in self._out.items() if trouble != PLUG)

    def tick(self, _watch: Watch, now_s: float) -> str:
        """Mend what has been out for long enough, and strike if it is time."""
        if not self._ends_s:
            self._ends_s = now_s + self._seconds
        for name in [name for name, until_s in self._dying_s.items() if now_s >= until_s]:
            self._lose_power(name, now_s)
        for name in [name for name, (_, until_s) in self._out.items() if now_s >= until_s]:
            self._mend(name)
        if self.goes_on and now_s >= self._ends_s and not self._dying_s:
            return self._calm_down()
        if now_s < self._next_s or now_s >= self._ends_s:
            return ""
        self._next_s = now_s + self._chance.expovariate(1 / PAUSE_S)
        return self._strike(now_s)

    def _strike(self, now_s: float) -> str:
        devices = list(self._crew.agents)
        draws = [(trouble, device) for device in devices for trouble in (AGENT, POWER, PLUG)]
        trouble, name = self._chance.choice([*draws, *draws, (COORDINATOR, COORDINATOR), (SERVER, SERVER)])
        down_s = self._chance.uniform(*DOWN_S)
        if name in self._out or name in self._dying_s:
            return ""
        self.struck[trouble] += 1
        if name in devices:
            self._change_weather(name)
        if trouble == POWER:
            self._wires.cut(name)
            self._dying_s[name] = now_s + down_s
            return f"{name}: plug, then power"
        self._out[name] = (trouble, now_s + down_s)
        if trouble == PLUG:
            self._wires.cut(name)
        elif trouble == SERVER:
            self._crew.server.kill()
        else:
            self._program(name).kill()
        return f"{name}: {trouble}, for {down_s:.1f} s"

    def _lose_power(self, name: str, now_s: float) -> None:
        del self._dying_s[name]
        self._program(name).kill()
        self._wires.power_off(name)
        self._out[name] = (POWER, now_s + self._chance.uniform(*DOWN_S))

    def _mend(self, name: str) -> None:
        trouble, _ = self._out.pop(name)
        if trouble == PLUG:
            self._wires.mend(name)
        elif trouble == SERVER:
            self._crew.server.restart()
            self._crew.on_server_restart()
        else:
            if trouble == POWER:
                self._wires.power_on(name)
                self._change_weather(name)
            self._program(name).start()

    def _change_weather(self, device: str) -> None:
        bits = self._chance.randint(*BITS_PER_S)
        self._wires.set_weather(device, self._chance.uniform(0.0, LOSS_RATE_MAX), bits)

    def _calm_down(self) -> str:
        self.goes_on = False
        for name in list(self._out):
            self._mend(name)
        for device in self._crew.agents:
            self._wires.set_weather(device, 0.0, nets.FREE_BITS)
        return "calm"

    def _program(self, name: str) -> fleet.Program:
        return self._crew.coordinator if name == COORDINATOR else self._crew.agents[name]


def run(seconds: float, seed: int, directory: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """One gale in `directory` (empty), in a namespace of its own; what became of every finished update."""
    shares = data.share(data.digits(), DEVICES, seed)
    model = (MODELS_DIR / "digits.tflite").read_bytes()
    wish = Wish("gale", "digits", model, shares, DIGITS, 1, seed, "last-3")
    wires = nets.Nets(list(shares.devices), directory)
    gales: list[Gale] = []

    def trouble(crew: Crew) -> Gale:
        gales.append(Gale(crew, wires, seed, seconds))
        return gales[-1]

    scene = Scene(f"mqtt://{nets.SERVER}:{PORT}", wires.before, trouble, CALM_S)
    try:
        listener = f"listener {PORT} {nets.SERVER}"
        server = mqtt_server.start(directory / "mqtt", config_extra=listener, kind="mosquitto")
        outcome = fleet.run_in(scene, server, wish, directory, Lines(tell))
        return _found(outcome, gales[-1], wires.dropped())
    finally:
        wires.stop()


def _found(outcome: Outcome, gale: Gale, dropped: int) -> dict[str, Any]:
    verdict = outcome.verdict
    return {
        "finished": verdict.finished,
        "counted": verdict.counted,
        "refused": verdict.refused,
        "lost": verdict.lost,
        "double_counted": verdict.double_counted,
        "unknown": verdict.unknown,
        "versions_proved": verdict.versions_proved,
        "versions_wrong": verdict.versions_wrong,
        "rounds": len(outcome.rows),
        "struck": dict(gale.struck),
        "packets_dropped": dropped,
        "failed_trainings": outcome.trainer_failures,
    }


def is_well(found: dict[str, Any]) -> bool:
    """Whether every finished update is in the model once, and nothing else is."""
    wrong = ("refused", "lost", "double_counted", "unknown", "versions_wrong")
    return found["finished"] == found["counted"] and not any(found[name] for name in wrong)


def why_not() -> str:
    """Why there can be no gale on this machine; '' if there can."""
    return nets.why_not() or ("" if mqtt_server.find_mosquitto() else "needs mosquitto: this machine has only amqtt")


def main() -> None:
    """Go into a namespace, then blow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inside", action="store_true", help="this process is in a namespace of its own already")
    arguments = parser.parse_args()
    if not arguments.inside:
        if reason := why_not():
            print(f"skipped: {reason}", file=sys.stderr)
            return
        command = nets.inside([sys.executable, "-m", "tests.real.gale", "--inside", *sys.argv[1:]])
        os.execvp(command[0], command)
    directory = Path(tempfile.mkdtemp(prefix="hedgerow-gale-"))
    began = time.monotonic()
    try:
        found = run(arguments.seconds, arguments.seed, directory, lambda text: print(text, file=sys.stderr, flush=True))
    except (fleet.FleetError, mqtt_server.MqttServerError, nets.NetsError) as error:
        sys.exit(f"{error}\nEverything of this run is in {directory}")
    print(json.dumps({**found, "seed": arguments.seed, "wall_s": round(time.monotonic() - began, 1)}))
    if not is_well(found):
        sys.exit(f"Everything of this run is in {directory}")
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
