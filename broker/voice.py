"""How the coordinator speaks: signing what it says to one device, or to all, retained.

Pure, as the machine that uses it: the key and the checks are arguments.
"""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING

import msgspec

from broker.effects import Publish
from wire import envelope, topics
from wire.messages import Manifest, Plan, Receipt, Verdict, fit_reason, kind_of

if TYPE_CHECKING:
    from wire.messages import Message


class Identity(msgspec.Struct, frozen=True):
    """Which fleet, how the coordinator signs, how a public key becomes a verifier, what an update must satisfy.

    `url` goes into every manifest: where a version's files are besides, by HTTP. It is no part of the version, so
    another one needs no new version to be heard.
    """

    fleet: str
    sign: envelope.Sign
    verifier: Callable[[str], envelope.Verify]
    admit: Callable[[bytes, Plan], str | None]  # update payload → why it is refused, None when it is good
    url: str = ""
    holds: Callable[[str, bytes, Plan], bool] = lambda *_: True  # device, payload, plan → is there what it builds on?

    def say(self, device_id: str, message: Message) -> Publish:
        """Tell one device."""
        topic = topics.dn(self.fleet, device_id, kind_of(message))
        return Publish(topic, self.seal(message, topic))

    def share(self, message: Message) -> Publish:
        """Tell everyone, those who come later as well."""
        topic = topics.shared(self.fleet, kind_of(message))
        return Publish(topic, self.seal(message, topic), retain=True)

    def seal(self, message: Message, topic: str) -> bytes:
        """The bytes of a message, as they are said."""
        return envelope.seal(self.with_url(message), topic, self.sign)

    def with_url(self, message: Message) -> Message:
        """A manifest with where its files are besides; any other message as it is."""
        return msgspec.structs.replace(message, url=self.url) if isinstance(message, Manifest) else message

    def receipt(self, device_id: str, digest: bytes, round_id: int, verdict: Verdict, reason: str) -> Publish:
        """Tell a device what became of the message whose sealed bytes have this digest."""
        return self.say(device_id, Receipt(digest, round_id, verdict, fit_reason(reason)))
