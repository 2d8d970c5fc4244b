"""Twenty thousand damaged messages and envelopes: each is refused in order, or is a message in its one form."""

from __future__ import annotations

import contextlib
import random

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.examples import EXAMPLES, SEED
from wire import envelope, keys, messages

SIGN = keys.signer(SEED)
VERIFY = keys.verifier(keys.public_text(SEED))
PER_EXAMPLE = 100
ENCODED = [messages.encode(message) for _, message in EXAMPLES.values()]
SEALED = [(topic, envelope.seal(message, topic, SIGN)) for topic, message in EXAMPLES.values()]


def damaged(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        position = chance.randrange(len(changed) + 1)
        match chance.randrange(6):
            case 0:
                changed[position : position + 1] = bytes([chance.randrange(256)])
            case 1:
                changed[position:position] = chance.randbytes(chance.randrange(1, 9))
            case 2:
                del changed[position : position + chance.randrange(1, 9)]
            case 3:  # a CBOR head: what sits in data where structure should
                changed[position : position + 1] = bytes(
                    [chance.choice(range(0x00, 0x100, 0x20)) | chance.randrange(32)]
                )
            case 4:
                other = chance.choice(ENCODED)
                start = chance.randrange(len(other))
                changed[position:position] = other[start : start + chance.randrange(1, 60)]
            case _:
                changed[0:1] = bytes([chance.randrange(256)])
    return bytes(changed)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**64))
def test_a_damaged_message_is_refused_or_canonical(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(PER_EXAMPLE):
        data = damaged(chance.choice(ENCODED), chance)
        try:
            message = messages.decode(data)
        except messages.MessageError:
            continue
        assert cbor2.dumps(cbor2.loads(data), canonical=True) == data
        again = messages.encode(message)
        assert messages.decode(again) == message
        assert again == data or cbor2.loads(again) != cbor2.loads(data)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**64))
def test_a_damaged_envelope_never_opens(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(PER_EXAMPLE):
        topic, sealed = chance.choice(SEALED)
        data = damaged(sealed, chance)
        if data == sealed:
            continue
        with pytest.raises(envelope.EnvelopeError) as caught:
            envelope.unseal(data, topic, VERIFY)
        assert caught.value.reason in {"size", "shape", "signature"}


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**64))
def test_even_with_a_stolen_key_nothing_but_a_message_of_the_topic_gets_in(seed: int) -> None:
    """The verifier says yes to all: what is behind it must hold alone."""
    chance = random.Random(seed)
    for _ in range(PER_EXAMPLE):
        topic, sealed = chance.choice(SEALED)
        try:
            message = envelope.unseal(damaged(sealed, chance), topic, lambda _message, _signature: True)
        except envelope.EnvelopeError:
            continue
        assert topic.endswith(f"/{messages.kind_of(message)}")


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_at_all_raise_nothing_else(data: bytes) -> None:
    for candidate in (data, b"\x83\x65death" + data, b"\x87\x66update" + data):
        with contextlib.suppress(messages.MessageError):
            messages.decode(candidate)
        with contextlib.suppress(envelope.EnvelopeError):
            envelope.unseal(candidate, "t", VERIFY)
