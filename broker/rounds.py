"""One round, as a pure machine: who was invited, who has reported, and when it is time to close.

    OPEN ──enough updates, or some, and nobody left to wait for or time is up──▶ CLOSING ──Aggregated──▶ closed
      └──time is up, too few updates──▶ OPEN again, for as long again, with a new draw among who is there
      └──the operator no longer wants it──▶ closed, without a new version; while CLOSING the wish waits for the sum

How many are enough is what makes a round buffered (FedBuff, Nguyen et al. 2022): it closes with the K-th update, the
next one opens at once, and whoever still trains goes on. A synchronous round may ask for enough, too: then it has
invited more than it needs, and waits for the fastest of them.

An update that comes after its round has closed is late, not lost: it is stored, receipted, and counted by the
next round to close, with a smaller weight for its staleness.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from broker.effects import Pending, UpdateRow
from wire.messages import digest_of, encode

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from broker.effects import RoundRow
    from wire.messages import Manifest, Plan, Update

# 16/sqrt(1 + staleness), rounded: FedBuff's weight (Nguyen et al. 2022, arXiv:2106.06639) as integers, so that
# every machine agrees.
STALENESS_SIXTEENTHS: Final = (16, 11, 9, 8, 7, 7, 6, 6, 5, 5, 5, 5, 4, 4, 4, 4)
ROUNDS_REMEMBERED: Final = 1024  # an update of an older round is stale; buffered ones pass quickly
WEIGHT_TOTAL_MAX: Final = 2**26  # what one exact sum holds (engine.ring)


class Round:
    """The open round. Holds no bytes: the updates are in the store. Every question is answered without a search."""

    def __init__(self, row: RoundRow, now_ms: int) -> None:
        self.row = row
        self.plan_digest = digest_of(encode(row.plan))
        self.closing = False
        self.is_unwanted = False  # the operator's wish; it has no effect while the round is closing
        self.ends_at_ms = now_ms + row.lasts_ms
        self._invited: set[str] = set()
        self._reported: set[str] = set()
        self._awaited: set[str] = set()  # invited, present, and not reported

    @property
    def invited(self) -> AbstractSet[str]:
        """Every device that holds a place in the cohort."""
        return self._invited

    def invite(self, device_id: str) -> None:
        """Remember that the device, which is there, was offered this round."""
        self._invited.add(device_id)
        self._awaited.add(device_id)

    def report(self, device_id: str) -> None:
        """Remember that the device's update of this round is stored; there is nothing to invite it to any more."""
        self._invited.add(device_id)
        self._reported.add(device_id)
        self._awaited.discard(device_id)

    @property
    def asked_count(self) -> int:
        """How many have reported, or may still be waited for: invited and there."""
        return len(self._reported | self._awaited)

    def has_reported(self, device_id: str) -> bool:
        """Is the device's update of this round stored?"""
        return device_id in self._reported

    def left(self, device_id: str) -> None:
        """The device is gone: nobody waits for it until it is back."""
        self._awaited.discard(device_id)

    def all_left(self) -> None:
        """Our own link was lost: nobody is known to be there."""
        self._awaited.clear()

    def may_close(self, now_ms: int, pending_count: int) -> bool:
        """Is it time? Never with fewer than `updates_min` updates, late ones included."""
        if self.closing or pending_count < self.row.updates_min:
            return False
        if 0 < self.row.updates_enough <= pending_count:
            return True
        return now_ms >= self.ends_at_ms or not self._awaited

    def lacks_somebody(self) -> bool:
        """Is a device that was invited, and is there, still to report?"""
        return bool(self._awaited)

    def extend(self, now_ms: int) -> None:
        """Wait as long again, from now."""
        self.ends_at_ms = now_ms + self.row.lasts_ms

    def draw_again(self) -> None:
        """Too few came: whoever was invited and has not reported no longer holds a place in the cohort."""
        self._invited = set(self._reported)
        self._awaited.clear()


class Book:
    """The rounds that were opened, the newest of them, and those that wait."""

    def __init__(self, rows: Iterable[RoundRow]) -> None:
        rows = _in_order(rows)
        self.opened = {row.round_id: row for row in rows if row.status != "waiting"}
        self._waiting = [row for row in rows if row.status == "waiting"]

    def note(self, row: RoundRow) -> None:
        """It was opened, or is over, or draws more."""
        self.opened[row.round_id] = row
        for round_id in sorted(self.opened)[:-ROUNDS_REMEMBERED]:
            del self.opened[round_id]

    def read(self, waiting: Iterable[RoundRow], unwanted: AbstractSet[int]) -> list[RoundRow]:
        """Take up what the operator wants; those of the waiting that he no longer does, which end before they open."""
        known = self.opened.keys() | {row.round_id for row in self._waiting}
        asked = [*self._waiting, *(row for row in waiting if row.round_id not in known)]
        self._waiting = _in_order(row for row in asked if row.round_id not in unwanted)
        return [replace(row, status="closed") for row in asked if row.round_id in unwanted]

    def take(self, newest: Manifest, *, to_try: bool) -> tuple[RoundRow | None, list[RoundRow]]:
        """The next round, to be opened on the `newest` version; None where none may be. And trials that end before.

        A trial is for a candidate, where there is one `to_try`, and nothing else is built on that.
        """
        moot = [] if to_try else list(itertools.takewhile(lambda row: row.is_trial, self._waiting))
        self._waiting = self._waiting[len(moot) :]
        ended = [replace(row, status="closed") for row in moot]
        if not self._waiting or self._waiting[0].is_trial is not to_try:
            return None, ended
        row = self._waiting.pop(0)
        # the operator's wish is older than the model that it is carried out on
        plan = replace(row.plan, scale_epoch=newest.scale_epoch)
        return replace(row, status="open", plan=plan, base_version=newest.model_version), ended


def stored(device_id: str, update: Update, digest: bytes, plan: Plan) -> UpdateRow:
    """The row of an accepted update, `digest` that of its sealed bytes: no device weighs more than the plan allows."""
    weight = min(update.num_examples, plan.num_examples_max)
    score = update.held_out_correct, update.held_out_count
    return UpdateRow(device_id, update.round_id, update.base_version, weight, digest, *score, update.payload)


def members(pending: Iterable[Pending], model_version: int) -> tuple[Pending, ...]:
    """What a closing round counts, weighed, in the order of (device_id, round_id).

    Everything that waits, unless it is more than one exact sum holds: then the oldest, and the next round has more.
    """
    chosen: list[Pending] = []
    total = 0
    for waiting in sorted(pending, key=lambda p: (p.round_id, p.device_id)):
        weighed = weigh(waiting, model_version)
        total += weighed.weight
        if total > WEIGHT_TOTAL_MAX:
            break
        chosen.append(weighed)
    return tuple(sorted(chosen, key=lambda p: (p.device_id, p.round_id)))


def weigh(pending: Pending, model_version: int) -> Pending:
    """The same update with the weight that its staleness leaves it; never below one."""
    staleness = max(0, model_version - pending.base_version)
    sixteenths = STALENESS_SIXTEENTHS[min(staleness, len(STALENESS_SIXTEENTHS) - 1)]
    weight = max(1, pending.weight * sixteenths // 16)
    return Pending(pending.device_id, pending.round_id, pending.base_version, weight)


def _in_order(rows: Iterable[RoundRow]) -> list[RoundRow]:
    """Rounds as they are to be opened: by number."""
    return sorted(rows, key=lambda row: row.round_id)
