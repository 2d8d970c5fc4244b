"""The sample store: bounded, numbered for ever, and whole whatever power does."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import samples
from edge_agent.samples import Samples, SamplesError, create, is_held_out, read_arrays

SHAPE = (2, 3)


def window(value: float) -> bytes:
    return np.full(SHAPE, value, dtype="<f4").tobytes()


def filled(path, count: int, capacity: int = 5) -> Samples:
    store = create(path, SHAPE, capacity)
    for number in range(1, count + 1):
        assert store.append(window(number), number % 10) == number
    return store


def test_windows_come_back_with_their_labels_and_numbers(tmp_path):
    filled(tmp_path / "s", 3).append(window(4))
    arrays = read_arrays(tmp_path / "s")
    assert arrays.windows.shape == (4, *SHAPE)
    assert arrays.windows.dtype == np.float32
    assert arrays.windows[:, 0, 0].tolist() == [1, 2, 3, 4]
    assert arrays.labels.tolist() == [1, 2, 3, -1]
    assert arrays.numbers.tolist() == [1, 2, 3, 4]


def test_an_empty_store_has_no_windows_but_their_shape(tmp_path):
    create(tmp_path / "s", SHAPE, 5)
    assert read_arrays(tmp_path / "s").windows.shape == (0, *SHAPE)
    assert Samples(tmp_path / "s").count_labelled() == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 20))
def test_a_full_store_forgets_its_oldest_and_counts_on(tmp_path_factory, capacity, count):
    path = tmp_path_factory.mktemp("samples") / "s"
    filled(path, count, capacity)
    assert read_arrays(path).numbers.tolist() == list(range(max(1, count - capacity + 1), count + 1))
    assert Samples(path).count_labelled() == min(count, capacity)
    assert path.stat().st_size <= 96 + capacity * (16 + len(window(0)))


def test_many_at_once_are_as_one_by_one(tmp_path):
    filled(tmp_path / "a", 7)
    store = create(tmp_path / "b", SHAPE, 5)
    assert store.extend([window(n) for n in range(1, 8)], [n % 10 for n in range(1, 8)]) == range(1, 8)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_label_may_come_later_and_only_to_a_window_that_is_there(tmp_path):
    store = create(tmp_path / "s", SHAPE, 3)
    for value in range(5):
        store.append(window(value))
    assert store.count_labelled() == 0
    assert store.set_label(4, 9)
    assert not store.set_label(1, 9)  # forgotten
    assert not store.set_label(6, 9)  # not yet
    assert not store.set_label(0, 9)
    assert not store.set_label(4, 70_000)
    assert store.count_labelled() == 1
    assert read_arrays(tmp_path / "s").labels.tolist() == [-1, 9, -1]


def test_appending_alone_reads_a_head_or_two_and_beside_others_still_counts_right(tmp_path, monkeypatch):
    ours, theirs = filled(tmp_path / "s", 3), Samples(tmp_path / "s")
    assert ours.append(window(4)) == 4
    monkeypatch.setattr(Samples, "_heads", lambda *_: pytest.fail("all heads were read"))
    assert [ours.append(window(n)) for n in range(5, 13)] == list(range(5, 13))
    monkeypatch.undo()
    assert theirs.append(window(13)) == 13
    assert ours.append(window(14)) == 14
    for _ in range(7):
        theirs.append(window(0))  # all of ours are forgotten
    assert ours.append(window(22)) == 22
    assert read_arrays(tmp_path / "s").numbers.tolist() == [18, 19, 20, 21, 22]


def test_one_window_is_read_by_its_number_with_its_label(tmp_path):
    store = filled(tmp_path / "s", 7)
    assert store.read(7) == (window(7), 7)
    assert [store.read(number) for number in (0, 2, 8)] == [None] * 3
    with (tmp_path / "s").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    assert store.read(5) is None  # torn


def test_the_count_follows_what_another_process_adds(tmp_path):
    store = filled(tmp_path / "s", 2)
    assert store.count_labelled() == 2
    Samples(tmp_path / "s").append(window(9), 1)
    assert store.count_labelled() == 3


def test_a_record_torn_at_any_byte_is_no_record_and_the_others_stay(tmp_path):
    path = tmp_path / "s"
    filled(path, 2)
    before = path.read_bytes()
    Samples(path).append(window(3), 3)
    after = path.read_bytes()
    for cut in range(len(before), len(after) + 1):
        path.write_bytes(after[:cut])
        whole = cut == len(after)
        assert read_arrays(path).numbers.tolist() == ([1, 2, 3] if whole else [1, 2])
        assert Samples(path).count_labelled() == (3 if whole else 2)
        assert Samples(path).append(window(8), 8) == (4 if whole else 3)


def test_a_torn_overwrite_loses_the_oldest_window_and_no_other(tmp_path):
    path = tmp_path / "s"
    filled(path, 5)
    before = path.read_bytes()
    Samples(path).append(window(6), 6)
    after = path.read_bytes()
    for cut in range(97, 96 + 16 + len(window(0))):
        path.write_bytes(after[:cut] + before[cut:])
        numbers = read_arrays(path).numbers.tolist()
        assert numbers in ([1, 2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 4, 5, 6])
        assert Samples(path).append(window(7), 7) in (6, 7)


def test_damaged_heads_poison_neither_the_count_nor_the_numbers(tmp_path):
    path = tmp_path / "s"
    filled(path, 5, capacity=9)
    whole = bytearray(path.read_bytes())
    for record in (0, 1):  # numbers that do not belong where they stand
        start = 96 + record * (16 + len(window(0)))
        whole[start : start + 8] = (9 * 10**6 + 5).to_bytes(8, "little")
    path.write_bytes(whole)
    assert Samples(path).count_labelled() == 3
    assert Samples(path).append(window(6), 6) == 6
    assert read_arrays(path).numbers.tolist() == [3, 4, 5, 6]


def test_what_does_not_fit_is_refused_with_a_sentence(tmp_path):
    store = create(tmp_path / "s", SHAPE, 5)
    with pytest.raises(SamplesError, match="keeps windows of 24 bytes"):
        store.append(b"short", 1)
    with pytest.raises(SamplesError, match="label 70000"):
        store.append(window(1), 70_000)
    with pytest.raises(SamplesError, match=r"keeps windows of shape \(2, 3\), not \(3,\)"):
        create(tmp_path / "s", (3,), 5)
    for shape, capacity in (((), 5), ((0, 2), 5), ((1,) * 9, 5), ((2,), 0), ((2,), samples.CAPACITY_MAX + 1)):
        with pytest.raises(SamplesError, match="cannot be"):
            create(tmp_path / "t", shape, capacity)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("damage", [b"", b"x" * 200, b"HSMP"])
def test_a_file_that_is_no_store_is_told(tmp_path, damage):
    (tmp_path / "s").write_bytes(damage)
    with pytest.raises(SamplesError, match="no store of samples"):
        Samples(tmp_path / "s")
    with pytest.raises(SamplesError, match="there are no samples"):
        Samples(tmp_path / "t")


def test_the_store_is_private(tmp_path):
    create(tmp_path / "s", SHAPE, 5)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_held_out_is_by_number_alone_and_of_the_right_share():
    held_out = [number for number in range(1, 5001) if is_held_out(number, 0.2)]
    assert 850 < len(held_out) < 1150
    assert held_out[:5] == [n for n in range(1, 100) if is_held_out(n, 0.2)][:5]
    assert not any(is_held_out(number, 0.0) for number in range(1, 1000))
    assert {n for n in range(1, 1000) if is_held_out(n, 0.1)} < {n for n in range(1, 1000) if is_held_out(n, 0.2)}


def test_the_store_works_without_numpy():
    code = "import sys, edge_agent.samples; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
