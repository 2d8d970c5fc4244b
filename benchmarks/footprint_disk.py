"""What an agent takes of a disk: the bytes that pip installs for `[agent]`, and those that reach the card for a commit.

Installed is what `pip install` leaves for a device that trains and predicts: this wheel, what `[agent]` needs, and the
bytecode that pip compiles, in a folder of its own. Where a Python is not here, its wheels are chosen for it from
outside; bytecode is then that of this Python. The kernels for this machine, built ahead of time as in a release, are in
it, since with them a device needs neither Numba nor a compiler.

Bytes on the card are what the kernel wrote to a loop device with ext4 (`/sys/block/loopN/stat`): the file's own blocks,
the journal and the metadata, as `df` never shows them. It takes root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.environments import ROOT, NotToBeHadError
from deploy.raspi.package import requirements
from edge_agent.disk import Directory
from edge_agent.effects import Durable
from edge_agent.flash import Flash
from engine.kernels import _native
from tests.targets import builds

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
SECTOR_BYTES: Final = 512  # of /sys/block/*/stat, whatever the disk's own are
WRITTEN_AT: Final = 6
COMMITS: Final = 200
COMMIT_BYTES: Final = 1000
IMAGE_MB: Final = 256


class Installed(NamedTuple):
    """What pip left in `tree`. `note`: what was done in another way than a device would."""

    tree: Path
    installed_bytes: int
    bytecode_bytes: int
    distributions: int
    note: str


def wheel(directory: Path) -> Path:
    """Our own wheel, made now. Raises NotToBeHadError."""
    _pip([sys.executable], "wheel", "--no-deps", "--wheel-dir", str(directory), str(ROOT))
    return next(directory.glob("hedgerow-*.whl"))


def install(made: Path, python: str, tree: Path) -> Installed:
    """Install `made` with `[agent]` for this Python, as 3.13, into `tree`. Raises NotToBeHadError."""
    found, note = interpreter(python), ""
    if found is not None:
        _pip([found], "install", "--target", str(tree), f"{made}[agent]")
    else:
        note = f"no Python {python} here: wheels chosen for it, bytecode of {HERE}"
        chosen = ["--python-version", python, "--only-binary=:all:", "--target", str(tree)]
        _pip([sys.executable], "install", *chosen, str(made), *requirements(python))
    _add_kernels(tree)
    files = [path for path in tree.rglob("*") if path.is_file()]
    return Installed(
        tree,
        sum(path.stat().st_size for path in files),
        sum(path.stat().st_size for path in files if path.suffix == ".pyc"),
        len(list(tree.glob("*.dist-info"))),
        note,
    )


def interpreter(python: str) -> str | None:
    """A Python of this version that runs here and has pip; None if there is none."""
    if python == HERE:
        return sys.executable
    found = shutil.which(f"python{python}")
    done = found and subprocess.run([found, "-m", "pip", "--version"], capture_output=True, check=False)
    return found if done and done.returncode == 0 else None


def kernels() -> Path:
    """The kernels for this machine, compiled ahead of time; once, some minutes. Raises NotToBeHadError."""
    target = next(iter(_native.targets()), None)
    if target is None:
        raise NotToBeHadError("no kernels are built ahead of time for this processor")
    if lacking := builds.missing(target):
        raise NotToBeHadError(f"a build of the kernels {lacking}")
    return builds.build(target)


def _add_kernels(tree: Path) -> None:
    """Those of this machine and no other's, which builds for other machines may have left in the wheel."""
    folder, wanted = tree / "engine/kernels/native", kernels()
    folder.mkdir(exist_ok=True)
    for other in folder.glob("*.so"):
        other.unlink()
    shutil.copy(wanted, folder)


@contextlib.contextmanager
def card(directory: Path) -> Iterator[Card]:
    """An ext4 of its own, mounted under `directory`, on a loop device. Raises NotToBeHadError."""
    if os.geteuid():
        raise NotToBeHadError("a loop device takes root")
    image, place = directory / "card.img", directory / "card"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_MB << 20)
    # lazily made tables would be written behind our back
    _run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)])
    loop = _run(["losetup", "--find", "--show", str(image)])
    try:
        _run(["mount", "-o", "noatime", loop, str(place)])
        try:
            yield Card(place, Path(loop).name)
        finally:
            _run(["umount", str(place)])
    finally:
        _run(["losetup", "--detach", loop])


class Card(NamedTuple):
    """A mounted loop device."""

    place: Path
    name: str

    def written_bytes(self) -> int:
        """All that reached the device since it was made, with what was still in the cache."""
        descriptor = os.open(self.place, os.O_RDONLY)
        try:
            _syncfs(descriptor)
        finally:
            os.close(descriptor)
        fields = Path(f"/sys/block/{self.name}/stat").read_text("ascii").split()
        return int(fields[WRITTEN_AT]) * SECTOR_BYTES


def commit_bytes(directory: Path) -> float:
    """Bytes on the card for one commit of an outbox of COMMIT_BYTES. Raises NotToBeHadError."""
    with card(directory) as written_to:
        flash = Flash(Directory(written_to.place / "state"))
        durable = flash.load(1)
        flash.save(durable)
        flash.save(durable)  # both slots are there and have their room
        before = written_to.written_bytes()
        for round_id in range(1, COMMITS + 1):
            flash.save(Durable(boot=1, outbox=os.urandom(COMMIT_BYTES), outbox_round_id=round_id))
        return (written_to.written_bytes() - before) / COMMITS


def _syncfs(descriptor: int) -> None:
    import ctypes

    ctypes.CDLL(None).syncfs(descriptor)


def _pip(python: list[str], *arguments: str) -> None:
    _run([*python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])


def _run(command: list[str]) -> str:
    """What the command prints. Raises NotToBeHadError with the last line of its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotToBeHadError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotToBeHadError(f"{Path(command[0]).name} {command[1]}: {last[:300]}")
    return done.stdout.strip()


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for one measurement."""
    return tempfile.TemporaryDirectory(prefix="hedgerow-footprint-")
