"""The life of a model version between its sum and the fleet: a candidate, tried by one ring of devices after the other.

    closed round ─▶ CANDIDATE ──worse here, or worse or refused in a ring──▶ put out: the version before is back
                        └──good in ring 1 ──▶ good in ring 2 ──▶ … ──▶ promoted: shared with everyone

A trial is a round whose devices compare and do not train. While a candidate is tried no other round opens, so that
nothing is built on a version that may be put out. What its round counted goes with it: one of these updates is what
made it worse, and nobody knows which.

A ring's word is the sum of its devices' words, each on its own held-out examples: won, lost. A fifth of the devices,
with the best and the worst to tell, is left out at either end: one that lies decides nothing in a ring of five. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from broker import serving
from broker.effects import Candidate, CommitStage, StoreRound, TrialRow
from broker.ration import Rations
from engine.sign_test import is_worse

if TYPE_CHECKING:
    from broker.effects import Aggregated, Effect, Ring, RoundRow, Snapshot, StageWished
    from broker.rounds import Round
    from broker.voice import Identity
    from wire.messages import Manifest, Update, Want

TRIMMED: Final = 5  # one of so many answers is left out at either end


class Verdict(NamedTuple):
    """What a ring leads to."""

    is_good: bool
    why: str


class Rollout:
    """The fleet's version, the candidate if there is one, what its ring has said so far, what the operator wants."""

    def __init__(self, identity: Identity, snapshot: Snapshot) -> None:
        self.manifest = snapshot.manifest  # of the version that everyone is told
        self.candidate = snapshot.candidate
        self.is_paused = False
        self.wish: StageWished | None = None  # that waits for a sum under way
        self._id = identity
        self._accuracy = snapshot.accuracy  # of the fleet's version, here
        self._answers = {row.device_id: row for row in snapshot.trials}
        self._rations = Rations(), Rations()  # of the fleet's version, of the candidate

    @property
    def newest(self) -> Manifest | None:
        """The manifest of the newest version, shared or not."""
        return self.manifest if self.candidate is None else self.candidate.manifest

    # What devices are told

    def share(self) -> list[Effect]:
        """Tell everyone of the fleet's version."""
        return [] if self.manifest is None else [self._id.share(self.manifest)]

    def introduce(self, device_id: str) -> list[Effect]:
        """Tell one device of the candidate."""
        if self.candidate is None:
            return []
        return [self._id.say(device_id, self.candidate.manifest)]

    def serve(self, device_id: str, want: Want, now_ms: int) -> list[Effect] | None:
        """What a device is sent that wants a file; None where it has had its ration."""
        candidate = None if self.candidate is None else self.candidate.manifest
        for manifest, rations in zip((self.manifest, candidate), self._rations, strict=True):
            answer = serving.answer(want, manifest, self._id.fleet, device_id)
            if answer and manifest is not None:
                return answer if rations.grant(device_id, want, manifest, now_ms) else None
        return []

    # What becomes of a version

    def made(self, row: RoundRow, done: Aggregated) -> Manifest:
        """Note the version that a round has made; its manifest. It is the fleet's at once, or a candidate."""
        assert self.manifest is not None, "a sum begins with a version"
        manifest = serving.manifest_after(self.manifest, done)
        if row.ring is None:
            self.manifest, self._accuracy = manifest, done.accuracy
        else:
            self.candidate, self._answers = Candidate(manifest, done.accuracy), {}
        return manifest

    def tried(self, device_id: str, update: Update, digest: bytes) -> TrialRow:
        """Note what a device says of the candidate, or said of an earlier one; the row to be stored."""
        trial = update.trial
        assert trial is not None, "the verdict was that it is there"
        row = TrialRow(
            device_id,
            update.round_id,
            update.base_version,
            digest,
            update.held_out_correct,
            update.held_out_count,
            trial.compared_with,
            trial.won,
            trial.lost,
            trial.refused,
        )
        if self.candidate is not None and self.candidate.manifest.model_version == update.base_version:
            self._answers[device_id] = row
        return row

    def worse_here(self, ring: Ring) -> str:
        """Why the coordinator's own measure speaks against the candidate; empty where it does not."""
        found = None if self.candidate is None else self.candidate.accuracy
        if found is None or self._accuracy is None or found >= self._accuracy - ring.worse_rate:
            return ""
        return f"worse here: {found:.1%} right, and {self._accuracy:.1%} before"

    def end_trial(self, current: Round, now_ms: int) -> tuple[RoundRow, list[Effect]] | None:
        """The closed row of a trial whose ring has said enough, and what follows; None while it has not."""
        ring = current.row.ring
        assert ring is not None, "a trial has a ring"
        is_over = current.may_close(now_ms, len(self._answers))
        is_over |= now_ms >= current.ends_at_ms and current.lacks_somebody()
        verdict = self.judged(ring, current.asked_count, is_over=is_over)
        if verdict is None or (verdict.is_good and len(self._answers) < current.row.updates_min):
            return None
        row = replace(current.row, status="closed", model_version=current.row.base_version)
        if not verdict.is_good:
            return row, self.put_out(verdict.why, row)
        self._answers = {}  # another ring may try it
        return row, self.promote(verdict.why, row) if ring.is_last else [StoreRound(row)]

    def do_wish(self) -> list[Effect]:
        """What the operator's wish leads to; nothing where there is none, or it came too late."""
        wish, self.wish = self.wish, None
        if wish is None:
            return []
        why = "the operator wished it"
        if not wish.promote:
            return self.restore(wish.version, why)
        is_candidate = self.candidate is not None and self.candidate.manifest == wish.version.manifest
        return self.promote(why) if is_candidate else []

    def judged(self, ring: Ring, asked: int, *, is_over: bool) -> Verdict | None:
        """What the ring's answers lead to, of `asked` devices; None while others may still change it.

        When it `is_over`, whoever was asked, is there and did not answer counts as one that refuses.
        """
        answers = list(self._answers.values())
        asked = max(asked, len(answers))
        refused = [row.refused for row in answers if row.refused]
        silent = asked - len(answers) if is_over else 0
        if len(refused) + silent > ring.error_rate * asked:
            never = f", {silent} never answered" if silent else ""
            told = f"; the first: {refused[0]}" if refused else ""
            return Verdict(is_good=False, why=f"{len(refused)} of {asked} devices refused it{never}{told}")
        return _compared(answers, ring) if is_over else None

    def promote(self, why: str, row: RoundRow | None = None) -> list[Effect]:
        """The candidate is the fleet's version from now on."""
        assert self.candidate is not None, "somebody has tried it"
        self.manifest, self._accuracy = self.candidate.manifest, self.candidate.accuracy
        self.candidate = None
        return [CommitStage(self.manifest, why, row=row), *self.share()]

    def put_out(self, why: str, row: RoundRow | None = None) -> list[Effect]:
        """The candidate is not: everyone goes on with the version before, under a new number; nothing without one."""
        if self.manifest is None or self.candidate is None:
            return []
        return self.restore(Candidate(self.manifest, self._accuracy), why, row)

    def restore(self, wanted: Candidate, why: str, row: RoundRow | None = None) -> list[Effect]:
        """The numbers of an older version are the fleet's again, under a new number; a candidate is put out."""
        newest = self.newest
        assert newest is not None, "what is restored is not newer"
        out = 0 if self.candidate is None else newest.model_version
        self.manifest, self._accuracy = serving.restored(newest, wanted.manifest), wanted.accuracy
        self.candidate = None
        return [CommitStage(self.manifest, why, wanted.manifest.model_version, out, row), *self.share()]


def _compared(answers: list[TrialRow], ring: Ring) -> Verdict:
    scored = sorted((row for row in answers if row.compared_with and row.held_out_count), key=_drop)
    trim = len(scored) // TRIMMED
    scored = scored[trim : len(scored) - trim]
    won, lost = sum(row.won for row in scored), sum(row.lost for row in scored)
    count = sum(row.held_out_count for row in scored)
    told = f"on {count} held-out examples of {len(scored)} devices {lost} lost, {won} won"
    if lost - won > ring.worse_rate * count and is_worse(won, lost):  # beyond the bound, and beyond chance
        return Verdict(is_good=False, why=f"worse in the field: {told}")
    return Verdict(is_good=True, why=f"{len(answers)} devices tried it: {told}")


def _drop(row: TrialRow) -> float:
    return (row.lost - row.won) / row.held_out_count
