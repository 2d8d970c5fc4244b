"""What the coordinator says of a signed update of an enrolled device: the verdict, and the reason for people. Pure.

An update is judged by its own round, open or not: does it exist, does it train that round's base, has the round's coin
drawn the device, is the payload within its plan? Whether it is on time makes no difference here (see `broker.rounds`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker import cohort

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.effects import Last, RoundRow
    from broker.voice import Identity
    from wire.messages import Manifest, Update, Verdict


def judge(
    device_id: str,
    update: Update,
    digest: bytes,
    *,
    last: Last | None,
    rounds: Mapping[int, RoundRow],
    manifest: Manifest | None,
    identity: Identity,
) -> tuple[Verdict, str]:
    """Verdict and reason. `last` is the device's newest stored update, `rounds` those that are remembered."""
    if last is not None and update.round_id == last.round_id:
        if digest == last.digest:
            return "duplicate", ""
        return "refused", f"another update of round {update.round_id} is stored already"
    if last is not None and update.round_id < last.round_id:
        return "stale", f"an update of the later round {last.round_id} is stored already"
    row = rounds.get(update.round_id)
    if row is None:
        if update.round_id < min(rounds, default=0):
            return "stale", f"round {update.round_id} is older than the coordinator remembers"
        return "refused", f"round {update.round_id} was never opened"
    return _judge_of(row, device_id, update, manifest, identity)


def _judge_of(
    row: RoundRow, device_id: str, update: Update, manifest: Manifest | None, identity: Identity
) -> tuple[Verdict, str]:
    if update.base_version != row.base_version:
        return "refused", f"round {row.round_id} trains version {row.base_version}, not {update.base_version}"
    if manifest is not None and row.plan.scale_epoch != manifest.scale_epoch:
        return "stale", f"round {row.round_id} counts in scale epoch {row.plan.scale_epoch}, which is over"
    if not cohort.has_drawn(row, identity.fleet, device_id):
        return "refused", f"round {row.round_id} has not drawn {device_id}: its coin is not below {row.draw}"
    reason = identity.admit(update.payload, row.plan)
    return ("accepted", "") if reason is None else ("refused", reason)
