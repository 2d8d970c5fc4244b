"""Draws accuracy against the bytes that a device has sent and received, beside Flower's dense wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

COLORS: Final = {
    "dense": "#7d8597", "1 %, exact": "#5b8db8", "1 %, 1 bit": "#30638e", "0.1 %, exact": "#edae49",
    "0.1 %, 1 bit": "#d1495b",
}  # fmt: skip
FLOWER: Final = "Flower, dense"
TITLES: Final = {
    "writers": "MNIST by writer, a convolution of 103,018 parameters",
    "digits": "digits, 17,802 parameters",
}


def plot(found: dict[str, Any], path: Path) -> None:
    """Write a PNG: one panel for each fleet of which the bytes were compared."""
    flower = {row["task"]: row for row in found["rows"] if row["kind"] == "bytes" and row["mode"] == FLOWER}
    figure: Any = Figure(figsize=(5.6 * max(1, len(flower)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(flower)), squeeze=False)[0]
    for axes, (name, theirs) in zip(panels, flower.items(), strict=False):
        _panel(axes, [row for row in found["rows"] if row["kind"] == "accuracy" and row["task"] == name], theirs)
        axes.set_title(TITLES[name], fontsize=9, loc="left")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(f"100 devices, ten a round; both ways, the base file left out; {found['date']}", fontsize=10)
    figure.savefig(path, dpi=110)


def _panel(axes: Any, rows: list[dict[str, Any]], theirs: dict[str, Any]) -> None:
    for row in rows:
        spent = [number for _, _, number in row["curve"]][1:]
        accuracy = [number for _, number, _ in row["curve"]][1:]
        if row["mode"] == "dense":
            a_round = 2 * theirs["message_bytes"] * row["devices_a_round"] / row["devices"]
            rounds = [at for at, _, _ in row["curve"]][1:]
            axes.plot([at * a_round for at in rounds], accuracy, color="#333333", linestyle="--", label=FLOWER)
        if row["mode"] in COLORS:
            axes.plot(spent, accuracy, color=COLORS[row["mode"]], label=row["mode"])
    axes.set_xscale("log")
    axes.set_xlabel("bytes of a device, both ways", fontsize=9)
    axes.set_ylabel("accuracy", fontsize=9)
    axes.set_ylim(0.5, 1.0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
