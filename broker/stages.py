"""Stages: what became of each version, what devices said of it, what the operator wants. A part of the store.

A version is `candidate` until its trials end, then `promoted` or `rolled back`; one that no ring tries is promoted when
it is made. What is rolled back keeps its row, its members and the reason, for `broker model show`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from broker.database import insert, put_setting, select, setting
from broker.effects import Candidate, TrialRow
from wire.messages import Manifest, decode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.database import Database
    from broker.effects import CommitStage, RoundRow

_TRIAL: Final = ", ".join(TrialRow.__struct_fields__)
_OF_VERSION: Final = "versions WHERE model_version = :version"


class Stages:
    """The table `trials` of this database, and the stages in `versions`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def snapshot(self, opened: Iterable[RoundRow]) -> dict[str, Any]:
        """The fields of a Snapshot that are of stages; `opened` are its rounds."""
        fleets = self._rows("MAX(model_version)", "versions WHERE stage = 'promoted'")[0][0]
        tried = self._rows("model_version", "versions WHERE stage = 'candidate'")
        trial = next((row.round_id for row in opened if row.status == "open" and row.is_trial), 0)
        return {
            "accuracy": self.score(fleets)[0] if fleets else None,
            "candidate": self.version(tried[0][0]) if tried else None,
            "trials": tuple(self.trials(round_id=trial)) if trial else (),
        }

    def version(self, model_version: int) -> Candidate:
        """A version that exists: its manifest, and how good it is here."""
        manifest = decode(bytes(self._rows("manifest", _OF_VERSION, version=model_version)[0][0]))
        assert isinstance(manifest, Manifest), "the store keeps manifests in the column of manifests"
        return Candidate(manifest, self.score(model_version)[0])

    def score(self, model_version: int) -> tuple[float | None, float | None]:
        """(accuracy, loss) of a version that exists, on the coordinator's own held-out set, where it has one."""
        accuracy, loss = self._rows("accuracy, loss", _OF_VERSION, version=model_version)[0]
        return accuracy, loss

    def trials(self, *, round_id: int = 0, model_version: int = 0) -> list[TrialRow]:
        """What devices said in a round, or of a version, in the order of ids."""
        where = "trials WHERE round_id = :round_id OR model_version = :model_version ORDER BY round_id, device_id"
        rows = self._rows(_TRIAL, where, round_id=round_id, model_version=model_version)
        said = [dict(zip(TrialRow.__struct_fields__, row, strict=True)) for row in rows]
        return [TrialRow(**{**row, "digest": bytes(row["digest"])}) for row in said]

    def last(self) -> list[tuple[str, int, bytes]]:
        """(device, round, digest) of each device's newest trial."""
        newest = "(SELECT device_id, MAX(round_id) AS newest FROM trials GROUP BY device_id) n"
        where = f"trials t JOIN {newest} ON t.device_id = n.device_id AND t.round_id = n.newest"
        rows = self._rows("t.device_id, t.round_id, t.digest", where)
        return [(device_id, round_id, bytes(digest)) for device_id, round_id, digest in rows]

    def put(self, row: TrialRow) -> None:
        """Keep what a device said."""
        values = {**msgspec.structs.asdict(row), "received_unix_s": time.time()}
        self._db.run(insert("trials", values), values)

    def settle(self, done: CommitStage) -> None:
        """The candidate is promoted, or every version since the restored one is rolled back."""
        values = {"version": done.manifest.model_version, "restored": done.restored, "why": done.why}
        if done.restored:
            self._db.run(
                "UPDATE versions SET stage = 'rolled back', stage_why = :why "
                "WHERE model_version > :restored AND model_version < :version AND stage <> 'rolled back'",
                values,
            )
            self._db.run("UPDATE versions SET wish = '' WHERE model_version = :restored", values)
        else:
            promoted = "stage = 'promoted', stage_why = :why, wish = ''"
            self._db.run(f"UPDATE versions SET {promoted} WHERE model_version = :version", values)  # noqa: S608 - ours

    # The operator's side

    def wish(self, version: int, wish: str) -> None:
        """Keep the wish that this version be promoted, or restored; it takes the place of any other."""
        with self._db.transaction():
            self._db.run("UPDATE versions SET wish = '' WHERE wish <> ''")
            values = {"wish": wish, "version": version}
            self._db.run("UPDATE versions SET wish = :wish WHERE model_version = :version", values)

    def wished(self) -> tuple[int, str]:
        """(version, wish) that is not fulfilled yet; (0, '') where there is none."""
        unfulfilled = "wish = 'restore' OR (wish = 'promote' AND stage = 'candidate')"
        found = self._rows("model_version, wish", f"versions WHERE {unfulfilled}")
        return (int(found[0][0]), str(found[0][1])) if found else (0, "")

    def pause(self, *, paused: bool) -> None:
        """Let no round open for now, or let them open again."""
        with self._db.transaction():
            put_setting(self._db, "paused", int(paused))

    def is_paused(self) -> bool:
        """Does the operator want that no round opens?"""
        return bool(setting(self._db, "paused"))

    def _rows(self, columns: str, rest: str, **values: object) -> list[tuple[Any, ...]]:
        return self._db.rows(select(columns, rest), values)
