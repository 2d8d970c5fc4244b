"""The owner's limits: each refuses with its reason, and unknown is never fine."""

from __future__ import annotations

import msgspec
import pytest

from edge_agent.budget import TRAINER_BASELINE_BYTES, Limits, refusal
from edge_agent.effects import Reading
from tests.edge_agent.stage import FINE, PLAN

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
    ],
)
def test_each_limit_refuses_with_its_reason(limits, change, why):
    assert refusal(limits, PLAN, msgspec.structs.replace(FINE, **change)) == why


def test_a_limit_is_reached_only_beyond_it():
    at = msgspec.structs.replace(FINE, temperature_c=60.0, on_mains=False, battery_rate=0.4, num_examples=5)
    assert refusal(ALL, PLAN, at) is None


def test_a_plan_for_no_examples_still_needs_one():
    plan = msgspec.structs.replace(PLAN, num_examples_min=0)
    assert refusal(Limits(), plan, Reading(num_examples=0)) == "0 labelled examples, the plan asks for 1"


def test_a_training_that_cannot_fit_beside_its_libraries_is_refused_with_both_figures():
    room = PLAN.trainer_memory_bytes_max - TRAINER_BASELINE_BYTES
    assert refusal(ALL, msgspec.structs.replace(PLAN, trainer_arena_bytes=room), FINE) is None
    too_large = msgspec.structs.replace(PLAN, trainer_arena_bytes=room + 1)
    assert refusal(ALL, too_large, FINE) == "training needs 65 MB, the plan allows 64 MB"
