"""The order of effects: as decided, but for stores that stand together and go first."""

from __future__ import annotations

from broker import turns
from broker.effects import Aggregate, CommitRound, Publish, StoreEpoch, StoreRound, StoreSeen, StoreUpdate
from tests.broker import fleet
from tests.broker.test_store import commit, update_row

UPDATE, OTHER = StoreUpdate(update_row()), StoreUpdate(update_row("dune"))
RECEIPT, SEEN = Publish("t", b""), StoreSeen("cabin", True)
EPOCH, OPENED, CLOSED = StoreEpoch(1), StoreRound(fleet.row(1)), commit(1, 2)
AGGREGATE = Aggregate(1, fleet.PLAN, fleet.first_manifest()[0], ())


def performed(effects: list[turns.Told], answer: list[turns.Told]) -> list[object]:
    """What is done, in its order; AGGREGATE is answered at once."""
    done: list[object] = []

    def perform(effect: turns.Told) -> list[turns.Told]:
        done.append(effect)
        return answer if effect is AGGREGATE else []

    turns.take(effects, lambda stores: done.append(stores) if stores else None, perform)
    return done


def test_stores_move_ahead_only_within_a_piece() -> None:
    assert isinstance(CLOSED, CommitRound)
    assert turns.pieces([]) == []
    assert turns.pieces([UPDATE, RECEIPT, "said", OTHER, SEEN]) == [[UPDATE, RECEIPT, "said", OTHER, SEEN]]
    effects = [EPOCH, RECEIPT, OPENED, RECEIPT, UPDATE, RECEIPT, AGGREGATE, OTHER, RECEIPT, CLOSED, RECEIPT]
    assert turns.pieces(effects) == [
        [EPOCH], [RECEIPT], [OPENED], [RECEIPT, UPDATE, RECEIPT], [AGGREGATE], [OTHER, RECEIPT], [CLOSED], [RECEIPT],
    ]  # fmt: skip
    assert [effect for piece in turns.pieces(effects) for effect in piece] == effects


def test_what_stands_together_is_stored_as_one_before_anything_is_said_of_it() -> None:
    assert performed([UPDATE, RECEIPT, "said", OTHER, RECEIPT], []) == [[UPDATE, OTHER], RECEIPT, "said", RECEIPT]


def test_what_follows_of_an_answer_comes_behind_what_was_decided_before_it() -> None:
    """A commit may speak of the epoch, and its sum count the update, that the same turn has yet to store."""
    effects = [UPDATE, RECEIPT, AGGREGATE, OTHER, RECEIPT, EPOCH]
    done = performed(effects, [CLOSED, RECEIPT])
    assert done == [[UPDATE], RECEIPT, AGGREGATE, [OTHER], RECEIPT, EPOCH, CLOSED, RECEIPT]


def test_an_answer_may_ask_again() -> None:
    asked: list[object] = []

    def perform(effect: turns.Told) -> list[turns.Told]:
        asked.append(effect)
        return [AGGREGATE] if effect is AGGREGATE and len(asked) < 3 else []

    turns.take([AGGREGATE], lambda _stores: None, perform)
    assert asked == [AGGREGATE] * 3
