"""Who sent what: from a device's telemetry to `broker fleet bytes`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from broker.effects import StoreSeen
from broker.store import Store
from tests.broker import fleet
from tests.broker.test_cli import KEY, good, home, lived  # noqa: F401 - fixtures
from wire.messages import Telemetry, Traffic

if TYPE_CHECKING:
    from pathlib import Path

ACCOUNT = Traffic(1_000, 200, 30, 40_000, 500, 60, 7_000, 800, 900)


def test_telemetry_brings_the_account_and_an_older_agent_none() -> None:
    machine = fleet.coordinator()
    for account in (ACCOUNT, None):
        telemetry = Telemetry(1, 1, "idle", "", 5, 6, traffic=account)
        effects = machine.handle(fleet_received("cabin", telemetry), 0)
        assert effects == [StoreSeen("cabin", True, work="idle", traffic=account)]


def fleet_received(device: str, telemetry: Telemetry):
    from broker.effects import Received

    return Received(*fleet.sealed(device, telemetry))


def test_the_store_keeps_the_last_account_of_each_device(tmp_path: Path) -> None:
    with Store(tmp_path / "broker.db") as store:
        store.add_device("cabin", KEY["cabin"])
        store.apply(StoreSeen("cabin", True, work="idle", traffic=Traffic(1)))
        store.apply(StoreSeen("cabin", True, work="idle", traffic=ACCOUNT))
        store.apply(StoreSeen("cabin", True, work="waiting"))  # an older agent's, or a birth: takes nothing away
        store.apply(StoreSeen("cabin", False))
        store.apply(StoreSeen("dune", True, work="idle", traffic=Traffic(2)))
        told = store.traffic()
        assert {device: traffic for device, (traffic, _when) in told.items()} == {"cabin": ACCOUNT, "dune": Traffic(2)}
        assert store.seen()[0].work == "waiting"
        store.remove_device("cabin")
        assert list(store.traffic()) == ["dune"]
    with Store(tmp_path / "broker.db", read_only=True) as store:
        assert store.traffic()["dune"][0] == Traffic(2)


def test_the_table_of_bytes_adds_up_and_knows_what_it_does_not_know(lived: Path) -> None:  # noqa: F811
    good("fleet", "add", "dune", KEY["dune"], "--config", lived)
    good("fleet", "add", "elm", KEY["elm"], "--config", lived)
    with Store(lived / "broker.db") as store:
        store.apply(StoreSeen("cabin", True, work="idle", traffic=ACCOUNT))
        store.apply(StoreSeen("elm", True, work="idle", traffic=Traffic(model_down=10)))
    found = json.loads(good("fleet", "bytes", "--json", "--config", lived))
    cabin, dune, elm = found["devices"]
    assert (cabin["bytes_up"], cabin["bytes_down"]) == (2_590, 47_900)
    assert (cabin["counted"], cabin["per_counted"]) == (1, 50_490)
    assert (dune["told_unix_s"], dune["bytes_up"], dune["per_counted"]) == (None, None, None)
    assert (elm["bytes_up"], elm["bytes_down"], elm["per_counted"]) == (0, 10, None)
    assert (found["total"]["model_down"], found["total"]["per_counted"]) == (40_010, 50_500)
    assert found["coordinator"] == {"bytes_up": 900, "bytes_down": 70_000}
    lines = good("fleet", "bytes", "--config", lived).splitlines()
    assert [line.split()[0] for line in lines] == ["device", "cabin", "dune", "elm", "all", "While"]
    shown = ["cabin", "1,000", "200", "40,030", "500", "7,060", "1,700", "2,590", "47,900", "1", "50,490"]
    assert lines[1].split()[: len(shown)] == shown
    assert lines[1].rstrip().endswith("s ago")
    assert lines[2].split() == ["dune", *"--------", "0", "-", "-"]
    assert lines[4].split()[-5:] == ["2,590", "47,910", "1", "50,500", "-"]
    assert lines[5] == "While rounds were open, the coordinator received 900 bytes and sent 70,000."


def test_the_report_says_what_the_bytes_were_for(lived: Path, tmp_path: Path) -> None:  # noqa: F811
    good("report", "--out", tmp_path / "before", "--config", lived)
    assert "no device has told yet" in (tmp_path / "before/index.html").read_text("utf-8")
    with Store(lived / "broker.db") as store:
        store.apply(StoreSeen("cabin", True, work="idle", traffic=ACCOUNT))
        store.apply(StoreSeen("dune", True, work="idle", traffic=ACCOUNT))
    good("report", "--out", tmp_path / "after", "--config", lived)
    told = "update 2.0 kB, retry 0.4 kB, model 80.1 kB, telemetry 1.0 kB, control 14.1 kB, transport 3.4 kB"
    assert told in (tmp_path / "after/index.html").read_text("utf-8")


def test_no_fleet_has_no_bytes(home: Path) -> None:  # noqa: F811
    assert "No device is enrolled" in good("fleet", "bytes", "--config", home)
