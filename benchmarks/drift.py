"""What holds devices near their fleet: FedAvg, FedProx and SCAFFOLD, on data that are as unlike as they can be.

    python -m benchmarks.drift                  table
    python -m benchmarks.drift --json           one JSON object: {machine, date, rows}

100 devices hold MNIST's digits, labels dealt by Dirichlet(0.1), so that most of them know two or three; 10 take part in
a round, send 1 % of 17,802 parameters in whole steps, and 2 % of them change with a version (benchmarks/federation.py:
the product's own code, the plain mean). With more passes over its data a device goes further its own way. A way reaches
an accuracy at the first version that, with the next two, has it on average. Accuracies are means over the seeds, rounds
are medians.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks import fleet_tasks
from benchmarks.demo import machine
from benchmarks.federation import Options, run, sending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.fleet_tasks import Task

ROOT: Final = Path(__file__).parents[1]
SEEDS: Final = (1, 2, 3)
ALPHA: Final = 0.1
ROUNDS: Final = 50
KEEP_RATE: Final = 0.01
EPOCHS: Final = (5, 20)
TOLD: Final = (10, 25, 50)  # rounds
TARGETS: Final = (0.8, 0.9)
LASTING: Final = 3


class Way(NamedTuple):
    """What the plan asks for."""

    name: str
    proximal: float = 0.0
    scaffold: bool = False


WAYS: Final = (
    Way("FedAvg"),
    Way("FedProx 0.01", 0.01),
    Way("FedProx 0.1", 0.1),
    Way("FedProx 1", 1.0),
    Way("SCAFFOLD", scaffold=True),
)


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    arguments = parser.parse_args()
    models, data = (Path(os.environ[name]) for name in ("FLEET_MODELS", "FLEET_DATA"))
    task = replace(fleet_tasks.build("digits", models, data, ROOT / "firmware_sim/models"), alpha=ALPHA)
    rows = [row(task, way, epochs, arguments.seeds) for epochs in EPOCHS for way in WAYS]
    if arguments.json:
        print(json.dumps({"machine": machine(), "date": dt.datetime.now(dt.UTC).date().isoformat(), "rows": rows}))
        return
    print("\n".join(table(rows)))


def row(task: Task, way: Way, epochs: int, seeds: Sequence[int]) -> dict[str, Any]:
    """One way with so many passes: mean accuracies, median rounds to each target; None where half never get there."""
    taught = replace(task, learning=replace(task.learning, epochs=epochs))
    size = task.frame.suffix.num_params
    curves = []
    for seed in seeds:
        options = Options(
            sending(size, KEEP_RATE, 0), seed, ROUNDS + LASTING - 1, proximal=way.proximal, scaffold=way.scaffold
        )
        curves.append(run(taught, options).accuracy)
    accuracy = {str(at): statistics.mean(curve[at] for curve in curves) for at in TOLD}
    return {"way": way.name, "epochs": epochs, "accuracy": accuracy, "rounds_to": _rounds_to(curves)}


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows for a terminal."""
    told = [f"after {at}" for at in TOLD] + [f"to {target:g}" for target in TARGETS]
    lines = [f"{'':14} {'passes':>7} " + " ".join(f"{name:>9}" for name in told)]
    for each in rows:
        found = [f"{value:.3f}" for value in each["accuracy"].values()]
        found += ["never" if value is None else f"{value:g}" for value in each["rounds_to"].values()]
        lines.append(f"{each['way']:14} {each['epochs']:>7} " + " ".join(f"{value:>9}" for value in found))
    return lines


def _rounds_to(curves: Sequence[Sequence[float]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for target in TARGETS:
        reached = [_reached(curve, target) for curve in curves]
        middle = statistics.median_low(reached)
        found[f"{target:g}"] = None if middle > ROUNDS else middle
    return found


def _reached(curve: Sequence[float], target: float) -> int:
    """The first round from which on the accuracy is `target` on average; one more than there are, if none is."""
    means = (statistics.mean(curve[at : at + LASTING]) for at in range(ROUNDS + 1))
    return next((at for at, mean in enumerate(means) if mean >= target), ROUNDS + 1)


if __name__ == "__main__":
    main()
