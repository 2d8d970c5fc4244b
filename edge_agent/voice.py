"""How a device speaks and whom it hears: signing what it says, believing only its coordinator.

Pure, as the machine that uses it: the key and the check are arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_agent.effects import Publish
from wire import envelope, topics
from wire.messages import Birth, Telemetry, Update, fit_reason

if TYPE_CHECKING:
    from edge_agent.effects import Durable, Job, Reading, Trained
    from wire.messages import Message


class NotBelieved(Exception):  # noqa: N818 - nothing went wrong: somebody said something
    """What arrived is not for us, or not from our coordinator. `reason` is one word for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Identity(msgspec.Struct, frozen=True):
    """Who this device is, how it signs and whom it believes."""

    fleet: str
    device_id: str
    sign: envelope.Sign
    verify_coordinator: envelope.Verify
    software: str = "edge-agent"
    runtime: str = ""  # the model runtime that is installed (`edge_agent.runtime`); empty: none is known

    def say(self, message: Message, kind: str) -> Publish:
        """Sign `message` for our own topic of its kind. Raises MessageError when it breaks a bound of the contract."""
        topic = topics.up(self.fleet, self.device_id, kind)
        return Publish(topic, envelope.seal(message, topic, self.sign))

    def birth(self, durable: Durable, connection: int, epoch: int, num_examples: int) -> Publish:
        """We are here, and this is what we have."""
        birth = Birth(durable.boot, connection, epoch, durable.model_version, num_examples, self.software)
        return self.say(birth, "birth")

    def update(self, job: Job, trained: Trained) -> bytes:
        """The sealed update that a child's result makes; raises ValueError for what no message can carry."""
        update = Update(
            round_id=job.round_id,
            base_version=job.base_version,
            num_examples=trained.num_examples,
            held_out_correct=trained.held_out_correct,
            held_out_count=trained.held_out_count,
            payload=trained.payload,
            trial=trained.trial,
        )
        return self.say(update, "update").payload

    def telemetry(self, boot: int, sequence: int, work: tuple[str, str], reading: Reading) -> Publish:
        """How we are. `work` is what we do, and why not more."""
        telemetry = Telemetry(
            boot=boot,
            sequence=sequence,
            work=work[0],
            reason=fit_reason(work[1]),
            bytes_up=reading.bytes_up,
            bytes_down=reading.bytes_down,
            temperature_c=reading.temperature_c,
            battery_rate=reading.battery_rate,
            traffic=reading.traffic,
        )
        return self.say(telemetry, "telemetry")

    def hear(self, topic: str, payload: bytes) -> envelope.Opened:
        """The message in bytes that arrived on `topic`; raises NotBelieved for all others than our coordinator's."""
        try:
            address = topics.parse(topic)
            opened = envelope.open_sealed(payload, topic, self.verify_coordinator)
        except topics.TopicError as error:
            raise NotBelieved("topic") from error
        except envelope.EnvelopeError as error:
            raise NotBelieved(error.reason) from error
        if address.fleet != self.fleet or address.device_id not in (self.device_id, topics.ALL):
            raise NotBelieved("address")
        return opened
