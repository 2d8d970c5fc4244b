"""What a swarm shows while it runs: a live table on a terminal, a line every ten seconds anywhere else."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TextIO

    from rich.console import Group

LINE_S: Final = 10.0


@dataclass(frozen=True)
class Look:
    """The swarm at one moment. Rates are since the last look; `server_rss_bytes`: 0 where the server is elsewhere."""

    doing: str
    devices: int
    connected: int
    born: int
    training: int
    finished: int
    receipted: int
    resent: int
    reconnects: int
    last_reason: str  # why a connection ended
    up_per_s: float
    down_per_s: float
    coordinator_cpu_rate: float
    server_rss_bytes: int
    rss_bytes: int

    def rows(self) -> list[tuple[str, str]]:
        """Names and values, for people."""
        server = f"{self.server_rss_bytes / 1e6:,.0f} MB" if self.server_rss_bytes else "elsewhere"
        reason = f" ({self.last_reason})" if self.last_reason else ""
        return [
            ("connected", f"{self.connected:,} of {self.devices:,}"),
            ("births heard", f"{self.born:,}"),
            ("training", f"{self.training:,}"),
            ("updates finished", f"{self.finished:,}"),
            ("receipted", f"{self.receipted:,}"),
            ("sent again", f"{self.resent:,}"),
            ("reconnects", f"{self.reconnects:,}{reason}"),
            ("messages up", f"{self.up_per_s:,.0f}/s"),
            ("messages down", f"{self.down_per_s:,.0f}/s"),
            ("coordinator", f"{self.coordinator_cpu_rate:.0%} of a core"),
            ("MQTT server", server),
            ("this process", f"{self.rss_bytes / 1e6:,.0f} MB"),
        ]


class SwarmScreen(Protocol):
    """Where progress goes. Used as a context: it may own the terminal meanwhile."""

    def look(self, look: Look) -> None:
        """How it is now; replaced by the next one."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


def screen_on(stream: TextIO, echo: Callable[[str], None]) -> SwarmScreen:
    """A live table when `stream` is a terminal, else lines through `echo`."""
    return LiveSwarm(stream) if stream.isatty() else SwarmLines(echo)


class SwarmLines:
    """Notes at once, and how it is now and then."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo = echo
        self._next_s = time.monotonic() + LINE_S

    def look(self, look: Look) -> None:
        """Write a line if the last one is old enough."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LINE_S
            self._echo(f"  {look.doing}: " + ", ".join(f"{name} {value}" for name, value in look.rows()))

    def note(self, text: str) -> None:
        """Write it."""
        self._echo(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class LiveSwarm:
    """The notes, and under them a table that changes."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._look: Look | None = None
        self._notes: list[str] = []
        self._live = Live(console=Console(file=stream), get_renderable=self._picture, auto_refresh=False)

    def look(self, look: Look) -> None:
        """Show it. Drawn here and by no thread: ten thousand lines need this one."""
        self._look = look
        self._live.refresh()

    def note(self, text: str) -> None:
        """Keep it above the table."""
        self._notes.append(text)
        self._live.refresh()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def _picture(self) -> Group:
        from rich.console import Group as NewGroup
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        for name, value in self._look.rows() if self._look is not None else []:
            table.add_row(Text(name, style="dim"), Text(value, style="bold", justify="right"))
        doing = Text(self._look.doing if self._look is not None else "", style="blue")
        return NewGroup(*(Text(note) for note in self._notes), doing, table)
