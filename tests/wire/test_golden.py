"""The golden vectors: bytes that this and every later version must write and read.

`python -m tests.wire.test_golden` writes the file anew; do that only along with docs/WIRE.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import cbor2
import msgspec
import pytest

from tests.wire.examples import EXAMPLES, OLDER, SEED
from wire import envelope, keys, messages

GOLDEN = Path(__file__).parents[1] / "golden" / "messages_v1.json"
VECTORS = json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {"vectors": {}}


def build() -> dict[str, object]:
    sign = keys.signer(SEED)
    vectors = {
        name: {
            "topic": topic,
            "message": messages.encode(message).hex(),
            "sealed": envelope.seal(message, topic, sign).hex(),
        }
        for name, (topic, message) in EXAMPLES.items()
        if name not in OLDER
    }
    vectors |= {name: VECTORS["vectors"][name] for name in sorted(OLDER)}
    return {"private_seed": SEED.hex(), "public_key": keys.public_text(SEED), "vectors": vectors}


def test_what_we_write_today_is_what_we_always_wrote() -> None:
    assert build() == VECTORS


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_a_golden_vector_is_read_as_its_message(name: str) -> None:
    topic, message = EXAMPLES[name]
    vector = VECTORS["vectors"][name]
    assert vector["topic"] == topic
    assert messages.decode(bytes.fromhex(vector["message"])) == message
    assert envelope.unseal(bytes.fromhex(vector["sealed"]), topic, keys.verifier(VECTORS["public_key"])) == message


@pytest.mark.parametrize("name", sorted(OLDER))
def test_what_was_written_before_a_field_was_added_is_a_beginning_of_what_is_written_now(name: str) -> None:
    message = EXAMPLES[name][1]
    then, now = bytes.fromhex(VECTORS["vectors"][name]["message"]), messages.encode(message)
    (had, then), (has, now) = items(then), items(now)
    added = has - had
    assert added > 0
    assert now[: len(then)] == then
    defaults = [field.default for field in msgspec.structs.fields(message)[-added:]]
    assert now[len(then) :] == b"".join(cbor2.dumps(default, canonical=True) for default in defaults)


def items(data: bytes) -> tuple[int, bytes]:
    """How many items an array has, by its head of one or two bytes; and the rest."""
    short = data[0] & 31
    return (short, data[1:]) if short < 24 else (data[1], data[2:])


def test_every_message_of_the_contract_has_a_golden_vector() -> None:
    kinds = {kind.__struct_config__.tag for kind in get_args(messages.Message)}
    assert kinds == {name.partition(",")[0] for name in VECTORS["vectors"]}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(build(), indent=1) + "\n", "utf-8")
