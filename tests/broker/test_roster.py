"""The roster: tags, and what each device took part in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker.effects import Choice, StoreInvited, StoreRound, StoreUpdate, UpdateRow
from broker.roster import History
from broker.store import Store
from tests.broker.fleet import DEVICES, KEY, row

if TYPE_CHECKING:
    from broker.database import Place


@pytest.fixture
def store(place: Place) -> Store:
    store = Store(place)
    for name in DEVICES:
        store.add_device(name, KEY[name])
    return store


def update(device: str, round_id: int, base_version: int) -> StoreUpdate:
    return StoreUpdate(UpdateRow(device, round_id, base_version, 40, bytes(32), 3, 4, b"u"))


def test_a_device_has_the_tags_that_it_was_given_last_and_none_once_it_is_removed(store):
    store.roster.call("cabin", ["outdoor", "north", "north"])
    store.roster.call("dune", ["south"])
    assert store.roster.tags() == {"cabin": {"outdoor", "north"}, "dune": {"south"}}
    assert store.snapshot().tags == store.roster.tags()
    store.roster.call("cabin", ["outdoor"])
    store.remove_device("dune")
    assert store.roster.tags() == {"cabin": {"outdoor"}}
    store.roster.call("cabin", [])
    assert store.roster.tags() == {}


def test_the_history_tells_offered_finished_late_and_last(store):
    closed = [row(1, status="closed", base_version=1, model_version=2), row(2, status="closed", base_version=2)]
    store.apply_all([*map(StoreRound, closed), StoreInvited(1, ("cabin", "dune")), StoreInvited(2, ("cabin",))])
    store.apply_all([update("cabin", 1, 1), update("dune", 1, 1), update("cabin", 2, 2)])
    store._db.run("UPDATE updates SET counted_in = 2 WHERE device_id = 'cabin' AND round_id = 1")
    store._db.run("UPDATE updates SET counted_in = 3 WHERE device_id = 'dune'")
    assert store.roster.histories() == {"cabin": History(2, 2, 0, 2), "dune": History(1, 1, 1, 1)}


def test_what_a_starting_coordinator_knows_of_the_last_rounds_is_bounded(store):
    store.apply(StoreRound(row(100, status="open", base_version=1)))
    store.apply_all([update("cabin", round_id, 1) for round_id in (36, 37, 99)] + [update("dune", 3, 1)])
    assert store.snapshot().took == {"cabin": (37, 99)}


def test_the_newest_scores_are_of_the_newest_version_that_anyone_reported_on(store):
    assert store.roster.newest_scores() == (0, {})
    silent = StoreUpdate(UpdateRow("elm", 9, 8, 40, bytes(32), 0, 0, b"u"))  # has no held-out examples
    store.apply_all([update("cabin", 1, 1), update("cabin", 2, 5), update("cabin", 3, 5), update("dune", 3, 5), silent])
    assert store.roster.newest_scores() == (5, {"cabin": (6, 8), "dune": (3, 4)})


def test_a_round_keeps_its_mode_its_coin_and_its_choice(store):
    wish = row(
        1, mode="buffered", updates_enough=7, choice=Choice(("outdoor", "north"), 0.25, 4, rounds_max=2, rounds_of=10)
    )
    store.apply(StoreRound(wish))
    assert store.rounds() == [wish]
    opened = row(1, **{**{name: getattr(wish, name) for name in ("mode", "updates_enough", "choice")},
                       "status": "open", "nonce": bytes(range(16)), "draw": 2**31, "base_version": 3})  # fmt: skip
    store.apply(StoreRound(opened))
    assert store.rounds() == [opened]
