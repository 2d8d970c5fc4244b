"""The simulated card: the same answers as the real disk while nothing fails, and the worst of answers when it does."""

from __future__ import annotations

import errno
import random

import pytest

from edge_agent.disk import Directory
from firmware_sim.card import SECTOR_BYTES, Card

EIO = OSError(errno.EIO, "Input/output error")


class Lost:
    """Chance that takes nothing along."""

    def random(self):
        return 0.0

    def randrange(self, _stop):
        return 0


class Kept:
    """Chance that takes everything along."""

    def random(self):
        return 0.9

    def randrange(self, stop):
        return stop - 1


class Failing:
    """What a card asks before an operation; the one in `error` fails once."""

    def __init__(self):
        self.error: dict[str, Exception] = {}

    def __call__(self, operation):
        if operation in self.error:
            raise self.error.pop(operation)


@pytest.fixture
def begin() -> Failing:
    return Failing()


@pytest.fixture
def card(begin) -> Card:
    """It has the directory `d`, and `d/f` of two sectors of a, all of it synced."""
    card = Card(begin, lambda: False)
    card.make_directory("d")
    write(card, "d/f", b"a" * 2 * SECTOR_BYTES)
    card.sync_directory("d")
    card.sync_directory("")
    return card


def write(disk, name, data, offset=0, *, synced=True):
    descriptor = disk.open(name)
    try:
        disk.write_at(descriptor, offset, data)
        if synced:
            disk.sync(descriptor)
    finally:
        disk.close(descriptor)


def sync(disk, name, *, drop=False):
    descriptor = disk.open(name)
    try:
        disk.sync(descriptor)
        if drop:
            disk.drop_cache(descriptor)
    finally:
        disk.close(descriptor)


NAMES = ("one", "two", "d/one", "d/two")


def act(disk, chance):
    """One operation of a few, drawn; what is seen after it."""
    name, offset, length = chance.choice(NAMES), chance.randrange(1500), chance.randrange(1500)
    kind = chance.choice(["write", "reserve", "truncate", "empty", "rename", "delete", "sync"])
    other = name[:-3] + chance.choice(["one", "two"])
    if kind == "delete":
        disk.delete(name)
    elif kind == "rename":
        if disk.size_bytes(name) is not None:
            disk.rename(name, other)
    else:
        descriptor = disk.open(name, empty=kind == "empty")
        if kind == "write":
            disk.write_at(descriptor, offset, chance.randbytes(length))
        elif kind == "reserve":
            disk.reserve(descriptor, 1 + length)
        elif kind == "truncate":
            disk.truncate(descriptor, length)
        elif kind == "sync":
            disk.sync(descriptor)
            disk.drop_cache(descriptor)
        seen = disk.read_at(descriptor, offset, length)
        disk.close(descriptor)
        return seen
    return None


@pytest.mark.parametrize("seed", range(20))
def test_while_nothing_fails_a_card_answers_as_the_real_disk_does(tmp_path, seed):
    disks = [Directory(tmp_path), Card(lambda _operation: None, bool)]
    chances = [random.Random(seed), random.Random(seed)]
    for disk in disks:
        disk.make_directory("")
        disk.make_directory("d")
        disk.make_directory("d")
    for _ in range(150):
        one, other = (act(disk, chance) for disk, chance in zip(disks, chances, strict=True))
        assert one == other
        for name in NAMES:
            assert disks[0].read(name) == disks[1].read(name)
            assert disks[0].size_bytes(name) == disks[1].size_bytes(name)
            if disks[0].size_bytes(name) is not None:
                assert b"".join(disks[0].pieces(name)) == b"".join(disks[1].pieces(name))
        for directory in ("", "d"):
            assert sorted(disks[0].names(directory)) == sorted(disks[1].names(directory))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_synced_survives_whatever_chance_takes_along(seed):
    chance, card = random.Random(seed), Card(lambda _operation: None, bool)
    card.make_directory("d")
    for _ in range(60):
        act(card, chance)
    for name in NAMES:
        if card.size_bytes(name) is not None:
            sync(card, name)
    card.sync_directory("d")
    card.sync_directory("")
    before = {name: card.read(name) for name in NAMES}
    assert {name: card.survivor().read(name) for name in NAMES} == before
    for power in (Lost(), Kept(), chance):
        card.cut(power, tear=True)
        assert {name: card.read(name) for name in NAMES} == before


def test_what_is_not_synced_is_lost_or_kept_sector_by_sector(card):
    seen = set()
    for seed in range(40):
        write(card, "d/f", b"a" * 2 * SECTOR_BYTES)
        write(card, "d/f", b"b" * 2 * SECTOR_BYTES, synced=False)
        assert card.survivor().read("d/f") == b"a" * 2 * SECTOR_BYTES
        assert card.read("d/f") == b"b" * 2 * SECTOR_BYTES
        card.cut(random.Random(seed))
        seen.add((card.read("d/f")[:1], card.read("d/f")[-1:]))
    assert seen == {(b"a", b"a"), (b"a", b"b"), (b"b", b"a"), (b"b", b"b")}


def test_one_sector_may_be_half_written(card):
    write(card, "d/f", b"b" * SECTOR_BYTES, synced=False)
    assert card.has_unsynced()
    card.cut(Kept(), tear=True)
    assert card.read("d/f") == b"b" * 511 + b"a" * 513
    assert not card.has_unsynced()


def test_a_length_that_is_not_synced_may_be_the_old_one(card):
    write(card, "d/f", b"b", 2 * SECTOR_BYTES, synced=False)
    card.cut(Lost())
    assert card.size_bytes("d/f") == 2 * SECTOR_BYTES
    write(card, "d/f", b"b", 2 * SECTOR_BYTES, synced=False)
    card.cut(Kept())
    assert card.read("d/f")[-2:] == b"ab"


def test_what_was_cut_off_does_not_come_back_when_the_file_grows(card):
    descriptor = card.open("d/f")
    card.truncate(descriptor, 10)
    card.truncate(descriptor, 20)
    assert card.read("d/f") == b"a" * 10 + bytes(10)
    card.sync(descriptor)
    card.cut(Lost())
    assert card.read("d/f") == b"a" * 10 + bytes(10)


def test_names_are_lost_from_the_last_one_on_and_a_rename_happens_whole(card):
    write(card, "d/g", b"g")
    card.rename("d/g", "d/f")
    card.delete("d/f")
    assert card.names("d") == []

    class Some(Lost):
        def __init__(self, changes_kept):
            self.randrange = lambda _stop: changes_kept

    def after(changes_kept):
        other = Card(lambda _operation: None, bool)
        other.make_directory("d")
        write(other, "d/f", b"f")
        other.sync_directory("d")
        other.sync_directory("")
        write(other, "d/g", b"g")
        other.rename("d/g", "d/f")
        other.delete("d/f")
        other.cut(Some(changes_kept))
        return {name: other.read(f"d/{name}") for name in other.names("d")}

    assert [after(n) for n in range(4)] == [{"f": b"f"}, {"f": b"f", "g": b"g"}, {"f": b"g"}, {}]


def test_a_directory_whose_name_is_not_synced_is_lost_with_all_in_it():
    card = Card(lambda _operation: None, bool)
    card.make_directory("d")
    write(card, "d/f", b"f")
    card.sync_directory("d")
    assert card.survivor().names("") == []
    card.cut(Lost())
    assert card.names("") == []
    assert card.read("d/f") is None
    with pytest.raises(FileNotFoundError):
        card.open("d/f")


def test_a_sync_that_fails_is_believed_by_nobody_but_the_cache(card, begin):
    begin.error["sync"] = EIO
    with pytest.raises(OSError, match="Input/output"):
        write(card, "d/f", b"b" * SECTOR_BYTES)
    sync(card, "d/f")  # there is nothing to write, says the cache
    assert card.read("d/f")[:1] == b"b"
    assert card.survivor().read("d/f")[:1] == b"a"
    card.cut(Kept())
    assert card.read("d/f")[:1] == b"a"


def test_what_is_written_again_after_a_failed_sync_is_durable_and_nothing_else_is(card, begin):
    begin.error["sync"] = EIO
    with pytest.raises(OSError, match="Input/output"):
        write(card, "d/f", b"b" * 2 * SECTOR_BYTES)
    write(card, "d/f", b"c", SECTOR_BYTES)
    card.cut(Lost())
    assert card.read("d/f") == b"a" * SECTOR_BYTES + b"c" + b"b" * (SECTOR_BYTES - 1)


def test_a_dropped_cache_shows_the_card_and_what_is_still_unsynced(card, begin):
    begin.error["sync"] = EIO
    with pytest.raises(OSError, match="Input/output"):
        write(card, "d/f", b"b" * (SECTOR_BYTES + 1))
    write(card, "d/f", b"c", 2 * SECTOR_BYTES - 1, synced=False)
    descriptor = card.open("d/f")
    card.drop_cache(descriptor)
    assert card.read("d/f") == b"a" * SECTOR_BYTES + b"b" + b"a" * (SECTOR_BYTES - 2) + b"c"
    card.sync(descriptor)
    assert card.survivor().read("d/f") == card.read("d/f")


def test_a_failed_sync_may_have_persisted_all_the_same(begin):
    card = Card(begin, lambda: True)
    write(card, "f", b"a")
    card.sync_directory("")
    begin.error["sync"] = EIO
    with pytest.raises(OSError, match="Input/output"):
        write(card, "f", b"b")
    assert card.survivor().read("f") == b"b"


def test_a_failed_write_may_have_left_half_of_it(begin):
    card = Card(begin, lambda: True)
    write(card, "f", b"aaaa")
    begin.error["write"] = EIO
    with pytest.raises(OSError, match="Input/output"):
        write(card, "f", b"bbbb")
    assert card.read("f") == b"bbaa"


def test_an_operation_that_does_not_begin_changes_nothing(card, begin):
    before = card.read("d/f")
    for operation, work in (
        ("grow", lambda: write(card, "d/f", b"x", 5000)),
        ("name", lambda: write(card, "d/new", b"x")),
        ("name", lambda: card.rename("d/f", "d/g")),
        ("name", lambda: card.delete("d/f")),
        ("sync names", lambda: card.sync_directory("d")),
    ):
        begin.error[operation] = OSError(errno.ENOSPC, "No space")
        with pytest.raises(OSError, match="No space"):
            work()
        assert card.names("d") == ["f"]
        assert card.read("d/f") == before
        assert card.survivor().read("d/f") == before


def test_wear_is_counted_in_sectors_and_syncs():
    card = Card(lambda _operation: None, bool)
    descriptor = card.open("f")
    card.reserve(descriptor, 128 * 1024)
    card.sync(descriptor)
    assert (card.bytes_written, card.sync_count) == (0, 1)  # room is no write
    card.write_at(descriptor, 500, b"x" * 100)
    card.write_at(descriptor, 510, b"x")
    card.sync(descriptor)
    card.sync(descriptor)
    assert (card.bytes_written, card.sync_count) == (2 * SECTOR_BYTES, 3)


def test_a_survivor_is_read_and_never_written(card):
    with pytest.raises(AssertionError, match="only looked at"):
        write(card.survivor(), "d/f", b"x")


def test_rot_and_loss_reach_the_card(card):
    card.rot("d/f", 600)
    assert card.read("d/f") == card.survivor().read("d/f") == b"a" * 600 + b"`" + b"a" * 423
    card.lose("d/f")
    card.cut(Kept())
    assert card.names("d") == []
