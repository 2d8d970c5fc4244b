"""The store: everything that the coordinator must not forget, in one SQLite file. All the SQL is here.

`serve` is its one steady writer. Commands read beside it (WAL: readers and the writer do not wait for each other) or
write a row of their own; `serve` notices by `change_counter`. A write has returned only when it is on disk
(`synchronous = FULL`), because a receipt follows it. What devices say of themselves is not worth a disk flush and
goes without.

The tables are in `broker/schema`, one numbered file for each step from the last; `settings` remembers the newest one
applied. The text keeps to what PostgreSQL understands as well; what SQLite alone needs stands in `_connect` and
`transaction`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import msgspec

from broker import migrations
from broker.effects import (
    CommitRound,
    Last,
    Pending,
    RoundRow,
    Snapshot,
    StoreEpoch,
    StoreRound,
    StoreSeen,
    StoreUpdate,
    UpdateRow,
)
from broker.rows import Cost, SeenRow, StoredUpdate, VersionRow
from wire.messages import PARAMS_FILE, Manifest, Plan, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from broker.effects import Effect

VERSIONS_KEPT: Final = 10  # of older versions the row stays, and params and payloads go
OPENED_ROUNDS_READ: Final = 64  # as many as the coordinator remembers; others have no updates
BUSY_TIMEOUT_MS: Final = 10_000

_ROUND: Final = "round_id, plan, status, updates_min, cohort_max, lasts_ms, base_version, model_version"
_VERSION: Final = (
    "model_version, parent_version, round_id, accuracy, loss, members, created_unix_s, bytes_up, bytes_down, "
    "seconds, params_digest"
)
_UPDATE: Final = (
    "device_id, round_id, base_version, weight, digest, payload_bytes, counted_in, held_out_correct, held_out_count"
)
_SEEN: Final = "device_id, present, software, num_examples, model_version, work, reason, seen_unix_s"
_MERGE_SIGHTING: Final = """
    ON CONFLICT (device_id) DO UPDATE SET present = :present, seen_unix_s = :seen_unix_s,
        software = CASE WHEN :software <> '' THEN :software ELSE sightings.software END,
        num_examples = CASE WHEN :software <> '' THEN :num_examples ELSE sightings.num_examples END,
        model_version = CASE WHEN :software <> '' THEN :model_version ELSE sightings.model_version END,
        work = CASE WHEN :work <> '' THEN :work ELSE sightings.work END,
        reason = CASE WHEN :work <> '' THEN :reason ELSE sightings.reason END
"""
# apart from what follows them: the names of tables and columns are ours, every value is bound by name
_SELECT: Final = "SELECT"
_INSERT: Final = "INSERT INTO"
_HINTS: Final = {
    "full": "; make room on that disk, nothing that was receipted is lost",
    "locked": "; another broker command holds it for too long",
}


class StoreError(Exception):
    """The store cannot do what it must: the disk is full, the file is damaged, or we are wrong. A sentence."""


class Store:
    """The file at `path`, made if it is not there; with `read_only` it must be, and nothing is ever written.

    Every method raises StoreError, and after one on a write nothing of that write is there.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        if read_only and not path.is_file():
            raise StoreError(f"there is no store at {path}: make one with broker init")
        with self._telling("open"):
            self._db = _connect(path, read_only=read_only)
        try:
            self._migrate(read_only=read_only)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file. Nothing is lost without it."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The coordinator's side

    def snapshot(self) -> Snapshot:
        """All that a starting coordinator must know."""
        with self.transaction(writes=False):
            pending = self._rows(
                "SELECT device_id, round_id, base_version, weight FROM updates WHERE counted_in IS NULL "
                "ORDER BY device_id, round_id"
            )
            last = self._rows(
                "SELECT u.device_id, u.round_id, u.digest FROM updates u JOIN (SELECT device_id, MAX(round_id) AS "
                "newest FROM updates GROUP BY device_id) n ON u.device_id = n.device_id AND u.round_id = n.newest"
            )
            opened = self._rounds("WHERE base_version > 0 ORDER BY round_id DESC LIMIT :most", OPENED_ROUNDS_READ)
            waiting = self._rounds("WHERE status = 'waiting'")
            return Snapshot(
                epoch=self._setting("epoch"),
                fleet=self.fleet(),
                rounds=tuple(sorted(opened + waiting, key=lambda row: row.round_id)),
                last={device_id: Last(round_id, digest) for device_id, round_id, digest in last},
                pending=tuple(Pending(*row) for row in pending),
                manifest=self.manifest(),
            )

    def apply(self, effect: Effect, cost: Cost | None = None) -> None:
        """Perform one effect that concerns the store; it is on disk on return. `cost` is kept with a CommitRound."""
        self.apply_all([effect], cost)

    def apply_all(self, effects: Iterable[Effect], cost: Cost | None = None) -> None:
        """Perform several as one: all of them are on disk on return, or none after a StoreError."""
        effects = list(effects)
        only_seen = all(isinstance(effect, StoreSeen) for effect in effects)
        if effects:
            with self._without_flush() if only_seen else contextlib.nullcontext(), self.transaction():
                self._perform(effects, cost)

    def waiting_rounds(self) -> tuple[RoundRow, ...]:
        """The rounds that the operator asked for and that have not been opened."""
        return tuple(self._rounds("WHERE status = 'waiting' ORDER BY round_id"))

    def unwanted_rounds(self) -> frozenset[int]:
        """The rounds that the operator no longer wants, and that have not ended yet."""
        return frozenset(row[0] for row in self._select("round_id", "rounds WHERE unwanted = 1 AND status <> 'closed'"))

    def update_payload(self, device_id: str, round_id: int) -> bytes:
        """The payload of a stored update; empty for one counted long ago."""
        key = {"device_id": device_id, "round_id": round_id}
        found = self._rows("SELECT payload FROM updates WHERE device_id = :device_id AND round_id = :round_id", key)
        if not found:
            raise StoreError(f"{self.path} has no update of {device_id} in round {round_id}")
        return bytes(found[0][0])

    def blob(self, digest: bytes) -> bytes:
        """The content of a model file."""
        found = self._rows("SELECT content FROM blobs WHERE digest = :digest", {"digest": digest})
        if not found:
            raise StoreError(f"{self.path} no longer holds the file {digest.hex()[:16]}: its version is too old")
        return bytes(found[0][0])

    def change_counter(self) -> int:
        """A number that is another one after someone else has written to the file."""
        return int(self._rows("PRAGMA data_version")[0][0])

    # The operator's side

    def put_first_version(self, manifest: Manifest, blobs: Mapping[bytes, bytes]) -> None:
        """Keep the version from which all others will come, and its files."""
        with self.transaction():
            for digest, content in blobs.items():
                self._put_blob(digest, content)
            self._put_version(manifest, 0, 0, (None, None), Cost())

    def fleet(self) -> dict[str, str]:
        """Every enrolled device's public key."""
        return dict(self._rows("SELECT device_id, public_key FROM devices ORDER BY device_id"))

    def add_device(self, device_id: str, public_key: str) -> bool:
        """Enrol a device or give it another key; False when it was there with this one."""
        with self.transaction():
            if self.fleet().get(device_id) == public_key:
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
            self._run("DELETE FROM sightings WHERE device_id = :device_id", {"device_id": device_id})
            return self._run("DELETE FROM devices WHERE device_id = :device_id", {"device_id": device_id}) == 1

    def request_rounds(self, plan: Plan, count: int, updates_min: int, cohort_max: int, lasts_ms: int) -> list[int]:
        """Let `count` rounds wait for the coordinator; return their numbers."""
        with self.transaction():
            newest = self._rows("SELECT COALESCE(MAX(round_id), 0) FROM rounds")[0][0]
            rows = [RoundRow(newest + 1 + i, plan, "waiting", updates_min, cohort_max, lasts_ms) for i in range(count)]
            self._perform([StoreRound(row) for row in rows], None)
            return [row.round_id for row in rows]

    def cancel_round(self, round_id: int) -> None:
        """Keep the wish that this round end without a new version; one that has ended stays as it is."""
        self._run("UPDATE rounds SET unwanted = 1 WHERE round_id = :round_id", {"round_id": round_id})

    def rounds(self) -> list[RoundRow]:
        """Every round, oldest first."""
        return self._rounds("ORDER BY round_id")

    def versions(self) -> list[VersionRow]:
        """Every model version, oldest first."""
        return [VersionRow(*row) for row in self._select(_VERSION, "versions ORDER BY model_version")]

    def manifest(self, model_version: int | None = None) -> Manifest | None:
        """The manifest of a version, by default of the newest; None when there is none."""
        found = self._rows(
            "SELECT manifest FROM versions WHERE model_version = "
            "COALESCE(:version, (SELECT MAX(model_version) FROM versions))",
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
        rows = self._select(_SEEN, "sightings ORDER BY device_id")
        return [SeenRow(device_id, bool(present), *rest) for device_id, present, *rest in rows]

    def counted(self) -> dict[str, int]:
        """How many updates of each device are counted in some version."""
        return dict(self._select("device_id, COUNT(*)", "updates WHERE counted_in IS NOT NULL GROUP BY device_id"))

    def field_scores(self) -> dict[int, tuple[int, int]]:
        """(correct, count) of each version on the held-out examples of the devices that reported on it."""
        rows = self._select("base_version, SUM(held_out_correct), SUM(held_out_count)", "updates GROUP BY base_version")
        return {version: (correct, count) for version, correct, count in rows}

    # Writing

    @contextlib.contextmanager
    def transaction(self, *, writes: bool = True) -> Iterator[None]:
        """Make the block one transaction; inside another it is a part of that."""
        if self._db.in_transaction:
            yield
            return
        with self._telling("write" if writes else "read"):
            # a writer takes its lock at once: a lock that is upgraded later can fail without waiting
            self._db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _without_flush(self) -> Iterator[None]:
        self._run("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            self._run("PRAGMA synchronous = FULL")

    def _perform(self, effects: list[Effect], cost: Cost | None) -> None:
        for effect in effects:
            match effect:
                case StoreEpoch(epoch=epoch):
                    self._put_setting("epoch", epoch)
                    self._run("UPDATE sightings SET present = 0")  # whoever is there will say so
                case StoreSeen():
                    self._put_sighting(effect)
                case StoreUpdate(row=update):
                    self._put_update(update)
                case StoreRound(row=row):
                    self._put_round(row)
                case CommitRound():
                    self._commit_round(effect, cost or Cost())
                case _:
                    _we_are_wrong(f"{type(effect).__name__} is no effect on the store")

    def _put_sighting(self, seen: StoreSeen) -> None:
        # a birth brings software and numbers, telemetry brings work and reason, a death neither
        row = {**msgspec.structs.asdict(seen), "present": int(seen.present), "seen_unix_s": time.time()}
        self._insert("sightings", row, _MERGE_SIGHTING)

    def _put_update(self, row: UpdateRow) -> None:
        times = {"payload_bytes": len(row.payload), "received_unix_s": time.time()}
        fresh = self._insert("updates", {**msgspec.structs.asdict(row), **times}, "ON CONFLICT DO NOTHING")
        if fresh != 1:
            _we_are_wrong(f"an update of {row.device_id} in round {row.round_id} is stored already")

    def _put_round(self, row: RoundRow) -> None:
        self._insert(
            "rounds",
            {**msgspec.structs.asdict(row), "plan": encode(row.plan)},
            "ON CONFLICT (round_id) DO UPDATE SET status = excluded.status, base_version = excluded.base_version, "
            "model_version = excluded.model_version",
        )

    def _commit_round(self, commit: CommitRound, cost: Cost) -> None:
        version, row = commit.manifest.model_version, commit.row
        self._put_blob(_params_digest(commit.manifest), commit.params)
        self._put_version(commit.manifest, row.round_id, len(commit.members), (commit.accuracy, commit.loss), cost)
        for member in commit.members:
            counted = self._run(
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
        self._prune(version - VERSIONS_KEPT)

    def _put_version(
        self, manifest: Manifest, round_id: int, members: int, score: tuple[float | None, float | None], cost: Cost
    ) -> None:
        self._insert(
            "versions",
            {
                "model_version": manifest.model_version,
                "parent_version": manifest.parent_version,
                "round_id": round_id,
                "manifest": encode(manifest),
                "params_digest": _params_digest(manifest),
                "accuracy": score[0],
                "loss": score[1],
                "members": members,
                "created_unix_s": time.time(),
                **msgspec.structs.asdict(cost),
            },
        )

    def _put_blob(self, digest: bytes, content: bytes) -> None:
        self._insert("blobs", {"digest": digest, "content": content}, "ON CONFLICT (digest) DO NOTHING")

    def _prune(self, old: int) -> None:
        """Let go what only version `old` needed: a model's size for each round would fill any disk."""
        self._run(
            "DELETE FROM blobs WHERE digest IN (SELECT params_digest FROM versions WHERE model_version = :old) "
            "AND digest NOT IN (SELECT params_digest FROM versions WHERE model_version > :old)",
            {"old": old},
        )
        self._run("UPDATE updates SET payload = :nothing WHERE counted_in = :old", {"nothing": b"", "old": old})

    # The tables themselves

    def _migrate(self, *, read_only: bool) -> None:
        steps = migrations.steps()
        newest, have = len(steps), self._schema_version()
        if have > newest:
            raise StoreError(f"{self.path} was written by a newer broker (schema {have}, ours is {newest}): update it")
        if have < newest and read_only:
            raise StoreError(f"{self.path} was written by an older broker: start broker serve once to bring it forward")
        if have == newest:
            return
        with self.transaction():
            for step in steps[self._schema_version() :]:  # asked again: another process may have been faster
                for statement in step:
                    self._run(statement)
            self._put_setting("schema", newest)

    def _schema_version(self) -> int:
        tables = self._rows("SELECT name FROM sqlite_master WHERE name = 'settings'")
        return self._setting("schema") if tables else 0

    def _setting(self, name: str) -> int:
        found = self._rows("SELECT value FROM settings WHERE name = :name", {"name": name})
        return int(found[0][0]) if found else 0

    def _put_setting(self, name: str, value: int) -> None:
        row = {"name": name, "value": value}
        self._insert("settings", row, "ON CONFLICT (name) DO UPDATE SET value = excluded.value")

    # The door to SQLite

    def _rows(self, sql: str, values: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
        with self._telling("read"):
            return self._db.execute(sql, values or {}).fetchall()

    def _select(self, columns: str, rest: str, values: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
        return self._rows(f"{_SELECT} {columns} FROM {rest}", values)

    def _insert(self, table: str, row: Mapping[str, object], then: str = "") -> int:
        places = ", ".join(f":{name}" for name in row)
        return self._run(f"{_INSERT} {table} ({', '.join(row)}) VALUES ({places}) {then}", row)

    def _rounds(self, rest: str, most: int = 0) -> list[RoundRow]:
        return [_to_round(row) for row in self._select(_ROUND, f"rounds {rest}", {"most": most})]

    def _run(self, sql: str, values: Mapping[str, object] | None = None) -> int:
        with self._telling("write"):
            return self._db.execute(sql, values or {}).rowcount

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise StoreError(f"cannot {what} the store {self.path}: our rows contradict each other: {error}") from error
        except (sqlite3.Error, OSError) as error:
            hint = next((hint for word, hint in _HINTS.items() if word in str(error)), "")
            raise StoreError(f"cannot {what} the store {self.path}: {error}{hint}") from error


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    if not read_only:
        path.touch(0o600)  # what devices learned is nobody else's business
    uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rw'}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000)
    if not read_only:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    return db


def _to_round(row: tuple[Any, ...]) -> RoundRow:
    plan = decode(bytes(row[1]))
    assert isinstance(plan, Plan), "the store keeps plans in the column of plans"
    return RoundRow(row[0], plan, *row[2:])


def _params_digest(manifest: Manifest) -> bytes:
    found = [file.digest for file in manifest.files if file.name == PARAMS_FILE]
    if len(found) != 1:
        _we_are_wrong(f"version {manifest.model_version} has no file {PARAMS_FILE}")
    return found[0]


def _we_are_wrong(sentence: str) -> NoReturn:
    raise StoreError(f"the coordinator contradicts its store, which is a fault of ours: {sentence}")
