"""Who is invited to a round: the eligible among the present, drawn by lot when there are too many."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from random import Random

    from broker.effects import RoundRow
    from wire.messages import Birth


def eligible(row: RoundRow, birth: Birth) -> bool:
    """May this device take part? By what it said of itself; the device's own budget still decides."""
    return birth.num_examples >= max(1, row.plan.num_examples_min)


def draw(row: RoundRow, present: Mapping[str, Birth], invited: AbstractSet[str], chance: Random) -> list[str]:
    """Whom of these to invite now, besides those `invited` before, in the order of ids."""
    candidates = [
        device_id for device_id, birth in sorted(present.items()) if device_id not in invited and eligible(row, birth)
    ]
    room = len(candidates) if row.cohort_max == 0 else max(0, row.cohort_max - len(invited))
    return candidates if room >= len(candidates) else sorted(chance.sample(candidates, room))
