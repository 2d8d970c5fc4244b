"""The coordinator's machine: every verdict and every rule, seen through its effects."""

from __future__ import annotations

import random

import msgspec
import pytest

from broker import rounds
from broker.coordinator import RETRY_MS, SETTLE_MS, Coordinator
from broker.effects import (
    Aggregate,
    Aggregated,
    AggregateFailed,
    CommitRound,
    Connected,
    Disconnected,
    Effect,
    Event,
    FleetRead,
    Last,
    Pending,
    Publish,
    Received,
    RoundsRead,
    SendChunk,
    SendPatch,
    StoreEpoch,
    StoreRound,
    StoreSeen,
    StoreUpdate,
    Tick,
)
from broker.strangers import BIRTH_BYTES_MAX, NAMES_MAX
from tests.broker import fleet
from tests.broker.fleet import DEVICES, KEY, coordinator, params, row, said, sealed
from wire import chunks, keys, topics
from wire.envelope import unseal
from wire.messages import (
    PARAMS_FILE,
    File,
    Manifest,
    Offer,
    Plan,
    Range,
    Receipt,
    State,
    Telemetry,
    Want,
    digest_of,
    encode,
)

AFTER = SETTLE_MS + 1


def kinds(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def hear(machine: Coordinator, device: str, message: object, now_ms: int = AFTER, sign: str | None = None):
    return machine.handle(Received(*sealed(device, message, sign)), now_ms)


def receipt_of(effects: list[Effect]) -> Receipt:
    (receipt,) = [message for _, message in said(effects) if isinstance(message, Receipt)]
    return receipt


def offered(effects: list[Effect]) -> list[str]:
    return [device for device, message in said(effects) if isinstance(message, Offer)]


def open_round(machine: Coordinator, *devices: str, **changes: object) -> list[Effect]:
    """Link up, births, settled, and round 1 open."""
    machine.handle(Connected(), 0)
    for device in devices:
        hear(machine, device, fleet.birth(), 0)
    machine.handle(Tick(), SETTLE_MS)
    return machine.handle(RoundsRead((row(1, **changes),)), AFTER)


# The link


def test_a_connection_is_a_new_epoch_that_is_stored_before_anyone_hears_of_it():
    machine = coordinator(epoch=6)
    effects = machine.handle(Connected(), 0)
    assert kinds(effects) == ["StoreEpoch", "Publish", "Publish"]
    assert effects[0] == StoreEpoch(7)
    assert [type(message) for _, message in said(effects)] == [Manifest, State]
    assert said(effects)[-1][1] == State(7, True, 0, 1)
    assert all(effect.retain for effect in effects[1:])
    machine.handle(Disconnected(), 1)
    assert machine.handle(Connected(), 2)[0] == StoreEpoch(8)


def test_an_open_round_is_told_again_after_each_connection():
    machine = coordinator()
    open_round(machine)
    machine.handle(Disconnected(), AFTER)
    told = [message for _, message in said(machine.handle(Connected(), AFTER + 5))]
    assert [type(message) for message in told] == [Manifest, Plan, State]
    assert told[-1].round_id == 1


def test_nobody_is_present_after_the_link_was_lost_until_a_birth():
    machine = coordinator()
    machine.handle(Connected(), 0)
    hear(machine, "cabin", fleet.birth())
    machine.handle(Disconnected(), AFTER)
    machine.handle(Connected(), AFTER)
    assert offered(machine.handle(RoundsRead((row(1),)), AFTER)) == []
    assert offered(hear(machine, "cabin", fleet.birth(1, 2))) == ["cabin"]


def test_the_will_says_that_the_coordinator_is_gone():
    machine = coordinator(epoch=3)
    topic, payload = machine.last_will()
    assert topic == topics.shared(fleet.FLEET, "state")
    assert fleet.opened(payload, topic) == State(3, False, 0, 1)


def test_nothing_wakes_a_machine_without_a_link():
    machine = coordinator()
    open_round(machine, "cabin")
    machine.handle(Disconnected(), AFTER)
    assert machine.wake_at_ms is None


# Verdicts


def test_an_update_is_stored_before_its_receipt_is_said():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    topic, payload = sealed("cabin", fleet.update())
    effects = machine.handle(Received(topic, payload), AFTER)
    assert kinds(effects) == ["StoreUpdate", "Publish"]
    assert said(effects) == [("cabin", Receipt(digest_of(payload), 1, "accepted"))]
    stored = effects[0].row
    assert (stored.device_id, stored.round_id, stored.base_version, stored.payload) == ("cabin", 1, 1, b"u")
    assert (stored.held_out_correct, stored.held_out_count, stored.digest) == (3, 4, digest_of(payload))


def test_the_weight_of_a_device_never_exceeds_the_plans_most():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    assert hear(machine, "cabin", fleet.update(examples=99))[0].row.weight == 99
    assert hear(machine, "dune", fleet.update(examples=101))[0].row.weight == 100


def test_the_same_bytes_again_are_a_duplicate_and_are_not_stored():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    hear(machine, "cabin", fleet.update())
    effects = hear(machine, "cabin", fleet.update())
    assert receipt_of(effects).verdict == "duplicate"
    assert kinds(effects) == ["Publish"]


def test_other_bytes_for_the_same_round_are_refused():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    hear(machine, "cabin", fleet.update())
    effects = hear(machine, "cabin", fleet.update(payload=b"another"))
    assert receipt_of(effects).verdict == "refused"
    assert "stored already" in receipt_of(effects).reason
    assert kinds(effects) == ["Publish"]


def test_an_older_round_than_the_newest_stored_is_stale():
    machine = coordinator(last={"cabin": Last(5, b"x" * 32)})
    machine.handle(Connected(), 0)
    assert receipt_of(hear(machine, "cabin", fleet.update(4))).verdict == "stale"


def test_a_round_that_is_forgotten_is_stale_and_one_that_never_was_is_refused():
    closed = row(10, status="closed", base_version=4, model_version=5)
    machine = coordinator(rounds=(closed,))
    machine.handle(Connected(), 0)
    assert receipt_of(hear(machine, "cabin", fleet.update(9))).verdict == "stale"
    assert receipt_of(hear(machine, "cabin", fleet.update(11))).verdict == "refused"
    assert receipt_of(hear(machine, "cabin", fleet.update(10, 4))).verdict == "accepted"


def test_an_update_of_another_base_version_is_refused():
    machine = coordinator()
    open_round(machine, "cabin")
    receipt = receipt_of(hear(machine, "cabin", fleet.update(version=2)))
    assert (receipt.verdict, receipt.reason) == ("refused", "round 1 trains version 1, not 2")


def test_a_payload_that_is_not_admitted_is_refused_with_the_reason_on_one_line():
    machine = coordinator(lambda payload, plan: f"too\nbad {plan.num_params}" if payload == b"bad" else None)
    open_round(machine, "cabin")
    receipt = receipt_of(hear(machine, "cabin", fleet.update(payload=b"bad")))
    assert (receipt.verdict, receipt.reason) == ("refused", "too bad 4")
    assert receipt_of(hear(machine, "cabin", fleet.update())).verdict == "accepted"


def test_an_update_that_builds_on_what_is_not_held_is_unfounded_and_not_stored():
    asked = []
    identity = msgspec.structs.replace(fleet.identity(), holds=lambda *told: asked.append(told) or len(asked) > 1)
    machine = Coordinator(identity, fleet.snapshot(), random.Random(5))
    open_round(machine, "cabin", "dune")
    effects = hear(machine, "cabin", fleet.update())
    receipt = receipt_of(effects)
    assert receipt.verdict == "unfounded"
    assert "build on nothing" in receipt.reason
    assert not any(isinstance(effect, StoreUpdate) for effect in effects)
    assert machine.refused_count == {"unfounded": 1}
    assert asked == [("cabin", fleet.update().payload, machine._round.row.plan)]
    assert receipt_of(hear(machine, "dune", fleet.update())).verdict == "accepted"


def test_an_update_signed_by_another_is_refused_and_only_its_own_digest_is_named():
    machine = coordinator()
    open_round(machine, "cabin")
    topic, payload = sealed("cabin", fleet.update(), sign="dune")
    effects = machine.handle(Received(topic, payload), AFTER)
    assert kinds(effects) == ["Publish"]
    assert (receipt_of(effects).verdict, receipt_of(effects).digest) == ("refused", digest_of(payload))
    assert machine.refused_count == {"signature": 1}


def test_a_device_that_is_not_enrolled_is_told_so_once():
    machine = coordinator()
    machine.handle(Connected(), 0)
    effects = hear(machine, "stranger", fleet.birth())
    assert receipt_of(effects).verdict == "unknown"
    assert "broker fleet add stranger KEY" in receipt_of(effects).reason
    assert hear(machine, "stranger", fleet.update()) == []


def test_names_made_up_by_the_thousand_are_not_remembered_for_ever():
    machine = coordinator()
    machine.handle(Connected(), 0)
    answered = 0
    for number in range(NAMES_MAX + 10):
        topic = topics.up(fleet.FLEET, f"s{number}", "birth")
        answered += bool(machine.handle(Received(topic, b"junk"), 1))
    assert answered == NAMES_MAX


@pytest.mark.parametrize(
    "topic",
    [
        "fl/v1/farm",
        topics.up("other", "cabin", "birth"),
        topics.dn("farm", "cabin", "offer"),
        "fl/v1/farm/00/cabin/up/birth",
    ],
)
def test_what_comes_on_a_topic_that_is_not_ours_has_no_effect(topic):
    machine = coordinator()
    machine.handle(Connected(), 0)
    assert machine.handle(Received(topic, b"x"), 1) == []
    assert machine.refused_count == {"topic": 1}


@pytest.mark.parametrize("kind", ["birth", "death", "want", "telemetry"])
def test_junk_of_an_enrolled_device_is_counted_and_not_answered(kind):
    machine = coordinator()
    machine.handle(Connected(), 0)
    assert machine.handle(Received(topics.up("farm", "cabin", kind), b"junk"), 1) == []
    assert machine.refused_count == {"shape": 1}


# The fleet


def everyone_and_the_stranger() -> FleetRead:
    return FleetRead({name: KEY[name] for name in (*DEVICES, "stranger")})


def test_a_device_that_had_knocked_is_let_in_when_it_is_enrolled_and_nobody_else_is_asked():
    machine = coordinator()
    machine.handle(Connected(), 0)
    receipt_of(hear(machine, "stranger", fleet.birth()))
    effects = machine.handle(everyone_and_the_stranger(), AFTER)
    assert kinds(effects) == ["Publish", "StoreSeen"]
    receipt = receipt_of(effects)
    _, birth = sealed("stranger", fleet.birth())
    assert (receipt.verdict, receipt.round_id, receipt.digest) == ("accepted", 0, digest_of(birth))


def test_a_device_that_had_knocked_is_offered_the_open_round_as_it_is_let_in():
    machine = coordinator()
    open_round(machine, "cabin")
    hear(machine, "stranger", fleet.birth())
    effects = machine.handle(everyone_and_the_stranger(), AFTER)
    assert [type(message).__name__ for _, message in said(effects)][:2] == ["Receipt", "Offer"]


@pytest.mark.parametrize("gone", ["death", "link", "forged", "too long"])
def test_who_knocked_and_is_not_there_any_more_is_not_let_in(gone):
    machine = coordinator()
    machine.handle(Connected(), 0)
    hear(machine, "stranger", fleet.birth())
    topic = topics.up("farm", "stranger", "birth")
    match gone:
        case "death":
            hear(machine, "stranger", fleet.death())
        case "link":
            machine.handle(Disconnected(), 1)
            machine.handle(Connected(), 2)
        case "forged":
            machine.handle(Received(topic, sealed("cabin", fleet.birth())[1]), 1)
        case _:
            machine.handle(Received(topic, bytes(BIRTH_BYTES_MAX + 1)), 1)
    assert machine.handle(everyone_and_the_stranger(), AFTER) == []


def test_enrolling_a_device_that_never_came_wakes_nobody():
    machine = coordinator()
    machine.handle(Connected(), 0)
    assert machine.handle(everyone_and_the_stranger(), AFTER) == []


def test_a_removed_device_is_unknown_and_no_round_waits_for_it():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    hear(machine, "cabin", fleet.update())
    effects = machine.handle(FleetRead({"cabin": KEY["cabin"]}), AFTER)
    assert kinds(effects) == ["Aggregate"]
    assert receipt_of(hear(machine, "dune", fleet.update())).verdict == "unknown"


def test_a_device_with_a_new_key_may_count_its_boots_from_one_again():
    machine = coordinator()
    machine.handle(Connected(), 0)
    hear(machine, "cabin", fleet.birth(boot=70))
    fresh = {**{name: KEY[name] for name in DEVICES}, "cabin": KEY["stranger"]}
    machine.handle(FleetRead(fresh), AFTER)
    assert hear(machine, "cabin", fleet.birth(boot=1)) == []
    assert kinds(hear(machine, "cabin", fleet.birth(boot=1), sign="stranger")) == ["StoreSeen"]


# Rounds


def test_a_round_is_stored_then_told_then_offered_to_whoever_is_there_and_eligible():
    machine = coordinator()
    machine.handle(Connected(), 0)
    hear(machine, "cabin", fleet.birth())
    hear(machine, "dune", fleet.birth(examples=4))  # the plan asks for 5
    effects = machine.handle(RoundsRead((row(1),)), 1)
    assert kinds(effects) == ["StoreRound", "Publish", "Publish", "StoreInvited", "Publish"]
    assert (effects[0].row.status, effects[0].row.base_version) == ("open", 1)
    assert [type(message) for _, message in said(effects)] == [Plan, State, Offer]
    assert said(effects)[1][1].round_id == 1
    device, offer = said(effects)[-1]
    assert device == "cabin"
    assert offer == Offer(1, digest_of(encode(fleet.PLAN)), 1, 60_000)


def plans(effects: list[Effect]) -> list[Plan]:
    return [message for _, message in said(effects) if isinstance(message, Plan)]


def after_round_one(*, then: Plan) -> tuple[Coordinator, list[Effect]]:
    """Round 1 has closed, and what came of it; round 2, by the plan `then`, waited for that."""
    machine = coordinator()
    open_round(machine, "cabin")
    machine.handle(RoundsRead((row(2, plan=then, updates_min=2),)), AFTER)
    hear(machine, "cabin", fleet.update())
    return machine, machine.handle(Aggregated(1, params(1, 0, 0, 0), None, None), AFTER)


def test_a_plan_is_told_once_and_one_state_from_round_to_round():
    machine, effects = after_round_one(then=fleet.PLAN)
    assert [type(message) for _, message in said(effects)] == [Manifest, State, Offer]
    assert said(effects)[1][1] == State(1, True, 2, 2)
    assert said(effects)[2][1].plan_digest == digest_of(encode(fleet.PLAN))
    (again,) = plans(machine.handle(Tick(), AFTER + 60_000))  # too few came: it may have been lost
    assert again == fleet.PLAN


def test_another_plan_is_told_when_its_round_opens():
    other = msgspec.structs.replace(fleet.PLAN, epochs=2)
    _, effects = after_round_one(then=other)
    assert plans(effects) == [other]


def test_a_plan_is_told_again_when_somebody_who_was_there_did_not_report():
    """It may never have had the plan: anyone may overwrite what the MQTT server retained by an older one."""
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    machine.handle(RoundsRead((row(2), row(3))), AFTER)
    hear(machine, "cabin", fleet.update())
    late = AFTER + 60_000
    machine.handle(Tick(), late)
    assert plans(machine.handle(Aggregated(1, params(1, 0, 0, 0), None, None), late)) == [fleet.PLAN]
    for device in ("cabin", "dune"):
        hear(machine, device, fleet.update(2, 2), late)
    assert plans(machine.handle(Aggregated(2, params(1, 1, 0, 0), None, None), late)) == []


def test_a_plan_is_told_again_after_the_link_was_lost():
    """The MQTT server may have lost what it retained."""
    machine, _ = after_round_one(then=fleet.PLAN)
    machine.handle(Disconnected(), AFTER)
    assert plans(machine.handle(Connected(), AFTER)) == [fleet.PLAN]
    idle = coordinator()
    open_round(idle, "cabin")
    hear(idle, "cabin", fleet.update())
    idle.handle(Aggregated(1, params(1, 0, 0, 0), None, None), AFTER)  # everyone has reported, and no round waits
    idle.handle(Disconnected(), AFTER)
    assert plans(idle.handle(Connected(), AFTER)) == []
    assert plans(idle.handle(RoundsRead((row(2),)), AFTER)) == [fleet.PLAN]


def test_rounds_open_one_at_a_time_in_the_order_of_their_numbers():
    machine = coordinator(rounds=(row(2), row(1)))
    effects = machine.handle(Connected(), 0)
    assert [effect.row.round_id for effect in effects if isinstance(effect, StoreRound)] == [1]
    assert machine.handle(RoundsRead((row(1), row(2), row(3))), 1) == []
    hear(machine, "cabin", fleet.birth())
    hear(machine, "cabin", fleet.update())
    machine.handle(Tick(), SETTLE_MS)
    effects = machine.handle(Aggregated(1, params(1, 0, 0, 0), None, None), AFTER)
    assert [effect.row.round_id for effect in effects if isinstance(effect, StoreRound)] == [2]


def test_a_birth_during_a_round_is_an_invitation_and_again_until_there_is_an_update():
    machine = coordinator()
    open_round(machine, "dune", updates_min=3)
    assert offered(hear(machine, "cabin", fleet.birth())) == ["cabin"]
    assert offered(hear(machine, "cabin", fleet.birth(1, 2))) == ["cabin"]
    hear(machine, "cabin", fleet.update())
    assert offered(hear(machine, "cabin", fleet.birth(1, 3))) == []


def test_an_old_birth_is_not_believed_and_an_old_death_neither():
    machine = coordinator()
    open_round(machine)
    hear(machine, "cabin", fleet.birth(2, 1))
    assert hear(machine, "cabin", fleet.birth(1, 9)) == []
    assert hear(machine, "cabin", fleet.death(1, 9)) == []
    assert kinds(hear(machine, "cabin", fleet.death(2, 1))) == ["StoreSeen"]


def test_a_round_closes_as_soon_as_everyone_invited_has_reported():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    assert "Aggregate" not in kinds(hear(machine, "cabin", fleet.update()))
    effects = hear(machine, "dune", fleet.update())
    assert kinds(effects) == ["StoreUpdate", "Publish", "Aggregate"]
    assert [(m.device_id, m.weight) for m in effects[-1].members] == [("cabin", 40), ("dune", 40)]


def test_a_round_does_not_wait_for_a_device_that_died():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    hear(machine, "cabin", fleet.update())
    assert kinds(hear(machine, "dune", fleet.death())) == ["StoreSeen", "Aggregate"]


def test_a_round_waits_for_a_device_that_died_and_came_back():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    hear(machine, "cabin", fleet.death())
    hear(machine, "cabin", fleet.birth(1, 2))
    assert "Aggregate" not in kinds(hear(machine, "dune", fleet.update()))
    assert "Aggregate" in kinds(hear(machine, "cabin", fleet.update()))


def test_a_round_does_not_wait_for_a_device_that_did_not_come_back_with_the_link():
    machine = coordinator()
    open_round(machine, "cabin", "dune", updates_min=1)
    hear(machine, "cabin", fleet.update())
    machine.handle(Disconnected(), AFTER)
    machine.handle(Connected(), AFTER)
    hear(machine, "cabin", fleet.birth(1, 2))
    assert kinds(machine.handle(Tick(), AFTER + SETTLE_MS)) == ["Aggregate"]


def test_a_round_no_longer_waits_for_whoever_lost_its_place_to_another():
    for seed in range(20):
        machine = Coordinator(fleet.identity(), fleet.snapshot(), random.Random(seed))
        first = offered(open_round(machine, *DEVICES, cohort_max=1))
        second = offered(machine.handle(Tick(), AFTER + 60_000))
        if first != second:
            assert "Aggregate" in kinds(hear(machine, second[0], fleet.update(), AFTER + 60_001))
            return
    raise AssertionError("twenty draws by lot were all the same")


def test_a_round_waits_for_the_slow_until_its_time_is_up():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    hear(machine, "cabin", fleet.update())
    assert machine.handle(Tick(), AFTER + 59_999) == []
    assert kinds(machine.handle(Tick(), AFTER + 60_000)) == ["Aggregate"]


def test_a_round_never_closes_with_fewer_updates_than_it_needs():
    machine = coordinator()
    open_round(machine, "cabin", "dune", updates_min=2)
    hear(machine, "cabin", fleet.update())
    hear(machine, "dune", fleet.death())
    effects = machine.handle(Tick(), AFTER + 60_000)
    assert "Aggregate" not in kinds(effects)
    assert machine.wake_at_ms == AFTER + 120_000
    assert offered(hear(machine, "dune", fleet.birth(1, 2), AFTER + 61_000)) == ["dune"]
    assert "Aggregate" in kinds(hear(machine, "dune", fleet.update(), AFTER + 62_000))


def test_when_time_is_up_with_too_few_updates_the_missing_are_invited_again():
    machine = coordinator()
    open_round(machine, "cabin", "dune", updates_min=2)
    hear(machine, "cabin", fleet.update())
    assert offered(machine.handle(Tick(), AFTER + 60_000)) == ["dune"]


def test_no_round_closes_before_births_had_their_time():
    machine = coordinator(rounds=(row(1, status="open", base_version=1),), pending=(Pending("cabin", 1, 1, 9),))
    machine.handle(Connected(), 0)
    assert machine.wake_at_ms == SETTLE_MS
    assert machine.handle(Tick(), SETTLE_MS - 1) == []
    assert kinds(machine.handle(Tick(), SETTLE_MS)) == ["Aggregate"]


def test_a_cohort_is_drawn_by_lot_and_never_too_large():
    drawn = set()
    for seed in range(20):
        machine = Coordinator(fleet.identity(), fleet.snapshot(), random.Random(seed))
        effects = open_round(machine, *DEVICES, cohort_max=2, updates_min=2)
        assert len(offered(effects)) == 2
        drawn.add(tuple(offered(effects)))
        (left_out,) = set(DEVICES) - set(offered(effects))
        assert offered(hear(machine, left_out, fleet.birth(1, 2))) == []
    assert len(drawn) == 3


def test_a_place_in_the_cohort_is_not_held_for_ever_by_a_device_that_never_reports():
    machine = coordinator()
    (chosen,) = offered(open_round(machine, *DEVICES, cohort_max=1))
    hear(machine, chosen, fleet.death())
    (second,) = offered(machine.handle(Tick(), AFTER + 60_000))
    assert second != chosen


def test_whoever_reports_without_a_place_is_counted_and_not_invited_again():
    machine = coordinator()
    (chosen,) = offered(open_round(machine, "cabin", "dune", cohort_max=1, updates_min=2))
    other = "dune" if chosen == "cabin" else "cabin"
    assert receipt_of(hear(machine, other, fleet.update())).verdict == "accepted"
    assert offered(hear(machine, other, fleet.birth(1, 2))) == []


def test_a_late_update_is_counted_by_the_next_round_with_less_weight():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    hear(machine, "cabin", fleet.update())
    hear(machine, "dune", fleet.death())
    machine.handle(Aggregated(1, params(1, 0, 0, 0), None, None), AFTER)
    late = hear(machine, "dune", fleet.update())
    assert kinds(late) == ["StoreUpdate", "Publish"]
    hear(machine, "dune", fleet.death())
    machine.handle(RoundsRead((row(2),)), AFTER)
    effects = hear(machine, "cabin", fleet.update(2, 2))
    assert [(m.device_id, m.round_id, m.weight) for m in effects[-1].members] == [("cabin", 2, 40), ("dune", 1, 27)]


def test_the_new_version_is_committed_before_it_is_told():
    machine = coordinator()
    open_round(machine, "cabin")
    hear(machine, "cabin", fleet.update())
    effects = machine.handle(Aggregated(1, params(1, 2, 3, 4), 0.5, 0.7), AFTER)
    assert kinds(effects) == ["CommitRound", "Publish", "Publish"]
    commit = effects[0]
    assert isinstance(commit, CommitRound)
    assert (commit.row.status, commit.row.model_version) == ("closed", 2)
    assert (commit.made.accuracy, commit.made.loss) == (0.5, 0.7)
    assert (commit.manifest.model_version, commit.manifest.parent_version) == (2, 1)
    assert [m.device_id for m in commit.members] == ["cabin"]
    before = fleet.first_manifest()[0]
    assert commit.manifest.files[0] == before.files[0]
    assert commit.manifest.files[1].digest == digest_of(params(1, 2, 3, 4))
    assert [message for _, message in said(effects)] == [commit.manifest, State(1, True, 0, 2)]
    assert machine.pending_count == 0


def test_an_update_that_comes_while_a_round_closes_is_kept_for_the_next():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    hear(machine, "dune", fleet.death())
    hear(machine, "cabin", fleet.update())
    assert kinds(hear(machine, "dune", fleet.update())) == ["StoreUpdate", "Publish"]
    effects = machine.handle(Aggregated(1, params(1, 0, 0, 0), None, None), AFTER)
    assert [m.device_id for m in effects[0].members] == ["cabin"]
    assert machine.pending_count == 1


def test_a_failed_aggregation_is_tried_again_after_a_pause():
    machine = coordinator()
    open_round(machine, "cabin")
    hear(machine, "cabin", fleet.update())
    assert machine.handle(AggregateFailed(1, "no"), AFTER) == []
    assert machine.wake_at_ms == AFTER + RETRY_MS
    assert machine.handle(Tick(), AFTER + RETRY_MS - 1) == []
    assert kinds(machine.handle(Tick(), AFTER + RETRY_MS)) == ["Aggregate"]


@pytest.mark.parametrize("answer", [Aggregated(9, params(1, 0, 0, 0), None, None), AggregateFailed(9, "")])
def test_an_answer_about_another_round_changes_nothing(answer):
    machine = coordinator()
    open_round(machine, "cabin")
    hear(machine, "cabin", fleet.update())
    assert machine.handle(answer, AFTER) == []
    assert kinds(machine.handle(Aggregated(1, params(1, 0, 0, 0), None, None), AFTER))[0] == "CommitRound"


def test_a_round_may_close_while_the_link_is_away_and_the_next_opens_when_it_is_back():
    machine = coordinator()
    open_round(machine, "cabin")
    machine.handle(RoundsRead((row(2),)), AFTER)
    hear(machine, "cabin", fleet.update())
    machine.handle(Disconnected(), AFTER)
    effects = machine.handle(Aggregated(1, params(1, 0, 0, 0), None, None), AFTER)
    assert "StoreRound" not in kinds(effects)
    assert "StoreRound" in kinds(machine.handle(Connected(), AFTER))


# Scale epochs


RESCALED = Aggregated(1, params(1, 2, 3, 4), None, None, b"remainder", b"a base with larger scales")


def test_a_new_base_begins_a_scale_epoch_and_brings_its_file():
    machine = coordinator()
    open_round(machine, "cabin")
    (aggregate,) = hear(machine, "cabin", fleet.update())[2:]
    assert aggregate.may_rescale
    commit, manifest, _ = machine.handle(RESCALED, AFTER)
    assert commit.made == RESCALED
    assert said([manifest])[0][1] == commit.manifest
    assert (commit.manifest.scale_epoch, commit.manifest.base_version) == (1, 2)
    assert [file.name for file in commit.manifest.files] == ["model.tflite", "params.bin"]  # fetched in this order
    digests = {file.name: file.digest for file in commit.manifest.files}
    assert digests == {"model.tflite": digest_of(RESCALED.model), "params.bin": digest_of(RESCALED.params)}


def test_a_version_in_the_same_scales_stays_in_the_epoch():
    first = msgspec.structs.replace(fleet.first_manifest()[0], scale_epoch=3, base_version=1)
    machine = coordinator(manifest=first)
    open_round(machine, "cabin")
    hear(machine, "cabin", fleet.update())
    commit = machine.handle(Aggregated(1, params(1, 0, 0, 0), None, None), AFTER)[0]
    assert (commit.manifest.scale_epoch, commit.manifest.base_version) == (3, 1)


def test_a_round_that_waited_over_a_new_base_opens_in_its_scales():
    machine = coordinator()
    open_round(machine, "cabin")
    machine.handle(RoundsRead((row(2),)), AFTER)
    hear(machine, "cabin", fleet.update())
    effects = machine.handle(RESCALED, AFTER)
    (opened,) = [effect.row for effect in effects if isinstance(effect, StoreRound)]
    assert (opened.round_id, opened.plan.scale_epoch, opened.base_version) == (2, 1, 2)
    (plan,) = [message for _, message in said(effects) if isinstance(message, Plan)]
    assert plan == msgspec.structs.replace(fleet.PLAN, scale_epoch=1)
    (offer,) = [message for _, message in said(effects) if isinstance(message, Offer)]
    assert offer.plan_digest == digest_of(encode(plan))
    assert receipt_of(hear(machine, "cabin", fleet.update(2, 2))).verdict == "accepted"


def test_an_update_in_the_scales_of_an_older_epoch_is_stale_even_after_a_restart():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    hear(machine, "cabin", fleet.update())
    hear(machine, "dune", fleet.death())
    commit = machine.handle(RESCALED, AFTER)[0]
    late = receipt_of(hear(machine, "dune", fleet.update()))
    assert (late.verdict, late.reason) == ("stale", "round 1 counts in scale epoch 0, which is over")
    assert machine.pending_count == 0
    again = coordinator(rounds=(commit.row,), manifest=commit.manifest)
    again.handle(Connected(), 0)
    assert receipt_of(hear(again, "dune", fleet.update())).verdict == "stale"


def test_an_update_that_comes_while_the_scales_change_is_added_before_they_do():
    machine = coordinator()
    open_round(machine, "cabin", "dune")
    hear(machine, "dune", fleet.death())
    hear(machine, "cabin", fleet.update())
    assert receipt_of(hear(machine, "dune", fleet.update())).verdict == "accepted"
    (again,) = machine.handle(RESCALED, AFTER)
    assert [m.device_id for m in again.members] == ["cabin", "dune"]
    assert again.may_rescale
    commit = machine.handle(RESCALED, AFTER)[0]
    assert [m.device_id for m in commit.members] == ["cabin", "dune"]
    assert machine.pending_count == 0


def test_scales_stay_while_more_waits_than_one_sum_holds(monkeypatch):
    monkeypatch.setattr(rounds, "WEIGHT_TOTAL_MAX", 60)
    machine = coordinator()
    open_round(machine, "cabin", "dune", updates_min=2)
    hear(machine, "cabin", fleet.update())
    (aggregate,) = hear(machine, "dune", fleet.update())[2:]
    assert [m.device_id for m in aggregate.members] == ["cabin"]
    assert not aggregate.may_rescale


# Rounds that the operator gives up


def cancel(machine: Coordinator, *round_ids: int, now_ms: int = AFTER) -> list[Effect]:
    return machine.handle(RoundsRead((), frozenset(round_ids)), now_ms)


def stored_rounds(effects: list[Effect]) -> list[tuple[int, str, int, int]]:
    rows = [effect.row for effect in effects if isinstance(effect, StoreRound)]
    return [(each.round_id, each.status, each.base_version, each.model_version) for each in rows]


def test_a_cancelled_round_is_stored_as_closed_without_a_version_before_anyone_hears_of_it():
    machine = coordinator()
    open_round(machine, "cabin", "dune", updates_min=3)
    effects = cancel(machine, 1)
    assert kinds(effects) == ["StoreRound", "Publish"]
    assert stored_rounds(effects) == [(1, "closed", 1, 1)]
    assert effects[0].row.is_cancelled
    assert [message for _, message in said(effects)] == [State(1, True, 0, 1)]
    assert machine.wake_at_ms is None
    assert cancel(machine, 1) == []


def test_a_cancelled_round_makes_room_for_the_next_one_at_once():
    machine = coordinator()
    open_round(machine, "cabin", updates_min=3)
    machine.handle(RoundsRead((row(2),)), AFTER)
    effects = cancel(machine, 1)
    assert stored_rounds(effects) == [(1, "closed", 1, 1), (2, "open", 1, 0)]
    assert offered(effects) == ["cabin"]
    assert said(effects)[-1][1].round_id == 2


def test_what_is_stored_of_a_cancelled_round_is_kept_and_counted_by_the_next_as_is_what_comes_late():
    machine = coordinator()
    open_round(machine, "cabin", "dune", updates_min=3)
    hear(machine, "cabin", fleet.update())
    assert "Aggregate" not in kinds(cancel(machine, 1))
    assert machine.pending_count == 1
    late = hear(machine, "dune", fleet.update())
    assert kinds(late) == ["StoreUpdate", "Publish"]
    assert receipt_of(late).verdict == "accepted"
    assert receipt_of(hear(machine, "dune", fleet.update())).verdict == "duplicate"
    machine.handle(RoundsRead((row(2, updates_min=3),)), AFTER)
    hear(machine, "dune", fleet.death())
    effects = hear(machine, "cabin", fleet.update(2))
    expected = [("cabin", 1, 40), ("cabin", 2, 40), ("dune", 1, 40)]
    assert [(m.device_id, m.round_id, m.weight) for m in effects[-1].members] == expected
    commit = machine.handle(Aggregated(2, params(1, 0, 0, 0), None, None), AFTER)[0]
    assert (commit.row.model_version, machine.pending_count) == (2, 0)


def test_a_waiting_round_is_withdrawn_and_never_opened():
    machine = coordinator(rounds=(row(1), row(2), row(3)))
    effects = machine.handle(RoundsRead((row(1), row(2), row(3)), frozenset({1, 3})), 0)
    assert stored_rounds(effects) == [(1, "closed", 0, 0), (3, "closed", 0, 0)]
    assert all(effect.row.is_cancelled for effect in effects)
    assert stored_rounds(machine.handle(Connected(), 0)) == [(2, "open", 1, 0)]
    assert stored_rounds(cancel(machine, 2)) == [(2, "closed", 1, 1)]
    assert machine.handle(RoundsRead((row(4),)), AFTER)[0] == StoreRound(row(4, status="open", base_version=1))


def test_a_round_that_was_asked_for_and_cancelled_between_two_looks_is_withdrawn_unopened():
    machine = coordinator()
    machine.handle(Connected(), 0)
    effects = machine.handle(RoundsRead((row(1), row(2)), frozenset({1})), 1)
    assert stored_rounds(effects) == [(1, "closed", 0, 0), (2, "open", 1, 0)]


def test_a_wish_that_comes_while_the_sum_is_under_way_is_moot_when_there_is_a_version():
    machine = coordinator()
    open_round(machine, "cabin")
    hear(machine, "cabin", fleet.update())
    assert cancel(machine, 1) == []
    effects = machine.handle(Aggregated(1, params(1, 0, 0, 0), None, None), AFTER)
    assert kinds(effects) == ["CommitRound", "Publish", "Publish"]
    assert not effects[0].row.is_cancelled
    assert cancel(machine, 1) == []


def test_a_wish_that_comes_while_the_sum_is_under_way_is_carried_out_when_that_fails():
    machine = coordinator()
    open_round(machine, "cabin")
    machine.handle(RoundsRead((row(2, updates_min=2),)), AFTER)
    hear(machine, "cabin", fleet.update())
    cancel(machine, 1)
    effects = machine.handle(AggregateFailed(1, "no"), AFTER)
    assert stored_rounds(effects) == [(1, "closed", 1, 1), (2, "open", 1, 0)]
    assert machine.wake_at_ms == AFTER + 60_000
    assert "Aggregate" in kinds(hear(machine, "cabin", fleet.update(2)))


def test_a_round_whose_sum_failed_is_cancelled_in_the_pause_and_the_next_does_not_inherit_it():
    machine = coordinator()
    open_round(machine, "cabin")
    hear(machine, "cabin", fleet.update())
    machine.handle(AggregateFailed(1, "no"), AFTER)
    assert stored_rounds(cancel(machine, 1)) == [(1, "closed", 1, 1)]
    assert machine.wake_at_ms is None
    machine.handle(RoundsRead((row(2),)), AFTER)
    assert "Aggregate" in kinds(hear(machine, "cabin", fleet.update(2)))


def test_without_a_link_a_cancelled_round_is_stored_and_nothing_is_said_until_there_is_one():
    machine = coordinator()
    open_round(machine, "cabin", updates_min=3)
    machine.handle(RoundsRead((row(2),)), AFTER)
    machine.handle(Disconnected(), AFTER)
    effects = cancel(machine, 1)
    assert kinds(effects) == ["StoreRound"]
    again = machine.handle(Connected(), AFTER)
    assert stored_rounds(again) == [(2, "open", 1, 0)]
    assert [message.round_id for _, message in said(again) if isinstance(message, State)] == [2]


def test_a_crash_before_the_end_of_a_cancelled_round_is_stored_leaves_it_to_the_next_run():
    """The wish is still in the store, and the shell says it again before there is a link."""
    waits, opened = Pending("cabin", 1, 1, 40), row(1, status="open", base_version=1, updates_min=3)
    reported = {"cabin": Last(1, b"x" * 32)}
    machine = coordinator(rounds=(opened,), last=reported, pending=(waits,))
    assert stored_rounds(cancel(machine, 1, now_ms=0)) == [(1, "closed", 1, 1)]
    assert machine.pending_count == 1
    assert stored_rounds(machine.handle(Connected(), 0)) == []


def test_a_crash_after_the_end_of_a_cancelled_round_is_stored_loses_nothing_of_it():
    waits, over = Pending("cabin", 1, 1, 40), row(1, status="closed", base_version=1, model_version=1)
    machine = coordinator(rounds=(over, row(2)), last={"cabin": Last(1, b"x" * 32)}, pending=(waits,))
    assert cancel(machine, 1, now_ms=0) == []
    assert stored_rounds(machine.handle(Connected(), 0)) == [(2, "open", 1, 0)]
    effects = hear(machine, "dune", fleet.update())
    assert receipt_of(effects).verdict == "accepted"
    (work,) = [effect for effect in effects if isinstance(effect, Aggregate)]
    assert [(m.device_id, m.round_id) for m in work.members] == [("cabin", 1), ("dune", 1)]


# Files and telemetry


def test_a_want_is_answered_with_the_chunks_that_there_are():
    machine = coordinator()
    machine.handle(Connected(), 0)
    file = fleet.first_manifest()[0].files[0]
    effects = hear(machine, "cabin", Want(file.digest, (Range(0, 3),)))
    assert effects == [SendChunk(topics.dn("farm", "cabin", "chunk"), file, 0)]
    assert hear(machine, "cabin", Want(b"\0" * 32, (Range(0, 1),))) == []


def at_version_two(**changes: object) -> tuple[Coordinator, File]:
    """A coordinator whose newest version is 2, and the file of its parameters."""
    first = fleet.first_manifest()[0]
    file = chunks.split(PARAMS_FILE, params(1, 0, 0, 0), 5)
    machine = coordinator(manifest=Manifest("tiny", 2, 1, 4, (first.files[0], file)), **changes)
    machine.handle(Connected(), 0)
    return machine, file


def test_who_wants_the_newest_parameters_and_has_older_ones_may_be_sent_a_patch_instead():
    machine, file = at_version_two()
    parts = tuple(SendChunk(topics.dn("farm", "cabin", "chunk"), file, index) for index in (0, 1, 3))
    effects = hear(machine, "cabin", Want(file.digest, (Range(0, 2), Range(3, 6)), 1))
    assert effects == [SendPatch(topics.dn("farm", "cabin", "patch"), file, 1, 2, parts)]


def test_who_has_the_newest_parameters_in_its_base_file_may_be_sent_a_patch_of_nothing():
    machine, file = at_version_two()
    effects = hear(machine, "cabin", Want(file.digest, (Range(0, 1),), 2))
    part = SendChunk(topics.dn("farm", "cabin", "chunk"), file, 0)
    assert effects == [SendPatch(topics.dn("farm", "cabin", "patch"), file, 2, 2, (part,))]


@pytest.mark.parametrize("base_version", [0, 3])
def test_who_has_no_older_parameters_or_could_not_use_a_patch_is_sent_chunks(base_version: int):
    machine, file = at_version_two()
    effects = hear(machine, "cabin", Want(file.digest, (Range(0, 1),), base_version))
    assert effects == [SendChunk(topics.dn("farm", "cabin", "chunk"), file, 0)]


def test_no_patch_makes_a_base_file():
    machine, _ = at_version_two()
    base = fleet.first_manifest()[0].files[0]
    effects = hear(machine, "cabin", Want(base.digest, (Range(0, 1),), 1))
    assert effects == [SendChunk(topics.dn("farm", "cabin", "chunk"), base, 0)]
    assert hear(machine, "cabin", Want(base.digest, (Range(9, 1),), 1)) == []


def test_where_the_files_are_by_http_is_said_with_every_manifest_and_is_no_part_of_the_version():
    elsewhere = msgspec.structs.replace(fleet.identity(), url="https://farm.example/models")
    machine = Coordinator(elsewhere, fleet.snapshot(), random.Random(5))
    urls = [m.url for _, m in said(machine.handle(Connected(), 0)) if isinstance(m, Manifest)]
    machine.handle(Tick(), SETTLE_MS)
    machine.handle(RoundsRead((row(1),)), AFTER)
    hear(machine, "cabin", fleet.birth())
    hear(machine, "cabin", fleet.update())
    commit, *effects = machine.handle(Aggregated(1, params(1, 0, 0, 0), None, None), AFTER)
    urls += [m.url for _, m in said(effects) if isinstance(m, Manifest)]
    assert urls == ["https://farm.example/models"] * 2
    assert commit.manifest.url == ""


def test_telemetry_is_kept_for_the_operator():
    machine = coordinator()
    machine.handle(Connected(), 0)
    effects = hear(machine, "cabin", Telemetry(1, 1, "waiting", "too hot", 5, 6))
    assert effects == [StoreSeen("cabin", True, work="waiting", reason="too hot")]


# After a restart


def test_a_resumed_round_knows_who_has_reported_and_invites_the_others():
    reported = {"cabin": Last(1, b"x" * 32)}
    machine = coordinator(
        rounds=(row(1, status="open", base_version=1),), last=reported, pending=(Pending("cabin", 1, 1, 40),)
    )
    machine.handle(Connected(), 0)
    assert offered(hear(machine, "cabin", fleet.birth())) == []
    assert offered(hear(machine, "dune", fleet.birth())) == ["dune"]


# Time


def _random_event(chance: random.Random, machine: Coordinator, round_id: int) -> Event:
    device = chance.choice((*DEVICES, "stranger"))
    pair = (chance.randrange(1, 3), chance.randrange(1, 3))
    words = {
        "birth": fleet.birth(*pair),
        "death": fleet.death(*pair),
        "update": fleet.update(max(1, round_id - chance.randrange(2)), chance.randrange(1, 4)),
    }
    events: list[Event] = [
        Connected(),
        Disconnected(),
        RoundsRead((row(round_id, updates_min=chance.randrange(1, 4), lasts_ms=chance.choice((1, 50, 60_000))),)),
        RoundsRead((), frozenset({round_id})),
        FleetRead({name: KEY[name] for name in chance.sample(DEVICES, chance.randrange(1, 4))}),
        AggregateFailed(round_id, "no"),
        *(Received(*sealed(device, word)) for word in words.values() for _ in range(3)),
    ]
    return chance.choice(events)


@pytest.mark.parametrize("seed", range(25))
def test_a_tick_at_its_time_moves_the_time_forward_or_clears_it(seed):
    """No busy loop, whatever has happened: a Tick when it is due leaves nothing due."""
    chance = random.Random(seed)
    machine = Coordinator(fleet.identity(), fleet.snapshot(), random.Random(seed))
    now_ms = 0
    machine.handle(Connected(), now_ms)
    ticks = 0
    for step in range(120):
        now_ms += chance.choice((0, 1, 40, 7000))
        for effect in machine.handle(_random_event(chance, machine, 1 + step // 30), now_ms):
            if isinstance(effect, Aggregate) and chance.random() < 0.7:
                machine.handle(Aggregated(effect.round_id, params(1, 0, 0, 0), None, None), now_ms)
        due = machine.wake_at_ms
        if due is not None:
            now_ms = max(now_ms, due)
            machine.handle(Tick(), now_ms)
            ticks += 1
            assert machine.wake_at_ms is None or machine.wake_at_ms > now_ms
    assert ticks > 0


def test_what_is_published_is_signed_by_the_coordinator_for_its_topic():
    machine = coordinator()
    effects = [*open_round(machine, "cabin"), *hear(machine, "cabin", fleet.update())]
    published = [effect for effect in effects if isinstance(effect, Publish)]
    assert len(published) >= 4
    for effect in published:
        unseal(effect.payload, effect.topic, keys.verifier(KEY["coordinator"]))


def test_effects_name_updates_only_once_per_device_and_round():
    machine = coordinator()
    open_round(machine, *DEVICES)
    effects = [effect for _ in range(3) for device in DEVICES for effect in hear(machine, device, fleet.update())]
    stored = [(e.row.device_id, e.row.round_id) for e in effects if isinstance(e, StoreUpdate)]
    assert sorted(stored) == [(device, 1) for device in DEVICES]
