"""Claims: how a device with a token gets its place in the fleet and a certificate, and later another certificate.

    claim ─▶ sealed by a token's key? ─▶ good, and not another's? ─▶ in the store ─▶ certificate
    renew ─▶ sealed by a device's key? ───────────────────────────▶ in the store ─▶ certificate

Whoever cannot show a key hears nothing. Whoever can is told why not. What was given once is given again to the same
device and the same keys, since an answer may be lost; to others it is not. Pure: the store and the authority are
arguments, and so are both clocks, the steady one for the rate, that of the wall for lives of tokens and certificates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from broker import certificates
from broker.certificates import CertificateError
from broker.effects import Publish
from wire import envelope, keys, topics
from wire.enrolment import Certificate, Claim, Renew, proof_of
from wire.log_line import line
from wire.messages import digest_of, fit_reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    from broker.enrolments import CertificateRow, Enrolments, TokenRow
    from broker.turns import Told
    from wire.messages import Message

WINDOW_MS: Final = 60_000
CLAIMS_MAX: Final = 600  # of all in a window who show a key: a few of them cost a certificate and a disk flush
ASKER_CLAIMS_MAX: Final = 20  # of one token or device; it repeats itself every five seconds


class Books(Protocol):
    """What is kept: the store."""

    enrolments: Enrolments

    def transaction(self) -> AbstractContextManager[None]:
        """Make the block one transaction that writes."""

    def add_device(self, device_id: str, public_key: str) -> bool:
        """Let a device into the fleet."""


class Refused(Exception):  # noqa: N818 - an answer, and no fault
    """Why there is no certificate; a sentence for the device's owner."""


class NotBelieved(Exception):  # noqa: N818 - somebody said something
    """Nobody whom we know said this. One word, for counting."""


class Asked(NamedTuple):
    """A message that was sealed by a key that we know."""

    message: Message
    device_id: str  # of whom it is; of a claim: who it would be
    answer_topic: str
    token: TokenRow | None


def concerns(topic: str) -> bool:
    """Is a message on this topic for here?"""
    return topic.endswith(("/up/claim", "/up/renew"))


class Claims:
    """The machine. `issue`: makes a certificate for a name and a TLS key; raises CertificateError.

    `refused_count` counts, by a word, what was not believed.
    """

    def __init__(
        self,
        fleet: str,
        sign: envelope.Sign,
        books: Books,
        issue: Callable[[str, EllipticCurvePublicKey, float], CertificateRow],
        refused_count: dict[str, int],
    ) -> None:
        self._fleet = fleet
        self._sign = sign
        self._books = books
        self._kept = books.enrolments
        self._issue = issue
        self._refused_count = refused_count
        self._window_ends_ms = 0
        self._asked: dict[str, int] = {}  # topic → how often in this window; "": all together

    def handle(self, topic: str, payload: bytes, now_ms: int, unix_s: float) -> list[Told]:
        """What follows from a message on a topic that `concerns` us. What an answer speaks of is in the store."""
        try:
            asked = self._read(topic, payload)
            self._take_turn(topic, ASKER_CLAIMS_MAX, now_ms)
            self._take_turn("", CLAIMS_MAX, now_ms)  # behind: what one has too many of is not taken from the others
        except NotBelieved as error:
            word = str(error)
            self._refused_count[word] = self._refused_count.get(word, 0) + 1
            return []
        digest = digest_of(payload)
        try:
            row, told = self._grant(asked, unix_s)
        except (Refused, CertificateError) as refusal:
            reason = fit_reason(str(refusal))
            answer = Certificate(digest, b"", reason)
            told = line("enrol-refused", device=asked.device_id, why=reason, cause=str(refusal.__cause__ or ""))
        else:
            answer = Certificate(digest, row.content)
        return [Publish(asked.answer_topic, envelope.seal(answer, asked.answer_topic, self._sign)), told]

    def _take_turn(self, who: str, most: int, now_ms: int) -> None:
        if now_ms >= self._window_ends_ms:
            self._window_ends_ms = now_ms + WINDOW_MS
            self._asked.clear()
        self._asked[who] = self._asked.get(who, 0) + 1
        if self._asked[who] > most:
            raise NotBelieved("too-many")

    # Who says so

    def _read(self, topic: str, payload: bytes) -> Asked:
        try:
            if topic.endswith("/claim"):
                return self._read_claim(topic, payload)
            return self._read_renewal(topic, payload)
        except topics.TopicError as error:
            raise NotBelieved("topic") from error
        except envelope.EnvelopeError as error:
            raise NotBelieved(error.reason) from error

    def _read_claim(self, topic: str, payload: bytes) -> Asked:
        fleet, token_id = topics.parse_claim(topic)
        token = self._kept.token(token_id) if fleet == self._fleet else None
        if token is None:
            raise NotBelieved("stranger")
        message = envelope.unseal(payload, topic, keys.verifier(token.public_key))
        assert isinstance(message, Claim), "the topic's last level is the message's kind"
        return Asked(message, message.device_id, topics.claim_answer(fleet, token_id), token)

    def _read_renewal(self, topic: str, payload: bytes) -> Asked:
        fleet, device_id, _, _ = topics.parse(topic)
        public_key = self._kept.device_key(device_id) if fleet == self._fleet else ""
        if not public_key:
            raise NotBelieved("stranger")
        message = envelope.unseal(payload, topic, keys.verifier(public_key))
        return Asked(message, device_id, topics.dn(fleet, device_id, "certificate"), None)

    # What it gets

    def _grant(self, asked: Asked, unix_s: float) -> tuple[CertificateRow, str]:
        """The certificate, kept, and the line of the log. Raises Refused or CertificateError."""
        match asked.message, asked.token:
            case Claim() as claim, token if token is not None:
                return self._let_in(claim, token, unix_s)
            case Renew(request=request), _:
                return self._renew(asked.device_id, request, unix_s)
        raise Refused("this is not asked here")

    def _let_in(self, claim: Claim, token: TokenRow, unix_s: float) -> tuple[CertificateRow, str]:
        tls_key = certificates.requested_key(claim.request)
        device_id = _checked_name(claim, token)
        if unix_s >= token.expires_unix_s:
            raise Refused("the token's time is over: ask the operator for another")
        if not _is_proven(claim):
            raise Refused("the claim is not signed by the key that it brings")
        known = self._kept.device_key(device_id)
        if token.claimed:
            return self._again(token, device_id, tls_key, is_same=known == claim.public_key)
        if known not in ("", claim.public_key):
            raise Refused(f"{device_id} is in the fleet with another key: broker enroll revoke {device_id} first")
        row = self._issue(device_id, tls_key, unix_s)
        with self._books.transaction():
            self._books.add_device(device_id, claim.public_key)
            self._kept.put_certificate(row)
            self._kept.use(token.token_id, row.serial)
        return row, line("enrolled", device=device_id, token=token.token_id, serial=row.serial)

    def _again(
        self, token: TokenRow, device_id: str, tls_key: EllipticCurvePublicKey, *, is_same: bool
    ) -> tuple[CertificateRow, str]:
        row = self._kept.certificate(token.claimed)
        if row is None or not is_same or row.name != device_id or not _is_for(row, tls_key):
            raise Refused("the token was used by another device, or for other keys: ask the operator for another")
        if row.revoked_unix_s:
            raise Refused("what the token was used for is revoked: ask the operator for another")
        return row, line("enrolled-again", device=device_id, token=token.token_id)

    def _renew(self, device_id: str, request: bytes, unix_s: float) -> tuple[CertificateRow, str]:
        tls_key = certificates.requested_key(request)
        newest = self._kept.newest(device_id)
        if newest is not None and unix_s < newest.due_unix_s and _is_for(newest, tls_key):
            return newest, line("renewed-again", device=device_id)
        row = self._issue(device_id, tls_key, unix_s)
        with self._books.transaction():
            self._kept.put_certificate(row)
        return row, line("renewed", device=device_id, serial=row.serial)


def _checked_name(claim: Claim, token: TokenRow) -> str:
    if token.device_id not in ("", claim.device_id):
        raise Refused(f"the token is for {token.device_id}, and for no other device")
    try:
        return topics.check_name("device", claim.device_id)
    except topics.TopicError as error:
        raise Refused(str(error)) from error


def _is_proven(claim: Claim) -> bool:
    try:
        return keys.verifier(claim.public_key)(proof_of(claim.request), claim.proof)
    except keys.KeyTextError:
        return False


def _is_for(row: CertificateRow, key: EllipticCurvePublicKey) -> bool:
    held: Any = certificates.parse(row.content).public_key()
    return bool(held == key)
