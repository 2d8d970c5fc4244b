"""Presence: what the coordinator knows of this device between rounds. Births, the death as a will, telemetry. Pure.

A birth opens each connection and answers each new epoch. Telemetry says now and then how the device is; while the
coordinator has said nothing new to this device alone, a birth goes with it, since the first may be lost. New is what
nobody else can have brought about: an old offer may be sent again by anyone, and whoever sends rubbish in our name
makes the coordinator sign a receipt for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from wire.messages import Chunk, Death, Offer, Patch, Receipt, digest_of

if TYPE_CHECKING:
    from edge_agent.effects import Durable, Publish, Reading
    from edge_agent.voice import Identity
    from wire.messages import Message


class PresenceCheckpoint(Struct, frozen=True):
    """What presence remembers."""

    connection: int | None = None  # None: the link is down
    epoch: int = 0  # of the coordinator that was heard last
    due_ms: int = 0  # when telemetry is due
    birth_digest: bytes = b""  # of the last one
    sequence: int = 0
    answered: bool = False  # has the coordinator said something new to this device alone since the last telemetry?
    round_id: int = 0  # the newest that was offered in this run


class Presence:
    """One run's connection, epoch and telemetry clock."""

    def __init__(self, identity: Identity, telemetry_ms: int, start: PresenceCheckpoint) -> None:
        self.connection = start.connection
        self.epoch = start.epoch
        self.due_ms = start.due_ms
        self.birth_digest = start.birth_digest
        self._id = identity
        self._telemetry_ms = telemetry_ms
        self._sequence = start.sequence
        self._answered = start.answered
        self._round_id = start.round_id

    def checkpoint(self) -> PresenceCheckpoint:
        """What it remembers now."""
        return PresenceCheckpoint(
            self.connection, self.epoch, self.due_ms, self.birth_digest, self._sequence, self._answered, self._round_id
        )

    def start(self, now_ms: int) -> None:
        """Telemetry comes an interval after the start."""
        self.due_ms = now_ms + self._telemetry_ms

    def last_will(self, boot: int, connection: int) -> Publish:
        """The death that the MQTT server publishes if this connection breaks."""
        return self._id.say(Death(boot, connection), "death")

    def heard(self, message: Message, outbox_digest: bytes, *, fetching: bool) -> None:
        """Note whether this shows that the coordinator knows us, now."""
        match message:
            case Offer(round_id=round_id):
                self._answered |= round_id > self._round_id
                self._round_id = max(self._round_id, round_id)
            case Receipt(digest=digest, verdict=verdict):
                self._answered |= digest == outbox_digest and verdict != "unknown"
            case Chunk() | Patch():
                self._answered |= fetching
            case _:
                pass

    def birth(self, durable: Durable, reading: Reading) -> Publish:
        """We are here."""
        said = self._id.birth(durable, self.connection or 0, self.epoch, reading.num_examples)
        self.birth_digest = digest_of(said.payload)
        return said

    def telemetry(self, durable: Durable, work: tuple[str, str], reading: Reading, now_ms: int) -> list[Publish]:
        """How we are, if anyone hears it, and the time of the next one. `work`: what we do, and why not more."""
        self.start(now_ms)
        if self.connection is None:
            return []
        birth = [] if self._answered else [self.birth(durable, reading)]
        self._answered = False
        self._sequence += 1
        return [*birth, self._id.telemetry(durable.boot, self._sequence, work, reading)]
