"""Buffered rounds: offered to all in one word, closed by the K-th update, and what the coin refuses."""

from __future__ import annotations

import random

import msgspec
import pytest

from broker import cohort
from broker.coordinator import SETTLE_MS, Coordinator
from broker.effects import (
    Aggregate,
    Aggregated,
    CommitRound,
    Connected,
    Disconnected,
    Effect,
    Event,
    Pending,
    Publish,
    Received,
    RoundRow,
    RoundsRead,
    StoreRound,
    StoreUpdate,
    Tick,
)
from tests.broker import fleet
from tests.broker.fleet import DEVICES, FLEET, coordinator, params, row, said, sealed
from wire import coin, topics
from wire.limits import COIN_SIDES
from wire.messages import Manifest, Offer, Plan, Receipt, State

AFTER = SETTLE_MS + 1
LASTS_MS = 60_000


def buffered(round_id: int = 1, **changes: object) -> RoundRow:
    return row(round_id, **{"mode": "buffered", "updates_enough": 2, "lasts_ms": LASTS_MS, **changes})


def hear(machine: Coordinator, device: str, message: object, now_ms: int = AFTER) -> list[Effect]:
    return machine.handle(Received(*sealed(device, message)), now_ms)


def open_rounds(machine: Coordinator, *rows: RoundRow, devices: tuple[str, ...] = DEVICES) -> list[Effect]:
    machine.handle(Connected(), 0)
    for device in devices:
        hear(machine, device, fleet.birth(), 0)
    machine.handle(Tick(), SETTLE_MS)
    return machine.handle(RoundsRead(rows), AFTER)


def offers(effects: list[Effect]) -> list[tuple[str, Offer]]:
    return [(to, message) for to, message in said(effects) if isinstance(message, Offer)]


def verdict(effects: list[Effect]) -> Receipt:
    (receipt,) = [message for _, message in said(effects) if isinstance(message, Receipt)]
    return receipt


def answer(machine: Coordinator, effects: list[Effect], now_ms: int = AFTER) -> list[Effect]:
    (work,) = [effect for effect in effects if isinstance(effect, Aggregate)]
    return machine.handle(Aggregated(work.round_id, params(work.round_id, 0, 0, 0), None, None), now_ms)


def drawn_by(offer: Offer) -> set[str]:
    return {name for name in DEVICES if coin.wait_ms(offer, FLEET, name) is not None}


def test_a_round_is_offered_to_all_in_one_retained_message_that_was_stored_before():
    machine = coordinator()
    effects = open_rounds(machine, buffered())
    ((to, offer),) = offers(effects)
    assert to == topics.ALL
    assert [effect.retain for effect in effects if isinstance(effect, Publish)] == [True] * 3  # plan, state, offer
    stored = effects[0].row
    assert (stored.nonce, stored.draw) == (offer.nonce, offer.draw)
    assert len(offer.nonce) == cohort.NONCE_BYTES
    assert (offer.round_id, offer.base_version, offer.lasts_ms, offer.draw) == (1, 1, LASTS_MS, COIN_SIDES)


def test_two_rounds_have_two_nonces():
    machine = coordinator()
    first = open_rounds(machine, buffered(1, updates_enough=1), buffered(2))[0].row
    second = answer(machine, hear(machine, "cabin", fleet.update()))
    (opened,) = [effect.row for effect in second if isinstance(effect, StoreRound)]
    assert opened.nonce != first.nonce


def test_the_kth_update_closes_the_round_and_the_next_one_opens_at_once():
    machine = coordinator()
    open_rounds(machine, buffered(1), buffered(2))
    assert not [e for e in hear(machine, "cabin", fleet.update()) if isinstance(e, Aggregate)]
    closing = hear(machine, "dune", fleet.update())
    following = answer(machine, closing)
    assert [type(effect) for effect in following if not isinstance(effect, Publish)] == [CommitRound, StoreRound]
    # the plan again: whoever still trains may have heard an old one
    assert [type(message) for _, message in said(following)] == [Manifest, Plan, State, Offer]
    assert [(offer.round_id, offer.base_version) for _, offer in offers(following)] == [(2, 2)]


def test_who_is_late_for_a_full_buffer_is_counted_by_the_next_and_weighs_less():
    machine = coordinator()
    open_rounds(machine, buffered(1), buffered(2))
    hear(machine, "cabin", fleet.update())
    answer(machine, hear(machine, "dune", fleet.update()))
    late = hear(machine, DEVICES[2], fleet.update(1, 1))
    assert verdict(late).verdict == "accepted"
    (work,) = [e for e in hear(machine, "cabin", fleet.update(2, 2)) if isinstance(e, Aggregate)]
    assert work.members == (Pending("cabin", 2, 2, 40), Pending(DEVICES[2], 1, 1, 40 * 11 // 16))


def test_a_buffer_that_filled_while_the_sum_was_made_closes_the_next_round_as_it_opens():
    machine = coordinator()
    open_rounds(machine, buffered(1, updates_enough=1), buffered(2, updates_enough=2))
    closing = hear(machine, "cabin", fleet.update())
    hear(machine, "dune", fleet.update())
    hear(machine, DEVICES[2], fleet.update())
    following = answer(machine, closing)
    assert isinstance(following[-1], Aggregate)
    assert {member.device_id for member in following[-1].members} == {"dune", DEVICES[2]}


@pytest.mark.parametrize(("came", "closes"), [(1, True), (0, False)])
def test_time_closes_it_with_one_update_and_not_with_none(came, closes):
    machine = coordinator()
    open_rounds(machine, buffered())
    for device in DEVICES[:came]:
        hear(machine, device, fleet.update())
    effects = machine.handle(Tick(), AFTER + LASTS_MS)
    assert any(isinstance(effect, Aggregate) for effect in effects) == closes
    assert bool(offers(effects)) != closes


def test_an_update_of_a_device_that_the_coin_did_not_draw_is_refused_with_the_reason():
    effects: list[Effect] = []
    for seed in range(20):
        machine = Coordinator(fleet.identity(), fleet.snapshot(), random.Random(seed))
        effects = open_rounds(machine, buffered(cohort_max=1))
        ((_, offer),) = offers(effects)
        if 0 < len(drawn_by(offer)) < len(DEVICES):
            break
    inside, outside = min(drawn_by(offer)), min(set(DEVICES) - drawn_by(offer))
    refused = hear(machine, outside, fleet.update())
    assert not [effect for effect in refused if isinstance(effect, StoreUpdate)]
    assert (verdict(refused).verdict, verdict(refused).reason[:25]) == (
        "refused",
        "round 1 has not drawn " + outside[:3],
    )
    assert verdict(hear(machine, inside, fleet.update())).verdict == "accepted"


def test_the_share_draws_as_many_as_the_round_wants_of_those_who_are_there():
    machine = coordinator()
    ((_, offer),) = offers(open_rounds(machine, buffered(cohort_max=1), devices=("cabin", "dune")))
    assert offer.draw == COIN_SIDES // 2


def test_too_few_came_so_the_share_is_twice_as_large_and_stored_before_it_is_said():
    machine = coordinator()
    ((_, before),) = offers(open_rounds(machine, buffered(cohort_max=1)))
    effects = machine.handle(Tick(), AFTER + LASTS_MS)
    ((to, offer),) = offers(effects)
    assert (to, offer.nonce, offer.draw) == (topics.ALL, before.nonce, 2 * before.draw)
    assert isinstance(effects[0], StoreRound)
    assert effects[0].row.draw == offer.draw
    ((_, most),) = offers(machine.handle(Tick(), AFTER + 2 * LASTS_MS))
    assert most.draw == COIN_SIDES
    assert [type(message) for _, message in said(effects)] == [Manifest, Plan, Offer]


def test_after_a_restart_the_same_coins_decide():
    machine = coordinator()
    opened = open_rounds(machine, buffered(cohort_max=1))[0].row
    raised = machine.handle(Tick(), AFTER + LASTS_MS)[0].row
    again = coordinator(rounds=(raised,))
    effects = again.handle(Connected(), 0)
    ((to, offer),) = offers(effects)
    assert (to, offer.nonce, offer.draw) == (topics.ALL, opened.nonce, 2 * opened.draw)


def test_a_device_that_joins_in_is_told_by_a_word_of_its_own_if_it_is_drawn():
    machine = coordinator()
    open_rounds(machine, buffered(), devices=("cabin",))
    ((to, offer),) = offers(hear(machine, "dune", fleet.birth()))
    assert (to, offer.draw) == ("dune", COIN_SIDES)
    machine = coordinator()
    ((_, offer),) = offers(open_rounds(machine, buffered(cohort_max=1), devices=DEVICES))
    for device in DEVICES:
        assert bool(offers(hear(machine, device, fleet.birth(1, 2)))) == (device in drawn_by(offer))


def test_the_next_round_draws_more_when_the_last_ones_counted_too_few_and_less_again_after_that():
    one = buffered(updates_enough=4)
    assert [cohort.haste_after(one, counted, 4) for counted in (1, 3, 4, 9)] == [8, 8, 2, 2]
    assert cohort.haste_after(one, 4, 1) == 1
    assert cohort.haste_after(one, 0, cohort.HASTE_MAX) == cohort.HASTE_MAX
    chance = random.Random(1)
    wanted = msgspec.structs.replace(one, cohort_max=10)
    assert cohort.with_coin(wanted, 100, 1, chance).draw == COIN_SIDES // 10
    assert cohort.with_coin(wanted, 100, 4, chance).draw == COIN_SIDES * 4 // 10
    assert cohort.with_coin(wanted, 100, 16, chance).draw == COIN_SIDES


def test_the_jitter_lets_fifty_devices_a_second_begin_and_takes_a_quarter_of_the_round_at_most():
    one = buffered(nonce=b"n" * 16, draw=COIN_SIDES // 2)
    assert cohort.offer(one, bytes(32), 200).jitter_ms == 2_000
    assert cohort.offer(one, bytes(32), 1_000_000).jitter_ms == LASTS_MS // 4
    assert cohort.offer(row(1), bytes(32), 200).jitter_ms == 0  # one by one
    assert cohort.offer(one, bytes(32), 20).jitter_ms == 0  # ten of them
    assert cohort.offer(one, bytes(32), 22).jitter_ms == 220


def test_a_synchronous_round_that_invited_more_than_it_needs_closes_with_the_first_of_them():
    machine = coordinator()
    effects = open_rounds(machine, row(1, cohort_max=3, updates_enough=2, updates_min=1))
    assert sorted(to for to, _ in offers(effects)) == sorted(DEVICES)
    hear(machine, "cabin", fleet.update())
    assert [type(e) for e in hear(machine, "dune", fleet.update())] == [StoreUpdate, Publish, Aggregate]


def test_a_lost_link_is_followed_by_the_same_offer_to_all():
    machine = coordinator()
    ((_, before),) = offers(open_rounds(machine, buffered()))
    events: list[Event] = [Disconnected(), Connected()]
    ((to, offer),) = offers([effect for event in events for effect in machine.handle(event, AFTER)])
    assert (to, offer) == (topics.ALL, before)


def test_a_round_that_time_closed_with_too_few_makes_the_next_one_draw_more():
    machine = coordinator()
    ((_, offer),) = offers(open_rounds(machine, buffered(1, cohort_max=1), buffered(2, cohort_max=1)))
    machine.handle(Tick(), AFTER + LASTS_MS)
    machine.handle(Tick(), AFTER + 2 * LASTS_MS)  # now everyone is drawn
    hear(machine, "cabin", fleet.update())
    following = answer(machine, machine.handle(Tick(), AFTER + 3 * LASTS_MS))
    assert [(each.round_id, each.draw) for _, each in offers(following)] == [(2, 2 * offer.draw)]


def test_all_whom_the_coin_draws_are_waited_for_though_they_are_more_than_the_round_wants():
    one = buffered(cohort_max=1, nonce=b"n" * 16)
    assert cohort.draw(one, FLEET, DEVICES, set(), random.Random(1)) == sorted(DEVICES)
