"""The coordinator's store, in memory: what `broker.store` keeps in SQL, as far as rounds are concerned.

Each method is one transaction: it happens whole or not at all. What a coordinator knows when it starts is the
`snapshot`, made of this and of nothing else. A trace of all that was written, and of each snapshot that was read, can
be performed on the real store, which must then have known the same (tests/fleet/test_store_trace.py).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from msgspec.structs import replace

from broker.effects import (
    Candidate,
    CommitRound,
    CommitStage,
    Last,
    Pending,
    RoundRow,
    Snapshot,
    StoreEpoch,
    StoreRound,
    StoreTrial,
    StoreUpdate,
    TrialRow,
    UpdateRow,
)
from broker.standing import ROUNDS_MAX

if TYPE_CHECKING:
    from wire.messages import Manifest

OPENED_READ_MAX: Final = 1024
PATCHES_MAX: Final = 4  # versions that one patch may span; a real store keeps more, and drops them one day, too


class IntegrityError(ValueError):
    """What a real database would refuse, too."""


class ModelVersion(NamedTuple):
    """One line of the lineage."""

    manifest: Manifest
    params: bytes
    remainder: bytes = b""  # of the coordinator's master
    accuracy: float | None = None
    rule_state: bytes = b""  # of the aggregation rule


class Counted(NamedTuple):
    """Where a stored update went."""

    model_version: int
    weight: int


class Cancelled(NamedTuple):
    """The operator's wish that this round end."""

    round_id: int


class Enrolled(NamedTuple):
    """The operator's list of who is in the fleet."""

    fleet: dict[str, str]


Traced: TypeAlias = (
    StoreEpoch | StoreUpdate | StoreTrial | StoreRound | CommitRound | CommitStage | Cancelled | Enrolled | Snapshot
)


class Database:
    """Tables as dicts; the rows are frozen."""

    def __init__(self, fleet: dict[str, str], first: ModelVersion, files: dict[bytes, bytes]) -> None:
        self.epoch = 0
        self.fleet = fleet
        self.lineage = [first]  # every version that was ever made, in order
        self.stages = {1: "promoted"}  # by version
        self.trials: dict[tuple[str, int], TrialRow] = {}  # by device and round
        self.rounds: dict[int, RoundRow] = {}
        self.unwanted: set[int] = set()  # what the operator cancelled, ended or not
        self.updates: dict[tuple[str, int], UpdateRow] = {}
        self.counted: dict[tuple[str, int], Counted] = {}  # (device_id, round_id) → where
        self.trace: list[Traced] | None = None  # a list: everything is noted in it
        self._files = files

    def snapshot(self) -> Snapshot:
        """What a coordinator must know when it starts."""
        sent: list[UpdateRow | TrialRow] = [*self.updates.values(), *self.trials.values()]
        opened = [row for row in self.rounds.values() if row.base_version][-OPENED_READ_MAX:]
        snapshot = Snapshot(
            epoch=self.epoch,
            fleet=dict(self.fleet),
            rounds=(*opened, *self.waiting()),
            last={row.device_id: Last(row.round_id, row.digest) for row in sorted(sent, key=_round)},
            pending=tuple(_pending(row) for key, row in self.updates.items() if key not in self.counted),
            manifest=self.fleets.manifest,
            accuracy=self.fleets.accuracy,
            candidate=self.candidate,
            trials=self._said(opened),
            took=self._took(opened[-1].round_id if opened else 0),
        )
        self._note(snapshot)
        return snapshot

    @property
    def fleets(self) -> ModelVersion:
        """The newest version that everyone may hear of."""
        return next(each for each in reversed(self.lineage) if self.stages[each.manifest.model_version] == "promoted")

    @property
    def candidate(self) -> Candidate | None:
        """The version that is tried, if there is one: always the newest."""
        newest = self.lineage[-1]
        is_tried = self.stages[newest.manifest.model_version] == "candidate"
        return Candidate(newest.manifest, newest.accuracy) if is_tried else None

    def ancestors(self) -> list[ModelVersion]:
        """The versions whose updates are in the newest one that is the fleet's: itself first, version 1 last."""
        found = [self.fleets]
        while found[-1].manifest.parent_version:
            found.append(self.lineage[found[-1].manifest.parent_version - 1])
        return found

    def waiting(self) -> tuple[RoundRow, ...]:
        """The rounds that were requested and not opened."""
        return tuple(row for row in self.rounds.values() if row.status == "waiting")

    def unwanted_rounds(self) -> frozenset[int]:
        """The rounds that the operator no longer wants, and that have not ended."""
        return frozenset(key for key in self.unwanted if self.rounds[key].status != "closed")

    def request_round(self, wish: RoundRow) -> int:
        """What `broker round open` does, with all of `wish` but its number, which is returned."""
        round_id = len(self.rounds) + 1
        self.store_round(replace(wish, round_id=round_id))
        return round_id

    def cancel_round(self, round_id: int) -> None:
        """What `broker round cancel` does."""
        self._note(Cancelled(round_id))
        self.unwanted.add(round_id)

    def enrol(self, fleet: dict[str, str]) -> None:
        """What `broker fleet add` and `remove` lead to."""
        self._note(Enrolled(fleet))
        self.fleet = fleet

    def store_epoch(self, epoch: int) -> None:
        """Keep the epoch."""
        self._note(StoreEpoch(epoch))
        self.epoch = epoch

    def store_update(self, row: UpdateRow) -> None:
        """Keep an update; its key is unique."""
        key = row.device_id, row.round_id
        if key in self.updates:
            raise IntegrityError(f"a second update of {row.device_id} for round {row.round_id} is to be stored")
        self._note(StoreUpdate(row))
        self.updates[key] = row

    def store_trial(self, row: TrialRow) -> None:
        """Keep what a device said of a candidate; its key is unique."""
        key = row.device_id, row.round_id
        if key in self.trials:
            raise IntegrityError(f"a second trial of {row.device_id} for round {row.round_id} is to be stored")
        self._note(StoreTrial(row))
        self.trials[key] = row

    def store_round(self, row: RoundRow) -> None:
        """Keep a round's new status."""
        self._note(StoreRound(row))
        self.rounds[row.round_id] = row

    def commit_round(self, commit: CommitRound) -> None:
        """The new version, whom it counts, and the round's end."""
        self._note(commit)
        made = commit.made
        kept = made.params, made.remainder, made.accuracy, made.rule_state
        self.lineage.append(ModelVersion(commit.manifest, *kept))
        self.stages[commit.manifest.model_version] = "promoted" if commit.row.ring is None else "candidate"
        for content in (made.params, made.model):
            self._files[hashlib.sha256(content).digest()] = content
        self.counted.update(
            {(m.device_id, m.round_id): Counted(commit.manifest.model_version, m.weight) for m in commit.members}
        )
        self.rounds[commit.row.round_id] = commit.row

    def commit_stage(self, done: CommitStage) -> None:
        """The candidate is the fleet's, or an older version is again, under a new number."""
        self._note(done)
        version = done.manifest.model_version
        if done.restored:
            for later in range(done.restored + 1, version):
                self.stages[later] = "rolled back"
            self.lineage.append(self.lineage[done.restored - 1]._replace(manifest=done.manifest))
        self.stages[version] = "promoted"
        if done.row is not None:
            self.rounds[done.row.round_id] = done.row

    def base_of_patch(self, base_version: int, model_version: int) -> bytes | None:
        """The parameters of a version, where the patches from it to the later one are all kept; else None."""
        newest = self.lineage[model_version - 1].manifest
        if not 0 <= newest.model_version - base_version <= PATCHES_MAX:
            return None
        base = self.lineage[base_version - 1]
        return base.params if base.manifest.scale_epoch == newest.scale_epoch else None

    def blob(self, digest: bytes) -> bytes:
        """The content of a file of any version."""
        return self._files[digest]

    def remainder(self, model_version: int) -> bytes:
        """What the coordinator keeps of a version beside its files."""
        return self.lineage[model_version - 1].remainder

    def rule_state(self, model_version: int) -> bytes:
        """What the aggregation rule remembers of a version."""
        return self.lineage[model_version - 1].rule_state

    def update_payload(self, device_id: str, round_id: int) -> bytes:
        """The numbers of a stored update."""
        return self.updates[device_id, round_id].payload

    def _said(self, opened: list[RoundRow]) -> tuple[TrialRow, ...]:
        trial = next((row.round_id for row in opened if row.status == "open" and row.is_trial), 0)
        return tuple(self.trials[key] for key in sorted(self.trials) if key[1] == trial)

    def _took(self, newest: int) -> dict[str, tuple[int, ...]]:
        took: dict[str, tuple[int, ...]] = {}
        for device_id, round_id in sorted(self.updates):
            if round_id > newest - ROUNDS_MAX:
                took[device_id] = (*took.get(device_id, ()), round_id)
        return took

    def _note(self, traced: Traced) -> None:
        if self.trace is not None:
            self.trace.append(traced)


def _pending(row: UpdateRow) -> Pending:
    return Pending(row.device_id, row.round_id, row.base_version, row.weight)


def _round(row: UpdateRow | TrialRow) -> int:
    return row.round_id
