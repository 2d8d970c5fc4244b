"""The two slots on flash: what predicts, what did before, and what was gone back from."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING

import cbor2
import msgspec
import pytest
from click.testing import CliRunner

from edge_agent import config, flash, slots
from edge_agent.cli import main
from edge_agent.disk import Directory
from edge_agent.flash import Flash, Model
from edge_agent.probation import CONNECTED_MS, Ended, Failed, Looked, Slots, Started
from edge_agent.slots import Note, Shown, SlotError
from wire import chunks, keys

if TYPE_CHECKING:
    from pathlib import Path

FILES = [chunks.split("params.bin", bytes([number]) * 10) for number in range(5)]


def version(number: int) -> Model:
    return Model(number, "last-2", (FILES[number],))


def use(disk: Directory, number: int, *, stays: bool = True) -> None:
    """Take a version into use; and let it stay."""
    slots.take(disk, version(number))
    clock = iter((0, CONNECTED_MS))
    note = Note(disk, lambda: next(clock), lambda *_, **__: None, must_answer=False)
    for _ in range(2 * stays):
        note.tell(Looked(connected=True))


@pytest.fixture
def disk(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


def test_nothing_is_in_use_before_a_child_has_tried_a_version(disk: Directory) -> None:
    assert slots.load(disk) is None
    with pytest.raises(SlotError, match="no model is in use"):
        slots.back(disk)


def test_the_newest_that_was_taken_predicts_and_one_before_it_that_stayed_is_kept(disk: Directory) -> None:
    for number in (1, 2, 2, 3):
        use(disk, number)
    use(disk, 4, stays=False)
    assert slots.load(disk) == Slots(version(4), version(3), tries_left=2)
    assert slots.files(disk) == {FILES[4].digest, FILES[3].digest}


def test_the_owner_goes_back_and_what_he_went_back_from_is_not_taken_again(disk: Directory) -> None:
    for number in (1, 2):
        use(disk, number)
    assert slots.back(disk) == Slots(version(1), None, 2)
    assert slots.take(disk, version(2)) is None
    assert slots.load(disk).now == version(1)
    with pytest.raises(SlotError, match="none before it is kept"):
        slots.back(disk)
    use(disk, 3)
    assert slots.load(disk) == Slots(version(3), version(1), 2)


def test_the_owner_goes_back_from_a_version_on_probation_and_its_agent_follows(disk: Directory) -> None:
    use(disk, 1)
    use(disk, 2, stays=False)
    said = []
    note = Note(disk, lambda: 0, lambda *word, **_: said.append(word), must_answer=False)
    note.tell(Looked(connected=True))
    assert note.shown == Shown(2, 1, None, 2)
    slots.back(disk)
    for event in (Failed("the child died"), Started(), Ended(), Looked(connected=True)):
        note.tell(event)
    assert (note.shown, said) == (Shown(1, None, 2), [])


def test_a_note_of_an_earlier_program_is_one_of_a_version_that_stays(disk: Directory) -> None:
    old = {"now": version(2), "before": version(1), "refused_version": 3}
    tree = msgspec.to_builtins(old, builtin_types=(bytes,))
    flash.replace_file(disk, "in_use", cbor2.dumps(tree))
    assert slots.load(disk) == Slots(version(2), version(1), 3, None)


def test_what_becomes_of_a_version_is_logged_and_shown(disk: Directory) -> None:
    use(disk, 1)
    use(disk, 2, stays=False)
    said = []
    note = Note(disk, lambda: 0, lambda word, **fields: said.append((word, fields)), must_answer=True)
    for event in (Started(), Ended(), Failed("no memory"), Failed("no memory"), Failed("no memory")):
        note.tell(event)
    why = "it failed 3 times here, at last: no memory"
    assert said == [
        ("probation", {"version": 2, "tries_left": 1, "reason": "started"}),
        ("probation", {"version": 2, "tries_left": 2, "reason": "ended"}),
        ("probation", {"version": 2, "tries_left": 1, "reason": "no memory"}),
        ("probation", {"version": 2, "tries_left": 0, "reason": "no memory"}),
        ("went-back", {"version": 2, "in_use": 1, "reason": why}),
    ]
    assert note.shown == Shown(1, None, 2, None, why)
    assert slots.as_lines(note.shown) == ["version 1 predicts here", f"version 2 is not taken again: {why}"]


def test_a_full_disk_is_said_once_and_tried_again_and_a_card_that_fails_is_an_error(
    disk: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(disk, 1, stays=False)
    clock, said, error = iter(range(0, 10**9, CONNECTED_MS)), [], [errno.ENOSPC]
    note = Note(disk, lambda: next(clock), lambda word, **_: said.append(word), must_answer=False)

    def fail(*_args: object) -> None:
        raise OSError(error[0], "no")

    with monkeypatch.context() as patched:
        patched.setattr(flash, "replace_file", fail)
        for _ in range(4):
            note.tell(Looked(connected=True))
        assert (said, note.shown) == (["note-lost"], Shown(1, tries_left=2))
        error[0] = errno.EIO
        with pytest.raises(OSError, match="no"):
            note.tell(Looked(connected=True))
    note.tell(Looked(connected=True))
    assert (said, note.shown) == (["note-lost", "committed"], Shown(1))


def test_a_damaged_note_is_none(disk: Directory, tmp_path: Path) -> None:
    slots.take(disk, version(1))
    (tmp_path / "in_use").write_bytes(b"\xff")
    assert slots.load(disk) is None
    slots.take(disk, version(2))
    assert slots.load(disk).now == version(2)


def test_what_is_in_use_stays_on_flash_when_the_rest_is_forgotten(disk: Directory, tmp_path: Path) -> None:
    store = Flash(disk)
    for number in (1, 2, 3, 4):
        store.open_file(FILES[number])
        store.write_chunk(FILES[number], 0, bytes([number]) * 10)
        store.seal_file(FILES[number])
    for number in (2, 3):
        use(disk, number)
    store.forget(frozenset({FILES[4].digest}), frozenset(), slots.files(disk))
    assert {path.name for path in (tmp_path / "files").iterdir()} == {FILES[n].digest.hex() for n in (2, 3, 4)}


def test_the_owner_sees_what_predicts_and_goes_back_without_a_link(tmp_path: Path) -> None:
    coordinator = keys.public_text(keys.generate())
    path = config.make(tmp_path, "dev-1", "fleet-1", "mqtt://127.0.0.1:9", coordinator).path
    state = config.load(path).device.state
    state.mkdir(exist_ok=True)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["model", *arguments, "--config", str(path)])
        return result.exit_code, result.output

    assert run("show")[0] == 1
    use(Directory(state), 1)
    use(Directory(state), 2, stays=False)
    shown = {"in_use": 2, "before": 1, "refused": None, "tries_left": 2, "reason": ""}
    assert json.loads(run("show", "--json")[1]) == shown
    assert "version 2 predicts here, on probation: 2 more tries\nversion 1 did before" in run("show")[1]
    assert run("rollback") == (0, "Version 1 predicts here; version 2 is not taken again.\n")
    shown = {"in_use": 1, "before": None, "refused": 2, "tries_left": None, "reason": ""}
    assert json.loads(run("show", "--json")[1]) == shown
    assert "version 2 is not taken again: the owner went back from it" in run("show")[1]
    assert run("rollback")[0] == 1
    assert flash.read_file(state / "in_use") is not None
