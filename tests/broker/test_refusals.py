"""What was refused is kept by day and reason, in few writes and few rows, whatever floods in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.refusals import DAYS_KEPT, Tally
from broker.store import Store

if TYPE_CHECKING:
    from broker.database import Place


def test_a_tally_hands_over_each_refusal_once() -> None:
    counts = {"signature": 3}
    tally = Tally(counts)
    assert tally.fresh() == {"signature": 3}
    assert tally.fresh() == {}
    counts |= {"signature": 5, "topic": 1}
    assert tally.fresh() == {"signature": 2, "topic": 1}


def test_counts_of_a_day_add_up_over_runs_and_stay_apart_by_day(place: Place) -> None:
    with Store(place) as store:
        store.refusals.add(20_000, {"signature": 2, "topic": 1})
    with Store(place) as store:
        store.refusals.add(20_000, {"signature": 5})
        store.refusals.add(20_001, {"signature": 1})
        assert store.refusals.by_day() == [(20_000, "signature", 7), (20_000, "topic", 1), (20_001, "signature", 1)]


def test_a_year_is_kept(place: Place) -> None:
    with Store(place) as store:
        for day in range(DAYS_KEPT + 3):
            store.refusals.add(day, {"signature": 1})
        assert [day for day, _, _ in store.refusals.by_day()] == list(range(3, DAYS_KEPT + 3))
