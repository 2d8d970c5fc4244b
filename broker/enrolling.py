"""What the operator does with the fleet's authority: make it, hand out tokens, take certificates back.

The files are in the coordinator's directory, under the names of `[enroll]`; all else is in the store. Whatever is
issued is in the store first, so that it can be revoked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker import authority, certificates
from broker.certificates import CertificateError
from broker.config import EMBEDDED
from broker.enrolments import CertificateRow, TokenRow, name_in
from wire import keys, token_text, topics
from wire.server_url import parse_url

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    from broker.authority import Authority
    from broker.config import Config
    from broker.store import Store

TOKEN_LASTS_MS_MAX: Final = 30 * 86_400_000  # who finds a token in a drawer shall not find an open door
LONG_S: Final = authority.AUTHORITY_DAYS * authority.DAY_S  # of the servers: as long as the authority, and no longer
_REQUEST_FILE: Final = "ca.csr"


class EnrolError(Exception):
    """It cannot be done. One line: what, where, how to mend."""


class Begun(NamedTuple):
    """The files that were made."""

    directory: Path
    server: tuple[Path, Path]  # certificate, key
    coordinator: tuple[Path, Path]


def begin(config: Config, store: Store, addresses: tuple[str, ...], unix_s: float) -> Begun:
    """Make the authority, an empty list of the revoked, and certificates of MQTT server and coordinator.

    Raises EnrolError or CertificateError; no key is ever overwritten.
    """
    names = addresses or (_host(config),)
    key = certificates.new_key()
    made = authority.found(config.fleet.id, key, unix_s)
    authority.save(config.path(config.enroll.ca_key), certificates.key_pem(key), private=True)
    return _equip(config, store, made, names, unix_s)


def ask_for_authority(config: Config) -> Path:
    """Make the authority's key, and a request that another authority may sign; its file. Raises CertificateError."""
    key = certificates.new_key()
    authority.save(config.path(config.enroll.ca_key), certificates.key_pem(key), private=True)
    asked = x509.load_der_x509_csr(certificates.request(key, f"hedgerow {config.fleet.id}"[:64]))
    path = config.path(_REQUEST_FILE)
    authority.save(path, asked.public_bytes(Encoding.PEM))
    return path


def begin_under(config: Config, store: Store, chain: Path, addresses: tuple[str, ...], unix_s: float) -> Begun:
    """Begin with what another authority signed: our certificate first, then its own and those above it, to the last.

    Raises EnrolError or CertificateError.
    """
    names = addresses or (_host(config),)
    made = authority.load(chain, config.path(config.enroll.ca_key))
    if config.path(config.enroll.ca_cert).exists():
        raise EnrolError(f"{config.path(config.enroll.ca_cert)} exists: this fleet has an authority already")
    return _equip(config, store, made, names, unix_s)


def name_server(config: Config, store: Store, addresses: tuple[str, ...], unix_s: float) -> tuple[Path, Path]:
    """Another certificate for the MQTT server, which has moved: (certificate, key); the key stays, if it is there.

    Raises EnrolError or CertificateError.
    """
    return _pair(config, store, load(config), unix_s, name="server", addresses=addresses)


def load(config: Config) -> Authority:
    """The fleet's authority. Raises EnrolError where there is none, CertificateError where it cannot be used."""
    cert, key = config.path(config.enroll.ca_cert), config.path(config.enroll.ca_key)
    if not cert.exists():
        raise EnrolError(f"there is no authority at {cert}: make one with broker enroll init")
    return authority.load(cert, key)


def issue(config: Config, name: str, key: EllipticCurvePublicKey, unix_s: float) -> CertificateRow:
    """A device's certificate, not stored yet. Raises CertificateError, whose sentence tells a device no more than that.

    Its cause is for the log.
    """
    try:
        issued = authority.issue(load(config), name, key, unix_s, lasts_s=config.enroll.days * authority.DAY_S)
    except (EnrolError, CertificateError) as error:
        raise CertificateError("the fleet's authority cannot issue now: the log of broker serve says why") from error
    return _row(name, issued)


def new_token(config: Config, store: Store, unix_s: float, *, url: str, device_id: str, lasts_s: float) -> str:
    """A new token, whose text is kept nowhere. Raises EnrolError or CertificateError."""
    _check_url(url)
    if device_id:
        topics.check_name("device", device_id)
    ours = load(config)
    secret = keys.generate()
    public_key = keys.public_text(token_text.signing_seed(secret))
    tls_key = certificates.key_of(secret).public_key()
    row = TokenRow(token_text.token_id(public_key), public_key, device_id, unix_s + lasts_s)
    claimants = authority.issue(ours, topics.CLAIM, tls_key, unix_s, lasts_s=lasts_s)
    store.enrolments.put_token(row, _row(name_in(row.token_id), claimants))
    return token_text.encode(
        token_text.Token(
            config.fleet.id,
            url,
            keys.public_text(keys.load_seed(config.path(config.key.file))),
            secret,
            claimants.public_bytes(Encoding.DER),
            tuple(each.public_bytes(Encoding.DER) for each in ours.chain),
            device_id or None,
        )
    )


def sign(config: Config, store: Store, device_id: str, request: bytes, unix_s: float) -> bytes:
    """A certificate, as PEM, for a device that asks by a file (PEM or DER) and not by a token.

    Raises EnrolError or CertificateError.
    """
    topics.check_name("device", device_id)
    ours = load(config)
    with_pem = request.lstrip().startswith(b"-----")
    try:
        der = x509.load_pem_x509_csr(request).public_bytes(Encoding.DER) if with_pem else request
    except ValueError as error:
        raise CertificateError("the request is no PKCS #10 that can be read") from error
    key = certificates.requested_key(der)
    made = authority.issue(ours, device_id, key, unix_s, lasts_s=config.enroll.days * authority.DAY_S)
    store.enrolments.put_certificate(_row(device_id, made))
    return certificates.pem([made])


def revoke(config: Config, store: Store, name: str, unix_s: float) -> tuple[Path, str]:
    """Take back what a device, or a token by its id, has: (the new list of the revoked, what was done).

    The device leaves the fleet. Raises EnrolError where nobody is called so, or CertificateError.
    """
    ours = load(config)
    with store.transaction():
        if store.enrolments.token(name) is not None:
            store.enrolments.withdraw(name, unix_s)
            done = f"The token {name} can no longer be claimed."
        else:
            was_in = store.remove_device(name)
            count = store.enrolments.revoke(name, unix_s)
            if not was_in and not count:
                raise EnrolError(f"neither a device nor a token is called {name}: see broker enroll list")
            done = f"{name} is out of the fleet, and {count} of its certificates revoked."
    return _write_list(config, store, ours, unix_s), done


def listing(store: Store, unix_s: float) -> dict[str, list[dict[str, Any]]]:
    """Every certificate and every token, as rows to show."""
    return {
        "certificates": [
            {
                "name": row.name,
                "serial": row.serial,
                "status": _status(row, unix_s),
                "issued_unix_s": row.issued_unix_s,
                "expires_unix_s": row.expires_unix_s,
            }
            for row in store.enrolments.certificates()
        ],
        "tokens": [
            {
                "token": row.token_id,
                "device": row.device_id,
                "status": "claimed" if row.claimed else "open" if unix_s < row.expires_unix_s else "over",
                "expires_unix_s": row.expires_unix_s,
            }
            for row in store.enrolments.tokens()
        ],
    }


def _status(row: CertificateRow, unix_s: float) -> str:
    if row.revoked_unix_s:
        return "revoked"
    return "valid" if unix_s < row.expires_unix_s else "over"


def _equip(config: Config, store: Store, made: Authority, names: tuple[str, ...], unix_s: float) -> Begun:
    """Everything but the authority's key; its certificate last, so that one that is there is whole."""
    begun = Begun(
        config.path(config.enroll.ca_cert).parent,
        _pair(config, store, made, unix_s, name="server", addresses=names),
        _pair(config, store, made, unix_s, name="coordinator", addresses=()),
    )
    _write_list(config, store, made, unix_s)
    authority.save(config.path(config.enroll.ca_cert), certificates.pem(made.chain))
    return begun


def _pair(
    config: Config, store: Store, made: Authority, unix_s: float, *, name: str, addresses: tuple[str, ...]
) -> tuple[Path, Path]:
    cert, key_file = config.path(f"{name}.crt"), config.path(f"{name}.tls.key")
    is_there = key_file.exists()
    key = certificates.load_key(key_file) if is_there else certificates.new_key()
    issued = authority.issue(made, name, key.public_key(), unix_s, lasts_s=LONG_S, addresses=addresses)
    store.enrolments.put_certificate(_row(f"the {name}", issued))
    if not is_there:
        authority.save(key_file, certificates.key_pem(key), private=True)
    # a server shows the whole way to the authority that its clients trust, but for that one itself
    authority.save(cert, certificates.pem([issued, *made.chain[:-1]]))
    return cert, key_file


def _write_list(config: Config, store: Store, ours: Authority, unix_s: float) -> Path:
    path = config.path(config.enroll.revoked)
    # who is on it stays on it, although the store may have been restored from an older day
    revoked = authority.read_list(path, ours) | dict(store.enrolments.revoked())
    authority.save(path, authority.revocation_list(ours, sorted(revoked.items()), unix_s))
    return path


def _row(name: str, issued: x509.Certificate) -> CertificateRow:
    starts, ends = certificates.lifetime(issued)
    return CertificateRow(f"{issued.serial_number:x}", name, issued.public_bytes(Encoding.DER), starts, ends)


def _host(config: Config) -> str:
    """The name by which devices reach the MQTT server, as far as the configuration tells."""
    if config.mqtt.url == EMBEDDED:
        raise EnrolError("the embedded MQTT server has no TLS: name the server as devices do, with --server")
    return parse_url(config.mqtt.url).host


def _check_url(url: str) -> None:
    if url == EMBEDDED or not parse_url(url).tls:
        raise EnrolError(f"devices claim their place over TLS, and {url} is without: give --mqtt mqtts://host:8883")
