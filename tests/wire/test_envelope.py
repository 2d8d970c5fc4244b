"""The envelope is a COSE_Sign1, holds for one topic and one key, and opens for nothing else."""

from __future__ import annotations

import cbor2
import pytest

from tests.wire.examples import DEVICE, EXAMPLES, FLEET, SEED
from wire import envelope, keys, limits, messages, topics

SIGN = keys.signer(SEED)
VERIFY = keys.verifier(keys.public_text(SEED))
TOPIC, UPDATE = EXAMPLES["update"]
SEALED = envelope.seal(UPDATE, TOPIC, SIGN)


def reason_for(data: bytes, topic: str = TOPIC, verify: envelope.Verify = VERIFY) -> str:
    with pytest.raises(envelope.EnvelopeError) as caught:
        envelope.unseal(data, topic, verify)
    return caught.value.reason


def test_what_was_sealed_opens() -> None:
    assert envelope.unseal(SEALED, TOPIC, VERIFY) == UPDATE


def test_what_a_newer_peer_wrote_is_kept_as_it_wrote_it() -> None:
    """A digest of the message is one of these bytes, not of those that we would write."""
    newer = messages.encode(messages.Death(3, 1)).replace(b"\x83", b"\x84", 1) + b"\x07"
    topic = topics.up(FLEET, DEVICE, "death")
    wrapped = envelope._byte_string_head(len(newer)) + newer
    signature = SIGN(envelope._to_be_signed(topic, wrapped))
    sealed = bytes.fromhex("d28443a10127a0") + wrapped + b"\x58\x40" + signature
    assert envelope.open_sealed(sealed, topic, VERIFY) == (messages.Death(3, 1), newer)


def test_it_is_the_structure_of_rfc_9052() -> None:
    """Section 4.2: tag 18 of [protected, unprotected, payload, signature]; 4.4: what is signed."""
    tag = cbor2.loads(SEALED)
    assert isinstance(tag, cbor2.CBORTag)
    assert tag.tag == 18
    protected, unprotected, payload, signature = tag.value
    assert cbor2.loads(protected) == {1: -8}
    assert unprotected == {}
    assert payload == messages.encode(UPDATE)
    signed = cbor2.dumps(["Signature1", protected, TOPIC.encode(), payload])
    assert VERIFY(signed, signature)
    assert cbor2.dumps(tag, canonical=True) == SEALED


@pytest.mark.parametrize("length", [0, 1, 23, 24, 25, 255, 256, 65_535, 65_536, 120_000])
def test_lengths_are_written_in_their_shortest_form(length: int) -> None:
    assert envelope._byte_string_head(length) + bytes(length) == cbor2.dumps(bytes(length), canonical=True)


@pytest.mark.parametrize("length", [0, 1, 23, 24, 255, 256, 65_535, 65_536, 90_000])
def test_pycose_writes_the_same_bytes(length: int) -> None:
    pytest.importorskip("pycose", reason="needs pycose, the independent encoder: pip install pycose")
    from pycose.algorithms import EdDSA
    from pycose.headers import Algorithm
    from pycose.keys import OKPKey
    from pycose.keys.curves import Ed25519
    from pycose.messages import Sign1Message

    message = messages.Update(1, 0, 1, 0, 0, bytes(length))
    key = OKPKey(crv=Ed25519, d=SEED)
    theirs = Sign1Message(phdr={Algorithm: EdDSA}, payload=messages.encode(message), external_aad=TOPIC.encode())
    theirs.key = key
    assert theirs.encode() == envelope.seal(message, TOPIC, SIGN)


def test_a_message_is_valid_only_on_its_own_topic() -> None:
    for topic in (
        topics.up(FLEET, "pi-08", "update"),
        topics.up("garden", DEVICE, "update"),
        topics.up(FLEET, DEVICE, "want"),
        TOPIC + "\n",
    ):
        assert reason_for(SEALED, topic) == "signature"


def test_another_key_does_not_open_it() -> None:
    assert reason_for(SEALED, verify=keys.verifier(keys.public_text(bytes(32)))) == "signature"


def test_every_single_flipped_bit_is_noticed() -> None:
    for position in range(len(SEALED)):
        for bit in range(8):
            changed = bytearray(SEALED)
            changed[position] ^= 1 << bit
            assert reason_for(bytes(changed)) in {"shape", "signature"}


def test_what_is_not_of_the_one_shape_never_reaches_the_verifier() -> None:
    def verify(_message: bytes, _signature: bytes) -> bool:
        raise AssertionError("the verifier was asked")

    payload = messages.encode(UPDATE)
    good = cbor2.loads(SEALED).value
    shapes = [
        b"",
        SEALED[:20],
        SEALED[:-1],
        SEALED + b"\x00",
        b"\x84" + SEALED[2:],  # without the tag
        cbor2.dumps(cbor2.CBORTag(98, good)),  # COSE_Sign
        cbor2.dumps(cbor2.CBORTag(18, [cbor2.dumps({1: -7}), {}, payload, good[3]])),  # another algorithm
        cbor2.dumps(cbor2.CBORTag(18, [good[0], {4: b"kid"}, payload, good[3]])),  # an unprotected header
        cbor2.dumps(cbor2.CBORTag(18, [good[0], {}, None, good[3]])),  # a detached payload
        cbor2.dumps(cbor2.CBORTag(18, [good[0], {}, payload, good[3][:63]])),
        SEALED.replace(b"\xa0\x58" + bytes([len(payload)]), b"\xa0\x59\x00" + bytes([len(payload)])),  # a longer length
        SEALED.replace(b"\xa0\x58" + bytes([len(payload)]), b"\xa0\x58" + bytes([len(payload) + 1])),
    ]
    assert len(set(shapes)) == len(shapes)
    assert SEALED not in shapes
    for data in shapes:
        assert reason_for(data, verify=verify) == "shape"


def test_what_is_too_large_is_refused_before_anything_else() -> None:
    assert reason_for(SEALED + bytes(limits.PAYLOAD_BYTES_MAX)) == "size"
    assert reason_for(bytes(10_000_000)) == "size"


def test_signed_nonsense_is_still_nonsense() -> None:
    def seal_bytes(payload: bytes) -> bytes:
        wrapped = cbor2.dumps(payload)
        signed = cbor2.dumps(["Signature1", b"\xa1\x01\x27", TOPIC.encode()])[: -0 or None]
        signed = b"\x84" + signed[1:] + wrapped
        return bytes.fromhex("d28443a10127a0") + wrapped + b"\x58\x40" + SIGN(signed)

    assert seal_bytes(messages.encode(UPDATE)) == SEALED
    assert reason_for(seal_bytes(b"hello")) == "message"
    assert reason_for(seal_bytes(b"")) == "message"
    assert reason_for(seal_bytes(messages.encode(UPDATE) + b"\x00")) == "message"


def test_a_message_of_another_kind_is_refused_although_signed_for_the_topic() -> None:
    assert reason_for(envelope.seal(messages.Death(1, 1), TOPIC, SIGN)) == "kind"


def test_the_envelope_adds_at_most_84_bytes() -> None:
    for topic, message in EXAMPLES.values():
        assert len(envelope.seal(message, topic, SIGN)) - len(messages.encode(message)) <= 84
