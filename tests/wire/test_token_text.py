"""The text of a token is read as it was written, and any damage to it is told as such."""

from __future__ import annotations

import msgspec
import pytest

from wire import keys, token_text, topics
from wire.token_text import Token, TokenError

COORDINATOR = keys.public_text(b"c" * 32)
TOKEN = Token("barn", "mqtts://barn:8883", COORDINATOR, bytes(range(32)), b"certificate", (b"authority",), "pi-07")
TEXT = token_text.encode(TOKEN)


def test_a_token_is_read_as_it_was_written_also_when_it_was_wrapped() -> None:
    assert token_text.decode(TEXT) == TOKEN
    assert token_text.decode("\n ".join(TEXT[at : at + 20] for at in range(0, len(TEXT), 20)) + "\n") == TOKEN
    anyone = msgspec.structs.replace(TOKEN, device_id=None)
    assert token_text.decode(token_text.encode(anyone)) == anyone


@pytest.mark.parametrize("at", range(len(token_text.PREFIX), len(TEXT)))
def test_every_letter_counts(at: int) -> None:
    for damaged in (TEXT[:at], TEXT[:at] + ("A" if TEXT[at] != "A" else "B") + TEXT[at + 1 :], TEXT[:at] + "!"):
        if damaged != TEXT:
            with pytest.raises(TokenError, match="damaged"):
                token_text.decode(damaged)


@pytest.mark.parametrize("text", ["", "token", TEXT.removeprefix("h"), token_text.PREFIX + "A" * 9000])
def test_what_is_no_token_is_told_from_one_that_is_damaged(text: str) -> None:
    with pytest.raises(TokenError, match="this is no token"):
        token_text.decode(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"fleet": "Barn"},
        {"secret": b"short"},
        {"coordinator_key": "ed25519:x"},
        {"authority": ()},
        {"device_id": "-"},
        {"certificate": bytes(3000)},
    ],
)
def test_a_token_with_anything_else_in_it_is_of_another_version(changes: dict[str, object]) -> None:
    with pytest.raises(TokenError, match="another version"):
        token_text.decode(token_text.encode(msgspec.structs.replace(TOKEN, **changes)))


def test_the_id_of_a_token_stands_in_its_topics() -> None:
    public_key = keys.public_text(token_text.signing_seed(TOKEN.secret))
    token_id = token_text.token_id(public_key)
    assert topics.parse_claim(topics.claim("barn", token_id)) == ("barn", token_id)
