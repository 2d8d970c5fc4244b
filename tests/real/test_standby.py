"""Two coordinators on one store, as real processes: the second stands by, takes over, and never do both write."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from broker.config import load
from broker.database import Address
from broker.store import Store
from tests.broker.test_backup import rows_of
from tests.real.test_broker_process import (
    MODEL,
    PATIENCE_S,
    Device,
    Serving,
    birth,
    broker,
    enrol,
    payload_for,
)
from wire import keys
from wire.messages import Offer, Plan, State, Update

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker.database import Place
    from broker.mqtt_server import Server

pytestmark = pytest.mark.real


@pytest.fixture
def home(tmp_path: Path, mqtt_server: Server, place: Place) -> Path:
    store = ["--store", place.url] if isinstance(place, Address) else []
    fleet = f"farm-{os.urandom(4).hex()}"
    given = ["--model", str(MODEL), "--reset-seed", "7", "--fleet", fleet, "--mqtt", mqtt_server.url]
    broker("init", str(tmp_path / "farm"), *given, *store)
    return tmp_path / "farm"


@pytest.fixture
def serving(home: Path) -> Iterator[list[Serving]]:
    """Two coordinators: the one that serves, and the one that stands by; a test may append."""
    running = [Serving(home)]
    running[0].line("ready")
    running.append(Serving(home))
    assert running[1].line("standby")["holder"].endswith(f":{running[0].process.pid}")
    yield running
    for one in running:
        one.process.send_signal(signal.SIGCONT)
        one.kill()


@pytest.fixture
def devices(home: Path, mqtt_server: Server) -> Iterator[list[Device]]:
    key = keys.public_text(keys.load_seed(home / "coordinator.key"))
    both = [Device(mqtt_server.url, load(home / "broker.toml").fleet.id, name, key) for name in ("cabin", "dune")]
    for device in both:
        enrol(home, device)
        device.hear(State, epoch=1)
    yield both
    for device in both:
        device.stop()


def open_round(home: Path, devices: list[Device]) -> Plan:
    for device in devices:
        device.say(birth())
    broker("round", "open", "--config", str(home), "--min-devices", "2")
    for device in devices:
        device.hear(Offer, round_id=1)
    return devices[0].hear(Plan)


def counted(home: Path) -> list[tuple[str, int | None]]:
    with Store(load(home / "broker.toml").store_place(), read_only=True) as store:
        return [(update.device_id, update.counted_in) for update in store.updates()]


def test_the_standby_resumes_the_round_of_a_holder_that_is_killed(
    home: Path, serving: list[Serving], devices: list[Device]
) -> None:
    plan = open_round(home, devices)
    first, second = (Update(1, 1, 40, 3, 10, payload_for(plan, seed)) for seed in (3, 4))
    sealed = devices[0].seal(first)
    assert devices[0].ask(first, sealed).verdict == "accepted"
    serving[0].kill()
    began = time.monotonic()
    serving[1].line("took-over")
    assert time.monotonic() - began < 10.0
    epoch = int(serving[1].line("ready")["epoch"])
    for device in devices:
        device.hear(State, epoch=epoch)
        device.say(birth())
    assert devices[0].ask(first, sealed).verdict == "duplicate"
    assert devices[1].ask(second).verdict == "accepted"
    assert serving[1].line("round-closed")["members"] == "2"
    assert counted(home) == [("cabin", 2), ("dune", 2)]


def test_the_standby_is_there_at_once_when_the_holder_is_stopped_in_order(serving: list[Serving]) -> None:
    serving[0].process.send_signal(signal.SIGTERM)
    assert serving[0].process.wait(PATIENCE_S) == 0
    began = time.monotonic()
    serving[1].line("took-over")
    assert time.monotonic() - began < 3.0
    serving[1].line("ready")


@pytest.mark.parametrize("places", ["postgres"], indirect=True)
def test_a_holder_that_slept_while_another_took_over_ends_and_has_written_nothing(
    home: Path, serving: list[Serving], devices: list[Device]
) -> None:
    plan = open_round(home, devices)
    first, second = (Update(1, 1, 40, 3, 10, payload_for(plan, seed)) for seed in (3, 4))
    serving[0].process.send_signal(signal.SIGSTOP)
    sealed = devices[0].say(first)  # the sleeper finds it in its socket
    assert serving[1].line("took-over")["holder"].endswith(f":{serving[0].process.pid}")
    epoch = int(serving[1].line("ready")["epoch"])
    for device in devices:
        device.hear(State, epoch=epoch)
        device.say(birth())
    assert devices[0].ask(first, sealed).verdict == "accepted"
    time.sleep(1.0)
    place = load(home / "broker.toml").store_place()
    before = rows_of(place)
    serving[0].process.send_signal(signal.SIGCONT)
    assert serving[0].process.wait(PATIENCE_S) == 1
    said = serving[0].rest()
    (end,) = [line for line in said if not line.startswith("event=")]
    assert "has taken over the store postgresql://" in end
    assert not any(line.startswith("event=accepted") for line in said)
    assert rows_of(place) == before
    assert devices[1].ask(second).verdict == "accepted"
    assert serving[1].line("round-closed")["members"] == "2"
    assert counted(home) == [("cabin", 2), ("dune", 2)]
