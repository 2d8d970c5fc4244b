"""Dishonest devices: members of the fleet, with keys of their own, that run another program.

A dishonest device does two things besides what the product's agent does on it. Its training child answers something
else: numbers that harm the model (only a lesson with real numbers can tell what those are, see `poison`), or an answer
that lies (`answer`). And a `Rogue`, a second program on the same line, says what no agent would: what it may sign with
its own key, and what it may not.

Who is dishonest is drawn when a world begins, and stays so after the weather has healed. The attacks draw from a
generator of their own. `attacker.Attacker` is another: a stranger without a key.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import cbor2
import msgspec

from firmware_sim import keyring
from wire import envelope, topics
from wire.limits import EXAMPLES_MAX, PAYLOAD_BYTES_MAX, UPDATE_PAYLOAD_BYTES_MAX, WANT_CHUNKS_MAX
from wire.messages import Birth, Range, Receipt, State, Update, Want, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.effects import Trained
    from firmware_sim.world import World
    from wire.envelope import Sign
    from wire.messages import Message

NUMERIC: Final = ("label flip", "sign flip", "scaling", "alie", "ipm", "index concentration", "free rider")
PROTOCOL: Final = ("replay", "forged signature", "sybil", "nan", "oversize", "slow loris")
NAMES: Final = (*NUMERIC, *PROTOCOL)
SHARE_MAX: Final = 0.4  # of the devices: the honest stay the majority
EVERY_MS: Final = 10_000  # between two turns of a rogue program
WANTS: Final = 10  # a turn
SYBILS: Final = 2  # new names a turn
NEW_LIFE_RATE: Final = 0.02  # of a replayer's turns

# What an honest codec never writes: NaN and infinities of 16, 32 and 64 bits, and what cannot be told from noise.
_NOT_NUMBERS: Final = (b"\xff" * 64, b"\x00\x7e" * 32, b"\x00\x00\xc0\x7f" * 64, b"\x00\x00\x80\x7f" * 64, b"")


def drawn(world: World, names: list[str]) -> dict[str, str]:
    """Who is dishonest in a world, and how, as its weather says: at most SHARE_MAX of these devices."""
    weather, chosen = world.weather, dict[str, str]()
    for name in names:
        if len(chosen) < int(SHARE_MAX * len(names)) and world.chance(weather.attacker_rate, "attacker"):
            chosen[name] = weather.attack or world.random.choice(NAMES)
    return chosen


def answer(attack: str, honest: Trained, chance: random.Random) -> Trained:
    """What the training child of a device with this attack answers in place of what it should."""
    match attack:
        case "nan":
            return msgspec.structs.replace(honest, payload=not_numbers(honest.payload, chance))
        case "oversize":
            return oversized(honest, chance)
        case "free rider":
            return msgspec.structs.replace(honest, num_examples=EXAMPLES_MAX)
        case _:
            return honest


def not_numbers(payload: bytes, chance: random.Random) -> bytes:
    """Garbage in the place of a payload: NaN, infinities, noise, or a payload that was cut, stretched or bent."""
    at = chance.randrange(max(1, len(payload)))
    bent = payload[:at] + bytes([payload[at] ^ 0xFF]) + payload[at + 1 :] if payload else b"\xff"
    damaged = (payload[:at], payload + b"\x7f", payload[:3] + b"\xff" * 40, bent)
    return chance.choice([*_NOT_NUMBERS, chance.randbytes(200), *damaged])


def oversized(honest: Trained, chance: random.Random) -> Trained:
    """As large as the contract allows, in bytes or in claims."""
    claims = msgspec.structs.replace(
        honest, num_examples=EXAMPLES_MAX, held_out_correct=EXAMPLES_MAX, held_out_count=EXAMPLES_MAX
    )
    if chance.random() < 0.5:
        return claims
    filling = honest.payload * (1 + UPDATE_PAYLOAD_BYTES_MAX // max(1, len(honest.payload)))
    return msgspec.structs.replace(claims, payload=filling[:UPDATE_PAYLOAD_BYTES_MAX])


class Rogue:
    """The second program of one dishonest device. It speaks over the device's own line, whenever that stands."""

    def __init__(self, world: World, name: str, attack: str) -> None:
        self.world = world
        self.name = name
        self.random = random.Random(f"{attack}/{name}/{world.seed}")
        self.sign = keyring.make(name, world.seed, real=world.real_keys).sign
        self.wrong_sign = keyring.make(f"other key of {name}", world.seed, real=world.real_keys).sign
        self.turns = 0
        self._deed = _DEEDS.get(attack)
        if self._deed is not None:
            world.at(1 + self.random.randrange(EVERY_MS), self._turn)

    def say(self, topic: str, payload: bytes) -> None:
        """Publish anything anywhere."""
        line = self.world.device[self.name].line
        if line is not None:
            line.publish(topic, payload, retain=False)

    def say_signed(self, message: Message, kind: str, *, name: str = "", sign: Sign | None = None) -> None:
        """Say something as a device does, signed with our key unless it is said otherwise."""
        topic = topics.up(keyring.FLEET, name or self.name, kind)
        self.say(topic, envelope.seal(message, topic, sign or self.sign))

    def update(self, payload: bytes, **changes: int) -> Update:
        """An update of the newest round, as good as any but for what it holds."""
        database = self.world.database
        version = database.fleets.manifest.model_version
        update = Update(max(1, len(database.rounds)), version, 40, 0, 0, payload)
        return msgspec.structs.replace(update, **changes)

    def _turn(self) -> None:
        assert self._deed is not None, "who has nothing to do has no turn"
        self.turns += 1
        if self.world.device[self.name].agent is not None:
            self._deed(self)
        self.world.at(EVERY_MS, self._turn)


def _replay(rogue: Rogue) -> None:
    """Something that was true once: our own update again, another's on our topic, and another's signed by us."""
    world, chance = rogue.world, rogue.random
    mine = topics.up(keyring.FLEET, rogue.name, "update")
    heard = [(topic, payload) for topic, payload in world.attacker.heard if topic.endswith("/up/update")]
    if not heard:
        return
    topic, payload = chance.choice(heard)
    rogue.say(mine, payload)
    copied = _read_unchecked(topic, payload)
    if isinstance(copied, Update) and chance.random() < 0.5:
        rogue.say_signed(copied, "update")
    if chance.random() < NEW_LIFE_RATE:
        world.device[rogue.name].upgrade(0)


def _forge(rogue: Rogue) -> None:
    """Our own update by a key that is not ours, and what is said in the name of others by the key that is."""
    world = rogue.world
    other = rogue.random.choice(world.devices).name
    update = rogue.update(b"forged")
    rogue.say_signed(update, "update", sign=rogue.wrong_sign)
    rogue.say_signed(update, "update", name=other, sign=rogue.sign if other != rogue.name else rogue.wrong_sign)
    rogue.say_signed(Birth(2**40, 1, 2**40, 0, 40, "forged"), "birth", name=other, sign=rogue.wrong_sign)
    outbox = next((payload for topic, payload in world.attacker.heard if topic.endswith(f"/{other}/up/update")), b"")
    topic = topics.dn(keyring.FLEET, other, "receipt")
    rogue.say(topic, envelope.seal(Receipt(digest_of(outbox), update.round_id, "accepted"), topic, rogue.sign))
    topic = topics.shared(keyring.FLEET, "state")
    rogue.say(topic, envelope.seal(State(2**40, True, update.round_id, update.base_version), topic, rogue.sign))


def _sybil(rogue: Rogue) -> None:
    """Names that nobody enrolled are born, want the model and send updates."""
    manifest = rogue.world.database.fleets.manifest
    for number in range(SYBILS):
        name = f"sybil-{rogue.name}-{SYBILS * rogue.turns + number}"
        rogue.say_signed(Birth(1, 1, rogue.world.database.epoch, 0, 40, "agent"), "birth", name=name)
        rogue.say_signed(Want(manifest.files[0].digest, (Range(0, WANT_CHUNKS_MAX),)), "want", name=name)
        rogue.say_signed(rogue.update(b"sybil"), "update", name=name)


def _say_not_numbers(rogue: Rogue) -> None:
    """Besides what the training child does: garbage for every round that there is."""
    chance, database = rogue.random, rogue.world.database
    payload = not_numbers(b"HR" + chance.randbytes(60), chance)
    row = database.rounds.get(chance.randint(1, max(1, len(database.rounds))))
    if row is not None:
        rogue.say_signed(rogue.update(payload, round_id=row.round_id, base_version=row.base_version), "update")


def _say_oversized(rogue: Rogue) -> None:
    """At each limit, and one beyond it."""
    topic, chance = topics.up(keyring.FLEET, rogue.name, "update"), rogue.random
    beyond = chance.randrange(2)
    kind = chance.randrange(4)
    if kind == 0:
        rogue.say(topic, chance.randbytes(64) * ((PAYLOAD_BYTES_MAX + 63) // 64 + beyond))
    elif kind == 1:
        tree = msgspec.to_builtins(rogue.update(b""), builtin_types=(bytes,))
        tree[-1] = bytes(UPDATE_PAYLOAD_BYTES_MAX + beyond)
        rogue.say(topic, envelope.seal_encoded(cbor2.dumps(tree, canonical=True), topic, rogue.sign))
    elif kind == 2:
        tree = msgspec.to_builtins(rogue.update(b"x"), builtin_types=(bytes,))
        tree[3:6] = [EXAMPLES_MAX + beyond, EXAMPLES_MAX + beyond, EXAMPLES_MAX]
        rogue.say(topic, envelope.seal_encoded(cbor2.dumps(tree, canonical=True), topic, rogue.sign))
    else:
        rogue.say_signed(rogue.update(b"x", round_id=2**53, base_version=2**53, num_examples=EXAMPLES_MAX), "update")


def _want_for_ever(rogue: Rogue) -> None:
    """Every chunk of every file again and again, and a patch from every version: each want just valid."""
    manifest, chance = rogue.world.database.fleets.manifest, rogue.random
    for _ in range(WANTS):
        file = chance.choice(manifest.files)
        count = len(file.chunk_digests)
        first = chance.randrange(count)
        ranges = (Range(first, WANT_CHUNKS_MAX),) if chance.random() < 0.5 else (Range(first, 1),) * WANT_CHUNKS_MAX
        rogue.say_signed(Want(file.digest, ranges, chance.randrange(manifest.model_version + 1)), "want")


_DEEDS: Final[dict[str, Callable[[Rogue], None]]] = {
    "replay": _replay,
    "forged signature": _forge,
    "sybil": _sybil,
    "nan": _say_not_numbers,
    "oversize": _say_oversized,
    "slow loris": _want_for_ever,
}


def _read_unchecked(topic: str, sealed: bytes) -> Message | None:
    """What somebody's envelope holds, whoever signed it: an attacker need not care."""
    try:
        return envelope.unseal(sealed, topic, lambda _said, _signature: True)
    except envelope.EnvelopeError:
        return None
