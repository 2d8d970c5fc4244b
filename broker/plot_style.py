"""How every plot of a report looks: quiet axes, few colours, and what is what said above the plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, GRID = "#24292f", "#6e7781", "#d8dee4"
BLUE, ORANGE, GREEN, RED = "#2563a8", "#c9701a", "#3a7d44", "#b3261e"
VIOLET, TEAL, GOLD, PINK = "#7a4fa3", "#1f8a8a", "#b8960c", "#c2528b"
WIDTH_IN: Final = 8.6


def blank(height_in: float, panels: int = 1) -> tuple[Figure, Sequence[Axes]]:
    """Give a figure with `panels` quiet axes above one another, without pyplot and its global state."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(WIDTH_IN, height_in), layout="constrained")
    all_axes = [figure.add_subplot(panels, 1, number + 1) for number in range(panels)]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        axes.tick_params(colors=QUIET, labelsize=9, length=0)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, all_axes


def legend(axes: Axes, handles: Sequence[Artist] | None = None) -> None:
    """Say above the plot what is what, where no curve can cross it."""
    shown = handles if handles is not None else axes.get_legend_handles_labels()[0]
    axes.legend(
        handles=shown,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=max(1, len(shown)),
        frameon=False,
        fontsize=9,
        handlelength=1.6,
        labelcolor=INK,
    )


def label(axes: Axes, below: str, left: str) -> None:
    """Say what runs along the bottom and up the side."""
    axes.set_xlabel(below, color=QUIET, fontsize=9.5)
    axes.set_ylabel(left, color=QUIET, fontsize=9.5)


def whole_numbers(axes: Axes) -> None:
    """Mark whole numbers along the bottom, a dozen at most."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def nothing(axes: Axes, why: str) -> None:
    """Say in the middle of an empty plot why it is."""
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=QUIET, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
