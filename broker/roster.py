"""The roster: what the operator calls devices, and what each of them took part in. A part of the store, with its SQL.

What a device finished, and what of it came late, is in its stored updates; what it was offered one by one is counted
here; whom a coin drew, anybody can throw again (`wire.coin`), so nothing is written for rounds that are offered to all.
"""

from __future__ import annotations

import itertools
from operator import itemgetter
from typing import TYPE_CHECKING

from msgspec import Struct

from broker.database import insert, select

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from broker.database import Database


class History(Struct, frozen=True):
    """What one device took part in, ever."""

    offered: int = 0  # one by one
    finished: int = 0  # updates stored
    late: int = 0  # of them those that a later version counts than the one that their own round made
    last_round_id: int = 0  # of those updates; 0: none yet


class Roster:
    """The tables `tags` and `invitations` of this database, and what `updates` says of devices."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def tags(self) -> dict[str, frozenset[str]]:
        """What each device is called that has a tag."""
        rows = self._db.rows("SELECT device_id, tag FROM tags ORDER BY device_id, tag")
        return {name: frozenset(tag for _, tag in each) for name, each in itertools.groupby(rows, itemgetter(0))}

    def call(self, device_id: str, tags: Iterable[str]) -> None:
        """Call a device by these tags, and by no others."""
        with self._db.transaction():
            self._db.run("DELETE FROM tags WHERE device_id = :device_id", {"device_id": device_id})
            for tag in sorted(set(tags)):
                row = {"device_id": device_id, "tag": tag}
                self._db.run(insert("tags", row), row)

    def forget(self, device_id: str) -> None:
        """The device is no longer in the fleet."""
        self._db.run("DELETE FROM tags WHERE device_id = :device_id", {"device_id": device_id})
        self._db.run("DELETE FROM invitations WHERE device_id = :device_id", {"device_id": device_id})

    def count_offers(self, round_id: int, device_ids: Collection[str]) -> None:
        """The round was offered to these, one by one."""
        then = "ON CONFLICT (device_id) DO UPDATE SET offered = invitations.offered + 1, last_round_id = :last_round_id"
        for device_id in device_ids:
            row = {"device_id": device_id, "offered": 1, "last_round_id": round_id}
            self._db.run(insert("invitations", row, then), row)

    def waits(self, device_id: str, round_id: int) -> bool:
        """Is this update of the device stored, and counted by no version yet?"""
        where = "updates WHERE device_id = :device_id AND round_id = :round_id AND counted_in IS NULL"
        return bool(self._db.rows(select("1", where), {"device_id": device_id, "round_id": round_id}))

    def took(self, rounds: int) -> dict[str, tuple[int, ...]]:
        """The rounds of each device's stored updates, among so many newest that were opened, in order."""
        rows = self._db.rows(
            "SELECT device_id, round_id FROM updates WHERE round_id > "
            "(SELECT COALESCE(MAX(round_id), 0) FROM rounds WHERE base_version > 0) - :rounds "
            "ORDER BY device_id, round_id",
            {"rounds": rounds},
        )
        return {name: tuple(round_id for _, round_id in each) for name, each in itertools.groupby(rows, itemgetter(0))}

    def newest_scores(self) -> tuple[int, dict[str, tuple[int, int]]]:
        """The newest version that devices reported on, and what each of them did: (correct, count); 0 where none."""
        rows = self._db.rows(
            "SELECT base_version, device_id, CAST(SUM(held_out_correct) AS BIGINT), "
            "CAST(SUM(held_out_count) AS BIGINT) FROM updates WHERE held_out_count > 0 AND base_version = "
            "(SELECT base_version FROM updates WHERE held_out_count > 0 ORDER BY base_version DESC LIMIT 1) "
            "GROUP BY base_version, device_id"
        )
        return rows[0][0] if rows else 0, {device_id: (correct, count) for _, device_id, correct, count in rows}

    def histories(self) -> dict[str, History]:
        """What each device took part in that was ever offered a round, or finished one."""
        offered = dict(self._db.rows("SELECT device_id, offered FROM invitations"))
        done = self._db.rows(
            "SELECT u.device_id, COUNT(*), CAST(SUM(CASE WHEN u.counted_in > r.model_version AND "
            "r.model_version > r.base_version THEN 1 ELSE 0 END) AS BIGINT), MAX(u.round_id) "
            "FROM updates u JOIN rounds r ON u.round_id = r.round_id GROUP BY u.device_id"
        )
        found = {name: History(count) for name, count in offered.items()}
        return found | {name: History(offered.get(name, 0), *counts) for name, *counts in done}
