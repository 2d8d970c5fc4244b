"""The coordinator's store, in memory: what `broker.store` keeps in SQL, as far as rounds are concerned.

Each method is one transaction: it happens whole or not at all. What a coordinator knows when it starts is the
`snapshot`, made of this and of nothing else.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.effects import Last, Pending, RoundRow, Snapshot, UpdateRow

if TYPE_CHECKING:
    from broker.effects import CommitRound
    from wire.messages import Manifest, Plan

OPENED_READ_MAX: Final = 64
PATCHES_MAX: Final = 4  # versions that one patch may span; a real store keeps more, and drops them one day, too


class IntegrityError(ValueError):
    """What a real database would refuse, too."""


class ModelVersion(NamedTuple):
    """One line of the lineage."""

    manifest: Manifest
    params: bytes


class Counted(NamedTuple):
    """Where a stored update went."""

    model_version: int
    weight: int


class Database:
    """Tables as dicts; the rows are frozen."""

    def __init__(self, fleet: dict[str, str], first: ModelVersion, files: dict[bytes, bytes]) -> None:
        self.epoch = 0
        self.fleet = fleet
        self.lineage = [first]
        self.rounds: dict[int, RoundRow] = {}
        self.unwanted: set[int] = set()  # what the operator cancelled, ended or not
        self.updates: dict[tuple[str, int], UpdateRow] = {}
        self.counted: dict[tuple[str, int], Counted] = {}  # (device_id, round_id) → where
        self._files = files

    def snapshot(self) -> Snapshot:
        """What a coordinator must know when it starts."""
        opened = [row for row in self.rounds.values() if row.base_version][-OPENED_READ_MAX:]
        return Snapshot(
            epoch=self.epoch,
            fleet=dict(self.fleet),
            rounds=(*opened, *self.waiting()),
            last={row.device_id: Last(row.round_id, row.digest) for row in sorted(self.updates.values(), key=_round)},
            pending=tuple(_pending(row) for key, row in self.updates.items() if key not in self.counted),
            manifest=self.lineage[-1].manifest,
        )

    def waiting(self) -> tuple[RoundRow, ...]:
        """The rounds that were requested and not opened."""
        return tuple(row for row in self.rounds.values() if row.status == "waiting")

    def unwanted_rounds(self) -> frozenset[int]:
        """The rounds that the operator no longer wants, and that have not ended."""
        return frozenset(key for key in self.unwanted if self.rounds[key].status != "closed")

    def request_round(self, plan: Plan, updates_min: int, cohort_max: int, lasts_ms: int) -> int:
        """What `broker round start` does; returns the round's number."""
        round_id = len(self.rounds) + 1
        self.rounds[round_id] = RoundRow(round_id, plan, "waiting", updates_min, cohort_max, lasts_ms)
        return round_id

    def store_update(self, row: UpdateRow) -> None:
        """Keep an update; its key is unique."""
        key = row.device_id, row.round_id
        if key in self.updates:
            raise IntegrityError(f"a second update of {row.device_id} for round {row.round_id} is to be stored")
        self.updates[key] = row

    def store_round(self, row: RoundRow) -> None:
        """Keep a round's new status."""
        self.rounds[row.round_id] = row

    def commit_round(self, commit: CommitRound) -> None:
        """The new version, whom it counts, and the round's end."""
        self.lineage.append(ModelVersion(commit.manifest, commit.made.params))
        for content in (commit.made.params, commit.made.model):
            self._files[hashlib.sha256(content).digest()] = content
        self.counted.update(
            {(m.device_id, m.round_id): Counted(commit.manifest.model_version, m.weight) for m in commit.members}
        )
        self.rounds[commit.row.round_id] = commit.row

    def base_of_patch(self, base_version: int) -> bytes | None:
        """The parameters of this version, where the patches from it to the newest are all kept; else None."""
        newest = self.lineage[-1].manifest
        if not 0 <= newest.model_version - base_version <= PATCHES_MAX:
            return None
        base = self.lineage[base_version - 1]
        return base.params if base.manifest.scale_epoch == newest.scale_epoch else None

    def file(self, digest: bytes) -> bytes:
        """The content of a file of any version."""
        return self._files[digest]


def _pending(row: UpdateRow) -> Pending:
    return Pending(row.device_id, row.round_id, row.base_version, row.weight)


def _round(row: UpdateRow) -> int:
    return row.round_id
