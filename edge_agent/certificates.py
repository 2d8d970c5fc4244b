"""X.509 for TLS with the MQTT server on a device, by openssl's command: keys, requests, certificates that are ours.

A device makes one key in its life, and asks for a certificate every few weeks. A library for that would be a seventh
of all that an agent takes of a disk, so it is on the fleet's side alone (`broker/certificates.py`); the command is part
of every system that knows whom to believe on the web. Keys are ECDSA P-256 and stay in their files; a certificate is
its DER, with what openssl reads in it. Bytes in here come from a peer whose signature was checked before; they are
still read as if they came from anybody.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from wire import token_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_FILE_BYTES_MAX: Final = 64 << 10
_ANSWER_S: Final = 60.0
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_NAME: Final = re.compile(r"^    CN=(.*)$", re.MULTILINE)
_DATE: Final = re.compile(r"^not(?:Before|After)=(.+)$", re.MULTILINE)
_PUBLIC: Final = re.compile(r"-----BEGIN PUBLIC KEY-----.+-----END PUBLIC KEY-----\n", re.DOTALL)
_P256: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")  # in front of a point (RFC 5480)
_SECRET: Final = bytes.fromhex("30310201010420"), bytes.fromhex("a00a06082a8648ce3d030107")  # around it (RFC 5915)


class CertificateError(ValueError):
    """Not a certificate, or a TLS key, that can be used. One line."""


class Certificate(NamedTuple):
    """A certificate, and what it says. `name` is empty where it says none, or two; times in seconds since 1970."""

    der: bytes
    name: str
    starts_unix_s: float
    ends_unix_s: float
    public_key: bytes  # DER, as `public_key` gives it


def new_key() -> bytes:
    """The file of a new private key."""
    return _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", why="no TLS key can be made")


def key_of(secret: bytes) -> bytes:
    """The file of the private key that belongs to a token's secret."""
    before, after = _SECRET
    body = base64.encodebytes(before + token_text.tls_scalar(secret).to_bytes(32, "big") + after)
    return b"-----BEGIN EC PRIVATE KEY-----\n" + body + b"-----END EC PRIVATE KEY-----\n"


def public_key(path: Path) -> bytes:
    """The public key, DER, of the private one in a file. Raises CertificateError where it is none of P-256."""
    why = f"cannot read the TLS key {path}: it is no unencrypted private key in PEM"
    der = _openssl("pkey", "-passin", "pass:", "-pubout", "-outform", "DER", given=_read("TLS key", path), why=why)
    if not der.startswith(_P256):
        raise CertificateError(f"{path} is no key of P-256: make one with openssl ecparam -name prime256v1 -genkey")
    return der


def request(path: Path, name: str) -> bytes:
    """A request (RFC 2986, DER) for a certificate of `name`, signed by the key in the file."""
    why = f"no certificate can be asked for with {path}"
    return _openssl("req", "-new", "-key", str(path), "-subj", f"/CN={name}", "-outform", "DER", why=why)


def load_chain(path: Path) -> tuple[Certificate, ...]:
    """Read a file of certificates in PEM, at least one. Raises CertificateError."""
    try:
        found = [binascii.a2b_base64(each) for each in _PEM.findall(_read("certificate", path))]
        if found:
            return tuple(map(parse, found))
    except ValueError as error:  # CertificateError among them
        if str(error).startswith("cannot read"):
            raise
    raise CertificateError(f"cannot read the certificate {path}: it holds no certificate in PEM")


def parse(der: bytes) -> Certificate:
    """Read one certificate. Raises CertificateError."""
    why = "the bytes are no certificate"
    shown = ("-subject", "-nameopt", "sep_multiline,sname,utf8,esc_ctrl", "-dates", "-pubkey")
    text = _openssl("x509", "-inform", "DER", "-noout", *shown, given=der, why=why).decode("utf-8", "replace")
    names, dates, key = _NAME.findall(text), _DATE.findall(text), _PUBLIC.search(text)
    if len(dates) != 2 or key is None:
        raise CertificateError(why)
    body = "".join(key[0].splitlines()[1:-1])
    try:
        starts, ends = map(ssl.cert_time_to_seconds, dates)
    except ValueError as error:  # openssl shows what is no time, too
        raise CertificateError(why) from error
    return Certificate(der, names[0] if len(names) == 1 else "", starts, ends, base64.b64decode(body))


def pem(chain: Sequence[Certificate]) -> bytes:
    """The file of these certificates."""
    return "".join(ssl.DER_cert_to_PEM_cert(each.der) for each in chain).encode("ascii")


def check_issued(certificate: Certificate, name: str, key: bytes, issuer: Certificate) -> None:
    """Raise CertificateError unless `issuer` gave it to `name` for this public key; when is not asked here."""
    if certificate.name != name:
        raise CertificateError(f"the certificate is for {certificate.name!r} and not for {name!r}")
    if certificate.public_key != key:
        raise CertificateError("the certificate is for another TLS key")
    with tempfile.TemporaryDirectory(prefix="issuer-") as scratch:
        trusted = Path(scratch, "issuer")
        trusted.write_bytes(pem([issuer]))
        alone = ("-partial_chain", "-no_check_time", "-trusted", str(trusted))
        why = f"the certificate was not issued by {issuer.name!r}"
        _openssl("verify", *alone, given=pem([certificate]), why=why)


def _read(what: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise CertificateError(f"cannot read the {what} {path}: {error.strerror}") from error


def _openssl(*words: str, given: bytes = b"", why: str) -> bytes:
    """What the command answers, whatever this system's own settings of it are. Raises CertificateError(why)."""
    environment = {**os.environ, "OPENSSL_CONF": "/dev/null", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["openssl", *words], input=given, capture_output=True, env=environment, timeout=_ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CertificateError("openssl cannot be run, which makes and reads certificates: install it") from error
    if done.returncode:
        raise CertificateError(why)
    return done.stdout
