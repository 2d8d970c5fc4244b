"""What goes onto a device is checked with the tools that will read it there."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parent.parent / "deploy/raspi/edge-agent.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_with_the_unit(tmp_path):
    unit = tmp_path / UNIT.name
    lines = UNIT.read_text().splitlines(keepends=True)
    # The program is not installed on this machine; everything else is the very file.
    assert sum(line.startswith("ExecStart=/opt/hedgerow/bin/edge-agent run ") for line in lines) == 1
    unit.write_text("".join("ExecStart=/bin/true\n" if line.startswith("ExecStart=") else line for line in lines))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert not ours
    assert done.returncode == 0, done.stderr


def test_the_unit_keeps_what_the_documentation_promises():
    settings = [line.strip() for line in UNIT.read_text().splitlines()]
    assert "Environment=NUMBA_CACHE_DIR=/var/cache/hedgerow/numba" in settings  # else kernels compile at every boot
    assert "Restart=always" in settings
    assert not [line for line in settings if line.startswith("SystemCallFilter=~@resources")]  # numpy calls mbind
