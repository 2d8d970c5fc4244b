"""The door to PostgreSQL: the same store on a server, where coordinators of several machines can reach it.

What is said to it stands in `broker.store`, and is SQLite's text as well. Here is what PostgreSQL alone needs:

- *One writer at a time*, as in a file: a transaction that writes takes an advisory lock first. What it reads then stays
  true, and each such transaction counts one up, by which a coordinator notices a command.
- *A coordinator has a term* (`broker.lease`). With the lock in hand each of its transactions looks whether the term is
  still the newest. So one that slept while another took over writes nothing, whatever it believes.
- *A writer that stops in the middle* of a transaction is thrown out by the server after IDLE_MS, and with it the lock.
- *Text compares by bytes*, whatever language the server speaks, so that both databases sort alike.
"""

from __future__ import annotations

import contextlib
import functools
import re
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import conninfo
from psycopg.pq import TransactionStatus

from broker.database import BUSY_TIMEOUT_MS, StoreError, setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from broker.database import Address

IDLE_MS: Final = 4_000  # shorter than a lease: a lock must not outlive its holder's term
_SESSION: Final = {
    "connect_timeout": "10",
    "application_name": "hedgerow",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('hedgerow ' || current_schema(), 0))"
# a receipt follows a write, so it returns only when it is on disk; what is stricter than that, we leave
_FLUSH: Final = (
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)
_COUNT_UP: Final = """
    UPDATE settings SET value = value + 1 WHERE name = 'changes'
    AND (:term = 0 OR EXISTS (SELECT 1 FROM lease WHERE term = :term))
"""
_NAME: Final = re.compile(r"(?<![:\w]):([a-z]\w*)")
_HINTS: Final = {
    "53100": "; make room on that disk, nothing that was receipted is lost",
    "55P03": "; another broker command holds it for too long",
    "25P03": "; this process stood still in the middle of a write, of which nothing was kept",
}


class Postgres:
    """The store at `address`, which may be empty. A `broker.database.Database`.

    With a `term` it writes only while that is the lease's newest.
    """

    def __init__(self, address: Address, *, read_only: bool = False, term: int = 0) -> None:
        self._address = address
        self._term = term
        self._own_count = 0
        self._counts = False
        with self._telling("open"):
            self._db = _connect(address, read_only=read_only)

    def close(self) -> None:
        """Close the connection. Nothing is lost without it."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self, *, writes: bool = True, flush: bool = True) -> Iterator[None]:
        """Make the block one transaction; inside another it is a part of that. Without `flush` it may be lost."""
        if self._db.info.transaction_status != TransactionStatus.IDLE:
            yield
            return
        with self._telling("write" if writes else "read"):
            try:
                counted = self._begin(flush=flush) if writes else self._begin_reading()
                yield
                self._commit()
            except BaseException:
                with contextlib.suppress(psycopg.Error):  # the connection may be what has ended
                    self._db.execute("ROLLBACK")
                raise
            self._own_count += counted

    def rows(self, sql: str, values: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
        """Read whatever `sql` says."""
        with self._telling("read"):
            return self._execute(sql, values).fetchall()

    def each(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """Read whatever `sql` says row by row."""
        with self._telling("read"):
            yield from self._db.cursor().stream(sql.encode(), binary=True)

    def run(self, sql: str, values: Mapping[str, object] | None = None) -> int:
        """Write whatever `sql` says; return how many rows changed."""
        with self.transaction(), self._telling("write"):
            return self._execute(sql, values).rowcount

    def run_each(self, sql: str, rows: Sequence[Mapping[str, object]]) -> int:
        """Write what `sql` says of each row, without a round trip for each; return how many rows changed in all."""
        with self.transaction(), self._telling("write"), self._db.cursor() as cursor:
            cursor.executemany(_named(sql), rows)
            return cursor.rowcount

    def part(self, digest: bytes, start: int, count: int) -> bytes:
        """Read a part of a blob, and not the rest; nothing where it is gone."""
        values = {"digest": digest, "first": start + 1, "count": count}
        found = self.rows("SELECT SUBSTRING(content FROM :first FOR :count) FROM blobs WHERE digest = :digest", values)
        return bytes(found[0][0]) if found else b""

    def columns(self, table: str) -> list[str]:
        """The names of a table's columns; none where there is no such table."""
        found = self.rows(
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND table_name = :table ORDER BY ordinal_position",
            {"table": table},
        )
        return [name for (name,) in found]

    def define(self, statement: str) -> None:
        """Perform a statement of `broker/schema`, with text that compares by bytes and blobs that are read in parts."""
        self.run(re.sub(r"\bTEXT\b", 'TEXT COLLATE "C"', statement))
        if "CREATE TABLE blobs" in statement:
            self.run("ALTER TABLE blobs ALTER COLUMN content SET STORAGE EXTERNAL")

    def change_counter(self) -> int:
        """A number that is another one after someone else has written. Raises StoreError if we may not any more."""
        with self.transaction(writes=False):
            self._check_term()
            return setting(self, "changes") - self._own_count

    def _begin(self, *, flush: bool) -> int:
        """Begin to write; how much the counter of changes grows by that."""
        lax = "" if flush else "SET LOCAL synchronous_commit TO off; "
        self._db.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED; {lax}{_LOCK}".encode(), prepare=False)
        self._counts = self._counts or bool(self.columns("lease"))
        counted = self._execute(_COUNT_UP, {"term": self._term}).rowcount if self._counts else 0
        if not counted:
            self._check_term()
        return counted

    def _begin_reading(self) -> int:
        self._db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return 0

    def _commit(self) -> None:
        # where a statement has failed, COMMIT says ROLLBACK and is content
        if self._db.execute("COMMIT").statusmessage != "COMMIT":
            raise StoreError(f"cannot write the store {self._address}: one of its statements had failed")

    def _check_term(self) -> None:
        newest = self.rows("SELECT term, holder FROM lease") if self._term else []
        if self._term and (not newest or newest[0][0] != self._term):
            who = newest[0][1] if newest else "nobody we know"
            where = f"has taken over the store {self._address}"
            raise StoreError(f"{who} {where}: this coordinator ends, and has written nothing since")

    def _execute(self, sql: str, values: Mapping[str, object] | None) -> psycopg.Cursor[tuple[Any, ...]]:
        if not values:
            return self._db.execute(sql.encode(), binary=True)
        return self._db.execute(_named(sql), values, binary=True)

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except psycopg.IntegrityError as error:
            why = f"our rows contradict each other: {_first_line(error)}"
            raise StoreError(f"cannot {what} the store {self._address}: {why}") from error
        except (psycopg.Error, OSError, ValueError) as error:
            hint = _HINTS.get(getattr(error, "sqlstate", None) or "", "")
            raise StoreError(f"cannot {what} the store {self._address}: {_first_line(error)}{hint}") from error


@functools.lru_cache(maxsize=256)
def _named(sql: str) -> bytes:
    """`:name` as psycopg wants it."""
    return _NAME.sub(r"%(\1)s", sql.replace("%", "%%")).encode()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _connect(address: Address, *, read_only: bool) -> psycopg.Connection[tuple[Any, ...]]:
    asked: dict[str, Any] = {**_SESSION, **conninfo.conninfo_to_dict(address.url), "client_encoding": "UTF8"}
    if address.password_file is not None:
        asked["password"] = address.password_file.read_text("utf-8").rstrip("\n")
    db = psycopg.connect(conninfo.make_conninfo(**asked), autocommit=True)
    session = {"default_transaction_read_only": "on"} if read_only else {"idle_in_transaction_session_timeout": IDLE_MS}
    for name, value in {**session, "lock_timeout": BUSY_TIMEOUT_MS}.items():
        db.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
    db.execute(_FLUSH)
    return db
