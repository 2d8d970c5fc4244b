"""The door to SQLite: one file, its transactions and its errors, and how its layout is brought forward.

What is said to it stands in `broker.store`. Here is what SQLite alone needs: how a file is opened, that a write has
returned only when it is on disk (`synchronous = FULL`), that a writer takes its lock at once, and which of its errors
have a remedy that an operator can be told.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from broker import migrations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BUSY_TIMEOUT_MS: Final = 10_000

# apart from what follows them: the names of tables and columns are ours, every value is bound by name
_SELECT: Final = "SELECT"
_INSERT: Final = "INSERT INTO"
_HINTS: Final = {
    "full": "; make room on that disk, nothing that was receipted is lost",
    "locked": "; another broker command holds it for too long",
}


class StoreError(Exception):
    """The store cannot do what it must: the disk is full, the file is damaged, or we are wrong. A sentence."""


class Sqlite:
    """The file at `path`, made if it is not there; with `read_only` it must be. Every method raises StoreError."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._path = path
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
    def without_flush(self) -> Iterator[None]:
        """What is written in the block need not be on disk when it ends."""
        self.run("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            self.run("PRAGMA synchronous = FULL")

    def rows(self, sql: str, values: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
        """Read whatever `sql` says."""
        with self._telling("read"):
            return self._db.execute(sql, values or {}).fetchall()

    def select(self, columns: str, rest: str, values: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
        """Read `columns` from `rest`, which begins with a table's name."""
        return self.rows(f"{_SELECT} {columns} FROM {rest}", values)

    def part(self, table: str, column: str, row: int, start: int, count: int) -> bytes:
        """Read `count` bytes of the BYTEA in a column of the row with this rowid, from `start` on, and not the rest."""
        with self._telling("read"), self._db.blobopen(table, column, row, readonly=True) as blob:
            blob.seek(start)
            return blob.read(count)

    def insert(self, table: str, row: Mapping[str, object], then: str = "") -> int:
        """Write one row, and do `then` on a conflict; return how many rows changed."""
        places = ", ".join(f":{name}" for name in row)
        return self.run(f"{_INSERT} {table} ({', '.join(row)}) VALUES ({places}) {then}", row)

    def run(self, sql: str, values: Mapping[str, object] | None = None) -> int:
        """Write whatever `sql` says; return how many rows changed."""
        with self._telling("write"):
            return self._db.execute(sql, values or {}).rowcount

    def setting(self, name: str) -> int:
        """A number of the table of settings; 0 where it was never written."""
        found = self.rows("SELECT value FROM settings WHERE name = :name", {"name": name})
        return int(found[0][0]) if found else 0

    def put_setting(self, name: str, value: int) -> None:
        """Keep a number in the table of settings."""
        row = {"name": name, "value": value}
        self.insert("settings", row, "ON CONFLICT (name) DO UPDATE SET value = excluded.value")

    def _migrate(self, *, read_only: bool) -> None:
        steps = migrations.steps()
        newest, have = len(steps), self._schema_version()
        if have > newest:
            raise StoreError(f"{self._path} was written by a newer broker (schema {have}, ours is {newest}): update it")
        if have < newest and read_only:
            raise StoreError(
                f"{self._path} was written by an older broker: start broker serve once to bring it forward"
            )
        if have == newest:
            return
        with self.transaction():
            for step in steps[self._schema_version() :]:  # asked again: another process may have been faster
                for statement in step:
                    self.run(statement)
            self.put_setting("schema", newest)

    def _schema_version(self) -> int:
        tables = self.rows("SELECT name FROM sqlite_master WHERE name = 'settings'")
        return self.setting("schema") if tables else 0

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            why = f"our rows contradict each other: {error}"
            raise StoreError(f"cannot {what} the store {self._path}: {why}") from error
        except (sqlite3.Error, OSError) as error:
            hint = next((hint for word, hint in _HINTS.items() if word in str(error)), "")
            raise StoreError(f"cannot {what} the store {self._path}: {error}{hint}") from error


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    if not read_only:
        path.touch(0o600)  # what devices learned is nobody else's business
    uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rw'}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000)
    if not read_only:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    return db
