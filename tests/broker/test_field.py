"""Drift is told where the model fades, and not where chance, a chatty device or a handful of examples would say so."""

from __future__ import annotations

import random

import pytest

from broker.field import ALL, EXAMPLES_MIN, LOOK_BACK, WINDOW, Fading, fading
from broker.groups import UNTAGGED, groups_of
from broker.rows import StoredUpdate

GROUPS = groups_of({f"d{number}": frozenset({"north" if number % 2 else "south"}) for number in range(20)})


def report(device: str, version: int, correct: int, count: int = 20) -> StoredUpdate:
    return StoredUpdate(device, version, version, 1, b"", 0, None, correct, count)


def life(rates: list[float], seed: int = 1, devices: int = 20) -> list[StoredUpdate]:
    """A report of every device on every version, each right at that version's rate."""
    chance = random.Random(seed)
    return [
        report(f"d{number}", version, sum(chance.random() < rate for _ in range(20)))
        for version, rate in enumerate(rates, 1)
        for number in range(devices)
    ]


def whole(found: list[Fading]) -> Fading:
    assert found[0].group == ALL
    return found[0]


def test_a_model_that_fades_is_told_for_the_fleet_and_its_groups() -> None:
    found = fading(life([0.9] * 10 + [0.75] * WINDOW), GROUPS)
    assert [each.group for each in found] == [ALL, "north", "south"]
    assert [each.verdict for each in found] == ["drift"] * 3
    assert whole(found).drop == pytest.approx(0.15, abs=0.05)
    assert whole(found).p < 1e-4


def test_only_the_group_that_fades_is_told() -> None:
    updates = [
        report(f"d{number}", version, 13 if number % 2 and version > 10 else 18)
        for version in range(1, 16)
        for number in range(20)
    ]
    assert {each.group: each.verdict for each in fading(updates, GROUPS)}["north"] == "drift"
    assert {each.group: each.verdict for each in fading(updates, GROUPS)}["south"] == "steady"


def test_chance_alone_rings_seldom() -> None:
    verdicts = [whole(fading(life([0.9] * 30, seed), GROUPS)).verdict for seed in range(200)]
    assert set(verdicts) <= {"steady", "drift"}
    assert verdicts.count("drift") <= 4


def test_a_model_that_grows_better_is_steady() -> None:
    assert whole(fading(life([0.5, 0.6, 0.7, 0.8, 0.9] * 2 + [0.95] * 5), GROUPS)).verdict == "steady"


def test_devices_that_differ_much_are_no_drift_when_others_come() -> None:
    """Ten who are always right came before, and now ten of whom five never are: a matter of whom, not of when."""
    updates = [report(f"d{number}", 1, 20) for number in range(4)] + [report(f"d{number}", 1, 0) for number in (4, 5)]
    updates += [report(f"d{number}", 1 + WINDOW, 20 * (number < 13)) for number in range(10, 16)]
    assert whole(fading(updates, GROUPS)).verdict == "steady"


def test_a_device_counts_once_in_a_window_with_its_newest_report() -> None:
    updates = [report("d0", version, version) for version in range(1, 6)] + [report("d1", 5, 10)]
    for order in (updates, updates[::-1]):
        (window,) = whole(fading(order, GROUPS)).windows
        assert (window.devices, window.correct, window.count) == (2, 15, 40)


def test_few_examples_say_nothing() -> None:
    few = (EXAMPLES_MIN - 1) // 20
    found = fading(life([1.0] * 5 + [0.0] * 5, devices=few), GROUPS)
    assert whole(found).verdict == "too few"
    assert whole(fading(life([1.0] * 5 + [0.0] * 5, devices=few + 1), GROUPS)).verdict == "drift"


def test_few_examples_now_or_then_say_nothing_beside_many() -> None:
    many, few = [f"d{number}" for number in range(20)], ["d0", "d1"]
    for then, now in ((many, few), (few, many)):
        updates = [report(device, 1, 20) for device in then] + [report(device, 1 + WINDOW, 0) for device in now]
        assert whole(fading(updates, GROUPS)).verdict == "too few"


def test_a_drop_too_small_to_matter_is_none_however_sure() -> None:
    updates = [
        report(f"d{number}", version, right, 4000)
        for version, right in ((1, 3800), (1 + WINDOW, 3760))
        for number in range(20)
    ]
    found = whole(fading(updates, GROUPS))
    assert (found.verdict, found.drop) == ("steady", pytest.approx(0.01))
    assert found.p < 1e-4


def test_more_windows_asked_make_a_sign_weaker() -> None:
    one = whole(fading(life([0.9] * 5 + [0.84] * 5, 3), GROUPS))
    many = whole(fading(life([0.2] * 50 + [0.9] * 5 + [0.84] * 5, 3), GROUPS))
    assert many.best is not None
    assert one.best is not None
    assert many.best.last == one.best.last + 50
    assert many.p > one.p
    assert len(many.windows) < LOOK_BACK


def test_nobody_reports_and_nothing_is_said() -> None:
    assert fading([report("d0", 1, 0, 0)], GROUPS) == []


def test_without_tags_there_is_the_fleet_alone() -> None:
    assert [each.group for each in fading(life([0.9] * 5), groups_of({}))] == [ALL]
    some = groups_of({"d0": frozenset({"north"})})
    assert [each.group for each in fading(life([0.9] * 5), some)] == [ALL, UNTAGGED, "north"]
