"""Do all targets give the same bits? `python -m tests.targets.aarch64` compares this processor, and aarch64 emulated.

A small Debian for arm64 is unpacked into .cache (60 MB; nothing is installed, no root is needed), and its Python runs
under user-mode emulation. Four things must agree everywhere: the golden vectors; what every kernel does with the calls
its tests make; the parameters after a training; everything that happens in a simulated storm. Speed under emulation
means nothing and is not measured.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from engine.kernels import _native
from tests.targets import builds, debian

if TYPE_CHECKING:
    from pathlib import Path

ROOT = builds.ROOT
HOME = ROOT / ".cache/aarch64"
DEBIAN = HOME / "root"
SITE = HOME / "site"
PACKAGES = [
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libexpat1",
    "libffi8",
    "libssl3",
    "libbz2-1.0",
    "liblzma5",
    "libsqlite3-0",
    "libuuid1",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
]
WHEELS = ["numpy==1.26.4", "click", "msgspec", "cbor2", "cryptography", "pynacl", "paho-mqtt", "pytest", "hypothesis"]
GOLDEN = ["wire/test_golden.py", *(f"engine/test_{what}.py" for what in ("codec", "train", "drift", "kernels_update"))]


def main() -> None:
    """Print one line for each comparison; exit 1 if any differ, 0 with a reason if they cannot be made here."""
    if reason := lacking():
        print(f"skipped: aarch64 under emulation {reason}")
        return
    unpack()
    targets = [target for target in _native.targets() if target != "x86-64"]
    places = ["jit", *[str(builds.build(target)) for target in targets]]
    storms = ["-m", "tests.targets.worlds"]  # they train nothing, so one place says all that this processor has to say
    calls = builds.calls()
    emulated = builds.build("aarch64")
    failed = False
    for name, program in {
        "every kernel": ["-m", "tests.targets.replay", str(calls)],
        "a training": ["-m", "tests.targets.training"],
        "a storm": storms,
    }.items():
        here = places[:1] if program is storms else places
        said = [json.loads(builds.run(*program, kernels=place)) for place in here]
        said.append(json.loads(emulate(*program, kernels=emulated)))
        in_use = [one.pop("in use") for one in said]
        differing = {key for one in said for key in said[0] if one.get(key) != said[0][key]}
        failed |= bool(differing)
        print(
            f"{name}: {len(said[0])} digests on {'; '.join(in_use)}: {'differ: ' if differing else 'the same'}", end=""
        )
        print(", ".join(sorted(differing)))
    print(
        "golden vectors on aarch64:",
        emulate("-m", "pytest", *PYTEST, *(f"tests/{file}" for file in GOLDEN), kernels=emulated).splitlines()[-1],
    )
    sys.exit(failed)


PYTEST = ["-q", "--noconftest", "-p", "no:cacheprovider", "-k", "golden or bits_of_a_step"]


def lacking() -> str:
    """Say what this machine lacks, or nothing."""
    for program in ("qemu-aarch64-static", "apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            return f"needs {program}: apt-get install qemu-user-static apt dpkg"
    if not debian.KEYRING.exists():
        return f"needs {debian.KEYRING}: apt-get install debian-archive-keyring"
    return builds.missing("aarch64", *_native.targets())


def unpack() -> None:
    """Fetch the packages and wheels for arm64, once."""
    done = HOME / "done"
    wanted = " ".join([debian.SUITE, *PACKAGES, *WHEELS])
    if done.exists() and done.read_text() == wanted:
        return
    shutil.rmtree(HOME, ignore_errors=True)
    for folder in (DEBIAN, SITE):
        folder.mkdir(parents=True)
    debian.Apt(HOME).unpack(PACKAGES, DEBIAN)
    platforms = ["manylinux_2_17_aarch64", "manylinux2014_aarch64", "manylinux_2_28_aarch64", "manylinux_2_34_aarch64"]
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--only-binary=:all:"]
    pip += ["--python-version", "3.11", "--implementation", "cp", "--target", SITE]
    pip += [part for platform in platforms for part in ("--platform", platform)]
    subprocess.run([*pip, *WHEELS], check=True)
    done.write_text(wanted)


def emulate(*command: str, kernels: Path) -> str:
    """Give what a Python program prints on an emulated arm64 processor."""
    settings = {
        "PYTHONHOME": DEBIAN / "usr",
        "PYTHONPATH": f"{SITE}:{ROOT}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HEDGEROW_KERNELS": kernels,
    }
    given = [part for key, value in settings.items() for part in ("-E", f"{key}={value}")]
    done = subprocess.run(
        ["qemu-aarch64-static", "-cpu", "cortex-a53", "-L", DEBIAN, *given, DEBIAN / "usr/bin/python3.11", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


if __name__ == "__main__":
    main()
