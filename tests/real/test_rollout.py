"""A poisoned candidate, with real programs: three devices try it, refuse it, and the fleet goes back by itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker import mqtt_server
from broker.store import Store
from edge_agent import slots
from edge_agent.disk import Directory
from firmware_sim import data
from firmware_sim.processes import Program, stop_all
from firmware_sim.site import Recipe, Site, Wish, prepare

pytestmark = [pytest.mark.real, pytest.mark.slow]

CANARIES, POISONERS = ("device-01", "device-02", "device-03"), ("device-04", "device-05", "device-06")
RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.02, momentum=0.9, keep_rate=0.2, value_bits=0)
MODEL = Path(data.__file__).parent / "models" / "digits.tflite"
SCRIPTS = Path(sys.executable).parent
ROUND_S = 120.0


def broker(site: Site, *arguments: str) -> str:
    command = [str(SCRIPTS / "broker"), *arguments, "--config", str(site.broker_config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def poisoned(shares: data.Shares) -> data.Shares:
    """Half of the devices call every digit by another's name."""
    devices = {
        name: (windows, labels if name in CANARIES else ((labels + 3) % 10).astype(labels.dtype))
        for name, (windows, labels) in shares.devices.items()
    }
    return data.Shares(devices, shares.test)


def versions(site: Site) -> list[dict[str, object]]:
    return json.loads(broker(site, "model", "list", "--json"))


def wait_for_rounds(site: Site, programs: list[Program], count: int) -> None:
    """Until `count` rounds and trials are over."""
    until = time.monotonic() + ROUND_S
    while time.monotonic() < until:
        with Store(site.store, read_only=True) as store:
            if sum(row.status == "closed" for row in store.rounds()) >= count:
                return
        assert all(program.is_running for program in programs), [program.tail() for program in programs]
        time.sleep(0.3)
    pytest.fail(f"{count} rounds did not close: {programs[0].tail(20)}")


@pytest.fixture
def fleet(tmp_path: Path):
    (tmp_path / "mqtt").mkdir()
    server = mqtt_server.start(tmp_path / "mqtt")
    wish = Wish("farm", "digits", MODEL.read_bytes(), poisoned(data.share(data.digits(), 6, 1)), RECIPE, 3, 1)
    site = prepare(wish, tmp_path, server.url)
    text = site.broker_config.read_text("utf-8").split("[evaluate]")[0]  # the ring has to find out
    rollout = '[rollout]\nrings = [3]\ntags = ["canary"]\n[aggregate]\nrule = "fedavg"\n'
    site.broker_config.write_text(text.replace("updates_min = 4", "updates_min = 3") + rollout, "utf-8")
    for name in site.devices:
        config = site.agent_config(name)
        config.write_text(config.read_text("utf-8").replace("held_out_rate = 0.1", "held_out_rate = 0.3"), "utf-8")
        broker(site, "fleet", "tag", name, "canary" if name in CANARIES else "poison")
    coordinator = Program(
        "broker", [str(SCRIPTS / "broker"), "serve", "--config", str(site.broker_config)], site.log("broker")
    )
    agents = [
        Program(name, [str(SCRIPTS / "edge-agent"), "run", "--config", str(site.agent_config(name))], site.log(name))
        for name in site.devices
    ]
    programs = [coordinator, *agents]
    for program in programs:
        program.start()
    yield site, programs
    stop_all(programs)
    server.stop()


def test_a_poisoned_candidate_is_stopped_in_the_ring_and_the_fleet_goes_back_by_itself(fleet) -> None:
    site, programs = fleet
    broker(site, "round", "open", "--count", "3", "--tags", "canary")
    wait_for_rounds(site, programs, 6)
    assert [row["stage"] for row in versions(site)] == ["promoted"] * 4
    assert all(in_use(site, name) == 4 for name in CANARIES)

    broker(site, "round", "open", "--tags", "poison", "--epochs", "20")
    wait_for_rounds(site, programs, 8)
    stages = [row["stage"] for row in versions(site)]
    assert stages == ["promoted"] * 4 + ["rolled back", "promoted"]
    shown = json.loads(broker(site, "model", "show", "5", "--json"))
    assert {update["device_id"] for update in shown["updates"]} == set(POISONERS)
    assert "devices refused it" in shown["stage_why"] or "worse in the field" in shown["stage_why"]
    assert {trial["device_id"] for trial in shown["trials"]} <= set(CANARIES)
    assert sum(trial["lost"] for trial in shown["trials"]) > 3 * sum(trial["won"] for trial in shown["trials"])
    print(broker(site, "model", "list"), broker(site, "model", "show", "5"), broker(site, "round", "list"))
    with Store(site.store, read_only=True) as store:
        assert store.params_digest(6) == store.params_digest(4)
        assert store.manifest().model_version == 6
    assert all(in_use(site, name) == 4 for name in CANARIES), "a device took what it had refused"

    broker(site, "round", "open", "--tags", "canary")
    wait_for_rounds(site, programs, 10)
    newest = versions(site)[-1]
    assert (newest["stage"], newest["parent_version"]) == ("promoted", 6)
    assert "tried" in programs[0].log.read_text("utf-8")


def in_use(site: Site, name: str) -> int:
    kept = slots.load(Directory(site.directory / name / "state"))
    return 0 if kept is None else kept.now.version
