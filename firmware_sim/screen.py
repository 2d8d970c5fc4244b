"""What a run shows while it lasts: a live table on a terminal, plain lines anywhere else.

Both take the same three calls, so whoever runs a fleet does not know which one it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TextIO

    from rich.console import Group

BAR_CHARS = 24
COLUMNS = ("round", "devices in", "accuracy", "kB up", "kB down", "seconds")


@dataclass(frozen=True)
class Row:
    """One closed round. `present` of `devices` were counted; `accuracy` is None where nothing was measured."""

    round_id: int
    present: int
    devices: int
    accuracy: float | None
    bytes_up: int
    bytes_down: int
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """The texts of COLUMNS."""
        accuracy = "-" if self.accuracy is None else f"{self.accuracy:.3f}"
        return (
            str(self.round_id),
            f"{self.present} of {self.devices}",
            accuracy,
            f"{self.bytes_up / 1000:.1f}",
            f"{self.bytes_down / 1000:.0f}",
            f"{self.seconds:.1f}",
        )


class Screen(Protocol):
    """Where progress goes. Used as a context: it may own the terminal meanwhile."""

    def row(self, row: Row) -> None:
        """A round has closed."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""

    def status(self, text: str) -> None:
        """What goes on right now; replaced by the next one."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


def screen_on(stream: TextIO, echo: Callable[[str], None]) -> Screen:
    """A live table when `stream` is a terminal, else lines through `echo`."""
    return LiveTable(stream) if stream.isatty() else Lines(echo)


class Lines:
    """One line for each round and note; nothing for a status."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo = echo
        self._has_head = False

    def row(self, row: Row) -> None:
        """Write the round under the head of the table."""
        if not self._has_head:
            self._has_head = True
            self._echo(_aligned(COLUMNS))
        self._echo(_aligned(row.cells()))

    def note(self, text: str) -> None:
        """Write it."""
        self._echo(f"  {text}")

    def status(self, text: str) -> None:
        """Say nothing: lines cannot be taken back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class LiveTable:
    """A rich table that grows, with notes under it and a line that says what goes on."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._rows: list[Row] = []
        self._notes: list[str] = []
        self._status = ""
        self._console = Console(file=stream)
        # asked for the picture at each refresh, by a thread of its own
        self._live = Live(console=self._console, get_renderable=self._picture, refresh_per_second=8, transient=True)

    def row(self, row: Row) -> None:
        """Add the round to the table."""
        self._rows.append(row)

    def note(self, text: str) -> None:
        """Keep it under the table."""
        self._notes.append(text)

    def status(self, text: str) -> None:
        """Show it as the last line."""
        self._status = text

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._status = ""
        self._live.stop()
        self._console.print(self._picture(whole=True))

    def _picture(self, *, whole: bool = False) -> Group:
        from rich.console import Group as NewGroup
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in COLUMNS:
            table.add_column(column, justify="right")
        table.add_column("")
        for row in self._rows if whole else self._rows[-self._height() :]:
            bar = "█" * round(BAR_CHARS * (row.accuracy or 0.0))
            table.add_row(*row.cells(), Text(bar.ljust(BAR_CHARS, "·"), style="blue"))
        notes = [Text(f"  {note}", style="red" if "killed" in note else "dim") for note in self._notes]
        parts = [table] if self._rows else []
        return NewGroup(*parts, *notes, Text(f"  {self._status}" if self._status else "", style="dim"))

    def _height(self) -> int:
        """Rows that fit above the notes: a live display cannot scroll."""
        return max(5, self._console.size.height - len(self._notes) - 4)


def _aligned(cells: tuple[str, ...]) -> str:
    return "".join(cell.rjust(width) for cell, width in zip(cells, (7, 13, 11, 9, 10, 10), strict=True))
