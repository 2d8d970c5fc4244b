"""What the store asks of a database, whichever it is, and the small language in which it asks.

There are two: `broker.sqlite` keeps one file, `broker.postgres` speaks to a server. Both read the same SQL, with every
value bound by name as in `:device_id`, and both let one writer in at a time, so that what a transaction has read stays
true until it has written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

BUSY_TIMEOUT_MS: Final = 10_000  # how long a writer waits for another one

# apart from what follows them: the names of tables and columns are ours, every value is bound by name
_SELECT: Final = "SELECT"
_INSERT: Final = "INSERT INTO"


class StoreError(Exception):
    """The store cannot do what it must: the disk is full, the file is damaged, or we are wrong. A sentence."""


class Address(Struct, frozen=True):
    """Where a PostgreSQL server keeps a store. The URL has no password in it: it is shown to people."""

    url: str
    password_file: Path | None = None

    def __str__(self) -> str:
        return self.url.partition("?")[0]


Place: TypeAlias = Path | Address  # where a store is: the file of SQLite, or PostgreSQL


class Database(Protocol):
    """An open database. Every method raises StoreError."""

    def transaction(self, *, writes: bool = True, flush: bool = True) -> AbstractContextManager[None]:
        """Make the block one transaction; inside another it is a part of that.

        What it reads is of one moment. What it wrote is on disk when it ends; without `flush` it need not be.
        """

    def rows(self, sql: str, values: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
        """Read whatever `sql` says."""

    def each(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """Read whatever `sql` says row by row, inside a transaction, so that a large table fits any memory."""

    def run(self, sql: str, values: Mapping[str, object] | None = None) -> int:
        """Write whatever `sql` says; return how many rows changed."""

    def run_each(self, sql: str, rows: Sequence[Mapping[str, object]]) -> int:
        """Write what `sql` says of each row, without an answer between them; return how many rows changed in all."""

    def part(self, digest: bytes, start: int, count: int) -> bytes:
        """Read `count` bytes of the blob with this digest from `start` on, and not the rest; none where it is gone."""

    def columns(self, table: str) -> list[str]:
        """The names of a table's columns; none where there is no such table."""

    def define(self, statement: str) -> None:
        """Perform a statement of `broker/schema`, which makes or changes a table."""

    def change_counter(self) -> int:
        """A number that is another one after someone else has written."""

    def close(self) -> None:
        """Let go of it. Nothing is lost without it."""


def open_database(place: Place, *, read_only: bool = False, make: bool = True, term: int = 0) -> Database:
    """The database at `place`, whatever is in it; it is made if it is not there, unless `make` forbids it.

    With `read_only` nothing can be written; with the `term` of a lease only while it is the newest. Raises StoreError.
    """
    if isinstance(place, Path):
        from broker.sqlite import Sqlite

        if not (make or place.is_file()):
            raise _nothing_there(place)
        return Sqlite(place, read_only=read_only)
    try:
        from broker.postgres import Postgres
    except ModuleNotFoundError as error:
        why = f"{error.name} is not installed: pip install 'hedgerow[postgres]'"
        raise StoreError(f"cannot open the store {place}: {why}") from error
    database = Postgres(place, read_only=read_only, term=term)
    if not (make or database.columns("settings")):
        database.close()
        raise _nothing_there(place)
    return database


def select(columns: str, rest: str) -> str:
    """The text that reads `columns` from `rest`, which begins with a table's name."""
    return f"{_SELECT} {columns} FROM {rest}"


def insert(table: str, row: Mapping[str, object], then: str = "") -> str:
    """The text that writes one row, and does `then` on a conflict."""
    places = ", ".join(f":{name}" for name in row)
    return f"{_INSERT} {table} ({', '.join(row)}) VALUES ({places}) {then}"


def setting(database: Database, name: str) -> int:
    """A number of the table of settings; 0 where it was never written."""
    found = database.rows("SELECT value FROM settings WHERE name = :name", {"name": name})
    return int(found[0][0]) if found else 0


def put_setting(database: Database, name: str, value: int) -> None:
    """Keep a number in the table of settings."""
    row = {"name": name, "value": value}
    database.run(insert("settings", row, "ON CONFLICT (name) DO UPDATE SET value = excluded.value"), row)


def _nothing_there(place: Place) -> StoreError:
    return StoreError(f"there is no store at {place}: make one with broker init")
