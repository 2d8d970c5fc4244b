"""What waiting costs: how long a fleet of fast and slow devices takes to learn, in buffered and in synchronous rounds.

    make bench-asynchrony                 table; draws docs/images/asynchrony.png
    make bench-asynchrony ARGS=--json     one JSON object: {machine, date, rows, targets}

100 devices hold MNIST's digits, labels dealt by Dirichlet(0.5); their speeds are log-normal, sigma 1. Time is virtual
(asynchrony_fleet.py), in trainings of the median device. A way reaches the target at the first version that, with the
next two, has it on average. Both ways send and publish as the product does unless it is told otherwise.

Buffered rounds are what the product's defaults make of them: K = 10, everyone takes part, updates weigh less by their
staleness. Synchronous rounds invite 1.3 times as many as they want and throw away what comes late; how many they want
and their deadline are searched, and what is compared is the best of all on these very seeds. Both take steps of the
product's default length. The last rows search that, too, for both: longer steps help the synchronous rounds more, and
the ratio of the two bests is a row of its own. The search stops a run that takes 1.5 times the best so far of its seed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import fleet_tasks
from benchmarks.asynchrony_fleet import Fleet, Way, small
from benchmarks.demo import machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.asynchrony_fleet import Point
    from benchmarks.fleet_tasks import Task

ROOT: Final = Path(__file__).parents[1]
PICTURE: Final = ROOT / "docs/images/asynchrony.png"
SEEDS: Final = (1, 2, 3)
TARGET: Final = 0.9
LASTING: Final = 3  # versions that have the target on average
BUFFERED: Final = Way("buffered", 10)
BUFFERS: Final = (5, 10, 20)
WANTED: Final = (76, 30, 10)
DEADLINES: Final = (0.5, 0.25, 1.0, 2.0, math.inf)
LONGER_STEPS: Final = (2.0, 4.0)


def main() -> None:
    """Search, measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    arguments = parser.parse_args()
    models, data = (Path(os.environ[name]) for name in ("FLEET_MODELS", "FLEET_DATA"))
    task = small(fleet_tasks.build("digits", models, data, ROOT / "firmware_sim/models"))
    found = measure(task, arguments.seeds)
    if arguments.json:
        print(json.dumps(found))
        return
    from benchmarks.asynchrony_plot import plot

    plot(found, PICTURE)
    print("\n".join(table(found)))


def measure(task: Task, seeds: Sequence[int]) -> dict[str, Any]:
    """All rows and the target's figure."""
    ours = search(task, seeds, [BUFFERED])[0]
    searched = search(task, seeds, _cohorts([1.0]))
    best = min(searched, key=_median)
    buffers = search(
        task, seeds, [Way("buffered", size, math.inf, rate) for rate in (1.0, *LONGER_STEPS) for size in BUFFERS]
    )
    longer = search(task, seeds, _cohorts(LONGER_STEPS))
    either = {
        "kind": "longer steps, too",
        "ratio": _ratio(min(buffers, key=_median), min([best, *longer], key=_median)),
    }
    until = 1.5 * _median(best)
    curves = [_curve(task, way, seed, until) for way in (BUFFERED, _way(best)) for seed in seeds]
    return {
        "machine": machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "devices": task.devices,
        "target_accuracy": TARGET,
        "rows": [ours, *searched, *buffers, *longer, either, *curves],
        "targets": {"virtual_time_to_target_vs_sync": _ratio(ours, best)},
    }


def search(task: Task, seeds: Sequence[int], ways: Iterable[Way]) -> list[dict[str, Any]]:
    """One row for each way; a run is given up when its seed has a much better one."""
    until = dict.fromkeys(seeds, math.inf)
    rows = []
    for way in ways:
        rows.append(_told(_row(task, way, seeds, until)))
        for seed, reached in zip(seeds, rows[-1]["reached"], strict=True):
            until[seed] = min(until[seed], math.inf if reached is None else reached * 1.5)
    return rows


def _cohorts(rates: Sequence[float]) -> list[Way]:
    return [Way("synchronous", *each) for each in itertools.product(WANTED, DEADLINES, rates)]


def _ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
    """The median over seeds of how much of their time ours takes; None unless every seed reached the target."""
    if None in ours["reached"] or None in theirs["reached"]:
        return None
    return round(statistics.median(a / b for a, b in zip(ours["reached"], theirs["reached"], strict=True)), 4)


def table(found: dict[str, Any]) -> list[str]:
    """For people."""
    lines = [f"{found['machine']}, {found['date']}", ""]
    lines.append(f"{'way':58} time to {found['target_accuracy']:.0%} at each seed   devices counted   staleness")
    rows = [row for row in found["rows"] if row["kind"] == "way"]
    for row in sorted(rows, key=_median)[:20]:
        times = " ".join("   -  " if each is None else f"{each:6.2f}" for each in row["reached"])
        counted = " ".join("  -" if each is None else f"{each:3}" for each in row["devices_counted"])
        lines.append(f"{row['name']:58} {times:24}   {counted:16} {row['staleness']:9.1f}")
    lines.append("")
    lines += [f"{row['kind']}: {row['ratio']}" for row in found["rows"] if "ratio" in row]
    lines += [f"{name:46} {value}" for name, value in found["targets"].items()]
    return lines


def time_to_target(points: Iterable[Point], until: float) -> tuple[float | None, list[Point]]:
    """When the target is reached for good, or None by `until`; and the versions up to there."""
    seen: list[Point] = []
    for point in points:
        seen.append(point)
        newest = seen[-LASTING:]
        if len(seen) >= LASTING and statistics.mean(each.accuracy for each in newest) >= TARGET:
            return newest[0].at, seen[: 1 - LASTING]
        if point.at > until:
            break
    return None, seen


def _row(task: Task, way: Way, seeds: Sequence[int], until: dict[int, float]) -> dict[str, Any]:
    reached: list[float | None] = []
    counted: list[int | None] = []
    stale: list[float] = []
    for seed in seeds:
        at, points = time_to_target(Fleet(task, seed).live(way), until[seed])
        reached.append(None if at is None else round(at, 3))
        counted.append(None if at is None else len({name for point in points for name in point.counted}))
        stale += [point.staleness for point in points[1:]]
    told = {"kind": "way", "name": _name(way), **way._asdict(), "reached": reached, "devices_counted": counted}
    told["deadline"] = None if math.isinf(way.deadline) else way.deadline
    return {**told, "staleness": round(statistics.mean(stale), 2) if stale else 0.0}


def _curve(task: Task, way: Way, seed: int, until: float) -> dict[str, Any]:
    points = list(itertools.takewhile(lambda point: point.at <= until, Fleet(task, seed).live(way)))
    line = {"at": [round(each.at, 3) for each in points], "accuracy": [round(each.accuracy, 4) for each in points]}
    return {"kind": "curve", "name": _name(way), "mode": way.mode, "seed": seed, **line}


def _name(way: Way) -> str:
    rate = "" if way.learning_rate == 1.0 else f", steps x {way.learning_rate:g}"
    if way.mode == "buffered":
        return f"buffered, K = {way.wanted}{rate}"
    deadline = "none" if math.isinf(way.deadline) else f"{way.deadline:g}"
    return f"synchronous, {way.wanted} wanted, deadline {deadline}{rate}"


def _way(row: dict[str, Any]) -> Way:
    deadline = math.inf if row["deadline"] is None else row["deadline"]
    return Way(row["mode"], row["wanted"], deadline, row["learning_rate"])


def _median(row: dict[str, Any]) -> float:
    return statistics.median(math.inf if each is None else each for each in row["reached"])


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
