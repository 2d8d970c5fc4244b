"""The account, by day and month: bytes sent and received, for what; core seconds trained; bytes written to the card.

The link's meter counts (wire.meter); this adds what earlier runs counted, which is kept in the file `traffic` of the
state directory. To spare the card it is written only at an orderly end, and after 4 kB or a minute of training, at most
every ten minutes: a power cut forgets what was counted since, and nothing else. Writes are counted by the kernel
(`host.written_bytes`) from the start of each process on; who adds them up here keeps them over restarts.

Days and months are those of UTC, by the clock of the host, which may be wrong:

- a clock that goes back, at each boot of a device without a battery for it, begins nothing anew;
- one that jumped far ahead and came back leaves a day (or month) that lies in the future: it ends after as much time
  as a day (or 31) that the agent ran, so that no budget is spent for ever.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec import Struct

from edge_agent import budget, flash, host
from wire.messages import Traffic
from wire.meter import RESENT, Carried, Meter

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.disk import Disk

FILE: Final = "traffic"
SAVE_S_MIN: Final = 600.0
SAVE_BYTES_MIN: Final = 4096
SAVE_CORE_S_MIN: Final = 60.0
MOVED_BYTES: Final = 32 * 1024
DAY_S: Final = 86_400.0
WEAR_S_MIN: Final = 3600.0  # before that a day's wear would be a guess
MONTH_S: Final = 31 * DAY_S
PURPOSES: Final = ("updates", "updates again", "model", "telemetry", "control", "transport")
MODEL_KINDS: Final = ("want", "chunk", "patch")
_UNIX_S_MAX: Final = 253_402_300_799.0  # the end of 9999, beyond which no date is written in ten characters


class Period(Struct, frozen=True):
    """A day or a month of the account."""

    date: str = ""  # 2026-11-20 or 2026-11; "": none has begun
    before: Traffic = Traffic()  # what was counted before it began
    core_s_before: float = 0.0
    written_before: int = 0
    behind_s: float = 0.0  # how long the agent has run while the clock showed an earlier one


class Account(Struct, frozen=True):
    """What is kept on flash."""

    total: Traffic = Traffic()
    day: Period = Period()
    month: Period = Period()
    update_digest: bytes = b""  # of the last update sent: after a restart it is the same bytes again
    core_s: float = 0.0  # that trainings have taken
    written: int = 0
    written_s: float = 0.0  # how long the agent ran while it was counted


class Sides(NamedTuple):
    """Bytes both ways."""

    up: int
    down: int


class Look(NamedTuple):
    """The account now. `*_left` are bytes, None where the owner set no limit."""

    total: Traffic
    today: Traffic
    this_month: Traffic
    day_left: int | None
    month_left: int | None
    core_s_today: float  # of trainings that have ended


class Row(Struct, frozen=True):
    """One purpose, or all of them together, as a status shows it. Both ways together in a day and a month."""

    purpose: str
    up: int
    down: int
    today: int
    this_month: int


class Wear(Struct, frozen=True):
    """Bytes written to the card, by the agent and its children."""

    total: int
    today: int
    this_month: int
    per_day: int | None  # of running, as it was so far; None in the first hour


class Shown(Struct, frozen=True):
    """The account in a status: a row for each purpose, one of all, and the owner's limits (0: none)."""

    rows: tuple[Row, ...] = ()
    update_bytes_max: int = 0
    day_bytes_max: int = 0
    month_bytes_max: int = 0
    card: Wear | None = None  # None: the kernel does not count


class Ledger:
    """The account of one agent. `meter` is to be given to its link; `damaged`: the file was, and the account is new.

    `disk` is the state directory. `written` tells what this run wrote so far, None where nobody counts; `wall` Unix
    seconds, `steady` seconds that only grow.
    """

    def __init__(
        self,
        disk: Disk,
        limits: budget.Limits,
        *,
        written: Callable[[], int | None] = host.written_bytes,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._disk, self._limits, self._written, self._wall, self._steady = disk, limits, written, wall, steady
        self._kept, self.damaged = _load(disk)
        self._earlier, self._written_earlier = self._kept.total, self._kept.written  # of earlier runs
        self.meter = Meter(self._kept.update_digest)
        self._looked_at_s = self._saved_at_s = steady()
        self._saved_core_s = self._kept.core_s
        self._moved_at: int | None = None  # what was left when `has_moved` said so
        self.look()  # what is counted from now on belongs to the day that the clock shows

    def look(self) -> Look:
        """All figures as they are now; begins a new day or month when the clock shows one."""
        now_s = self._steady()
        passed_s, self._looked_at_s = now_s - self._looked_at_s, now_s
        total = plus(self._earlier, by_purpose(self.meter.carried()))
        date = time.strftime("%Y-%m-%d", time.gmtime(min(max(self._wall(), 0.0), _UNIX_S_MAX)))
        core_s, (written, written_s) = self._kept.core_s, self._count_written(passed_s)
        new_day, new_month = (Period(text, total, core_s, written) for text in (date, date[:7]))
        day = moved_on(self._kept.day, new_day, DAY_S, passed_s)
        month = moved_on(self._kept.month, new_month, MONTH_S, passed_s)
        self._kept = msgspec.structs.replace(self._kept, day=day, month=month, written=written, written_s=written_s)
        today, this_month = minus(total, day.before), minus(total, month.before)
        left = (_left(self._limits.day_bytes_max, today), _left(self._limits.month_bytes_max, this_month))
        return Look(total, today, this_month, *left, core_s - day.core_s_before)

    def train(self, core_s: float) -> None:
        """A training has ended that took so much of a core."""
        self._kept = msgspec.structs.replace(self._kept, core_s=self._kept.core_s + core_s)

    def has_moved(self) -> bool:
        """Whether what is left changed so much since this last said so that a decision may hang on it."""
        if not self._limits.day_bytes_max and not self._limits.month_bytes_max:
            return False
        look, before = self.look(), self._moved_at
        left = min(count for count in (look.day_left, look.month_left) if count is not None)
        spent = left < budget.UPDATE_BYTES_MIN
        if before is not None and abs(left - before) < MOVED_BYTES and spent == (before < budget.UPDATE_BYTES_MIN):
            return False
        self._moved_at = left
        return True

    def shown(self) -> Shown:
        """The account by purpose, and a last row of all."""
        look, limits = self.look(), self._limits
        parts = (by_side(part) for part in (look.total, look.today, look.this_month))
        rows = [
            Row(purpose, in_all.up, in_all.down, sum(today), sum(month))
            for purpose, in_all, today, month in zip(PURPOSES, *parts, strict=True)
        ]
        sums = (sum(getattr(row, name) for row in rows) for name in ("up", "down", "today", "this_month"))
        bounds = (limits.update_bytes_max, limits.day_bytes_max, limits.month_bytes_max)
        return Shown((*rows, Row("all", *sums)), *bounds, self._wear())

    def _wear(self) -> Wear | None:
        kept = self._kept
        if self._written() is None:
            return None
        today, this_month = (kept.written - period.written_before for period in (kept.day, kept.month))
        per_day = int(kept.written / kept.written_s * DAY_S) if kept.written_s >= WEAR_S_MIN else None
        return Wear(kept.written, today, this_month, per_day)

    def _count_written(self, passed_s: float) -> tuple[int, float]:
        """(what was written in all, in how many seconds of running)."""
        kept, written = self._kept, self._written()
        if written is None:
            return kept.written, kept.written_s
        # a child that ended between two readings is in neither for a moment: the count never goes back
        return max(kept.written, self._written_earlier + written), kept.written_s + passed_s

    def save_if_due(self) -> None:
        """Write the file if that is worth it. Raises OSError."""
        late = self._steady() - self._saved_at_s >= SAVE_S_MIN
        moved = bytes_of(self.look().total) - bytes_of(self._kept.total) >= SAVE_BYTES_MIN
        if late and (moved or self._kept.core_s - self._saved_core_s >= SAVE_CORE_S_MIN):
            self.save()

    def save(self) -> None:
        """Write the file. Raises OSError."""
        self._saved_at_s, self._saved_core_s = self._steady(), self._kept.core_s
        total, digest = self.look().total, self.meter.update_digest
        self._kept = msgspec.structs.replace(self._kept, total=total, update_digest=digest)
        flash.replace_file(self._disk, FILE, msgspec.json.format(msgspec.json.encode(self._kept)))


def by_purpose(carried: Carried) -> Traffic:
    """What the link counted by kind of message, as what it was for."""
    sent, received = dict(carried.sent), dict(carried.received)
    model_up = sum(sent.pop(kind, 0) for kind in MODEL_KINDS)
    model_down = sum(received.pop(kind, 0) for kind in MODEL_KINDS)
    return Traffic(
        update_up=sent.pop("update", 0),
        retry_up=sent.pop(RESENT, 0),
        model_up=model_up,
        model_down=model_down + carried.fetched,
        telemetry_up=sent.pop("telemetry", 0),
        control_up=sum(sent.values()),
        control_down=sum(received.values()),
        transport_up=carried.transport_sent,
        transport_down=carried.transport_received,
    )


def by_side(traffic: Traffic) -> list[Sides]:
    """(up, down) of each of PURPOSES."""
    return [
        Sides(traffic.update_up, 0),
        Sides(traffic.retry_up, 0),
        Sides(traffic.model_up, traffic.model_down),
        Sides(traffic.telemetry_up, 0),
        Sides(traffic.control_up, traffic.control_down),
        Sides(traffic.transport_up, traffic.transport_down),
    ]


def bytes_of(traffic: Traffic) -> int:
    """All of them, both ways."""
    return sum(msgspec.structs.astuple(traffic))


def plus(one: Traffic, other: Traffic) -> Traffic:
    """The sum, purpose by purpose."""
    pairs = zip(msgspec.structs.astuple(one), msgspec.structs.astuple(other), strict=True)
    return Traffic(*(a + b for a, b in pairs))


def minus(total: Traffic, before: Traffic) -> Traffic:
    """What came since `before`, purpose by purpose, never below 0: the transport of a living connection may shrink."""
    pairs = zip(msgspec.structs.astuple(total), msgspec.structs.astuple(before), strict=True)
    return Traffic(*(max(0, a - b) for a, b in pairs))


def moved_on(period: Period, fresh: Period, length_s: float, passed_s: float) -> Period:
    """The period after the agent ran for `passed_s` more: `fresh`, which begins now, if its date is later."""
    behind_s = period.behind_s + passed_s
    if fresh.date > period.date or (fresh.date < period.date and behind_s >= length_s):
        return fresh
    return msgspec.structs.replace(period, behind_s=behind_s if fresh.date < period.date else 0.0)


def _left(bytes_max: int, used: Traffic) -> int | None:
    return max(0, bytes_max - bytes_of(used)) if bytes_max else None


def _load(disk: Disk) -> tuple[Account, bool]:
    """(what the file holds, whether it was damaged)."""
    data = disk.read(FILE)
    if data is None:
        return Account(), False
    try:
        return msgspec.json.decode(data, type=Account), False
    except msgspec.MsgspecError:
        return Account(), True
