"""The published sets themselves, where FLEET_DATA names the folder that holds them: counts as their sources state."""

import os
from pathlib import Path

import numpy as np
import pytest

from firmware_sim.data import read, share

DATA = Path(os.environ.get("FLEET_DATA", "/nowhere"))


def folder(name):
    path = DATA / name
    return pytest.param(
        path, id=name, marks=pytest.mark.skipif(not path.is_dir(), reason=f"FLEET_DATA names no folder with {name}")
    )


@pytest.mark.parametrize("path", [folder("mnist_test_writers")])
def test_mnist_has_ten_thousand_digits_by_297_writers_and_no_writer_on_both_sides(path):
    dataset = read(path)
    assert dataset.windows.shape == (10_000, 8, 8, 1)
    assert len(set(dataset.owners)) == 297
    assert np.bincount(dataset.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    shares = share(dataset, 40, seed=1, alpha=0.5)
    assert len(shares.devices) == 40
    rows = [window.tobytes() for windows, _ in shares.devices.values() for window in windows]
    assert len(rows) + len(shares.test[1]) == 10_000
    by_row = {window.tobytes(): owner for window, owner in zip(dataset.windows, dataset.owners, strict=True)}
    trained = {by_row[row] for row in rows}
    tested = {by_row[window.tobytes()] for window in shares.test[0]}
    assert not trained & tested


@pytest.mark.parametrize("path", [folder("wisdm51_raw_part1")])
def test_wisdm_has_2142_windows_of_20_people_who_each_keep_their_own(path):
    dataset = read(path)
    assert len(dataset.labels) == 2142
    assert len(set(dataset.owners)) == 20
    assert sorted(np.bincount(dataset.labels).tolist()) == [342, 360, 360, 360, 360, 360]
    shares = share(dataset, 20, seed=1, alpha=0.5)
    assert sum(len(labels) for _, labels in shares.devices.values()) + len(shares.test[1]) == 2142


@pytest.mark.parametrize("path", [folder("cifar10_3k")])
def test_cifar_has_two_thousand_images_to_learn_from_and_a_thousand_to_measure_with(path):
    dataset = read(path)
    assert dataset.windows.shape == (3000, 32, 32, 3)
    train = np.bincount(dataset.labels[~dataset.is_test]).tolist()
    assert train == [202, 191, 203, 195, 214, 183, 207, 199, 203, 203]
