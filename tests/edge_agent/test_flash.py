"""Flash: cut at every byte, the old state or the new one, never a mix; and files that prove themselves."""

from __future__ import annotations

import os

import msgspec
import pytest

from edge_agent import flash
from edge_agent.disk import Directory
from edge_agent.effects import Base, Durable
from edge_agent.flash import Flash, FlashError, Model, file_name, load_model, read_file, residual_name, write_file
from wire import chunks
from wire.messages import File, Patch

OLD = Durable(boot=3, last_round_id=7, outbox=b"the old update" * 9, outbox_round_id=7)
NEW = Durable(boot=3, last_round_id=7, outbox=b"", outbox_round_id=0, residual_round_id=7)
BIG = bytes(range(256)) * 10
FILE = chunks.split("model.tflite", BIG, 1000)


def test_what_was_saved_is_what_the_next_life_loads(tmp_path):
    for durable in (OLD, NEW, OLD):
        Flash(Directory(tmp_path)).load()
        writer = Flash(Directory(tmp_path))
        writer.load()
        writer.save(durable)
        assert Flash(Directory(tmp_path)).load() == durable


def test_a_new_device_starts_from_nothing(tmp_path):
    assert Flash(Directory(tmp_path / "deep" / "state")).load() == Durable()


def test_a_write_cut_at_any_byte_leaves_the_old_state_or_the_new(tmp_path):
    store = Flash(Directory(tmp_path))
    for durable in (Durable(boot=1), Durable(boot=2), OLD):
        store.save(durable)
    slots = [tmp_path / "state.a", tmp_path / "state.b"]
    before = [slot.read_bytes() for slot in slots]
    store.save(NEW)
    after = [slot.read_bytes() for slot in slots]
    (changed,) = [i for i in range(2) if before[i] != after[i]]
    seen = set()
    length = max(len(before[changed].rstrip(b"\0")), len(after[changed].rstrip(b"\0"))) + 1
    for cut in range(length + 1):
        slots[changed].write_bytes(after[changed][:cut] + before[changed][cut:])
        found = Flash(Directory(tmp_path)).load()
        assert found in (OLD, NEW), f"cut at byte {cut}"
        seen.add(found.outbox)
    assert seen == {OLD.outbox, NEW.outbox}


def test_any_damaged_byte_of_the_newest_slot_falls_back_to_the_older_state(tmp_path):
    store = Flash(Directory(tmp_path))
    store.save(OLD)
    store.save(NEW)
    newest = tmp_path / "state.a"
    whole = newest.read_bytes()
    for position in range(len(whole.rstrip(b"\0"))):
        newest.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert Flash(Directory(tmp_path)).load() == OLD


def test_a_recovered_device_goes_on_over_the_damaged_slot(tmp_path):
    store = Flash(Directory(tmp_path))
    store.save(OLD)
    store.save(NEW)
    (tmp_path / "state.a").write_bytes(b"rubbish" * 99)
    again = Flash(Directory(tmp_path))
    assert again.load() == OLD
    again.save(NEW)
    assert Flash(Directory(tmp_path)).load() == NEW


def test_two_damaged_slots_are_one_clear_sentence_and_nothing_is_touched(tmp_path):
    store = Flash(Directory(tmp_path))
    store.save(OLD)
    store.save(NEW)
    for name in ("state.a", "state.b"):
        (tmp_path / name).write_bytes(b"rubbish" * 99)
    with pytest.raises(FlashError, match=r"state\.a and .*state\.b are both damaged.*move it away"):
        Flash(Directory(tmp_path)).load()
    assert (tmp_path / "state.a").read_bytes() == b"rubbish" * 99


def test_a_first_start_cut_short_is_a_first_start(tmp_path):
    Flash(Directory(tmp_path)).save(Durable(boot=1))
    slot = tmp_path / "state.b"
    whole = slot.read_bytes()
    for cut in range(len(whole.rstrip(b"\0"))):
        slot.write_bytes(whole[:cut].ljust(len(whole), b"\0"))
        assert Flash(Directory(tmp_path)).load() == Durable()


def test_the_room_for_an_update_is_reserved_from_the_start(tmp_path):
    store = Flash(Directory(tmp_path))
    store.save(Durable(boot=1))
    store.save(Durable(boot=2))
    for name in ("state.a", "state.b"):
        status = (tmp_path / name).stat()
        assert status.st_size >= 120_000
        assert status.st_blocks * 512 >= 120_000
        assert status.st_mode & 0o777 == 0o600


def test_state_of_a_newer_program_is_read_by_this_one(tmp_path, monkeypatch):
    class Later(msgspec.Struct, frozen=True):
        boot: int = 9
        something_new: int = 1

    Flash(Directory(tmp_path)).save(Later())
    assert Flash(Directory(tmp_path)).load() == Durable(boot=9)


@pytest.mark.parametrize("cut", ["write", "fsync", "replace"])
def test_write_file_leaves_the_old_bytes_wherever_it_fails(tmp_path, monkeypatch, cut):
    path = tmp_path / "file"
    write_file(path, b"old")

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    if cut == "write":
        monkeypatch.setattr(os, "open", fail)
    elif cut == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_write_file_is_private_and_whole(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"new")
    assert read_file(path) == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_file(tmp_path / "none") is None


def fill(store: Flash, indexes, data: bytes = BIG) -> None:
    for index in indexes:
        store.write_chunk(FILE, index, chunks.chunk_at(data, FILE, index).data)


def keep(store: Flash, file: File, data: bytes) -> None:
    """Make `file` whole on flash."""
    store.open_file(file)
    for index in range(len(file.chunk_digests)):
        store.write_chunk(file, index, chunks.chunk_at(data, file, index).data)
    assert store.seal_file(file).ready


def test_a_file_comes_in_any_order_over_any_number_of_lives(tmp_path):
    assert Flash(Directory(tmp_path)).open_file(FILE).have == frozenset()
    fill(Flash(Directory(tmp_path)), [2])
    assert Flash(Directory(tmp_path)).open_file(FILE).have == {2}
    fill(Flash(Directory(tmp_path)), [0, 1])
    sealed = Flash(Directory(tmp_path)).seal_file(FILE)
    assert sealed.ready
    assert (tmp_path / file_name(FILE.digest)).read_bytes() == BIG
    assert Flash(Directory(tmp_path)).open_file(FILE).ready
    assert Flash(Directory(tmp_path)).seal_file(FILE).ready  # again is no harm


def test_a_torn_chunk_is_found_at_the_seal_and_only_it_is_missing(tmp_path):
    store = Flash(Directory(tmp_path))
    store.open_file(FILE)
    fill(store, [0, 1, 2])
    store.write_chunk(FILE, 1, b"torn")
    state = store.seal_file(FILE)
    assert (state.ready, state.have) == (False, {0, 2})


def test_a_sealed_file_gone_bad_keeps_what_is_still_right(tmp_path):
    store = Flash(Directory(tmp_path))
    store.open_file(FILE)
    fill(store, [0, 1, 2])
    assert store.seal_file(FILE).ready
    path = tmp_path / file_name(FILE.digest)
    path.write_bytes(BIG[:1500] + b"!" + BIG[1501:])
    state = store.open_file(FILE)
    assert (state.ready, state.have) == (False, {0, 2})
    assert not path.exists()
    fill(store, [1])
    assert store.seal_file(FILE).ready


def test_room_for_a_file_is_reserved_before_the_first_chunk(tmp_path):
    store = Flash(Directory(tmp_path))
    store.open_file(FILE)
    part = tmp_path / (file_name(FILE.digest) + ".part")
    assert part.stat().st_size == len(BIG)
    assert part.stat().st_blocks * 512 >= len(BIG)


def test_forget_keeps_what_is_asked_and_the_newest_whole_model(tmp_path):
    store = Flash(Directory(tmp_path))
    other, noted = chunks.split("other", b"other", 10), chunks.split("noted", b"noted", 10)
    for file in (FILE, other):
        store.open_file(file)
    keep(store, noted, b"noted")
    for round_id in (1, 2, 3):
        write_file(tmp_path / residual_name(round_id), b"residual")
    store.note_model(Model(4, "last-1", (noted,)))
    store.forget(None, frozenset({2}))
    assert len(list((tmp_path / "files").iterdir())) == 3
    assert [p.name for p in (tmp_path / "residual").iterdir()] == ["2"]
    store.forget(frozenset({FILE.digest}), frozenset())
    kept = {p.name for p in (tmp_path / "files").iterdir()}
    assert kept == {f"{FILE.digest.hex()}.part", noted.digest.hex()}
    assert list((tmp_path / "residual").iterdir()) == []


def test_the_note_of_the_model_survives_and_a_damaged_one_is_none(tmp_path):
    model = Model(4, "last-1", (FILE,))
    Flash(Directory(tmp_path)).note_model(model)
    assert load_model(Directory(tmp_path)) is None, "a version that is not whole was noted"
    keep(Flash(Directory(tmp_path)), FILE, BIG)
    Flash(Directory(tmp_path)).note_model(model)
    assert load_model(Directory(tmp_path)) == model
    (tmp_path / "model").write_bytes(b"\xff")
    assert load_model(Directory(tmp_path)) is None
    assert load_model(Directory(tmp_path / "nowhere")) is None


# Patches

OLD_PARAMS, NEW_PARAMS = b"o" * 1500, b"n" * 1500
OLD_FILE, NEW_FILE = (chunks.split("params.bin", data, 1000) for data in (OLD_PARAMS, NEW_PARAMS))
PATCH = Patch(NEW_FILE.digest, 4, OLD_FILE.digest, b"what to add" * 30)
BASE = Base(4, OLD_FILE.digest, FILE.digest)


@pytest.fixture
def patchable(tmp_path) -> Flash:
    """Version 4 is whole and noted."""
    store = Flash(Directory(tmp_path))
    keep(store, FILE, BIG)
    keep(store, OLD_FILE, OLD_PARAMS)
    store.note_model(Model(4, "last-1", (FILE, OLD_FILE)))
    return store


def patch_of(store: Flash, file: File = NEW_FILE):
    return store.disk.place(file_name(file.digest) + ".patch")


def test_flash_says_from_which_whole_version_a_patch_may_start(patchable, tmp_path):
    assert patchable.open_file(NEW_FILE).base == BASE
    assert Flash(Directory(tmp_path)).open_file(NEW_FILE).base == BASE
    assert patchable.open_file(chunks.split("other", b"other", 10)).base is None
    path = tmp_path / file_name(OLD_FILE.digest)
    path.write_bytes(OLD_PARAMS[:-1] + b"!")
    assert patchable.open_file(NEW_FILE).base is None


def test_a_patch_is_found_again_in_the_next_life(patchable, tmp_path):
    assert patchable.write_patch(NEW_FILE, PATCH).patched
    state = Flash(Directory(tmp_path)).open_file(NEW_FILE)
    assert (state.ready, state.patched, state.patch_failed) == (False, True, False)
    assert flash.read_patch(Directory(tmp_path), NEW_FILE.digest) == PATCH


def test_a_damaged_patch_is_none_and_what_one_starts_from_is_not_for_flash_to_say(patchable, tmp_path):
    path = patch_of(patchable)
    for damaged in (b"\xff", path.name.encode(), PATCH.payload):
        patchable.write_patch(NEW_FILE, PATCH)
        path.write_bytes(damaged)
        state = patchable.open_file(NEW_FILE)
        assert (state.patched, state.base) == (False, BASE)
        assert not path.exists()
    patchable.write_patch(NEW_FILE, PATCH)
    path.replace(patch_of(patchable, OLD_FILE))  # the patch of one file is none of another
    assert flash.read_patch(Directory(tmp_path), OLD_FILE.digest) is None
    patchable.write_patch(NEW_FILE, PATCH)
    (tmp_path / file_name(OLD_FILE.digest)).unlink()
    state = patchable.open_file(NEW_FILE)
    assert (state.patched, state.base) == (True, None)  # model.tflite may hold it: the child will see


def test_a_patch_that_was_dropped_is_remembered_and_none_is_asked_for_again(patchable, tmp_path):
    patchable.write_patch(NEW_FILE, PATCH)
    patchable.drop_patch(NEW_FILE)
    for store in (patchable, Flash(Directory(tmp_path))):
        state = store.open_file(NEW_FILE)
        assert (state.patched, state.patch_failed, state.base) == (False, True, None)
    patchable.forget(frozenset({NEW_FILE.digest}), frozenset())
    assert patchable.open_file(NEW_FILE).patch_failed
    keep(patchable, NEW_FILE, NEW_PARAMS)
    assert not patch_of(patchable).exists()


def test_a_patch_cut_while_it_is_written_is_there_or_not(patchable, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        patchable.write_patch(NEW_FILE, PATCH)
    monkeypatch.undo()
    state = Flash(patchable.disk).open_file(NEW_FILE)
    assert (state.patched, state.base) == (False, BASE)
    assert not list((patchable.disk.place() / "files").glob(".*"))


def test_what_a_kept_patch_starts_from_is_kept(patchable, tmp_path):
    patchable.write_patch(NEW_FILE, PATCH)
    noted = chunks.split("params.bin", b"later", 10)
    keep(patchable, noted, b"later")
    patchable.note_model(Model(5, "last-1", (FILE, noted)))
    patchable.forget(frozenset({FILE.digest, NEW_FILE.digest}), frozenset())
    assert patchable.open_file(NEW_FILE).patched
    patchable.forget(frozenset({FILE.digest, noted.digest}), frozenset())
    assert {path.name for path in (tmp_path / "files").iterdir()} == {FILE.digest.hex(), noted.digest.hex()}


def test_what_a_patch_made_is_a_file_like_any_other(patchable, tmp_path):
    patchable.write_patch(NEW_FILE, PATCH)
    flash.complete_file(Directory(tmp_path), NEW_FILE, NEW_PARAMS)
    assert patchable.open_file(NEW_FILE).ready
    assert {path.name for path in (tmp_path / "files").iterdir()} == {
        file.digest.hex() for file in (FILE, OLD_FILE, NEW_FILE)
    }


def test_a_file_cut_while_a_patch_makes_it_is_not_there_and_the_patch_is(patchable, tmp_path, monkeypatch):
    patchable.write_patch(NEW_FILE, PATCH)

    def fail(*_args, **_kwargs):
        raise OSError(5, "power")

    for function in ("pwrite", "fsync", "ftruncate"):
        monkeypatch.setattr(os, function, fail)
        with pytest.raises(OSError, match="power"):
            flash.complete_file(Directory(tmp_path), NEW_FILE, NEW_PARAMS)
        monkeypatch.undo()
        state = Flash(Directory(tmp_path)).open_file(NEW_FILE)
        assert (state.ready, state.patched) == (False, True)
