"""What the owner of a link tells it, and what it hears: settings, events, and how long a link rests after a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from wire import limits
from wire.clock_floor import Tls, with_floor
from wire.server_url import Server, parse_url, tls_context

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

FILTERS_MAX: Final = 8  # what AWS IoT takes in one SUBSCRIBE
QUEUE_COUNT_MAX: Final = 1024
QUEUE_BYTES_MAX: Final = 8 * 1024 * 1024
REFUSED_PAUSE_MS_MIN: Final = 60_000  # wrong credentials do not mend themselves in a second


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Connected, and every filter is subscribed: the answer to anything published from now on cannot be missed."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """No connection, for this reason. Posted when a connection ends or the reason changes, not for each attempt."""

    reason: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message, always after the LinkUp of its connection. `retain`: kept from before our subscription."""

    topic: str
    payload: bytes
    retain: bool


LinkEvent: TypeAlias = LinkUp | LinkDown | Arrived


class Ended(NamedTuple):
    """Why a connection ended. `refused`: something that only an operator can mend."""

    reason: str
    refused: bool = False


STOPPED: Final = Ended("stopped")


def pause_ms(jitter: random.Random, failures: int, *, refused: bool) -> int:
    """Full jitter: anything from 0 to a ceiling that doubles with each failure. Refusals wait a minute or more."""
    if refused:
        return jitter.randint(REFUSED_PAUSE_MS_MIN, limits.RECONNECT_MS_MAX)
    return jitter.randint(0, min(limits.RECONNECT_MS_MAX, limits.RECONNECT_MS_MIN << min(failures, 20)))


class Settings(NamedTuple):
    """How one program connects. In a swarm all but client_id, filters and will are the same for everybody.

    `filters`: 1 to 8, all at QoS 1. `will`: called before each CONNECT, for the (topic, payload) that the server
    publishes should the connection end without our goodbye; `will_retain`: and then keeps for those who subscribe
    later. `tls`: called before each attempt, or None. What waits is bounded by `queue_count_max` messages and
    `queue_bytes_max` bytes of payload.
    """

    server: Server
    client_id: str
    filters: tuple[str, ...]
    will: Callable[[], tuple[str, bytes]] | None
    will_retain: bool = False
    username: str | None = None
    password: str | None = None
    tls: Callable[[], Tls] | None = None
    in_flight_max: int = limits.IN_FLIGHT_MAX
    queue_count_max: int = QUEUE_COUNT_MAX
    queue_bytes_max: int = QUEUE_BYTES_MAX

    @property
    def where(self) -> str:
        """The server, for a sentence."""
        return f"{self.server.host}:{self.server.port}"


def server_of(url: str, *files: Path | None) -> tuple[Server, Callable[[], Tls] | None]:
    """The server at `url`, as `parse_url` takes it, and how TLS with it begins; `files`: as of `tls_context`.

    Raises ValueError, one line, for what cannot work.
    """
    server = parse_url(url)
    if any(files) and not server.tls:
        raise ValueError(f"{url} is without TLS, but certificates are given: write mqtts://, or leave them out")
    if not server.tls:
        return server, None
    tls_context(*files)  # now, so that a missing file is the caller's error and no reason to retry
    return server, lambda: with_floor(tls_context(*files), *files)
