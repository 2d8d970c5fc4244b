"""The steps from one layout of the store to the next: the numbered files in `broker/schema`, in their order.

A step is never edited once it has been released; a change of the layout is a new file. The table of settings remembers
how many were taken.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.database import StoreError, put_setting, setting

if TYPE_CHECKING:
    from broker.database import Database

SCHEMA_DIR: Final = Path(__file__).parent / "schema"


def steps() -> list[list[str]]:
    """The SQL statements of each step. A store that has seen the first n of them has schema version n."""
    return [_statements(path.read_text("utf-8")) for path in sorted(SCHEMA_DIR.glob("[0-9]*.sql"))]


def tables() -> list[str]:
    """The names of all tables that the steps make."""
    made = re.compile(r"^CREATE TABLE (\w+)", re.MULTILINE)
    return [name for step in steps() for statement in step for name in made.findall(statement)]


def version_of(database: Database) -> int:
    """The schema version of a store; 0 where nothing is there."""
    return setting(database, "schema") if database.columns("settings") else 0


def bring_forward(database: Database, name: object, *, read_only: bool = False, to: int | None = None) -> None:
    """Take the steps that the store called `name` has not seen, up to schema version `to`, by default all.

    Raises StoreError where it is newer than we are, or where it is older and may only be read.
    """
    ours = steps()[:to]
    newest, have = len(ours), version_of(database)
    if have > newest:
        raise StoreError(f"{name} was written by a newer broker (schema {have}, ours is {newest}): update it")
    if have < newest and read_only:
        raise StoreError(f"{name} was written by an older broker: start broker serve once to bring it forward")
    if have == newest:
        return
    with database.transaction():
        for step in ours[version_of(database) :]:  # asked again: another process may have been faster
            for statement in step:
                database.define(statement)
        put_setting(database, "schema", newest)


def _statements(text: str) -> list[str]:
    return [part.strip() for part in re.split(r";\s*$", text, flags=re.MULTILINE) if part.strip()]
