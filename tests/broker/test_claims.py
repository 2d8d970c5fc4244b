"""Who gets a certificate, who is told why not, and who hears nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec
import pytest

from broker import authority, certificates, claims, enrolling
from broker.config import parse
from broker.effects import Publish
from broker.store import Store
from tests.broker.fleet import FLEET, KEY, SEEDS, SIGN
from wire import envelope, keys, token_text, topics
from wire.enrolment import Certificate, Claim, Renew, proof_of
from wire.messages import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker.database import Place
    from wire.messages import Message

NOW = 1_800_000_000.0
DAY = 86_400.0
URL = "mqtts://barn:8883"


class Desk:
    """The machine over a real store and a real authority, and a device that says what a test wants."""

    def __init__(self, directory: Path, place: Place) -> None:
        text = f'[fleet]\nid = "{FLEET}"\n[model]\nname = "tiny"\n[mqtt]\nurl = "{URL}"'
        self.config = parse(text, directory)
        keys.save_private(directory / "coordinator.key", SEEDS["coordinator"])
        self.store = Store(place)
        enrolling.begin(self.config, self.store, ("barn",), NOW)
        self.refused: dict[str, int] = {}
        issue = partial(enrolling.issue, self.config)
        self.machine = claims.Claims(FLEET, SIGN["coordinator"], self.store, issue, self.refused)
        self.now_ms = 0
        self.unix_s = NOW

    def token(self, device: str = "", lasts_s: float = DAY) -> token_text.Token:
        wish = {"url": URL, "device_id": device, "lasts_s": lasts_s}
        return token_text.decode(enrolling.new_token(self.config, self.store, self.unix_s, **wish))

    def say(self, topic: str, sealed: bytes) -> list[object]:
        return self.machine.handle(topic, sealed, self.now_ms, self.unix_s)

    def ask(self, topic: str, message: Message, seed: bytes, answers: str) -> Certificate:
        """Say a message and return the answer, which must be for it, and signed for its topic."""
        sealed = envelope.seal(message, topic, keys.signer(seed))
        publish, line = self.say(topic, sealed)
        assert isinstance(publish, Publish)
        assert isinstance(line, str)
        assert (publish.topic, publish.retain) == (answers, False)
        answer = envelope.unseal(publish.payload, answers, keys.verifier(KEY["coordinator"]))
        assert isinstance(answer, Certificate)
        assert answer.digest == digest_of(sealed)
        assert bool(answer.certificate) != bool(answer.reason)
        return answer

    def claim(self, token: token_text.Token, claim: Claim) -> Certificate:
        seed = token_text.signing_seed(token.secret)
        token_id = token_text.token_id(keys.public_text(seed))
        return self.ask(topics.claim(FLEET, token_id), claim, seed, topics.claim_answer(FLEET, token_id))

    def renew(self, device: str, request: bytes) -> Certificate:
        topic = topics.up(FLEET, device, "renew")
        return self.ask(topic, Renew(request), SEEDS[device], topics.dn(FLEET, device, "certificate"))


@pytest.fixture
def desk(tmp_path: Path, place: Place) -> Iterator[Desk]:
    desk = Desk(tmp_path, place)
    yield desk
    desk.store.close()


CABIN_TLS, OTHER_TLS = certificates.key_of(b"c" * 32), certificates.key_of(b"o" * 32)


def claim_of(name: str = "cabin", seed: str = "cabin", tls=CABIN_TLS, request: bytes = b"") -> Claim:
    request = request or certificates.request(tls, "whatever")
    return Claim(name, KEY[seed], SIGN[seed](proof_of(request)), request)


def test_a_claim_gets_a_certificate_for_its_name_and_key_and_the_device_is_in_the_fleet(desk: Desk) -> None:
    answer = desk.claim(desk.token(), claim_of())
    made = certificates.parse(answer.certificate)
    ours = authority.load(desk.config.path("ca.crt"), desk.config.path("ca.key"))
    certificates.check_issued(made, "cabin", CABIN_TLS.public_key(), ours.own)
    assert certificates.lifetime(made) == (NOW, NOW + 90 * DAY)  # no earlier than the authority itself
    assert desk.store.fleet() == {"cabin": KEY["cabin"]}
    assert desk.store.enrolments.newest("cabin").content == answer.certificate


def test_the_same_device_is_given_the_same_again_and_nothing_is_issued_twice(desk: Desk) -> None:
    token = desk.token("cabin")
    first = desk.claim(token, claim_of())
    count = len(desk.store.enrolments.certificates())
    again = certificates.request(CABIN_TLS, "another name")
    assert desk.claim(token, claim_of(request=again)).certificate == first.certificate
    assert len(desk.store.enrolments.certificates()) == count


@pytest.mark.parametrize(
    "other",
    [claim_of(seed="dune"), claim_of("dune", "dune"), claim_of(tls=OTHER_TLS), claim_of("dune")],
    ids=["another key", "another device", "another TLS key", "another name"],
)
def test_a_used_token_is_refused_to_anybody_else(desk: Desk, other: Claim) -> None:
    token = desk.token()
    desk.claim(token, claim_of())
    assert "was used by another device" in desk.claim(token, other).reason
    assert desk.store.fleet() == {"cabin": KEY["cabin"]}


def test_no_token_takes_the_name_of_a_device_that_is_there(desk: Desk) -> None:
    desk.store.add_device("cabin", KEY["dune"])
    assert "in the fleet with another key" in desk.claim(desk.token(), claim_of()).reason
    assert desk.store.fleet() == {"cabin": KEY["dune"]}
    assert desk.claim(desk.token(), claim_of(seed="dune")).certificate  # enrolled by hand before: it is the same one


def test_a_token_is_for_one_name_where_it_says_so_and_for_none_that_is_reserved(desk: Desk) -> None:
    assert "the token is for dune" in desk.claim(desk.token("dune"), claim_of()).reason
    for name in ("claim", "coordinator", "all"):
        assert "cannot be used" in desk.claim(desk.token(), claim_of(name)).reason
    assert desk.store.fleet() == {}


def test_a_token_ends(desk: Desk) -> None:
    token = desk.token(lasts_s=60)
    desk.unix_s += 60
    assert "time is over" in desk.claim(token, claim_of()).reason
    desk.unix_s -= 1
    assert desk.claim(token, claim_of()).certificate


def test_what_was_revoked_is_not_given_again(desk: Desk) -> None:
    token = desk.token()
    desk.claim(token, claim_of())
    enrolling.revoke(desk.config, desk.store, "cabin", NOW + 1)
    assert "used by another" in desk.claim(token, claim_of()).reason  # it is out of the fleet
    desk.store.add_device("cabin", KEY["cabin"])
    assert "is revoked" in desk.claim(token, claim_of()).reason


BROKEN = bytearray(certificates.request(CABIN_TLS, "cabin"))
BROKEN[-1] ^= 1


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (bytes(BROKEN), "not signed by its own key"),
        (b"0\x82", "no PKCS #10"),
        (b"\xff" * 1024, "no PKCS #10"),
        (certificates.request(CABIN_TLS, "cabin")[:-3], "no PKCS #10"),
    ],
)
def test_a_request_that_does_not_hold_is_refused_with_the_reason(desk: Desk, request_: bytes, why: str) -> None:
    token = desk.token()
    assert why in desk.claim(token, claim_of(request=request_)).reason
    assert desk.claim(token, claim_of()).certificate  # and the token is as good as before


def test_nobody_claims_a_place_for_a_key_that_it_does_not_hold(desk: Desk) -> None:
    forged = msgspec.structs.replace(claim_of(), public_key=KEY["dune"])
    assert "not signed by the key" in desk.claim(desk.token(), forged).reason
    twisted = msgspec.structs.replace(claim_of(), public_key="ed25519:" + "_" * 43)  # one letter says too much
    assert "not signed by the key" in desk.claim(desk.token(), twisted).reason


def test_who_shows_no_key_hears_nothing(desk: Desk) -> None:
    token = desk.token()
    seed = token_text.signing_seed(token.secret)
    token_id = token_text.token_id(keys.public_text(seed))
    topic, other = topics.claim(FLEET, token_id), topics.claim(FLEET, "0" * 16)
    mine = keys.signer(seed)
    for where, sealed in (
        (topic, envelope.seal(claim_of(), topic, SIGN["cabin"])),  # by another key
        (topic, envelope.seal(claim_of(), other, mine)),  # for another topic
        (topic, envelope.seal(Renew(b"x"), topic, mine)),  # another kind
        (topic, b"\xd2\x84"),
        (topic, bytes(130_000)),
        (other, envelope.seal(claim_of(), other, mine)),  # a token that is not there
        (topics.claim("barn", token_id), envelope.seal(claim_of(), topics.claim("barn", token_id), mine)),
        ("fl/v1/farm/enrol/x/up/claim", b""),
    ):
        assert desk.say(where, sealed) == []
    assert desk.refused == {"signature": 2, "kind": 1, "shape": 1, "size": 1, "stranger": 2, "topic": 1}
    assert desk.store.fleet() == {}


def test_a_certificate_is_renewed_after_two_thirds_and_until_then_it_is_the_same(desk: Desk) -> None:
    first = desk.claim(desk.token(), claim_of()).certificate
    request = certificates.request(CABIN_TLS, "cabin")
    desk.unix_s += 59 * DAY
    assert desk.renew("cabin", request).certificate == first
    desk.unix_s += 2 * DAY
    second = desk.renew("cabin", request).certificate
    assert second != first
    assert certificates.lifetime(certificates.parse(second))[1] == desk.unix_s + 90 * DAY
    assert desk.renew("cabin", request).certificate == second
    with_another_key = desk.renew("cabin", certificates.request(OTHER_TLS, "cabin")).certificate
    assert certificates.parse(with_another_key).public_key() == OTHER_TLS.public_key()


def test_only_a_device_of_the_fleet_renews_and_only_its_own(desk: Desk) -> None:
    desk.claim(desk.token(), claim_of())
    request = certificates.request(CABIN_TLS, "cabin")
    for name, sign in (("cabin", SIGN["dune"]), ("dune", SIGN["dune"])):
        topic = topics.up(FLEET, name, "renew")
        assert desk.say(topic, envelope.seal(Renew(request), topic, sign)) == []
    enrolling.revoke(desk.config, desk.store, "cabin", NOW + 1)
    topic = topics.up(FLEET, "cabin", "renew")
    assert desk.say(topic, envelope.seal(Renew(request), topic, SIGN["cabin"])) == []
    assert desk.refused == {"signature": 1, "stranger": 2}


def test_a_flood_of_one_is_cut_and_does_not_keep_the_others_out(desk: Desk) -> None:
    desk.claim(desk.token(), claim_of())
    topic = topics.up(FLEET, "cabin", "renew")
    sealed = envelope.seal(Renew(certificates.request(CABIN_TLS, "cabin")), topic, SIGN["cabin"])
    answered = [bool(desk.say(topic, sealed)) for _ in range(30)]
    assert answered == [True] * claims.ASKER_CLAIMS_MAX + [False] * 10
    assert desk.claim(desk.token(), claim_of("dune", "dune", OTHER_TLS)).certificate
    desk.now_ms += claims.WINDOW_MS
    assert desk.say(topic, sealed)


def test_all_together_are_cut_as_well_but_not_by_who_shows_no_key(desk: Desk, monkeypatch) -> None:
    monkeypatch.setattr(claims, "CLAIMS_MAX", 3)
    tokens = [desk.token() for _ in range(4)]
    for _ in range(10):
        assert desk.say(topics.up(FLEET, "stranger", "renew"), b"") == []
    answers = [desk.claim(token, claim_of("dune", "dune")) for token in tokens[:3]]
    assert [bool(answer.certificate) for answer in answers] == [True] * 3
    seed = token_text.signing_seed(tokens[3].secret)
    topic = topics.claim(FLEET, token_text.token_id(keys.public_text(seed)))
    assert desk.say(topic, envelope.seal(claim_of(), topic, keys.signer(seed))) == []
    assert desk.refused == {"stranger": 10, "too-many": 1}


@pytest.mark.parametrize(
    ("trouble", "cause"), [("gone", "there is no authority"), ("open", "chmod 600"), ("1970", "clock")]
)
def test_where_the_authority_cannot_issue_the_device_hears_so_and_the_log_why(
    desk: Desk, trouble: str, cause: str
) -> None:
    token, claim = desk.token(), claim_of()
    match trouble:
        case "gone":
            desk.config.path("ca.crt").rename(desk.config.path("away"))
        case "open":
            desk.config.path("ca.key").chmod(0o640)
        case "1970":
            desk.unix_s = 300.0
    answer = desk.claim(token, claim)
    assert answer.reason == "the fleet's authority cannot issue now: the log of broker serve says why"
    seed = token_text.signing_seed(token.secret)
    topic = topics.claim(FLEET, token_text.token_id(keys.public_text(seed)))
    assert cause in str(desk.say(topic, envelope.seal(claim, topic, keys.signer(seed)))[1])
    assert desk.store.fleet() == {}
