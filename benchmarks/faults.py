"""What faults cost: how much finished work reaches the model, and how many seconds later, ours beside Flower's.

    make bench-faults                       one table
    make bench-faults ARGS=--json           one JSON object: {machine, date, rows, targets}
    make bench-faults ARGS=--ours-only      without Flower

Real processes on this machine, three devices, three rounds; each line is one run of its own, fault by fault, first
ours, then Flower's. The faults stand in faults_scripts.py and are the same scripts for both; whose word counts stands
in faults_ours.py and faults_flower.py. About 20 minutes; progress goes to stderr.

    finished    trainings that a device had finished, and written down where it says so
    counted     those of them that are in the model when the last round has closed
    at_stake    of the finished: those of the round that was struck, up to the moment when the fault was over
    seconds     from the request of the first round to the last version that holds finished work
    extra_s     the same, minus that of the undisturbed run of the same side
    rate        counted / finished; what the model holds twice is taken off

Targets: the rate of ours under each fault; null where our run failed, with the reason in its row.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from benchmarks import faults_flower, faults_ours
from benchmarks.demo import machine
from benchmarks.environments import NotToBeHadError
from benchmarks.faults_scripts import SCRIPTS
from broker.mqtt_server import MqttServerError
from firmware_sim.fleet import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.faults_ours import Result

OURS: Final = "hedgerow"
UNDISTURBED: Final = "undisturbed"
SEED: Final = 1
NO_MQTT_SERVER: Final = "has no MQTT server: SuperLink is both servers, see coordinator_kill"
HEAD: Final = ("fault", "side", "finished", "counted", "rate", "at stake", "of it counted", "seconds", "extra s", "")


def main() -> None:
    """Run every fault on both sides, print the table or the object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ours-only", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for fault in SCRIPTS:
        rows.append(_row(OURS, fault, partial(faults_ours.run, SCRIPTS[fault], SEED, _tell)))
        if not arguments.ours_only:
            rows.append(_flower(fault))
    rows = with_extra(rows)
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    found = {"machine": machine(), "date": today, "rows": rows, "targets": targets(rows)}
    print(json.dumps(found) if arguments.json else "\n".join(table(found)))


def targets(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The rate of ours under each fault; None where nothing was measured."""
    ours = {row["fault"]: row.get("rate") for row in rows if row["side"] == OURS}
    return {f"{fault}_survives": ours.get(fault) for fault in SCRIPTS if fault != UNDISTURBED}


def with_extra(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `extra_s`, where both the run and the undisturbed one of its side have seconds."""
    calm = {row["side"]: row["seconds"] for row in rows if row["fault"] == UNDISTURBED and "seconds" in row}
    return [
        {**row, "extra_s": row["seconds"] - calm[row["side"]]} if "seconds" in row and row["side"] in calm else row
        for row in rows
    ]


def table(found: dict[str, Any]) -> list[str]:
    """The rows as a Markdown table, and the targets."""
    lines = [f"{found['machine']}, {found['date']}", "", _cells(HEAD), "|" + "---|" * len(HEAD)]
    lines += [_cells(_texts(row)) for row in found["rows"]]
    shown = ((name, "not measured" if value is None else f"{value:.3f}") for name, value in found["targets"].items())
    return [*lines, "", *(f"{name} {value}" for name, value in shown)]


def _flower(fault: str) -> dict[str, Any]:
    if fault == "mqtt_server_kill":
        return {"side": faults_flower.NAME, "fault": fault, "reason": NO_MQTT_SERVER}
    return _row(faults_flower.NAME, fault, partial(faults_flower.run, SCRIPTS[fault]))


def _row(side: str, fault: str, run: Callable[[], Result]) -> dict[str, Any]:
    _tell(f"{side}, {fault} ...")
    row: dict[str, Any] = {"side": side, "fault": fault}
    try:
        result = run()
    except (NotToBeHadError, faults_flower.FlowerError, FleetError, MqttServerError) as error:
        return {**row, "reason": str(error)}
    once = result.counted - result.double_counted
    rate = once / result.finished if result.finished else None
    row = {**row, **dataclasses.asdict(result), "rate": rate}
    _tell(_cells(_texts(row)))
    return row


def _texts(row: dict[str, Any]) -> list[str]:
    head = [row["fault"], row["side"]]
    if "reason" in row:
        return [*head, *[""] * (len(HEAD) - 3), row["reason"]]
    rate = "" if row["rate"] is None else f"{row['rate']:.3f}"
    at_stake = [str(row[name]) if row["at_stake"] else "" for name in ("at_stake", "at_stake_counted")]
    extra = f"{row['extra_s']:+.0f}" if "extra_s" in row else ""
    counts = [str(row["finished"]), str(row["counted"]), rate, *at_stake]
    return [*head, *counts, f"{row['seconds']:.0f}", extra, row["note"]]


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
