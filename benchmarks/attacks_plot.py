"""Draws the attack table: how many points each attack costs, as heat maps of the default rule and of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.attacks_fleet import ATTACKS, BOOSTED, NONE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

POINTS_MAX: Final = 40.0  # from there on all is one colour
DARK: Final = 20.0  # points: from there on figures are white
COLUMNS: Final = (*ATTACKS, BOOSTED)


def plot(found: dict[str, Any], path: Path) -> None:
    """Write a PNG: a panel for the default rule, the first that was measured, and one for what it is compared with."""
    rows = [row for row in found["rows"] if row.get("accuracy") is not None]
    default, compared = _panels(rows)
    figure: Any = Figure(figsize=(9.5, 2.2 + 0.27 * (len(default) + len(compared))), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [max(1, len(default)), max(1, len(compared))]
    above, below = figure.subplots(2, 1, height_ratios=heights)
    _panel(above, default, rows)
    _panel(below, compared, rows)
    above.set_title("the default rule", fontsize=9, loc="left")
    below.set_title("every rule on one ground", fontsize=9, loc="left")
    share = f"{found['dishonest']} of {found['devices']} devices lie"
    figure.suptitle(f"points of accuracy lost, {share}; {len(found['seeds'])} seeds; {found['date']}", fontsize=10)
    figure.savefig(path, dpi=110)


def _panels(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The honest row of each line: the default rule's, and all rules' on the ground that the second one was tried on."""
    honest = [row for row in rows if row["attack"] == NONE]
    default = [row for row in honest if row["rule"] == honest[0]["rule"]]
    others = [row for row in honest if row["rule"] != honest[0]["rule"]]
    if not others:
        return default, []
    ground = others[0]["task"], others[0]["split"]
    return default, sorted(
        (row for row in honest if (row["task"], row["split"]) == ground), key=lambda row: list(_lanes(honest)).index(row["kept"])
    )


def _lanes(rows: Sequence[dict[str, Any]]) -> dict[str, None]:
    return dict.fromkeys(row["kept"] for row in rows)


def _panel(axes: Any, lines: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> None:
    lost = [[_lost(line, name, rows) for name in COLUMNS] for line in lines] or [[0.0] * len(COLUMNS)]
    axes.imshow(lost, cmap="YlOrRd", vmin=0.0, vmax=POINTS_MAX, aspect="auto")
    axes.set_xticks(range(len(COLUMNS)), COLUMNS, rotation=25, ha="right", fontsize=7)
    axes.set_yticks(range(len(lines)), [_name(line) for line in lines], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, line in enumerate(lost):
        for x, points in enumerate(line):
            color = "white" if points > DARK else "black"
            axes.text(x, y, f"{points:.1f}", ha="center", va="center", fontsize=6.5, color=color)


def _name(line: dict[str, Any]) -> str:
    return f"{line['rule']}, {line['task']}, {line['split']}, {line['kept']} ({line['accuracy']:.3f})"


def _lost(line: dict[str, Any], attack: str, rows: Sequence[dict[str, Any]]) -> float:
    same = ("rule", "kept", "task", "split")
    return next(row["lost_points"] for row in rows if row["attack"] == attack and all(row[k] == line[k] for k in same))
