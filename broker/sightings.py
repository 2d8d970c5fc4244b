"""Sightings: what devices said of themselves, last. A part of the store, with its SQL.

None of it is worth a disk flush: a row that is lost comes back with the next birth or telemetry.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from broker.database import insert, select
from broker.rows import SeenRow
from wire.messages import Traffic

if TYPE_CHECKING:
    from broker.database import Database
    from broker.effects import StoreSeen

_SEEN: Final = ", ".join(SeenRow.__struct_fields__)
_MERGE: Final = """
    ON CONFLICT (device_id) DO UPDATE SET present = :present, seen_unix_s = :seen_unix_s,
        software = CASE WHEN :software <> '' THEN :software ELSE sightings.software END,
        num_examples = CASE WHEN :software <> '' THEN :num_examples ELSE sightings.num_examples END,
        model_version = CASE WHEN :software <> '' THEN :model_version ELSE sightings.model_version END,
        work = CASE WHEN :work <> '' THEN :work ELSE sightings.work END,
        reason = CASE WHEN :work <> '' THEN :reason ELSE sightings.reason END
"""


def put(database: Database, seen: StoreSeen) -> None:
    """Keep what a device said: a birth brings software and numbers, telemetry work and reason, a death neither."""
    now = time.time()
    row = {**msgspec.structs.asdict(seen), "present": int(seen.present), "seen_unix_s": now}
    del row["traffic"]
    database.run(insert("sightings", row, _MERGE), row)
    if seen.traffic is not None:
        told = {**msgspec.structs.asdict(seen.traffic), "told_unix_s": now}
        newest = ", ".join(f"{name} = excluded.{name}" for name in told)
        account = {"device_id": seen.device_id, **told}
        database.run(insert("traffic", account, f"ON CONFLICT (device_id) DO UPDATE SET {newest}"), account)


def seen(database: Database) -> list[SeenRow]:
    """What was last heard of each device, in the order of ids."""
    rows = database.rows(select(_SEEN, "sightings ORDER BY device_id"))
    return [SeenRow(device_id, bool(present), *rest) for device_id, present, *rest in rows]


def traffic(database: Database) -> dict[str, tuple[Traffic, float]]:
    """(the last account of bytes that a device gave of itself, when), in the order of ids."""
    columns = f"device_id, {', '.join(Traffic.__struct_fields__)}, told_unix_s"
    rows = database.rows(select(columns, "traffic ORDER BY device_id"))
    return {device_id: (Traffic(*counts), told) for device_id, *counts, told in rows}
