"""What the store gives back to those who only read: commands, reports, the loop's own log; and a round as a row.

Up is from the devices to the coordinator, as in the topics; down is towards them.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct, json

from broker.effects import Choice, Ring, RoundRow
from wire.messages import Plan, decode, encode

ROUND: Final = ", ".join(RoundRow.__struct_fields__)


class VersionRow(Struct, frozen=True):
    """One model version and what it took to make it."""

    model_version: int
    parent_version: int  # 0: there is none
    round_id: int  # 0: no round made it
    accuracy: float | None  # on the coordinator's own held-out set, where it has one
    loss: float | None
    members: int  # updates counted in it
    created_unix_s: float
    bytes_up: int  # MQTT bytes that reached the coordinator while its round was open
    bytes_down: int  # MQTT bytes that the coordinator sent meanwhile
    seconds: float
    params_digest: bytes
    stage: str  # candidate, promoted, or rolled back
    stage_why: str  # why it is; empty where nobody tried it


class StoredUpdate(Struct, frozen=True):
    """One stored update, without its payload."""

    device_id: str
    round_id: int
    base_version: int
    weight: int
    digest: bytes
    payload_bytes: int
    counted_in: int | None  # the version that counts it; None: not yet
    held_out_correct: int  # of the base version, on the device's own held-out examples
    held_out_count: int


class SeenRow(Struct, frozen=True):
    """What was last heard of a device."""

    device_id: str
    present: bool
    software: str
    num_examples: int
    model_version: int
    work: str
    reason: str
    seen_unix_s: float


class Cost(Struct, frozen=True):
    """What a round took."""

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0


def columns_of(round_: RoundRow) -> dict[str, object]:
    """A round as the table of rounds holds it."""
    return {
        **msgspec.structs.asdict(round_),
        "plan": encode(round_.plan),
        "choice": json.encode(round_.choice).decode(),
        "ring": "" if round_.ring is None else json.encode(round_.ring).decode(),
    }


def round_of(row: tuple[Any, ...]) -> RoundRow:
    """The round in a row of the columns ROUND."""
    values = dict(zip(RoundRow.__struct_fields__, row, strict=True))
    plan = decode(bytes(values["plan"]))
    assert isinstance(plan, Plan), "the store keeps plans in the column of plans"
    values["plan"], values["nonce"] = plan, bytes(values["nonce"] or b"")
    values["choice"] = json.decode(values["choice"], type=Choice)
    values["ring"] = json.decode(values["ring"], type=Ring) if values["ring"] else None
    return RoundRow(**values)
