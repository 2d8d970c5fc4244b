"""A round that is offered to all: whom the coin draws, when it begins, and what replays of offers cannot do."""

from __future__ import annotations

import msgspec
import pytest

from edge_agent import effects
from edge_agent.tries import RETRY_MS
from tests.edge_agent.stage import DEVICE, FLEET, LASTS_MS, PLAN, Stage, manifest, names, said
from wire import coin, envelope, topics
from wire.limits import COIN_SIDES
from wire.messages import Offer, digest_of, encode

NONCE = b"n" * 16
SIDE = coin.side(FLEET, 1, NONCE, DEVICE)  # in round 1
SPREAD_MS = 10_000
WAIT_MS = coin.wait_ms(Offer(1, bytes(32), 1, LASTS_MS, NONCE, COIN_SIDES, SPREAD_MS), FLEET, DEVICE)


def offer(**changes) -> Offer:
    return msgspec.structs.replace(Offer(1, digest_of(encode(PLAN)), 1, LASTS_MS, NONCE, SIDE + 1), **changes)


def hear(stage: Stage, said_: Offer, *, to_all: bool = True) -> list[effects.Effect]:
    return stage.hear("offer", said_, to_all=to_all)


def trains(stage: Stage, followed: list[effects.Effect]) -> bool:
    return "StartTraining" in names(followed + stage.serve(followed))


@pytest.mark.parametrize("to_all", [True, False])
def test_a_device_takes_part_when_its_coin_is_below_the_share_and_not_at_it(to_all):
    stage = Stage().ready()
    assert hear(stage, offer(draw=SIDE), to_all=to_all) == []
    assert (stage.agent.work.value, stage.agent.reason) == ("idle", "not drawn for round 1")
    assert trains(stage, hear(stage, offer(draw=SIDE + 1), to_all=to_all))


def test_an_offer_with_a_smaller_share_sent_again_does_not_take_back_the_one_that_drew():
    stage = Stage().ready()
    followed = hear(stage, offer())
    hear(stage, offer(draw=SIDE))
    assert trains(stage, followed)


def test_it_begins_after_its_own_part_of_the_jitter_and_not_before():
    assert 2 < WAIT_MS < SPREAD_MS - 2, "choose another nonce"
    stage = Stage().ready()
    assert hear(stage, offer(jitter_ms=SPREAD_MS)) == []
    assert stage.agent.work.value == "waiting"
    assert stage.agent.reason == f"begins round 1 in {WAIT_MS / 1000:.1f} s"
    assert stage.agent.wake_at_ms == stage.now_ms + WAIT_MS
    assert stage.tick(WAIT_MS - 1) == []
    assert trains(stage, stage.tick(1))


def test_the_same_offer_again_neither_shortens_the_wait_nor_begins_it_anew():
    stage = Stage().ready()
    hear(stage, offer(jitter_ms=SPREAD_MS))
    stage.tick(WAIT_MS // 2)
    assert hear(stage, offer(jitter_ms=SPREAD_MS)) == []
    assert hear(stage, offer(jitter_ms=0), to_all=False) == []  # of the same round, and as true
    assert trains(stage, stage.tick(WAIT_MS - WAIT_MS // 2))


def test_the_jitter_does_not_end_the_pause_after_a_failure():
    """Else the late answer of the stopped child is taken for the new one's."""
    stage = Stage().ready()
    stage.serve(hear(stage, offer(lasts_ms=PLAN.trainer_ms_max)))
    stage.tick(PLAN.trainer_ms_max)
    hear(stage, offer(jitter_ms=SPREAD_MS // 100))
    assert not trains(stage, stage.tick(SPREAD_MS // 100))
    assert stage.trained() == []
    assert trains(stage, stage.tick(RETRY_MS))


def test_a_device_that_still_trains_goes_on_and_then_takes_the_newest_round_without_a_wait():
    stage = Stage().training(1)
    stage.hear("manifest", manifest(2))
    nonce = next(bytes([n]) * 16 for n in range(256) if coin.side(FLEET, 2, bytes([n]) * 16, DEVICE) < COIN_SIDES // 2)
    hear(stage, offer(round_id=2, base_version=2, nonce=nonce, draw=COIN_SIDES // 2, jitter_ms=SPREAD_MS))
    assert stage.agent.work.value == "training"
    stage.trained(1)
    followed = stage.receipt(stage.agent.durable.outbox, "accepted")
    assert stage.agent.durable.outbox == b""
    assert trains(stage, followed)


def test_the_offer_of_a_round_that_has_closed_is_no_work():
    stage = Stage().ready()
    stage.hear("manifest", manifest(2))
    hear(stage, offer())
    assert stage.agent.work.value == "idle"
    assert stage.agent.wake_at_ms == stage.agent._presence.due_ms


def test_what_everyone_hears_is_no_answer_to_a_birth():
    stage = Stage().ready()
    hear(stage, offer(draw=SIDE))
    hear(stage, offer())
    assert len(said(stage.tick(300_000), "birth")) == 1


def test_an_offer_to_one_of_a_newer_round_is():
    stage = Stage().ready()
    hear(stage, offer(), to_all=False)
    assert said(stage.tick(300_000), "birth") == []


def test_an_offer_to_all_with_another_key_is_not_believed():
    stage = Stage().ready()
    topic = topics.shared(FLEET, "offer")
    forged = envelope.seal(offer(), topic, lambda data: bytes(64))
    moved = envelope.seal(offer(), topics.dn(FLEET, DEVICE, "offer"), lambda data: bytes(64))
    for payload in (forged, moved):
        assert stage.handle(effects.Received(topic, payload)) == []
    assert stage.agent.refused_count == {"signature": 2}
