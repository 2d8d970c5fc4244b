"""Candidates: who hears of them, what a ring's word leads to, and what the operator may settle himself."""

from __future__ import annotations

import msgspec
import pytest

from broker.coordinator import SETTLE_MS, Coordinator
from broker.effects import (
    Aggregate,
    Aggregated,
    AggregateFailed,
    Candidate,
    Choice,
    CommitRound,
    CommitStage,
    Connected,
    Effect,
    Last,
    Received,
    Ring,
    RoundRow,
    RoundsRead,
    StageWished,
    StoreRound,
    StoreTrial,
    Tick,
    TrialRow,
)
from tests.broker import fleet
from tests.broker.fleet import DEVICES, PLAN, coordinator, first_manifest, params, row, said, sealed
from wire import topics
from wire.messages import PARAMS_FILE, Chunk, Manifest, Offer, Range, Receipt, State, Trial, Update, Want

AFTER = SETTLE_MS + 1
LASTS_MS = 60_000
RING = Ring(worse_rate=0.02, error_rate=0.5)
TRIAL = msgspec.structs.replace(PLAN, lane="trial")
GOOD, BAD = Trial(1, 3, 2), Trial(1, 0, 12, "worse here than version 1")


def training(round_id: int = 1, **changes: object) -> RoundRow:
    return row(round_id, **{"updates_min": 1, "updates_enough": 1, "ring": RING, **changes})


def trial(round_id: int = 2, **changes: object) -> RoundRow:
    return row(round_id, **{"plan": TRIAL, "updates_min": 2, "cohort_max": 2, "ring": RING, **changes})


def hear(machine: Coordinator, device: str, message: object, now_ms: int = AFTER) -> list[Effect]:
    return machine.handle(Received(*sealed(device, message)), now_ms)


def tried(version: int, said_: Trial, round_id: int = 2) -> Update:
    return Update(round_id, version, 40, 30, 40, b"", said_)


def begin(*rows: RoundRow, devices: tuple[str, ...] = DEVICES, **known: object) -> Coordinator:
    machine = coordinator(**known)
    machine.handle(Connected(), 0)
    for device in devices:
        hear(machine, device, fleet.birth(), 0)
    machine.handle(Tick(), SETTLE_MS)
    machine.handle(RoundsRead(rows), AFTER)
    return machine


def summed(machine: Coordinator, accuracy: float | None = None, round_id: int = 1, version: int = 1) -> list[Effect]:
    """The open round has its update, and its sum is there."""
    (work,) = [
        effect for effect in hear(machine, DEVICES[0], fleet.update(round_id, version)) if isinstance(effect, Aggregate)
    ]
    return machine.handle(Aggregated(work.round_id, params(round_id, 0, 0, 0), accuracy, None, golden=b"g" * 32), AFTER)


def to_all(effects: list[Effect], kind: type) -> list[object]:
    return [message for to, message in said(effects) if to == topics.ALL and isinstance(message, kind)]


def ring_of(effects: list[Effect]) -> list[str]:
    return [to for to, message in said(effects) if isinstance(message, Offer)]


def committed(effects: list[Effect]) -> CommitStage:
    (done,) = [effect for effect in effects if isinstance(effect, CommitStage)]
    return done


def test_a_candidate_is_shared_with_nobody_and_its_ring_is_told_of_it_before_it_is_invited():
    effects = summed(begin(training(), trial()))
    assert [type(effect) for effect in effects if isinstance(effect, CommitRound | StoreRound)] == [
        CommitRound,
        StoreRound,
    ]
    assert to_all(effects, Manifest) == []
    assert [state.model_version for state in to_all(effects, State)] == [1]
    assert len(ring_of(effects)) == 2
    for device in ring_of(effects):
        told = [message for to, message in said(effects) if to == device]
        assert [type(message) for message in told] == [Manifest, Offer]
        assert (told[0].model_version, told[0].golden, told[1].base_version) == (2, b"g" * 32, 2)


def test_the_files_of_the_candidate_and_of_the_fleets_version_are_served():
    machine = begin(training(), trial())
    effects = summed(machine)
    candidate = next(message for _, message in said(effects) if isinstance(message, Manifest))
    for manifest in (candidate, first_manifest()[0]):
        digest = next(file.digest for file in manifest.files if file.name == PARAMS_FILE)
        served = hear(machine, DEVICES[1], Want(digest, (Range(0, 1),)))
        assert [effect.file.digest for effect in served] == [digest]


def test_a_ring_that_finds_nothing_against_it_promotes_it_and_everyone_hears():
    machine = begin(training(), trial(), training(3), trial(4))
    ring = ring_of(summed(machine))
    first = hear(machine, ring[0], tried(2, GOOD))
    assert [type(effect) for effect in first][:1] == [StoreTrial]
    assert [message.verdict for _, message in said(first)] == ["accepted"]
    effects = hear(machine, ring[1], tried(2, GOOD))
    done = committed(effects)
    assert (done.manifest.model_version, done.restored, done.put_out) == (2, 0, 0)
    assert done.row.status == "closed"
    assert "2 devices tried it: on 80 held-out examples of 2 devices 4 lost, 6 won" in done.why
    assert [manifest.model_version for manifest in to_all(effects, Manifest)] == [2]
    opened = [effect.row for effect in effects if isinstance(effect, StoreRound)]
    assert [(each.round_id, each.base_version) for each in opened] == [(3, 2)]


def test_one_that_a_ring_refuses_is_put_out_and_the_version_before_comes_back_under_a_new_number():
    machine = begin(training(), trial(), training(3), trial(4))
    ring = ring_of(summed(machine))
    hear(machine, ring[0], tried(2, BAD))
    effects = hear(machine, ring[1], tried(2, BAD))
    done = committed(effects)
    assert (done.manifest.model_version, done.manifest.parent_version, done.restored, done.put_out) == (3, 1, 1, 2)
    assert done.manifest.files == first_manifest()[0].files
    assert "2 of 2 devices refused it; the first: worse here than version 1" in done.why
    assert [manifest.model_version for manifest in to_all(effects, Manifest)] == [3]
    opened = [effect.row for effect in effects if isinstance(effect, StoreRound)]
    assert [(each.round_id, each.base_version) for each in opened] == [(3, 3)]
    assert committed_version(summed(machine, round_id=3, version=3)) == 4


def committed_version(effects: list[Effect]) -> int:
    (done,) = [effect for effect in effects if isinstance(effect, CommitRound)]
    return done.manifest.model_version


def test_a_ring_in_which_nobody_refuses_may_still_say_no_together():
    machine = begin(training(), trial(cohort_max=3, updates_min=3))
    ring = ring_of(summed(machine))
    for device in ring[:2]:
        hear(machine, device, tried(2, Trial(1, 0, 3)))
    done = committed(hear(machine, ring[2], tried(2, Trial(1, 0, 3))))
    assert done.put_out == 2
    assert "worse in the field: on 120 held-out examples of 3 devices 9 lost, 0 won" in done.why


@pytest.mark.parametrize("lost", [2, 0])
def test_a_few_answers_more_or_less_put_nothing_out(lost):
    machine = begin(training(), trial())
    ring = ring_of(summed(machine))
    hear(machine, ring[0], tried(2, Trial(1, 0, lost)))
    assert committed(hear(machine, ring[1], tried(2, Trial(1, 0, 1)))).put_out == 0


def test_the_word_of_one_in_five_decides_nothing():
    machine = begin(training(), trial())
    answers = {str(n): TrialRow(str(n), 2, 2, b"", 30, 40, 1, 1, 1, "") for n in range(5)}
    answers["4"] = TrialRow("4", 2, 2, b"", 0, 1_000_000, 1, 0, 1_000_000, "")
    machine._rollout._answers = answers
    verdict = machine._rollout.judged(RING, 5, is_over=True)
    assert verdict is not None
    assert verdict.is_good


def test_one_refusal_too_many_ends_the_trial_before_the_others_have_answered():
    machine = begin(training(), trial(cohort_max=3, updates_min=3, ring=Ring(0.02, 0.3)))
    ring = ring_of(summed(machine))
    assert committed(hear(machine, ring[0], tried(2, BAD))).put_out == 2


def test_when_time_is_up_who_is_there_and_silent_counts_as_one_that_refuses():
    machine = begin(training(), trial(cohort_max=3, updates_min=3))
    ring = ring_of(summed(machine))
    hear(machine, ring[0], tried(2, GOOD))
    done = committed(machine.handle(Tick(), AFTER + LASTS_MS))
    assert done.put_out == 2
    assert "0 of 3 devices refused it, 2 never answered" in done.why


def test_who_has_left_is_not_waited_for_and_too_few_answers_promote_nothing():
    machine = begin(training(), trial())
    ring = ring_of(summed(machine))
    hear(machine, ring[0], fleet.death())
    effects = hear(machine, ring[1], tried(2, GOOD))
    assert not [effect for effect in effects if isinstance(effect, CommitStage)]
    again = machine.handle(Tick(), AFTER + LASTS_MS)
    assert not [effect for effect in again if isinstance(effect, CommitStage)]
    (other,) = ring_of(again)
    assert other not in ring
    assert committed(hear(machine, other, tried(2, GOOD), AFTER + LASTS_MS)).put_out == 0


def test_good_answers_that_are_too_few_promote_nothing_though_time_is_up():
    machine = begin(training(), trial(cohort_max=3, updates_min=3))
    ring = ring_of(summed(machine))
    for device in ring[:2]:
        hear(machine, device, tried(2, GOOD))
    effects = machine.handle(Tick(), AFTER + LASTS_MS)
    assert not [effect for effect in effects if isinstance(effect, CommitStage)]
    assert ring_of(effects) == [ring[2]]


def test_the_second_ring_tries_what_the_first_found_good_and_only_then_is_it_promoted():
    first = trial(2, updates_min=1, cohort_max=1, ring=Ring(0.02, 0.5, is_last=False))
    machine = begin(training(), first, trial(3))
    (device,) = ring_of(summed(machine))
    effects = hear(machine, device, tried(2, GOOD))
    assert not [effect for effect in effects if isinstance(effect, CommitStage)]
    closed, opened = [effect.row for effect in effects if isinstance(effect, StoreRound)]
    assert (closed.round_id, closed.status, opened.round_id, opened.status) == (2, "closed", 3, "open")
    assert not closed.is_cancelled
    ring = ring_of(effects)
    hear(machine, ring[0], tried(2, GOOD, 3))
    assert committed(hear(machine, ring[1], tried(2, GOOD, 3))).manifest.model_version == 2


def test_the_other_rings_do_not_try_what_was_put_out():
    first = trial(2, updates_min=1, cohort_max=1, ring=Ring(0.02, 0.5, is_last=False))
    machine = begin(training(), first, trial(3), training(4))
    (device,) = ring_of(summed(machine))
    effects = hear(machine, device, tried(2, BAD))
    assert [(each.row.round_id, each.row.status) for each in effects if isinstance(each, StoreRound)] == [
        (3, "closed"),
        (4, "open"),
    ]


def test_what_is_worse_here_is_put_out_before_any_device_hears_of_it():
    machine = begin(training(), trial(), accuracy=0.9)
    effects = summed(machine, accuracy=0.87)
    done = committed(effects)
    assert (done.put_out, done.row) == (2, None)
    assert done.why == "worse here: 87.0% right, and 90.0% before"
    assert ring_of(effects) == []
    assert [(each.row.round_id, each.row.status) for each in effects if isinstance(each, StoreRound)] == [(2, "closed")]


def test_what_is_a_little_worse_here_is_tried():
    assert len(ring_of(summed(begin(training(), trial(), accuracy=0.9), accuracy=0.89))) == 2


def test_no_round_opens_while_a_candidate_is_tried_and_late_updates_are_stored_all_the_same():
    machine = begin(training(), trial(), training(3))
    ring = ring_of(summed(machine))
    late = next(device for device in DEVICES if device != DEVICES[0])
    effects = hear(machine, late, fleet.update(1, 1))
    assert [message.verdict for _, message in said(effects)] == ["accepted"]
    assert not [effect for effect in effects if isinstance(effect, StoreRound | Aggregate)]
    assert ring


def test_a_ring_is_of_devices_with_its_tags_and_no_other_device_has_a_word():
    tags = {DEVICES[2]: frozenset({"canary"})}
    machine = begin(training(), trial(updates_min=1, choice=Choice(tags=("canary",))), tags=tags)
    assert ring_of(summed(machine)) == [DEVICES[2]]
    effects = hear(machine, DEVICES[1], tried(2, BAD))
    (receipt,) = [message for _, message in said(effects) if isinstance(message, Receipt)]
    assert (receipt.verdict, "not in the ring" in receipt.reason) == ("refused", True)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (fleet.update(2, 2), "trains nothing"),
        (tried(2, Trial(2, 1, 1)), "was compared with version 2"),
        (tried(2, GOOD, 1), "trains version 1"),
        (Update(1, 1, 40, 30, 40, b"", GOOD), "tries nothing"),
    ],
)
def test_what_is_no_answer_to_the_trial_is_refused(message, why):
    machine = begin(training(), trial())
    ring = ring_of(summed(machine))
    effects = hear(machine, next(device for device in ring if device != DEVICES[0]), message)
    (receipt,) = [each for _, each in said(effects) if isinstance(each, Receipt)]
    assert receipt.verdict == "refused"
    assert why in receipt.reason


def test_the_same_answer_again_is_a_duplicate():
    machine = begin(training(), trial())
    device = ring_of(summed(machine))[0]
    hear(machine, device, tried(2, GOOD))
    assert [message.verdict for _, message in said(hear(machine, device, tried(2, GOOD)))] == ["duplicate"]


def test_a_late_word_on_an_earlier_candidate_says_nothing_of_the_present_one():
    machine = begin(training(), trial(cohort_max=3, updates_min=3), training(3), trial(4, ring=Ring(0.02, 0.3)))
    ring = ring_of(summed(machine))
    for device in ring[:2]:
        hear(machine, device, tried(2, BAD))
    summed(machine, round_id=3, version=3)
    effects = hear(machine, ring[2], tried(2, BAD, 2))
    assert [type(effect) for effect in effects if isinstance(effect, StoreTrial | CommitStage)] == [StoreTrial]


def test_a_coordinator_that_starts_in_the_midst_of_a_trial_goes_on_with_the_answers_that_are_stored():
    manifest = msgspec.structs.replace(first_manifest()[0], model_version=2, parent_version=1)
    opened = msgspec.structs.replace(trial(), status="open", base_version=2)
    answer = TrialRow(DEVICES[0], 2, 2, b"d" * 32, 30, 40, 1, 3, 2, "")
    last = {DEVICES[0]: Last(2, answer.digest)}
    machine = coordinator(rounds=(opened,), candidate=Candidate(manifest), trials=(answer,), last=last)
    machine.handle(Connected(), 0)
    effects = [effect for device in DEVICES for effect in hear(machine, device, fleet.birth(), 0)]
    assert DEVICES[0] not in ring_of(effects)
    machine.handle(Tick(), SETTLE_MS)
    assert committed(hear(machine, ring_of(effects)[0], tried(2, GOOD))).manifest.model_version == 2


def test_a_candidate_whose_trial_is_cancelled_is_put_out():
    machine = begin(training(), trial())
    summed(machine)
    effects = machine.handle(RoundsRead((), frozenset({2})), AFTER)
    assert committed(effects).why == "no ring is left to try it"


def test_a_trial_without_a_candidate_ends_unopened():
    machine = begin(training(), trial(), row(3))
    effects = machine.handle(RoundsRead((), frozenset({1})), AFTER)
    stored = [
        (each.row.round_id, each.row.status, each.row.base_version) for each in effects if isinstance(each, StoreRound)
    ]
    assert stored == [(1, "closed", 1), (2, "closed", 0), (3, "open", 1)]


def test_a_pause_keeps_rounds_and_trials_from_opening_and_ends_nothing():
    machine = begin(training(), trial())
    machine.handle(RoundsRead((), paused=True), AFTER)
    effects = summed(machine)
    assert ring_of(effects) == []
    assert not [effect for effect in effects if isinstance(effect, CommitStage)]
    assert len(ring_of(machine.handle(RoundsRead((), paused=False), AFTER))) == 2


# The operator's wishes


def test_the_operator_may_promote_a_candidate_before_its_ring_has_answered():
    machine = begin(training(), trial())
    candidate = next(message for _, message in said(summed(machine)) if isinstance(message, Manifest))
    effects = machine.handle(StageWished(Candidate(candidate), promote=True), AFTER)
    assert isinstance(effects[0], StoreRound)
    assert effects[0].row.round_id == 2
    assert committed(effects).manifest == candidate
    assert machine.handle(StageWished(Candidate(candidate), promote=True), AFTER) == []


def test_the_operator_may_go_back_to_an_older_version_and_an_open_round_ends():
    machine = begin(row(1, updates_enough=1), row(2), row(3))
    work = next(e for e in hear(machine, DEVICES[0], fleet.update()) if isinstance(e, Aggregate))
    machine.handle(Aggregated(work.round_id, params(1, 0, 0, 0), None, None), AFTER)
    effects = machine.handle(StageWished(Candidate(first_manifest()[0]), promote=False), AFTER)
    done = committed(effects)
    assert (done.manifest.model_version, done.restored, done.put_out) == (3, 1, 0)
    stored = [
        (each.row.round_id, each.row.status, each.row.base_version) for each in effects if isinstance(each, StoreRound)
    ]
    assert stored == [(2, "closed", 2), (3, "open", 3)]


@pytest.mark.parametrize("fails", [False, True])
def test_a_wish_waits_for_the_sum_that_is_under_way(fails):
    machine = begin(row(1, updates_enough=1))
    work = next(e for e in hear(machine, DEVICES[0], fleet.update()) if isinstance(e, Aggregate))
    assert machine.handle(StageWished(Candidate(first_manifest()[0]), promote=False), AFTER) == []
    answer = AggregateFailed(1, "why") if fails else Aggregated(work.round_id, params(1, 0, 0, 0), None, None)
    effects = machine.handle(answer, AFTER)
    assert committed(effects).manifest.model_version == (2 if fails else 3)


def test_another_base_file_begins_a_scale_epoch_even_when_it_is_an_old_one():
    machine = begin(training(), trial(), accuracy=0.9)
    work = next(e for e in hear(machine, DEVICES[0], fleet.update()) if isinstance(e, Aggregate))
    done = Aggregated(work.round_id, params(1, 0, 0, 0), 0.1, None, model=b"another base")
    assert committed(machine.handle(done, AFTER)).manifest.scale_epoch == 2


def test_chunks_are_the_only_thing_a_stranger_to_the_ring_can_learn_of_a_candidate():
    machine = begin(training(), trial())
    effects = summed(machine)
    others = set(DEVICES) - set(ring_of(effects))
    assert not [to for to, message in said(effects) if to in others and not isinstance(message, Receipt | Chunk)]
