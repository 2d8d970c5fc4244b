"""The owner's limits on a real agent: hours, a day's energy; and what `edge-agent doctor` says of a plan."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.scripted_coordinator import QUICK, AgentProcess
from tests.real.test_agent_process import Site, make_site

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.real


@pytest.fixture
def site(mqtt_server, tmp_path) -> Site:
    return make_site(mqtt_server.url, tmp_path)


def limit(site: Site, text: str) -> None:
    config = site.config.read_text()
    assert "memory_mb = 512\n" in config
    site.config.write_text(config.replace("memory_mb = 512\n", f"memory_mb = 512\n{text}\n"))


def ask(command: str, config: Path) -> Any:
    code = "from edge_agent.cli import main; main()"
    asked = [sys.executable, "-c", code, command, "--config", str(config), "--json"]
    return json.loads(subprocess.run(asked, capture_output=True, text=True, check=False).stdout)


def findings(config: Path) -> dict[str, tuple[bool, str]]:
    return {found["name"]: (found["ok"], found["text"]) for found in ask("doctor", config)["findings"]}


def reason_within(config: Path, begins: str) -> str:
    """The rest of the reason that status gives, once it begins so."""
    until = time.monotonic() + 40.0
    while time.monotonic() < until:
        reason = ask("status", config)["reason"]
        if found := re.match(f"{begins}[,;] ", reason):
            return reason[found.end() :]
        time.sleep(0.5)
    raise AssertionError(reason)


def test_outside_the_owners_hours_it_waits_and_says_why(site):
    begin, end = (time.strftime("%H:%M", time.localtime(time.time() + hours * 3600)) for hours in (2, 4))
    limit(site, f'hours = ["{begin}-{end}"]')
    with site.coordinator as coordinator, AgentProcess(site.config):
        coordinator.announce(QUICK)
        coordinator.wait_for("birth")
        coordinator.offer(1, QUICK)
        assert reason_within(site.config, r"it is ..:..") == f"the owner allows {begin}-{end}"
        assert coordinator.updates == []


def test_what_a_training_took_is_known_after_a_restart_and_the_day_is_over_that_has_spent_it(site):
    with site.coordinator as coordinator:
        coordinator.announce(QUICK)
        with AgentProcess(site.config) as agent:
            coordinator.wait_for("birth")
            coordinator.offer(1, QUICK)
            _, sealed = coordinator.wait_for("update")
            coordinator.receipt(sealed, 1)
            agent.wait_for(r"event=receipt round=1")
            agent.terminate()
            assert agent.wait() == 0
        took = ask("status", site.config)["joules_today"]
        assert took > 0.2
        limit(site, "day_joules_max = 0.2")
        with AgentProcess(site.config) as agent:
            coordinator.wait_for("birth")
            coordinator.offer(2, QUICK)
            assert reason_within(site.config, "the day's 0.2 J for training are spent") == "more from 00:00 UTC"
            agent.terminate()
            assert agent.wait() == 0
    assert ask("status", site.config)["joules_today"] == took


def test_the_doctor_tells_whether_the_plan_that_is_out_would_train_here(site):
    assert findings(site.config)["plan"] == (True, "none is out now")
    with site.coordinator as coordinator:
        coordinator.announce(QUICK)
    told = findings(site.config)
    assert told["plan"][0], told
    assert told["plan"][1].startswith("training last-2 takes about 19 MB;")
    assert told["server"] == (True, "a message of 120000 bytes is acknowledged; whether it arrives, broker doctor asks")
    site.config.write_text(site.config.read_text().replace("memory_mb = 512", "memory_mb = 128"))
    why = "the plan asks for 256 MB, the owner allows 128 MB"
    assert findings(site.config)["plan"] == (False, f"it would not train here now: {why}")
    other = make_site("mqtt://127.0.0.1:9", site.config.parent / "other")  # nobody serves it
    told = findings(other.config)
    assert not told["mqtt"][0]
    assert "plan" not in told
