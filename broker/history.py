"""What a store says of a fleet's past, for a report: every closed round, who was counted, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from broker.field import Fading, fading
from broker.groups import groups_of

if TYPE_CHECKING:
    from broker.store import Store
    from wire.messages import Traffic

PURPOSES: Final = ("update", "retry", "model", "telemetry", "control", "transport")


class Counted(msgspec.Struct, frozen=True):
    """One update that a version counts: whose, of which round, its payload's size, its staleness, and its work."""

    device_id: str
    round_id: int
    payload_bytes: int
    staleness: int = 0
    passes: int = 0  # examples, each as often as an epoch went over it


class Step(msgspec.Struct, frozen=True):
    """One closed round and the version that it made."""

    round_id: int
    version: int
    accuracy: float | None
    members: tuple[Counted, ...]
    bytes_up: int | None = None  # MQTT bytes from devices; None where nobody measured
    bytes_down: int | None = None
    rolled_back: bool = False  # the version is not the fleet's any more


class History(msgspec.Struct, frozen=True):
    """What the store says of a fleet, oldest round first."""

    devices: tuple[str, ...]
    steps: tuple[Step, ...]
    purposes: tuple[tuple[str, int], ...] = ()  # bytes of all devices since they were enrolled, as they count them
    refusals: tuple[tuple[int, str, int], ...] = ()  # (day since 1970, reason, how many)
    fading: tuple[Fading, ...] = ()  # how good it is in the field: the whole fleet first, then each group
    example_core_s: float | None = None  # that one pass over an example takes of a core here; None: not known


class Mark(msgspec.Struct, frozen=True):
    """Something that happened during a round, drawn as a line: what was killed."""

    round_id: int
    what: str


class Extra(msgspec.Struct, frozen=True):
    """What the store does not know."""

    title: str = ""
    accuracy_start: float | None = None
    accuracy_central: float | None = None
    marks: tuple[Mark, ...] = ()
    wire_bytes: dict[int, tuple[int, int]] = {}  # round → (up, down), measured elsewhere than at the coordinator
    update_bytes: tuple[int, ...] = ()  # whole MQTT payloads; else the payloads in the store
    rows: tuple[tuple[str, str], ...] = ()  # the summary's table
    story: tuple[str, ...] = ()  # sentences below it


def read_history(store: Store) -> History:
    """What the store says of every closed round. Devices that left the fleet are there if they were counted."""
    members: dict[int, list[Counted]] = {}
    updates, epochs = store.updates(), {row.round_id: row.plan.epochs for row in store.rounds()}
    for update in updates:
        if update.counted_in is not None:
            staleness, passes = update.counted_in - 1 - update.base_version, update.weight * epochs[update.round_id]
            counted = Counted(update.device_id, update.round_id, update.payload_bytes, staleness, passes)
            members.setdefault(update.counted_in, []).append(counted)
    steps = [
        Step(
            row.round_id,
            row.model_version,
            row.accuracy,
            tuple(members.get(row.model_version, ())),
            row.bytes_up,
            row.bytes_down,
            row.stage == "rolled back",
        )
        for row in store.versions()
        if row.round_id
    ]
    devices = set(store.fleet()) | {member.device_id for step in steps for member in step.members}
    told = [account for account, _when in store.traffic().values()]
    purposes = [(name, sum(_bytes_for(name, account) for account in told)) for name in PURPOSES if told]
    faded = tuple(fading(updates, groups_of(store.roster.tags())))
    return History(tuple(sorted(devices)), tuple(steps), tuple(purposes), tuple(store.refusals.by_day()), faded)


def _bytes_for(purpose: str, account: Traffic) -> int:
    return sum(value for name, value in msgspec.structs.asdict(account).items() if name.startswith(f"{purpose}_"))
