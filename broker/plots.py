"""The plots of a report, each with the sentence that says the same in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from broker.plot_style import BLUE, GREEN, INK, ORANGE, QUIET, RED, blank, label, legend, whole_numbers
from broker.plots_watch import draw_energy, draw_fading, draw_refusals, say_energy, say_fading, say_refusals

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from broker.history import Extra, History, Step

STALE: Final = ((0, 0, "fresh"), (1, 1, "1 version behind"), (2, 3, "2 or 3"), (4, 2**53, "4 or more"))
GRID_LABELS_MAX: Final = 40  # device names that fit beside the participation plot


class Plot(NamedTuple):
    """One plot: the name of its file, its heading, and what makes it."""

    name: str
    heading: str
    draw: Callable[[History, Extra], Figure]
    say: Callable[[History, Extra], str]


def plots() -> tuple[Plot, ...]:
    """All of them, in the order of the page."""
    return (
        Plot("accuracy", "Accuracy", _draw_accuracy, say_accuracy),
        Plot("bytes", "Bytes on the wire", _draw_bytes, _say_bytes),
        Plot("participation", "Who was counted", _draw_participation, _say_participation),
        Plot("staleness", "Staleness", _draw_staleness, _say_staleness),
        Plot("update-size", "Size of an update", _draw_sizes, _say_sizes),
        Plot("energy", "Energy, estimated", draw_energy, say_energy),
        Plot("refusals", "What was refused", draw_refusals, say_refusals),
        Plot("drift", "In the field, by group", draw_fading, say_fading),
    )


# -- accuracy -----------------------------------------------------------------------------------------------------


def _draw_accuracy(history: History, extra: Extra) -> Figure:
    figure, (axes,) = blank(3.6)
    points = _accuracies(history, extra)
    rounds, values = [at for at, _ in points], [value for _, value in points]
    axes.plot(rounds, values, color=BLUE, linewidth=2, marker="o", markersize=4, zorder=3, label="the fleet")
    out = [(step.round_id, step.accuracy) for step in history.steps if step.rolled_back and step.accuracy is not None]
    if out:
        axes.plot(
            *zip(*out, strict=True), color=RED, linewidth=0, marker="x", markersize=7, zorder=4, label="rolled back"
        )
    axes.set_ylim(0, 1.02)
    axes.set_xlim(rounds[0] - 0.5 if rounds else 0, history.steps[-1].round_id + 0.5)
    levels = (
        (extra.accuracy_central, "all data in one place", GREEN),
        (extra.accuracy_start, "before the first round", QUIET),
    )
    for value, text, colour in levels:
        if value is not None:
            dashes = (0, (5, 3))
            axes.axhline(value, color=colour, linewidth=1.2, linestyle=dashes, zorder=2, label=f"{text}: {value:.3f}")
    for number, mark in enumerate(extra.marks):
        axes.axvline(mark.round_id, color=RED, linewidth=1, linestyle=":", zorder=1)
        axes.annotate(
            mark.what,
            (mark.round_id, 0.34 + 0.08 * (number % 2)),
            xytext=(5, 0),
            textcoords="offset points",
            color=RED,
            fontsize=8.5,
        )
    legend(axes)
    label(axes, "round", "accuracy on held-out data")
    whole_numbers(axes)
    return figure


def _accuracies(history: History, extra: Extra) -> list[tuple[int, float]]:
    start = [] if extra.accuracy_start is None else [(history.steps[0].round_id - 1, extra.accuracy_start)]
    kept = [step for step in history.steps if not step.rolled_back]
    return start + [(step.round_id, step.accuracy) for step in kept if step.accuracy is not None]


def say_accuracy(history: History, extra: Extra) -> str:
    """How good the model became, in a sentence or two."""
    points = _accuracies(history, extra)
    if not points:
        return "No accuracy: the coordinator has no held-out data (broker init --help)."
    sentence = f"Accuracy goes from {points[0][1]:.3f} to {points[-1][1]:.3f} in {len(history.steps)} rounds."
    if out := sum(step.rolled_back for step in history.steps):
        sentence += f" {out} of their versions {'was' if out == 1 else 'were'} rolled back."
    if extra.accuracy_central is not None:
        sentence += f" The same model with all data in one place reaches {extra.accuracy_central:.3f}."
    return sentence


# -- bytes --------------------------------------------------------------------------------------------------------


def _draw_bytes(history: History, _extra: Extra) -> Figure:
    figure, (upper, lower) = blank(3.8, panels=2)
    rounds = [step.round_id for step in history.steps]
    for axes, values, colour, text in (
        (upper, [_bytes_up(step) for step in history.steps], BLUE, "up: kB from devices"),
        (lower, [step.bytes_down or 0 for step in history.steps], ORANGE, "down: kB to devices"),
    ):
        axes.bar(rounds, [value / 1000 for value in values], color=colour, width=0.72, zorder=2)
        axes.set_ylim(0, None)
        axes.set_xlim(rounds[0] - 0.6, rounds[-1] + 0.6)
        axes.set_title(text, loc="left", fontsize=9.5, color=colour, pad=4)
        whole_numbers(axes)
    label(lower, "round", "")
    return figure


def _bytes_up(step: Step) -> int:
    return sum(member.payload_bytes for member in step.members) if step.bytes_up is None else step.bytes_up


def _say_bytes(history: History, _extra: Extra) -> str:
    up = sum(_bytes_up(step) for step in history.steps)
    down = sum(step.bytes_down or 0 for step in history.steps)
    if all(step.bytes_up is None for step in history.steps):
        return f"Updates carried {up / 1000:.1f} kB in all; other bytes were not measured."
    return (
        f"In all rounds together {up / 1000:.0f} kB went up and {down / 1000:.0f} kB down. What goes down is mostly "
        "the new parameters, once for each device and version."
    )


# -- participation ------------------------------------------------------------------------------------------------


def _draw_participation(history: History, _extra: Extra) -> Figure:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    table = _participation(history)
    rows = len(history.devices)
    figure, (axes,) = blank(min(9.0, max(2.2, 1.1 + 0.2 * rows)))
    rounds = [step.round_id for step in history.steps]
    colours = ["#f1f3f5", BLUE, ORANGE]
    axes.pcolormesh(
        [at - 0.5 for at in [*rounds, rounds[-1] + 1]],
        [at - 0.5 for at in range(rows + 1)],
        [[min(2, cell) for cell in row] for row in table],
        cmap=ListedColormap(colours),
        vmin=0,
        vmax=2,
        edgecolors="white",
        linewidth=1.5,
    )
    axes.invert_yaxis()
    axes.grid(visible=False)
    every = 1 + rows // GRID_LABELS_MAX
    axes.set_yticks(range(0, rows, every), history.devices[::every], fontsize=8)
    names = ("not counted", "counted in its round", "counted in a later one")
    legend(axes, [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)])
    label(axes, "round", "")
    whole_numbers(axes)
    return figure


def _participation(history: History) -> list[list[int]]:
    """For each device and round: 0 its update was not counted, 1 in that round, 2 in a later one."""
    column = {step.round_id: at for at, step in enumerate(history.steps)}
    row = {device_id: at for at, device_id in enumerate(history.devices)}
    table = [[0] * len(column) for _ in row]
    for step in history.steps:
        for member in step.members:
            if member.device_id in row and member.round_id in column:
                late = member.round_id != step.round_id
                table[row[member.device_id]][column[member.round_id]] = 2 if late else 1
    return table


def _say_participation(history: History, _extra: Extra) -> str:
    cells = [cell for row in _participation(history) for cell in row]
    return (
        f"{len(history.devices)} devices in {len(history.steps)} rounds: {cells.count(1)} updates were counted in "
        f"their own round, {cells.count(2)} came later and were counted by the next, {cells.count(0)} were not there."
    )


# -- staleness ----------------------------------------------------------------------------------------------------


def _draw_staleness(history: History, _extra: Extra) -> Figure:
    figure, (axes,) = blank(2.8)
    rounds, below = [step.round_id for step in history.steps], [0] * len(history.steps)
    for (first, last, text), colour in zip(STALE, (BLUE, GREEN, ORANGE, RED), strict=True):
        counts = [sum(first <= member.staleness <= last for member in step.members) for step in history.steps]
        axes.bar(rounds, counts, bottom=below, color=colour, width=0.72, zorder=2, label=text)
        below = [low + count for low, count in zip(below, counts, strict=True)]
    axes.set_xlim(rounds[0] - 0.6, rounds[-1] + 0.6)
    legend(axes)
    label(axes, "round", "updates counted")
    whole_numbers(axes)
    return figure


def _say_staleness(history: History, _extra: Extra) -> str:
    stale = [member.staleness for step in history.steps for member in step.members]
    if not stale:
        return "No update was counted."
    behind = sum(versions > 0 for versions in stale)
    return (
        f"{len(stale) - behind} of {len(stale)} updates were counted by the version after the one they began with; "
        f"{behind} came later, the latest {max(stale)} versions behind, and weigh less for it."
    )


# -- sizes --------------------------------------------------------------------------------------------------------


def _draw_sizes(history: History, extra: Extra) -> Figure:
    figure, (axes,) = blank(2.6)
    sizes = _sizes(history, extra)
    axes.hist(sizes, bins=min(40, max(5, len(set(sizes)))), color=BLUE, rwidth=0.92, zorder=2)
    if sizes:
        mean = sum(sizes) / len(sizes)
        axes.axvline(mean, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=3)
        axes.annotate(
            f"mean {mean:.0f} bytes",
            (mean, 0.95),
            xycoords=("data", "axes fraction"),
            xytext=(5, 0),
            textcoords="offset points",
            va="top",
            color=INK,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
        )
    label(axes, "bytes of one update", "updates")
    return figure


def _sizes(history: History, extra: Extra) -> list[int]:
    return list(extra.update_bytes) or [member.payload_bytes for step in history.steps for member in step.members]


def _say_sizes(history: History, extra: Extra) -> str:
    sizes = _sizes(history, extra)
    if not sizes:
        return "No update was counted."
    what = "the whole MQTT payload, signature included" if extra.update_bytes else "the payload without its envelope"
    return f"{len(sizes)} updates of {min(sizes)} to {max(sizes)} bytes: {what}."
