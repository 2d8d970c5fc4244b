"""What lying devices do to a fleet that learns: rules of aggregation against attacks, a fifth of twenty devices lie.

    make bench-attacks                           table of the default rule; draws docs/images/attacks.png
    make bench-attacks ARGS=--json               one JSON object: {machine, date, rows, targets}, nothing else on stdout
    make bench-attacks ARGS="--rules --seeds 2"  the other rules, too, on one ground and one seed; more seeds
    make bench-attacks ARGS=--full               every rule on every ground, five seeds: a night

The default takes ten minutes of one processor. The fleets, and who says what, stand in attacks_fleet.py. FLEET_DATA
names the folder that holds mnist_test_writers; without it the rows of MNIST are one row with the reason. A *ground* is
whose digits are learned and how they are dealt: scikit-learn's digits evenly, by Dirichlet(0.5) and Dirichlet(0.1) of
their labels, MNIST's by who wrote them. A *lane* is how much of an update is sent: all of it, 1 % (as the product does
where nothing is said), 0.1 %.

Seeds begin at 101. The product's default rule was made on seeds below 21; nothing was ever chosen on those reported.
Where labels are dealt by Dirichlet(0.1) a cell has three times as many: there it matters most who lies.

A row is one cell: rule, lane, ground, attack. `accuracy` is the mean over seeds of the last three versions', on digits
that nobody holds; `lost_points` are hundredths against the honest fleet of the same rule, lane, ground and seeds, whose
twenty devices all teach; `half` is the accuracy in the middle of the run. Liars hold copies of what honest devices
have, as in the published tables, but for one more ground, outside of the target: there they hold what nobody else has,
and silence costs as much as a lie (see "nan"). A rule that ranks each parameter refuses the sparse lanes; its row there
says so.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks import attacks_fleet
from benchmarks.attacks_fleet import ATTACKS, BOOSTED, DEVICES, DISHONEST, KEEPS, NONE, SPLITS, Trial
from benchmarks.demo import machine
from broker.aggregate.rules import RULES as PRODUCT
from broker.config import Aggregate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.attacks_fleet import Ground

PICTURE: Final = Path(__file__).parents[1] / "docs/images/attacks.png"
FIRST_SEED: Final = 101
SEEDS: Final = 1
SEEDS_FULL: Final = 5
SEEDS_UNEVEN: Final = 3  # times as many where labels are dealt most unevenly
UNEVEN: Final = 0.1
DEFAULT_LANE: Final = "1 %"
DEFAULT: Final = Aggregate().rule
OTHERS: Final = (
    "fedavg", "norm-bound", "centered-clipping", "multi-krum", "geometric-median", "mixed-geometric-median", "median",
    "trimmed-mean", "mixed-trimmed-mean",
)  # fmt: skip
COMPARED: Final = ("digits", "Dirichlet 0.5")  # the ground on which the other rules are tried
TARGET: Final = "default_lane_worst_drop_points"


class Cell(NamedTuple):
    """One rule in one lane on one ground, under all attacks."""

    rule: str
    kept: str
    ground: Ground


def main() -> None:
    """Run, tell, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rules", action="store_true", help="the other rules, too")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", type=int, default=0, help=f"how many, from {FIRST_SEED}")
    arguments = parser.parse_args()
    began = time.process_time()
    count = arguments.seeds or (SEEDS_FULL if arguments.full else SEEDS)
    folder = Path(os.environ.get("FLEET_DATA", "")) / "mnist_test_writers"
    mnist = folder if folder.is_dir() else None
    chosen = cells(list(attacks_fleet.grounds(mnist)), others=arguments.rules, full=arguments.full)
    rows = [row for cell in chosen for row in measure(cell, (*ATTACKS, BOOSTED), seeds_of(cell, count, arguments.full))]
    if mnist is None:
        rows.append({"task": "mnist", "accuracy": None, "reason": "FLEET_DATA names no folder of mnist_test_writers"})
    found = {
        "machine": machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "processor_s": round(time.process_time() - began),
        "devices": DEVICES,
        "dishonest": DISHONEST,
        "rows": rows,
        "targets": targets(rows),
    }
    if arguments.json:
        print(json.dumps(found))
        return
    from benchmarks.attacks_plot import plot

    plot(found, PICTURE)
    print("\n".join(table(found)))


def cells(grounds: Sequence[Ground], *, others: bool, full: bool) -> Iterator[Cell]:
    """The default rule everywhere; the others on one ground, or everywhere."""
    for rule in (DEFAULT, *(OTHERS if others or full else ())):
        for ground in grounds:
            if full or rule == DEFAULT or (ground.task, ground.split) == COMPARED:
                yield from (Cell(rule, kept, ground) for kept in KEEPS if not ground.is_own or kept == DEFAULT_LANE)


def seeds_of(cell: Cell, count: int, full: bool) -> range:
    """Which fleets a cell is the mean of."""
    if cell.rule != DEFAULT and not full:
        count = 1
    return range(FIRST_SEED, FIRST_SEED + count * (SEEDS_UNEVEN if cell.ground.alpha == UNEVEN else 1))


def measure(cell: Cell, attacks: Sequence[str], seeds: Sequence[int], count: int = 0) -> list[dict[str, Any]]:
    """The honest fleet and each attack; `count` rounds, at 0 as many as the lane has."""
    rule, kept, ground = cell
    head = {"rule": rule, "kept": kept, "task": ground.task, "split": ground.split, "is_own": ground.is_own}
    if PRODUCT[rule].needs_dense and KEEPS[kept] < 1.0:
        return [_told(head | {"attack": NONE, "accuracy": None, "reason": "refuses updates that lack parameters"})]
    rows: list[dict[str, Any]] = []
    for attack in (NONE, *attacks):
        runs = [attacks_fleet.run(Trial(ground, rule, kept, attack, seed), count) for seed in seeds]
        scores = [one.accuracy for one in runs]
        row = head | {
            "attack": attack, "accuracy": statistics.mean(scores), "scores": [round(score, 4) for score in scores],
            "half": statistics.mean(one.curve[len(one.curve) // 2 - 1] for one in runs), "rounds": len(runs[0].curve),
            "seeds": list(seeds), "refused": sum(sum(one.refused.values()) for one in runs),
        }  # fmt: skip
        lost = (rows[0]["accuracy"] if rows else statistics.mean(scores)) - statistics.mean(scores)
        rows.append(_told(row | {"lost_points": 100.0 * lost}))
    return rows


def targets(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The most that any attack of ATTACKS costs a fleet with the default rule, in any lane and on any ground.

    None unless every ground was measured. What the attacker who has read the rule does is a row of its own.
    """
    mine = [row for row in rows if row.get("rule") == DEFAULT and row["attack"] in ATTACKS and not row["is_own"]]
    whole = len(mine) == len(KEEPS) * len(SPLITS) * len(ATTACKS)  # a split of the digits fewer, and MNIST
    return {TARGET: round(max(row["lost_points"] for row in mine), 2) if whole else None}


def table(found: dict[str, Any]) -> list[str]:
    """For people: a line for each cell, points lost by attack."""
    rows = [row for row in found["rows"] if "rule" in row]
    names = (*ATTACKS, BOOSTED)
    lines = [
        f"{found['machine']}, {found['date']}; points lost",
        "",
        f"| rule | ground | sent | seeds | honest | {' | '.join(names)} |",
        f"|{'---|' * (len(names) + 5)}",
    ]
    for honest in (row for row in rows if row["attack"] == NONE):
        head = [honest["rule"], f"{honest['task']}, {honest['split']}", honest["kept"]]
        if honest["accuracy"] is None:
            lines.append(f"| {' | '.join([*head, honest['reason']])} |")
            continue
        lost = {row["attack"]: tenths(row["lost_points"]) for row in rows if _same(row, honest)}
        figures = [str(len(honest["seeds"])), f"{honest['accuracy']:.3f}", *(lost[name] for name in names)]
        lines.append(f"| {' | '.join([*head, *figures])} |")
    missing = [f"{row['task']}: {row['reason']}" for row in found["rows"] if "rule" not in row]
    return [*lines, *missing, "", *(f"{name} {value}" for name, value in found["targets"].items())]


def tenths(points: float) -> str:
    """A figure with one digit, and no -0.0."""
    return f"{round(points, 1) + 0.0:.1f}"


def _same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Are two rows of one cell?"""
    return all(row[key] == other[key] for key in ("rule", "kept", "task", "split"))


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
