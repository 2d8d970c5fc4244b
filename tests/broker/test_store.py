"""The store: what was said to be kept is there after any end of the process, once."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from broker import migrations
from broker.database import Address, StoreError, put_setting
from broker.effects import (
    Aggregated,
    CommitRound,
    Pending,
    Publish,
    StoreEpoch,
    StoreRound,
    StoreSeen,
    StoreUpdate,
    UpdateRow,
)
from broker.rows import Cost
from broker.store import PATCHES_KEPT, VERSIONS_KEPT, Store
from tests.broker import fleet
from tests.broker.fleet import KEY, PLAN, first_manifest, params, row
from wire import chunks
from wire.messages import Manifest, encode

if TYPE_CHECKING:
    from broker.database import Place
    from tests.databases import PostgresServer


@pytest.fixture
def path(place: Place) -> Place:
    """A store that has its first version."""
    with Store(place) as store:
        store.put_first_version(*first_manifest(), b"first")
    return place


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The same, where a test is of SQLite alone."""
    with Store(tmp_path / "broker.db") as store:
        store.put_first_version(*first_manifest(), b"first")
    return tmp_path / "broker.db"


def update_row(device: str = "cabin", round_id: int = 1, payload: bytes = b"payload") -> UpdateRow:
    return UpdateRow(device, round_id, 1, 40, b"d" * 32, 3, 4, payload)


def commit(
    round_id: int, version: int, *members: Pending, content: bytes | None = None, model: bytes = b""
) -> CommitRound:
    content = content or params(version, 0, 0, 0)
    base = chunks.split("model.tflite", model) if model else first_manifest()[0].files[0]
    manifest = Manifest("tiny", version, version - 1, 4, (base, chunks.split("params.bin", content)), int(bool(model)))
    closed = row(round_id, status="closed", base_version=version - 1, model_version=version)
    patch = b"" if model else f"to {version}".encode()
    made = Aggregated(round_id, content, 0.5, 0.25, f"of {version}".encode(), model, patch)
    return CommitRound(closed, manifest, made, members)


def member(device: str = "cabin", round_id: int = 1) -> Pending:
    return Pending(device, round_id, 1, 20)


def open_round(store: Store, round_id: int = 1, version: int = 1) -> None:
    store.apply(StoreRound(row(round_id, status="open", base_version=version)))


def test_a_new_store_holds_the_first_version_and_nothing_else(path: Place) -> None:
    with Store(path) as store:
        manifest, blobs = first_manifest()
        assert store.snapshot() == fleet.snapshot(fleet={}, manifest=manifest)
        assert {digest: store.blob(digest) for digest in blobs} == blobs
        (version,) = store.versions()
    assert (version.model_version, version.parent_version, version.round_id, version.members) == (1, 0, 0, 0)
    assert version.params_digest == manifest.files[1].digest


def test_every_write_is_there_for_a_process_that_opens_the_file_after_it(path: Place) -> None:
    """As after a SIGKILL: the writer is never closed, and each effect is looked for through a fresh connection."""
    writer = Store(path)
    writer.add_device("cabin", KEY["cabin"])
    assert Store(path).fleet() == {"cabin": KEY["cabin"]}
    writer.apply(StoreEpoch(7))
    assert Store(path).snapshot().epoch == 7
    writer.apply(StoreRound(row(1)))
    assert Store(path).snapshot().rounds == (row(1),)
    open_round(writer)
    assert Store(path).snapshot().rounds == (row(1, status="open", base_version=1),)
    writer.apply(StoreUpdate(update_row()))
    after = Store(path).snapshot()
    assert after.pending == (Pending("cabin", 1, 1, 40),)
    assert (after.last["cabin"].round_id, after.last["cabin"].digest) == (1, b"d" * 32)
    assert Store(path).update_payload("cabin", 1) == b"payload"
    writer.apply(commit(1, 2, member()), Cost(10, 20, 1.5))
    after = Store(path).snapshot()
    assert after.pending == ()
    assert after.last["cabin"].round_id == 1
    assert (after.rounds[0].status, after.rounds[0].model_version) == ("closed", 2)
    assert after.manifest is not None
    assert after.manifest.model_version == 2
    newest = Store(path).versions()[-1]
    assert (newest.round_id, newest.members, newest.accuracy, newest.loss) == (1, 1, 0.5, 0.25)
    assert (newest.bytes_up, newest.bytes_down, newest.seconds) == (10, 20, 1.5)
    assert [u.counted_in for u in Store(path).updates()] == [2]


def test_a_second_update_of_a_device_in_a_round_is_a_fault_of_ours(path: Place) -> None:
    store = Store(path)
    store.apply(StoreUpdate(update_row()))
    with pytest.raises(StoreError, match="stored already"):
        store.apply(StoreUpdate(update_row(payload=b"another")))
    assert store.update_payload("cabin", 1) == b"payload"


def test_several_effects_are_kept_all_or_none(path: Place) -> None:
    store = Store(path)
    store.apply(StoreUpdate(update_row("cabin")))
    with pytest.raises(StoreError):
        store.apply_all([StoreUpdate(update_row("dune")), StoreUpdate(update_row("cabin"))])
    assert [u.device_id for u in Store(path).updates()] == ["cabin"]
    store.apply_all([StoreUpdate(update_row("dune")), StoreUpdate(update_row("elm"))])
    assert [u.device_id for u in Store(path).updates()] == ["cabin", "dune", "elm"]


@pytest.mark.parametrize("members", [(member("ghost"),), (member("cabin"), member("cabin"))])
def test_a_version_that_counts_what_it_may_not_leaves_no_trace(path: Place, members: tuple[Pending, ...]) -> None:
    store = Store(path)
    open_round(store)
    store.apply(StoreUpdate(update_row("cabin")))
    before = Store(path).snapshot()
    with pytest.raises(StoreError, match="not stored, or counted already"):
        store.apply(commit(1, 2, *members))
    assert Store(path).snapshot() == before
    assert len(Store(path).versions()) == 1
    with pytest.raises(StoreError):
        Store(path).blob(chunks.split("params.bin", params(2, 0, 0, 0)).digest)
    store.apply(commit(1, 2, member("cabin")))


def test_no_update_is_counted_by_two_versions(path: Place) -> None:
    store = Store(path)
    store.apply(StoreUpdate(update_row()))
    open_round(store)
    store.apply(commit(1, 2, member()))
    open_round(store, 2, 2)
    with pytest.raises(StoreError, match="counted already"):
        store.apply(commit(2, 3, member()))
    assert store.updates()[0].counted_in == 2


@pytest.mark.parametrize("status", [None, "waiting", "closed"])
def test_only_an_open_round_can_be_closed(path: Place, status: str | None) -> None:
    store = Store(path)
    if status is not None:
        store.apply(StoreRound(row(1, status=status)))
    with pytest.raises(StoreError, match="not open"):
        store.apply(commit(1, 2))
    assert len(store.versions()) == 1


def test_two_rounds_are_never_open_at_once(path: Place) -> None:
    store = Store(path)
    open_round(store, 1)
    with pytest.raises(StoreError):
        open_round(store, 2)


def test_the_numbers_of_devices_are_kept_and_only_old_versions_let_go(path: Place) -> None:
    store = Store(path)
    digests = [store.versions()[0].params_digest]
    for round_id in range(1, VERSIONS_KEPT + 4):
        store.apply(StoreUpdate(update_row("cabin", round_id)))
        open_round(store, round_id, round_id)
        store.apply(commit(round_id, round_id + 1, member("cabin", round_id)))
        digests.append(store.versions()[-1].params_digest)
    kept = digests[-VERSIONS_KEPT:]
    assert [store.blob(digest) != b"" for digest in kept] == [True] * VERSIONS_KEPT
    for digest in digests[:-VERSIONS_KEPT]:
        with pytest.raises(StoreError, match="too old"):
            store.blob(digest)
    assert store.blob(first_manifest()[0].files[0].digest) == b"a model" * 10
    assert len(store.versions()) == VERSIONS_KEPT + 4
    assert store.update_payload("cabin", 1) == b""
    assert store.updates()[0].payload_bytes == len(b"payload")
    assert store.update_payload("cabin", VERSIONS_KEPT + 3) == b"payload"


def test_what_only_the_coordinator_knows_of_a_version_is_kept_until_there_is_the_next(path: Place) -> None:
    store = Store(path)
    assert store.remainder(1) == b"first"
    for round_id in range(1, VERSIONS_KEPT + 2):
        open_round(store, round_id, round_id)
        store.apply(commit(round_id, round_id + 1))
    assert Store(path).remainder(VERSIONS_KEPT + 2) == f"of {VERSIONS_KEPT + 2}".encode()
    assert store.remainder(VERSIONS_KEPT + 1) == b""  # the largest of all, and nobody would ask for it again
    with pytest.raises(StoreError, match="has no version 99"):
        store.remainder(99)


def test_a_version_is_kept_with_what_leads_to_it_and_a_missing_link_breaks_the_chain(path: Place) -> None:
    store = Store(path)
    for round_id in range(1, 5):
        open_round(store, round_id, round_id)
        store.apply(commit(round_id, round_id + 1, model=b"larger" if round_id == 3 else b""))
    kept = Store(path)
    assert kept.patches(1, 3) == [b"to 2", b"to 3"]
    assert kept.patches(2, 3) == [b"to 3"]
    assert kept.patches(4, 5) == [b"to 5"]
    assert kept.patches(1, 4) == kept.patches(3, 5) == []  # version 4 begins a scale epoch
    assert kept.patches(0, 2) == kept.patches(4, 6) == kept.patches(5, 4) == []
    assert kept.params_digest(3) == kept.versions()[2].params_digest
    assert kept.params_digest(9) is None


def test_patches_outlive_the_parameters_that_they_make_by_far_and_not_for_ever(path: Place) -> None:
    store = Store(path)
    with store.transaction():
        for round_id in range(1, PATCHES_KEPT + 3):
            open_round(store, round_id, round_id)
            store.apply(commit(round_id, round_id + 1))
    newest = PATCHES_KEPT + 3
    assert len(store.patches(newest - PATCHES_KEPT, newest)) == PATCHES_KEPT
    assert store.patches(newest - PATCHES_KEPT - 1, newest) == []


def test_a_part_of_a_file_is_read_without_the_rest(path: Place) -> None:
    store = Store(path, read_only=True)
    digest = first_manifest()[0].files[0].digest
    assert store.blob_size(digest) == 70
    assert store.blob_part(digest, 0, 70) == b"a model" * 10
    assert store.blob_part(digest, 68, 9) == b"el"
    assert store.blob_size(b"none") is None
    assert store.blob_part(b"none", 0, 1) == b""


def test_a_new_base_file_is_kept_with_the_version_that_brings_it(path: Place) -> None:
    store = Store(path)
    open_round(store)
    store.apply(commit(1, 2, model=b"with larger scales"))
    manifest = Store(path).manifest()
    assert manifest is not None
    assert manifest.scale_epoch == 1
    assert [store.blob(file.digest) for file in manifest.files] == [b"with larger scales", params(2, 0, 0, 0)]


def test_the_plan_of_a_round_is_kept_as_it_was_when_it_opened(path: Place) -> None:
    store = Store(path)
    store.apply(StoreRound(row(1)))
    plan = msgspec.structs.replace(PLAN, scale_epoch=3)
    store.apply(StoreRound(row(1, plan=plan, status="open", base_version=1)))
    assert Store(path).rounds()[0].plan == plan


def test_params_that_came_back_are_not_let_go_with_the_old_version(path: Place) -> None:
    store = Store(path)
    same = params(0, 0, 0, 0)
    for round_id in range(1, VERSIONS_KEPT + 2):
        open_round(store, round_id, round_id)
        store.apply(commit(round_id, round_id + 1, content=same))
    assert store.blob(store.versions()[-1].params_digest) == same


def test_a_sighting_keeps_what_it_does_not_say(path: Place) -> None:
    store = Store(path)
    store.apply(StoreSeen("cabin", True, "agent-1", 40, 3))
    store.apply(StoreSeen("cabin", True, work="waiting", reason="too hot"))
    (seen,) = store.seen()
    assert (seen.present, seen.software, seen.num_examples, seen.model_version) == (True, "agent-1", 40, 3)
    assert (seen.work, seen.reason) == ("waiting", "too hot")
    store.apply(StoreSeen("cabin", True, work="idle"))
    store.apply(StoreSeen("cabin", False))
    (seen,) = store.seen()
    assert (seen.present, seen.software, seen.work, seen.reason) == (False, "agent-1", "idle", "")


def test_a_new_epoch_believes_nobody_present(path: Place) -> None:
    store = Store(path)
    store.apply(StoreSeen("cabin", True, "agent-1", 40, 3))
    store.apply(StoreEpoch(2))
    assert [seen.present for seen in store.seen()] == [False]


def flushing(store: Store) -> object:
    """What the database says now of when a write returns."""
    asked = "PRAGMA synchronous" if isinstance(store.place, Path) else "SHOW synchronous_commit"
    return store._db.rows(asked)[0][0]


def test_sightings_are_not_flushed_and_every_write_after_them_is_again(
    path: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, during = Store(path), []
    monkeypatch.setattr(store, "_perform", lambda _effects, _cost: during.append(flushing(store)))
    store.apply(StoreSeen("cabin", True, "agent-1", 40, 3))
    store.apply_all([StoreSeen("cabin", True), StoreEpoch(2)])
    assert during in ([1, 2], ["off", "on"])  # NORMAL, FULL
    assert flushing(store) in (2, "on")


def test_a_command_beside_serve_is_noticed_and_our_own_writes_are_not(path: Place) -> None:
    serving, command = Store(path), Store(path)
    before = serving.change_counter()
    serving.apply(StoreEpoch(2))
    assert serving.change_counter() == before
    assert command.ask_for([row(0, lasts_ms=1000)] * 2) == [1, 2]
    assert serving.change_counter() != before
    assert [waiting.round_id for waiting in serving.waiting_rounds()] == [1, 2]
    assert serving.waiting_rounds()[0].plan == PLAN
    assert command.ask_for([row(0, lasts_ms=1000)]) == [3]


def test_a_reader_cannot_write_and_sees_what_the_writer_wrote(path: Place) -> None:
    with Store(path) as writer, Store(path, read_only=True) as reader:
        writer.add_device("cabin", KEY["cabin"])
        assert reader.fleet() == {"cabin": KEY["cabin"]}
        with pytest.raises(StoreError, match=r"readonly|read-only"):
            reader.add_device("dune", KEY["dune"])


def test_to_enrol_a_device_does_not_read_all_others(path: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand were a matter of minutes when each read all that were there."""
    monkeypatch.setattr(Store, "fleet", lambda _store: pytest.fail("the whole fleet was read"))
    with Store(path) as store:
        assert store.add_device("cabin", KEY["cabin"])
        assert not store.add_device("cabin", KEY["cabin"])


def test_devices_come_change_their_key_and_go(path: Place) -> None:
    with Store(path) as store:
        assert store.add_device("cabin", "one")
        assert not store.add_device("cabin", "one")
        assert store.add_device("cabin", "two")
        store.apply(StoreUpdate(update_row()))
        assert store.remove_device("cabin")
        assert not store.remove_device("cabin")
        assert store.fleet() == {}
        assert store.snapshot().pending == (Pending("cabin", 1, 1, 40),)


def test_only_the_newest_opened_rounds_are_read_and_all_that_wait(path: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.store.OPENED_ROUNDS_READ", 64)
    store = Store(path)
    with store.transaction():
        for round_id in range(1, 71):
            store.apply(StoreRound(row(round_id, status="closed", base_version=round_id, model_version=round_id + 1)))
        for round_id in range(71, 171):  # withdrawn: nobody was ever invited to them
            store.apply(StoreRound(row(round_id, status="closed")))
    store.apply(StoreRound(row(171, status="open", base_version=71)))
    store.apply(StoreRound(row(172)))
    ids = [each.round_id for each in store.snapshot().rounds]
    assert ids == [*range(8, 71), 171, 172]
    assert len(store.rounds()) == 172


def test_a_wish_to_cancel_stays_until_the_round_has_ended(path: Place) -> None:
    serving, command = Store(path), Store(path)
    command.ask_for([row(0, lasts_ms=1000)] * 3)
    open_round(serving)
    before = serving.change_counter()
    for round_id in (1, 3, 99):
        command.cancel_round(round_id)
    assert serving.change_counter() != before
    assert serving.unwanted_rounds() == {1, 3}
    assert [each.round_id for each in serving.waiting_rounds()] == [2, 3]  # the coordinator withdraws it
    assert Store(path, read_only=True).unwanted_rounds() == {1, 3}
    serving.apply(StoreUpdate(update_row()))
    serving.apply(StoreRound(row(1, status="closed", base_version=1, model_version=1)))
    assert serving.unwanted_rounds() == {3}
    serving.apply(StoreRound(row(3, status="closed")))
    assert serving.unwanted_rounds() == frozenset()
    assert [each.is_cancelled for each in serving.rounds()] == [True, False, True]
    assert Store(path).snapshot().pending == (Pending("cabin", 1, 1, 40),)
    open_round(serving, 2)
    serving.apply(commit(2, 2, member()))
    assert [update.counted_in for update in serving.updates()] == [2]


def test_a_store_from_before_rounds_could_be_cancelled_is_brought_forward(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as old:
        steps = migrations.steps()
        old.setattr(migrations, "steps", lambda: steps[:1])
        with Store(place) as store:
            values = {"plan": encode(PLAN)}
            store._db.run("INSERT INTO rounds VALUES (1, 'open', :plan, 1, 0, 60000, 1, 0)", values)
    with Store(place) as store:
        assert store.unwanted_rounds() == frozenset()
        store.cancel_round(1)
        assert store.unwanted_rounds() == {1}
        assert store.rounds() == [row(1, status="open", base_version=1)]


def test_the_field_score_is_pooled_over_the_devices_that_reported_on_a_version(path: Place) -> None:
    store = Store(path)
    store.apply(StoreUpdate(update_row("cabin")))
    store.apply(StoreUpdate(msgspec.structs.replace(update_row("dune"), held_out_correct=1, held_out_count=6)))
    assert store.field_scores() == {1: (4, 10)}


def test_a_full_disk_is_a_sentence_and_nothing_is_half_written(file: Path) -> None:
    store = Store(file)
    pages = store._db.rows("PRAGMA page_count")[0][0]
    store._db.run(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="make room on that disk"):
        store.apply_all([StoreUpdate(update_row("cabin")), StoreUpdate(update_row("dune", payload=bytes(100_000)))])
    store._db.run("PRAGMA max_page_count = 100000")
    assert store.updates() == []
    store.apply(StoreUpdate(update_row("cabin")))


def test_what_is_no_store_is_refused_with_a_sentence(tmp_path: Path, file: Path) -> None:
    with pytest.raises(StoreError, match="make one with broker init"):
        Store(tmp_path / "none.db", read_only=True)
    (tmp_path / "text.db").write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Store(tmp_path / "text.db")
    with pytest.raises(StoreError, match="cannot open"):
        Store(tmp_path / "no/such/directory.db")
    with pytest.raises(StoreError, match="no effect on the store"):
        Store(file).apply(Publish("t", b""))


def test_a_store_of_a_newer_broker_is_left_alone(path: Place) -> None:
    put_setting(Store(path)._db, "schema", 99)
    with pytest.raises(StoreError, match="newer broker"):
        Store(path)


def test_an_older_store_is_brought_forward_by_a_writer_only(path: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = migrations.steps()
    later = [*steps, ["ALTER TABLE devices ADD COLUMN note TEXT"]]
    monkeypatch.setattr(migrations, "steps", lambda: later)
    with pytest.raises(StoreError, match="older broker"):
        Store(path, read_only=True)
    assert "note" in Store(path)._db.columns("devices")
    assert Store(path, read_only=True).snapshot().manifest is not None


def test_nobody_else_may_read_the_store(file: Path) -> None:
    assert file.stat().st_mode & 0o077 == 0


# What is of PostgreSQL alone


def test_what_is_no_store_on_postgres_is_refused_with_one_line(postgres: PostgresServer, tmp_path: Path) -> None:
    empty = postgres.fresh()
    for refuse in ({"read_only": True}, {"make": False}):
        with pytest.raises(StoreError, match=r"there is no store at postgresql://hedgerow@/postgres: make one"):
            Store(empty, **refuse)
    wrong = [
        Address("postgresql://hedgerow@/none?host=/nowhere"),
        Address("postgresql://hedgerow@/postgres?nonsense=1"),
        Address(postgres.url(user="nobody-there")),
        Address(empty.url, tmp_path / "no.password"),
    ]
    for address in wrong:
        with pytest.raises(StoreError, match="cannot open the store postgresql://") as refused:
            Store(address)
        assert "\n" not in str(refused.value)


def test_a_password_comes_from_a_file_and_is_told_to_nobody(postgres: PostgresServer, tmp_path: Path) -> None:
    schema = postgres.fresh().url.rpartition("%3D")[2]
    postgres.ask(f"CREATE ROLE {schema} LOGIN PASSWORD 'open sesame'; ALTER SCHEMA {schema} OWNER TO {schema}")
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    url = postgres.url(schema, schema)
    with Store(Address(url, password)) as store:
        store.add_device("cabin", "key")
    password.write_text("open barley\n")
    for address in (Address(url, password), Address(url)):
        with pytest.raises(StoreError, match="password") as refused:
            Store(address)
        assert "open" not in str(refused.value).replace("cannot open", "")


def test_text_sorts_by_bytes_whatever_language_the_server_speaks(postgres: PostgresServer) -> None:
    kinds = postgres.ask(
        "SELECT DISTINCT collation_name FROM information_schema.columns WHERE data_type = 'text' AND table_schema = "
        f"'{made(postgres.fresh())}'"
    )
    assert kinds == [("C",)]


def test_blobs_are_kept_so_that_a_part_of_one_is_read_alone(postgres: PostgresServer) -> None:
    schema = made(postgres.fresh())
    kept = f"SELECT attstorage FROM pg_attribute WHERE attrelid = '{schema}.blobs'::regclass AND attname = 'content'"
    assert postgres.ask(kept) == [("e",)]  # external: never compressed


def made(address: Address) -> str:
    """The schema of a store that is made there."""
    Store(address).close()
    return address.url.rpartition("%3D")[2]


def test_commands_that_write_at_once_wait_for_each_other(postgres: PostgresServer) -> None:
    """Else both would give their rounds the same numbers, and one of them would be lost."""
    address = postgres.fresh()
    first = Store(address)
    numbers = []
    with first.transaction():
        first.ask_for([row(0, lasts_ms=1000)])
        other = threading.Thread(target=lambda: numbers.extend(Store(address).ask_for([row(0, lasts_ms=1000)])))
        other.start()
        other.join(0.5)
        assert other.is_alive()
    other.join(10.0)
    assert numbers == [2]


def test_processes_that_make_the_store_at_once_make_one(postgres: PostgresServer) -> None:
    address = postgres.fresh()
    failures = []

    def make() -> None:
        try:
            Store(address).close()
        except StoreError as error:
            failures.append(error)

    makers = [threading.Thread(target=make) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(30.0)
    assert failures == []


def test_a_writer_that_stands_still_loses_its_transaction_and_says_so(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.postgres.IDLE_MS", 200)
    address = postgres.fresh()
    sleeper = Store(address)

    def sleep_while_writing() -> None:
        with sleeper.transaction():
            sleeper.add_device("cabin", "key")
            time.sleep(0.6)
            sleeper.add_device("dune", "key")

    with pytest.raises(StoreError, match=r"in the middle of a write|closed"):
        sleep_while_writing()
    assert Store(address).fleet() == {}


def test_a_connection_that_was_cut_is_a_sentence(postgres: PostgresServer) -> None:
    store = Store(postgres.fresh())
    postgres.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with pytest.raises(StoreError, match="cannot write the store postgresql://") as cut:
        store.add_device("cabin", "key")
    assert "\n" not in str(cut.value)


def test_a_statement_that_failed_unnoticed_fails_the_transaction(postgres: PostgresServer) -> None:
    store = Store(postgres.fresh())

    def fail_unnoticed() -> None:
        with store.transaction():
            store.add_device("cabin", "key")
            with contextlib.suppress(StoreError):
                store._db.run("INSERT INTO nowhere VALUES (1)")

    with pytest.raises(StoreError, match="one of its statements had failed"):
        fail_unnoticed()
    assert store.fleet() == {}


def test_only_the_newest_term_writes(postgres: PostgresServer) -> None:
    address = postgres.fresh()
    Store(address)._db.run("INSERT INTO lease VALUES (1, 3, 'old:1', 0)")
    holder = Store(address, term=3)
    holder.apply(StoreEpoch(1))
    before = holder.change_counter()
    Store(address)._db.run("UPDATE lease SET term = 4, holder = 'new:2'")
    writes = [
        lambda: holder.apply(StoreEpoch(2)),
        lambda: holder.apply(StoreSeen("cabin", True)),
        lambda: holder.apply_all([StoreUpdate(update_row())]),
        lambda: holder.cancel_round(1),
        holder.change_counter,
    ]
    for write in writes:
        with pytest.raises(StoreError, match="new:2 has taken over the store") as fenced:
            write()
        assert "\n" not in str(fenced.value)
    assert before >= 0
    kept = Store(address)
    assert (kept.snapshot().epoch, kept.seen(), kept.updates()) == (1, [], [])


def test_what_was_written_survives_a_crash_of_the_server_and_the_coordinator_ends_with_a_sentence(
    postgres: PostgresServer,
) -> None:
    address = postgres.fresh()
    store = Store(address)
    for round_id in range(1, 21):
        store.apply(StoreUpdate(update_row("cabin", round_id)))
    postgres.crash()
    for use in (store.change_counter, lambda: store.apply(StoreEpoch(2))):
        with pytest.raises(StoreError, match="the store postgresql://") as ended:
            use()
        assert "\n" not in str(ended.value)
    assert len(Store(address).updates()) == 20
