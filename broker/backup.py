"""A backup: one file with everything that the store holds, made while the coordinator goes on; and back again.

The file is a store of SQLite by itself, whichever database it was made of, and goes back into either. What it holds is
of one moment. A digest over all rows stands in it; what is restored must come to the same, else nothing is restored.
It finds what has rotted, and is no signature: keep the file as safe as the coordinator's key, which is not in it.

Either way the rows are copied into something new, which becomes the store, or the backup, at one stroke at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cbor2
from msgspec import Struct

from broker import migrations
from broker.database import StoreError, insert, open_database, select, setting
from broker.sqlite import Sqlite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker.database import Database, Place

PROGRESS_EVERY: Final = 100  # rows
_OF_A_RUN: Final = frozenset({"lease"})  # tables of who runs now, which is nobody's to restore
_OF_A_DATABASE: Final = frozenset({"schema", "changes"})  # settings that every database keeps for itself
_SEAL: Final = "CREATE TABLE backup (digest BYTEA NOT NULL, row_count BIGINT NOT NULL)"


class Copied(Struct, frozen=True):
    """What a backup holds."""

    digest: bytes  # over every row, whatever their order
    row_count: int


def backup(place: Place, out: Path, progress: Callable[[int, int], None]) -> Copied:
    """Write everything of the store at `place` into the new file `out`. Raises StoreError, and then there is none.

    `progress` is called with (rows done, rows in all).
    """
    with _new_file(out) as partial, contextlib.closing(open_database(place, read_only=True, make=False)) as source:
        migrations.bring_forward(source, place, read_only=True)
        with contextlib.closing(Sqlite(partial, read_only=False)) as target:
            with source.transaction(writes=False), target.transaction():
                migrations.bring_forward(target, partial)
                copied = _copy(source, target, progress)
                target.run(_SEAL)
                seal = {"digest": copied.digest, "row_count": copied.row_count}
                target.run(insert("backup", seal), seal)
            target.settle()
    return copied


def restore(file: Path, place: Place, progress: Callable[[int, int], None]) -> Copied:
    """Make a store at `place` of the backup in `file`. There must be none; after a StoreError there is none either."""
    if not file.is_file():
        raise StoreError(f"there is no backup at {file}")
    with contextlib.closing(Sqlite(file, read_only=True)) as source, source.transaction(writes=False):
        if not isinstance(place, Path):
            with contextlib.closing(open_database(place)) as server:
                return _fill(server, source, file, place, progress)
        with _new_file(place) as partial, contextlib.closing(Sqlite(partial, read_only=False)) as target:
            copied = _fill(target, source, file, place, progress)
            target.settle()
        return copied


def _fill(target: Database, source: Database, file: Path, place: Place, progress: Callable[[int, int], None]) -> Copied:
    sealed = _sealed(source, file)
    with target.transaction():
        if target.columns("settings"):
            raise StoreError(f"there is a store at {place}, and nothing is overwritten: name an empty database")
        migrations.bring_forward(target, place, to=setting(source, "schema"))
        copied = _copy(source, target, progress)
        if copied != sealed:
            raise StoreError(f"{file} is damaged: its rows are not those that were backed up; nothing was restored")
        migrations.bring_forward(target, place)
    return copied


def _sealed(source: Database, file: Path) -> Copied:
    found = source.rows("SELECT digest, row_count FROM backup") if source.columns("backup") else []
    if len(found) != 1:
        raise StoreError(f"{file} is no backup: make one with broker backup")
    have, ours = setting(source, "schema"), len(migrations.steps())
    if not 0 < have <= ours:
        raise StoreError(f"{file} was written by a newer broker (schema {have}, ours is {ours}): update it")
    return Copied(bytes(found[0][0]), int(found[0][1]))


def _copy(source: Database, target: Database, progress: Callable[[int, int], None]) -> Copied:
    """Copy every row into the tables of `target`, which are new."""
    tables = [name for name in migrations.tables() if name not in _OF_A_RUN and source.columns(name)]
    total = sum(source.rows(select("COUNT(*)", name))[0][0] for name in tables)
    digest, count = 0, 0
    for table in tables:
        for row in _rows(source, table):
            target.run(insert(table, row), row)
            # a sum, because two databases have no order in common
            digest += int.from_bytes(hashlib.sha256(cbor2.dumps([table, row])).digest(), "big")
            count += 1
            if count % PROGRESS_EVERY == 0:
                progress(count, total)
    progress(total, total)
    return Copied((digest % 2**256).to_bytes(32, "big"), count)


def _rows(source: Database, table: str) -> Iterator[dict[str, Any]]:
    columns = sorted(source.columns(table))
    for values in source.each(select(", ".join(columns), table)):
        row = dict(zip(columns, values, strict=True))
        if table != "settings" or row["name"] not in _OF_A_DATABASE:
            yield row


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A path to write to, whose file is at `path` when the block has ended well, and else nowhere."""
    leftovers = [path.with_name(path.name + end) for end in ("", "-wal", "-shm")]
    taken = next((each for each in leftovers if each.exists()), None)
    if taken is not None:
        raise StoreError(f"{taken} exists, and nothing is overwritten: choose another name, or move it away")
    partial = path.with_name(f".{path.name}.partial")
    try:
        _remove(partial)  # of a process that was killed
        yield partial
        partial.rename(path)
        _flush_directory(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    finally:
        _remove(partial)


def _remove(partial: Path) -> None:
    for end in ("", "-wal", "-shm"):
        partial.with_name(partial.name + end).unlink(missing_ok=True)


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
