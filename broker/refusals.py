"""What was not believed, by day and reason, over the runs of the coordinator. A part of the store, with its SQL.

The machine counts the refusals of its run. `Tally` hands over what came since it was last asked, so that a flood of
forged messages costs the store one small write a minute, and not one each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.database import insert

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.database import Database

DAY_S: Final = 86_400
DAYS_KEPT: Final = 366
PAUSE_S: Final = 60.0  # between two writes: a crash forgets no more


class Refusals:
    """The table `refusals` of this database. Days are of UTC, counted from 1970."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, day: int, counts: Mapping[str, int]) -> None:
        """So many more were refused on that day, by reason; it need not be on disk on return. Old days go."""
        then = "ON CONFLICT (day, reason) DO UPDATE SET count = refusals.count + excluded.count"
        with self._db.transaction(flush=False):
            for reason, count in counts.items():
                row = {"day": day, "reason": reason, "count": count}
                self._db.run(insert("refusals", row, then), row)
            self._db.run("DELETE FROM refusals WHERE day <= :old", {"old": day - DAYS_KEPT})

    def by_day(self) -> list[tuple[int, str, int]]:
        """(day, reason, how many), oldest first."""
        return [(day, reason, count) for day, reason, count in self._db.rows(_BY_DAY)]


_BY_DAY: Final = "SELECT day, reason, count FROM refusals ORDER BY day, reason"


class Tally:
    """What the machine refused and the store does not know yet. `refused_count` is the machine's own: it only grows."""

    def __init__(self, refused_count: Mapping[str, int]) -> None:
        self._refused_count = refused_count
        self._told: dict[str, int] = {}

    def fresh(self) -> dict[str, int]:
        """What came since this was last asked, by reason."""
        counts = dict(self._refused_count)
        more = {reason: count - self._told.get(reason, 0) for reason, count in counts.items()}
        self._told = counts
        return {reason: count for reason, count in more.items() if count}
