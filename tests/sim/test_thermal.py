"""A board warms, throttles and cools as a first-order body does, in any steps and with the same bits everywhere."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.energy import BOARDS
from firmware_sim import thermal
from firmware_sim.power import DAY_MS, HOUR_MS
from firmware_sim.thermal import Air, Body

TAU_MS = thermal.TIME_CONSTANT_MS
FOUR = BOARDS[2]


def test_it_goes_to_the_air_and_what_the_power_adds() -> None:
    body = Body(22.0)
    body.step(HOUR_MS, 2.7, 0.0, 22.0)
    assert body.temperature_c == pytest.approx(22.0 + 9.0 * 2.7, abs=0.01)
    body.step(2 * HOUR_MS, 0.0, 0.0, 22.0)
    assert body.temperature_c == pytest.approx(22.0, abs=0.01)


def test_after_one_time_constant_two_thirds_of_the_way_are_done() -> None:
    body = Body(20.0)
    for number in range(1, 101):
        body.step(number * TAU_MS // 100, 0.0, 1.0, 20.0)
    assert (body.temperature_c - 20.0) / 9.0 == pytest.approx(1 - math.exp(-1), abs=0.005)
    coarse = Body(20.0)
    coarse.step(TAU_MS, 0.0, 1.0, 20.0)
    assert coarse.temperature_c == pytest.approx(body.temperature_c, abs=0.3)


def test_work_takes_longer_from_80_degrees_on_and_no_longer_than_the_slowest_clock() -> None:
    assert thermal.slowdown(25.0) == thermal.slowdown(80.0) == 1.0
    assert thermal.slowdown(82.5) == pytest.approx(1.75)
    assert thermal.slowdown(85.0) == thermal.slowdown(120.0) == thermal.SLOWDOWN_MAX


def test_a_throttled_board_settles_in_its_band_and_does_not_swing() -> None:
    """All cores of a Pi 4B on a hot day: without throttling it would come to 98 degrees."""
    body, seen = Body(40.0), []
    for number in range(1, 61):
        body.step(number * 60_000, FOUR.idle_w, 4 * FOUR.core_w, 40.0)
        seen.append(body.temperature_c)
    assert 40.0 + 9.0 * 6.4 > 95.0
    assert 80.0 < seen[-1] < 85.0
    assert max(seen[-10:]) - min(seen[-10:]) < 0.1
    at_once = Body(40.0)
    at_once.step(5 * DAY_MS, FOUR.idle_w, 4 * FOUR.core_w, 40.0)
    assert at_once.temperature_c == pytest.approx(seen[-1], abs=0.1)


@given(st.floats(-20, 110), st.floats(0, 9), st.floats(-20, 50), st.integers(0, 10 * DAY_MS))
def test_it_never_leaves_what_lies_between_where_it_was_and_where_it_goes(
    start_c: float, watts: float, air_c: float, now_ms: int
) -> None:
    body = Body(start_c)
    body.step(now_ms, watts, 0.0, air_c)
    goal_c = air_c + 9.0 * watts
    assert min(start_c, goal_c) - 1e-9 <= body.temperature_c <= max(start_c, goal_c) + 1e-9


def test_the_air_is_warmest_at_three_and_coldest_at_night() -> None:
    air = Air(random.Random(1), 20.0, 5.0)
    hours = [air.celsius(hour * HOUR_MS) for hour in range(24)]
    assert (max(hours), hours.index(max(hours))) == (25.0, 15)
    assert (min(hours), hours.index(min(hours))) == (15.0, 3)
    assert hours[9] == hours[21] == 20.0


def test_hot_days_come_as_often_as_asked_and_the_same_for_one_seed() -> None:
    air, again = (Air(random.Random(5), 20.0, 5.0, hot_rate=0.25, hot_c=10.0) for _ in range(2))
    noons = [air.celsius(day * DAY_MS + 15 * HOUR_MS) for day in range(400)]
    assert set(noons) == {25.0, 35.0}
    assert 70 < noons.count(35.0) < 130
    assert [again.celsius(day * DAY_MS + 15 * HOUR_MS) for day in reversed(range(400))] == noons[::-1]


def test_the_bits_are_the_same_on_every_processor() -> None:
    body, air = Body(30.0), Air(random.Random(9), hot_rate=0.5)
    for number in range(1, 500):
        body.step(number * 98_765, FOUR.idle_w, number % 5 * FOUR.core_w, air.celsius(number * 98_765))
    assert body.temperature_c.hex() == "0x1.4c9c5fe34dc91p+6"
