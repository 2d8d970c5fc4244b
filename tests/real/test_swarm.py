"""A swarm over real connections: every update has its receipt, whatever happens, and nothing stays behind."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wire import topics
from wire.link import Arrived, Link, LinkEvent, LinkUp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker.mqtt_server import Server

pytestmark = [pytest.mark.real, pytest.mark.slow]


class Swarm:
    """The command, running; its progress is read as it comes."""

    def __init__(self, tmp_path: Path, *arguments: str) -> None:
        script = str(Path(sys.executable).with_name("firmware-sim"))
        self.process = subprocess.Popen(
            [script, "swarm", "--json", *arguments],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.progress: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, words: str, within_s: float = 60.0) -> None:
        until = time.monotonic() + within_s
        while not any(words in line for line in self.progress):
            assert time.monotonic() < until, self.progress
            assert self.process.poll() is None, self.progress
            time.sleep(0.02)

    def found(self, within_s: float = 120.0) -> dict[str, Any]:
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        assert self.process.wait(within_s) == 0, self.progress
        return json.loads(out)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.progress.extend(line.rstrip() for line in self.process.stderr)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Swarm]]:
    swarms = []

    def make(*arguments: str) -> Swarm:
        swarms.append(Swarm(tmp_path, *arguments))
        return swarms[-1]

    yield make
    for swarm in swarms:
        swarm.process.kill()
        swarm.process.wait()


def programs_of(tmp_path: Path) -> list[str]:
    """Every living process that was started with this test's directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().decode("utf-8", "replace")
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if f"TMPDIR={tmp_path}" in environment and command:
            found.append(command)
    return found


def seen_within(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def test_on_a_server_of_others_everything_is_receipted_and_nothing_is_left_there(
    mosquitto_server: Server, start: Callable[..., Swarm], tmp_path: Path
) -> None:
    events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    filters = [f"{topics.ROOT}/swarm-5/#"]
    observer = Link(
        mosquitto_server.url, "observer", filters=filters, will=None, post=events.put, jitter=random.Random(1)
    )
    observer.start()
    assert isinstance(events.get(timeout=5), LinkUp)
    arguments = ("--devices", "60", "--rounds", "2", "--train-s", "0.5", "--seed", "5", "--mqtt", mosquitto_server.url)
    found = start(*arguments, "--dir", str(tmp_path / "swarm")).found()
    assert (found["connections_held"], found["reconnects"], found["rounds"]) == (60, 0, 2)
    fates = ("finished", "receipted", "counted", "lost", "refused")
    assert [found[f"updates_{fate}"] for fate in fates] == [120, 120, 120, 0, 0]
    assert found["kb_per_connection"] > 1
    assert found["kb_per_connection_server"] > 1  # the server is on this machine, so it can be looked at
    assert (tmp_path / "swarm" / "broker" / "broker.db").is_file()
    assert programs_of(tmp_path) == []
    heard = [event for _ in range(events.qsize()) if isinstance(event := events.get(), Arrived)]
    updates = {event.payload for event in heard if event.topic.endswith("/up/update")}
    assert len(updates) == 120  # what it says of itself, an observer has seen
    observer.stop()
    late = Link(mosquitto_server.url, "late", filters=filters, will=None, post=events.put, jitter=random.Random(1))
    late.start()
    assert isinstance(events.get(timeout=5), LinkUp)
    with pytest.raises(queue.Empty):  # nothing is retained
        events.get(timeout=0.5)
    late.stop()


def test_a_server_that_dies_meanwhile_costs_time_and_no_update(
    mosquitto_server: Server, start: Callable[..., Swarm], tmp_path: Path
) -> None:
    swarm = start("--devices", "60", "--rounds", "2", "--train-s", "3", "--mqtt", mosquitto_server.url)
    swarm.wait_for("60 connections, and as many births heard")
    time.sleep(3.5)  # some have finished, some train
    mosquitto_server.kill()
    mosquitto_server.restart()
    found = swarm.found(180)
    assert found["reconnects"] >= 60
    assert found["connections_held"] == 0
    assert found["updates_receipted"] == found["updates_finished"] == found["updates_counted"] >= 120
    assert found["updates_lost"] == 0
    assert list(tmp_path.glob("hedgerow-swarm-*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whatever_ends_it_no_process_and_no_file_stays(
    number: signal.Signals, start: Callable[..., Swarm], tmp_path: Path
) -> None:
    swarm = start("--devices", "20", "--rounds", "500", "--train-s", "1")
    swarm.wait_for("20 connections")
    assert len(programs_of(tmp_path)) >= 3  # itself, the coordinator, an MQTT server
    swarm.process.send_signal(number)
    assert swarm.process.wait(30) == 130
    assert seen_within(lambda: programs_of(tmp_path) == [], 10), programs_of(tmp_path)
    assert list(tmp_path.glob("hedgerow-swarm-*")) == []
    assert seen_within(lambda: swarm.progress[-1] == "stopped; nothing of it is running any more", 5), swarm.progress


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mqtt", "http://barn"], "write mqtt://host:1883"),
        (["--mqtt", "mqtt://127.0.0.1:1"], "cannot connect to 127.0.0.1:1: Connection refused"),
        (["--devices", "2000000"], "open files"),
        (["--mqtt", "mqtt://127.0.0.1:1", "--ca-file", __file__], "without TLS"),
        (["--dir", str(Path(__file__).parent)], "is not empty"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], sentence: str, start: Callable[..., Swarm], tmp_path: Path
) -> None:
    swarm = start("--devices", "3", *arguments)
    assert swarm.process.wait(60) == 1
    assert seen_within(lambda: sentence in "".join(swarm.progress[-1:]), 5), swarm.progress
    assert swarm.progress[-1].startswith("Error: ")
    assert programs_of(tmp_path) == []
