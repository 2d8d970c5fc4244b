"""DATA: what trains and what measures come out whole, and a mistake in the file is one sentence."""

import numpy as np
import pytest

from edge_agent import datafile
from edge_agent.samples import is_held_out


def windows(count, start=0):
    return (np.arange(count * 6, dtype=np.float32) + start).reshape(count, 2, 3)


def test_a_test_part_of_its_own_measures(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, windows=windows(5), labels=np.arange(5), test_windows=windows(2, 99), test_labels=np.array([1, 0]))
    found = datafile.read(path)
    np.testing.assert_array_equal(found.mine.windows, windows(5))
    assert found.mine.labels.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found.test.windows, windows(2, 99))
    assert (found.test.labels.tolist(), found.test.labels.dtype) == ([1, 0], np.int32)


def test_without_one_a_fifth_is_set_aside_by_number_so_that_more_data_moves_no_window(tmp_path):
    path = tmp_path / "d.npz"
    aside = {}
    for count in (400, 500):
        np.savez(path, windows=windows(count), labels=np.zeros(count, int))
        found = datafile.read(path)
        rows = {window.tobytes() for window in found.test.windows}
        assert len(rows) + len({window.tobytes() for window in found.mine.windows} - rows) == count
        assert 0.15 < len(rows) / count < 0.25
        aside[count] = rows
    assert aside[400] <= aside[500]
    assert len(aside[400]) == sum(is_held_out(number, 0.2) for number in range(1, 401))


def test_a_folder_has_a_class_for_each_sub_folder(tmp_path):
    for name, count in (("on", 20), ("off", 30), ("empty", 0)):
        (tmp_path / name).mkdir()
        for at in range(count):
            np.save(tmp_path / name / f"{at:03}.npy", np.full((2, 3), {"on": 1, "off": 2}[name] * 40 + at, np.int8))
    found = datafile.read(tmp_path)
    assert found.classes == ("empty", "off", "on")
    every = np.concatenate([found.mine.windows, found.test.windows])
    labels = np.concatenate([found.mine.labels, found.test.labels])
    assert every.dtype == np.int8
    assert (np.bincount(labels).tolist(), len(every)) == ([0, 30, 20], 50)
    assert (labels[every[:, 0, 0] == np.int8(40 + 3)] == 2).all()


def test_sub_folders_named_by_numbers_are_those_classes(tmp_path):
    for name in ("2", "10"):
        (tmp_path / name).mkdir()
        for at in range(20):
            np.save(tmp_path / name / f"{at}.npy", np.zeros((2, 3), np.float32))
    found = datafile.read(tmp_path)
    assert set(np.concatenate([found.mine.labels, found.test.labels]).tolist()) == {2, 10}
    assert found.classes == ()


GOOD = {"windows": windows(50), "labels": np.arange(50)}


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": windows(3)}, "has no array windows: save it with numpy.savez"),
        ({"windows": windows(3)}, "has no array labels"),
        (GOOD | {"windows": windows(50).astype(np.int32)}, r"windows in .* are int32 \[50, 2, 3\]: float32, int8 or"),
        (GOOD | {"windows": windows(0)}, r"float32 \[0, 2, 3\]"),
        (GOOD | {"windows": np.zeros(50, np.float32)}, r"float32 \[50\]"),
        (GOOD | {"labels": np.arange(49)}, r"labels in .* are int64 \[49\]: 50 integers are needed"),
        (GOOD | {"labels": np.arange(50.0)}, "50 integers are needed"),
        (GOOD | {"labels": np.arange(50) - 1}, "a label in .* lies outside 0"),
        (GOOD | {"windows": np.where(windows(50) == 30, np.nan, windows(50))}, "window 5 of .* holds NaN"),
        (GOOD | {"test_windows": windows(3)}, "has no array test_labels"),
        (GOOD | {"test_labels": np.arange(3)}, "has no array test_windows"),
        (GOOD | {"test_windows": np.zeros((3, 4), np.float32), "test_labels": np.arange(3)}, "make them alike"),
        (GOOD | {"test_windows": np.zeros((3, 2, 3), np.int8), "test_labels": np.arange(3)}, "make them alike"),
        ({"windows": windows(1), "labels": np.zeros(1, int)}, "1 windows, too few to set some aside"),
        ({"windows": np.array([[object()]]), "labels": np.zeros(1, int)}, "cannot read"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, arrays, sentence):
    path = tmp_path / "d.npz"
    np.savez(path, **arrays)
    with pytest.raises(datafile.DataFileError, match=sentence) as caught:
        datafile.read(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_data_at_all_is_one_sentence(tmp_path):
    for name, content in (("a.npz", b"rubbish"), ("b.npz", b""), ("c.npz", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(datafile.DataFileError, match=f"cannot read .*{name}"):
            datafile.read(tmp_path / name)
    np.save(tmp_path / "one.npy", windows(3))
    with pytest.raises(datafile.DataFileError, match="cannot read"):
        datafile.read(tmp_path / "one.npy")
    with pytest.raises(datafile.DataFileError, match="cannot read"):
        datafile.read(tmp_path / "nowhere.npz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(datafile.DataFileError, match="make one sub-folder for each class"):
        datafile.read(tmp_path / "folder")
    (tmp_path / "folder/a").mkdir()
    (tmp_path / "folder/a/x.npy").write_bytes(b"rubbish")
    with pytest.raises(datafile.DataFileError, match=r"cannot read .*x\.npy"):
        datafile.read(tmp_path / "folder")
    np.save(tmp_path / "folder/a/x.npy", windows(1)[0])
    np.save(tmp_path / "folder/a/y.npy", windows(2))
    with pytest.raises(datafile.DataFileError, match=r"y\.npy is float32 \[2, 2, 3\], others are float32 \[2, 3\]"):
        datafile.read(tmp_path / "folder")


def test_pixels_may_be_given_to_an_int8_model_and_stored_numbers_to_a_float_one():
    pixels = np.array([[0, 128, 255]], np.uint8)
    assert datafile.fitted(pixels, "int8").tolist() == [[-128, 0, 127]]
    assert datafile.fitted(np.array([[-128, 127]], np.int8), "uint8").tolist() == [[0, 255]]
    for kind in ("int8", "uint8"):
        assert str(datafile.fitted(pixels, kind).dtype) == kind
        np.testing.assert_array_equal(datafile.fitted(windows(3), kind), windows(3))
    assert datafile.fitted(pixels, "uint8").tolist() == pixels.tolist()
    assert datafile.fitted(pixels, "float32").tolist() == [[0.0, 128.0, 255.0]]
    assert datafile.fitted(pixels, "float32").dtype == np.float32
    with pytest.raises(datafile.DataFileError, match="the model's input is int32"):
        datafile.fitted(pixels, "int32")
