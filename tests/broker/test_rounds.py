"""One round's arithmetic: weights, and what fits into a sum."""

from __future__ import annotations

from broker.effects import Pending
from broker.rounds import STALENESS_SIXTEENTHS, WEIGHT_TOTAL_MAX, members, weigh
from engine import ring


def test_a_fresh_update_keeps_its_weight_and_older_ones_lose_by_the_table() -> None:
    assert [weigh(Pending("a", 1, 9 - late, 160), 9).weight for late in range(4)] == [160, 110, 90, 80]
    assert weigh(Pending("a", 1, 0, 160), 1000).weight == 40
    assert weigh(Pending("a", 1, 0, 1), 1000).weight == 1
    assert weigh(Pending("a", 1, 5, 160), 3).weight == 160


def test_the_table_is_sixteen_over_the_square_root_of_one_more_than_the_staleness() -> None:
    assert [round(16 / (1 + late) ** 0.5) for late in range(16)] == list(STALENESS_SIXTEENTHS)


def test_members_stand_in_the_order_of_devices_and_rounds() -> None:
    waiting = [Pending("b", 2, 1, 5), Pending("a", 3, 1, 5), Pending("b", 1, 1, 5)]
    assert [(m.device_id, m.round_id) for m in members(waiting, 1)] == [("a", 3), ("b", 1), ("b", 2)]


def test_more_than_one_sum_holds_waits_for_the_next_round_oldest_first() -> None:
    many = [Pending(f"d{number:05}", 1 + number // 10_000, 1, 4096) for number in range(16_400)]
    chosen = members(many, 1)
    assert len(chosen) == 16_384
    assert sum(m.weight for m in chosen) <= WEIGHT_TOTAL_MAX
    assert {m.device_id for m in chosen} == {m.device_id for m in many[:16_384]}


def test_both_sides_know_the_same_bound() -> None:
    assert WEIGHT_TOTAL_MAX == ring.WEIGHT_TOTAL_MAX
