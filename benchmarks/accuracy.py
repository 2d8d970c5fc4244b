"""Does a fleet that sends little learn as much, and for how many bytes? Dense against 1 % and 0.1 % of an update.

    make bench-accuracy                     tables
    make bench-accuracy ARGS=--json         one JSON object: {machine, date, rows, targets}
    make bench-accuracy ARGS="--plot FILE"  a picture of it beside that
    ARGS="--tasks writers,digits --seeds 2 --modes 'dense;0.1 %'"   a part; targets that need more are null

FLEET_MODELS names the folder that holds mlperf_tiny/, FLEET_DATA that of cifar10_3k, mnist_test_writers and
wisdm51_raw_part1. The fleets stand in fleet_tasks.py: digits, MNIST by writer, WISDM by person, ResNet-8 on CIFAR-10.
In each round ten devices train; what they leave out of an update they owe (error feedback). Modes, and how long the
coordinator's steps are in each, stand in accuracy_runs.py. One thread, an hour and a half; progress goes to stderr.

Rows of kind `accuracy`, one for each task and mode, all modes after equally many rounds, five seeds:

    accuracy, spread     mean and standard deviation over seeds of the accuracy at the end, which is the mean of a run's
                         last three scores (one every five rounds) on what nobody trains on
    points_lost          100 * (accuracy of `dense`, every step of every parameter, - accuracy)
    bytes_a_round        of a device in one round, as sealed: update_up, control_up (birth, wants, PUBACKs), model_down
                         (patch, or parameters whole), control_down (state, plan, manifest, offer, receipt, PUBACKs)

Rows of kind `bytes`, one for each mode and given accuracy of the two tasks with 100 devices (accuracy_bytes.py):

    rounds               when each seed's run had the accuracy: three scores in a row have it as their mean
    up, down, base       bytes of a device until then, mean over all devices and seeds; `base` is the base file, once
    uplink_vs_flower     up over that of Flower's dense wire at the dense fleet's rounds
    total_vs_flower      (up + down + base) over Flower's both ways; installed_vs_flower without the base file

Targets:

    points_lost_1pct_max, points_lost_01pct_max   the largest points_lost over the four tasks and all bit widths (exact,
                                                  1, 4, 8) at 1 % and at 0.1 %
    uplink_bytes_to_accuracy_vs_flower, total_bytes_to_accuracy_vs_flower
                                                  of `writers` at 0.95: the mode with the fewest bytes in all
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import accuracy_bytes, accuracy_runs, fleet_tasks
from benchmarks.accuracy_runs import DENSE, KEEPS, MODES
from benchmarks.demo import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.accuracy_runs import Measured, Mode

SHIPPED: Final = Path(__file__).parents[1] / "firmware_sim/models"
TASKS: Final = ("digits", "writers", "wisdm", "resnet8")
SEEDS: Final = 5
LOST: Final = {"1 %": "points_lost_1pct_max", "0.1 %": "points_lost_01pct_max"}


def main() -> None:
    """Run, tell, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS), help="of " + ", ".join(fleet_tasks.NAMES))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many, from 1")
    parser.add_argument("--modes", default="", help="beginnings of modes' names, with ; between")
    arguments = parser.parse_args()
    began = time.process_time()
    seeds = range(1, arguments.seeds + 1)
    modes = [mode for mode in MODES if mode.name.startswith(tuple(arguments.modes.split(";")))]
    rows = run(arguments.tasks.split(","), modes, seeds)
    found = {
        "machine": machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "processor_s": round(time.process_time() - began),
        "seeds": list(seeds),
        "rows": rows,
        "targets": targets(rows),
    }
    if arguments.plot:
        from benchmarks.accuracy_plot import plot

        plot(found, arguments.plot)
    print(json.dumps(found) if arguments.json else "\n".join(table(found)))


def run(names: Sequence[str], modes: Sequence[Mode], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All rows of the named tasks, in these modes."""
    models, data = _folder("FLEET_MODELS", "mlperf_tiny"), _folder("FLEET_DATA", "cifar10_3k")
    rows: list[dict[str, Any]] = []
    for name in names:
        task = fleet_tasks.build(name, models, data, SHIPPED)
        measured: list[Measured] = []
        for mode in modes:
            measured.append(accuracy_runs.measure(task, mode, seeds, _tell))
            dense = measured[0] if measured[0].mode.kept == DENSE else None
            rows.append({"kind": "accuracy"} | accuracy_runs.row(measured[-1], dense))
            _tell(_accuracy_line(rows[-1]))
        rows += [{"kind": "bytes"} | one for one in accuracy_bytes.rows(measured)]
    return rows


def targets(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The four figures; None for one whose rows were not all measured."""
    accuracies = [row for row in rows if row["kind"] == "accuracy"]
    found: dict[str, float | None] = {}
    for kept, name in LOST.items():
        mine = [row for row in accuracies if row["kept"] == kept and row["task"] in TASKS]
        whole = len(mine) == len(TASKS) * sum(mode.kept == kept for mode in MODES)
        lost = [row["points_lost"] for row in mine]
        found[name] = max(lost) if whole and None not in lost else None
    best = accuracy_bytes.headline([row for row in rows if row["kind"] == "bytes"])
    for way in ("uplink", "total"):
        found[f"{way}_bytes_to_accuracy_vs_flower"] = best and best[f"{way}_vs_flower"]
    return found


def table(found: dict[str, Any]) -> list[str]:
    """The rows as Markdown tables, and the targets."""
    lines = [
        f"{found['machine']}, {found['date']}, {found['processor_s']} s of one processor, seeds {found['seeds']}",
        "",
        "| fleet | rounds | mode | accuracy | points lost | an update | all up | all down |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_accuracy_line(row) for row in found["rows"] if row["kind"] == "accuracy"]
    lines += [
        "",
        "| fleet | accuracy | mode | rounds | a device up | down | base file | up / Flower | all | all but base |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_bytes_line(row) for row in found["rows"] if row["kind"] == "bytes"]
    return [*lines, "", *(f"{name} {value}" for name, value in found["targets"].items())]


def _accuracy_line(row: dict[str, Any]) -> str:
    spent = row["bytes_a_round"]
    lost = "" if row["points_lost"] is None or row["kept"] not in KEEPS else f"{row['points_lost']:.2f}"
    up, down = spent["update_up"] + spent["control_up"], spent["model_down"] + spent["control_down"]
    return _row(
        row["task"], str(row["rounds"]), row["mode"], f"{row['accuracy']:.4f} ± {row['spread']:.4f}", lost,
        f"{spent['update_up']:.0f} B", f"{up:.0f} B", f"{down:.0f} B",
    )  # fmt: skip


def _bytes_line(row: dict[str, Any]) -> str:
    head = (row["task"], f"{row['given']:.2f}", row["mode"])
    if row["rounds"] is None:
        return _row(*head, "not in every run", *[""] * 6)
    base = "" if row["base"] is None else f"{row['base']:,.0f} B"
    middle = str(sorted(row["rounds"])[len(row["rounds"]) // 2])
    ratios = [f"{row[f'{what}_vs_flower']:.4f}" for what in ("uplink", "total", "installed")]
    return _row(*head, middle, f"{row['up']:,.0f} B", f"{row['down']:,.0f} B", base, *ratios)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _folder(variable: str, content: str) -> Path:
    path = Path(os.environ.get(variable, ""))
    if not (path / content).is_dir():
        sys.exit(
            f"{variable} names no folder that holds {content}/; set it, for instance {variable}=/data make "
            "bench-accuracy"
        )
    return path


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
