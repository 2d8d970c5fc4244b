"""Lane hardened at the coordinator: rows that survive power cuts, sums made again, lost files, and who attacks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from broker.admission import gate, holder
from broker.aggregate.reading import members_of
from broker.aggregate.rules import RULES, AggregateError, Recipe, next_numbers
from broker.effects import Pending
from broker.estimates import Estimates, Row, Rows, Said, after
from engine import master
from engine.codec import estimate
from engine.codec.estimate import Estimate
from engine.codec.residual import Sending
from engine.codec.update import Update, dense
from tests.engine.test_master import frame
from tests.wire.examples import HARDENED_PLAN, PLAN

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 30
FLOATS, INTEGERS = frame(SIZE, 0, lane="float32"), frame(SIZE - 2, 2, unit=32)
SENDING = Sending(5, 0, "context", clip_norm=1e6)


def row(round_id: int, value: float = 1.0, *, is_sound: bool = True) -> Row:
    return Row(Estimate(np.full(SIZE, value, np.float16), round_id), is_sound)


def bytes_of(one: Row) -> tuple[bytes, int, bool]:
    return one.estimate.values.tobytes(), one.estimate.round_id, one.is_sound


def changed(at: int, value: int) -> Update:
    return Update("int8", SIZE, np.array([at], np.uint32), np.array([value], np.int32))


class Device:
    """A device of lane hardened, and the store that its updates come into."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name, self.stored = name, {}
        self.estimate = estimate.nothing(SIZE)
        self._chance = np.random.default_rng(seed)

    def send(self, round_id: int, delta: np.ndarray | None = None, *, accepted: bool = True) -> bytes:
        made = self._chance.integers(-40, 40, SIZE) if delta is None else delta
        said = estimate.say(made, self.estimate, INTEGERS, SENDING, round_id)
        if accepted:
            self.estimate, self.stored[round_id] = said.estimate, said.payload
        return said.payload

    def pending(self, *rounds: int) -> list[Pending]:
        return [Pending(self.name, round_id, 1, 10) for round_id in rounds]


def count(pending: list[Pending], devices: list[Device], kept: Estimates) -> dict[str, np.ndarray]:
    """What a rule would see of each device, dense; by whose update, `device/round`."""
    stored = {device.name: device.stored for device in devices}
    read = members_of(INTEGERS, pending, lambda name, round_id: stored[name][round_id], kept)
    return {f"{member.key[0]}/{member.key[1]}": dense(member.update) for member in read}


def known(device: Device) -> np.ndarray:
    return device.estimate.values.astype(np.int64)


# What a row becomes


def test_an_update_is_added_once_however_often_the_sum_is_made():
    said = [Said(3, 0, changed(1, 5)), Said(7, 3, changed(1, 2))]
    once = after(Row(estimate.nothing(SIZE)), said)
    assert (once.estimate.values[1], once.estimate.round_id, once.is_sound) == (7, 7, True)
    assert after(once, said) is once
    half = after(Row(estimate.nothing(SIZE)), said[:1])
    assert bytes_of(after(half, said)) == bytes_of(once)


def test_who_builds_on_nothing_begins_anew():
    fresh = after(row(9, 4.0), [Said(12, 0, changed(1, 5))])
    assert fresh.is_sound
    assert np.flatnonzero(fresh.estimate.values).tolist() == [1]


def test_what_builds_on_something_else_counts_by_itself_and_is_not_sound():
    lost = after(row(9, 4.0), [Said(12, 10, changed(1, 5))])
    assert np.flatnonzero(lost.estimate.values).tolist() == [1]
    assert not lost.is_sound
    still = after(lost, [Said(13, 12, changed(2, 5))])
    assert np.flatnonzero(still.estimate.values).tolist() == [1, 2]
    assert not still.is_sound, "the device holds more than this"
    assert after(still, [Said(14, 0, changed(2, 5))]).is_sound


# The file


def test_a_row_is_there_again_after_a_start(tmp_path: Path):
    rows = Rows(tmp_path / "e", SIZE)
    assert bytes_of(rows.row("cabin")) == bytes_of(row(0, 0.0))
    for at in range(200):
        rows.put(f"device-{at}", row(at + 1, at))
    rows.put("device-3", row(500, -2.0, is_sound=False))
    rows.flush()
    rows.close()
    rows = Rows(tmp_path / "e", SIZE)
    assert bytes_of(rows.row("device-3")) == bytes_of(row(500, -2.0, is_sound=False))
    assert all(bytes_of(rows.row(f"device-{at}")) == bytes_of(row(at + 1, at)) for at in range(200) if at != 3)
    assert [rows.holds("device-7", 8), rows.holds("device-7", 7), rows.holds("device-3", 500)] == [True, False, False]
    rows.put("device-200", row(1))
    assert bytes_of(rows.row("device-0")) == bytes_of(row(1, 0.0)), "a new row takes nobody's place"


def test_the_file_takes_room_as_devices_appear(tmp_path: Path):
    rows = Rows(tmp_path / "e", 100_000)
    rows.put("cabin", Row(Estimate(np.ones(100_000, np.float16), 1)))
    rows.flush()
    told = (tmp_path / "e").stat()
    assert told.st_size > 64 * 2 * 200_000
    assert told.st_blocks * 512 < 2 * 200_000
    assert told.st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", range(0, 16 + 2 * SIZE, 5))
def test_a_torn_write_leaves_the_row_before(tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch):
    rows = Rows(tmp_path / "e", SIZE)
    rows.put("cabin", row(3, 1.0))
    rows.put("cabin", row(5, 2.0))
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: whole(file, data[:cut], at))
    rows.put("cabin", row(9, 3.0))
    monkeypatch.undo()
    assert bytes_of(Rows(tmp_path / "e", SIZE).row("cabin")) == bytes_of(row(5, 2.0))


def test_damage_is_never_read_as_a_row(tmp_path: Path):
    path = tmp_path / "e"
    rows = Rows(path, SIZE)
    rows.put("cabin", row(3))
    rows.flush()
    content = path.read_bytes()[: 64 + 64 + 16 + 2 * SIZE]
    for at in range(64, len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert bytes_of(Rows(path, SIZE).row("cabin")) == bytes_of(row(0, 0.0)), at


def test_a_torn_name_gives_a_row_to_nobody(tmp_path: Path):
    rows = Rows(tmp_path / "e", SIZE)
    rows.put("cabin", row(3))
    rows.close()
    with (tmp_path / "e").open("r+b") as file:
        file.seek(64 + len("cab"))
        file.write(b"\0\0")
    again = Rows(tmp_path / "e", SIZE)
    assert bytes_of(again.row("cab")) == bytes_of(again.row("cabin")) == bytes_of(row(0, 0.0))


def test_what_was_read_is_on_disk_before_anything_is_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept, cabin, done = Estimates(tmp_path / "e"), Device("cabin"), []
    cabin.send(1)
    write, sync = os.pwrite, os.fdatasync
    monkeypatch.setattr(os, "pwrite", lambda *given: done.append("written") or write(*given))
    monkeypatch.setattr(os, "fdatasync", lambda file: done.append("synced") or sync(file))
    count(cabin.pending(1), [cabin], kept)
    assert "written" in done
    assert done[-1] == "synced"


def test_a_file_for_another_model_begins_anew(tmp_path: Path):
    kept = Estimates(tmp_path / "e")
    kept.of(SIZE).put("cabin", row(3))
    assert bytes_of(kept.of(SIZE).row("cabin")) == bytes_of(row(3))
    assert kept.of(SIZE + 1).row("cabin").estimate.round_id == 0
    assert kept.of(SIZE).row("cabin").estimate.round_id == 0
    (tmp_path / "other").write_bytes(b"something else entirely, and longer than a head of this kind of file is")
    assert Rows(tmp_path / "other", SIZE).row("cabin").estimate.round_id == 0


def test_no_file_is_made_where_nobody_asks(tmp_path: Path):
    kept = Estimates(tmp_path / "e")
    kept.flush()
    kept.close()
    assert not (tmp_path / "e").exists()


# Updates and rows together


def test_a_rule_sees_the_estimate_that_the_device_holds_whatever_order_and_however_often(tmp_path: Path):
    kept, pair = Estimates(tmp_path / "e"), [Device("cabin", 1), Device("dune", 2)]
    for round_id in range(1, 9):
        for device in pair:
            device.send(round_id)
        pending = [one for device in pair for one in device.pending(round_id)]
        first = count(pending, pair, kept)
        again = count(pending[::-1], pair, kept)
        for device in pair:
            name = f"{device.name}/{round_id}"
            assert np.array_equal(first[name], known(device))
            assert np.array_equal(again[name], known(device))
    assert np.count_nonzero(known(pair[0])) > 2 * SENDING.k


def test_several_updates_of_one_device_are_one_voice(tmp_path: Path):
    kept, cabin = Estimates(tmp_path / "e"), Device("cabin")
    for round_id in (1, 2, 5):
        cabin.send(round_id)
    seen = count(cabin.pending(5, 1, 2), [cabin], kept)
    assert list(seen) == ["cabin/5"]
    assert np.array_equal(seen["cabin/5"], known(cabin))


@pytest.mark.parametrize("forgets", [False, True])
def test_a_crash_between_row_and_commit_loses_and_doubles_nothing(tmp_path: Path, forgets: bool):
    """The version's transaction is the store's, the row is not: the sum is made again, with one more update or not."""
    kept, cabin = Estimates(tmp_path / "e"), Device("cabin")
    cabin.send(1)
    count(cabin.pending(1), [cabin], kept)
    cabin.send(2)
    before = (tmp_path / "e").read_bytes()
    count(cabin.pending(2), [cabin], kept)
    kept.close()
    if forgets:  # the power went, and the disk had not heard of it
        (tmp_path / "e").write_bytes(before)
    kept = Estimates(tmp_path / "e")
    cabin.send(3)
    seen = count(cabin.pending(2, 3), [cabin], kept)
    assert np.array_equal(seen["cabin/3"], known(cabin))


def test_an_update_of_lane_economy_that_came_late_counts_as_it_is(tmp_path: Path):
    kept, cabin, dune = Estimates(tmp_path / "e"), Device("cabin"), Device("dune")
    cabin.send(4)
    _, dune.stored[3] = estimate.split(dune.send(3, accepted=False))
    seen = count([*cabin.pending(4), *dune.pending(3)], [cabin, dune], kept)
    assert np.array_equal(seen["cabin/4"], known(cabin))
    assert np.count_nonzero(seen["dune/3"]) == SENDING.k
    assert kept.of(SIZE).row("dune").estimate.round_id == 0


def test_where_no_rows_are_kept_a_hardened_update_is_a_sentence(tmp_path: Path):
    cabin = Device("cabin")
    cabin.send(1)
    before = master.first(INTEGERS, np.zeros(SIZE, np.int32))
    recipe = Recipe(RULES["median"], 1.0, SIZE, dense=True)
    with pytest.raises(AggregateError, match="builds on an estimate"):
        next_numbers(INTEGERS, before, cabin.pending(1), lambda *key: cabin.stored[key[1]], recipe)


def test_a_lost_file_costs_a_device_one_update_and_no_accepted_one(tmp_path: Path):
    """What was accepted counts for what it says by itself; the next is unfounded; then the device begins anew."""
    waiting = set()
    kept, cabin = Estimates(tmp_path / "e"), Device("cabin")
    holds = holder(lambda _plan: INTEGERS, kept, lambda name, round_id: (name, round_id) in waiting)

    def founded(payload: bytes) -> bool:
        return holds("cabin", payload, HARDENED_PLAN)

    assert founded(cabin.send(1))
    waiting.add(("cabin", 1))
    assert founded(cabin.send(2)), "what it builds on waits to be counted"
    waiting.add(("cabin", 2))
    count(cabin.pending(1, 2), [cabin], kept)
    waiting.clear()
    assert founded(cabin.send(3)), "and now it is in the row"
    waiting.add(("cabin", 3))
    kept.of(SIZE)
    kept.close()
    (tmp_path / "e").unlink()
    assert founded(cabin.send(4, accepted=False)), "3 waits: it will be counted, and its row will not be sound"
    seen = count(cabin.pending(3), [cabin], kept)["cabin/3"]
    assert 0 < np.count_nonzero(seen) <= SENDING.k
    waiting.clear()
    assert not founded(cabin.send(4, accepted=False))
    cabin.estimate = estimate.nothing(SIZE)  # what the device does on that answer
    assert founded(cabin.send(5))
    assert np.array_equal(count(cabin.pending(5), [cabin], kept)["cabin/5"], known(cabin))
    assert founded(cabin.send(6))


def test_the_gate_takes_of_each_lane_its_own_payloads():
    admit = gate(lambda _plan: INTEGERS)
    hardened = Device("cabin").send(1)
    _, plain = estimate.split(hardened)
    terms = {"num_params": SIZE, "keep_count": 5, "coding": "context"}
    economy, own = (msgspec.structs.replace(PLAN, lane=lane, **terms) for lane in ("economy", "hardened"))
    assert admit(hardened, own) is admit(plain, economy) is None
    assert admit(plain, own) == "the update does not build on an estimate as lane hardened does"
    assert admit(hardened, economy) == "the update does not build on an estimate as lane economy does"
    assert admit(hardened[:5], own) == "The update is cut short."
