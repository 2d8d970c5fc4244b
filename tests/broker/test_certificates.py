"""Requests and certificates from a peer: read, or refused in one line, and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import example, given
from hypothesis import strategies as st

from broker import certificates
from broker.certificates import CertificateError

if TYPE_CHECKING:
    from pathlib import Path

KEY = certificates.key_of(b"k" * 32)
REQUEST = certificates.request(KEY, "pi-07")
VERSION_AT = REQUEST.index(b"\x02\x01\x00") + 2


def with_byte(at: int, value: int) -> bytes:
    return REQUEST[:at] + bytes([value]) + REQUEST[at + 1 :]


def test_a_key_is_made_of_a_secret_as_the_contract_says() -> None:
    order = int("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
    wide = int.from_bytes(hashlib.sha512(b"hedgerow tls key\x00" + b"k" * 32).digest(), "big")
    assert KEY.private_numbers().private_value == wide % (order - 1) + 1


def test_what_is_requested_is_the_key_that_signed() -> None:
    assert certificates.requested_key(REQUEST) == KEY.public_key()


@given(st.binary(max_size=300) | st.builds(with_byte, st.integers(0, len(REQUEST) - 1), st.integers(0, 255)))
@example(with_byte(VERSION_AT, 7))
def test_other_bytes_are_refused_and_nothing_else_is_raised(data: bytes) -> None:
    with contextlib.suppress(CertificateError):
        assert certificates.requested_key(data) == KEY.public_key()
    with contextlib.suppress(CertificateError):
        certificates.parse(data)


@pytest.mark.parametrize("key", [rsa.generate_private_key(65_537, 2048), ec.generate_private_key(ec.SECP384R1())])
def test_no_other_kind_of_key_is_taken(key, tmp_path: Path) -> None:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pi-07")])
    asked = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    with pytest.raises(CertificateError, match="not for a key of P-256"):
        certificates.requested_key(asked.public_bytes(serialization.Encoding.DER))
    file = tmp_path / "key"
    file.write_bytes(certificates.key_pem(key))
    with pytest.raises(CertificateError, match="no key of P-256"):
        certificates.load_key(file)


def test_a_file_that_is_none_is_told_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for read in (certificates.load_key, certificates.load_chain):
        with pytest.raises(CertificateError, match=f"{file}: No such file"):
            read(file)
    file.write_text("-----BEGIN NOTHING-----")
    for read in (certificates.load_key, certificates.load_chain):
        with pytest.raises(CertificateError, match=f"{file}: it"):
            read(file)
