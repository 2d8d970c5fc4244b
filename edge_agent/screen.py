"""What the commands that train draw: progress bars, bars and tables made of characters, and a plot as a PNG."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import click

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


class Epoch(NamedTuple):
    """How training stood after an epoch: mean loss of its steps, and accuracy on the windows that measure."""

    number: int  # 0: before training
    loss: float | None  # mean cross-entropy in nats; None before training
    accuracy: float


class Screen:
    """Shows what goes on: one progress bar a task, with the time that is left, on stderr and on a terminal only.

    A bar hides the cursor; leaving the context, however it is left, brings it back.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self, label: str, length: int) -> None:
        """Start the bar of a task of `length` steps; the one before it ends."""
        self.end()
        if sys.stderr.isatty():
            self._bar, self._done = click.progressbar(length=length, label=f"{label:<18}", file=sys.stderr), 0
            self._bar.__enter__()

    def reach(self, done: int) -> None:
        """Say that `done` steps of the task are done."""
        if self._bar is not None:
            self._bar.update(done - self._done)
            self._done = done

    def end(self) -> None:
        """End the bar, if there is one."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = None


def bar(share: float, width: int = 20) -> str:
    """Draw `share`, 0 to 1, as a bar that is `width` characters long at 1."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(width)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay `rows` out under `head`, columns two spaces apart; a column whose head ends in a space is set left."""
    widths = [max(len(row[at].rstrip()) for row in (head, *rows)) for at in range(len(head))]
    return [
        "  ".join(
            cell.rstrip().ljust(width) if title.endswith(" ") else cell.rjust(width)
            for title, cell, width in zip(head, row, widths, strict=True)
        ).rstrip()
        for row in (head, *rows)
    ]


def plot(path: Path, epochs: Sequence[Epoch], title: str) -> bool:
    """Write loss and accuracy per epoch to `path`, a PNG; False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure: Any = Figure(figsize=(7.0, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    trained = [epoch for epoch in epochs if epoch.loss is not None]
    loss.plot([epoch.number for epoch in trained], [epoch.loss for epoch in trained], marker="o", color="tab:red")
    loss.set(title="loss of the epoch", xlabel="epoch", ylim=(0, None))
    accuracy.plot([epoch.number for epoch in epochs], [epoch.accuracy for epoch in epochs], marker="o")
    accuracy.set(title="accuracy on windows set aside", xlabel="epoch", ylim=(0, 1))
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    return True
