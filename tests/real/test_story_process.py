"""A story from a real agent: asked for while it runs, left at its end and at a crash, and lived again elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from edge_agent import storyfile
from tests.real.scripted_coordinator import QUICK, AgentProcess, is_alive
from tests.real.test_agent_process import IDLE_MB_MAX, Site, make_site

pytestmark = pytest.mark.real

# A bug that a release may have had: a receipt of round 2 is more than the machine can bear.
BUG = """
from edge_agent.agent import Agent
real = Agent._on_receipt
def fails(self, receipt, now_ms):
    assert receipt.round_id != 2, "round 2 is one too many"
    return real(self, receipt, now_ms)
Agent._on_receipt = fails
"""


@pytest.fixture
def site(mqtt_server, tmp_path) -> Site:
    return make_site(mqtt_server.url, tmp_path)


def call(module: str, *arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nfrom {module} import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_a_running_agent_tells_its_story_and_goes_on_and_every_byte_of_it_is_lived_again(site, tmp_path):
    copy = tmp_path / "story.bin"
    with site.coordinator as coordinator, AgentProcess(site.config) as agent:
        coordinator.announce(QUICK)
        coordinator.wait_for("birth")
        coordinator.offer(1, QUICK)
        _, sealed = coordinator.wait_for("update")
        asked = call("edge_agent.cli", "story", "--config", site.config, "--out", copy)
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.splitlines()[0].endswith("its end: not yet, it was asked for while the agent ran")
        assert any(line.endswith("trained            Persist, Publish") for line in asked.stdout.splitlines())
        coordinator.receipt(sealed, 1)  # it lives, and goes on
        agent.wait_for(r"event=receipt round=1 verdict=accepted")
        assert agent.memory_mb() <= IDLE_MB_MAX
        agent.terminate()
        assert agent.wait() == 0
    for path, ending in ((copy, "not yet"), (site.state / "story", "SIGTERM")):
        again = call("firmware_sim.cli", "replay", path)
        assert again.returncode == 0, again.stdout + again.stderr
        count = len(storyfile.load(path).entries)
        assert f"{count} events replayed, every effect as recorded" in again.stdout
        assert f"its end: {ending}" in again.stdout
    left = call("edge_agent.cli", "story", "--config", site.config, "--json")
    events = json.loads(left.stdout)["events"]
    assert events[0] == {"at_ms": events[0]["at_ms"], "event": "booted", "effects": ["Persist", "Forget"]}
    assert "received-receipt" in [event["event"] for event in events]


def test_a_crash_in_the_field_is_the_same_crash_on_another_machine(site):
    with site.coordinator as coordinator, AgentProcess(site.config, before=BUG) as agent:
        coordinator.announce(QUICK)
        coordinator.wait_for("birth")
        for round_id in (1, 2):
            coordinator.offer(round_id, QUICK)
            _, sealed = coordinator.wait_for("update", round_id=round_id)
            coordinator.receipt(sealed, round_id)
        assert agent.wait() == 1
    record = storyfile.load(site.state / "story")
    assert record.entries[-1].effects is None
    with_bug = call("firmware_sim.cli", "replay", site.state / "story", before=BUG)
    assert with_bug.returncode == 1
    count = len(record.entries)
    assert f"event {count} of {count} raises: AssertionError at <string>:" in with_bug.stdout
    assert "its end: AssertionError at <string>:" in with_bug.stdout
    mended = call("firmware_sim.cli", "replay", site.state / "story")
    assert mended.returncode == 1
    assert "received-receipt" in mended.stdout
    assert "recorded: it raised; now: Persist, Forget" in mended.stdout


def test_whoever_is_refused_the_lock_does_not_silence_the_one_who_holds_it(site):
    with AgentProcess(site.config) as first:
        first.wait_for("event=ready")
        with AgentProcess(site.config) as second:
            assert second.wait() == 1
        assert (site.state / "lock").read_text() == str(first.pid)
        assert call("edge_agent.cli", "story", "--config", site.config).returncode == 0
        assert is_alive(first.pid)
