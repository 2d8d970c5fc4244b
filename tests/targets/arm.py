"""The agent's Debian package on emulated 64-bit ARM: installed, it takes part in a round. `python -m tests.targets.arm`

    make deb ─▶ a small Debian for arm64 (the one of tests.targets.aarch64) ─▶ chroot, every program emulated
    here: MQTT server and coordinator          there: edge-agent doctor, run, predict

The training child must start there, too, so the kernel has to know how to run foreign programs (binfmt_misc), which
takes root. Where a step cannot be done here, one line says which and why, and the exit status is 0; 1 when something
fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from broker import mqtt_server
from broker.store import Store
from engine import frozen
from engine.models import tflite
from firmware_sim import data
from firmware_sim.processes import Program, stop_all
from firmware_sim.site import Recipe, Site, Wish, prepare
from tests.targets import aarch64, builds

if TYPE_CHECKING:
    from collections.abc import Iterator

BINFMT = Path("/proc/sys/fs/binfmt_misc")
FORMAT = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
SCRIPTS = Path(sys.executable).parent
MODEL = Path(data.__file__).parent / "models/digits.tflite"
RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=0.02, momentum=0.9, keep_rate=0.05, value_bits=0)
DEVICE = "device-01"
CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
ROUND_S = 600.0  # emulated, a training takes half a minute
AGENT = ["/usr/bin/python3.11", "-c", "from edge_agent.cli import main; main(prog_name='edge-agent')"]


def main() -> None:
    """Print one line a step."""
    if reason := aarch64.lacking() or lacking():
        print(f"skipped: the package on emulated ARM {reason}")
        return
    package = make_package()
    print(f"package: {package.name}, {package.stat().st_size / 1e6:.1f} MB")
    aarch64.unpack()
    with tempfile.TemporaryDirectory(prefix="hedgerow-arm-") as name, installed(package, Path(name)) as root:
        print(f"installed: {installed_mb(root):.1f} MB, {distributions(root)} distributions")
        said = inside(root, "-c", "import platform, sys; print(platform.machine(), sys.version.split()[0])")
        print(f"runs: {said.strip()}")
        live(root)


def lacking() -> str:
    """Why it cannot be done here; empty when it can."""
    if os.geteuid():
        return "needs root: it mounts, and registers a program format"
    if not FORMAT.exists():
        return f"needs {FORMAT} (apt-get install qemu-user-static)"
    if not (BINFMT / "register").exists():
        mounted = subprocess.run(
            ["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], capture_output=True, check=False
        )
        if mounted.returncode:
            return f"needs binfmt_misc, which cannot be mounted here: {mounted.stderr.decode().strip()}"
    if not (BINFMT / "qemu-aarch64").exists():
        (BINFMT / "register").write_bytes(FORMAT.read_bytes())
    return ""


def make_package() -> Path:
    """The package of these sources, with the kernels built for it."""
    kernels = builds.build("aarch64")
    native = builds.ROOT / "engine/kernels/native"
    native.mkdir(exist_ok=True)
    if not (native / kernels.name).exists():
        shutil.copy(kernels, native)
    command = [sys.executable, str(builds.ROOT / "deploy/raspi/package.py"), "--out", str(aarch64.HOME)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.split()[-1])


@contextlib.contextmanager
def installed(package: Path, scratch: Path) -> Iterator[Path]:
    """A copy of the small Debian with the package in it, and what a program finds mounted everywhere."""
    root = scratch / "root"
    subprocess.run(["cp", "-a", aarch64.DEBIAN, root], check=True)
    subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    mounts = [("-t", "proc", "proc", root / "proc"), ("--bind", "/dev", root / "dev")]
    for mount in mounts:
        mount[-1].mkdir(exist_ok=True)
        subprocess.run(["mount", *mount], check=True)
    (root / "tmp").mkdir(exist_ok=True)
    try:
        yield root
    finally:
        for mount in reversed(mounts):
            subprocess.run(["umount", "-l", mount[-1]], check=False)


def inside(root: Path, *arguments: str) -> str:
    """What a Python program prints on the emulated machine."""
    done = subprocess.run(
        command_in(root, "/usr/bin/python3.11", *arguments), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def command_in(root: Path, *command: str) -> list[str]:
    """The command line of a program on the emulated machine, with the package's libraries."""
    settings = ["PYTHONPATH=/opt/hedgerow/lib", "PYTHONNOUSERSITE=1", "PYTHONDONTWRITEBYTECODE=1", "PATH=/usr/bin"]
    return ["env", "-i", *settings, "QEMU_CPU=cortex-a53", CHROOT, str(root), *command]


def installed_mb(root: Path) -> float:
    """What the package takes."""
    return sum(file.lstat().st_size for file in (root / "opt/hedgerow").rglob("*") if file.is_file()) / 1e6


def distributions(root: Path) -> int:
    """How many Python distributions the package brings, ours among them."""
    return len(list((root / "opt/hedgerow/lib").glob("*.dist-info")))


def live(root: Path) -> None:
    """One device learns there, and the coordinator here counts it."""
    with tempfile.TemporaryDirectory(prefix="fleet-", dir=root / "tmp") as name:
        directory = Path(name)
        (directory / "mqtt").mkdir()
        server = mqtt_server.start(directory / "mqtt")
        shares = data.share(data.digits(), 1, 1)
        site = prepare(Wish("farm", "digits", MODEL.read_bytes(), shares, RECIPE, 2, 1), directory, server.url)
        config = f"/tmp/{directory.name}/{DEVICE}/agent.toml"
        serve = Program(
            "broker", [str(SCRIPTS / "broker"), "serve", "--config", str(site.broker_config)], site.log("broker")
        )
        agent = Program("agent", command_in(root, *AGENT, "run", "--config", config), site.log("agent"))
        try:
            serve.start()
            agent.start()
            began_s = time.monotonic()
            wait_for_version(site, [serve, agent], 3)
            print(f"two rounds: {time.monotonic() - began_s:.0f} s, emulated; both updates counted")
            compare(root, site, config)
        finally:
            stop_all([agent, serve])
            server.stop()


def wait_for_version(site: Site, programs: list[Program], version: int) -> None:
    """Ask for rounds, and wait until they made it."""
    command = [
        str(SCRIPTS / "broker"),
        "round",
        "open",
        "--count",
        str(version - 1),
        "--config",
        str(site.broker_config),
    ]
    subprocess.run(command, check=True, capture_output=True)
    until = time.monotonic() + ROUND_S
    while time.monotonic() < until:
        with Store(site.store, read_only=True) as store:
            rows = store.versions()
        if rows[-1].model_version >= version:
            assert [row.members for row in rows[1:]] == [1] * (version - 1)
            return
        assert all(program.is_running for program in programs), [program.tail(20) for program in programs]
        time.sleep(1)
    raise AssertionError([program.tail(20) for program in programs])


def compare(root: Path, site: Site, config: str) -> None:
    """Are predictions there the same as here, window by window, of the version that is in use there?"""
    windows, _ = data.share(data.digits(), 1, 1).test
    np.savez(site.directory / "windows.npz", x=windows[:200])
    said = inside(root, *AGENT[1:], "predict", f"/tmp/{site.directory.name}/windows.npz", "--config", config, "--json")
    there = json.loads(said)
    out = site.directory / "here.tflite"
    version = str(there["model_version"])
    command = [
        str(SCRIPTS / "broker"),
        "model",
        "export",
        version,
        "--out",
        str(out),
        "--config",
        str(site.broker_config),
    ]
    subprocess.run(command, check=True, capture_output=True)
    here = frozen.predict(out.read_bytes(), tflite.read(out.read_bytes()), windows[:200])
    same = int((np.asarray(there["labels"]) == here).sum())
    print(f"predictions of version {version}: {same} of {len(here)} the same as on this machine")
    assert same == len(here)


if __name__ == "__main__":
    main()
