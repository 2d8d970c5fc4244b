"""How simulated programs speak and hear: as the product does, and as its neighbours in time do.

A fleet is never of one version. A newer program writes a field more at the end of its messages, an older one leaves out
the last ones that have a default; both must be understood by today's (`wire.messages`). So a voice has a skew: -1, 0
or 1 versions from ours.

All devices of a world hear the same retained messages with the same key, so what one has made of their bytes is kept
for the others: the result of a pure function, and a third of a large fleet's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import cbor2
import msgspec

from broker import voice as coordinator_voice
from edge_agent import voice as device_voice
from edge_agent.effects import Publish
from wire import envelope, topics
from wire.messages import Plan, encode

if TYPE_CHECKING:
    from wire.envelope import Opened, Sign
    from wire.messages import Message

NEWS: Final = 7  # the value of a field that nobody knows yet
OPENED_MAX: Final = 64
_SHARED: Final = f"/{topics.ALL}/{topics.ALL}/"


class Device(device_voice.Identity, frozen=True, kw_only=True):
    """A device's voice and ear."""

    opened: dict[tuple[str, bytes], Opened]  # by all devices of the world
    skew: int = 0

    def say(self, message: Message, kind: str) -> Publish:
        """As a program of our skew would write it."""
        topic = topics.up(self.fleet, self.device_id, kind)
        return Publish(topic, seal(message, topic, self.sign, self.skew))

    def hear(self, topic: str, payload: bytes) -> Opened:
        """As the product does; what everyone hears is opened once."""
        if _SHARED not in topic:
            return super().hear(topic, payload)
        opened = self.opened.get((topic, payload))
        if opened is None:
            opened = super().hear(topic, payload)
            if len(self.opened) >= OPENED_MAX:
                self.opened.clear()
            self.opened[topic, payload] = opened
        return opened


class Coordinator(coordinator_voice.Identity, frozen=True):
    """The coordinator's voice."""

    skew: int = 0

    def seal(self, message: Message, topic: str) -> bytes:
        """As a program of our skew would write it; but for the plan, whose digest an offer names."""
        skew = 0 if isinstance(message, Plan) else self.skew
        return seal(self.with_url(message), topic, self.sign, skew)


def seal(message: Message, topic: str, sign: Sign, skew: int) -> bytes:
    """`envelope.seal` of a program that is `skew` versions newer."""
    if not skew:
        return envelope.seal(message, topic, sign)
    tree = cbor2.loads(encode(message))
    if skew > 0:
        tree.append(NEWS)
    else:
        fields = [field for field in msgspec.structs.fields(message) if not field.required]
        while fields and getattr(message, fields[-1].name) == fields.pop().default:
            tree.pop()
    return envelope.seal_encoded(cbor2.dumps(tree, canonical=True), topic, sign)
