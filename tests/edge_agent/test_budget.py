"""The owner's limits: each refuses with its reason, and unknown is never fine."""

from __future__ import annotations

import msgspec
import pytest

from edge_agent.budget import TRAINER_BASELINE_BYTES, Hours, Limits, in_words, refusal
from edge_agent.effects import Reading
from tests.edge_agent.stage import FINE, PLAN

NIGHT = Limits(hours=(Hours.of("22:00-06:00"), Hours.of("12:00-13:30")))
ALL = Limits(temperature_c_max=60.0, battery_rate_min=0.4, mains_only=False, memory_bytes_max=64 << 20)


def test_a_good_reading_may_train():
    assert refusal(ALL, PLAN, FINE) is None
    assert refusal(Limits(mains_only=True), PLAN, FINE) is None
    assert refusal(Limits(), PLAN, Reading(num_examples=5)) is None  # no limit set, nothing need be known


@pytest.mark.parametrize(
    ("limits", "change", "why"),
    [
        (ALL, {"num_examples": 4}, "4 labelled examples, the plan asks for 5"),
        (ALL, {"temperature_c": 60.1}, "60.1 C, the owner allows 60.0 C"),
        (ALL, {"temperature_c": None}, "a temperature limit is set and the temperature is unknown"),
        (ALL, {"on_mains": False, "battery_rate": 0.39}, "battery at 39%, the owner asks for 40%"),
        (ALL, {"on_mains": None, "battery_rate": None}, "a battery limit is set and the level is unknown"),
        (Limits(mains_only=True), {"on_mains": None}, "mains power is required and unknown"),
        (Limits(mains_only=True), {"on_mains": False}, "mains power is required and absent"),
        (Limits(memory_bytes_max=63 << 20), {}, "the plan asks for 64 MB, the owner allows 63 MB"),
        (Limits(full_voltage_only=True), {"under_voltage": True}, "the power supply gives too little voltage"),
        (Limits(full_voltage_only=True), {}, "full voltage is required and unknown"),
        (Limits(unthrottled_only=True), {"throttled": True}, "the firmware throttles the processor"),
        (
            Limits(unthrottled_only=True),
            {},
            "a processor that is not throttled is required, and whether this one is, is unknown",
        ),
        (Limits(busy_rate_max=0.5), {"busy_rate": 0.6}, "other programs take 60% of the cores, the owner allows 50%"),
        (Limits(busy_rate_max=0.5), {}, "a limit of load is set and the load is unknown"),
        (NIGHT, {"local_minute": 6 * 60}, "it is 06:00, the owner allows 22:00-06:00 and 12:00-13:30"),
        (NIGHT, {"local_minute": 13 * 60 + 30}, "it is 13:30, the owner allows 22:00-06:00 and 12:00-13:30"),
        (NIGHT, {}, "the owner allows 22:00-06:00 and 12:00-13:30, and the clock is not set"),
        (
            Limits(day_joules_max=500.0),
            {"day_joules_left": 0.0},
            "the day's 500 J for training are spent; more from 00:00 UTC",
        ),
        (Limits(metered=("ppp0", "wwan0")), {"route": "wwan0"}, "the link goes by wwan0, which is metered"),
        (Limits(metered=("wwan0",)), {}, "metered interfaces are named, and by which one the link goes is unknown"),
    ],
)
def test_each_limit_refuses_with_its_reason(limits, change, why):
    assert refusal(limits, PLAN, msgspec.structs.replace(FINE, **change)) == why


@pytest.mark.parametrize(
    ("limits", "change"),
    [
        (ALL, {"temperature_c": 60.0, "on_mains": False, "battery_rate": 0.4, "num_examples": 5}),
        (Limits(full_voltage_only=True, unthrottled_only=True), {"under_voltage": False, "throttled": False}),
        (Limits(busy_rate_max=0.5), {"busy_rate": 0.5}),
        (NIGHT, {"local_minute": 22 * 60}),
        (NIGHT, {"local_minute": 0}),
        (NIGHT, {"local_minute": 12 * 60}),
        (NIGHT, {"local_minute": 13 * 60 + 29}),
        (Limits(day_joules_max=500.0), {"day_joules_left": 0.1}),
        (Limits(metered=("wwan0",)), {"route": "eth0"}),
    ],
)
def test_a_limit_is_reached_only_beyond_it(limits, change):
    assert refusal(limits, PLAN, msgspec.structs.replace(FINE, **change)) is None


def test_what_the_owner_allows_is_told_in_words():
    assert in_words(Limits()) == ""
    told = in_words(msgspec.structs.replace(NIGHT, mains_only=True, busy_rate_max=0.5, metered=("wwan0",)))
    assert told == "from 22:00-06:00 and 12:00-13:30, on mains, beside 50% of load, and not over wwan0"
    every = Limits(
        battery_rate_min=0.4,
        full_voltage_only=True,
        temperature_c_max=75.0,
        unthrottled_only=True,
        day_joules_max=500.0,
    )
    assert in_words(every) == "with a battery from 40%, at full voltage, up to 75 C, not throttled, for 500 J a day"


def test_a_plan_for_no_examples_still_needs_one():
    plan = msgspec.structs.replace(PLAN, num_examples_min=0)
    assert refusal(Limits(), plan, Reading(num_examples=0)) == "0 labelled examples, the plan asks for 1"


def test_a_training_that_cannot_fit_beside_its_libraries_is_refused_with_both_figures():
    room = PLAN.trainer_memory_bytes_max - TRAINER_BASELINE_BYTES
    assert refusal(ALL, msgspec.structs.replace(PLAN, trainer_arena_bytes=room), FINE) is None
    too_large = msgspec.structs.replace(PLAN, trainer_arena_bytes=room + 1)
    assert refusal(ALL, too_large, FINE) == "training needs 65 MB, the plan allows 64 MB"
