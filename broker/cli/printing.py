"""How a command prints its one answer: a table for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PIPE_WIDTH: Final = 200  # where there is no terminal, nothing shall be cut off
SILENT_S: Final = 2.0
_BARS: Final = "▁▂▃▄▅▆▇█"


def print_json(answer: object) -> None:
    """Print one JSON value; bytes as hex."""
    click.echo(json.dumps(answer, indent=2, default=lambda value: value.hex()))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Print a table, or the sentence `empty` when there are no rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        click.echo(empty)
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        # Text, because what devices say of themselves must not be read as markup
        table.add_row(*(Text("-" if cell is None or cell == "" else str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def ago(unix_s: float) -> str:
    """How long ago that was, to one unit."""
    seconds = max(0, int(time.time() - unix_s))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def rate(correct: int, count: int) -> str:
    """An accuracy with its counts; a dash where nobody was asked."""
    return f"{correct / count:.4f} ({correct}/{count})" if count else "-"


def spark(values: Sequence[float], low: float, high: float) -> str:
    """A line of bars, from `low` to `high`."""
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round(scale * (value - low))] for value in values)


def shown(what: str) -> Callable[[int, int], None]:
    """Tell the progress, so many done of all, on one line of a terminal, once it takes longer than a moment."""
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty() and time.monotonic() - began > SILENT_S:
            told = f"{what}: {100 * done // total} %" if done < total else ""
            click.echo(f"\r\033[K{told}", err=True, nl=False)

    return show
