"""Energy: what learning costs a board beyond being on, and a battery under the sun.

A board draws `idle_w` whether it learns or not. Learning adds `core_w` for each second that a core is busy, and the
radio adds energy for each byte and for the time that it is kept awake. Those are told apart: `joules` is what learning
adds, `idle_joules` the floor below it.

The boards, and where their figures come from, are in `broker.energy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from broker.energy import ROUND_AWAKE_S, WH_J, joules

if TYPE_CHECKING:
    import random

    from broker.energy import Board

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS


class Spent(NamedTuple):
    """What a fleet's learning took, measured or planned, all devices together."""

    core_s: float  # of this machine's cores
    bytes_up: int
    bytes_down: int
    device_rounds: int  # updates finished
    points: float  # percentage points of accuracy gained


class Cost(NamedTuple):
    """The same as energy on one kind of board, above idle. `wh_per_point`: 0 where nothing was gained."""

    wh_device_round: float
    wh_fleet: float
    wh_per_point: float
    core_s_device_round: float  # of that board's cores


def idle_joules(board: Board, seconds: float) -> float:
    """What a board takes in that time without learning anything."""
    return board.idle_w * seconds


def cost(board: Board, spent: Spent) -> Cost:
    """What `spent` comes to if every device were this board."""
    rounds = max(1, spent.device_rounds)
    awake_s = ROUND_AWAKE_S * spent.device_rounds
    fleet_wh = joules(board, spent.core_s, spent.bytes_up, spent.bytes_down, awake_s) / WH_J
    per_point = fleet_wh / spent.points if spent.points > 0 else 0.0
    return Cost(fleet_wh / rounds, fleet_wh, per_point, board.core_ratio * spent.core_s / rounds)


class Sun:
    """A panel's power over the days: a parabola from sunrise to sunset, and a share of clear sky drawn for each day.

    `chance` is drawn from once for each day, in order of the days, so devices under one sky may share a Sun.
    """

    def __init__(
        self,
        chance: random.Random,
        panel_w: float,
        rise_h: float = 6.0,
        set_h: float = 18.0,
        clear_rate_min: float = 0.1,
    ) -> None:
        self._chance = chance
        self._panel_w = panel_w
        self._rise_ms = rise_h * HOUR_MS
        self._light_ms = (set_h - rise_h) * HOUR_MS
        self._clear_rate_min = clear_rate_min
        self._clear: list[float] = []

    def watts(self, now_ms: int) -> float:
        """What the panel gives now."""
        day, within_ms = divmod(now_ms, DAY_MS)
        x = _share(within_ms, self._rise_ms, self._light_ms)
        return self._panel_w * self._clear_rate(day) * 4.0 * x * (1.0 - x)

    def mwh(self, from_ms: int, to_ms: int) -> float:
        """What it gives from one time to another, exactly."""
        total = 0.0
        for day in range(from_ms // DAY_MS, to_ms // DAY_MS + 1):
            begin = _share(from_ms - day * DAY_MS, self._rise_ms, self._light_ms)
            end = _share(to_ms - day * DAY_MS, self._rise_ms, self._light_ms)
            total += self._clear_rate(day) * (_light(end) - _light(begin))
        return total * self._panel_w * 1000.0 * self._light_ms / HOUR_MS

    def _clear_rate(self, day: int) -> float:
        while len(self._clear) <= day:
            self._clear.append(self._clear_rate_min + (1.0 - self._clear_rate_min) * self._chance.random())
        return self._clear[day]


class Battery:
    """A battery, and the brown-out behind it: empty below `empty_rate`, and so until it is above `back_rate`.

    Time and load are arguments; time never goes back.
    """

    def __init__(
        self,
        capacity_mwh: float,
        level_mwh: float,
        *,
        sun: Sun | None = None,
        now_ms: int = 0,
        empty_rate: float = 0.05,
        back_rate: float = 0.2,
    ) -> None:
        self.level_mwh = level_mwh
        self.is_empty = level_mwh < empty_rate * capacity_mwh
        self._capacity_mwh = capacity_mwh
        self._sun = sun
        self._now_ms = now_ms
        self._empty_rate = empty_rate
        self._back_rate = back_rate

    @property
    def rate(self) -> float:
        """How full it is, 0 to 1."""
        return self.level_mwh / self._capacity_mwh

    def step(self, now_ms: int, load_w: float) -> None:
        """Go on to `now_ms` with that load since the last step; a long step goes by the hour, for nights and noons."""
        while self._now_ms < now_ms:
            self._flow(min(now_ms, self._now_ms + HOUR_MS), load_w)

    def _flow(self, now_ms: int, load_w: float) -> None:
        gained = self._sun.mwh(self._now_ms, now_ms) if self._sun is not None else 0.0
        lost = 1000.0 * load_w * (now_ms - self._now_ms) / HOUR_MS
        self.level_mwh = min(self._capacity_mwh, max(0.0, self.level_mwh + gained - lost))
        self.is_empty = self.rate < (self._back_rate if self.is_empty else self._empty_rate)
        self._now_ms = now_ms


def _share(at_ms: float, begin_ms: float, length_ms: float) -> float:
    """How much of a length has passed, 0 to 1."""
    return min(1.0, max(0.0, (at_ms - begin_ms) / length_ms))


def _light(x: float) -> float:
    """The integral of 4x(1 - x), the shape of a day: no sine, whose last bits differ between processors."""
    return x * x * (2.0 - 4.0 * x / 3.0)
