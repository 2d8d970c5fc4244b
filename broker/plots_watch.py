"""The plots of what an operator watches: energy, refusals, and how good the model is in the field."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import TYPE_CHECKING, Final

from broker.energy import BOARDS, START_CORE_S, WH_J, estimate
from broker.field import ALL, DROP_MIN, EXAMPLES_MIN, P_MAX, WINDOW
from broker.plot_style import (
    BLUE,
    GOLD,
    GREEN,
    INK,
    ORANGE,
    PINK,
    QUIET,
    RED,
    TEAL,
    VIOLET,
    blank,
    label,
    legend,
    nothing,
    whole_numbers,
)
from broker.refusals import DAY_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from broker.energy import Board, Parts
    from broker.field import Fading
    from broker.history import Extra, History

BOARD: Final = BOARDS[2]
COLOURS: Final = (BLUE, ORANGE, GREEN, VIOLET, TEAL, GOLD, PINK)
REASONS_MAX: Final = 6  # in a plot; the others are one
DAYS_MAX: Final = 60
LINES_MAX: Final = len(COLOURS)
NAME_CHARS: Final = 24


# -- energy -------------------------------------------------------------------------------------------------------


def draw_energy(history: History, _extra: Extra) -> Figure:
    """Joules of each round, stacked by what they were for."""
    figure, (axes,) = blank(2.8)
    rounds, below = [step.round_id for step in history.steps], [0.0] * len(history.steps)
    spent = _spent(history, BOARD)
    names = ("starting the training", "learning", "radio")
    for number, (name, colour) in enumerate(zip(names, (BLUE, GREEN, ORANGE), strict=True)):
        values = [parts[number] for parts in spent]
        axes.bar(rounds, values, bottom=below, color=colour, width=0.72, zorder=2, label=name)
        below = [low + value for low, value in zip(below, values, strict=True)]
    axes.set_xlim(rounds[0] - 0.6, rounds[-1] + 0.6)
    legend(axes)
    label(axes, "round", f"J, were each a {BOARD.name}")
    whole_numbers(axes)
    return figure


def _spent(history: History, board: Board) -> list[Parts]:
    example_core_s = history.example_core_s or 0.0
    return [
        estimate(board, [m.passes for m in step.members], example_core_s, step.bytes_up or 0, step.bytes_down or 0)
        for step in history.steps
    ]


def say_energy(history: History, _extra: Extra) -> str:
    """What learning added, on each board, and what that rests on."""
    done = sum(len(step.members) for step in history.steps)
    if not done:
        return "No update was counted."
    each = ", ".join(
        f"{sum(map(sum, _spent(history, board))) / done / WH_J * 1000:.1f} mWh on a {board.name}" for board in BOARDS
    )
    known = f"{START_CORE_S} s of a core to start a training, its examples as long as they take here"
    lacking = "" if history.example_core_s else " Learning itself could not be measured here and is left out."
    return (
        f"Estimated, not measured: devices do not tell what they draw. An update adds {each} to a board that is on "
        f"anyway: {known}, a core's and a Wi-Fi radio's power as published.{lacking}"
    )


# -- refusals -----------------------------------------------------------------------------------------------------


def draw_refusals(history: History, _extra: Extra) -> Figure:
    """Messages refused on each day, stacked by reason."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = blank(2.6)
    if not history.refusals:
        nothing(axes, "nothing was refused")
        return figure
    counts = Counter({(day, reason): count for day, reason, count in history.refusals})
    last = max(day for day, _, _ in history.refusals)
    days = range(max(last - DAYS_MAX + 1, min(day for day, _, _ in history.refusals)), last + 1)
    dates, below = [_date(day) for day in days], [0] * len(days)
    for (name, words), colour in zip(_reasons(history), (*COLOURS, QUIET), strict=False):
        values = [sum(counts[day, word] for word in words) for day in days]
        axes.bar(dates, values, bottom=below, color=colour, width=0.72, zorder=2, label=name)
        below = [low + value for low, value in zip(below, values, strict=True)]
    axes.set_xticks(dates[:: 1 + len(days) // 12])
    if len(days) < 4:  # else a single day would be as wide as the page
        axes.set_xlim(-2.5 + len(days) / 2, 1.5 + len(days) / 2)
    legend(axes)
    label(axes, "day (UTC)", "messages")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _reasons(history: History) -> list[tuple[str, Sequence[str]]]:
    """(what a colour stands for, the reasons in it), most frequent first."""
    totals: Counter[str] = Counter()
    for _, reason, count in history.refusals:
        totals[reason] += count
    words = [reason for reason, _ in totals.most_common()]
    named: list[tuple[str, Sequence[str]]] = [(word, (word,)) for word in words[:REASONS_MAX]]
    return [*named, ("others", words[REASONS_MAX:])] if words[REASONS_MAX:] else named


def _date(day: int) -> str:
    return dt.datetime.fromtimestamp(day * DAY_S, tz=dt.UTC).strftime("%b %d")


def say_refusals(history: History, _extra: Extra) -> str:
    """How much was not believed, and why."""
    totals: Counter[str] = Counter()
    for _, reason, count in history.refusals:
        totals[reason] += count
    if not totals:
        return "Nothing was refused since the coordinator keeps count."
    each = ", ".join(f"{count} {reason}" for reason, count in totals.most_common())
    return f"{totals.total()} messages were not believed or not counted: {each}."


# -- in the field -------------------------------------------------------------------------------------------------


def draw_fading(history: History, _extra: Extra) -> Figure:
    """Accuracy on devices' own held-out examples over the versions, a line for each group."""
    figure, (axes,) = blank(3.2)
    if not history.fading:
        nothing(axes, "no device has held-out examples")
        return figure
    for fading, colour in zip(_drawn(history), (INK, *COLOURS), strict=False):
        at = [window.last for window in fading.windows]
        values = [window.accuracy for window in fading.windows]
        width = 2.6 if fading.group == ALL else 1.5
        name = fading.group[:NAME_CHARS] + (", drifts" if fading.verdict == "drift" else "")
        axes.plot(at, values, color=colour, linewidth=width, marker="o", markersize=4, zorder=3, label=name)
        if fading.verdict == "drift":
            axes.plot(at[-1:], values[-1:], color=RED, marker="v", markersize=10, zorder=4, linestyle="")
    lowest = min(window.accuracy for fading in _drawn(history) for window in fading.windows)
    axes.set_ylim(max(0.0, lowest - 0.1), 1.02)
    axes.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, handlelength=1.6, labelcolor=INK
    )
    label(axes, f"version, the last of {WINDOW}", "accuracy on devices' examples")
    whole_numbers(axes)
    return figure


def _drawn(history: History) -> list[Fading]:
    """The whole fleet, and of the groups those that drift and then those with most examples."""
    whole, *groups = history.fading
    ranked = sorted(groups, key=lambda fading: (fading.verdict != "drift", -fading.windows[-1].count))
    return [whole, *ranked[:LINES_MAX]]


def say_fading(history: History, _extra: Extra) -> str:
    """Who drifts, and by which test."""
    if not history.fading:
        return "No device has reported on held-out examples of its own."
    drifting = [
        f"{each.group} from {each.best.accuracy:.3f} to {each.windows[-1].accuracy:.3f} (p = {each.p:.1g})"
        for each in history.fading
        if each.verdict == "drift" and each.best is not None
    ]
    judged = sum(each.verdict != "too few" for each in history.fading)
    found = f"Drift: {'; '.join(drifting)}." if drifting else f"No drift in {judged} of {len(history.fading)} lines;"
    few = "" if drifting else f" the others have fewer than {EXAMPLES_MIN} examples in a window."
    return (
        f"{found}{few} The newest {WINDOW} versions are compared with those before by a one-sided two-proportion z "
        f"test: drift is p below {P_MAX} and a drop of {DROP_MIN} at least."
    )
