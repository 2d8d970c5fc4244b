"""The child's side of a patch: what it makes proves itself, and what is wrong is told apart and leaves no file."""

from __future__ import annotations

import msgspec
import pytest

from edge_agent import flash
from edge_agent.disk import Directory
from edge_agent.effects import Job
from edge_agent.patching import PatchError, make_params
from engine.codec import patch as patches
from tests.real.scripted_coordinator import FRAME, HOLDING, MODEL, PARAMS, QUICK, moved
from wire import chunks
from wire.messages import Patch

MODEL_FILE = chunks.split("model.tflite", MODEL)
OLD_FILE = chunks.split("params.bin", PARAMS)


NEW = moved([3, 500, 17_000], 2)
NEW_FILE = chunks.split("params.bin", NEW)
PATCH = Patch(NEW_FILE.digest, 1, OLD_FILE.digest, patches.make(FRAME, PARAMS, NEW))
JOB = Job("dev-1", 3, 2, QUICK, (MODEL_FILE, NEW_FILE), 0)


@pytest.fixture
def store(tmp_path) -> flash.Flash:
    """Version 1 is whole, and a patch to version 2 has come."""
    store = flash.Flash(Directory(tmp_path))
    for file, data in ((MODEL_FILE, MODEL), (OLD_FILE, PARAMS)):
        store.open_file(file)
        for index in range(len(file.chunk_digests)):
            store.write_chunk(file, index, chunks.chunk_at(data, file, index).data)
        assert store.seal_file(file).ready
    assert store.write_patch(NEW_FILE, PATCH).patched
    return store


def has_new(store: flash.Flash) -> bool:
    return store.disk.place(flash.file_name(NEW_FILE.digest)).exists()


def test_the_params_are_made_and_the_patch_has_done(store):
    make_params(store.disk, JOB, MODEL)
    assert flash.read_whole(store.disk, NEW_FILE.digest) == NEW
    assert not flash.has_patch(store.disk, NEW_FILE)
    assert store.open_file(NEW_FILE).ready
    make_params(store.disk, JOB, MODEL)  # again is no harm


def test_a_power_cut_after_the_file_was_named_leaves_a_patch_that_does_no_harm(store):
    make_params(store.disk, JOB, MODEL)
    store.write_patch(NEW_FILE, msgspec.structs.replace(PATCH, payload=b"worn"))
    make_params(store.disk, JOB, MODEL)
    assert flash.read_whole(store.disk, NEW_FILE.digest) == NEW


def test_without_a_patch_nothing_is_made(store):
    store.drop_patch(NEW_FILE)
    make_params(store.disk, JOB, MODEL)
    assert not has_new(store)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"not a patch", "does not fit"),
        (PATCH.payload[:-1], "does not fit|makes something else"),
        (patches.make(FRAME, PARAMS, moved([3, 500, 17_000], 3)), "makes something else than its manifest says"),
        (patches.make(FRAME, PARAMS, moved([3, 500, 17_001], 2)), "makes something else than its manifest says"),
    ],
)
def test_a_patch_that_makes_something_else_is_told_apart(store, payload, why):
    store.write_patch(NEW_FILE, msgspec.structs.replace(PATCH, payload=payload))
    with pytest.raises(PatchError, match=why):
        make_params(store.disk, JOB, MODEL)
    assert not has_new(store)


def test_a_patch_damaged_in_any_byte_makes_the_right_file_or_none(store):
    path = store.disk.place(flash.file_name(NEW_FILE.digest) + ".patch")
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            make_params(store.disk, JOB, MODEL)
        except PatchError:
            assert not has_new(store)
        else:
            assert flash.read_whole(store.disk, NEW_FILE.digest) == NEW
            store.disk.place(flash.file_name(NEW_FILE.digest)).unlink()


HOLDING_FILE = chunks.split("model.tflite", HOLDING)
HOLDING_JOB = msgspec.structs.replace(JOB, files=(HOLDING_FILE, NEW_FILE))


@pytest.mark.parametrize(("params", "file"), [(NEW, NEW_FILE), (PARAMS, OLD_FILE)], ids=["a later one", "its own"])
def test_the_params_are_made_of_what_the_base_file_holds(tmp_path, params, file):
    store = flash.Flash(Directory(tmp_path))
    patch = Patch(file.digest, 1, OLD_FILE.digest, patches.make(FRAME, PARAMS, params))
    assert store.write_patch(file, patch).patched
    job = msgspec.structs.replace(JOB, files=(HOLDING_FILE, file))
    make_params(Directory(tmp_path), job, HOLDING)
    assert flash.read_whole(Directory(tmp_path), file.digest) == params
    assert not flash.has_patch(Directory(tmp_path), file)


def test_a_damaged_file_of_the_older_version_is_made_up_for_by_the_base_file(store):
    path = store.disk.place(flash.file_name(OLD_FILE.digest))
    path.write_bytes(PARAMS[:-1] + bytes([PARAMS[-1] ^ 1]))
    make_params(store.disk, HOLDING_JOB, HOLDING)
    assert flash.read_whole(store.disk, NEW_FILE.digest) == NEW


def test_a_base_file_that_does_not_hold_what_the_patch_starts_from_is_told_apart(tmp_path):
    store = flash.Flash(Directory(tmp_path))
    store.write_patch(NEW_FILE, PATCH)
    with pytest.raises(PatchError, match="version 1, from which the patch starts, is damaged or gone"):
        make_params(Directory(tmp_path), JOB, MODEL)
    assert not has_new(store)


def test_a_base_that_is_gone_or_damaged_is_told_apart(store):
    path = store.disk.place(flash.file_name(OLD_FILE.digest))
    path.write_bytes(PARAMS[:-1] + bytes([PARAMS[-1] ^ 1]))
    with pytest.raises(PatchError, match="version 1, from which the patch starts, is damaged or gone"):
        make_params(store.disk, JOB, MODEL)
    path.unlink()
    with pytest.raises(PatchError, match="damaged or gone"):
        make_params(store.disk, JOB, MODEL)
    assert not has_new(store)
