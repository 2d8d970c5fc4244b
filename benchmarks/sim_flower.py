"""Flower's simulator as a peer: client-rounds a second and memory of the whole process tree, training nothing.

    python -m benchmarks.sim_flower           one JSON array, a row for each number of devices

The simulator runs in an environment of its own with Ray on two processors, everyone in every round, 10,000 parameters.
`measure` gives one row; a row with a `reason` has no figures. Figures of one round are medians without the first, in
which Ray starts its actors; `start_s` is all that is no round, and Ray's start.

    client_rounds_per_s       devices / seconds of a round
    client_rounds_per_cpu_s   all client-rounds / processor seconds of the tree, start included
    peak_rss_mb               the largest sum of resident memory of all processes of the tree, sampled; pages that
                              they share count in each
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.environments import PEERS, NotToBeHadError, environment
from firmware_sim.processes import rss_bytes

PACKAGES: Final = ("flwr[simulation]==1.41.0",)
NAME: Final = "Flower 1.41, Ray"
PARAMS: Final = 10_000
CASES: Final = ((100, 20), (1000, 3))  # devices, rounds
TIMEOUT_S: Final = 180.0
SAMPLE_S: Final = 0.25
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure every case and print the rows."""
    print(json.dumps([measure(devices, rounds) for devices, rounds in CASES]))


def measure(devices: int, rounds: int) -> dict[str, Any]:
    """One row: what so many rounds of so many devices take; or the reason why it could not be measured."""
    row: dict[str, Any] = {"simulator": NAME, "devices": devices, "rounds": rounds, "params": PARAMS}
    try:
        python = environment("flower-simulation", PACKAGES)
    except NotToBeHadError as error:
        return {**row, "reason": str(error)}
    command = [python, str(PEERS / "flower_simulation.py"), str(devices), str(rounds), str(PARAMS)]
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0"},
    )  # fmt: skip
    tree = _watch(process, began + TIMEOUT_S)
    wall_s = time.monotonic() - began
    answer = process.communicate()[0].strip().splitlines() if process.returncode == 0 else []
    if not answer:
        why = (
            f"took longer than {TIMEOUT_S:.0f} s" if wall_s >= TIMEOUT_S else f"ended with status {process.returncode}"
        )
        return {**row, "wall_s": wall_s, "peak_rss_mb": tree.peak_rss_bytes / 1e6, "reason": why}
    return {**row, **figures(json.loads(answer[-1])["round_s"], devices, wall_s, tree.cpu_s), **tree.figures()}


def figures(round_s: list[float], devices: int, wall_s: float, cpu_s: float) -> dict[str, float]:
    """What follows from the seconds of the rounds, the first of which does not count."""
    a_round_s = statistics.median(round_s[1:])
    return {
        "wall_s": wall_s,
        "start_s": wall_s - a_round_s * len(round_s),
        "client_rounds_per_s": devices / a_round_s,
        "client_rounds_per_cpu_s": devices * len(round_s) / cpu_s,
    }


class Tree:
    """All processes of one session of the system, as often as one looks."""

    def __init__(self, session: int) -> None:
        self.peak_rss_bytes = 0
        self._session = session
        self._cpu_s: dict[int, float] = {}

    @property
    def cpu_s(self) -> float:
        """User and system seconds, each process as it was last seen."""
        return sum(self._cpu_s.values())

    def figures(self) -> dict[str, float]:
        """For the row."""
        return {"cpu_s": self.cpu_s, "peak_rss_mb": self.peak_rss_bytes / 1e6}

    def look(self) -> None:
        """Read /proc (proc(5), stat: 6 is the session, 14 and 15 are ticks)."""
        total = 0
        for pid, fields in self._members():
            self._cpu_s[pid] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
            total += rss_bytes(pid)
        self.peak_rss_bytes = max(self.peak_rss_bytes, total)

    def kill(self) -> None:
        """SIGKILL to what is left."""
        for pid, _ in self._members():
            os.kill(pid, signal.SIGKILL)

    def _members(self) -> list[tuple[int, list[str]]]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                fields = (process / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self._session:
                found.append((int(process.name), fields))
        return found


def _watch(process: subprocess.Popen[str], until: float) -> Tree:
    """Sample until it ends, or its time is over; nothing of it is left then."""
    tree = Tree(process.pid)
    while process.poll() is None and time.monotonic() < until:
        tree.look()
        time.sleep(SAMPLE_S)
    tree.kill()
    process.wait()
    return tree


if __name__ == "__main__":
    main()
