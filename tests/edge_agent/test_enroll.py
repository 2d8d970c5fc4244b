"""A device claims its place: what it believes, keeps, and tells its owner. No network: the link is scripted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

from broker import authority, certificates
from edge_agent import config, doctor, enroll
from edge_agent.cli import main
from wire import envelope, keys, token_text, topics
from wire.enrolment import Certificate, Claim, Renew, proof_of
from wire.link import Arrived, LinkDown, LinkUp
from wire.messages import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from cryptography import x509

    Answer: TypeAlias = Callable[[Claim | Renew, bytes], list[tuple[str, bytes]]]

COORDINATOR, SECRET = b"c" * 32, b"s" * 32
DAY = 86_400.0
OURS = authority.found("farm", certificates.new_key(), time.time() - DAY)
OTHERS = authority.found("farm", certificates.new_key(), time.time() - DAY)
SIGN = keys.signer(COORDINATOR)


def token(**changes: object) -> str:
    made = authority.issue(OURS, "claim", certificates.key_of(SECRET).public_key(), time.time(), lasts_s=DAY)
    chain = tuple(map(der, OURS.chain))
    known = token_text.Token("farm", "mqtts://barn:8883", keys.public_text(COORDINATOR), SECRET, der(made), chain)
    return token_text.encode(msgspec.structs.replace(known, **changes))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


class Coordinator:
    """What stands in for the link: it answers as a test wants, and keeps what it heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.settings: dict[str, object] = {}
        self.answer: Callable[[Claim | Renew, bytes], list[tuple[str, bytes]]] = lambda _asked, sealed: self.give(
            sealed
        )
        self.up = True
        self.files_seen: list[bool] = []

    def link(self, url: str, client_id: str, *, post: Callable[[object], None], **settings: object) -> Coordinator:
        self.settings = {"url": url, "client_id": client_id, **settings}
        self.files_seen = [settings[name].is_file() for name in ("ca_file", "cert_file", "key_file")]
        self.post = post
        return self

    def start(self) -> None:
        self.post(LinkUp() if self.up else LinkDown("cannot connect to barn:8883: Connection refused"))

    def stop(self) -> None:
        pass

    def publish(self, topic: str, sealed: bytes) -> None:
        self.heard.append((topic, sealed))
        asked = envelope.unseal(sealed, topic, lambda _message, _signature: True)
        assert isinstance(asked, Claim | Renew)
        for where, payload in self.answer(asked, sealed):
            self.post(Arrived(where, payload, False))

    @property
    def answers(self) -> str:
        (filter_,) = self.settings["filters"]  # type: ignore[misc]
        return str(filter_)

    def make(self, name: str = "pi-07", ours: authority.Authority = OURS, key: object = None) -> bytes:
        """A certificate for the request that was heard last."""
        topic, sealed = self.heard[-1]
        asked = envelope.unseal(sealed, topic, lambda _message, _signature: True)
        for_key = key or certificates.requested_key(asked.request)  # type: ignore[union-attr]
        return der(authority.issue(ours, name, for_key, time.time(), lasts_s=90 * DAY))  # type: ignore[arg-type]

    def give(self, sealed: bytes, sign=SIGN, **made: object) -> list[tuple[str, bytes]]:
        answer = Certificate(digest_of(sealed), self.make(**made))  # type: ignore[arg-type]
        return [(self.answers, envelope.seal(answer, self.answers, sign))]


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    coordinator = Coordinator()
    monkeypatch.setattr(enroll, "Link", coordinator.link)
    monkeypatch.setattr(enroll, "AGAIN_S", 0.05)
    return coordinator


def claim(directory: Path, text: str = "", within_s: float = 0.3) -> enroll.Enrolled:
    return enroll.enroll(text or token(device_id="pi-07"), directory, "", within_s)


def test_a_token_makes_all_that_the_agent_needs(coordinator: Coordinator, tmp_path: Path) -> None:
    done = claim(tmp_path / "new")
    assert (done.device_id, done.fleet) == ("pi-07", "farm")
    settings = config.load(done.config_path)
    assert (settings.device.id, settings.device.fleet, settings.mqtt.url) == ("pi-07", "farm", "mqtts://barn:8883")
    assert settings.device.coordinator_key == keys.public_text(COORDINATOR)
    assert coordinator.settings["client_id"] == "claim"
    assert coordinator.files_seen == [True, True, True]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "agent.toml", "ca.crt", "device.crt", "device.key", "device.tls.key",
    }  # fmt: skip
    assert certificates.load_chain(settings.mqtt.ca_file) == OURS.chain


@pytest.mark.parametrize("state", ["below", "/var/lib/hedgerow", '/srv/a "quoted" \\ place'])
@pytest.mark.usefixtures("coordinator")
def test_the_agents_own_files_go_where_the_owner_says(tmp_path: Path, state: str) -> None:
    done = enroll.enroll(token(device_id="pi-07"), tmp_path, within_s=1, state=Path(state))
    assert config.load(done.config_path).device.state == tmp_path / state


def test_the_claim_shows_both_keys_and_is_sealed_by_the_tokens(coordinator: Coordinator, tmp_path: Path) -> None:
    claim(tmp_path)
    ((topic, sealed),) = coordinator.heard
    public_key = keys.public_text(token_text.signing_seed(SECRET))
    assert topic == topics.claim("farm", token_text.token_id(public_key))
    asked = envelope.unseal(sealed, topic, keys.verifier(public_key))
    assert isinstance(asked, Claim)
    assert asked.public_key == keys.public_text(keys.load_seed(tmp_path / "device.key"))
    assert keys.verifier(asked.public_key)(proof_of(asked.request), asked.proof)
    tls_key = certificates.load_key(tmp_path / "device.tls.key").public_key()
    assert certificates.requested_key(asked.request) == tls_key


def test_the_same_bytes_are_said_until_they_are_answered(coordinator: Coordinator, tmp_path: Path) -> None:
    coordinator.answer = lambda _asked, sealed: coordinator.give(sealed) if len(coordinator.heard) == 3 else []
    claim(tmp_path, within_s=5)
    assert len(coordinator.heard) == 3
    assert len(set(coordinator.heard)) == 1


FORGER = keys.signer(b"f" * 32)


def test_what_anybody_else_says_is_not_heard(coordinator: Coordinator, tmp_path: Path) -> None:
    def answer(_asked: Claim | Renew, sealed: bytes) -> list[tuple[str, bytes]]:
        mine, elsewhere = coordinator.answers, topics.claim_answer("farm", "0" * 16)
        made = coordinator.make()
        return [
            *coordinator.give(sealed, FORGER),
            (mine, b"\xd2"),
            (elsewhere, coordinator.give(sealed)[0][1]),
            (mine, envelope.seal(Certificate(digest_of(sealed), made), elsewhere, SIGN)),
            (mine, envelope.seal(Certificate(digest_of(b"another claim"), made), mine, SIGN)),
            (mine, envelope.seal(Certificate(digest_of(sealed), b"", "forged"), mine, FORGER)),
        ]

    coordinator.answer = answer
    with pytest.raises(enroll.EnrolError, match="the coordinator does not answer"):
        claim(tmp_path)
    assert not (tmp_path / "device.crt").exists()
    assert not (tmp_path / "agent.toml").exists()


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"name": "pi-08"}, "for 'pi-08' and not for 'pi-07'"),
        ({"ours": OTHERS}, "was not issued by"),
        ({"key": certificates.new_key().public_key()}, "for another TLS key"),
    ],
)
def test_a_certificate_that_is_not_ours_is_not_kept(
    coordinator: Coordinator, tmp_path: Path, made: dict[str, object], why: str
) -> None:
    coordinator.answer = lambda _asked, sealed: coordinator.give(sealed, **made)
    with pytest.raises(enroll.certificates.CertificateError, match=why):
        claim(tmp_path)
    assert not (tmp_path / "device.crt").exists()
    assert not (tmp_path / "agent.toml").exists()


def test_a_refusal_is_told_and_another_token_goes_on_with_the_same_keys(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    def refuse(_asked: Claim | Renew, sealed: bytes) -> list[tuple[str, bytes]]:
        answer = Certificate(digest_of(sealed), b"", "the token's time is over")
        return [(coordinator.answers, envelope.seal(answer, coordinator.answers, SIGN))]

    coordinator.answer = refuse
    with pytest.raises(enroll.EnrolError, match="refused: the token's time is over"):
        claim(tmp_path)
    before = [(tmp_path / name).read_bytes() for name in ("device.key", "device.tls.key")]
    coordinator.answer = lambda _asked, sealed: coordinator.give(sealed)
    claim(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("device.key", "device.tls.key")] == before
    assert not list(tmp_path.glob(".claim-*"))


def test_a_device_whose_certificate_has_ended_comes_back_by_another_token_as_it_was(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    claim(tmp_path)
    settings = (tmp_path / "agent.toml").read_text().replace("replay = 0", "replay = 7")
    (tmp_path / "agent.toml").write_text(settings)
    before = {name: (tmp_path / name).read_bytes() for name in ("device.key", "device.tls.key", "device.crt")}
    assert claim(tmp_path, token()).device_id == "pi-07"
    assert (tmp_path / "agent.toml").read_text() == settings
    after = {name: (tmp_path / name).read_bytes() for name in before}
    assert [name for name in before if before[name] != after[name]] == ["device.crt"]


def test_a_device_that_is_in_a_fleet_is_not_moved_to_another(coordinator: Coordinator, tmp_path: Path) -> None:
    claim(tmp_path)
    for other in ({"fleet": "barn"}, {"coordinator_key": keys.public_text(b"o" * 32)}):
        with pytest.raises(enroll.EnrolError, match="is in fleet farm, and the token is of another"):
            claim(tmp_path, token(**other))
    text = (tmp_path / "agent.toml").read_text()
    (tmp_path / "agent.toml").write_text(text.replace('"device.tls.key"', '"own.key"'))
    with pytest.raises(enroll.EnrolError, match="not those of edge-agent enroll"):
        claim(tmp_path)
    assert len(coordinator.heard) == 1


def test_the_doctor_looks_at_the_certificate(coordinator: Coordinator, tmp_path: Path, monkeypatch) -> None:
    claim(tmp_path)
    settings = config.load(tmp_path / "agent.toml")
    monkeypatch.setattr(doctor, "CHECKS", [check for check in doctor.CHECKS if check[0] == "certificate"])
    now = time.time()
    said = {}
    for day in (0, 67, 70, 91):
        monkeypatch.setattr(doctor.time, "time", lambda day=day: now + day * DAY)
        said[day] = next(found for found in doctor.examine(settings) if found.name == "certificate")
    assert [said[day].ok for day in said] == [True, True, False, False]
    assert said[0].text.startswith("for pi-07, until 2")
    assert "does edge-agent-renew.timer run?" in said[70].text
    assert "enroll with another token" in said[91].text
    assert not said[91].fatal
    other = msgspec.structs.replace(settings, device=msgspec.structs.replace(settings.device, id="pi-08"))
    assert "is for 'pi-07', and this is pi-08" in next(f.text for f in doctor.examine(other) if f.name == "certificate")


def test_why_the_server_cannot_be_reached_is_told(coordinator: Coordinator, tmp_path: Path) -> None:
    coordinator.up = False
    coordinator.answer = lambda _asked, _sealed: []
    with pytest.raises(enroll.EnrolError, match="Connection refused; the same command goes on from here"):
        claim(tmp_path)


def test_without_a_name_the_device_takes_one_of_its_key(coordinator: Coordinator, tmp_path: Path) -> None:
    def answer(asked: Claim | Renew, sealed: bytes) -> list[tuple[str, bytes]]:
        assert isinstance(asked, Claim)
        return coordinator.give(sealed, name=asked.device_id)

    coordinator.answer = answer
    names = {claim(tmp_path / sub, token()).device_id for sub in ("a", "b")}
    assert len(names) == 2
    assert all(name.startswith("device-") and len(name) == 15 for name in names)


def test_a_damaged_token_is_one_line(coordinator: Coordinator, tmp_path: Path) -> None:
    arguments = ["enroll", "--dir", str(tmp_path / "new"), "--token"]
    for given, stdin in ((token()[:-4], ""), ("-", token()[:-4])):
        done = CliRunner().invoke(main, [*arguments, given], input=stdin)
        assert done.exit_code == 1
        assert done.output.strip() == "Error: the token is damaged or cut short: copy it again, all of its line"
    assert not (tmp_path / "new").exists()


# -- renewal ----------------------------------------------------------------------------------------------------------


def renew(directory: Path) -> str:
    done = CliRunner().invoke(main, ["renew", "--config", str(directory / "agent.toml")])
    return f"{done.exit_code} {done.output.strip()}"


def test_a_certificate_is_renewed_when_it_is_due_and_not_before(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(tmp_path)
    before = (tmp_path / "device.crt").read_bytes()
    assert renew(tmp_path).startswith("0 not due until 2")
    assert len(coordinator.heard) == 1
    now = time.time()
    monkeypatch.setattr(enroll.time, "time", lambda: now + 61 * DAY)
    assert renew(tmp_path) == "0 renewed"
    topic, sealed = coordinator.heard[-1]
    assert topic == topics.up("farm", "pi-07", "renew")
    own = keys.verifier(keys.public_text(keys.load_seed(tmp_path / "device.key")))
    assert isinstance(envelope.unseal(sealed, topic, own), Renew)
    after = (tmp_path / "device.crt").read_bytes()
    assert after != before
    key = certificates.load_key(tmp_path / "device.tls.key").public_key()
    assert certificates.load_chain(tmp_path / "device.crt")[0].public_key() == key


def test_a_renewal_that_is_not_ours_leaves_the_certificate_that_is_there(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(tmp_path)
    before = (tmp_path / "device.crt").read_bytes()
    now = time.time()
    monkeypatch.setattr(enroll.time, "time", lambda: now + 61 * DAY)
    coordinator.answer = lambda _asked, sealed: coordinator.give(sealed, ours=OTHERS)
    assert renew(tmp_path).startswith("1 Error: the certificate was not issued by")
    assert (tmp_path / "device.crt").read_bytes() == before


def test_a_clock_in_1970_renews_nothing(coordinator: Coordinator, tmp_path: Path, monkeypatch) -> None:
    claim(tmp_path)
    monkeypatch.setattr(enroll.time, "time", lambda: 300.0)
    assert renew(tmp_path).startswith("0 not due until 2")
    assert len(coordinator.heard) == 1


def test_a_device_without_certificates_has_nothing_to_renew(tmp_path: Path) -> None:
    config.make(tmp_path, "pi-07", "farm", "mqtt://barn", keys.public_text(COORDINATOR))
    (tmp_path / "pi-07.toml").rename(tmp_path / "agent.toml")
    assert renew(tmp_path).startswith("1 Error: [mqtt] names no ca_file, cert_file and key_file")
