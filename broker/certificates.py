"""X.509 for TLS with the MQTT server, on the fleet's side: keys, requests, whether a certificate is what it says.

Keys are ECDSA P-256, which every TLS library takes and which costs a small processor a millisecond. Bytes in here come
from a peer whose signature was checked before; they are still read as if they came from anybody. A device does the same
with openssl's command (`edge_agent/certificates.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from wire import token_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FILE_BYTES_MAX: Final = 64 << 10


class CertificateError(ValueError):
    """Not a certificate, a request or a TLS key that can be used. One line."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_of(secret: bytes) -> ec.EllipticCurvePrivateKey:
    """The P-256 key that belongs to a token's secret of 32 bytes, always the same."""
    return ec.derive_private_key(token_text.tls_scalar(secret), ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The file of a private key."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """What tells one public key from another."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key's file. Raises CertificateError where it is none, or where others may read it."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX)
        key = load_pem_private_key(content, None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = getattr(error, "strerror", None) or "it is no unencrypted private key in PEM"
        raise CertificateError(f"cannot read the TLS key {path}: {why}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError(f"{path} is no key of P-256: make one with openssl ecparam -name prime256v1 -genkey")
    return key


def load_chain(path: Path) -> tuple[x509.Certificate, ...]:
    """Read a file of certificates in PEM, at least one. Raises CertificateError."""
    try:
        with path.open("rb") as file:
            return tuple(x509.load_pem_x509_certificates(file.read(_FILE_BYTES_MAX)))
    except (OSError, ValueError, x509.InvalidVersion) as error:
        why = getattr(error, "strerror", None) or "it holds no certificate in PEM"
        raise CertificateError(f"cannot read the certificate {path}: {why}") from error


def parse(der: bytes) -> x509.Certificate:
    """Read one certificate. Raises CertificateError."""
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateError("the bytes are no certificate") from error


def pem(chain: Sequence[x509.Certificate]) -> bytes:
    """The file of these certificates."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in chain)


def request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """A request (RFC 2986, DER) for a certificate of `name`, signed by its own key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


def requested_key(der: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a request is for, which has signed it. Raises CertificateError for any other bytes."""
    try:
        asked = x509.load_der_x509_csr(der)
        key, is_signed = asked.public_key(), asked.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise CertificateError("the request is no PKCS #10 that can be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError("the request is not for a key of P-256")
    if not is_signed:
        raise CertificateError("the request is not signed by its own key")
    return key


def check_issued(
    certificate: x509.Certificate, name: str, key: ec.EllipticCurvePublicKey, issuer: x509.Certificate
) -> None:
    """Raise CertificateError unless `issuer` gave it to `name` for this key."""
    if common_name(certificate) != name:
        raise CertificateError(f"the certificate is for {common_name(certificate)!r} and not for {name!r}")
    if certificate.public_key() != key:
        raise CertificateError("the certificate is for another TLS key")
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise CertificateError(f"the certificate was not issued by {common_name(issuer)!r}") from error


def common_name(certificate: x509.Certificate) -> str:
    """Whom a certificate is for; empty where it does not say, or says two."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def lifetime(certificate: x509.Certificate) -> tuple[float, float]:
    """From when to when it is valid, in seconds since 1970."""
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
