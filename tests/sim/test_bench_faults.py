"""The fault benchmark: scripts strike when they say, the gate holds what passes, figures are counted as they say."""

import dataclasses
import itertools
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks import faults, faults_flower, faults_scripts, sim_flower
from benchmarks.faults_ours import Result
from benchmarks.gate import Gate

DEVICES = frozenset({"cabin", "dune", "elm"})


class Scripted:
    """A side on which devices do as the test says; it writes down what is done to it."""

    def __init__(self) -> None:
        self.devices = DEVICES
        self.open_round = 1
        self.at: dict[str, set[str]] = {"training": set(), "finished": set(), "stored": set()}
        self.done: list[str] = []

    def training(self) -> set[str]:
        return self.at["training"]

    def finished(self) -> set[str]:
        return self.at["finished"]

    def stored(self) -> set[str]:
        return self.at["stored"]

    def shut(self) -> None:
        self.done.append("shut")

    def open(self) -> None:
        self.done.append("open")

    def kill(self, name: str) -> None:
        self.done.append(f"kill {name}")

    def start(self, name: str) -> None:
        self.done.append(f"start {name}")

    def strike(self) -> None:
        self.done.append("strike")

    def heal(self) -> None:
        self.done.append("heal")


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    for name in ("OUTAGE_S", "DOWN_S", "HELD_S"):
        monkeypatch.setattr(faults_scripts, name, 0.0)
    return Scripted()


def go_on(steps, side: Scripted, **now: set[str]) -> list[str]:
    """Say how the devices stand, take some steps, and return what was done meanwhile."""
    side.at |= now
    before = len(side.done)
    for _ in itertools.islice(steps, 5):
        pass
    return side.done[before:]


def test_power_goes_when_a_training_is_finished_and_the_link_is_held(side: Scripted) -> None:
    steps = faults_scripts.power_cut(side)
    assert go_on(steps, side) == []
    assert go_on(steps, side, training={"dune", "elm"}) == ["shut"]
    done = go_on(steps, side, training={"dune"}, finished={"elm"})
    assert done == ["strike", "kill elm", "open", "start elm", "heal"]
    side.open_round = 2
    assert go_on(steps, side, training=set(), finished=set()) == []
    assert go_on(steps, side, training={"cabin"}) == ["kill cabin", "start cabin"]
    assert list(steps) == []


def test_a_link_is_cut_while_all_train_and_mended_some_time_after_the_first_is_finished(side: Scripted) -> None:
    steps = faults_scripts.outage(side)
    assert go_on(steps, side, training=set(DEVICES)) == [], "that is the first round"
    side.open_round = 2
    assert go_on(steps, side, training={"dune"}) == []
    assert go_on(steps, side, training=set(DEVICES)) == ["shut", "strike"]
    assert go_on(steps, side, finished={"dune"}) == ["open", "heal"]


@pytest.mark.parametrize(("script", "name"), [("coordinator_kill", "coordinator"), ("mqtt_server_kill", "MQTT server")])
def test_a_server_is_killed_with_some_results_stored_and_some_not(side: Scripted, script: str, name: str) -> None:
    side.open_round = 2
    steps = faults_scripts.SCRIPTS[script](side)
    assert go_on(steps, side, stored=set()) == go_on(steps, side, stored=set(DEVICES)) == []
    assert go_on(steps, side, stored={"dune"}) == ["strike", f"kill {name}", f"start {name}", "heal"]


def test_all_at_once_is_all_at_once(side: Scripted) -> None:
    side.open_round = 2
    steps = faults_scripts.all_at_once(side)
    assert go_on(steps, side, training=set(DEVICES)) == ["shut", "strike"]
    done = go_on(steps, side, finished={"elm"})
    assert set(done[:3]) == {"kill elm", "kill coordinator", "kill MQTT server"}
    assert set(done[3:6]) == {"start elm", "start coordinator", "start MQTT server"}
    assert done[6:] == ["open", "heal"]


@pytest.fixture
def echo():
    """A server that sends back what comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=lambda peer=peer: answer(peer), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def answer(peer: socket.socket) -> None:
    with peer:
        while data := peer.recv(4096):
            peer.sendall(data)


def join(gate: Gate) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gate.port), timeout=5)


def says(peer: socket.socket, seconds: float) -> bytes | None:
    """What comes within this time; None: nothing, and the connection has not ended either."""
    peer.settimeout(seconds)
    try:
        return peer.recv(4096)
    except TimeoutError:
        return None


def test_a_shut_gate_holds_every_byte_and_tells_nobody(echo: int) -> None:
    gate = Gate(echo)
    try:
        with join(gate) as before:
            before.sendall(b"one")
            assert says(before, 5) == b"one"
            shut(gate)
            before.sendall(b"two")
            with join(gate) as meanwhile:
                meanwhile.sendall(b"new")
                assert (says(before, 0.3), says(meanwhile, 0.3)) == (None, None)
                gate.open()
                assert (says(before, 5), says(meanwhile, 5)) == (b"two", b"new")
    finally:
        gate.close()


def test_what_a_device_sent_behind_a_shut_gate_is_lost_with_its_power() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        gate = Gate(server.getsockname()[1])
        try:
            device = join(gate)
            device.sendall(b"before")
            peer, _ = server.accept()
            assert says(peer, 5) == b"before"
            shut(gate)
            device.sendall(b"after")
            device.close()
            assert says(peer, 0.3) is None, "nobody is told that it is gone"
            gate.open()
            assert says(peer, 5) == b"", "and then that alone"
            peer.close()
        finally:
            gate.close()


def test_a_gate_that_drops_a_connection_lets_the_next_one_through(echo: int) -> None:
    gate = Gate(echo)
    try:
        with join(gate) as before:
            before.sendall(b"one")
            assert says(before, 5) == b"one"
            gate.drop()
            assert says(before, 5) == b""
        with join(gate) as after:
            after.sendall(b"two")
            assert says(after, 5) == b"two"
    finally:
        gate.close()


def shut(gate: Gate) -> None:
    gate.shut()
    while gate.is_open:
        time.sleep(0.01)


def test_who_comes_to_a_gate_before_a_server_that_is_down_is_turned_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gate = Gate(port)
    try:
        with join(gate) as peer:
            assert says(peer, 5) == b""
    finally:
        gate.close()


def row(side: str, fault: str, counted: int, seconds: float) -> dict[str, object]:
    result = Result(finished=9, counted=counted, at_stake=3, at_stake_counted=3, seconds=seconds)
    return {"side": side, "fault": fault, **dataclasses.asdict(result), "rate": counted / 9}


def test_a_target_is_what_was_counted_of_ours_and_null_where_nothing_was_measured() -> None:
    rows = [
        row(faults.OURS, "undisturbed", 9, 20.0),
        row(faults.OURS, "power_cut", 9, 31.0),
        row("Flower", "power_cut", 3, 60.0),
        row(faults.OURS, "outage_75s", 6, 99.0),
        {"side": faults.OURS, "fault": "coordinator_kill", "reason": "the coordinator ended by itself"},
    ]
    found = faults.targets(rows)
    assert found.keys() == {
        "power_cut_survives", "outage_75s_survives", "coordinator_kill_survives", "mqtt_server_kill_survives",
        "all_at_once_survives",
    }  # fmt: skip
    assert (found["power_cut_survives"], found["outage_75s_survives"]) == (1.0, pytest.approx(2 / 3))
    assert found["coordinator_kill_survives"] is found["all_at_once_survives"] is None
    extra = [one.get("extra_s") for one in faults.with_extra(rows)]
    assert extra == [0.0, 11.0, None, 79.0, None], "Flower has no undisturbed run here"
    shown = "\n".join(faults.table({"machine": "m", "date": "d", "rows": faults.with_extra(rows), "targets": found}))
    assert "| outage_75s | hedgerow | 9 | 6 | 0.667 | 3 | 3 | 99 | +79 |" in shown
    assert "coordinator_kill_survives not measured" in shown


def test_a_killed_program_takes_along_what_it_has_started() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], start_new_session=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    until, below = time.monotonic() + 10, []
    while not below and time.monotonic() < until:
        below = list(faults_flower.descendants(process.pid))
        time.sleep(0.02)
    faults_flower.kill_all([*below, process.pid])
    process.wait()
    assert len(below) == 1
    while Path(f"/proc/{below[0]}/exe").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{below[0]}/exe").exists()


def test_the_first_round_of_a_simulation_counts_as_its_start() -> None:
    found = sim_flower.figures([30.0, 0.5, 1.0, 0.5], devices=100, wall_s=40.0, cpu_s=20.0)
    assert found["client_rounds_per_s"] == 200.0
    assert found["start_s"] == 38.0
    assert found["client_rounds_per_cpu_s"] == 20.0
