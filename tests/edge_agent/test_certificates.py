"""A device's keys and certificates by openssl's command: the library of the fleet's side is of the same opinion."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker import authority
from broker import certificates as theirs
from edge_agent import certificates
from edge_agent.certificates import CertificateError

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86_400.0
SECRET = b"s" * 32
OURS, OTHERS = (authority.found("farm", theirs.new_key(), time.time() - DAY) for _ in range(2))
DEVICE = theirs.new_key()
DER = serialization.Encoding.DER


def issued(name: str = "pi-07", by: authority.Authority = OURS, at_s: float = 0.0, lasts_s: float = DAY) -> bytes:
    return authority.issue(by, name, DEVICE.public_key(), at_s or time.time(), lasts_s=lasts_s).public_bytes(DER)


OWN = issued()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "device.tls.key"
    file.write_bytes(theirs.key_pem(DEVICE))
    return file


def test_a_new_key_is_one_that_the_fleets_side_takes(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(certificates.new_key())
    made = theirs.load_key(file)
    assert certificates.public_key(file) == theirs.public_bytes(made.public_key())
    assert certificates.new_key() != file.read_bytes()


def test_the_key_of_a_token_is_the_one_that_its_certificate_is_for(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(certificates.key_of(SECRET))
    assert theirs.load_key(file).private_numbers() == theirs.key_of(SECRET).private_numbers()
    assert certificates.public_key(file) == theirs.public_bytes(theirs.key_of(SECRET).public_key())


def test_what_is_asked_for_is_signed_by_its_own_key_and_bears_the_name(key: Path) -> None:
    asked = certificates.request(key, "pi-07")
    assert theirs.requested_key(asked) == DEVICE.public_key()
    assert x509.load_der_x509_csr(asked).subject.rfc4514_string() == "CN=pi-07"


def test_a_certificate_says_the_same_to_both_sides() -> None:
    read, known = certificates.parse(OWN), theirs.parse(OWN)
    assert (read.der, read.name) == (OWN, "pi-07")
    assert (read.starts_unix_s, read.ends_unix_s) == theirs.lifetime(known)
    assert read.public_key == theirs.public_bytes(DEVICE.public_key())
    assert certificates.pem([read, read]) == theirs.pem([known, known])


@pytest.mark.parametrize("names", [(), ("pi-07", "pi-08"), ("x\n    CN=pi-07",)])
def test_a_name_that_is_none_or_two_is_no_name_of_ours(names: tuple[str, ...]) -> None:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each) for each in names])
    now = theirs.parse(OWN).not_valid_before_utc
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(DEVICE.public_key())
    built = built.serial_number(1).not_valid_before(now).not_valid_after(now)
    read = certificates.parse(built.sign(DEVICE, hashes.SHA256()).public_bytes(DER))
    assert read.name not in {"pi-07", "pi-08"}


def with_byte(at: int, value: int) -> bytes:
    return OWN[:at] + bytes([value]) + OWN[at + 1 :]


@settings(max_examples=15, deadline=None)
@given(st.binary(max_size=300) | st.builds(with_byte, st.integers(0, len(OWN) - 1), st.integers(0, 255)))
@example(b"")
@example(OWN[:-1])
def test_other_bytes_are_refused_or_not_ours_and_nothing_else_is_raised(data: bytes) -> None:
    public = theirs.public_bytes(DEVICE.public_key())
    try:
        certificates.check_issued(
            certificates.parse(data), "pi-07", public, certificates.parse(OURS.chain[0].public_bytes(DER))
        )
    except CertificateError:
        assert data != OWN
    else:
        assert data == OWN


def test_what_is_issued_is_ours_by_name_key_and_authority_whatever_the_clock_says() -> None:
    ours, others = (certificates.parse(each.chain[0].public_bytes(DER)) for each in (OURS, OTHERS))
    public = theirs.public_bytes(DEVICE.public_key())
    certificates.check_issued(certificates.parse(OWN), "pi-07", public, ours)
    old = certificates.parse(issued(at_s=time.time() - DAY / 2, lasts_s=60))
    certificates.check_issued(old, "pi-07", public, ours)
    with pytest.raises(CertificateError, match="is for 'pi-07' and not for 'pi-08'"):
        certificates.check_issued(certificates.parse(OWN), "pi-08", public, ours)
    with pytest.raises(CertificateError, match="another TLS key"):
        certificates.check_issued(certificates.parse(OWN), "pi-07", public[:-1] + b"\0", ours)
    with pytest.raises(CertificateError, match="was not issued by"):
        certificates.check_issued(certificates.parse(OWN), "pi-07", public, others)


def test_whom_the_system_trusts_is_no_authority_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted = tmp_path / "trusted"
    trusted.write_bytes(theirs.pem(OTHERS.chain))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    ours = certificates.parse(OURS.chain[0].public_bytes(DER))
    with pytest.raises(CertificateError, match="was not issued by"):
        certificates.check_issued(
            certificates.parse(issued(by=OTHERS)), "pi-07", theirs.public_bytes(DEVICE.public_key()), ours
        )


@pytest.mark.parametrize("other", [rsa.generate_private_key(65_537, 2048), ec.generate_private_key(ec.SECP384R1())])
def test_no_other_kind_of_key_is_taken(other, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(theirs.key_pem(other))
    with pytest.raises(CertificateError, match="no key of P-256"):
        certificates.public_key(file)


def test_a_key_behind_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    file = tmp_path / "key"
    hidden = serialization.BestAvailableEncryption(b"secret")
    file.write_bytes(DEVICE.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    with pytest.raises(CertificateError, match="no unencrypted private key"):
        certificates.public_key(file)


def test_a_file_that_is_none_is_told_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for read in (certificates.public_key, certificates.load_chain):
        with pytest.raises(CertificateError, match=f"{file}: No such file"):
            read(file)
    for content in ("-----BEGIN NOTHING-----", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        file.write_text(content)
        for read in (certificates.public_key, certificates.load_chain):
            with pytest.raises(CertificateError, match=f"{file}: it"):
                read(file)


def test_a_chain_is_read_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "chain"
    file.write_bytes(theirs.pem([theirs.parse(OWN), *OURS.chain]))
    assert [each.der for each in certificates.load_chain(file)] == [
        OWN,
        *(each.public_bytes(DER) for each in OURS.chain),
    ]


def test_without_openssl_it_says_what_to_install(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CertificateError, match=r"openssl cannot be run, .*: install it"):
        certificates.public_key(key)
