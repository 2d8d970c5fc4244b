"""One round, as a pure machine: who was invited, who has reported, and when it is time to close.

    OPEN ──enough updates, and nobody left to wait for or time is up──▶ CLOSING ──Aggregated──▶ closed
      └──time is up, too few updates──▶ OPEN again, for as long again

An update that comes after its round has closed is late, not lost: it is stored, receipted, and counted by the
next round to close, with a smaller weight for its staleness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.effects import Pending

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.effects import RoundRow

# 16/sqrt(1 + staleness), rounded: FedBuff's weight (Nguyen et al. 2022, arXiv:2106.06639) as integers, so that
# every machine agrees.
STALENESS_SIXTEENTHS: Final = (16, 11, 9, 8, 7, 7, 6, 6, 5, 5, 5, 5, 4, 4, 4, 4)


class Round:
    """The open round. Holds no bytes: the updates are in the store."""

    def __init__(self, row: RoundRow, now_ms: int) -> None:
        self.row = row
        self.closing = False
        self.ends_at_ms = now_ms + row.lasts_ms
        self._invited: set[str] = set()
        self._reported: set[str] = set()

    @property
    def invited(self) -> frozenset[str]:
        """Every device that was offered this round."""
        return frozenset(self._invited)

    def invite(self, device_id: str) -> None:
        """Remember that the device was offered this round."""
        self._invited.add(device_id)

    def report(self, device_id: str) -> None:
        """Remember that the device's update of this round is stored."""
        self._reported.add(device_id)

    def has_reported(self, device_id: str) -> bool:
        """Is the device's update of this round stored?"""
        return device_id in self._reported

    def missing(self, present: Iterable[str]) -> set[str]:
        """The invited devices that are there and have not reported."""
        return (self._invited & set(present)) - self._reported

    def may_close(self, now_ms: int, present: Iterable[str], pending_count: int) -> bool:
        """Is it time? Never with fewer than `updates_min` updates, late ones included."""
        if self.closing or pending_count < self.row.updates_min:
            return False
        return now_ms >= self.ends_at_ms or not self.missing(present)

    def extend(self, now_ms: int) -> None:
        """Too few came: wait as long again."""
        self.ends_at_ms = now_ms + self.row.lasts_ms


def weigh(pending: Pending, model_version: int) -> Pending:
    """The same update with the weight that its staleness leaves it; never below one."""
    staleness = max(0, model_version - pending.base_version)
    sixteenths = STALENESS_SIXTEENTHS[min(staleness, len(STALENESS_SIXTEENTHS) - 1)]
    weight = max(1, pending.weight * sixteenths // 16)
    return Pending(pending.device_id, pending.round_id, pending.base_version, weight)
