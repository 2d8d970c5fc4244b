"""Who is invited to a round: the eligible among the present, by lot, and by a coin that anyone can throw again.

A synchronous round invites its devices one by one, drawn among those who are there. A buffered one is offered to all at
once, in one retained message, and the coin (`wire.coin`) decides: the coordinator only sets the share, so large that as
many as the round wants are drawn of those who are there. Either draw is blind: how fast a device is, and how often it
came too late, is no part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from wire import coin
from wire.limits import COIN_SIDES
from wire.messages import Offer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet
    from random import Random

    from broker.effects import RoundRow

NONCE_BYTES: Final = 16
SPREAD_MS: Final = 20  # a device: fifty of those who are drawn begin in a second
AT_ONCE: Final = 10  # so few need not be spread
HASTE_MAX: Final = 2**16  # how many times the share that the round's size alone asks for


def with_coin(row: RoundRow, there: int, haste: int, chance: Random) -> RoundRow:
    """The round with a nonce of its own, and the share that draws as many as it wants of those `there`, `haste` times.

    `haste` is 1 unless rounds before came to their end with too few.
    """
    draw = COIN_SIDES if row.cohort_max == 0 else min(COIN_SIDES, haste * row.cohort_max * COIN_SIDES // max(1, there))
    return replace(row, nonce=chance.randbytes(NONCE_BYTES), draw=draw)


def with_larger_share(row: RoundRow) -> RoundRow:
    """Too few came: the same coins, and twice the share."""
    return replace(row, draw=min(COIN_SIDES, 2 * row.draw))


def haste_after(row: RoundRow, counted: int, haste: int) -> int:
    """The haste of the next round, when this one has counted so many: twice, or half, but never below 1."""
    if counted < row.updates_enough:
        return min(HASTE_MAX, 2 * haste)
    return max(1, haste // 2)


def has_drawn(row: RoundRow, fleet: str, device_id: str) -> bool:
    """Is the device's coin below the round's share? True for a round without a coin."""
    return not row.nonce or coin.side(fleet, row.round_id, row.nonce, device_id) < row.draw


def draw(row: RoundRow, fleet: str, eligible: Iterable[str], invited: AbstractSet[str], chance: Random) -> list[str]:
    """Whom of these to invite now, besides those `invited` before, in the order of ids."""
    candidates = [
        device_id for device_id in sorted(eligible) if device_id not in invited and has_drawn(row, fleet, device_id)
    ]
    if row.nonce or row.cohort_max == 0:
        return candidates
    room = max(0, row.cohort_max - len(invited))
    return candidates if room >= len(candidates) else sorted(chance.sample(candidates, room))


def offer(row: RoundRow, plan_digest: bytes, fleet_count: int) -> Offer:
    """The open round, as devices are told of it; of the whole fleet its share may be there, and is spread over time."""
    drawn_count = fleet_count * row.draw // COIN_SIDES
    jitter_ms = min(row.lasts_ms // 4, drawn_count * SPREAD_MS) if row.nonce and drawn_count > AT_ONCE else 0
    return Offer(row.round_id, plan_digest, row.base_version, row.lasts_ms, row.nonce, row.draw, jitter_ms)
