"""The host of a simulated device: its heat and power, its clocks, and the bytes that its owner lets it carry.

Most devices are plain: on mains, cool, without a limit. Some have a battery and a panel, and go off when it is empty;
some a link that costs money, whose account is the product's own (`edge_agent.traffic`), on the simulated card. Their
clock may begin in 1970 at a boot, until somebody sets it, and jump by days.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from broker.energy import BOARDS
from edge_agent.budget import Limits
from edge_agent.effects import Reading
from edge_agent.traffic import Ledger
from firmware_sim.power import HOUR_MS, Battery
from firmware_sim.thermal import Body, slowdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.energy import Board
    from edge_agent.disk import Disk
    from firmware_sim.world import World

BEGAN_UNIX_S: Final = 1_795_000_000  # 2026-11-18
COOL_C: Final = 45.0
HOT_C: Final = 95.0
TEMPERATURE_C_MAX: Final = 80.0
BATTERY_RATE_MIN: Final = 0.3
SET_MS_MAX: Final = 1_800_000  # until a clock that began in 1970 is set
JUMP_S_MAX: Final = 40 * 86_400
RETRY_MS: Final = HOUR_MS // 6  # how often a device that lacks power looks whether there is enough


class Host:
    """One device's. What a power cut leaves of it is heat, the battery, and how the clock is off."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        weather = world.weather
        self.board: Board = BOARDS[world.draw(len(BOARDS))] if weather.battery_rate else BOARDS[0]
        self.battery: Battery | None = None
        self._body: Body | None = None
        if world.chance(weather.battery_rate, "battery"):
            self.battery = Battery(weather.battery_mwh, weather.battery_mwh * 0.8, sun=world.sun, now_ms=world.now_ms)
            self._body = Body(COOL_C, now_ms=world.now_ms)
        metered = world.chance(weather.metered_rate, "metered")
        self.limits = Limits(
            temperature_c_max=TEMPERATURE_C_MAX,
            battery_rate_min=BATTERY_RATE_MIN if self.battery is not None else None,
            day_bytes_max=weather.metered_day_bytes if metered else 0,
        )
        self.ledger: Ledger | None = None
        self.trained_ms = 0  # of one core, in all
        self._off_s = 0.0  # how wrong the clock is

    # A life

    def start(self, disk: Disk, local_ms: Callable[[], int]) -> None:
        """The program starts: whoever counts bytes reads what was counted before."""
        world = self._world
        if world.chance(world.weather.clock_1970_rate, "clock_1970"):
            self._off_s = -BEGAN_UNIX_S - world.now_ms / 1000
            world.at(1 + world.draw(SET_MS_MAX), self._set_clock)
        if self.limits.day_bytes_max:
            self.ledger = Ledger(disk, self.limits, wall=self._wall_s, steady=lambda: local_ms() / 1000)

    def jump(self) -> None:
        """Somebody or something sets the clock wrong; it is noticed after a while."""
        world = self._world
        self._off_s = float(world.draw(2 * JUMP_S_MAX) - JUMP_S_MAX)
        world.at(1 + world.draw(SET_MS_MAX), self._set_clock)

    def end(self) -> None:
        """The program is gone."""
        self.ledger = None

    def save(self, *, at_end: bool) -> None:
        """Keep what was counted, at an orderly end or if it is time. A full disk is no reason to stop working."""
        if self.ledger is not None:
            with contextlib.suppress(OSError):
                (self.ledger.save if at_end else self.ledger.save_if_due)()

    def heal(self) -> None:
        """Mains, shade, and a link that costs nothing."""
        self.battery = self._body = self.ledger = None
        self.limits = Limits(temperature_c_max=TEMPERATURE_C_MAX)

    # What it says

    @property
    def is_dark(self) -> bool:
        """Is there too little power to be on?"""
        self._live(0.0)
        return self.battery is not None and self.battery.is_empty

    @property
    def slowdown(self) -> float:
        """How many times longer work takes for the heat."""
        return slowdown(self._body.temperature_c) if self._body is not None else 1.0

    def read(self, num_examples: int, *, working: bool, is_on: bool = True) -> Reading:
        """What the host says of itself now."""
        world = self._world
        self._live(self.board.idle_w * is_on, self.board.core_w * working)
        celsius = HOT_C if world.chance(world.weather.hot_rate, "hot") else COOL_C
        if self._body is not None and celsius != HOT_C:
            celsius = self._body.temperature_c
        left = 0 if world.chance(world.weather.bytes_spent_rate, "bytes_spent") else None
        traffic = None
        if self.ledger is not None:
            look = self.ledger.look()
            traffic, left = look.total, look.day_left if left is None else left
        level = self.battery.rate if self.battery is not None else None
        return Reading(
            temperature_c=celsius,
            battery_rate=level,
            on_mains=self.battery is None,
            num_examples=num_examples,
            day_bytes_left=left,
            traffic=traffic,
        )

    def _live(self, idle_w: float, work_w: float = 0.0) -> None:
        """Heat and battery since the last time."""
        if self.battery is None or self._body is None:
            return
        now_ms = self._world.now_ms
        self._body.step(now_ms, idle_w, work_w, self._world.air.celsius(now_ms))
        self.battery.step(now_ms, idle_w + work_w)

    # The clock

    def _wall_s(self) -> float:
        return BEGAN_UNIX_S + self._world.now_ms / 1000 + self._off_s

    def _set_clock(self) -> None:
        self._off_s = 0.0
