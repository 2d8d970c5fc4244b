"""A real agent over a real MQTT server accounts for every byte, and stops when they are spent."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from edge_agent import config
from edge_agent.sources import files
from tests.real.scripted_coordinator import MODEL, PARAMS, QUICK, AgentProcess, Coordinator, write_digits
from wire import keys, meter, topics

if TYPE_CHECKING:
    from pathlib import Path

    from broker.mqtt_server import Server

pytestmark = pytest.mark.real
_fleets = itertools.count(1)


def make(server: Server, directory: Path, limits: str = "") -> tuple[Path, Coordinator]:
    fleet, seed = f"bytes-{next(_fleets)}-{time.monotonic_ns()}", keys.generate()
    made = config.make(directory, "dev-1", fleet, server.url, keys.public_text(seed))
    made.path.write_text(made.path.read_text().replace("[budget]", f"[budget]\n{limits}"))
    files.add_npz(write_digits(directory / "digits.npz", 60), config.load(made.path).samples_path, 2000)
    return made.path, Coordinator(server.url, fleet, seed, "dev-1", made.public_key)


def status(path: Path, *options: str) -> str:
    command = [sys.executable, "-c", "from edge_agent.cli import main; main()", "status", "--config", str(path)]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False).stdout


def rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["purpose"]: row for row in json.loads(status(path, "--json"))["account"]["rows"]}


def test_the_account_names_every_byte_of_a_round_and_goes_on_after_a_restart(mosquitto_server, tmp_path):
    path, coordinator = make(mosquitto_server, tmp_path)
    with coordinator:
        with AgentProcess(path) as agent:
            coordinator.announce(QUICK)
            coordinator.wait_for("birth")
            coordinator.offer(1, QUICK)
            agent.wait_for(r"event=outbox round=1 ")
            _, sealed = coordinator.wait_for("update")
            agent.terminate()  # before its receipt
            assert agent.wait() == 0
        found = rows(path)
        sent = meter.publish_bytes(topics.up(coordinator.fleet, "dev-1", "update"), sealed)
        times = coordinator.updates.count(sealed)
        assert (found["updates"]["up"], found["updates again"]["up"]) == (sent, (times - 1) * sent)
        assert found["model"]["down"] > len(MODEL) + len(PARAMS)
        assert found["model"]["down"] < 1.05 * (len(MODEL) + len(PARAMS)) + 4096
        assert 0 < found["model"]["up"] < 4096
        assert found["control"]["up"] > 100
        assert 15 < found["transport"]["up"] < 500  # CONNECT, SUBSCRIBE
        assert found["transport"]["down"] >= 9
        whole = found.pop("all")
        for name in ("up", "down", "today", "this_month"):
            assert whole[name] == sum(row[name] for row in found.values())
        assert whole["today"] == whole["up"] + whole["down"]
        with AgentProcess(path) as agent:
            agent.wait_for(r"event=outbox-found round=1 ")
            coordinator.wait_for("birth")
            coordinator.wait_for("update")
            coordinator.receipt(sealed, 1)
            agent.wait_for(r"event=receipt round=1 verdict=accepted")
            agent.terminate()
            assert agent.wait() == 0
    again = rows(path)
    assert again["updates"]["up"] == sent  # not a byte more: what was sent after the restart was sent before it
    assert again["updates again"]["up"] == (coordinator.updates.count(sealed) - 1) * sent >= sent
    assert again["model"]["down"] == found["model"]["down"]
    assert again["all"]["up"] > whole["up"]
    lines = status(path).splitlines()
    head = next(at for at, line in enumerate(lines) if line.startswith("bytes since it was enrolled"))
    assert [line.split("  ")[0] for line in lines[head + 1 : head + 8]] == list(again)


def test_an_agent_whose_day_is_spent_fetches_no_more_and_says_until_when(mosquitto_server, tmp_path):
    path, coordinator = make(mosquitto_server, tmp_path, "day_bytes_max = 20000\nupdate_bytes_max = 2000")
    with coordinator, AgentProcess(path) as agent:
        coordinator.announce(QUICK)
        coordinator.wait_for("birth")
        coordinator.offer(1, QUICK)
        why = "the day's 20.0 kB are spent; more from 00:00 UTC"
        agent.wait_for(rf'event=handled .* why="{why}"', 30)
        wanted = len(coordinator.wants)
        time.sleep(6)  # a want that is not answered is repeated after 4 s
        assert len(coordinator.wants) == wanted
        agent.terminate()
        assert agent.wait() == 0
    said = status(path)
    assert f"why not more: {why}" in said
    assert "limits: 2,000 bytes an update, 20,000 bytes a day" in said
    all_of_it = rows(path)["all"]
    assert 19_000 < all_of_it["today"] < 20_000 + 2 * 16_384 + 4_000  # chunks of 16 kB here
