"""An attacker who may listen and publish anywhere on the MQTT server, and has no key.

`forge` sends what must not be believed: a message signed with the attacker's own key, a true message on another
topic, a true message with a bit changed. `replay` sends again, on its own topic, something that was true once.
The attacker draws from its own generator; where and when it strikes is the weather's business.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import msgspec

from firmware_sim import keyring
from wire import envelope, topics
from wire.messages import Death, Message, Offer, Patch, Plan, Receipt, State, Update, digest_of, encode

if TYPE_CHECKING:
    from firmware_sim.world import World

REMEMBERED_MAX: Final = 400


class Attacker:
    """Hears everything that the server accepts."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = random.Random(f"attacker/{world.seed}")
        self._sign = keyring.make("attacker", world.seed, real=world.real_keys).sign
        self.heard: list[tuple[str, bytes]] = []

    def hear(self, topic: str, payload: bytes) -> None:
        """Remember what passes; of many, some."""
        if len(self.heard) < REMEMBERED_MAX:
            self.heard.append((topic, payload))
        else:
            self.heard[self._random.randrange(REMEMBERED_MAX)] = topic, payload

    def replay(self) -> None:
        """Say something again that was true once."""
        if self.heard:
            topic, payload = self._random.choice(self.heard)
            self._strike("replay", topic, payload, retain=self._random.random() < 0.2 and "/all/" in topic)

    def forge(self) -> None:
        """Say something that was never true."""
        self._random.choice([self.own_key, self.other_topic, self.changed_bit])()

    def own_key(self) -> None:
        """A well-made message with the wrong signature."""
        topic, message = self._random.choice(self._inventions())
        self._strike("forge_key", topic, envelope.seal(message, topic, self._sign), retain=False)

    def other_topic(self) -> None:
        """A true message, sent to another device or as another kind."""
        same_end = self._random.random() < 0.7
        if self.heard:
            topic, payload = self._random.choice(self.heard)
            others = [other for other, _ in self.heard if other != topic and (_end(other) == _end(topic)) == same_end]
            if others:
                self._strike("forge_topic", self._random.choice(others), payload, retain=False)

    def changed_bit(self) -> None:
        """A true message, damaged."""
        if self.heard:
            topic, payload = self._random.choice(self.heard)
            damaged = bytearray(payload)
            damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
            self._strike("forge_bit", topic, bytes(damaged), retain=False)

    def _strike(self, kind: str, topic: str, payload: bytes, *, retain: bool) -> None:
        if self._world.server.up and self._world.happens(kind):
            self._world.note("attacker", f"{kind} on {topic}")
            self._world.server.spread(topic, payload, retain=retain)

    def _inventions(self) -> list[tuple[str, Message]]:
        """What would do harm if it were believed."""
        database = self._world.database
        device = self._random.choice(self._world.devices)
        rounds = max(1, len(database.rounds))
        row = database.rounds.get(rounds)
        offered = digest_of(encode(row.plan)) if row is not None else bytes(32)
        manifest = database.fleets.manifest
        version, params = manifest.model_version, manifest.files[-1].digest
        elsewhere = msgspec.structs.replace(manifest, model_version=version + 1, url="http://attacker.sim")
        fleet, name = keyring.FLEET, device.name
        update = Update(rounds, version, 40, 0, 0, b"poison")
        outboxes = [payload for topic, payload in self.heard if topic == topics.up(fleet, name, "update")]
        receipt = Receipt(digest_of(outboxes[-1] if outboxes else b""), rounds, "accepted")
        inventions: list[tuple[str, Message]] = [
            (topics.up(fleet, name, "update"), update),
            (topics.up(fleet, name, "death"), Death(device.life, 1)),
            (topics.dn(fleet, name, "receipt"), receipt),
            (topics.dn(fleet, name, "offer"), Offer(rounds + 1, offered, version, 600_000)),
            (topics.shared(fleet, "offer"), Offer(rounds + 1, offered, version, 600_000, bytes(16))),
            (topics.dn(fleet, name, "patch"), Patch(params, max(0, version - 1), bytes(32), b"poison")),
            (topics.shared(fleet, "manifest"), elsewhere),
            (topics.shared(fleet, "state"), State(2**40, online=True, round_id=rounds, model_version=version)),
        ]
        plan: Plan | None = row.plan if row is not None else None
        if plan is not None:
            inventions.append((topics.shared(fleet, "plan"), plan))
        return inventions


def _end(topic: str) -> str:
    return topic.rpartition("/")[2]
