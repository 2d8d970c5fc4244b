"""How a device comes into its fleet, and later gets another certificate: `edge-agent enroll` and `edge-agent renew`.

    token ─▶ keys of one's own ─▶ claim, by the token's keys ─▶ certificate ─▶ checked ─▶ files, the config last

Both keys are made here and never leave the device: one signs all that it says, the other opens the MQTT server's door.
What is there of an earlier attempt is used again, so that a power cut at any point is mended by the same command. The
answer may come from anyone: it counts once the coordinator's signature holds, and the certificate is the authority's,
for our name and our key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from edge_agent import certificates, config, flash
from wire import envelope, keys, token_text, topics
from wire.enrolment import Certificate, Claim, Renew, proof_of
from wire.link import Arrived, Link, LinkDown, LinkUp
from wire.messages import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_agent.certificates import Certificate as Issued
    from wire.link import LinkEvent

ANSWER_S: Final = 60.0  # then the owner is told; what was made stays for the next attempt
AGAIN_S: Final = 5.0
STATE: Final = Path("state")
CONFIG_FILE: Final = "agent.toml"
KEY_FILE: Final = "device.key"
TLS_KEY_FILE: Final = "device.tls.key"
CERT_FILE: Final = "device.crt"
CA_FILE: Final = "ca.crt"
TLS_LINES: Final = f'ca_file = "{CA_FILE}"\ncert_file = "{CERT_FILE}"\nkey_file = "{TLS_KEY_FILE}"'


class EnrolError(Exception):
    """No certificate was got. One line: why, and how to mend it."""


class Enrolled(NamedTuple):
    """Who this device is now."""

    device_id: str
    fleet: str
    config_path: Path
    ends_unix_s: float


class Door(NamedTuple):
    """Where to ask, as whom, on which topics, and whose answer counts."""

    url: str
    client_id: str
    files: tuple[Path | None, Path | None, Path | None]  # authority, certificate, key
    asks: str
    answers: str
    coordinator_key: str


def enroll(text: str, home: Path, device_id: str = "", within_s: float = ANSWER_S, state: Path = STATE) -> Enrolled:
    """Claim a place by a token; afterwards `home` holds all that `edge-agent run` needs.

    `state`, below `home` unless it is absolute, is where everything goes that the agent will write. With a config
    of this fleet that is there already, the device gets another certificate, and the config stays as it is: so it comes
    back whose certificate has ended. Raises EnrolError, TokenError, TopicError, KeyTextError, CertificateError,
    ConfigError or OSError, one line.
    """
    token = token_text.decode(text)
    path = home / CONFIG_FILE
    device_id = device_id or token.device_id or ""
    if path.exists():
        device_id = _comes_back(config.load(path), token)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_file = home / TLS_KEY_FILE
    seed, tls_key = _signing_key(home / KEY_FILE), _tls_key(key_file)
    name = topics.check_name("device", device_id or _name_of(seed))
    authority = tuple(map(certificates.parse, token.authority))
    flash.write_file(home / CA_FILE, certificates.pem(authority))
    request = certificates.request(key_file, name)
    claim = Claim(name, keys.public_text(seed), keys.signer(seed)(proof_of(request)), request)
    with _opened(token, home) as door:
        sealed = envelope.seal(claim, door.asks, keys.signer(token_text.signing_seed(token.secret)))
        got = _ask(door, sealed, within_s)
    certificates.check_issued(got, name, tls_key, authority[0])
    flash.write_file(home / CERT_FILE, certificates.pem([got, *authority[:-1]]))
    if not path.exists():
        given = {"id": name, "fleet": token.fleet, "coordinator_key": token.coordinator_key, "url": token.url}
        quoted = json.dumps(str(state), ensure_ascii=False)  # TOML does it alike
        names = {"key": KEY_FILE, "state": quoted[1:-1], "tls": TLS_LINES}
        flash.write_file(path, config.SAMPLE.format(**given, **names).encode())
    return Enrolled(name, token.fleet, path, got.ends_unix_s)


def renew(settings: config.Config, within_s: float = ANSWER_S) -> tuple[bool, float]:
    """Get another certificate for the same key, once two thirds of the life of this one are over.

    Returns whether that was done, and when it was due, in seconds since 1970. The file is replaced as one, so that at
    any moment it belongs to the key. Errors as of `enroll`.
    """
    device, mqtt = settings.device, settings.mqtt
    if mqtt.ca_file is None or mqtt.cert_file is None or mqtt.key_file is None:
        raise EnrolError("[mqtt] names no ca_file, cert_file and key_file: there is no certificate to renew")
    current = certificates.load_chain(mqtt.cert_file)[0]
    due = current.starts_unix_s + (current.ends_unix_s - current.starts_unix_s) * 2 / 3
    if time.time() < due:  # a clock that stands in 1970 says so too; it will be asked again when it is right
        return False, due
    tls_key, authority = certificates.public_key(mqtt.key_file), certificates.load_chain(mqtt.ca_file)
    files = (mqtt.ca_file, mqtt.cert_file, mqtt.key_file)
    asks, answers = (topics.up(device.fleet, device.id, "renew"), topics.dn(device.fleet, device.id, "certificate"))
    door = Door(mqtt.url, f"{device.fleet}-{device.id}-renew", files, asks, answers, device.coordinator_key)
    renewal = Renew(certificates.request(mqtt.key_file, device.id))
    got = _ask(door, envelope.seal(renewal, asks, keys.load_signer(device.key)), within_s)
    certificates.check_issued(got, device.id, tls_key, authority[0])
    flash.write_file(mqtt.cert_file, certificates.pem([got, *authority[:-1]]))
    return got != current, due  # the same again: by the coordinator's clock it is too early


def _comes_back(settings: config.Config, token: token_text.Token) -> str:
    """The name of a device that is in the token's fleet already."""
    device = settings.device
    if (device.fleet, device.coordinator_key) != (token.fleet, token.coordinator_key):
        raise EnrolError(f"this device is in fleet {device.fleet}, and the token is of another: use a new directory")
    if settings.mqtt.key_file is None or settings.mqtt.key_file.name != TLS_KEY_FILE or device.key.name != KEY_FILE:
        raise EnrolError("the keys that the config names are not those of edge-agent enroll: use a new directory")
    return device.id


@contextlib.contextmanager
def _opened(token: token_text.Token, home: Path) -> Iterator[Door]:
    """The door for one that has only a token; its key is in a file for as long as it is needed."""
    token_id = token_text.token_id(keys.public_text(token_text.signing_seed(token.secret)))
    with tempfile.TemporaryDirectory(prefix=".claim-", dir=home) as scratch:
        cert, key = Path(scratch, "cert"), Path(scratch, "key")
        flash.write_file(cert, certificates.pem([certificates.parse(token.certificate)]))
        flash.write_file(key, certificates.key_of(token.secret))
        files, answers = (home / CA_FILE, cert, key), topics.claim_answer(token.fleet, token_id)
        yield Door(token.url, topics.CLAIM, files, topics.claim(token.fleet, token_id), answers, token.coordinator_key)


def _ask(door: Door, sealed: bytes, within_s: float) -> Issued:
    """Say it until it is answered. Raises EnrolError where it is refused, or nobody answers."""
    events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    ca_file, cert_file, key_file = door.files
    link = Link(
        door.url,
        door.client_id,
        filters=[door.answers],
        will=None,
        post=events.put,
        jitter=random.Random(os.urandom(16)),  # noqa: S311
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
    )
    link.start()
    try:
        return _hear(door, sealed, link, events, time.monotonic() + within_s)
    finally:
        link.stop()


def _hear(door: Door, sealed: bytes, link: Link, events: queue.SimpleQueue[LinkEvent], until_s: float) -> Issued:
    why = "the MQTT server does not answer"
    while (left_s := until_s - time.monotonic()) > 0:
        event: LinkEvent | None = None
        with contextlib.suppress(queue.Empty):
            event = events.get(timeout=min(AGAIN_S, left_s))
        match event:
            case LinkDown(reason=reason):
                why = reason
            case Arrived(topic=topic, payload=payload):
                if topic == door.answers and (answer := _believed(door, sealed, payload)) is not None:
                    return _granted(answer)
            case LinkUp() | None:
                why = why if event is None else "the coordinator does not answer: does it run, is the token revoked?"
                link.publish(door.asks, sealed)
    raise EnrolError(f"no certificate: {why}; the same command goes on from here")


def _believed(door: Door, sealed: bytes, payload: bytes) -> Certificate | None:
    with contextlib.suppress(envelope.EnvelopeError):
        answer = envelope.unseal(payload, door.answers, keys.verifier(door.coordinator_key))
        if isinstance(answer, Certificate) and answer.digest == digest_of(sealed):
            return answer
    return None


def _granted(answer: Certificate) -> Issued:
    if not answer.certificate:
        raise EnrolError(f"refused: {answer.reason}")
    return certificates.parse(answer.certificate)


def _signing_key(path: Path) -> bytes:
    if not path.exists():
        keys.save_private(path, keys.generate())
    return keys.load_seed(path)


def _tls_key(path: Path) -> bytes:
    """The public half of the key in this file, made now if it is not there."""
    if not path.exists():
        flash.write_file(path, certificates.new_key())
    return certificates.public_key(path)


def _name_of(seed: bytes) -> str:
    """A name that no other device has, for one that was given none."""
    return f"device-{hashlib.sha256(keys.public_text(seed).encode()).hexdigest()[:8]}"
