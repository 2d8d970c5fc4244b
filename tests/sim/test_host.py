"""The host of a simulated device: batteries that run down, links that cost money, clocks that lie."""

import time

from firmware_sim.host import BATTERY_RATE_MIN, BEGAN_UNIX_S
from firmware_sim.storm import run
from firmware_sim.weather import CALM, Weather, named
from firmware_sim.world import World

HOUR_MS = 3_600_000
OFF_GRID = Weather(battery_rate=1.0, battery_mwh=10_000, panel_w=10.0, reading_every_ms=600_000)


def test_a_plain_device_is_cool_and_on_mains():
    world = World(1, CALM, devices=1)
    reading = world.devices[0].host.read(40, working=False)
    assert (reading.temperature_c, reading.on_mains, reading.battery_rate, reading.day_bytes_left) == (
        45.0, True, None, None,
    )  # fmt: skip


def test_a_device_off_the_grid_goes_dark_at_night_and_comes_back_with_the_sun():
    world = World(2, OFF_GRID, devices=6)
    dark, back = set(), set()
    for _ in range(72):
        world.run(world.now_ms + HOUR_MS)
        for device in world.devices:
            if device.agent is None:
                dark.add(device.name)
            elif device.name in dark:
                back.add(device.name)
    assert dark, "choose a smaller battery: nobody ran out of power"
    assert back
    assert world.tally["brown_out"] >= len(dark)


def test_a_battery_below_the_owners_limit_refuses_to_train():
    world = World(3, OFF_GRID, devices=1)
    device = world.devices[0]
    world.run(60_000)
    device.host.battery.level_mwh = 10_000 * (BATTERY_RATE_MIN - 0.1)
    world.run(660_000)
    world.request_round(updates_min=1)
    world.run(world.now_ms + 120_000)
    assert "battery at" in device.agent.reason
    assert not world.database.updates


def test_a_metered_day_is_spent_and_a_wrong_clock_begins_no_new_one_for_long():
    weather = Weather(metered_rate=1.0, metered_day_bytes=3_000, clock_1970_rate=1.0, reading_every_ms=600_000)
    world = World(4, weather, devices=2)
    for hour in range(30):
        world.request_round(updates_min=1)
        world.run((hour + 1) * HOUR_MS)
    assert any(world.devices[i].host.ledger.look().day_left < 1_024 for i in range(2))
    assert any("are spent" in device.agent.reason for device in world.devices)


def test_a_clock_that_began_in_1970_is_set_after_a_while():
    world = World(5, Weather(clock_1970_rate=1.0), devices=1)
    world.run(3_000)
    host = world.devices[0].host
    assert time.gmtime(host._wall_s()).tm_year == 1970
    world.run(HOUR_MS)
    assert host._wall_s() == BEGAN_UNIX_S + world.now_ms / 1000
    host.jump()
    assert abs(host._wall_s() - BEGAN_UNIX_S - world.now_ms / 1000) > 60


def test_a_week_off_the_grid_and_one_on_a_metered_link_keep_every_promise():
    for scenario in ("solar-week", "metered-link"):
        verdict = run(1, named(scenario), devices=4, rounds=4)
        assert not verdict.broken, verdict.sentence
