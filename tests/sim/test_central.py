"""The baseline sees all shares, none of the test, and chooses its recipe without it."""

from pathlib import Path

import numpy as np

from firmware_sim import central, data

MODEL = (Path(data.__file__).parent / "models" / "digits.tflite").read_bytes()


def test_one_place_learns_the_digits() -> None:
    shares = data.share(data.digits(), 10, seed=1)
    found = central.train_centrally(MODEL, "last-2", shares, seed=1)
    assert found.accuracy >= 0.95
    assert found.accuracy_start < 0.3
    assert found.learning_rate in central.LEARNING_RATES
    assert found == central.train_centrally(MODEL, "last-2", shares, seed=1)


def test_the_test_data_has_no_say_in_the_choice() -> None:
    shares = data.share(data.digits(), 10, seed=1)
    windows, labels = shares.test
    shuffled = data.Shares(shares.devices, (windows, np.roll(labels, 1)))
    honest = central.train_centrally(MODEL, "last-2", shares, seed=1)
    misled = central.train_centrally(MODEL, "last-2", shuffled, seed=1)
    assert (misled.learning_rate, misled.epochs) == (honest.learning_rate, honest.epochs)
    assert misled.accuracy < 0.3
