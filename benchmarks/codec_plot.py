"""Draws the runs of the codec benchmark: bits per value that is sent, round by round, for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

RATES = ("1 %", "0.1 %")
COLORS = {"uneven": "#d1495b", "even": "#30638e"}


def plot(found: dict[str, Any], path: Path) -> None:
    """Write a PNG: a column for each model, a row for each rate."""
    rows = [row for row in found["rows"] if row["kind"] == "run" and row["spread"] in COLORS]
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure: Any = Figure(figsize=(2.6 * len(names), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(RATES), len(names), sharey="row", squeeze=False)
    for row in rows:
        axes = panels[RATES.index(row["rate"])][names.index(row["data"])]
        curve, color = row["curve"], COLORS[row["spread"]]
        axes.plot(curve["round"], curve["ours"], color=color, label=f"ours, {row['spread']} data")
        axes.plot(curve["round"], curve["rice"], color=color, linewidth=0.8, linestyle="--")
        axes.plot(curve["round"], curve["bound"], color="#333333", linewidth=0.8, linestyle=":")
        axes.set_title(f"{row['data']}, {row['rate']}", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    for line in panels:
        line[0].set_ylabel("bits per value")
        line[0].set_ylim(bottom=0)
    handles = dict(zip(*reversed(panels[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    title = f"Updates of 40 rounds, 1 bit a value; dashed: Golomb-Rice, dotted: log2 C(n, k) + k; {found['date']}"
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
