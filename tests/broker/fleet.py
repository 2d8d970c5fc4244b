"""What the broker's tests share: a plan, keys, a small model's store, and a device made of nothing but its words."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import msgspec

from broker.coordinator import Coordinator
from broker.effects import Effect, Publish, RoundRow, Snapshot
from broker.voice import Identity
from wire import chunks, envelope, keys, topics
from wire.messages import PARAMS_FILE, Birth, Death, Manifest, Message, Plan, Update

if TYPE_CHECKING:
    from collections.abc import Callable

FLEET = "farm"
DEVICES = ("cabin", "dune", "elm")
SEEDS = {name: bytes([number + 1]) * 32 for number, name in enumerate(("coordinator", *DEVICES, "stranger"))}
SIGN = {name: keys.signer(seed) for name, seed in SEEDS.items()}
KEY = {name: keys.public_text(seed) for name, seed in SEEDS.items()}
SIZE = 4
PLAN = Plan(
    model="tiny",
    train="last-2",
    lane="economy",
    num_params=SIZE,
    epochs=1,
    batch_size=8,
    learning_rate=0.5,
    momentum=0.0,
    clip_norm=1.0,
    keep_count=2,
    value_bits=4,
    seed=7,
    num_examples_min=5,
    num_examples_max=100,
    trainer_memory_bytes_max=1 << 28,
    trainer_ms_max=60_000,
)


def params(*values: float) -> bytes:
    return struct.pack(f"<{SIZE}f", *values)


def first_manifest() -> tuple[Manifest, dict[bytes, bytes]]:
    contents = {"model.tflite": b"a model" * 10, PARAMS_FILE: params(0, 0, 0, 0)}
    files = tuple(chunks.split(name, content) for name, content in contents.items())
    return Manifest("tiny", 1, 0, SIZE, files), {f.digest: contents[f.name] for f in files}


def row(round_id: int, **changes: object) -> RoundRow:
    return msgspec.structs.replace(RoundRow(round_id, PLAN, "waiting", 1, 0, 60_000), **changes)


def snapshot(**changes: object) -> Snapshot:
    fleet = {name: KEY[name] for name in DEVICES}
    empty = Snapshot(0, fleet, (), {}, (), first_manifest()[0])
    return msgspec.structs.replace(empty, **changes)


def identity(admit: Callable[[bytes, Plan], str | None] | None = None) -> Identity:
    return Identity(FLEET, SIGN["coordinator"], keys.verifier, admit or (lambda payload, plan: None))


def coordinator(admit: Callable[[bytes, Plan], str | None] | None = None, **changes: object) -> Coordinator:
    return Coordinator(identity(admit), snapshot(**changes), random.Random(5))


def sealed(device: str, message: Message, sign: str | None = None) -> tuple[str, bytes]:
    topic = topics.up(FLEET, device, type(message).__name__.lower())
    return topic, envelope.seal(message, topic, SIGN[sign or device])


def birth(boot: int = 1, connection: int = 1, examples: int = 40) -> Birth:
    return Birth(boot, connection, 0, 0, examples, "agent")


def death(boot: int = 1, connection: int = 1) -> Death:
    return Death(boot, connection)


def update(round_id: int = 1, version: int = 1, payload: bytes = b"u", examples: int = 40) -> Update:
    return Update(round_id, version, examples, 3, 4, payload)


def opened(payload: bytes, topic: str) -> Message:
    return envelope.unseal(payload, topic, keys.verifier(KEY["coordinator"]))


def said(effects: list[Effect]) -> list[tuple[str, Message]]:
    """What is published: (device, or `all`; message), in order."""
    published = [effect for effect in effects if isinstance(effect, Publish)]
    return [(topics.parse(e.topic).device_id, opened(e.payload, e.topic)) for e in published]
