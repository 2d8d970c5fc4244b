"""The real disk: the few operations that durable files are made of."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from edge_agent.disk import Directory

PAGE = mmap.PAGESIZE


def cached_pages(path) -> int:
    """How many pages of the file are in the page cache."""
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        state = (ctypes.c_ubyte * (size // PAGE))()
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        found = ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), state)
    assert found == 0
    return sum(flag & 1 for flag in state)


def filesystem_of(path) -> str:
    """The type of the filesystem under `path`."""
    rows = [line.split() for line in open("/proc/self/mounts", encoding="utf-8")]  # noqa: PTH123, SIM115
    mounts = [(row[1], row[2]) for row in rows if os.path.commonpath([row[1], str(path)]) == row[1]]
    return max(mounts, key=lambda mount: len(mount[0]))[1]


def test_a_dropped_cache_is_empty_so_that_the_card_is_read(tmp_path):
    if filesystem_of(tmp_path) in ("tmpfs", "ramfs"):
        pytest.skip("a filesystem in memory has nothing else to read from")
    disk = Directory(tmp_path)
    descriptor = disk.open("file")
    disk.write_at(descriptor, 0, b"x" * 8 * PAGE)
    disk.sync(descriptor)
    if not cached_pages(disk.place("file")):
        pytest.skip("this filesystem does not keep its pages where they can be counted")
    disk.drop_cache(descriptor)
    assert cached_pages(disk.place("file")) == 0
    assert disk.read_at(descriptor, PAGE, 2) == b"xx"
    disk.close(descriptor)


def test_files_are_private_and_a_directory_may_be_made_twice(tmp_path):
    disk = Directory(tmp_path / "deep" / "state")
    for name in ("", "files", "files"):
        disk.make_directory(name)
    disk.close(disk.open("files/one"))
    assert disk.place("files/one").stat().st_mode & 0o777 == 0o600
    assert disk.place("files").stat().st_mode & 0o777 == 0o700
    assert disk.names("files") == ["one"]
    disk.sync_directory("files")


def test_what_is_not_there_is_none_and_deleting_it_is_no_harm(tmp_path):
    disk = Directory(tmp_path)
    assert disk.read("none") is None
    assert disk.size_bytes("none") is None
    disk.delete("none")


def test_an_emptied_file_and_one_that_is_reserved(tmp_path):
    disk = Directory(tmp_path)
    for empty, length in ((False, 0), (False, 3), (True, 0)):
        descriptor = disk.open("file", empty=empty)
        assert len(disk.read_at(descriptor, 0, 9)) == length
        disk.write_at(descriptor, 0, b"one")
        disk.close(descriptor)
    descriptor = disk.open("file")
    disk.reserve(descriptor, 10_000)
    assert disk.size_bytes("file") == 10_000
    assert disk.place("file").stat().st_blocks * 512 >= 10_000
    disk.truncate(descriptor, 2)
    disk.close(descriptor)
    assert disk.read("file") == b"on"
