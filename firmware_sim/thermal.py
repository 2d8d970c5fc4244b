"""Heat: a board's temperature, what it does to its speed, and the air around it.

A body of first order: it goes towards `air + resistance x watts` with a time constant. From 80 °C on the firmware takes
the clock back, more with each degree up to 85 °C (raspberrypi.com, documentation, "Frequency management and thermal
control"); the same work then takes longer, at less power. What is not in it: fans, and the 3B+'s first step at 60 °C.

Resistance and time constant are estimates for a bare board in still air: a Pi 4B that works on all cores (6.4 W) comes
to about 80 °C in a room within some minutes. Only + - x / are used, so that every processor gets the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmware_sim.power import DAY_MS, HOUR_MS

if TYPE_CHECKING:
    import random

THROTTLE_C: Final = 80.0
LIMIT_C: Final = 85.0
SLOWDOWN_MAX: Final = 2.5  # at the limit: a Pi 4B at 600 MHz instead of 1,500
RESISTANCE_C_PER_W: Final = 9.0
TIME_CONSTANT_MS: Final = 240_000
WARMEST_H: Final = 15
PARTS: Final = 8  # of a time constant: with fewer, throttling would swing to and fro
FORGOTTEN: Final = 12  # time constants after which nothing is left of where it began


def slowdown(temperature_c: float) -> float:
    """How many times longer work takes at that temperature: 1 up to THROTTLE_C."""
    share = (temperature_c - THROTTLE_C) / (LIMIT_C - THROTTLE_C)
    return 1.0 + (SLOWDOWN_MAX - 1.0) * min(1.0, max(0.0, share))


class Body:
    """A board's temperature. Time, power and air are arguments; time never goes back."""

    def __init__(
        self,
        temperature_c: float,
        *,
        now_ms: int = 0,
        resistance_c_per_w: float = RESISTANCE_C_PER_W,
        time_constant_ms: int = TIME_CONSTANT_MS,
    ) -> None:
        self.temperature_c = temperature_c
        self._now_ms = now_ms
        self._resistance_c_per_w = resistance_c_per_w
        self._time_constant_ms = time_constant_ms

    def step(self, now_ms: int, idle_w: float, work_w: float, air_c: float) -> None:
        """Go on to `now_ms` with that power since the last step; what works draws less where it is throttled.

        Backward Euler, so that no exp is needed.
        """
        elapsed_ms = min(now_ms - self._now_ms, FORGOTTEN * self._time_constant_ms)
        parts = 1 + PARTS * elapsed_ms // self._time_constant_ms
        part = elapsed_ms / parts / self._time_constant_ms
        for _ in range(parts):
            watts = idle_w + work_w / slowdown(self.temperature_c)
            goal_c = air_c + self._resistance_c_per_w * watts
            self.temperature_c = (self.temperature_c + part * goal_c) / (1.0 + part)
        self._now_ms = now_ms


class Air:
    """The air by hour and day: coldest at 3, warmest at 15, and some days are hot.

    `chance` is drawn from once for each day, in order of the days, so devices at one place may share an Air.
    """

    def __init__(
        self,
        chance: random.Random,
        mean_c: float = 22.0,
        swing_c: float = 6.0,
        hot_rate: float = 0.0,
        hot_c: float = 15.0,
    ) -> None:
        self._chance = chance
        self._mean_c = mean_c
        self._swing_c = swing_c
        self._hot_rate = hot_rate
        self._hot_c = hot_c
        self._extra_c: list[float] = []

    def celsius(self, now_ms: int) -> float:
        """How warm it is now. A hot day begins and ends at midnight."""
        day, within_ms = divmod(now_ms, DAY_MS)
        while len(self._extra_c) <= day:
            self._extra_c.append(self._hot_c if self._chance.random() < self._hot_rate else 0.0)
        phase = (within_ms - (WARMEST_H - 6) * HOUR_MS) % DAY_MS / DAY_MS
        return self._mean_c + self._extra_c[day] + self._swing_c * _wave(phase)


def _wave(phase: float) -> float:
    """A sine's stand-in of two parabolas: 0 at 0, 1 at a quarter, 0 at a half, -1 at three quarters."""
    if phase < 0.5:
        return 16.0 * phase * (0.5 - phase)
    return -16.0 * (phase - 0.5) * (1.0 - phase)
