"""Kernels built ahead of time for a test, and the calls to try them with; kept in .cache until a kernel changes."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.kernels import _native

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache/kernels" / _native.digest()
SCRIPT = ROOT / "deploy/release/kernels.py"


def missing(*targets: str) -> str:
    """Say what this machine lacks to build for these targets, or nothing."""
    if importlib.util.find_spec("numba") is None:
        return "needs numba"
    for target in targets:
        names = script().LINKERS["aarch64" if target == "aarch64" else "x86_64"]
        if not any(shutil.which(name) for name in names):
            return f"needs a linker for {target}: {' or '.join(names)}"
    return ""


def build(target: str) -> Path:
    """Give the build for `target`, made now if it is not there."""
    path = FOLDER / f"{target}-{_native.digest()}.so"
    make(path, SCRIPT, "--target", target, "--out", FOLDER)
    return path


def calls() -> Path:
    """Give the recorded calls of every kernel, made now by running the kernels' tests."""
    path = FOLDER / "calls"
    texts = {file: file.read_text() for file in sorted((ROOT / "tests/engine").glob("test_*.py"))}
    # not those that come here themselves
    tests = [file for file, text in texts.items() if "engine.kernels import" in text and "tests.targets" not in text]
    plain = "-q", "--noconftest", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not slow"
    make(path, "-m", "pytest", *plain, "-p", "tests.targets.record", "--record", path.with_suffix(".part"), *tests)
    return path


def make(path: Path, *command: str | Path) -> None:
    """Run a Python program that makes `path`, or its `.part`; one at a time."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            run(*command, kernels="jit")
            part = path.with_suffix(".part")
            if part.exists():
                part.rename(path)


def run(*command: str | Path, kernels: str | Path) -> str:
    """Give what a Python program prints, run with these kernels."""
    environment = {**os.environ, "HEDGEROW_KERNELS": str(kernels), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def script() -> ModuleType:
    """Give the build script as a module."""
    spec = importlib.util.spec_from_file_location("release_kernels", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
