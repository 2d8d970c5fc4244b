"""The store: everything that the coordinator must not forget, in one SQLite file or in PostgreSQL. All the SQL is here.

`serve` is its one steady writer. Commands read beside it (readers and the writer do not wait for each other) or write
a row of their own; `serve` notices by `change_counter`. A write has returned only when it is on disk, because a
receipt follows it. What devices say of themselves is not worth a disk flush and goes without.

The tables are in `broker/schema`, one numbered file for each step from the last (`broker.migrations`). The text is what
both databases understand; what one of them alone needs stands in `broker.sqlite` and `broker.postgres`.
"""

from __future__ import annotations

import time
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import msgspec

from broker import migrations, sightings
from broker.database import StoreError, insert, open_database, put_setting, select, setting
from broker.effects import (
    CommitRound,
    CommitStage,
    Last,
    Pending,
    RoundRow,
    Snapshot,
    StoreEpoch,
    StoreInvited,
    StoreRound,
    StoreSeen,
    StoreTrial,
    StoreUpdate,
    UpdateRow,
)
from broker.enrolments import Enrolments
from broker.refusals import Refusals
from broker.roster import Roster
from broker.rows import ROUND, Cost, SeenRow, StoredUpdate, VersionRow, columns_of, round_of
from broker.stages import Stages
from broker.standing import ROUNDS_MAX
from wire.messages import MODEL_FILE, PARAMS_FILE, Manifest, Traffic, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager

    from broker.database import Place
    from broker.effects import Effect

VERSIONS_KEPT: Final = 10  # of older versions the row stays, and params and payloads go
PATCHES_KEPT: Final = 256  # a few kilobytes each: a device may have slept through as many versions
OPENED_ROUNDS_READ: Final = 1024  # as many as the coordinator remembers; others have no updates

_VERSION: Final = (
    "model_version, parent_version, round_id, accuracy, loss, members, created_unix_s, bytes_up, bytes_down, "
    "seconds, params_digest, stage, stage_why"
)
_UPDATE: Final = (
    "device_id, round_id, base_version, weight, digest, payload_bytes, counted_in, held_out_correct, held_out_count"
)


class Store:
    """The store at `place`, made if it is not there; unless `make`, or with `read_only`, it must be.

    With `read_only` nothing is ever written; with the `term` of a lease only while it is the newest. Every method
    raises StoreError, and after one on a write nothing of that write is there.
    """

    def __init__(self, place: Place, *, read_only: bool = False, make: bool = True, term: int = 0) -> None:
        self.place = place
        self._db = open_database(place, read_only=read_only, make=make and not read_only, term=term)
        self.roster = Roster(self._db)
        self.stages = Stages(self._db)
        self.refusals = Refusals(self._db)
        self.enrolments = Enrolments(self._db)
        try:
            migrations.bring_forward(self._db, place, read_only=read_only)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Let go of the database. Nothing is lost without it."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The coordinator's side

    def snapshot(self) -> Snapshot:
        """All that a starting coordinator must know."""
        with self._db.transaction(writes=False):
            pending = self._db.rows(
                "SELECT device_id, round_id, base_version, weight FROM updates WHERE counted_in IS NULL "
                "ORDER BY device_id, round_id"
            )
            last = self._db.rows(
                "SELECT u.device_id, u.round_id, u.digest FROM updates u JOIN (SELECT device_id, MAX(round_id) AS "
                "newest FROM updates GROUP BY device_id) n ON u.device_id = n.device_id AND u.round_id = n.newest"
            )
            opened = self._rounds("WHERE base_version > 0 ORDER BY round_id DESC LIMIT :most", OPENED_ROUNDS_READ)
            waiting = self._rounds("WHERE status = 'waiting'")
            return Snapshot(
                epoch=setting(self._db, "epoch"),
                fleet=self.fleet(),
                rounds=tuple(sorted(opened + waiting, key=lambda row: row.round_id)),
                last=_newest([*last, *self.stages.last()]),
                pending=tuple(Pending(*row) for row in pending),
                manifest=self.manifest(),
                tags=self.roster.tags(),
                took=self.roster.took(ROUNDS_MAX),
                **self.stages.snapshot(opened),
            )

    def apply(self, effect: Effect, cost: Cost | None = None) -> None:
        """Perform one effect that concerns the store; it is on disk on return. `cost` is kept with a CommitRound."""
        self.apply_all([effect], cost)

    def apply_all(self, effects: Iterable[Effect], cost: Cost | None = None) -> None:
        """Perform several as one: all of them are on disk on return, or none after a StoreError."""
        effects = list(effects)
        only_seen = all(isinstance(effect, StoreSeen | StoreInvited) for effect in effects)
        if effects:
            with self._db.transaction(flush=not only_seen):
                self._perform(effects, cost)

    def waiting_rounds(self) -> tuple[RoundRow, ...]:
        """The rounds that the operator asked for and that have not been opened."""
        return tuple(self._rounds("WHERE status = 'waiting' ORDER BY round_id"))

    def unwanted_rounds(self) -> frozenset[int]:
        """The rounds that the operator no longer wants, and that have not ended yet."""
        rows = self._select("round_id", "rounds WHERE unwanted = 1 AND status <> 'closed'")
        return frozenset(row[0] for row in rows)

    def update_payload(self, device_id: str, round_id: int) -> bytes:
        """The payload of a stored update; empty for one counted long ago."""
        key = {"device_id": device_id, "round_id": round_id}
        found = self._db.rows("SELECT payload FROM updates WHERE device_id = :device_id AND round_id = :round_id", key)
        if not found:
            raise StoreError(f"{self.place} has no update of {device_id} in round {round_id}")
        return bytes(found[0][0])

    def blob(self, digest: bytes) -> bytes:
        """The content of a model file."""
        found = self._db.rows("SELECT content FROM blobs WHERE digest = :digest", {"digest": digest})
        if not found:
            raise StoreError(f"{self.place} no longer holds the file {digest.hex()[:16]}: its version is too old")
        return bytes(found[0][0])

    def blob_size(self, digest: bytes) -> int | None:
        """How many bytes a model file has; None where there is none with this digest."""
        found = self._db.rows("SELECT LENGTH(content) FROM blobs WHERE digest = :digest", {"digest": digest})
        return int(found[0][0]) if found else None

    def blob_part(self, digest: bytes, start: int, count: int) -> bytes:
        """`count` bytes of a model file from `start` on; fewer where it ends, none where it is gone."""
        return self._db.part(digest, start, count)

    def remainder(self, model_version: int) -> bytes:
        """What the coordinator keeps of the newest version beside its published numbers; empty for an older one."""
        found = self._select("remainder", "versions WHERE model_version = :version", {"version": model_version})
        if not found:
            raise StoreError(f"{self.place} has no version {model_version}")
        return bytes(found[0][0] or b"")

    def rule_state(self, model_version: int) -> bytes:
        """What the aggregation rule remembers of the newest version; empty for an older one, or where it does not."""
        found = self._select("rule_state", "versions WHERE model_version = :version", {"version": model_version})
        if not found:
            raise StoreError(f"{self.place} has no version {model_version}")
        return bytes(found[0][0] or b"")

    def patches(self, base_version: int, model_version: int) -> list[bytes]:
        """What leads from one version to a later one, version by version; empty where a link is missing."""
        rows = self._select(
            "patch",
            "versions WHERE model_version > :base AND model_version <= :version ORDER BY model_version",
            {"base": base_version, "version": model_version},
        )
        patches = [bytes(patch or b"") for (patch,) in rows]
        return patches if len(patches) == model_version - base_version and all(patches) else []

    def params_digest(self, model_version: int) -> bytes | None:
        """The SHA-256 of a version's parameters; None where there is no such version. It outlives them."""
        found = self._select("params_digest", "versions WHERE model_version = :version", {"version": model_version})
        return bytes(found[0][0]) if found else None

    def change_counter(self) -> int:
        """A number that is another one after someone else has written to the store."""
        return self._db.change_counter()

    # The operator's side

    def put_first_version(self, manifest: Manifest, blobs: Mapping[bytes, bytes], remainder: bytes) -> None:
        """Keep the version from which all others will come, its files, and what only the coordinator knows of it."""
        with self.transaction():
            for digest, content in blobs.items():
                self._put_blob(digest, content)
            made = {"round_id": 0, "members": 0, "remainder": remainder, "patch": b"", "rule_state": b""}
            self._put_version(manifest, made, Cost())

    def fleet(self) -> dict[str, str]:
        """Every enrolled device's public key."""
        return dict(self._db.rows("SELECT device_id, public_key FROM devices ORDER BY device_id"))

    def add_device(self, device_id: str, public_key: str) -> bool:
        """Enrol a device or give it another key; False when it was there with this one."""
        with self.transaction():
            known = self._select("public_key", "devices WHERE device_id = :device_id", {"device_id": device_id})
            if known == [(public_key,)]:
                return False
            self._insert(
                "devices",
                {"device_id": device_id, "public_key": public_key, "added_unix_s": time.time()},
                "ON CONFLICT (device_id) DO UPDATE SET public_key = excluded.public_key",
            )
            return True

    def remove_device(self, device_id: str) -> bool:
        """Take a device out of the fleet; False when it was not in it. Its updates stay, and are counted."""
        with self.transaction():
            self._db.run("DELETE FROM sightings WHERE device_id = :device_id", {"device_id": device_id})
            self.roster.forget(device_id)
            self._db.run("DELETE FROM traffic WHERE device_id = :device_id", {"device_id": device_id})
            return self._db.run("DELETE FROM devices WHERE device_id = :device_id", {"device_id": device_id}) == 1

    def ask_for(self, rows: Iterable[RoundRow]) -> list[int]:
        """Let these rounds wait, in this order, under the next numbers, which are returned."""
        with self.transaction():
            newest = self._db.rows("SELECT COALESCE(MAX(round_id), 0) FROM rounds")[0][0]
            numbered = [msgspec.structs.replace(row, round_id=newest + n) for n, row in enumerate(rows, 1)]
            self._perform([StoreRound(row) for row in numbered], None)
            return [row.round_id for row in numbered]

    def cancel_round(self, round_id: int) -> None:
        """Keep the wish that this round end without a new version; one that has ended stays as it is."""
        self._db.run("UPDATE rounds SET unwanted = 1 WHERE round_id = :round_id", {"round_id": round_id})

    def rounds(self) -> list[RoundRow]:
        """Every round, oldest first."""
        return self._rounds("ORDER BY round_id")

    def versions(self) -> list[VersionRow]:
        """Every model version, oldest first."""
        return [VersionRow(*row) for row in self._select(_VERSION, "versions ORDER BY model_version")]

    def manifest(self, model_version: int | None = None) -> Manifest | None:
        """The manifest of a version, by default of the newest that is the fleet's; None when there is none."""
        found = self._db.rows(
            "SELECT manifest FROM versions WHERE model_version = "
            "COALESCE(:version, (SELECT MAX(model_version) FROM versions WHERE stage = 'promoted'))",
            {"version": model_version},
        )
        if not found:
            return None
        manifest = decode(bytes(found[0][0]))
        assert isinstance(manifest, Manifest), "the store keeps manifests in the column of manifests"
        return manifest

    def updates(self) -> list[StoredUpdate]:
        """Every stored update, in the order of rounds and devices."""
        return [StoredUpdate(*row) for row in self._select(_UPDATE, "updates ORDER BY round_id, device_id")]

    def seen(self) -> list[SeenRow]:
        """What was last heard of each device, in the order of ids."""
        return sightings.seen(self._db)

    def traffic(self) -> dict[str, tuple[Traffic, float]]:
        """(the last account of bytes that a device gave of itself, when), in the order of ids."""
        return sightings.traffic(self._db)

    def counted(self) -> dict[str, int]:
        """How many updates of each device are counted in some version."""
        return dict(self._select("device_id, COUNT(*)", "updates WHERE counted_in IS NOT NULL GROUP BY device_id"))

    def pending_count(self) -> int:
        """How many stored updates no version counts yet."""
        return int(self._db.rows("SELECT COUNT(*) FROM updates WHERE counted_in IS NULL")[0][0])

    def field_scores(self) -> dict[int, tuple[int, int]]:
        """(correct, count) of each version on the held-out examples of the devices that reported on it."""
        # a sum of PostgreSQL's is no integer by itself
        sums = "base_version, CAST(SUM(held_out_correct) AS BIGINT), CAST(SUM(held_out_count) AS BIGINT)"
        rows = self._select(sums, "updates GROUP BY base_version")
        return {version: (correct, count) for version, correct, count in rows}

    # Writing

    def transaction(self) -> AbstractContextManager[None]:
        """Make the block one transaction that writes; inside another it is a part of that."""
        return self._db.transaction()

    def _select(self, columns: str, rest: str, values: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
        return self._db.rows(select(columns, rest), values)

    def _insert(self, table: str, row: Mapping[str, object], then: str = "") -> int:
        return self._db.run(insert(table, row, then), row)

    def _perform(self, effects: list[Effect], cost: Cost | None) -> None:
        self._put_updates([effect.row for effect in effects if isinstance(effect, StoreUpdate)])
        for effect in effects:
            match effect:
                case StoreEpoch(epoch=epoch):
                    put_setting(self._db, "epoch", epoch)
                    self._db.run("UPDATE sightings SET present = 0")  # whoever is there will say so
                case StoreSeen():
                    sightings.put(self._db, effect)
                case StoreInvited(round_id=round_id, device_ids=device_ids):
                    self.roster.count_offers(round_id, device_ids)
                case StoreUpdate():
                    pass  # all of them at once, above
                case StoreRound(row=row):
                    self._put_round(row)
                case StoreTrial(row=trial):
                    self.stages.put(trial)
                case CommitRound():
                    self._commit_round(effect, cost or Cost())
                case CommitStage():
                    self._commit_stage(effect)
                case _:
                    _we_are_wrong(f"{type(effect).__name__} is no effect on the store")

    def _put_updates(self, updates: list[UpdateRow]) -> None:
        now = time.time()
        rows = [
            {**msgspec.structs.asdict(update), "payload_bytes": len(update.payload), "received_unix_s": now}
            for update in updates
        ]
        fresh = self._db.run_each(insert("updates", rows[0], "ON CONFLICT DO NOTHING"), rows) if rows else 0
        if fresh != len(rows):
            which = ", ".join(f"{update.device_id}'s in round {update.round_id}" for update in updates[:3])
            _we_are_wrong(f"of {len(rows)} updates ({which} ...) one is stored already")

    def _put_round(self, row: RoundRow) -> None:
        self._insert(
            "rounds",
            columns_of(row),
            "ON CONFLICT (round_id) DO UPDATE SET status = excluded.status, base_version = excluded.base_version, "
            "model_version = excluded.model_version, plan = excluded.plan, nonce = excluded.nonce, "
            "draw = excluded.draw",
        )

    def _commit_round(self, commit: CommitRound, cost: Cost) -> None:
        version, row = commit.manifest.model_version, commit.row
        self._put_blob(_digest_of(commit.manifest, PARAMS_FILE), commit.made.params)
        if commit.made.model:
            self._put_blob(_digest_of(commit.manifest, MODEL_FILE), commit.made.model)
        stage = "promoted" if row.ring is None else "candidate"
        made = {"round_id": row.round_id, "members": len(commit.members), "stage": stage}
        kept = ("accuracy", "loss", "remainder", "patch", "rule_state")
        self._put_version(commit.manifest, made | {name: getattr(commit.made, name) for name in kept}, cost)
        for member in commit.members:
            counted = self._db.run(
                "UPDATE updates SET counted_in = :version WHERE device_id = :device_id AND round_id = :round_id "
                "AND counted_in IS NULL",
                {"version": version, "device_id": member.device_id, "round_id": member.round_id},
            )
            if counted != 1:
                which = f"{member.device_id}'s update of round {member.round_id}"
                _we_are_wrong(f"version {version} would count {which}, which is not stored, or counted already")
        is_open = self._select("1", "rounds WHERE round_id = :id AND status = 'open'", {"id": row.round_id})
        if not is_open or row.status != "closed":
            _we_are_wrong(f"version {version} would close round {row.round_id}, which is not open")
        self._put_round(row)
        self._prune(version, version if row.ring is None else commit.manifest.parent_version)

    def _commit_stage(self, done: CommitStage) -> None:
        version = done.manifest.model_version
        self.stages.settle(done)
        if done.row is not None:
            self._put_round(done.row)
        if done.restored:
            score = self.stages.score(done.restored)
            made = {"round_id": 0, "members": 0, "accuracy": score[0], "loss": score[1], "stage_why": done.why}
            self._put_version(done.manifest, made | msgspec.structs.asdict(done.numbers), Cost())
        self._prune(version, version)

    def _put_version(self, manifest: Manifest, made: Mapping[str, Any], cost: Cost) -> None:
        row = {
            "model_version": manifest.model_version,
            "parent_version": manifest.parent_version,
            "manifest": encode(manifest),
            "params_digest": _digest_of(manifest, PARAMS_FILE),
            "created_unix_s": time.time(),
        }
        self._insert("versions", {**row, **made, **msgspec.structs.asdict(cost)})

    def _put_blob(self, digest: bytes, content: bytes) -> None:
        self._insert("blobs", {"digest": digest, "content": content}, "ON CONFLICT (digest) DO NOTHING")

    def _prune(self, newest: int, base: int) -> None:
        """Let go what only older versions needed: a model's size for each round would fill any disk.

        `base` is the version to which the next sum may be added: the newest, or the one before a candidate.
        """
        old = {"old": newest - VERSIONS_KEPT, "nothing": b""}
        self._db.run(
            "DELETE FROM blobs WHERE digest IN (SELECT params_digest FROM versions WHERE model_version = :old) "
            "AND digest NOT IN (SELECT params_digest FROM versions WHERE model_version > :old)",
            old,
        )
        self._db.run("UPDATE updates SET payload = :nothing WHERE counted_in = :old", old)
        # no older master is ever moved, and it is the largest of all that a version has
        self._db.run(
            "UPDATE versions SET remainder = NULL, rule_state = NULL "
            "WHERE model_version < :base AND remainder IS NOT NULL",
            {"base": base},
        )
        self._db.run("UPDATE versions SET patch = NULL WHERE model_version = :old", {"old": newest - PATCHES_KEPT})

    def _rounds(self, rest: str, most: int = 0) -> list[RoundRow]:
        return [round_of(row) for row in self._select(ROUND, f"rounds {rest}", {"most": most})]


def _newest(found: Iterable[tuple[str, int, bytes]]) -> dict[str, Last]:
    """The newest of what each device sent."""
    return {device_id: Last(round_id, digest) for device_id, round_id, digest in sorted(found, key=itemgetter(1))}


def _digest_of(manifest: Manifest, name: str) -> bytes:
    found = [file.digest for file in manifest.files if file.name == name]
    if len(found) != 1:
        _we_are_wrong(f"version {manifest.model_version} has no file {name}")
    return found[0]


def _we_are_wrong(sentence: str) -> NoReturn:
    raise StoreError(f"the coordinator contradicts its store, which is a fault of ours: {sentence}")
