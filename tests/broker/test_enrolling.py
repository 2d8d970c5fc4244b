"""The operator's side of enrolment: the authority, tokens, the list of the revoked, and authorities above ours."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker import authority, certificates
from broker.certificates import CertificateError
from broker.cli.main import main
from broker.store import Store
from tests.broker.fleet import KEY, SEEDS
from wire import keys, token_text

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_800_000_000.0
DAY = 86_400.0
URL = "mqtts://barn:8883"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A fleet's directory, as far as enrolment looks at it."""
    text = f'[fleet]\nid = "farm"\n[model]\nname = "tiny"\n[mqtt]\nurl = "{URL}"\n[enroll]\ndays = 30\n'
    (tmp_path / "broker.toml").write_text(text, "utf-8")
    keys.save_private(tmp_path / "coordinator.key", SEEDS["coordinator"])
    Store(tmp_path / "broker.db").close()
    return tmp_path


def enroll(home: Path, *arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["enroll", *map(str, arguments), "--config", str(home)])
    assert done.exit_code == code, done.output
    return done.output


def ids(home: Path) -> tuple[list[str], list[str]]:
    """(names of certificates with their status, ids of tokens with theirs)."""
    found = json.loads(enroll(home, "list", "--json"))
    return [f"{row['name']} {row['status']}" for row in found["certificates"]], [
        f"{row['token']} {row['status']}" for row in found["tokens"]
    ]


def revoked(home: Path) -> set[int]:
    read = x509.load_pem_x509_crl((home / "revoked.crl").read_bytes())
    ca = certificates.load_chain(home / "ca.crt")[0]
    assert read.is_signature_valid(ca.public_key())
    assert read.next_update_utc == ca.not_valid_after_utc  # a list that is over turns everybody away
    return {entry.serial_number for entry in read}


def test_the_authority_is_made_once_and_its_keys_are_for_its_owner(home: Path) -> None:
    assert '  cert_file = "coordinator.crt"' in enroll(home, "init", "--server", "192.168.1.9", "--server", "barn")
    for name in ("ca.key", "server.tls.key", "coordinator.tls.key"):
        assert (home / name).stat().st_mode & 0o777 == 0o600
    server = certificates.load_chain(home / "server.crt")[0]
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["192.168.1.9", "barn"]
    assert certificates.common_name(certificates.load_chain(home / "coordinator.crt")[0]) == "coordinator"
    assert revoked(home) == set()
    before = (home / "ca.key").read_bytes()
    assert "never overwritten" in enroll(home, "init", code=1)
    assert (home / "ca.key").read_bytes() == before


def test_no_private_key_is_ever_printed(home: Path) -> None:
    said = enroll(home, "init") + enroll(home, "token") + enroll(home, "list")
    for name in ("ca.key", "server.tls.key", "coordinator.tls.key"):
        assert (home / name).read_text().split("\n")[1] not in said


def test_a_server_that_moves_gets_another_certificate_for_its_key(home: Path) -> None:
    enroll(home, "init")
    before = certificates.load_chain(home / "server.crt")[0]
    key = (home / "server.tls.key").read_bytes()
    enroll(home, "server", "10.0.0.7")
    after = certificates.load_chain(home / "server.crt")[0]
    assert after.public_key() == before.public_key()
    assert (home / "server.tls.key").read_bytes() == key
    assert "10.0.0.7" in str(after.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def test_tokens_differ_and_of_each_the_store_has_only_what_claims_nothing(home: Path) -> None:
    enroll(home, "init")
    texts = enroll(home, "token", "--count", "3", "--lasts", "2h").split()
    tokens = [token_text.decode(text) for text in texts]
    assert len({token.secret for token in tokens}) == 3
    assert {(token.fleet, token.url, token.coordinator_key, token.device_id) for token in tokens} == {
        ("farm", URL, KEY["coordinator"], None)
    }
    content = b"".join(file.read_bytes() for file in home.glob("broker.db*"))
    assert tokens[0].certificate in content  # which is public
    for token in tokens:
        assert token.secret not in content
        assert token_text.signing_seed(token.secret) not in content
        claimants = certificates.parse(token.certificate)
        ca = certificates.parse(token.authority[0])
        certificates.check_issued(claimants, "claim", certificates.key_of(token.secret).public_key(), ca)
        starts, ends = certificates.lifetime(claimants)
        assert ends - starts <= 2 * 3600 + authority.EARLY_S + 1
    assert len(ids(home)[1]) == 3
    assert token_text.decode(enroll(home, "token", "--device", "pi-07")).device_id == "pi-07"


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("--mqtt", "mqtt://barn:1883"), 1, "is without: give --mqtt mqtts://"),
        (("--mqtt", "embedded"), 1, "is without"),
        (("--device", "claim"), 1, "cannot be used"),
        (("--lasts", "soon"), 1, "no duration"),
        (("--device", "pi-07", "--count", "2"), 2, "names one device"),
    ],
)
def test_a_token_that_cannot_work_is_not_printed(home: Path, arguments: tuple[str, ...], code: int, why: str) -> None:
    enroll(home, "init")
    assert why in enroll(home, "token", *arguments, code=code)
    assert ids(home)[1] == []


def test_a_token_lasts_thirty_days_at_most(home: Path) -> None:
    enroll(home, "init")
    token = token_text.decode(enroll(home, "token", "--lasts", "400d"))
    starts, ends = certificates.lifetime(certificates.parse(token.certificate))
    assert ends - starts <= 30 * DAY + authority.EARLY_S + 1


def test_without_an_authority_every_command_says_how_to_make_one(home: Path) -> None:
    for command in (("token",), ("revoke", "pi-07"), ("server", "barn")):
        assert "make one with broker enroll init" in enroll(home, *command, code=1)


def test_what_is_revoked_is_on_the_list_and_the_device_is_out_of_the_fleet(home: Path) -> None:
    enroll(home, "init")
    request = home / "pi.csr"
    request.write_bytes(certificates.request(certificates.key_of(b"t" * 32), "pi-07"))
    for _ in range(2):
        enroll(home, "sign", "pi-07", request, "--out", home / "pi.crt")
    with Store(home / "broker.db") as store:
        store.add_device("pi-07", KEY["cabin"])
        store.add_device("pi-08", KEY["dune"])
    assert "2 of its certificates revoked" in enroll(home, "revoke", "pi-07")
    with Store(home / "broker.db") as store:
        assert set(store.fleet()) == {"pi-08"}
        serials = {int(row.serial, 16) for row in store.enrolments.certificates() if row.name == "pi-07"}
    assert revoked(home) == serials
    assert len(serials) == 2
    assert "pi-07 revoked" in ids(home)[0]
    assert "neither a device nor a token" in enroll(home, "revoke", "pi-09", code=1)


def test_who_was_revoked_stays_so_when_the_store_comes_back_from_an_older_day(home: Path) -> None:
    enroll(home, "init")
    first, second = (token_text.decode(enroll(home, "token", "--device", name)) for name in ("pi-07", "pi-08"))
    before = (home / "broker.db").read_bytes()
    ids = [token_text.token_id(keys.public_text(token_text.signing_seed(each.secret))) for each in (first, second)]
    enroll(home, "revoke", ids[0])
    for file in home.glob("broker.db*"):
        file.unlink()
    (home / "broker.db").write_bytes(before)
    enroll(home, "revoke", ids[1])
    assert revoked(home) == {certificates.parse(each.certificate).serial_number for each in (first, second)}


def test_a_token_is_taken_back_by_its_id_with_its_key_to_the_door(home: Path) -> None:
    enroll(home, "init")
    token = token_text.decode(enroll(home, "token"))
    token_id = token_text.token_id(keys.public_text(token_text.signing_seed(token.secret)))
    assert "can no longer be claimed" in enroll(home, "revoke", token_id)
    assert revoked(home) == {certificates.parse(token.certificate).serial_number}
    assert ids(home)[1] == []


def test_a_request_by_hand_is_signed_for_the_name_that_the_operator_says(home: Path) -> None:
    enroll(home, "init")
    asked = x509.load_der_x509_csr(certificates.request(certificates.key_of(b"t" * 32), "coordinator"))
    for name, content in (("der", asked.public_bytes(Encoding.DER)), ("pem", asked.public_bytes(Encoding.PEM))):
        (home / name).write_bytes(content)
        enroll(home, "sign", "pi-07", home / name, "--out", home / "out")
        made = certificates.load_chain(home / "out")[0]
        assert certificates.common_name(made) == "pi-07"
        starts, ends = certificates.lifetime(made)
        assert 29.9 < (ends - starts) / DAY < 30.1
    (home / "bad").write_bytes(b"-----BEGIN NONSENSE-----")
    assert "no PKCS #10" in enroll(home, "sign", "pi-07", home / "bad", "--out", home / "out", code=1)
    assert "cannot be used" in enroll(home, "sign", "coordinator", home / "pem", "--out", home / "out", code=1)


# -- an authority above ours ------------------------------------------------------------------------------------------


def chain_of(home: Path, *, may_issue: bool = True) -> bytes:
    """What another authority makes of our request, and its own certificate."""
    key, asked = certificates.new_key(), x509.load_pem_x509_csr((home / "ca.csr").read_bytes())
    above = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "others")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    made = []
    for subject, public_key, is_authority in (
        (asked.subject, asked.public_key(), may_issue),
        (above, key.public_key(), True),
    ):
        builder = x509.CertificateBuilder(above, subject, public_key, len(made) + 1)
        builder = builder.not_valid_before(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
        builder = builder.not_valid_after(dt.datetime(2046, 1, 1, tzinfo=dt.UTC))
        builder = builder.add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        builder = builder.add_extension(usage, critical=True).add_extension(issuer, critical=False)
        identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
        made.append(builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256()))
    return certificates.pem(made)


def test_our_authority_can_stand_under_another_and_tokens_bring_both(home: Path, monkeypatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    assert "broker enroll import" in enroll(home, "init", "--request")
    (home / "chain.pem").write_bytes(chain_of(home))
    enroll(home, "import", home / "chain.pem")
    assert (home / "ca.crt").read_bytes() == (home / "chain.pem").read_bytes()
    assert len(certificates.load_chain(home / "server.crt")) == 2  # the server shows the way to what devices trust
    assert revoked(home) == set()
    assert len(token_text.decode(enroll(home, "token")).authority) == 2
    assert "has an authority already" in enroll(home, "import", home / "chain.pem", code=1)
    (home / "root.pem").write_bytes(certificates.pem(certificates.load_chain(home / "chain.pem")[1:]))
    command = ["openssl", "verify", "-attime", str(int(NOW)), "-purpose", "sslserver"]
    command += ["-CAfile", "root.pem", "-untrusted", "server.crt", "server.crt"]
    assert subprocess.run(command, cwd=home, capture_output=True, check=False).returncode == 0


def test_what_another_authority_made_is_looked_at_before_it_is_taken(home: Path, monkeypatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    enroll(home, "init", "--request")
    file = home / "chain.pem"
    file.write_bytes(chain_of(home))
    ours, root = certificates.load_chain(file)
    for content, why in (
        (chain_of(home, may_issue=False), "may not issue certificates"),
        (certificates.pem([root, ours]), "is not for the key of this authority"),
        (certificates.pem([ours]), "was not issued by"),
    ):
        file.write_bytes(content)
        assert why in enroll(home, "import", file, code=1)
        assert not (home / "ca.crt").exists()


# -- certificates -----------------------------------------------------------------------------------------------------


def test_nothing_outlives_the_authority_and_nothing_is_issued_outside_of_its_life() -> None:
    ours = authority.found("farm", certificates.new_key(), NOW)
    ends = certificates.lifetime(ours.own)[1]
    key = certificates.new_key().public_key()
    late = authority.issue(ours, "pi-07", key, ends - DAY, lasts_s=90 * DAY)
    assert certificates.lifetime(late)[1] == ends
    for when in (300.0, NOW - DAY, ends):
        with pytest.raises(CertificateError, match="not valid now"):
            authority.issue(ours, "pi-07", key, when, lasts_s=DAY)


def test_the_longest_names_fit() -> None:
    ours = authority.found("f" * 64, certificates.new_key(), NOW)
    made = authority.issue(ours, "d" * 64, certificates.new_key().public_key(), NOW, lasts_s=DAY)
    assert certificates.common_name(made) == "d" * 64


def test_an_address_that_is_none_is_told() -> None:
    ours = authority.found("farm", certificates.new_key(), NOW)
    with pytest.raises(CertificateError, match="neither an address nor"):
        authority.issue(ours, "server", certificates.new_key().public_key(), NOW, lasts_s=DAY, addresses=["bärn"])


@pytest.mark.parametrize("addresses", [(), ("barn",)])
def test_whoever_has_a_devices_key_cannot_play_the_mqtt_server_to_the_others(addresses: tuple[str, ...]) -> None:
    ours = authority.found("farm", certificates.new_key(), NOW)
    made = authority.issue(ours, "x", certificates.new_key().public_key(), NOW, lasts_s=DAY, addresses=addresses)
    purposes = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if addresses else ExtendedKeyUsageOID.CLIENT_AUTH
    assert list(purposes) == [wanted]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_list_of_another_authority_says_nothing_here(tmp_path: Path) -> None:
    ours, others = (authority.found("farm", certificates.new_key(), NOW) for _ in range(2))
    file = tmp_path / "revoked.crl"
    assert authority.read_list(file, ours) == {}
    file.write_bytes(authority.revocation_list(others, [(7, NOW)], NOW))
    assert authority.read_list(file, ours) == {}
    file.write_bytes(authority.revocation_list(ours, [(7, NOW)], NOW))
    assert authority.read_list(file, ours) == {7: NOW}
    file.write_bytes(b"nothing")
    with pytest.raises(CertificateError, match="no list of revoked certificates"):
        authority.read_list(file, ours)
