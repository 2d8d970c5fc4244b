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

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from broker.effects import Pending
from wire.messages import digest_of, encode

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from broker.effects import RoundRow

# 16/sqrt(1 + staleness), rounded: FedBuff's weight (Nguyen et al. 2022, arXiv:2106.06639) as integers, so that
# every machine agrees.
STALENESS_SIXTEENTHS: Final = (16, 11, 9, 8, 7, 7, 6, 6, 5, 5, 5, 5, 4, 4, 4, 4)
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


def in_order(rows: Iterable[RoundRow]) -> list[RoundRow]:
    """Rounds as they are to be opened: by number."""
    return sorted(rows, key=lambda row: row.round_id)


def withdraw(waiting: list[RoundRow], unwanted: AbstractSet[int]) -> tuple[list[RoundRow], list[RoundRow]]:
    """Divide rounds that wait into those that still do, in order, and the unwanted, which end before they open."""
    kept = in_order(row for row in waiting if row.round_id not in unwanted)
    return kept, [replace(row, status="closed") for row in waiting if row.round_id in unwanted]


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
