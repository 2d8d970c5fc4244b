"""What goes onto a device is checked with the tools that will read it there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_agent import config
from wire import keys

DEPLOY = Path(__file__).parent.parent / "deploy/raspi"
UNIT = DEPLOY / "edge-agent.service"
ROAD = (DEPLOY / "README.md").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_with_the_unit(tmp_path):
    unit = tmp_path / UNIT.name
    lines = UNIT.read_text().splitlines(keepends=True)
    # The program is not installed on this machine; everything else is the very file.
    assert sum(line.startswith("ExecStart=/opt/hedgerow/bin/edge-agent run ") for line in lines) == 1
    unit.write_text(
        "".join(line for line in lines if "/opt/hedgerow/" not in line) + "[Service]\nExecStart=/bin/true\n"
    )
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert not ours
    assert done.returncode == 0, done.stderr


def test_the_unit_keeps_what_the_documentation_promises():
    settings = [line.strip() for line in UNIT.read_text().splitlines()]
    assert "Environment=NUMBA_CACHE_DIR=/var/cache/hedgerow/numba" in settings  # else kernels compile at every boot
    assert "Restart=always" in settings
    assert "OOMPolicy=continue" in settings  # else a trainer that needs too much ends its agent, again and again
    assert not [line for line in settings if line.startswith("SystemCallFilter=~@resources")]  # numpy calls mbind


def shell(command: str, directory: Path) -> None:
    subprocess.run(["bash", "-ec", command.replace("sudo ", "")], cwd=directory, check=True, capture_output=True)


def test_the_road_from_keygen_to_the_unit_gives_a_config_of_the_very_files_that_the_unit_hands_over(tmp_path):
    config.make(tmp_path, "pi-07", "home", "mqtts://server:8883", keys.public_text(keys.generate()))
    moves = re.search(r"(?s)cd /etc/hedgerow\n(.*?)```", ROAD)
    assert moves
    shell(moves[1], tmp_path)
    settings = config.load(tmp_path / "agent.toml")
    assert settings.device.state == Path("/var/lib/hedgerow")
    files = (settings.device.key, settings.mqtt.ca_file, settings.mqtt.cert_file, settings.mqtt.key_file)
    assert all(file is not None and file.parent == tmp_path for file in files)
    handed_over = set(re.findall(r"^LoadCredential=(.*):/etc/hedgerow/\1$", UNIT.read_text(), re.MULTILINE))
    assert {file.name for file in files} | {"agent.toml"} == handed_over
    assert keys.load_seed(settings.device.key)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_the_certificates_of_the_road_hold_for_the_strictest_reader(tmp_path):
    """From Python 3.13 on, ssl asks for X.509 as RFC 5280 has it; openssl's shortest commands make something else."""
    commands = re.search(r"(?s)```\n(openssl req -x509.*?)```", ROAD)
    assert commands
    shell(commands[1], tmp_path)
    names = ["server.crt", "coordinator.crt", "pi-07.crt"]
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", "ca.crt", *names]
    done = subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [word for name in names for word in (f"{name}:", "OK")], done.stderr
