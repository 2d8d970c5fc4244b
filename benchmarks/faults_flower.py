"""Flower's side of the fault benchmark: SuperLink and SuperNodes as they are installed, struck by the same scripts.

The app (benchmarks/peers/flower_app) trains by pausing, and writes into a ledger what was finished on a device and
what FedAvg averaged. A finished training counts as reaching the model when the strategy has averaged its result. In
Flower's favour: SuperLink keeps its state on disk (`--database`), the app keeps its model after every round, and where
a run ends without its rounds it is submitted again for those that are missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.environments import PEERS, environment
from benchmarks.faults_ours import Result
from benchmarks.faults_scripts import COORDINATOR, MQTT_SERVER, ROUNDS
from benchmarks.gate import Gate
from firmware_sim.lines import Follower
from firmware_sim.processes import Program, stop_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from collections.abc import Set as AbstractSet

    from benchmarks.faults_scripts import Script

PACKAGES: Final = ("flwr==1.41.0",)
NAME: Final = "Flower 1.41"
APP: Final = PEERS / "flower_app"
TRAIN_S: Final = {"node-1": 4.0, "node-2": 7.0, "node-3": 10.0}  # apart, so that some results are there before others
SUBMIT_TIMEOUT_S: Final = 60.0
READY_TIMEOUT_S: Final = 60.0
RUN_TIMEOUT_S: Final = 420.0
LOOK_S: Final = 0.03
ASK_S: Final = 5.0  # between two questions for the state of a run that may be lost
SENT: Final = "Sent successfully"  # what a SuperNode logs when a result has reached SuperLink


class FlowerError(RuntimeError):
    """Flower did not get on by itself, before any fault; the sentence says where."""


class Job:
    """One job of a fleet of its own: what a script sees of it, and strikes."""

    def __init__(self, script: Script, directory: Path) -> None:
        self.devices: frozenset[str] = frozenset(TRAIN_S)
        self.open_round = 0
        self.finished_s: dict[str, float] = {}  # training → when
        self.counted_s: dict[str, float] = {}
        self.done_rounds = 0
        self.submitted = 0
        self.at_stake: frozenset[str] = frozenset()
        self._struck_s = float("inf")
        self._last: dict[str, tuple[str, int]] = {}  # device → what it did last, and in which round
        self._sent_before: dict[str, int] = {}  # device → lines SENT in its log when it last finished
        self._directory = directory
        self._bin = Path(environment("faults-flower", PACKAGES)).parent
        self._port = _free_port()
        self._gate = Gate(self._port)
        self._ledger = Follower(directory / "ledger")
        self._link = self._program("superlink", [
            "flower-superlink", "--insecure", "--port", str(self._port), "--disable-runtime-dependency-installation",
            "--database", str(directory / "state.db"),
        ])  # fmt: skip
        self._nodes = {name: self._node(name, train_s) for name, train_s in TRAIN_S.items()}
        self._steps = script(self)

    # One whole life

    def run(self) -> float:
        """Start everything, submit the job, let the script strike; return the seconds from submission to the end."""
        self._start_all()
        began_s = time.time()
        self._submit()
        until, ask_at, over = time.monotonic() + RUN_TIMEOUT_S, time.monotonic() + ASK_S, False
        while not (over and self.done_rounds >= ROUNDS) and time.monotonic() < until:
            self._look()
            over = over or next(self._steps, self) is self
            if over and time.monotonic() > ask_at:
                ask_at = time.monotonic() + ASK_S
                is_lost = self._is_lost()
                self._look()  # it may have ended well while we asked
                if is_lost and self.done_rounds < ROUNDS:
                    self._submit()
            time.sleep(LOOK_S)
        self._look()
        return max(self.counted_s.values(), default=began_s) - began_s

    def stop(self) -> None:
        """End every process of this job, whoever started it."""
        stop_all([*self._nodes.values(), self._link])
        self._gate.close()
        kill_all(_pids_with(f"HEDGEROW_FAULTS={self._directory}"))

    # What a script sees

    def training(self) -> AbstractSet[str]:
        """Who trains now, by the ledger."""
        return {device for device, last in self._last.items() if last == ("training", self.open_round)}

    def finished(self) -> AbstractSet[str]:
        """Whose training is finished, by the ledger."""
        return {device for device, last in self._last.items() if last == ("finished", self.open_round)}

    def stored(self) -> AbstractSet[str]:
        """Those whose SuperNode says that it has sent what it finished."""
        return {device for device in self.finished() if self._sent(device) > self._sent_before[device]}

    # What a script does

    def shut(self) -> None:
        """Cut the link of every device."""
        self._gate.shut()

    def open(self) -> None:
        """Mend it."""
        self._gate.open()

    def kill(self, name: str) -> None:
        """A program and all that it has started, as a power cut does; SuperLink is both of Flower's servers."""
        program = self._of(name)
        below = list(descendants(program.pid)) if program.is_running else []
        program.kill()
        kill_all(below)
        self._last.pop(name, None)

    def start(self, name: str) -> None:
        """Start it again, unless that is done."""
        program = self._of(name)
        if not program.is_running:
            program.start()

    def strike(self) -> None:
        """From now on, what is in no model is at stake."""
        self._struck_s = time.time()

    def heal(self) -> None:
        """It was what is finished by now."""
        late = (name for name in self.finished_s if self.counted_s.get(name, float("inf")) > self._struck_s)
        self.at_stake = frozenset(late)

    # Its programs

    def _of(self, name: str) -> Program:
        return self._link if name in (COORDINATOR, MQTT_SERVER) else self._nodes[name]

    def _program(self, name: str, command: list[str]) -> Program:
        return Program(name, [*self._environment(), str(self._bin / command[0]), *command[1:]], self._log(name))

    def _node(self, name: str, train_s: float) -> Program:
        return self._program(name, [
            "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self._gate.port}", "--port",
            str(_free_port()), "--node-config", f'device="{name}" train-s={train_s}',
        ])  # fmt: skip

    def _environment(self) -> list[str]:
        path = f"{self._bin}:{os.environ.get('PATH', '')}"
        home = self._directory / "home"
        return [
            "env", f"PATH={path}", f"FLWR_HOME={home}", "FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1",
            f"HEDGEROW_FAULTS={self._directory}",
        ]  # fmt: skip

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def _start_all(self) -> None:
        home = self._directory / "home"
        home.mkdir()
        address = f'address = "127.0.0.1:{self._port}"\ninsecure = true\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n[superlink.here]\n{address}')
        shutil.copytree(APP, self._directory / "app", ignore=shutil.ignore_patterns("__pycache__"))
        self._link.start()
        _wait_for(lambda: _listens(self._port), "SuperLink does not listen")
        for node in self._nodes.values():
            node.start()
        _wait_for(
            lambda: all("SuperNode ID" in node.tail(200) for node in self._nodes.values()), "a SuperNode is missing"
        )

    def _submit(self) -> None:
        """Ask for the rounds that are missing."""
        self.submitted += 1
        wanted = f'directory="{self._directory}" rounds={ROUNDS - self.done_rounds} first-round={self.done_rounds + 1}'
        done = self._flwr("run", str(self._directory / "app"), "here", "-c", f"{wanted} devices={len(TRAIN_S)}")
        if done.returncode:
            raise FlowerError(f"flwr run: {(done.stderr or done.stdout).strip()[-300:]}")

    def _is_lost(self) -> bool:
        """Whether SuperLink says that no run goes on."""
        done = self._flwr("list", "here", "--limit", "1", "--format", "json")
        try:
            runs = json.loads(done.stdout)["runs"]
        except (ValueError, KeyError):
            return False  # no answer yet
        return bool(runs) and str(runs[0]["status"]).startswith("finished")

    def _flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self._environment(), str(self._bin / "flwr"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=SUBMIT_TIMEOUT_S, check=False)

    # What it says

    def _look(self) -> None:
        for line in self._ledger.new():
            at_s = float(line["at"])
            match line["event"]:
                case "training" | "finished" as event:
                    self.open_round = max(self.open_round, int(line["round"]))
                    self._last[line["device"]] = (event, int(line["round"]))
                    if event == "finished":
                        self.finished_s[line["training"]] = at_s
                        self._sent_before[line["device"]] = self._sent(line["device"])
                case "counted":
                    self.counted_s[line["training"]] = at_s
                case "round":
                    self.done_rounds = max(self.done_rounds, int(line["round"]))

    def _sent(self, device: str) -> int:
        return self._log(device).read_text("utf-8", "replace").count(SENT)


def run(script: Script) -> Result:
    """Run the script on a fleet of its own. Raises NotToBeHadError, FlowerError."""
    directory = Path(tempfile.mkdtemp(prefix="hedgerow-faults-"))
    job = Job(script, directory)
    try:
        seconds = job.run()
    finally:
        job.stop()
        shutil.rmtree(directory, ignore_errors=True)
    again = f"submitted {job.submitted} times" if job.submitted > 1 else ""
    short = f"ended after {job.done_rounds} of {ROUNDS} rounds" if job.done_rounds < ROUNDS else ""
    return Result(
        finished=len(job.finished_s),
        counted=len(job.finished_s.keys() & job.counted_s.keys()),
        at_stake=len(job.at_stake),
        at_stake_counted=len(job.at_stake & job.counted_s.keys()),
        seconds=seconds,
        note=", ".join(filter(None, (again, short))),
    )


def _wait_for(condition: Callable[[], bool], complaint: str) -> None:
    until = time.monotonic() + READY_TIMEOUT_S
    while not condition():
        if time.monotonic() > until:
            raise FlowerError(complaint)
        time.sleep(LOOK_S)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> Iterator[int]:
    """Every process below this one, as /proc has them now."""
    try:
        children = [
            int(word) for task in Path(f"/proc/{pid}/task").glob("*/children") for word in task.read_text().split()
        ]
    except OSError:  # it has ended meanwhile
        return
    for child in children:
        yield from descendants(child)
        yield child


def _pids_with(variable: str) -> Iterator[int]:
    """Every process whose environment holds this: it is ours, for nobody else sets it."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name)
        except OSError:
            continue
