"""The demo, small: real processes are killed and nothing is lost; and whatever ends it, nobody stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]


def demo(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    script = str(Path(sys.executable).with_name("firmware-sim"))
    command = [script, "demo", "--out", str(tmp_path / "report"), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def programs_of(tmp_path: Path) -> list[str]:
    """Every living process whose command line or working files name this test's directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            environment = (process / "environ").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if f"TMPDIR={tmp_path}" in environment and command:
            found.append(command)
    return found


def wait_for(condition, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False


def agents_of(tmp_path: Path) -> int:
    return sum("agent.toml" in command for command in programs_of(tmp_path))


def test_three_kills_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    process = demo(tmp_path, "--devices", "3", "--rounds", "8", "--seed", "3", "--json")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    found = json.loads(out)  # one object, and nothing else
    assert found == json.loads((tmp_path / "report" / "summary.json").read_text())
    assert [kill["what"] for kill in found["killed"]] == ["agent", "coordinator", "MQTT server"]
    assert found["rounds"] >= 8
    assert found["updates_finished"] >= 2 * found["rounds"]  # who is slow comes late to a round
    assert found["updates_counted"] == found["updates_finished"] - found["updates_refused"]
    assert (found["updates_lost"], found["updates_double_counted"], found["updates_unknown"]) == (0, 0, 0)
    assert (found["versions_proved"], found["versions_wrong"]) == (found["rounds"], 0)
    assert found["accuracy_final"] > found["accuracy_start"] + 0.3
    assert found["dense_over_update_bytes"] >= 100
    assert found["overhead_bytes"] <= 250
    assert found["mqtt_server"]["name"] in {"mosquitto", "amqtt"}
    assert (tmp_path / "report" / "index.html").is_file()
    assert programs_of(tmp_path) == []
    assert list(tmp_path.glob("hedgerow-demo-*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_demo_no_process_stays(tmp_path: Path, number: signal.Signals) -> None:
    process = demo(tmp_path, "--devices", "2", "--rounds", "500", "--no-chaos")
    try:
        assert wait_for(lambda: agents_of(tmp_path) == 2, 90), "the agents never came up"
        time.sleep(2)
    finally:
        process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert wait_for(lambda: programs_of(tmp_path) == [], 10), programs_of(tmp_path)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert err.strip().splitlines()[-1] == "stopped; nothing of it is running any more"
        assert list(tmp_path.glob("hedgerow-demo-*")) == []
