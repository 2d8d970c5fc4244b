"""Claims in the loop: what is let in takes part at once, and a store that fails is said nothing of."""

from __future__ import annotations

import time

import pytest

from broker import certificates, enrolling
from broker.database import StoreError
from tests.broker.fleet import FLEET, KEY, SIGN
from tests.broker.test_service import Rig, directory, rig
from wire import envelope, keys, token_text, topics
from wire.enrolment import Certificate, Claim, proof_of
from wire.link import Arrived, LinkUp
from wire.messages import Birth

__all__ = ["directory", "rig"]
TLS_KEY = certificates.key_of(b"t" * 32)


@pytest.fixture
def claim(rig: Rig) -> Arrived:
    """A good claim of a device that is not in the fleet."""
    enrolling.begin(rig.config, rig.store, ("barn",), time.time())
    wish = {"url": "mqtts://barn", "device_id": "", "lasts_s": 60.0}
    token = token_text.decode(enrolling.new_token(rig.config, rig.store, time.time(), **wish))
    seed = token_text.signing_seed(token.secret)
    topic = topics.claim(FLEET, token_text.token_id(keys.public_text(seed)))
    request = certificates.request(TLS_KEY, "stranger")
    message = Claim("stranger", KEY["stranger"], SIGN["stranger"](proof_of(request)), request)
    return Arrived(topic, envelope.seal(message, topic, keys.signer(seed)), False)


def test_who_was_let_in_is_a_device_of_the_fleet_one_look_at_the_store_later(rig: Rig, claim: Arrived) -> None:
    rig.turn(LinkUp())
    rig.turn(claim)
    (answer,) = rig.link.heard(Certificate)
    assert isinstance(answer, Certificate)
    certificates.parse(answer.certificate)
    assert any(line.startswith("event=enrolled device=stranger ") for line in rig.said)
    assert rig.service._seconds_to_wait() == 0  # it looks at the store at once, not at the next poll
    rig.turn()
    rig.turn(rig.say("stranger", Birth(1, 1, 1, 0, 40, "agent")))
    assert "event=birth device=stranger" in rig.said


def test_who_spoke_before_it_was_let_in_is_named_in_the_log_when_it_is(rig: Rig, claim: Arrived) -> None:
    rig.turn(LinkUp())
    rig.turn(rig.say("stranger", Birth(1, 1, 1, 0, 40, "agent")), claim)
    rig.turn()
    assert "event=birth device=stranger" in rig.said


def test_where_the_store_fails_nothing_is_said_and_the_process_ends(rig: Rig, claim: Arrived, monkeypatch) -> None:
    rig.turn(LinkUp())

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(rig.store.enrolments, "use", full)
    with pytest.raises(StoreError):
        rig.turn(claim)
    assert rig.link.heard(Certificate) == []
    assert "stranger" not in rig.store.fleet()
    assert rig.store.enrolments.newest("stranger") is None


def test_a_claim_that_we_fail_at_does_not_stop_the_fleet(rig: Rig, claim: Arrived, monkeypatch) -> None:
    rig.turn(LinkUp())
    monkeypatch.setattr(rig.service._claims, "_grant", lambda *_: 1 / 0)
    rig.turn(claim)
    assert any(line.startswith("event=fault ") and "ZeroDivisionError" in line for line in rig.said)


def test_what_is_not_believed_is_counted_with_all_other_refusals(rig: Rig) -> None:
    rig.turn(LinkUp())
    topic = topics.claim(FLEET, "0" * 16)
    rig.turn(Arrived(topic, b"x", False), Arrived(topics.up(FLEET, "cabin", "renew"), b"x", False))
    assert rig.service.coordinator.refused_count == {"stranger": 1, "shape": 1}
