"""A backup holds everything, of one moment, and comes back whole or not at all, on either database."""

from __future__ import annotations

import sqlite3
import sys
from typing import TYPE_CHECKING, Any

import pytest

from broker import migrations
from broker.backup import backup, restore
from broker.cli import printing
from broker.database import StoreError, open_database, put_setting, select
from broker.effects import StoreEpoch, StoreRound, StoreSeen, StoreUpdate
from broker.store import Store
from tests.broker.fleet import KEY, first_manifest, row
from tests.broker.test_cli import good, home, lived, refused
from tests.broker.test_store import commit, member, update_row
from wire.messages import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker.database import Place
    from tests.databases import PostgresServer

__all__ = ["home", "lived"]  # fixtures


def quiet(_done: int, _total: int) -> None:
    """Show no progress."""


@pytest.fixture
def others(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Places in the other database than that of `places`."""
    if "postgres" in request.node.name:
        return (tmp_path / f"other-{number}.db" for number in range(9))
    server: PostgresServer = request.getfixturevalue("postgres")
    return (server.fresh() for _ in range(9))


@pytest.fixture
def full(place: Place) -> Place:
    """A store with something in every table that a coordinator fills by itself."""
    with Store(place) as store:
        store.put_first_version(*first_manifest(), b"first")
        for device in ("cabin", "dune"):
            store.add_device(device, KEY[device])
        store.apply(StoreEpoch(7))
        traffic = Traffic(*range(1, 1 + len(Traffic.__struct_fields__)))
        store.apply(StoreSeen("cabin", True, "agent-1", 40, 1, traffic=traffic))
        store.ask_for([row(0, lasts_ms=1000)] * 2)
        store.apply(StoreRound(row(1, status="open", base_version=1)))
        store.apply_all([StoreUpdate(update_row("cabin")), StoreUpdate(update_row("dune", payload=bytes(range(256))))])
        store.apply(commit(1, 2, member("cabin")))
        store.cancel_round(2)
    return place


def rows_of(place: Place) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, but what is of a run or of the database itself."""
    database = open_database(place, read_only=True)
    tables = {}
    for table in set(migrations.tables()) - {"lease"}:
        columns = database.columns(table)
        found = [dict(zip(columns, values, strict=True)) for values in database.rows(select(", ".join(columns), table))]
        tables[table] = sorted((each for each in found if each.get("name") != "changes"), key=str)
    database.close()
    return tables


@pytest.mark.parametrize("into", ["the same", "the other"])
def test_a_backup_comes_back_whole_in_either_database(
    full: Place, places: Iterator[Place], others: Iterator[Place], into: str, tmp_path: Path
) -> None:
    out, target = tmp_path / "backup", next(places if into == "the same" else others)
    copied = backup(full, out, quiet)
    assert [path.name for path in tmp_path.iterdir() if "backup" in path.name] == ["backup"]
    assert out.stat().st_mode & 0o077 == 0
    assert restore(out, target, quiet) == copied
    before = rows_of(full)
    assert sum(bool(rows) for rows in before.values()) >= 8
    assert rows_of(target) == before
    with Store(full) as old, Store(target) as new:
        assert new.snapshot() == old.snapshot()
        assert new.remainder(2) == b"of 2"
        new.apply(StoreRound(row(3, status="open", base_version=2)))
    again = tmp_path / "again"
    backup(full, again, quiet)
    assert restore(again, next(places), quiet) == copied


def test_a_backup_is_of_one_moment_while_others_write(
    full: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(full)
    with Store(full) as writer, Store(full) as other:
        added = []

        def write_meanwhile(_done: int, _total: int) -> None:
            other.add_device(f"late-{len(added)}", "key")
            added.append(1)

        monkeypatch.setattr("broker.backup.PROGRESS_EVERY", 1)
        backup(full, tmp_path / "backup", write_meanwhile)
        assert len(added) > 8
        assert len(writer.fleet()) == 2 + len(added)
    restore(tmp_path / "backup", tmp_path / "restored.db", quiet)
    assert rows_of(tmp_path / "restored.db") == before


def test_who_coordinates_is_not_restored(postgres: PostgresServer, tmp_path: Path) -> None:
    address = postgres.fresh()
    Store(address)._db.run("INSERT INTO lease VALUES (1, 3, 'old:1', 1e12)")
    backup(address, tmp_path / "backup", quiet)
    target = postgres.fresh()
    restore(tmp_path / "backup", target, quiet)
    assert open_database(target).rows("SELECT * FROM lease") == []


def test_nothing_is_overwritten(full: Place, places: Iterator[Place], tmp_path: Path) -> None:
    out = tmp_path / "backup"
    out.write_text("dear")
    with pytest.raises(StoreError, match="nothing is overwritten"):
        backup(full, out, quiet)
    assert out.read_text() == "dear"
    backup(full, tmp_path / "other", quiet)
    before = rows_of(full)
    with pytest.raises(StoreError, match="nothing is overwritten"):
        restore(tmp_path / "other", full, quiet)
    assert rows_of(full) == before
    stale = tmp_path / "new.db-wal"
    stale.write_text("of another store")
    with pytest.raises(StoreError, match=r"new\.db-wal exists"):
        restore(tmp_path / "other", tmp_path / "new.db", quiet)


def test_what_a_killed_backup_left_does_no_harm(full: Place, tmp_path: Path) -> None:
    (tmp_path / ".backup.partial").write_text("half")
    backup(full, tmp_path / "backup", quiet)
    assert restore(tmp_path / "backup", tmp_path / "restored.db", quiet).row_count > 8
    assert not list(tmp_path.glob(".*.partial*"))


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE updates SET payload = x'00' WHERE device_id = 'dune'",
        "DELETE FROM devices WHERE device_id = 'cabin'",
        "INSERT INTO devices VALUES ('ghost', 'key', 1.0)",
        "UPDATE versions SET remainder = NULL WHERE model_version = 2",
        "UPDATE settings SET value = 8 WHERE name = 'epoch'",
    ],
)
def test_a_row_that_is_not_as_it_was_is_noticed(
    full: Place, places: Iterator[Place], harm: str, tmp_path: Path
) -> None:
    out, target = tmp_path / "backup", next(places)
    backup(full, out, quiet)
    with sqlite3.connect(out) as db:
        assert db.execute(harm).rowcount == 1
    with pytest.raises(StoreError, match="is damaged"):
        restore(out, target, quiet)
    assert_nothing_at(target)


def assert_nothing_at(target: Place) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        Store(target, make=False)


def test_no_flipped_byte_changes_what_is_restored(tmp_path: Path) -> None:
    """A byte that matters is noticed; one that does not, such as of a page that nobody uses, changes nothing."""
    place, out = tmp_path / "broker.db", tmp_path / "backup"
    with Store(place) as store:
        store.put_first_version(*first_manifest(), b"first")
        store.apply(StoreUpdate(update_row("cabin", payload=bytes(range(256)) * 8)))
    backup(place, out, quiet)
    whole, before, noticed = bytearray(out.read_bytes()), rows_of(place), 0
    for at in range(0, len(whole), 997):
        whole[at] ^= 0x55
        out.write_bytes(whole)
        whole[at] ^= 0x55
        target = tmp_path / f"restored-{at}.db"
        try:
            restore(out, target, quiet)
        except StoreError:
            noticed += 1
            assert not target.exists()
        else:
            assert rows_of(target) == before
    assert noticed > 3


def test_what_is_no_backup_is_refused_with_a_sentence(full: Place, tmp_path: Path) -> None:
    target = tmp_path / "restored.db"
    with pytest.raises(StoreError, match="there is no backup at"):
        restore(tmp_path / "none", target, quiet)
    (tmp_path / "text").write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(StoreError, match="not a database"):
        restore(tmp_path / "text", target, quiet)
    Store(tmp_path / "store.db").close()
    with pytest.raises(StoreError, match="is no backup"):
        restore(tmp_path / "store.db", target, quiet)
    backup(full, tmp_path / "backup", quiet)
    put_setting(open_database(tmp_path / "backup"), "schema", 99)
    with pytest.raises(StoreError, match="newer broker"):
        restore(tmp_path / "backup", target, quiet)
    assert not target.exists()
    with pytest.raises(StoreError, match="there is no store at"):
        backup(tmp_path / "none.db", tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_a_backup_of_an_older_broker_is_brought_forward(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = migrations.steps()
    with monkeypatch.context() as old:
        old.setattr(migrations, "steps", lambda: steps[:5])
        source = tmp_path / "old.db"
        with Store(source) as store:
            store.add_device("cabin", KEY["cabin"])
        backup(source, tmp_path / "backup", quiet)
    restore(tmp_path / "backup", place, quiet)
    with Store(place, read_only=True) as store:
        assert store.fleet() == {"cabin": KEY["cabin"]}


def test_a_place_that_cannot_be_written_is_a_sentence(full: Place, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot"):
        backup(full, tmp_path / "none/backup", quiet)


def test_the_commands_say_what_is_not_in_the_file(lived: Path, tmp_path: Path, postgres: PostgresServer) -> None:
    out = tmp_path / "backup"
    said = good("backup", out, "--config", lived)
    assert str(out) in said
    assert f"key and its configuration are not in it: keep {lived / 'coordinator.key'}" in said
    assert "nothing is overwritten" in refused("backup", out, "--config", lived)
    assert "broker.db exists, and nothing is overwritten" in refused("restore", out, "--config", lived)
    config = lived / "broker.toml"
    said = config.read_text().replace('path = "broker.db"', f'url = "{postgres.fresh().url}"')
    config.write_text(said)
    assert "rows (digest " in good("restore", out, "--config", lived)
    assert "there is a store at postgresql://" in refused("restore", out, "--config", lived)
    assert good("model", "list", "--config", lived).count("\n") == 3


def test_what_takes_long_shows_how_far_it_is_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(printing, "SILENT_S", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    show = printing.shown("backing up")
    show(50, 200)
    show(200, 200)
    assert capsys.readouterr().err == "\r\033[Kbacking up: 25 %\r\033[K"
