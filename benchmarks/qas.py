"""Does int8 training learn what float32 training learns? One device, then a fleet.

    make bench-qas                     one table
    make bench-qas ARGS=--json         one JSON object: {machine, date, rows, targets}
    make bench-qas ARGS="--plot FILE"  a picture of it beside that

FLEET_MODELS names the folder that holds mlperf_tiny/, FLEET_DATA that of cifar10_3k, speech_commands_300 and
mnist_test_writers. What is compared, and how a learning rate is chosen, stands in qas_single.py and qas_fleet.py.
One thread, about fifteen minutes; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import qas_fleet, qas_single
from benchmarks.demo import machine

ROOT = Path(__file__).parents[1]
COLOURS = {"before": "0.75", "last": "tab:orange", "int8": "tab:blue", "float": "0.35"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    models, data = _folder("FLEET_MODELS", "mlperf_tiny"), _folder("FLEET_DATA", "cifar10_3k")
    began = time.process_time()
    single = [qas_single.run(task, _tell) for task in qas_single.tasks(models, data)]
    fleet = qas_fleet.run(models, data, (ROOT / "firmware_sim/models/digits.tflite").read_bytes(), _tell)
    found = {
        "machine": machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "processor_s": round(time.process_time() - began),
        "rows": [*single, *fleet],
        "targets": {
            "int8_gain_over_float_gain_min": min(row["gain_over_float_gain"] for row in single),
            "points_over_last_layer_min": min(row["points_over_last"] for row in single),
            "federated_int8_over_float_min": qas_fleet.smallest(fleet),
        },
    }
    if arguments.plot:
        plot(arguments.plot, single, fleet)
    print(json.dumps(found) if arguments.json else "\n".join(table(found, single, fleet)))


def table(found: dict[str, Any], single: list[dict[str, Any]], fleet: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown tables, and the targets."""
    lines = [
        f"{found['machine']}, {found['date']}, {found['processor_s']} s of one processor",
        "",
        "| one device | trains | before | last layer | int8 | float32 | gain of int8 / of float32 | points over last |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in single:
        cells = [f"{row[method]['accuracy']:.3f} ± {row[method]['spread']:.3f}" for method in ("last", "int8", "float")]
        last = [f"**{row['gain_over_float_gain']:.3f}**", f"**{row['points_over_last']:.1f}**"]
        lines.append(_row(row["task"], row["trains"], f"{row['before']:.3f}", *cells, *last))
    lines += ["", "| fleet, 3 seeds | rounds | float32 | int8 and master | ratio |", "|---|---|---|---|---|"]
    for row in fleet:
        cells = [f"{row['accuracy'][lane]:.3f}" for lane in ("float", "int8")]
        lines.append(_row(row["setting"], str(row["rounds"]), *cells, f"**{row['int8_over_float']:.3f}**"))
    return [*lines, "", *(f"{name} {value:.3f}" for name, value in found["targets"].items())]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def plot(path: Path, single: list[dict[str, Any]], fleet: list[dict[str, Any]]) -> None:
    """Bars for one device, curves for the fleet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(11.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    bars, curves = figure.subplots(1, 2)
    for at, (method, colour) in enumerate(COLOURS.items()):
        heights = [row["before"] if method == "before" else row[method]["accuracy"] for row in single]
        spreads = [0.0 if method == "before" else row[method]["spread"] for row in single]
        places = [place + 0.2 * (at - 1.5) for place in range(len(single))]
        label = {"last": "last layer", "float": "float32"}.get(method, method)
        bars.bar(places, heights, 0.2, yerr=spreads, color=colour, label=label)
    bars.set_xticks(range(len(single)), [row["task"].replace(" ", "\n", 1) for row in single])
    bars.set(title="one device after a change of scene", ylabel="accuracy", ylim=(0, 1))
    bars.legend(ncols=2, fontsize=8)
    for colour, row in zip(("tab:blue", "tab:green", "tab:red", "tab:purple"), fleet, strict=True):
        for lane, line in (("int8", "-"), ("float", ":")):
            values = row["curves"][lane]
            label = row["setting"] if lane == "int8" else None
            curves.plot(range(1, len(values) + 1), values, line, color=colour, label=label)
    curves.set(title="fleets: int8 with a master (solid), float32 (dotted)", xlabel="round", ylim=(0, 1))
    curves.legend(fontsize=8)
    for axes in (bars, curves):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _folder(variable: str, content: str) -> Path:
    path = Path(os.environ.get(variable, ""))
    if not (path / content).is_dir():
        sys.exit(
            f"{variable} names no folder that holds {content}/; set it, for instance {variable}=/data make bench-qas"
        )
    return path


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
