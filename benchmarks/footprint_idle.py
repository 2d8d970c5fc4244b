"""A device that has nothing to do: its memory, what it says, what it writes; and how long its death goes unnoticed.

Bytes are those of TCP, both ways, TLS records and MQTT's pings in them, as the gate before the MQTT server counts them;
the window is one whole interval of telemetry, so it holds every kind of message that an idle device sends as often as
it sends it. The handshake is before it. A death is a link that falls silent right after the device has spoken, which is
the longest that it can take; the seconds are up to the coordinator's own line.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.footprint_fleet import POLL_S, memory_of
from firmware_sim.fleet import FleetError
from firmware_sim.lines import Follower

if TYPE_CHECKING:
    from benchmarks.footprint_disk import Card
    from benchmarks.footprint_fleet import Farm
    from benchmarks.gate import Gate
    from firmware_sim.processes import Program

SETTLE_S: Final = 12.0
DEATH_TIMEOUT_S: Final = 180.0
DAY_S: Final = 86_400


@dataclass(frozen=True)
class Idle:
    """What one window held. `flash_bytes`: None where nobody could count."""

    seconds: float
    rss_mb: float
    pss_mb: float
    tcp_bytes: int
    flash_bytes: int | None

    @property
    def tcp_bytes_per_min(self) -> float:
        """Both ways."""
        return self.tcp_bytes / self.seconds * 60

    @property
    def flash_bytes_per_day(self) -> float | None:
        """As the window goes on all day."""
        return None if self.flash_bytes is None else self.flash_bytes / self.seconds * DAY_S


class Vigil:
    """Watches an idle agent in a thread of its own, since it takes minutes: `idle` waits for the end."""

    def __init__(self, agent: Program, gate: Gate, card: Card | None, window_s: float) -> None:
        self.card = card
        self._agent, self._gate, self._window_s = agent, gate, window_s
        self._found: Idle | None = None
        self._thread = threading.Thread(target=self._watch, name="vigil", daemon=True)
        self._thread.start()

    def idle(self) -> Idle:
        """What it saw. Raises FleetError."""
        self._thread.join()
        if self._found is None or not self._agent.is_running:
            raise FleetError(f"the idle agent did not live to the end: {self._agent.tail(3)}")
        return self._found

    def _watch(self) -> None:
        time.sleep(SETTLE_S)
        (began_s, heard, written), early = self._look(), memory_of(self._agent.pid)
        time.sleep(self._window_s)
        (ended_s, heard_now, written_now), late = self._look(), memory_of(self._agent.pid)
        flash = None if written is None or written_now is None else written_now - written
        rss, pss = max(early, late)
        self._found = Idle(ended_s - began_s, rss, pss, heard_now - heard, flash)

    def _look(self) -> tuple[float, int, int | None]:
        written = None if self.card is None else self.card.written_bytes()
        return time.monotonic(), self._gate.heard_bytes, written


def death_seen_s(farm: Farm, gate: Gate, device: str) -> float:
    """Silence the link of a device born just now; the seconds until its coordinator knows. Raises FleetError."""
    log = Follower(farm.coordinator.log)
    log.new()
    gate.shut()
    began_s = time.monotonic()
    while time.monotonic() < began_s + DEATH_TIMEOUT_S:
        if any(line.get("event") == "death" and line.get("device") == device for line in log.new()):
            return time.monotonic() - began_s
        time.sleep(POLL_S)
    raise FleetError(f"nobody noticed within {DEATH_TIMEOUT_S:.0f} s that {device} is gone")
