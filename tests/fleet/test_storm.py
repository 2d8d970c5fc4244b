"""Two hundred storms: safety while everything breaks, then healing, then progress. See firmware_sim.storm."""

import collections
import functools

import pytest

from firmware_sim import storm
from firmware_sim.weather import Weather

BLOCKS = 8
SEEDS_A_BLOCK = 25

# Rates and times that are part of a fault, not faults themselves, and the tallies that stand for each fault.
SETTINGS = {name for name in Weather.__struct_fields__ if name.endswith("_ms_max")} | {
    "lasts_ms",
    "rounds",
    "battery_mwh",
    "panel_w",
    "hot_day_rate",
    "hot_day_c",
    "metered_day_bytes",
    "round_every_ms",
    "reading_every_ms",
    "drift_rate_max",
    "slow_bytes_per_s",
    "in_flight_max",
    "attacker_rate",  # tests/fleet/test_byzantine.py
    "attack",
}
TALLIES = {
    "cut_at_effect_rate": ("device cut before", "device cut after"),
    "exit_at_effect_rate": ("device exit before", "device exit after"),
    "cut_at_operation_rate": ("device cut within",),
    "exit_at_operation_rate": ("device exit within",),
    "coordinator_cut_at_effect_rate": ("coordinator cut before", "coordinator cut after"),
    "coordinator_exit_at_effect_rate": ("coordinator exit before", "coordinator exit after"),
    "queue_max": ("queue_full",),
    "forge_every_ms": ("forge_key", "forge_topic", "forge_bit"),
}


@functools.cache
def run(seed):
    return storm.run(seed)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_promise_holds_in_every_storm_and_work_goes_on_after_it(block):
    for seed in range(block * SEEDS_A_BLOCK, (block + 1) * SEEDS_A_BLOCK):
        assert not run(seed).broken, storm.tell(run(seed))


def test_no_fault_of_the_weather_is_dead_code():
    faults = sum((run(seed).faults for seed in range(BLOCKS * SEEDS_A_BLOCK)), collections.Counter())
    for field in sorted(set(Weather.__struct_fields__) - SETTINGS):
        for kind in TALLIES.get(field, (field.removesuffix("_rate").removesuffix("_every_ms"),)):
            assert faults[kind] > 0, f"{kind}, of the weather's {field}, never happened"


def test_a_failing_seed_is_told_with_its_promise_and_its_last_happenings():
    def never_heals(world):
        world.heal = lambda: None

    verdict = storm.run(3, Weather(aggregate_fails_rate=1.0), devices=2, rounds=1, prepare=never_heals)
    assert verdict.broken == "progress"
    told = storm.tell(verdict)
    assert told.endswith("but rounds [1] are not closed, the outboxes of [] are full")
    assert "seed 3, progress" in told
    assert "telemetry" in told
