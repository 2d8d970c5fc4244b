"""The command line: help costs nothing, and a mistake gets one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from firmware_sim.cli import main


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom firmware_sim.cli import main\n"
        "try: main(['demo', '--help'])\nexcept SystemExit: pass\n"
        "import json; print(json.dumps(sorted({'numpy', 'paho', 'rich', 'sklearn', 'matplotlib'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--no-chaos" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_shares_are_written_for_use_by_hand(tmp_path: Path) -> None:
    out = tmp_path / "shares"
    done = CliRunner().invoke(main, ["data", "digits", "--devices", "4", "--out", str(out), "--seed", "3"])
    assert done.exit_code == 0, done.output
    assert "digits: 4 shares of" in done.output
    with np.load(out / "device-04.npz") as arrays:
        assert len(arrays["x"]) == len(arrays["y"])


def test_a_wrong_folder_is_one_line(tmp_path: Path) -> None:
    for arguments in (["fleet", "--data", str(tmp_path)], ["data", str(tmp_path), "--out", str(tmp_path / "o")]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 1
        assert "holds no data set that is known here" in done.output
        assert len(done.output.strip().splitlines()) == 1


def test_data_without_a_shipped_model_asks_for_one(tmp_path: Path) -> None:
    from PIL import Image

    from firmware_sim import data

    (tmp_path / data.CIFAR_LABELS).write_text(f"var labels={[0] * 51_000};")
    for number in (0, 50):
        Image.new("RGB", (1024, 1000)).save(tmp_path / f"cifar10_batch_{number}.png")
    done = CliRunner().invoke(main, ["fleet", "--data", str(tmp_path)])
    assert done.exit_code == 1
    assert "no shipped model takes windows of 32x32x3" in done.output
