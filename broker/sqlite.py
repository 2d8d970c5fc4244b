"""The door to SQLite: one file, its transactions and its errors.

What is said to it stands in `broker.store`. Here is what SQLite alone needs: how a file is opened, that a write has
returned only when it is on disk (`synchronous = FULL`), that a writer takes its lock at once, and which of its errors
have a remedy that an operator can be told.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from broker.database import BUSY_TIMEOUT_MS, StoreError, select

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_HINTS: Final = {
    "full": "; make room on that disk, nothing that was receipted is lost",
    "locked": "; another broker command holds it for too long",
}


class Sqlite:
    """The file at `path`, made if it is not there; with `read_only` it must be. A `broker.database.Database`."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._path = path
        with self._telling("open"):
            self._db = _connect(path, read_only=read_only)

    def close(self) -> None:
        """Close the file. Nothing is lost without it."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self, *, writes: bool = True, flush: bool = True) -> Iterator[None]:
        """Make the block one transaction; inside another it is a part of that. Without `flush` it may be lost."""
        if self._db.in_transaction:
            yield
            return
        with self._telling("write" if writes else "read"), contextlib.nullcontext() if flush else self._unflushed():
            # a writer takes its lock at once: a lock that is upgraded later can fail without waiting
            self._db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, sql: str, values: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
        """Read whatever `sql` says."""
        with self._telling("read"):
            return self._db.execute(sql, values or {}).fetchall()

    def each(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """Read whatever `sql` says row by row."""
        with self._telling("read"):
            yield from self._db.execute(sql)

    def run(self, sql: str, values: Mapping[str, object] | None = None) -> int:
        """Write whatever `sql` says; return how many rows changed."""
        with self._telling("write"):
            return self._db.execute(sql, values or {}).rowcount

    def run_each(self, sql: str, rows: Sequence[Mapping[str, object]]) -> int:
        """Write what `sql` says of each row; return how many rows changed in all."""
        with self.transaction(), self._telling("write"):
            return self._db.executemany(sql, rows).rowcount

    def part(self, digest: bytes, start: int, count: int) -> bytes:
        """Read a part of a blob, and not the rest; nothing where it is gone."""
        found = self.rows(select("rowid", "blobs WHERE digest = :digest"), {"digest": digest})
        if not found:
            return b""
        with self._telling("read"), self._db.blobopen("blobs", "content", found[0][0], readonly=True) as blob:
            blob.seek(start)
            return blob.read(count)

    def columns(self, table: str) -> list[str]:
        """The names of a table's columns; none where there is no such table."""
        return [name for (name,) in self.rows("SELECT name FROM pragma_table_info(:table)", {"table": table})]

    def define(self, statement: str) -> None:
        """Perform a statement of `broker/schema`: its types are SQLite's own."""
        self.run(statement)

    def change_counter(self) -> int:
        """A number that is another one after someone else has written to the file."""
        return int(self.rows("PRAGMA data_version")[0][0])

    def settle(self) -> None:
        """Let the file hold everything by itself, with no log beside it, until it is opened for writing again."""
        self.run("PRAGMA journal_mode = DELETE")

    @contextlib.contextmanager
    def _unflushed(self) -> Iterator[None]:
        self._db.execute("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            self._db.execute("PRAGMA synchronous = FULL")

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
