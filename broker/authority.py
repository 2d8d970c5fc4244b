"""The fleet's certificate authority: who may speak to the MQTT server, and under which name. X.509, ECDSA P-256.

    ca.key        signs; mode 0600, and never leaves the coordinator's directory
    ca.crt        what devices and the MQTT server trust: our certificate, and behind it those who vouch for us, if any
    revoked.crl   whom the MQTT server turns away

Its certificates are for TLS alone: by itself none of them makes a fleet believe anything, since every message is signed
by an Ed25519 key of its maker. Time is an argument, as seconds since 1970.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker import certificates
from broker.certificates import CertificateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

DAY_S: Final = 86_400
AUTHORITY_DAYS: Final = 3650
EARLY_S: Final = 300  # a server whose clock is a little behind ours shall not turn a new device away


class Authority(NamedTuple):
    """A key, and the certificates that say what it may: its own first, one that nobody else signed last."""

    key: EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]

    @property
    def own(self) -> x509.Certificate:
        """The certificate that issues."""
        return self.chain[0]


def found(fleet: str, key: EllipticCurvePrivateKey, unix_s: float) -> Authority:
    """An authority that vouches for itself."""
    name = _named(f"hedgerow {fleet}"[:64])  # no common name is longer (RFC 5280, appendix A.1)
    builder = _builder(name, name, key.public_key(), unix_s, unix_s + AUTHORITY_DAYS * DAY_S)
    usage = _usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return Authority(key, (builder.sign(key, hashes.SHA256()),))


def load(cert_file: Path, key_file: Path) -> Authority:
    """The authority in these files. Raises CertificateError where they do not belong together."""
    key = _load_private(key_file)
    return checked(Authority(key, certificates.load_chain(cert_file)), str(cert_file))


def checked(authority: Authority, where: str) -> Authority:
    """Raise CertificateError unless its first certificate is its key's, may issue, and each is the next one's."""
    own, *others = authority.chain
    if own.public_key() != authority.key.public_key():
        raise CertificateError(f"{where} is not for the key of this authority: its first certificate must be")
    try:
        may = own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        may = False
    if not may:
        raise CertificateError(f"{where} may not issue certificates: ask for one with basicConstraints CA:TRUE")
    for one, other in zip(authority.chain, [*others, authority.chain[-1]], strict=True):
        name = certificates.common_name(one)
        certificates.check_issued(one, name, one.public_key(), other)  # type: ignore[arg-type]
    return authority


def issue(
    authority: Authority,
    name: str,
    key: EllipticCurvePublicKey,
    unix_s: float,
    *,
    lasts_s: float,
    addresses: Sequence[str] = (),
) -> x509.Certificate:
    """A certificate of `name` for TLS: as a server at `addresses`, or, where there are none, as a client.

    It ends no later than the authority. Raises CertificateError where the authority is not valid now.
    """
    starts, ends = certificates.lifetime(authority.own)
    if not starts - EARLY_S <= unix_s < ends:
        raise CertificateError("the authority is not valid now: is the clock right? It cannot be prolonged")
    until = min(unix_s + lasts_s, ends)
    builder = _builder(_named(name), authority.own.subject, key, max(starts, unix_s - EARLY_S), until)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if addresses else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    if addresses:
        builder = builder.add_extension(x509.SubjectAlternativeName(map(_address, addresses)), critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def revocation_list(authority: Authority, revoked: Iterable[tuple[int, float]], unix_s: float) -> bytes:
    """The file of revoked certificates, as (serial number, when).

    It ends with the authority: OpenSSL turns *everybody* away once a list is older than it says it may be.
    """
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.own.subject)
    builder = builder.last_update(_time(unix_s - EARLY_S)).next_update(authority.own.not_valid_after_utc)
    for serial, when_s in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_time(when_s))
        builder = builder.add_revoked_certificate(entry.build())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    signed = builder.add_extension(issuer, critical=False).sign(authority.key, hashes.SHA256())
    return signed.public_bytes(Encoding.PEM)


def read_list(path: Path, authority: Authority) -> dict[int, float]:
    """The revoked in a file of this authority: serial number → when; none where there is no such file, or another's."""
    if not path.exists():
        return {}
    try:
        read = x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateError(f"{path} is no list of revoked certificates: move it away, and revoke again") from error
    if not read.is_signature_valid(authority.key.public_key()):
        return {}
    return {entry.serial_number: entry.revocation_date_utc.timestamp() for entry in read}


def save(path: Path, content: bytes, *, private: bool = False) -> None:
    """Replace a file: after a power cut it is the old one or the new one. A private one must not be there yet."""
    if private and path.exists():
        raise CertificateError(f"{path} exists: a private key is never overwritten; move it away first")
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def _load_private(path: Path) -> EllipticCurvePrivateKey:
    key = certificates.load_key(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise CertificateError(f"{path} is a private key that others may read (mode {mode:04o}): run chmod 600 {path}")
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePublicKey, start_s: float, end_s: float
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(_time(start_s)).not_valid_after(_time(end_s))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _address(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise CertificateError(f"{text!r} is neither an address nor the name of a host") from error


def _time(unix_s: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(unix_s), dt.UTC)
