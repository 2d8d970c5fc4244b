"""Flower's SuperNode beside our agent: what is installed, what it takes idle, what a round costs that trains nothing.

    idle      SuperLink and one SuperNode with TLS, through the gate that counts; no run, no telemetry, no update check
    rounds    two SuperNodes, without TLS, an app whose training is over at once (benchmarks/peers/flower_app)

A round is the time from one aggregation to the next. Installed is the environment's own folder of libraries, without
pip and setuptools, bytecode in it. The cgroup that is enough for it is not looked for: a try takes half a minute.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from benchmarks.environments import environment
from benchmarks.faults_flower import APP, PACKAGES
from benchmarks.footprint_fleet import free_port, memory_of
from benchmarks.gate import Gate
from firmware_sim import data
from firmware_sim.fleet import FleetError, command_of
from firmware_sim.lines import Follower
from firmware_sim.processes import Program, stop_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

NAME: Final = "Flower 1.41"
FIGURES: Final = (
    "installed_mb_py311",
    "distributions_py311",
    "idle_rss_mb",
    "idle_pss_mb",
    "idle_tcp_bytes_per_min_tls",
    "round_overhead_s_1k",
    "round_overhead_s_1m",
)
NODES: Final = ("node-1", "node-2")
PARAMS: Final = {"1k": 1_000, "1m": 1_000_000}
ROUNDS: Final = 6  # the first starts the processes, and is left out
READY_S: Final = 90.0
SETTLE_S: Final = 20.0
IDLE_S: Final = 120.0
ROUNDS_S: Final = 240.0
POLL_S: Final = 0.05
NOT_ITS_OWN: Final = ("pip", "setuptools", "_distutils_hack", "pkg_resources")


def measure(directory: Path, add: Callable[..., None]) -> None:
    """Add a row for each figure. Raises NotToBeHadError, FleetError."""
    python = Path(environment("faults-flower", PACKAGES))
    add(_installed(python))
    with _Nodes(directory / "idle", python.parent) as nodes:
        rss, pss, bytes_per_min = nodes.idle()
    add({"idle_rss_mb": rss, "idle_pss_mb": pss}, "with its SuperExec")
    add({"idle_tcp_bytes_per_min_tls": bytes_per_min})
    for name, params in PARAMS.items():
        with _Nodes(directory / name, python.parent, NODES) as nodes:
            add({f"round_overhead_s_{name}": nodes.round_s(params)})


def _installed(python: Path) -> Mapping[str, float]:
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    where = subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    tops = [path for path in Path(where).iterdir() if not path.name.startswith(NOT_ITS_OWN)]
    files = [file for top in tops for file in ([top] if top.is_file() else top.rglob("*")) if file.is_file()]
    return {
        "installed_mb_py311": sum(file.stat().st_size for file in files) / 1e6,
        "distributions_py311": sum(top.name.endswith(".dist-info") for top in tops),
    }


class _Nodes:
    """SuperLink and its SuperNodes. Without names: one, with TLS, through a gate."""

    def __init__(self, directory: Path, bin_: Path, names: Sequence[str] = ()) -> None:
        directory.mkdir()
        self._directory, self._bin, self._port = directory, bin_, free_port()
        self._gate = Gate(self._port)
        tls = _certificates(directory) if not names else None
        (directory / "home").mkdir()
        served = ["--insecure"] if tls is None else _flags(tls, "ssl-ca-certfile", "ssl-certfile", "ssl-keyfile")
        joined = ["--insecure"] if tls is None else _flags(tls[:1], "root-certificates")
        self._link = self._program(
            "superlink", "flower-superlink", *served, "--port", str(self._port),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        self._nodes = [
            self._program(
                name, "flower-supernode", *joined, "--superlink", f"127.0.0.1:{self._gate.port}", "--port",
                str(free_port()), "--node-config", f'device="{name}" train-s=0.0',
            )
            for name in names or NODES[:1]
        ]  # fmt: skip

    def __enter__(self) -> Self:
        self._link.start()
        self._wait(lambda: _listens(self._port), self._link)
        for node in self._nodes:
            node.start()
            self._wait(lambda node=node: "SuperNode ID" in node.tail(200), node)
        return self

    def __exit__(self, *_: object) -> None:
        stop_all([*self._nodes, self._link])
        self._gate.close()

    def idle(self) -> tuple[float, float, float]:
        """Resident and proportional MB of a SuperNode and what it has started; bytes a minute, both ways."""
        time.sleep(SETTLE_S)
        before, began_s = self._gate.heard_bytes, time.monotonic()
        time.sleep(IDLE_S)
        bytes_per_min = (self._gate.heard_bytes - before) / (time.monotonic() - began_s) * 60
        return *memory_of(self._nodes[0].pid), bytes_per_min

    def round_s(self, params: int) -> float:
        """The median seconds of a round but the first."""
        (self._directory / "home/config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n'
        )
        shutil.copytree(APP, self._directory / "app", ignore=shutil.ignore_patterns("__pycache__"))
        wanted = f'directory="{self._directory}" rounds={ROUNDS} devices={len(self._nodes)} params={params}'
        command = [*self._environment(), str(self._bin / "flwr"), "run", str(self._directory / "app"), "here"]
        done = subprocess.run([*command, "-c", wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            raise FleetError(f"flwr run: {(done.stderr or done.stdout).strip()[-300:]}")
        ledger, closed_s = Follower(self._directory / "ledger"), list[float]()
        until = time.monotonic() + ROUNDS_S
        while len(closed_s) < ROUNDS and time.monotonic() < until:
            closed_s += [float(line["at"]) for line in ledger.new() if line["event"] == "round"]
            time.sleep(POLL_S)
        if len(closed_s) < ROUNDS:
            raise FleetError(f"{len(closed_s)} of {ROUNDS} rounds closed in {ROUNDS_S:.0f} s")
        return statistics.median(after - before for before, after in pairwise(closed_s))

    def _wait(self, condition: Callable[[], bool], program: Program) -> None:
        until = time.monotonic() + READY_S
        while not condition():
            if time.monotonic() > until:
                raise FleetError(f"{program.name} did not start: {program.tail(3)}")
            time.sleep(POLL_S)

    def _program(self, name: str, script: str, *arguments: str) -> Program:
        command = [*self._environment(), str(self._bin / script), *arguments]
        return Program(name, command, self._directory / f"{name}.log")

    def _environment(self) -> list[str]:
        return [
            "env", f"PATH={self._bin}:/usr/bin:/bin", f"FLWR_HOME={self._directory / 'home'}", "PYTHONPATH=",
            "FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1",
        ]  # fmt: skip


def _certificates(directory: Path) -> list[Path]:
    """Those of an authority of its own, made as a fleet's are: the authority's, the server's, the server's key."""
    home, model = directory / "authority", Path(data.__file__).parent / "models/digits.tflite"
    broker = command_of("broker")
    init = [*broker, "init", str(home), "--model", str(model), "--fleet", "farm", "--mqtt", "mqtts://127.0.0.1:8883"]
    for command in (init, [*broker, "enroll", "init", "--config", str(home)]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [home / "ca.crt", home / "server.crt", home / "server.tls.key"]


def _flags(files: Iterable[Path], *names: str) -> list[str]:
    return [word for name, file in zip(names, files, strict=True) for word in (f"--{name}", str(file))]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
