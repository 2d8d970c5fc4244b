"""Data: the published formats are read, and a split is private, complete and repeatable."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from firmware_sim import data
from firmware_sim.models.split import FLEET_END, MODEL_END, ROWS


def write_idx(path: Path, array: np.ndarray) -> None:
    kind = {np.dtype(np.uint8): 8, np.dtype(">i4"): 12}[array.dtype]
    head = bytes([0, 0, kind, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    chance = np.random.default_rng(3)
    images = chance.integers(0, 256, (80, 28, 28)).astype(np.uint8)
    labels = (np.arange(80) % 10).astype(np.uint8)
    extended = np.zeros((200, 8), dtype=">i4")
    extended[:80, 0], extended[:80, 2] = labels, np.arange(80) // 4 + 700
    for name, array in zip(data.MNIST_FILES, (images, labels, extended), strict=True):
        write_idx(tmp_path / name, array)
    return tmp_path


def test_the_digits_are_the_rows_that_did_not_teach_the_model() -> None:
    dataset = data.digits()
    assert dataset.windows.shape == (ROWS - MODEL_END, 8, 8, 1)
    assert dataset.windows.dtype == np.float32
    assert dataset.is_test is not None
    assert int(dataset.is_test.sum()) == ROWS - FLEET_END
    assert dataset.windows.max() == 1.0


def test_mnist_is_averaged_in_blocks_of_four_and_knows_its_writers(mnist: Path) -> None:
    dataset = data.read(mnist)
    assert dataset.windows.shape == (80, 8, 8, 1)
    assert dataset.owners is not None
    assert list(dataset.owners[:5]) == ["writer-700"] * 4 + ["writer-701"]
    raw = np.frombuffer(gzip.decompress((mnist / data.MNIST_FILES[0]).read_bytes())[16:], np.uint8).reshape(-1, 28, 28)
    by_hand = raw[7, 2:6, 6:10].astype(float).mean() / 255  # block (1, 2): rows 4-7 less 2, columns 8-11 less 2
    assert dataset.windows[7, 1, 2, 0] == pytest.approx(by_hand, abs=1e-6)


def test_mnist_test_writers_are_in_no_share(mnist: Path) -> None:
    dataset = data.read(mnist)
    shares = data.share(dataset, 5, seed=2)
    assert len(shares.test[1]) == 20  # a quarter of twenty writers, four digits each
    assert sum(len(labels) for _, labels in shares.devices.values()) == 60
    assert dataset.owners is not None
    writer_of = {row.tobytes(): owner for row, owner in zip(dataset.windows, dataset.owners, strict=True)}
    groups = [{writer_of[row.tobytes()] for row in windows} for windows, _ in [*shares.devices.values(), shares.test]]
    assert sum(len(group) for group in groups) == len(set.union(*groups)) == 20


def test_more_devices_than_people_is_a_sentence(mnist: Path) -> None:
    with pytest.raises(data.DataError, match="16 devices are too many: the data comes from 15 people"):
        data.share(data.read(mnist), 16, seed=1)


def test_labels_of_other_digits_are_refused(mnist: Path) -> None:
    write_idx(mnist / data.MNIST_FILES[1], np.zeros(80, np.uint8))
    with pytest.raises(data.DataError, match="not of the same digits"):
        data.read(mnist)


def test_a_damaged_idx_file_is_a_sentence(mnist: Path) -> None:
    (mnist / data.MNIST_FILES[2]).write_bytes(b"not gzip")
    with pytest.raises(data.DataError, match="is not a gzipped idx file"):
        data.read(mnist)


def test_a_wrist_window_is_ten_seconds_and_the_last_quarter_measures(tmp_path: Path) -> None:
    letters = np.repeat(np.frombuffer(b"AB", np.uint8), 4 * data.WISDM_ROWS + 7)
    subject = np.repeat(np.array([1600, 1601], np.int16), len(letters))
    activity = np.tile(letters, 2)
    xyz = np.arange(len(subject) * 3, dtype=np.float32).reshape(-1, 3)
    np.savez(tmp_path / "wisdm51_watch_accel_raw_1600-1601.npz", subject=subject, activity=activity, xyz=xyz)
    dataset = data.read(tmp_path)
    assert dataset.windows.shape == (16, 200, 1, 3)
    assert list(dataset.labels[:8]) == [0, 0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(dataset.windows[1, :, 0], xyz[200:400])
    shares = data.share(dataset, 2, seed=9)
    assert [len(labels) for _, labels in shares.devices.values()] == [6, 6]
    assert sorted(shares.test[0][:, 0, 0, 0]) == [float(xyz[row, 0]) for row in (600, 1407, 2214, 3021)]


def test_cifar_batches_find_their_labels(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    labels = chance.integers(0, 10, 51_000)
    (tmp_path / data.CIFAR_LABELS).write_text(f"var labels={json.dumps(labels.tolist())};\n")
    pixels = {number: chance.integers(0, 256, (1000, 1024, 3)).astype(np.uint8) for number in (1, 50)}
    for number, rows in pixels.items():
        Image.fromarray(rows).save(tmp_path / f"cifar10_batch_{number}.png")
    dataset = data.read(tmp_path)
    assert dataset.windows.shape == (2000, 32, 32, 3)
    assert list(dataset.labels) == [*labels[1000:2000], *labels[50_000:51_000]]
    np.testing.assert_array_equal(dataset.windows[1003], pixels[50][3].reshape(32, 32, 3))
    assert len(data.share(dataset, 4, seed=1).test[1]) == 1000


def test_a_folder_without_a_known_set_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match=r"t10k-images.*, wisdm51.*, cifar10_labels\.js"):
        data.read(tmp_path)
    with pytest.raises(data.DataError, match="is not a folder"):
        data.read(tmp_path / "nowhere")


@settings(deadline=None, max_examples=25)
@given(devices=st.integers(1, 30), seed=st.integers(0, 2**32), alpha=st.floats(0.01, 100.0))
def test_a_dirichlet_split_deals_every_row_once_and_starves_nobody(devices: int, seed: int, alpha: float) -> None:
    labels = np.arange(300, dtype=np.int32) % 7
    dataset = data.Dataset("made", np.arange(300, dtype=np.float32).reshape(300, 1), labels, None, np.zeros(300, bool))
    shares = data.share(dataset, devices, seed, alpha)
    held = np.concatenate([windows[:, 0] for windows, _ in shares.devices.values()])
    assert sorted(held) == list(range(300))
    assert min(len(y) for _, y in shares.devices.values()) >= data.EXAMPLES_MIN
    for windows, share_labels in shares.devices.values():
        np.testing.assert_array_equal(windows[:, 0].astype(int) % 7, share_labels)
    again = data.share(dataset, devices, seed, alpha)
    assert all(np.array_equal(x, again.devices[name][0]) for name, (x, _) in shares.devices.items())


def test_a_small_alpha_is_more_uneven_than_a_large_one() -> None:
    dataset = data.digits()

    def unevenness(alpha: float) -> float:
        shares = data.share(dataset, 10, seed=4, alpha=alpha)
        tables = [np.bincount(labels, minlength=10) / len(labels) for _, labels in shares.devices.values()]
        return float(np.mean([np.abs(table - 0.1).sum() for table in tables]))

    assert unevenness(0.1) > 1.2
    assert unevenness(50.0) < 0.5


def test_too_few_rows_is_a_sentence() -> None:
    with pytest.raises(data.DataError, match="719 examples are too few for 72 devices"):
        data.share(data.digits(), 72, seed=1)


def test_shares_are_written_as_x_and_y(tmp_path: Path) -> None:
    shares = data.share(data.digits(), 3, seed=5)
    shares.write(tmp_path / "shares")
    assert sorted(p.name for p in (tmp_path / "shares").iterdir()) == [
        "device-01.npz",
        "device-02.npz",
        "device-03.npz",
        "test.npz",
    ]
    with np.load(tmp_path / "shares" / "device-02.npz") as arrays:
        np.testing.assert_array_equal(arrays["x"], shares.devices["device-02"][0])
        assert arrays["y"].dtype == np.int32
    assert len(shares.fleet()[1]) == 719
