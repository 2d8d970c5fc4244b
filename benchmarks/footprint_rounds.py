"""Rounds that learn next to nothing: what a round costs besides, and in how little memory two of them can be lived.

One step of one batch of 16 digits, two devices, everything by MQTT with TLS; rounds wait in the store, so that one
begins when another has closed. A round is the time from one version to the next: offer, training child (its start,
libraries and model in it), update, receipt, sum, manifest, patch. `child_s` is what the children took of it, as their
agents saw it, so `round_s - child_s` is the protocol's own.

The memory is that of a cgroup with all processes of one agent, page cache and all; its libraries are a copy of their
own, dropped from the cache before each start, so that no other process pays for them. Python itself is shared.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from benchmarks.codec_tasks import large_digits_model
from benchmarks.environments import NotToBeHadError
from benchmarks.footprint_fleet import Farm, Model
from firmware_sim import data
from firmware_sim.fleet import FleetError
from firmware_sim.lines import Follower
from tests.engine.tiny_tflite import Array, Node
from tests.engine.tiny_tflite import model as written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROUNDS: Final = 11  # the first brings the model, and is left out
LIMITS_MB: Final = range(40, 289, 8)
ROUND_TIMEOUT_S: Final = 90.0
V1: Final = Path("/sys/fs/cgroup/memory")
V2: Final = Path("/sys/fs/cgroup")
GROUP: Final = f"hedgerow-footprint-{os.getpid()}"


@dataclass(frozen=True)
class Rounds:
    """Medians, in seconds, over all rounds but the first."""

    round_s: float
    child_s: float
    child_cpu_s: float

    @property
    def protocol_s(self) -> float:
        """What is no training child."""
        return self.round_s - self.child_s


def small() -> Model:
    """1,290 parameters: the last layer of the digits."""
    return Model("digits", (Path(data.__file__).parent / "models/digits.tflite").read_bytes(), "last-1")


def large() -> Model:
    """1,001,877 parameters, all of them, float32, in three dense layers: next to nothing is computed with them."""
    return Model("large", _dense(64, 970, 957, 10), "full")


def convolution() -> Model:
    """979,306 parameters, all of them, float32, behind two convolutions, whose activations take memory as well."""
    return Model("convolution", large_digits_model(), "full")


def overhead(directory: Path, tree: Path, model: Model) -> Rounds:
    """Let two devices live ROUNDS rounds. Raises FleetError, MqttServerError."""
    with Farm(directory, tree, model, devices=2) as farm:
        for device in farm.site.devices:
            farm.start(device)
        versions = farm.rounds(ROUNDS, ROUNDS * ROUND_TIMEOUT_S)
        logs = [_children(farm.site.log(device)) for device in farm.site.devices]
    times = [row.created_unix_s for row in versions]
    slower = [max(pair) for pair in zip(*([float(line["wall_s"]) for line in log] for log in logs), strict=False)]
    cpu = [float(line["cpu_s"]) for log in logs for line in log[1:]]
    periods = [after - before for before, after in pairwise(times)]
    return Rounds(statistics.median(periods), statistics.median(slower[1:]), statistics.median(cpu))


class Smallest(NamedTuple):
    """A limit that is enough, and what became of the next smaller one."""

    limit_mb: int
    why: str


def smallest_cgroup_mb(directory: Path, tree: Path, model: Model) -> Smallest:
    """The smallest of LIMITS_MB in which an agent finishes two rounds of the model. Raises NotToBeHadError."""
    own = directory / "tree"
    shutil.copytree(tree, own)
    place = directory / "fleet"
    place.mkdir()
    with Farm(place, own, model) as farm:
        return smallest(LIMITS_MB, lambda limit_mb: _shortage(farm, own, limit_mb))


def smallest(limits_mb: Sequence[int], shortage: Callable[[int], str]) -> Smallest:
    """Halve the limits until one is enough and the next smaller is not. Raises NotToBeHadError if none is enough."""
    low, high, why = 0, len(limits_mb), ""
    while low < high:
        middle = (low + high) // 2
        if found := shortage(limits_mb[middle]):
            low, why = middle + 1, found
        else:
            high = middle
    if low == len(limits_mb):
        raise NotToBeHadError(f"two rounds did not fit into {limits_mb[-1]} MB: {why}")
    return Smallest(limits_mb[low], why)


def _shortage(farm: Farm, tree: Path, limit_mb: int) -> str:
    """Why two rounds do not close with an agent in so much memory; empty if they do. It is gone afterwards."""
    (device,) = farm.site.devices
    with cgroup(limit_mb) as before:
        evict(tree)
        try:
            farm.start(device, before=before)
            farm.rounds(2, ROUND_TIMEOUT_S)
        except FleetError as error:
            return f"{limit_mb} MB: {str(error).splitlines()[0][:200]}"
        finally:
            if device in farm.agents:
                farm.agents[device].kill()
    return ""


@contextlib.contextmanager
def cgroup(limit_mb: int) -> Iterator[list[str]]:
    """A memory cgroup, of either version; what stands before a command that is to run in it.

    Raises NotToBeHadError: this machine has none that may be made. RLIMIT_DATA would be something else: it counts what
    is asked for and not what is used, no page cache, and each process apart.
    """
    group, names = _place()
    limit = str(limit_mb * 1_000_000)
    try:
        group.mkdir()
        (group / names[0]).write_text(limit)
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        raise NotToBeHadError(f"no memory cgroup can be made in {group.parent}: {error.strerror}") from error
    with contextlib.suppress(OSError):  # a kernel that does not count swap
        (group / names[1]).write_text(limit if names[1].startswith("memory.memsw") else "0")
    try:
        yield ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
    finally:
        _remove(group)


def _place() -> tuple[Path, tuple[str, str]]:
    with contextlib.suppress(OSError):
        if "memory" in (V2 / "cgroup.subtree_control").read_text("ascii").split():
            return V2 / GROUP, ("memory.max", "memory.swap.max")
    return V1 / GROUP, ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")


def _remove(group: Path) -> None:
    """Its processes are told to end, but may take a moment."""
    until = time.monotonic() + 10
    while group.exists() and time.monotonic() < until:
        with contextlib.suppress(OSError):
            group.rmdir()
        time.sleep(0.05)


def evict(tree: Path) -> None:
    """Drop the files below `tree` from the page cache, as far as no process maps them (posix_fadvise(2))."""
    for path in tree.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _dense(*sizes: int) -> bytes:
    """A float32 `.tflite` for windows [8, 8, 1] with layers of these sizes, RELU between them; all parameters zero."""
    tensors = [Array((1, 8, 8, 1), "float32"), Array((2,), "int32", data=np.array([-1, sizes[0]], np.int32))]
    tensors.append(Array((1, sizes[0]), "float32"))
    nodes = [Node("RESHAPE", (0, 1), (2,))]
    for entering, leaving in pairwise(sizes):
        last = len(tensors) - 1
        weights, bias = np.zeros((leaving, entering), np.float32), np.zeros(leaving, np.float32)
        tensors += [Array(each.shape, "float32", data=each) for each in (weights, bias)]
        tensors.append(Array((1, leaving), "float32"))
        act = "NONE" if leaving == sizes[-1] else "RELU"
        nodes.append(Node("FULLY_CONNECTED", (last, last + 1, last + 2), (last + 3,), act))
    return written(tensors, nodes, [0], [len(tensors) - 1])


def _children(log: Path) -> list[dict[str, str]]:
    return [line for line in Follower(log).new() if line.get("event") == "trainer" and line.get("ok") == "1"]
