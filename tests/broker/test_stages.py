"""The stages of versions in the store: candidates, what was said of them, and what a rollback keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from broker.database import StoreError
from broker.effects import (
    Aggregated,
    Candidate,
    CommitRound,
    CommitStage,
    Restored,
    Ring,
    StoreRound,
    StoreTrial,
    TrialRow,
)
from broker.serving import manifest_after, restored
from broker.store import Store
from broker.views import ViewError, wish_promoted, wish_restored
from tests.broker.fleet import PLAN, first_manifest, params, row

if TYPE_CHECKING:
    from broker.database import Place
    from wire.messages import Manifest

RING = Ring(0.02, 0.5, is_last=False)
TRIAL = msgspec.structs.replace(PLAN, lane="trial")
SAID = TrialRow("cabin", 2, 2, b"d" * 32, 30, 40, 1, 0, 9, "worse here")


@pytest.fixture
def store(place: Place) -> Store:
    """Version 1, with a master of its own."""
    kept = Store(place)
    kept.put_first_version(*first_manifest(), b"master of 1")
    return kept


def make(
    store: Store, before: Manifest, round_id: int = 1, *, ring: Ring | None = RING, accuracy: float = 0.5
) -> Manifest:
    """A round makes the next version."""
    version = before.model_version + 1
    made = Aggregated(
        round_id, params(version, 0, 0, 0), accuracy, None, b"master", rule_state=b"momentum", patch=b"way"
    )
    store.apply(StoreRound(row(round_id, status="open", base_version=before.model_version, ring=ring)))
    manifest = manifest_after(before, made)
    closed = row(round_id, status="closed", base_version=before.model_version, model_version=version, ring=ring)
    store.apply(CommitRound(closed, manifest, made, ()))
    return manifest


def test_a_candidate_is_not_the_fleets_version_and_the_one_before_keeps_what_only_the_newest_has(store: Store) -> None:
    first = first_manifest()[0]
    tried = make(store, first)
    snapshot = store.snapshot()
    assert (snapshot.manifest, snapshot.candidate) == (first, Candidate(tried, 0.5))
    assert snapshot.accuracy is None
    assert store.manifest() == first
    assert store.remainder(1) == b"master of 1"
    assert [each.stage for each in store.versions()] == ["promoted", "candidate"]


def test_what_is_promoted_is_the_fleets_and_the_one_before_lets_go_of_its_master(store: Store) -> None:
    tried = make(store, first_manifest()[0])
    store.apply(CommitStage(tried, "two devices liked it"))
    snapshot = store.snapshot()
    assert (snapshot.manifest, snapshot.candidate, snapshot.accuracy) == (tried, None, 0.5)
    assert store.remainder(1) == b""
    assert (store.versions()[-1].stage, store.versions()[-1].stage_why) == ("promoted", "two devices liked it")


def test_what_is_put_out_stays_to_be_looked_at_and_the_version_before_is_there_again(store: Store) -> None:
    first = first_manifest()[0]
    tried = make(store, first)
    store.apply(StoreRound(row(2, plan=TRIAL, status="open", base_version=2, ring=RING)))
    store.apply(StoreTrial(SAID))
    again = restored(tried, first)
    closed = row(2, plan=TRIAL, status="closed", base_version=2, model_version=2, ring=RING)
    store.apply(CommitStage(again, "worse in the field", 1, 2, closed, Restored(b"master of 1", b"", b"back")))
    assert store.snapshot().manifest == again
    assert [(each.model_version, each.stage, each.parent_version) for each in store.versions()] == [
        (1, "promoted", 0),
        (2, "rolled back", 1),
        (3, "promoted", 1),
    ]
    assert store.versions()[1].stage_why == "worse in the field"
    assert store.stages.trials(model_version=2) == [SAID]
    assert (store.remainder(3), store.remainder(2), store.patches(1, 3)) == (b"master of 1", b"", [b"way", b"back"])
    assert not store.rounds()[-1].is_cancelled
    assert make(store, again, 3, ring=None).model_version == 4


def test_the_answers_of_the_open_trial_are_there_after_a_restart_and_no_others(store: Store) -> None:
    make(store, first_manifest()[0])
    opened = row(2, plan=TRIAL, status="open", base_version=2, ring=RING)
    store.apply(StoreRound(opened))
    store.apply(StoreTrial(SAID))
    snapshot = store.snapshot()
    assert snapshot.trials == (SAID,)
    assert snapshot.rounds[-1] == opened
    assert (snapshot.last["cabin"].round_id, snapshot.last["cabin"].digest) == (2, SAID.digest)
    assert snapshot.pending == ()
    store.apply(StoreRound(msgspec.structs.replace(opened, status="closed", model_version=2)))
    assert store.snapshot().trials == ()


def test_a_device_says_one_thing_of_a_round(store: Store) -> None:
    store.apply(StoreTrial(SAID))
    with pytest.raises(StoreError):
        store.apply(StoreTrial(SAID))


def test_a_wish_is_there_until_it_is_done_and_takes_the_place_of_another(store: Store) -> None:
    first = first_manifest()[0]
    tried = make(store, first)
    assert store.stages.wished() == (0, "")
    wish_promoted(store, 2)
    assert store.stages.wished() == (2, "promote")
    assert wish_restored(store, None) == 1
    assert store.stages.wished() == (1, "restore")
    store.apply(CommitStage(restored(tried, first), "wished", 1, 2, None, Restored()))
    assert store.stages.wished() == (0, "")


def test_a_wish_for_a_candidate_that_is_none_any_more_is_no_wish(store: Store) -> None:
    tried = make(store, first_manifest()[0])
    wish_promoted(store, 2)
    store.apply(CommitStage(tried, "its ring liked it"))
    assert store.stages.wished() == (0, "")


@pytest.mark.parametrize(
    ("version", "why"), [(2, "version 2 is rolled back"), (3, "version 3 is the newest"), (9, "no version 9")]
)
def test_nobody_goes_back_to_what_is_not_worth_it(store: Store, version: int, why: str) -> None:
    first = first_manifest()[0]
    store.apply(CommitStage(restored(make(store, first), first), "bad", 1, 2, None, Restored()))
    with pytest.raises(ViewError, match=why):
        wish_restored(store, version)


def test_only_a_candidate_is_promoted(store: Store) -> None:
    with pytest.raises(ViewError, match="version 1 is promoted: only a candidate"):
        wish_promoted(store, 1)


def test_a_pause_is_there_for_the_next_coordinator(store: Store) -> None:
    assert not store.stages.is_paused()
    store.stages.pause(paused=True)
    assert store.stages.is_paused()
    store.stages.pause(paused=False)
    assert not store.stages.is_paused()
