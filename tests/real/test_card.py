"""The agent and its card: bytes that reach the device, a root that nobody may write to, a card without room.

The card is an ext4 of its own on a loop device, and what reached it is what the kernel says of that device
(`/sys/block/loopN/stat`): the journal and the tables of the file system are in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from benchmarks import footprint_disk
from benchmarks.environments import NotToBeHadError
from edge_agent import config, flash, host, traffic
from edge_agent.disk import Directory
from edge_agent.sources import files
from engine.kernels import _native
from tests.real.scripted_coordinator import QUICK, AgentProcess, Coordinator, write_digits
from tests.targets import builds
from wire import chunks, keys

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.real
COMMIT_BYTES_MAX = 6_000  # on the card, for one commit of 1 kB
EXAMPLES = 120
SOURCE = '\n[source]\nkind = "replay"\npath = "{path}"\nwindow = [8, 8, 1]\nevery_ms = 100\nkeep_every = 5\n'
# Of every mount but the one in $1 a read-only one is made, in a namespace that nobody else sees; then the rest runs.
SEAL = """
kept=$1; shift
for place in $(cut -d' ' -f2 /proc/self/mounts); do
    [ "$place" = "$kept" ] || mount -o remount,bind,ro "$place" 2>/dev/null || true
done
exec "$@"
"""


class Site(NamedTuple):
    """One device whose state is on a card of its own, and the coordinator that it believes."""

    card: footprint_disk.Card
    config: Path
    coordinator: Coordinator

    @property
    def state(self) -> Path:
        return self.card.place / "state"

    def sealed(self, *environment: str) -> list[str]:
        """What stands before a command that may write to the card and to nothing else."""
        return [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            SEAL,
            "sh",
            str(self.card.place),
            "env",
            *environment,
        ]


@pytest.fixture
def card(tmp_path) -> Iterator[footprint_disk.Card]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(footprint_disk.card(tmp_path))
        except NotToBeHadError as error:
            pytest.skip(f"needs a loop device with ext4: {error}")
        yield made


@pytest.fixture
def site(card, mqtt_server, tmp_path) -> Site:
    fleet, seed = f"card-{time.monotonic_ns()}", keys.generate()
    made = config.make(tmp_path, "dev-1", fleet, mqtt_server.url, keys.public_text(seed))
    digits = write_digits(tmp_path / "digits.npz", EXAMPLES)
    with np.load(digits) as arrays:
        np.save(tmp_path / "stream.npy", np.tile(arrays["x"], (100, 1, 1, 1)))
    text = made.path.read_text().replace('state = "dev-1-state"', f'state = "{card.place}/state"')
    made.path.write_text(text + SOURCE.format(path=tmp_path / "stream.npy"))
    files.add_npz(digits, config.load(made.path).samples_path, 2000)
    return Site(card, made.path, Coordinator(mqtt_server.url, fleet, seed, "dev-1", made.public_key))


def test_a_commit_of_1_kb_costs_the_card_at_most_6_kb(tmp_path):
    try:
        found = footprint_disk.commit_bytes(tmp_path)
    except NotToBeHadError as error:
        pytest.skip(f"needs a loop device with ext4: {error}")
    assert 4096 <= found <= COMMIT_BYTES_MAX
    assert not any((tmp_path / "card").iterdir()), "it is unmounted"


@pytest.mark.parametrize(
    ("what", "factor"), [("commits", (1.0, 1.5)), ("downloads", (0.99, 1.1)), ("notes", (1.5, 20.0))]
)
def test_what_is_counted_is_what_reaches_the_card_but_for_the_journal(card, what, factor):
    """docs/OPERATING.md tells these factors."""
    store = flash.Flash(Directory(card.place / "state"))
    durable = store.load(1)
    store.save(durable)
    store.save(durable)
    counted, reached = host.written_bytes(), card.written_bytes()
    for number in range(20):
        content = os.urandom(300_000 if what == "downloads" else 1000)
        if what == "commits":
            store.save(flash.Durable(boot=1, outbox=content, outbox_round_id=number))
        elif what == "downloads":
            file = chunks.split("model.tflite", content, 96 * 1024)
            store.open_file(file)
            for index in range(len(file.chunk_digests)):
                store.write_chunk(file, index, chunks.chunk_at(content, file, index).data)
            assert store.seal_file(file).ready
        else:
            flash.replace_file(store.disk, "note", content)
    low, high = factor
    found = (card.written_bytes() - reached) / (host.written_bytes() - counted)
    assert low <= found <= high, found


@pytest.mark.parametrize("kernels", ["jit", "ahead of time"])
def test_it_lives_where_nothing_but_its_state_can_be_written(site, kernels, tmp_path):
    environment = [f"NUMBA_CACHE_DIR={warmed(site.card.place / 'numba')}", "HEDGEROW_KERNELS=jit"]
    if kernels != "jit":
        target = next(iter(_native.targets()), "")
        if not target or (lacking := builds.missing(target)):
            pytest.skip(f"no kernels ahead of time: {lacking if target else 'another processor'}")
        environment = [f"HEDGEROW_KERNELS={builds.build(target)}"]
    sealed = site.sealed(*environment)
    places = {Path.home(), Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/dev/shm"), Path.cwd(), tmp_path}
    assert writable(sealed, {*places, site.card.place}) == {site.card.place}
    with site.coordinator as coordinator, AgentProcess(site.config, prefix=sealed) as agent:
        coordinator.announce(QUICK)
        coordinator.wait_for("birth")
        for round_id in (1, 2):
            coordinator.offer(round_id, QUICK)
            _, update = coordinator.wait_for("update", round_id=round_id)
            coordinator.receipt(update, round_id)
            agent.wait_for(f"event=receipt round={round_id} verdict=accepted")
        running = status_of(site, sealed)
        agent.terminate()
        assert agent.wait() == 0
    assert running.returncode == 0, running.stderr
    assert "\nwritten to the card: " in running.stdout
    assert "\nmodel version 1, last round 2\noutbox: empty\n" in status_of(site, sealed).stdout
    complaints = [line for line in agent.lines if "Read-only" in line or "-lost" in line or "Traceback" in line]
    assert complaints == []
    told = json.loads((site.state / "status.json").read_bytes())["account"]["card"]
    assert 100_000 < told["total"] < 1.2 * site.card.written_bytes()
    assert (
        traffic.Ledger(Directory(site.state), config.load(site.config).budget.limits()).shown().card.total
        >= told["total"]
    )


def warmed(cache: Path) -> Path:
    """A cache of kernels as `edge-agent warm` leaves it; what is not found in it is compiled, which takes a minute."""
    folder = str(_native.SOURCES)
    made = cache / f"kernels_{hashlib.sha1(folder.encode()).hexdigest()}"  # as numba.core.caching names it
    made.mkdir(parents=True)
    for file in (_native.SOURCES / "__pycache__").glob("*.nb[ic]"):
        shutil.copy(file, made)
    return cache


def status_of(site: Site, before: list[str]) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-c", "from edge_agent.cli import main; main()", "status"]
    return subprocess.run([*command, "--config", site.config], capture_output=True, text=True, check=False)


def writable(before: list[str], places: set[Path]) -> set[Path]:
    """Those of `places` where a command behind `before` can make a file."""
    code = """
import sys, tempfile
for place in sys.argv[1:]:
    try:
        tempfile.TemporaryFile(dir=place).close()
        print(place)
    except OSError:
        pass
"""
    command = [*before, sys.executable, "-c", code, *map(str, places)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"needs unshare of util-linux: {error.strerror}")
    if done.returncode:
        pytest.skip(f"needs mount namespaces: {done.stderr.strip()[-200:]}")
    return {Path(line) for line in done.stdout.splitlines()}


def test_a_version_without_room_is_told_before_a_byte_of_it_is_fetched(site):
    with site.coordinator as coordinator, AgentProcess(site.config) as agent:
        coordinator.announce(QUICK)
        coordinator.wait_for("birth")
        ballast = fill(site.card.place, but_bytes=20_000)  # params.bin would fit, model.tflite would not
        coordinator.offer(1, QUICK)
        agent.wait_for(
            'event=handled what=filefailed .* why="no room for model.tflite of [0-9]+ bytes: free some space'
        )
        telemetry, _ = coordinator.wait_for("telemetry")
        assert telemetry.reason.startswith("no room for model.tflite of ")
        assert coordinator.wants == []
        ballast.unlink()
        coordinator.offer(2, QUICK)
        coordinator.wait_for("update", round_id=2)


def fill(place: Path, but_bytes: int) -> Path:
    """A file that leaves so many bytes free; its blocks are had in smaller and smaller steps."""
    path, size = place / "ballast", 0
    with path.open("wb") as file:
        for step in (1 << 24, 1 << 20, 1 << 16, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
        file.truncate(size - but_bytes)
        os.fsync(file.fileno())
    return path
