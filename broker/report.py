"""The report: one HTML page about a fleet's rounds that needs nothing but itself, and its plots as PNGs beside it.

Four plots: how good each model version was, what each round cost on the wire, who was counted when, how large updates
were. Everything comes from the store; `Extra` adds what only the demo knows: where the model started, what all
data in one place would reach, and which process was killed when.
"""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING, Final

import msgspec

from broker.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wire.messages import Traffic

INK, QUIET, GRID = "#24292f", "#6e7781", "#d8dee4"
BLUE, ORANGE, GREEN, RED = "#2563a8", "#c9701a", "#3a7d44", "#b3261e"
WIDTH_IN: Final = 8.6
DPI: Final = 144
PURPOSES: Final = ("update", "retry", "model", "telemetry", "control", "transport")
GRID_LABELS_MAX: Final = 40  # device names that fit beside the participation plot


class ReportError(RuntimeError):
    """The report cannot be made; the sentence says why and how to mend it."""


class Counted(msgspec.Struct, frozen=True):
    """One update that a version counts: whose, of which round, and its payload's size."""

    device_id: str
    round_id: int
    payload_bytes: int


class Step(msgspec.Struct, frozen=True):
    """One closed round and the version that it made."""

    round_id: int
    version: int
    accuracy: float | None
    members: tuple[Counted, ...]
    bytes_up: int | None = None  # MQTT bytes from devices; None where nobody measured
    bytes_down: int | None = None


class History(msgspec.Struct, frozen=True):
    """What the store says of a fleet, oldest round first."""

    devices: tuple[str, ...]
    steps: tuple[Step, ...]
    purposes: tuple[tuple[str, int], ...] = ()  # bytes of all devices since they were enrolled, as they count them


class Mark(msgspec.Struct, frozen=True):
    """Something that happened during a round, drawn as a line: what was killed."""

    round_id: int
    what: str


class Extra(msgspec.Struct, frozen=True):
    """What the store does not know."""

    title: str = ""
    accuracy_start: float | None = None
    accuracy_central: float | None = None
    marks: tuple[Mark, ...] = ()
    wire_bytes: dict[int, tuple[int, int]] = {}  # round → (up, down), measured elsewhere than at the coordinator
    update_bytes: tuple[int, ...] = ()  # whole MQTT payloads; else the payloads in the store
    rows: tuple[tuple[str, str], ...] = ()  # the summary's table
    story: tuple[str, ...] = ()  # sentences below it


def write(store_path: Path, out_dir: Path, extra: Extra | None = None) -> Path:
    """Read the store at `store_path`, beside whoever writes it, and `render` what it says. Raises StoreError too."""
    with Store(store_path, read_only=True) as store:
        return render(read_history(store), out_dir, extra)


def read_history(store: Store) -> History:
    """What the store says of every closed round. Devices that left the fleet are there if they were counted."""
    members: dict[int, list[Counted]] = {}
    for update in store.updates():
        if update.counted_in is not None:
            counted = Counted(update.device_id, update.round_id, update.payload_bytes)
            members.setdefault(update.counted_in, []).append(counted)
    steps = [
        Step(
            row.round_id,
            row.model_version,
            row.accuracy,
            tuple(members.get(row.model_version, ())),
            row.bytes_up,
            row.bytes_down,
        )
        for row in store.versions()
        if row.round_id
    ]
    devices = set(store.fleet()) | {member.device_id for step in steps for member in step.members}
    told = [account for account, _when in store.traffic().values()]
    purposes = [(name, sum(_bytes_for(name, account) for account in told)) for name in PURPOSES if told]
    return History(tuple(sorted(devices)), tuple(steps), tuple(purposes))


def _bytes_for(purpose: str, account: Traffic) -> int:
    return sum(value for name, value in msgspec.structs.asdict(account).items() if name.startswith(f"{purpose}_"))


def render(history: History, out_dir: Path, extra: Extra | None = None) -> Path:
    """Write `index.html` and the PNGs into `out_dir` (made if missing); return the page's path.

    Raises ReportError without matplotlib, or without a closed round.
    """
    extra = extra or Extra()
    if not history.steps:
        raise ReportError("no round has closed yet: there is nothing to report (broker round open --count 1)")
    try:
        from matplotlib.figure import Figure as _  # noqa: F401
    except ImportError as error:
        raise ReportError("the report needs matplotlib: pip install hedgerow[sim]") from error
    out_dir.mkdir(parents=True, exist_ok=True)
    measured = tuple(_measured(step, extra) for step in history.steps)
    history = msgspec.structs.replace(history, steps=measured)
    parts = []
    for name, heading, draw, describe in _plots():
        path = out_dir / f"{name}.png"
        draw(history, extra).savefig(path, dpi=DPI, facecolor="white")
        parts.append(_figure(path, heading, describe(history, extra)))
    page = out_dir / "index.html"
    page.write_text(_page(history, extra, parts), "utf-8")
    return page


def _measured(step: Step, extra: Extra) -> Step:
    """The round with the bytes of whoever watched the wire, if anyone did."""
    up, down = extra.wire_bytes.get(step.round_id, (step.bytes_up, step.bytes_down))
    return msgspec.structs.replace(step, bytes_up=up, bytes_down=down)


def _plots() -> tuple[tuple[str, str, Callable[[History, Extra], Figure], Callable[[History, Extra], str]], ...]:
    return (
        ("accuracy", "Accuracy", _draw_accuracy, _say_accuracy),
        ("bytes", "Bytes on the wire", _draw_bytes, _say_bytes),
        ("participation", "Who was counted", _draw_participation, _say_participation),
        ("update-size", "Size of an update", _draw_sizes, _say_sizes),
    )


# -- accuracy -----------------------------------------------------------------------------------------------------


def _draw_accuracy(history: History, extra: Extra) -> Figure:
    figure, (axes,) = _blank(3.6)
    points = _accuracies(history, extra)
    rounds, values = [at for at, _ in points], [value for _, value in points]
    axes.plot(rounds, values, color=BLUE, linewidth=2, marker="o", markersize=4, zorder=3, label="the fleet")
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
    _legend(axes)
    _label(axes, "round", "accuracy on held-out data")
    _whole_numbers(axes)
    return figure


def _accuracies(history: History, extra: Extra) -> list[tuple[int, float]]:
    start = [] if extra.accuracy_start is None else [(history.steps[0].round_id - 1, extra.accuracy_start)]
    return start + [(step.round_id, step.accuracy) for step in history.steps if step.accuracy is not None]


def _say_accuracy(history: History, extra: Extra) -> str:
    points = _accuracies(history, extra)
    if not points:
        return "No accuracy: the coordinator has no held-out data (broker init --help)."
    sentence = f"Accuracy goes from {points[0][1]:.3f} to {points[-1][1]:.3f} in {len(history.steps)} rounds."
    if extra.accuracy_central is not None:
        sentence += f" The same model with all data in one place reaches {extra.accuracy_central:.3f}."
    return sentence


# -- bytes --------------------------------------------------------------------------------------------------------


def _draw_bytes(history: History, _extra: Extra) -> Figure:
    figure, (upper, lower) = _blank(3.8, panels=2)
    rounds = [step.round_id for step in history.steps]
    for axes, values, colour, text in (
        (upper, [_bytes_up(step) for step in history.steps], BLUE, "up: kB from devices"),
        (lower, [step.bytes_down or 0 for step in history.steps], ORANGE, "down: kB to devices"),
    ):
        axes.bar(rounds, [value / 1000 for value in values], color=colour, width=0.72, zorder=2)
        axes.set_ylim(0, None)
        axes.set_xlim(rounds[0] - 0.6, rounds[-1] + 0.6)
        axes.set_title(text, loc="left", fontsize=9.5, color=colour, pad=4)
        _whole_numbers(axes)
    _label(lower, "round", "")
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
    figure, (axes,) = _blank(min(9.0, max(2.2, 1.1 + 0.2 * rows)))
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
    _legend(axes, [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)])
    _label(axes, "round", "")
    _whole_numbers(axes)
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


# -- sizes --------------------------------------------------------------------------------------------------------


def _draw_sizes(history: History, extra: Extra) -> Figure:
    figure, (axes,) = _blank(2.6)
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
    _label(axes, "bytes of one update", "updates")
    return figure


def _sizes(history: History, extra: Extra) -> list[int]:
    return list(extra.update_bytes) or [member.payload_bytes for step in history.steps for member in step.members]


def _say_sizes(history: History, extra: Extra) -> str:
    sizes = _sizes(history, extra)
    if not sizes:
        return "No update was counted."
    what = "the whole MQTT payload, signature included" if extra.update_bytes else "the payload without its envelope"
    return f"{len(sizes)} updates of {min(sizes)} to {max(sizes)} bytes: {what}."


# -- style --------------------------------------------------------------------------------------------------------


def _blank(height_in: float, panels: int = 1) -> tuple[Figure, Sequence[Axes]]:
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


def _legend(axes: Axes, handles: Sequence[Artist] | None = None) -> None:
    """Say above the plot what is what, where no curve can cross it."""
    shown = handles if handles is not None else axes.get_legend_handles_labels()[0]
    axes.legend(
        handles=shown,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=3,
        frameon=False,
        fontsize=9,
        handlelength=1.6,
        labelcolor=INK,
    )


def _label(axes: Axes, below: str, left: str) -> None:
    axes.set_xlabel(below, color=QUIET, fontsize=9.5)
    axes.set_ylabel(left, color=QUIET, fontsize=9.5)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


_STYLE: Final = """
:root { color-scheme: light dark; --ink: #24292f; --quiet: #57606a; --page: #f6f7f8; --card: #fff; --line: #d8dee4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --quiet: #9aa4ae; --page: #111315; --card: #191c1f; --line: #2f353b }
  img { filter: invert(0.9) hue-rotate(180deg) }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem }
h1 { font-size: 1.6rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 0 0 .6rem }
p { margin: .4rem 0; color: var(--quiet) }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.3rem;
  margin-top: 1.2rem; overflow-x: auto }
img { width: 100%; height: auto; display: block }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td { padding: .25rem .6rem .25rem 0; border-top: 1px solid var(--line); vertical-align: top }
tr:first-child td { border-top: 0 } td:first-child { color: var(--quiet); width: 45% }
"""


def _page(history: History, extra: Extra, figures: list[str]) -> str:
    title = html.escape(extra.title or "A fleet and its rounds")
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in _rows(history, extra)
    )
    story = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in extra.story)
    told = f"<section><h2>What was killed</h2>{story}</section>" if story else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><main><h1>{title}</h1>"
        f"<p>{html.escape(_say_accuracy(history, extra))}</p>"
        f"<section><h2>In numbers</h2><table>{rows}</table></section>{told}{''.join(figures)}</main></body></html>\n"
    )


def _rows(history: History, extra: Extra) -> Sequence[tuple[str, str]]:
    if extra.rows:
        return extra.rows
    counted = sum(len(step.members) for step in history.steps)
    purposes = ", ".join(f"{name} {size / 1000:.1f} kB" for name, size in history.purposes)
    return (
        ("devices", str(len(history.devices))),
        ("rounds closed", str(len(history.steps))),
        ("newest model version", str(history.steps[-1].version)),
        ("updates counted", str(counted)),
        ("bytes on devices' links", purposes or "no device has told yet"),
    )


def _figure(path: Path, heading: str, sentence: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    said = html.escape(sentence)
    return f'<section><h2>{heading}</h2><img alt="{said}" src="data:image/png;base64,{data}"><p>{said}</p></section>\n'
