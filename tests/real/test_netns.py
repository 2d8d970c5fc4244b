"""Real faults: wires that lose packets, plugs that are pulled, processes that are killed; and nothing is lost by it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real import gale, nets
from tests.real.test_demo import programs_of, wait_for

pytestmark = [pytest.mark.real, pytest.mark.slow]
ROOT = Path(__file__).parents[2]

# In a namespace of its own: one device that counts what arrives, and sends it back; we send, and count, too.
WIRE = """
import json, select, socket, subprocess, sys, time
from pathlib import Path
from tests.real import nets

ECHO = '''
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.77.0.11", 9))
print("ready", flush=True)
while True:
    data, who = s.recvfrom(2000)
    s.sendto(data, who)
'''

def returned(count, size=1):
    mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    began, got, ended = time.monotonic(), 0, 0.0
    for left in reversed(range(count)):
        mine.sendto(bytes(size), ("10.77.0.11", 9))
        while select.select([mine], [], [], 0.0005 if left else 0.7)[0]:
            mine.recv(2000)
            got, ended = got + 1, time.monotonic()
    return got, ended - began

wires = nets.Nets(["dune"], Path(sys.argv[1]))

def start():
    command = [*wires.before("dune"), sys.executable, "-c", ECHO]
    echo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    echo.stdout.readline()
    return echo

echo = start()
try:
    found = {"calm": returned(500)[0]}
    wires.set_weather("dune", 0.3, nets.FREE_BITS)
    found["lossy"], found["dropped"] = returned(500)[0], wires.dropped()
    wires.set_weather("dune", 0.0, 200_000)
    found["slow_s"] = returned(40, 1000)[1]
    wires.set_weather("dune", 0.0, nets.FREE_BITS)
    wires.cut("dune")
    found["cut"] = returned(50)[0]
    wires.mend("dune")
    found["mended"] = returned(50)[0]
    echo.kill()
    wires.power_off("dune")
    found["dark"], found["dropped_before"] = returned(5)[0], wires._dropped
    wires.power_on("dune")
    echo = start()
    found["lit"] = returned(50)[0]
finally:
    echo.kill()
    wires.stop()
print(json.dumps(found))
"""


@pytest.fixture(scope="module", autouse=True)
def permitted():
    if reason := gale.why_not():
        pytest.skip(reason)


def test_a_wire_loses_what_it_should_and_carries_what_it_may(tmp_path: Path) -> None:
    command = nets.inside([sys.executable, "-c", WIRE, str(tmp_path)])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["calm"], found["cut"]) == (500, 0)
    assert 180 <= found["lossy"] <= 310, "0.7 each way, so 0.49 of 500, and five standard deviations"
    # counted at the first drop: what is lost on the way there does not come back
    assert 130 <= found["dropped"] <= 320
    assert found["slow_s"] >= 40 * 8000 / 200_000 * 0.5, "40 kB over 200 kbit/s, less what may go in one burst"
    assert found["mended"] > 0
    assert (found["dark"], found["dropped_before"]) == (0, found["dropped"]), "a wire that is no more still counts"
    assert found["lit"] > 0


def test_after_a_gale_every_finished_update_is_counted_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.real.gale", "--seconds", "30", "--seed", "6"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert (found["lost"], found["double_counted"], found["unknown"], found["refused"]) == ([], [], [], [])
    assert found["counted"] == found["finished"] >= gale.DEVICES
    assert (found["versions_proved"], found["versions_wrong"]) == (found["rounds"], 0)
    assert sum(found["struck"].values()) >= 6
    assert sum(count for what, count in found["struck"].items() if what != gale.PLUG) >= 3
    assert found["packets_dropped"] > 0
    assert wait_for(lambda: programs_of(tmp_path) == [], 10), programs_of(tmp_path)


def test_nothing_stays_of_a_gale_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.real.gale", "--seconds", "300"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: sum("agent.toml" in program for program in programs_of(tmp_path)) >= 3, 90)
        assert sum("sleep infinity" in program for program in programs_of(tmp_path)) == gale.DEVICES
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert wait_for(lambda: programs_of(tmp_path) == [], 10), programs_of(tmp_path)


def test_who_may_make_no_namespace_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        nets, "inside", lambda _command: [sys.executable, "-c", "import sys; sys.exit('not permitted')"]
    )
    assert nets.why_not() == "needs network namespaces with veth, bridge and HTB: not permitted"
