"""Versions that do not run here, and a link that is lost right after one came: real programs, real files."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from broker import mqtt_server as servers
from edge_agent import slots
from edge_agent.cli import main
from edge_agent.disk import Directory
from edge_agent.probation import TRIES
from engine.codec import patch as patches
from engine.models import tflite
from tests.real.scripted_coordinator import FRAME, MODEL, PARAMS, QUICK, AgentProcess, moved
from tests.real.test_watching_process import farm_of, live_through_round, watcher
from wire import chunks

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.test_watching_process import Farm

pytestmark = pytest.mark.real
REPLAY = 'kind = "replay"\npath = "stream.npy"\nwindow = [8, 8, 1]\nevery_ms = 50\nkeep_every = 1000\n'
CONNECTED_S = 4.0
HASTE = f"""
from edge_agent import probation, service
probation.CONNECTED_MS, service.READING_MS = {CONNECTED_S * 1000:.0f}, 250
"""
BETTER = moved(range(0, FRAME.suffix.num_params, 1000), 1)


def from_tomorrow() -> bytes:
    """The model as another exporter writes it: each operator in a version that no runtime of today has."""
    opened, made = tflite._open(MODEL), bytearray(MODEL)
    for code in opened.tables(1):
        at = code.field_at(2, 4)
        made[at : at + 4] = (99).to_bytes(4, "little")
    return bytes(made)


def stay(farm: Farm, agent: AgentProcess) -> None:
    """Live through a round of version 1, which then stays."""
    farm.coordinator.announce(QUICK)
    farm.coordinator.wait_for("birth")
    live_through_round(farm.coordinator, 1)
    agent.wait_for("event=probation version=1 tries_left=2")
    agent.wait_for("event=committed version=1")


def take(farm: Farm, agent: AgentProcess) -> None:
    """Live through a round of version 2, which comes into use."""
    farm.coordinator.publish(QUICK, 2, BETTER, patches.make(FRAME, PARAMS, BETTER))
    live_through_round(farm.coordinator, 2, 2)
    agent.wait_for("event=probation version=2 tries_left=2")


def kept_by(farm: Farm) -> slots.Slots:
    return slots.load(Directory(farm.settings.device.state))


def told(farm: Farm, *command: str) -> str:
    return CliRunner().invoke(main, [*command, "--config", str(farm.path)]).output


@pytest.fixture
def farm(mqtt_server, tmp_path) -> Farm:
    made = farm_of(mqtt_server.url, tmp_path, REPLAY)
    np.save(made.settings.source.path, np.tile(made.windows, (100, 1, 1, 1)))
    return made


def test_a_version_that_the_runtime_refuses_is_left_after_its_tries_and_the_one_before_never_stopped(farm):
    with farm.coordinator as coordinator, farm.owner as owner, AgentProcess(farm.path, HASTE) as agent:
        stay(farm, agent)
        coordinator.files["model.tflite"] = from_tomorrow()
        coordinator.described["model.tflite"] = chunks.split("model.tflite", from_tomorrow(), 16_384)
        before = owner.wait_for(lambda prediction: prediction["version"] == 1)["unix_ms"]
        take(farm, agent)
        agent.wait_for("event=probation version=2 tries_left=1 reason=.*the model runtime refuses the model file")
        agent.wait_for("event=probation version=2 tries_left=0")
        agent.wait_for("event=went-back version=2 in_use=1 reason=.*it failed 3 times here, at last: the model runtime")
        after = time.time() * 1000
        times = [before]
        while times[-1] < after:
            found = owner.next()
            assert found["version"] == 1
            times.append(found["unix_ms"])
        assert np.diff(times).max() < 5_000
        kept = kept_by(farm)
        assert (kept.now.version, kept.before, kept.refused_version) == (1, None, 2)
        assert "version 2 is not taken again: it failed 3 times here" in told(farm, "model", "show")
        assert "the model runtime refuses" in json.loads(told(farm, "model", "show", "--json"))["reason"]
        agent.wait_for("event=receipt round=2")
        live_through_round(coordinator, 3, 2)  # it trains on it all the same, by kernels of its own
        agent.wait_for("event=receipt round=3")
        assert kept_by(farm) == kept
        time.sleep(11.0)  # the status is written every ten seconds
        assert "version 2 is not taken again: it failed 3 times here" in told(farm, "status")
        assert json.loads(told(farm, "status", "--json"))["in_use"]["refused"] == 2


def test_a_version_whose_child_is_killed_time_and_again_is_left(farm):
    """As a kernel that runs out of memory would do it."""
    with farm.coordinator, farm.owner as owner:
        with AgentProcess(farm.path, HASTE) as agent:
            stay(farm, agent)
            agent.terminate()
            assert agent.wait() == 0
        with AgentProcess(farm.path) as agent:
            farm.coordinator.wait_for("birth")
            take(farm, agent)
            killed = 0
            for death in range(TRIES):
                while watcher(agent) == killed:
                    time.sleep(0.05)
                began_ms = time.time() * 1000
                owner.wait_for(lambda found, began_ms=began_ms: found["version"] == 2 and found["unix_ms"] > began_ms)
                assert kept_by(farm).tries_left == TRIES - 1 - death
                killed = watcher(agent)
                os.kill(killed, signal.SIGKILL)
            agent.wait_for("event=went-back version=2 in_use=1 reason=.*the child was ended by SIGKILL")
            assert owner.wait_for(lambda found: found["version"] == 1)["score"] is not None


def test_a_link_that_is_lost_right_after_a_version_came_is_no_failure_and_it_stays_once_connected_long_enough(
    tmp_path: Path,
):
    server = servers.start(tmp_path)
    try:
        farm = farm_of(server.url, tmp_path, REPLAY)
        np.save(farm.settings.source.path, np.tile(farm.windows, (100, 1, 1, 1)))
        with farm.coordinator, AgentProcess(farm.path, HASTE) as agent:
            stay(farm, agent)
            take(farm, agent)
            server.kill()
            agent.wait_for("event=link up=0")
            time.sleep(2 * CONNECTED_S)
            assert kept_by(farm).tries_left == TRIES - 1  # neither gone back from nor committed
            ups = sum(line.startswith("event=link up=1") for line in agent.lines)
            server.restart()
            agent.wait_for("event=committed version=2")
            assert sum(line.startswith("event=link up=1") for line in agent.lines) > ups
            assert not [line for line in agent.lines if "event=went-back" in line]
        kept = kept_by(farm)
        assert (kept.now.version, kept.before.version, kept.refused_version) == (2, 1, 0)
    finally:
        server.stop()
