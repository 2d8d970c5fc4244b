"""The envelope: what every payload on MQTT looks like, and the one door through which bytes become a message.

It is a COSE_Sign1 (RFC 9052, section 4.2) with one algorithm, Ed25519, and nothing optional, so its bytes are
always the same but for payload and signature:

    d2                tag 18: COSE_Sign1
      84              an array of four
        43 a10127     protected header {alg: EdDSA}, as bytes
        a0            unprotected header, empty
        58.. payload  the encoded message, as bytes with the shortest length
        58 40 ..      64 bytes of signature

Signed is not this, but the array ["Signature1", protected, topic, payload]: the topic takes part as external data,
so a message moved to another topic (another device, another fleet, another kind) does not verify.

Until the signature holds, only the fixed shape above is compared, never parsed: a CBOR decoder meets nothing but
bytes that a key of ours has signed. Keys are arguments: the simulator brings its own `Sign` and `Verify`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from wire import limits, messages

if TYPE_CHECKING:
    from wire.messages import Message

Sign: TypeAlias = Callable[[bytes], bytes]  # what to sign → 64 bytes
Verify: TypeAlias = Callable[[bytes, bytes], bool]  # what was signed, 64 bytes → is it so

SIGNATURE_BYTES: Final = 64

_PROTECTED: Final = bytes.fromhex("43a10127")
_HEAD: Final = bytes.fromhex("d284") + _PROTECTED + b"\xa0"
_BEFORE_SIGNATURE: Final = bytes.fromhex("5840")
_HEAD_BYTES: Final = {0x58: 2, 0x59: 3, 0x5A: 5}  # by their first byte; of all others 1
_CONTEXT: Final = b"\x84\x6aSignature1" + _PROTECTED


class Opened(NamedTuple):
    """What was in an envelope that holds."""

    message: Message
    encoded: bytes  # the message as its sender wrote it: what a digest of it is made of


class EnvelopeError(ValueError):
    """The bytes are no message for us. `reason` is one word for counting.

    size: larger than a payload may be; shape: no envelope; signature: not signed by this key for this topic;
    message: signed, but no message of the contract; kind: signed, but not what this topic carries.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def seal(message: Message, topic: str, sign: Sign) -> bytes:
    """Encode and sign `message` for `topic`. Raises MessageError when it breaks a bound of the contract."""
    return seal_encoded(messages.encode(message), topic, sign)


def seal_encoded(payload: bytes, topic: str, sign: Sign) -> bytes:
    """Sign for `topic` what is encoded already."""
    wrapped = _byte_string_head(len(payload)) + payload
    signature = sign(_to_be_signed(topic, wrapped))
    assert len(signature) == SIGNATURE_BYTES, f"a signature has {SIGNATURE_BYTES} bytes, not {len(signature)}"
    return _HEAD + wrapped + _BEFORE_SIGNATURE + signature


def unseal(data: bytes, topic: str, verify: Verify) -> Message:
    """Return the message in `data`, which arrived on `topic`; raise EnvelopeError unless everything holds."""
    return open_sealed(data, topic, verify).message


def open_sealed(data: bytes, topic: str, verify: Verify) -> Opened:
    """As `unseal`, with the bytes of the message as they were signed: an older or newer peer writes other fields."""
    if len(data) > limits.PAYLOAD_BYTES_MAX:
        raise EnvelopeError("size", f"{len(data)} bytes on {topic[:120]}; {limits.PAYLOAD_BYTES_MAX} are the most")
    wrapped, payload, signature = _take_apart(data, topic)
    if not verify(_to_be_signed(topic, wrapped), signature):
        raise EnvelopeError("signature", f"the signature on {topic[:120]} is not by the expected key for this topic")
    try:
        message = messages.decode(payload)
    except messages.MessageError as error:
        raise EnvelopeError("message", f"on {topic[:120]}: {error}") from error
    if messages.kind_of(message) != topic.rpartition("/")[2]:
        raise EnvelopeError("kind", f"a {messages.kind_of(message)} arrived on {topic[:120]}")
    return Opened(message, payload)


def _take_apart(data: bytes, topic: str) -> tuple[bytes, bytes, bytes]:
    """Split an envelope into (payload with its CBOR head, payload, signature) by comparing it with the one shape."""
    body_end = len(data) - SIGNATURE_BYTES - len(_BEFORE_SIGNATURE)
    wrapped = data[len(_HEAD) : body_end]
    if body_end > len(_HEAD) and data.startswith(_HEAD) and data.startswith(_BEFORE_SIGNATURE, body_end):
        payload = wrapped[_HEAD_BYTES.get(wrapped[0], 1) :]
        if wrapped == _byte_string_head(len(payload)) + payload:
            return wrapped, payload, data[-SIGNATURE_BYTES:]
    raise EnvelopeError("shape", f"the bytes on {topic[:120]} are not a signed message of this contract")


def _to_be_signed(topic: str, wrapped: bytes) -> bytes:
    """The Sig_structure of RFC 9052, section 4.4, with the topic as external_aad."""
    external = topic.encode()
    return _CONTEXT + _byte_string_head(len(external)) + external + wrapped


def _byte_string_head(length: int) -> bytes:
    """Major type 2 with the shortest length (RFC 8949, section 4.2.1). Lengths here end at PAYLOAD_BYTES_MAX."""
    if length < 24:
        return bytes([0x40 | length])
    if length < 0x100:
        return bytes([0x58, length])
    if length < 0x1_0000:
        return b"\x59" + length.to_bytes(2, "big")
    return b"\x5a" + length.to_bytes(4, "big")
