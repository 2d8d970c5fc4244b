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
    from broker.standing import Standings
    from broker.voice import Identity
    from wire.messages import Manifest, Update, Verdict


def judge(
    device_id: str,
    update: Update,
    digest: bytes,
    known: tuple[Last | None, Mapping[int, RoundRow], Manifest | None],
    *,
    identity: Identity,
    standings: Standings,
) -> tuple[Verdict, str]:
    """Verdict and reason.

    `known` are the device's newest stored update, the rounds that are remembered, and the newest version's manifest.
    """
    last, rounds, manifest = known
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
    if update.base_version != row.base_version:
        return "refused", f"round {row.round_id} trains version {row.base_version}, not {update.base_version}"
    if manifest is not None and row.plan.scale_epoch != manifest.scale_epoch:
        return "stale", f"round {row.round_id} counts in scale epoch {row.plan.scale_epoch}, which is over"
    if not cohort.has_drawn(row, identity.fleet, device_id):
        return "refused", f"round {row.round_id} has not drawn {device_id}: its coin is not below {row.draw}"
    if row.is_trial:
        return _judge_trial(row, device_id, update, standings)
    if update.trial is not None:
        return "refused", f"round {row.round_id} tries nothing"
    reason = identity.admit(update.payload, row.plan)
    if reason is not None:
        return "refused", reason
    if not identity.holds(device_id, update.payload, row.plan):
        return "unfounded", "what this update builds on is not held here; the next one is to build on nothing"
    return "accepted", ""


def _judge_trial(row: RoundRow, device_id: str, update: Update, standings: Standings) -> tuple[Verdict, str]:
    if update.trial is None:
        return "refused", f"round {row.round_id} tries version {row.base_version}, and trains nothing"
    if update.trial.compared_with >= row.base_version:
        return "refused", f"version {row.base_version} was compared with version {update.trial.compared_with}"
    if not standings.is_called(device_id, row.choice.tags):
        return "refused", f"{device_id} is not in the ring that tries version {row.base_version}"
    return "accepted", ""
