"""What the agent costs a device: disk, memory, idle bytes, seconds a round, wear of the card. Targets: `footprint`.

    make bench-footprint                     one table
    make bench-footprint ARGS=--json         one JSON object: {machine, date, rows, targets}
    make bench-footprint ARGS=--peers        and Flower's SuperNode on this machine, in an environment of its own

Real processes: mosquitto with TLS, `broker serve`, and `edge-agent run` from what pip installs for `[agent]`, kernels
built ahead of time, no other library. About six minutes, most of it one whole interval of telemetry during which an
idle device is watched while the rest is measured beside it; the first run makes the kernels. Progress goes to stderr.

How each figure is measured stands in footprint_disk.py (installed, flash), footprint_idle.py (idle, death),
footprint_rounds.py (rounds, cgroup), footprint_watch.py (predicting) and footprint_flower.py (SuperNode). MB are 10^6
bytes. What cannot be measured here is null, with the reason in its row. A loop device and a cgroup take root.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import footprint_disk as disk
from benchmarks import footprint_flower, footprint_rounds
from benchmarks.demo import machine
from benchmarks.environments import NotToBeHadError
from benchmarks.footprint_fleet import Farm
from benchmarks.footprint_idle import Vigil, death_seen_s
from benchmarks.footprint_watch import predicting_mb
from benchmarks.gate import Gate
from broker.mqtt_server import MqttServerError
from edge_agent.config import Telemetry
from firmware_sim.fleet import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.footprint_fleet import Model

OURS: Final = "hedgerow"
TARGETS: Final = (
    "installed_mb_py311",
    "distributions_py311",
    "installed_mb_py313",
    "idle_rss_mb",
    "predicting_pss_mb",
    "smallest_cgroup_mb",
    "idle_tcp_bytes_per_min_tls",
    "death_seen_s",
    "round_overhead_s_1m",
    "flash_bytes_per_1kb_commit",
)
EXPECTED: Final = (NotToBeHadError, FleetError, MqttServerError, OSError)
HEAD: Final = ("figure", "side", "measured", "")


class Rows:
    """What is measured, one row a figure: {figure, side, value} and a note, or the reason why there is no value."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def add(self, figures: Mapping[str, float | None], note: str = "", side: str = OURS) -> None:
        """Rows of figures that were measured together."""
        for figure, value in figures.items():
            self.all.append({"figure": figure, "side": side, "value": value, "note": note})
            _tell(_cells(_texts(self.all[-1])))

    def measure(self, figures: Sequence[str], run: Callable[[], None], side: str = OURS) -> None:
        """Let `run` add rows; where it cannot, each of the figures gets its reason."""
        _tell(f"{side}: {', '.join(figures)} ...")
        try:
            run()
        except EXPECTED as error:
            self.all += [{"figure": each, "side": side, "value": None, "reason": str(error)} for each in figures]
            _tell(str(error))


def main() -> None:
    """Measure everything, print the table or the object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    rows = Rows()
    with disk.scratch() as name:
        measure(rows, Path(name))
    if arguments.peers:
        with disk.scratch() as name:
            run = partial(footprint_flower.measure, Path(name), partial(rows.add, side=footprint_flower.NAME))
            rows.measure(footprint_flower.FIGURES, run, footprint_flower.NAME)
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    found = {"machine": machine(), "date": today, "rows": rows.all, "targets": targets(rows.all)}
    print(json.dumps(found) if arguments.json else "\n".join(table(found)))


def measure(rows: Rows, directory: Path) -> None:
    """Ours, all of it; without a tree from pip nothing is measured but the card."""
    rows.measure(["flash_bytes_per_1kb_commit"], partial(_flash, rows, _place(directory, "flash")))
    trees: dict[str, Path] = {}
    rows.measure(["installed_mb_py311", "distributions_py311"], partial(_install, rows, directory, "3.11", trees))
    if disk.HERE not in trees:
        rows.measure(["installed_mb"], partial(_install, rows, directory, disk.HERE, trees))
    if disk.HERE in trees:
        _with_agent(rows, directory, trees)
    if "3.13" not in trees:
        rows.measure(["installed_mb_py313", "distributions_py313"], partial(_install, rows, directory, "3.13", trees))


def targets(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The figures of ours that have a target; None where nothing was measured."""
    ours = {row["figure"]: row["value"] for row in rows if row["side"] == OURS}
    return {name: ours.get(name) for name in TARGETS}


def table(found: dict[str, Any]) -> list[str]:
    """The rows as a Markdown table."""
    lines = [f"{found['machine']}, {found['date']}", "", _cells(HEAD), "|" + "---|" * len(HEAD)]
    return [*lines, *(_cells(_texts(row)) for row in found["rows"])]


def _with_agent(rows: Rows, directory: Path, trees: dict[str, Path]) -> None:
    """What takes a running agent. An idle one is watched meanwhile; the death comes last, and costs no extra time."""
    tree = trees[disk.HERE]
    with ExitStack() as stack:
        idle = ["idle_rss_mb", "idle_pss_mb", "idle_tcp_bytes_per_min_tls", "flash_bytes_per_day"]
        watched: list[Vigil] = []
        rows.measure(idle, partial(_begin_idle, stack, _place(directory, "idle"), tree, watched))
        rows.measure(["predicting_pss_mb"], partial(_predicting, rows, _place(directory, "predicting"), tree))
        for name, model in (("1k", footprint_rounds.small()), ("1m", footprint_rounds.large())):
            run = partial(_rounds, rows, _place(directory, name), tree, name, model)
            rows.measure([f"round_overhead_s_{name}"], run)
        for figure, model in (
            ("smallest_cgroup_mb", footprint_rounds.large()),
            ("smallest_cgroup_mb_convolution", footprint_rounds.convolution()),
        ):
            rows.measure([figure], partial(_cgroup, rows, _place(directory, figure), tree, figure, model))
        rows.measure(["installed_mb_py313", "distributions_py313"], partial(_install, rows, directory, "3.13", trees))
        rows.measure(["death_seen_s"], partial(_death, rows, _place(directory, "death"), tree))
        if watched:
            rows.measure(idle, partial(_end_idle, rows, watched[0]))


def _install(rows: Rows, directory: Path, python: str, trees: dict[str, Path]) -> None:
    if python in trees:
        return
    place = _place(directory, f"wheel-{python}")
    found = disk.install(disk.wheel(place), python, place / "tree")
    trees[python] = found.tree
    tag = f"py{python.replace('.', '')}"
    note = ", ".join(filter(None, (f"{found.bytecode_bytes / 1e6:.1f} MB of it bytecode", found.note)))
    rows.add({f"installed_mb_{tag}": found.installed_bytes / 1e6}, note)
    rows.add({f"distributions_{tag}": found.distributions})


def _flash(rows: Rows, directory: Path) -> None:
    rows.add({"flash_bytes_per_1kb_commit": disk.commit_bytes(directory)}, "ext4, both slots preallocated")


def _begin_idle(stack: ExitStack, directory: Path, tree: Path, watched: list[Vigil]) -> None:
    card = None
    with contextlib.suppress(NotToBeHadError):
        card = stack.enter_context(disk.card(directory))
    fleet = _place(directory, "fleet")
    farm = stack.enter_context(Farm(fleet, tree, footprint_rounds.small()))
    gate = _gate(stack, farm.port)
    (device,) = farm.site.devices
    agent = farm.start(device, port=gate.port, state=card and card.place / "state")
    watched.append(Vigil(agent, gate, card, Telemetry().every_s))


def _end_idle(rows: Rows, vigil: Vigil) -> None:
    _tell("waiting for the idle device ...")
    found = vigil.idle()
    rows.add({"idle_rss_mb": found.rss_mb, "idle_pss_mb": found.pss_mb})
    note = f"{found.tcp_bytes} bytes in {found.seconds:.0f} s, both ways"
    rows.add({"idle_tcp_bytes_per_min_tls": found.tcp_bytes_per_min}, note)
    rows.add({"flash_bytes_per_day": found.flash_bytes_per_day}, "" if vigil.card else "a loop device takes root")


def _predicting(rows: Rows, directory: Path, tree: Path) -> None:
    rss, pss = predicting_mb(directory, tree)
    rows.add({"predicting_pss_mb": pss, "predicting_rss_mb": rss}, "agent and watcher, ten windows a second")


def _rounds(rows: Rows, directory: Path, tree: Path, name: str, model: Model) -> None:
    found = footprint_rounds.overhead(directory, tree, model)
    note = f"of it the training child {found.child_s:.2f} s ({found.child_cpu_s:.2f} s of processor)"
    rows.add({f"round_overhead_s_{name}": found.round_s}, note)
    rows.add({f"round_protocol_s_{name}": found.protocol_s})


def _cgroup(rows: Rows, directory: Path, tree: Path, figure: str, model: Model) -> None:
    found = footprint_rounds.smallest_cgroup_mb(directory, tree, model)
    rows.add({figure: found.limit_mb}, f"two rounds; {found.why}")


def _death(rows: Rows, directory: Path, tree: Path) -> None:
    with ExitStack() as stack:
        farm = stack.enter_context(Farm(directory, tree, footprint_rounds.small()))
        gate = _gate(stack, farm.port)
        (device,) = farm.site.devices
        farm.start(device, port=gate.port)
        rows.add({"death_seen_s": death_seen_s(farm, gate, device)})


def _gate(stack: ExitStack, port: int) -> Gate:
    gate = Gate(port)
    stack.callback(gate.close)
    return gate


def _place(directory: Path, name: str) -> Path:
    place = directory / name
    place.mkdir()
    return place


def _texts(row: dict[str, Any]) -> list[str]:
    value = "" if row["value"] is None else f"{row['value']:,.2f}".rstrip("0").rstrip(".")
    return [row["figure"], row["side"], value, row.get("reason") or row["note"]]


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
