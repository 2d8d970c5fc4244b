"""Energy adds up, however it is cut into steps, and comes to the same bits everywhere."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import energy
from broker.energy import Board
from firmware_sim import power
from firmware_sim.power import DAY_MS, HOUR_MS, Battery, Sun

ZERO, THREE, FOUR, FIVE = energy.BOARDS


def test_what_learning_adds_and_what_being_on_takes_are_told_apart() -> None:
    assert energy.joules(FOUR, 0.0, 0, 0, 0.0) == 0.0
    assert energy.joules(FOUR, 10.0, 0, 0, 0.0) == pytest.approx(0.925 * 4.5 * 10)
    assert energy.joules(FOUR, 0.0, 1_000_000, 0, 0.0) == pytest.approx(2.3)
    assert energy.joules(FOUR, 0.0, 0, 1_000_000, 0.0) == pytest.approx(0.75)
    assert energy.joules(FOUR, 0.0, 0, 0, 10.0) == pytest.approx(3.0)
    assert power.idle_joules(FOUR, 3600.0) == pytest.approx(2.7 * 3600)


@pytest.mark.parametrize(("board", "full_w"), [(ZERO, 2.6), (THREE, 5.1), (FOUR, 6.4), (FIVE, 8.8)])
def test_a_board_on_all_cores_draws_what_its_source_measured(board: Board, full_w: float) -> None:
    assert board.idle_w + board.cores * board.core_w == pytest.approx(full_w, abs=0.01)


def test_a_cost_is_of_one_device_of_the_fleet_and_of_a_point() -> None:
    spent = power.Spent(core_s=100.0, bytes_up=10_000, bytes_down=1_000_000, device_rounds=20, points=50.0)
    found = power.cost(THREE, spent)
    joules = energy.joules(THREE, 100.0, 10_000, 1_000_000, 20 * energy.ROUND_AWAKE_S)
    assert found.wh_fleet == pytest.approx(joules / 3600)
    assert found.wh_device_round == pytest.approx(found.wh_fleet / 20)
    assert found.wh_per_point == pytest.approx(found.wh_fleet / 50)
    assert found.core_s_device_round == pytest.approx(50.0)


def test_nothing_gained_and_nobody_finished_is_no_division_by_zero() -> None:
    found = power.cost(ZERO, power.Spent(0.0, 0, 0, 0, -1.0))
    assert found == power.Cost(0.0, 0.0, 0.0, 0.0)


# -- the sun --------------------------------------------------------------------------------------------------------


def clear_sun(panel_w: float = 6.0) -> Sun:
    return Sun(random.Random(1), panel_w, clear_rate_min=1.0)


def test_a_clear_day_gives_two_thirds_of_the_panel_from_six_to_six() -> None:
    sun = clear_sun()
    assert sun.mwh(0, DAY_MS) == pytest.approx(6.0 * 12 * 1000 * 2 / 3)
    assert sun.mwh(0, 6 * HOUR_MS) == sun.mwh(18 * HOUR_MS, DAY_MS) == 0.0
    assert sun.watts(12 * HOUR_MS) == pytest.approx(6.0)
    assert sun.watts(9 * HOUR_MS) == pytest.approx(4.5)
    assert sun.watts(5 * HOUR_MS) == sun.watts(19 * HOUR_MS) == 0.0


@given(st.lists(st.integers(0, 5 * DAY_MS), min_size=2, max_size=8))
def test_the_suns_energy_is_the_sum_of_its_parts(times: list[int]) -> None:
    times.sort()
    parts = Sun(random.Random(3), 5.0)
    whole = Sun(random.Random(3), 5.0).mwh(times[0], times[-1])
    found = sum(parts.mwh(begin, end) for begin, end in itertools.pairwise(times))
    assert found == pytest.approx(whole, rel=1e-9, abs=1e-6)


def test_days_differ_by_their_clouds_and_are_the_same_for_one_seed_in_any_order() -> None:
    one, other = Sun(random.Random(7), 5.0), Sun(random.Random(7), 5.0)
    days = [one.mwh(day * DAY_MS, (day + 1) * DAY_MS) for day in range(10)]
    assert [other.mwh(day * DAY_MS, (day + 1) * DAY_MS) for day in reversed(range(10))] == days[::-1]
    assert len(set(days)) == 10
    assert all(0.1 * 40_000 <= day <= 40_000 for day in days)


# -- a battery ------------------------------------------------------------------------------------------------------


def test_a_battery_empties_and_comes_back_only_well_above() -> None:
    battery = Battery(1000.0, 100.0, sun=clear_sun(1.0))
    battery.step(HOUR_MS // 2, 0.1)
    assert (battery.level_mwh, battery.is_empty) == (pytest.approx(50.0), False)
    battery.step(HOUR_MS, 0.02)
    assert (battery.rate, battery.is_empty) == (pytest.approx(0.04), True)
    battery.step(7 * HOUR_MS, 0.0)  # the first hour of light: 150 mWh of the 1 W panel, give or take
    assert 0.05 < battery.rate < 0.2
    assert battery.is_empty, "above the lower threshold, below the upper one"
    battery.step(8 * HOUR_MS, 0.0)
    assert battery.rate > 0.2
    assert not battery.is_empty


@given(st.lists(st.integers(0, 2 * DAY_MS), min_size=1, max_size=6), st.floats(0.0, 3.0), st.floats(0.0, 10_000.0))
def test_a_level_stays_between_nothing_and_all(times: list[int], load_w: float, level_mwh: float) -> None:
    battery = Battery(10_000.0, level_mwh, sun=clear_sun())
    for now_ms in sorted(times):
        battery.step(now_ms, load_w)
        assert 0.0 <= battery.level_mwh <= 10_000.0


@given(st.integers(1, DAY_MS), st.integers(1, DAY_MS))
def test_without_a_bound_in_the_way_the_number_of_steps_does_not_matter(first_ms: int, second_ms: int) -> None:
    cut, whole = Battery(1e6, 5e5, sun=clear_sun()), Battery(1e6, 5e5, sun=clear_sun())
    cut.step(first_ms, 1.0)
    cut.step(first_ms + second_ms, 1.0)
    whole.step(first_ms + second_ms, 1.0)
    assert cut.level_mwh == pytest.approx(whole.level_mwh, rel=1e-9)


def test_a_long_absence_goes_through_its_nights() -> None:
    """At once, three days of sun and load would cancel; by the hour the battery is full at noon and loses the rest."""
    battery = Battery(10_000.0, 5_000.0, sun=clear_sun())
    battery.step(3 * DAY_MS, 1.0)
    assert battery.level_mwh == pytest.approx(3_743.0, abs=300.0)  # 3,743 by the minute


def test_the_bits_are_the_same_on_every_processor() -> None:
    sun = Sun(random.Random(11), 5.5)
    battery = Battery(90_000.0, 43_210.0, sun=sun)
    for number in range(500):
        battery.step(number * 1_234_567, 0.3 + number % 7 * 0.2)
    assert battery.level_mwh.hex() == "0x1.01d6bad96c3afp+16"
    assert sun.mwh(1, 3 * DAY_MS + 12_345_678).hex() == "0x1.5f17f4b829ed0p+16"
