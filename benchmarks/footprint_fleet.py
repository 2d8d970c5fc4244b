"""A small fleet of real processes: mosquitto with TLS, `broker serve`, and agents as pip installs them.

    edge-agent (from the tree that pip made, no other library) ── gate that counts ── mosquitto, TLS ── broker serve

Agents run with the plain Python below this environment and see nothing but what `[agent]` brings. TLS is that of the
fleet's own authority; devices show no certificates of theirs, which costs bytes at the connection alone.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.faults_flower import descendants
from broker import mqtt_server
from broker.config import load
from broker.mqtt_server import MqttServerError
from broker.store import Store
from broker.views import ask_for_rounds
from firmware_sim import processes
from firmware_sim.data import Shares
from firmware_sim.fleet import FleetError, command_of
from firmware_sim.models.split import digits_split
from firmware_sim.processes import Program, rss_bytes
from firmware_sim.site import Recipe, Wish, prepare
from firmware_sim.watch import follow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from broker.rows import VersionRow

PYTHON: Final = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
AGENT: Final = "from edge_agent.cli import main; main(prog_name='edge-agent')"
PATIENCE_S: Final = 60.0
POLL_S: Final = 0.02
EXAMPLES: Final = 16
SEED: Final = 1
# one step of one batch: what is left of a round is its overhead
NULL_TRAINING: Final = Recipe(epochs=1, batch_size=16, learning_rate=0.01, momentum=0.9, keep_rate=0.01, value_bits=0)
_TLS: Final = """\
cafile {home}/ca.crt
certfile {home}/server.crt
keyfile {home}/server.tls.key
tls_version tlsv1.2
"""


@dataclass(frozen=True)
class Model:
    """Which model a fleet trains, and how much of it."""

    name: str
    file: bytes
    train: str


class Farm:
    """One fleet in `directory`; its life is the `with` block. Start it from the main thread."""

    def __init__(self, directory: Path, tree: Path, model: Model, devices: int = 1) -> None:
        self._tree = tree
        self.port = free_port()
        self.url = f"mqtts://127.0.0.1:{self.port}"
        wish = Wish("farm", model.name, model.file, _shares(devices), NULL_TRAINING, 0, SEED, model.train, chaos=False)
        self.site = prepare(wish, directory, self.url)
        home = self.site.broker_config.parent
        _say([*command_of("broker"), "enroll", "init", "--config", str(home)])
        self._trust(self.site.broker_config)
        self._server = mqtt_server.start(
            directory / "mqtt", port=self.port, config_extra=_TLS.format(home=home), kind="mosquitto"
        )
        serve = [*command_of("broker"), "serve", "--config", str(self.site.broker_config)]
        self.coordinator = Program("coordinator", serve, self.site.log("coordinator"))
        self.agents: dict[str, Program] = {}
        self._failures = 0  # of trainings, when an agent was started last
        self.watch = follow(self.coordinator.log, {name: self.site.log(name) for name in self.site.devices})

    def __enter__(self) -> Self:
        try:
            self.coordinator.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process of it."""
        processes.stop_all(self.agents.values())
        processes.stop_all([self.coordinator])
        self._server.stop()

    def start(
        self,
        device: str,
        *,
        port: int | None = None,
        state: Path | None = None,
        more: str = "",
        before: Sequence[str] = (),
    ) -> Program:
        """Start a device's agent and wait for its birth.

        `port`: where it finds the MQTT server; `state`: its directory, elsewhere; `more`: sections of its config;
        `before`: what stands before its command.
        """
        config = self.site.agent_config(device)
        if device not in self.agents:
            self._trust(config)
            text = config.read_text("utf-8").replace(f":{self.port}", f":{port or self.port}")
            if state is not None:
                (config.parent / "state").rename(config.parent / "moved")
                _say(["cp", "-r", str(config.parent / "moved"), str(state)])
                text = text.replace('state = "state"', f'state = "{state}"')
            config.write_text(f"{text}\n{more}", "utf-8")
        command = [*before, *self._environment(), str(PYTHON), "-c", AGENT, "run", "--config", str(config)]
        agent = self.agents[device] = Program(device, command, self.site.log(device))
        births, self._failures = self.watch.births[device], len(self.watch.failures)
        agent.start()
        self.wait(lambda: self.watch.births[device] > births, f"the coordinator never heard of {device}")
        return agent

    def ask(self, device: str, *words: str) -> str:
        """What `edge-agent WORDS` prints for this device."""
        command = [*self._environment(), str(PYTHON), "-c", AGENT, *words]
        return _say([*command, "--config", str(self.site.agent_config(device))])

    def rounds(self, count: int, timeout_s: float = PATIENCE_S) -> list[VersionRow]:
        """Ask for rounds and wait until all have closed; the versions that they made.

        Raises FleetError, at once where a training has failed since the last start of an agent.
        """

        def failed() -> bool:
            return len(self.watch.failures) > self._failures

        with Store(self.site.store) as store:
            known = len(store.versions())
            ask_for_rounds(load(self.site.broker_config), store, count=count, updates_enough=len(self.agents))
            self.wait(
                lambda: failed() or len(store.versions()) >= known + count, f"{count} rounds did not close", timeout_s
            )
            if failed():
                raise FleetError(f"a training failed: {self.watch.failures[-1]}")
            return store.versions()[known:]

    def wait(self, condition: Callable[[], bool], complaint: str, timeout_s: float = PATIENCE_S) -> None:
        """Read the logs until this holds. Raises FleetError."""
        until = time.monotonic() + timeout_s
        while self.watch.look() or not condition():
            ended = [program for program in (self.coordinator, *self.agents.values()) if not program.is_running]
            if time.monotonic() > until or ended:
                who = (ended or [*self.agents.values(), self.coordinator])[0]
                raise FleetError(f"{complaint}; the end of {who.name}'s log: {who.tail(3)}")
            time.sleep(POLL_S)

    def _environment(self) -> list[str]:
        """What keeps an agent, and its children, to what pip installed: not even the folder we stand in is theirs."""
        return ["env", f"PYTHONPATH={self._tree}", "PYTHONSAFEPATH=1", "PYTHONNOUSERSITE=1"]

    def _trust(self, config: Path) -> None:
        """Let the program of this config believe the fleet's authority."""
        authority = self.site.broker_config.with_name("ca.crt")
        text = config.read_text("utf-8")
        assert f'url = "{self.url}"\n' in text, "site.py writes the URL of the MQTT server"
        config.write_text(text.replace(f'url = "{self.url}"\n', f'url = "{self.url}"\nca_file = "{authority}"\n'))


def memory_of(pid: int) -> tuple[float, float]:
    """Resident and proportional MB of a process and all below it (proc(5), smaps_rollup)."""
    pids = [pid, *descendants(pid)]
    return sum(rss_bytes(one) for one in pids) / 1e6, sum(pss_bytes(one) for one in pids) / 1e6


def pss_bytes(pid: int) -> int:
    """Proportional memory of one process (Pss of smaps_rollup, proc(5)); 0 when it is gone."""
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _shares(devices: int) -> Shares:
    """The same few digits for each device: nothing is to be learnt from them."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = digits_split()["fleet"][: EXAMPLES + 4]
    windows, labels = (bunch.images[rows] / 16.0).astype(np.float32)[..., np.newaxis], bunch.target[rows]
    held = (windows[:EXAMPLES], labels[:EXAMPLES].astype(np.int32))
    names = [f"device-{number:02}" for number in range(1, devices + 1)]
    return Shares(dict.fromkeys(names, held), (windows[EXAMPLES:], labels[EXAMPLES:].astype(np.int32)))


def _say(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MqttServerError(f"{' '.join(command[:4])}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
