"""Draws the asynchrony benchmark: accuracy over virtual time, buffered rounds beside the best synchronous ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

COLORS = {"buffered": "#d1495b", "synchronous": "#30638e"}


def plot(found: dict[str, Any], path: Path) -> None:
    """Write a PNG: a line for each seed of the two ways that are compared."""
    figure: Any = Figure(figsize=(7.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    curves = [row for row in found["rows"] if row["kind"] == "curve"]
    for row in curves:
        label = row["name"] if row["seed"] == curves[0]["seed"] else None
        axes.step(row["at"], row["accuracy"], where="post", color=COLORS[row["mode"]], linewidth=1.1, label=label)
    axes.axhline(found["target_accuracy"], color="#333333", linewidth=0.8, linestyle=":")
    axes.set(xlabel="virtual time, in trainings of the median device", ylabel="accuracy on digits that nobody holds")
    axes.set(ylim=(0, 1), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(f"{found['devices']} devices of log-normal speed; {found['date']}", fontsize=10)
    figure.savefig(path, dpi=110)
