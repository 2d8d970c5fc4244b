"""Draws the attack table: how many points each attack costs, as heat maps of the default rule and of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.attacks import tenths
from benchmarks.attacks_fleet import ATTACKS, BOOSTED, NONE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

POINTS_MAX: Final = 40.0  # from there on all is one colour
DARK: Final = 20.0  # points: from there on figures are white
TITLES: Final = ("the default rule", "every rule on one ground")
COLUMNS: Final = (*ATTACKS, BOOSTED)


def plot(found: dict[str, Any], path: Path) -> None:
    """Write a PNG: a panel for the default rule, the first that was measured, and one for what it is compared with."""
    rows = [row for row in found["rows"] if row.get("accuracy") is not None]
    panels = {title: lines for title, lines in zip(TITLES, _panels(rows), strict=True) if lines}
    heights = [len(lines) for lines in panels.values()]
    figure: Any = Figure(figsize=(9.5, 2.2 + 0.27 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for each, (title, lines) in zip(axes, panels.items(), strict=True):
        _panel(each, lines, rows)
        each.set_title(title, fontsize=9, loc="left")
    share = f"{found['dishonest']} of {found['devices']} devices lie"
    figure.suptitle(
        f"points of accuracy lost, {share}; beside each line the honest accuracy; {found['date']}", fontsize=10
    )
    figure.savefig(path, dpi=110)


def _panels(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The honest row of each line: the default rule's; and lane by lane all rules' on the ground of the second one."""
    honest = [row for row in rows if row["attack"] == NONE]
    default = [row for row in honest if row["rule"] == honest[0]["rule"]]
    other = next((row for row in honest if row not in default), None)
    if other is None:
        return default, []
    lanes = list(dict.fromkeys(row["kept"] for row in honest))
    here = [row for row in honest if all(row[key] == other[key] for key in ("task", "split"))]
    return default, sorted(here, key=lambda row: lanes.index(row["kept"]))


def _panel(axes: Any, lines: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> None:
    lost = [[_lost(line, name, rows) for name in COLUMNS] for line in lines]
    axes.imshow(lost, cmap="YlOrRd", vmin=0.0, vmax=POINTS_MAX, aspect="auto")
    axes.set_xticks(range(len(COLUMNS)), COLUMNS, rotation=25, ha="right", fontsize=7)
    axes.set_yticks(range(len(lines)), [_name(line) for line in lines], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, line in enumerate(lost):
        for x, points in enumerate(line):
            color = "white" if points > DARK else "black"
            axes.text(x, y, tenths(points), ha="center", va="center", fontsize=6.5, color=color)


def _name(line: dict[str, Any]) -> str:
    return f"{line['rule']}, {line['task']}, {line['split']}, {line['kept']} ({line['accuracy']:.3f})"


def _lost(line: dict[str, Any], attack: str, rows: Sequence[dict[str, Any]]) -> float:
    same = ("rule", "kept", "task", "split")
    return next(
        float(row["lost_points"]) for row in rows if row["attack"] == attack and all(row[k] == line[k] for k in same)
    )
