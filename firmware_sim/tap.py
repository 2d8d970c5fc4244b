"""The tap: a listener of its own on the fleet's real wire, which takes nobody's word.

It connects as anyone could who may read all topics, keeps the sealed bytes of every update and every receipt, and
counts the bytes of all the rest. What it heard is checked with the public keys alone. While the MQTT server is down
the tap hears nothing, like everyone; and as it comes back at a time of its own, it may miss what others already say.
So it counts its own gaps, and the auditor looks elsewhere for what is not here.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wire import envelope, keys, link, topics
from wire.messages import Receipt, Update

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

CLIENT_ID = "tap"


@dataclass
class Heard:
    """What the tap heard so far.

    `sealed`: digest → (device, sealed update). `packet_of`: digest → bytes of the packet that it came in. `verdicts`:
    digest → verdicts in the order heard. `packet_bytes`: (direction, kind) → bytes of MQTT PUBLISH packets; what all
    devices read counts once for each of them.
    """

    sealed: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)
    packet_of: dict[bytes, int] = field(default_factory=dict)
    verdicts: dict[bytes, list[str]] = field(default_factory=dict)
    packet_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    packets: Counter[tuple[str, str]] = field(default_factory=Counter)
    forged_count: int = 0  # messages of which no signature, or the wrong one, was found
    gaps: int = 0  # how often the connection was lost

    def bytes_of(self, direction: str) -> int:
        """All bytes of one direction, up or dn."""
        return sum(count for (way, _), count in self.packet_bytes.items() if way == direction)


class Tap:
    """A connection to `url` that hears all of `fleet`, whose device ids and public keys are `devices`."""

    def __init__(
        self, url: str, fleet: str, devices: Mapping[str, str], coordinator: str, jitter: random.Random
    ) -> None:
        self._fleet = fleet
        self._verifiers = {device_id: keys.verifier(text) for device_id, text in devices.items()}
        self._verify_coordinator = keys.verifier(coordinator)
        self._heard = Heard()
        self._lock = threading.Lock()
        self._up = threading.Event()
        self._is_up = False
        self._url, self._jitter = url, jitter
        self._link = self._new_link()

    def start(self, timeout_s: float = 10.0) -> bool:
        """Connect; return whether every topic is subscribed."""
        self._link.start()
        return self._up.wait(timeout_s)

    def reconnect(self) -> None:
        """Connect afresh and at once, where the link would still wait: whoever comes back first may speak first."""
        self.stop()
        self._up.clear()
        self._link = self._new_link()
        self.start()

    def stop(self) -> None:
        """Disconnect; what was heard stays."""
        self._link.stop()

    def _new_link(self) -> link.Link:
        filters = [f"{topics.ROOT}/{self._fleet}/#"]
        return link.Link(self._url, CLIENT_ID, filters=filters, will=None, post=self._on_event, jitter=self._jitter)

    @property
    def heard(self) -> Heard:
        """A copy of what was heard so far."""
        with self._lock:
            mine = self._heard
            verdicts = {digest: list(said) for digest, said in mine.verdicts.items()}
            return Heard(
                dict(mine.sealed),
                dict(mine.packet_of),
                verdicts,
                mine.packet_bytes.copy(),
                mine.packets.copy(),
                mine.forged_count,
                mine.gaps,
            )

    def update(self, digest: bytes) -> Update | None:
        """The update whose sealed bytes have this digest; None if it was not heard."""
        with self._lock:
            device_id, sealed = self._heard.sealed.get(digest, ("", b""))
        if not sealed:
            return None
        message = envelope.unseal(sealed, topics.up(self._fleet, device_id, "update"), self._verifiers[device_id])
        assert isinstance(message, Update), "only updates are kept"
        return message

    def _on_event(self, event: link.LinkEvent) -> None:
        match event:
            case link.LinkUp():
                self._is_up = True
                self._up.set()
            case link.LinkDown():
                with self._lock:
                    self._heard.gaps += self._is_up
                self._is_up = False
            case link.Arrived():
                with self._lock:
                    self._on_arrived(event)

    def _on_arrived(self, arrived: link.Arrived) -> None:
        if arrived.retain:
            return  # said before, and counted then
        try:
            address = topics.parse(arrived.topic)
        except topics.TopicError:
            self._heard.forged_count += 1
            return
        readers = len(self._verifiers) if address.device_id == topics.ALL else 1
        self._heard.packets[address.direction, address.kind] += readers
        self._heard.packet_bytes[address.direction, address.kind] += readers * packet_bytes(arrived)
        if address.kind == "update":
            self._on_update(address, arrived)
        elif address.kind == "receipt":
            self._on_receipt(arrived)

    def _on_update(self, address: topics.Address, arrived: link.Arrived) -> None:
        verify = self._verifiers.get(address.device_id)
        try:
            message = envelope.unseal(arrived.payload, arrived.topic, verify) if verify is not None else None
        except envelope.EnvelopeError:
            message = None
        if isinstance(message, Update):
            digest = hashlib.sha256(arrived.payload).digest()
            self._heard.sealed[digest] = (address.device_id, arrived.payload)
            self._heard.packet_of[digest] = packet_bytes(arrived)
        else:
            self._heard.forged_count += 1

    def _on_receipt(self, arrived: link.Arrived) -> None:
        try:
            message = envelope.unseal(arrived.payload, arrived.topic, self._verify_coordinator)
        except envelope.EnvelopeError:
            self._heard.forged_count += 1
            return
        if isinstance(message, Receipt):
            self._heard.verdicts.setdefault(message.digest, []).append(message.verdict)


def packet_bytes(arrived: link.Arrived) -> int:
    """The size of the QoS 1 PUBLISH packet that carries a message (MQTT 3.1.1, section 3.3)."""
    remaining = 2 + len(arrived.topic.encode()) + 2 + len(arrived.payload)
    length_bytes = next(count for count in (1, 2, 3, 4) if remaining < 128**count)
    return 1 + length_bytes + remaining
