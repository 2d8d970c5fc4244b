"""The two slots: what predicts, what did before, and what the owner went back from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from edge_agent import config, flash, slots
from edge_agent.cli import main
from edge_agent.disk import Directory
from edge_agent.flash import Flash, Model
from edge_agent.slots import SlotError
from wire import chunks, keys

if TYPE_CHECKING:
    from pathlib import Path

FILES = [chunks.split("params.bin", bytes([number]) * 10) for number in range(5)]


def version(number: int) -> Model:
    return Model(number, "last-2", (FILES[number],))


@pytest.fixture
def disk(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


def test_nothing_is_in_use_before_a_child_has_tried_a_version(disk: Directory) -> None:
    assert slots.load(disk) is None
    with pytest.raises(SlotError, match="no model is in use"):
        slots.back(disk)


def test_the_newest_that_was_taken_predicts_and_one_before_it_is_kept(disk: Directory) -> None:
    for number in (1, 2, 2, 3):
        slots.take(disk, version(number))
    assert slots.load(disk) == slots.Slots(version(3), version(2))
    assert slots.files(disk) == {FILES[3].digest, FILES[2].digest}


def test_the_owner_goes_back_and_what_he_went_back_from_is_not_taken_again(disk: Directory) -> None:
    for number in (1, 2):
        slots.take(disk, version(number))
    assert slots.back(disk) == slots.Slots(version(1), None, 2)
    slots.take(disk, version(2))
    assert slots.load(disk).now == version(1)
    with pytest.raises(SlotError, match="none before it is kept"):
        slots.back(disk)
    slots.take(disk, version(3))
    assert slots.load(disk) == slots.Slots(version(3), version(1), 2)


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
        slots.take(disk, version(number))
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
    for number in (1, 2):
        slots.take(Directory(state), version(number))
    assert json.loads(run("show", "--json")[1]) == {"in_use": 2, "before": 1, "refused": None}
    assert "version 1 did before" in run("show")[1]
    assert run("rollback") == (0, "Version 1 predicts here; version 2 is not taken again.\n")
    assert json.loads(run("show", "--json")[1]) == {"in_use": 1, "before": None, "refused": 2}
    assert run("rollback")[0] == 1
    assert flash.read_file(state / "in_use") is not None
