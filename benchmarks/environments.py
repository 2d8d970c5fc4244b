"""Environments for those that a benchmark compares with: made with pip once, and kept under .cache/bench."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bench"
PEERS = ROOT / "benchmarks" / "peers"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}


class NotToBeHadError(Exception):
    """A peer cannot take part; the sentence says why."""


@cache
def environment(name: str, packages: tuple[str, ...]) -> str:
    """Return the Python of the environment `name`, which is made if it is not there or has other packages."""
    folder = CACHE / name
    python, mark = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join(packages)
    if mark.exists() and mark.read_text() == wanted:
        return str(python)
    print(f"making {folder} with {', '.join(packages)} ...", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotToBeHadError(f"pip could not install {', '.join(packages)}: {last[:300]}")
    mark.write_text(wanted)
    return str(python)
