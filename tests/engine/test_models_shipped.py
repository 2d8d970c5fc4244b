"""The two shipped models: that they are the files listed, built of the operators promised, and as good as written."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from engine.frozen import features
from engine.models.interpreter import open_model
from engine.models.scheme import resolve
from engine.models.tflite import read
from engine.train import real_values
from firmware_sim.models.split import digits_split

SHIPPED = Path(__file__).parents[2] / "firmware_sim" / "models"
OPERATORS = {
    "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "RESHAPE",
    "PAD", "CONCATENATION", "MUL", "SOFTMAX", "QUANTIZE", "DEQUANTIZE",
}  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return (bunch.data / 16).astype(np.float32).reshape(-1, 8, 8, 1), bunch.target


def real_features(data, graph, windows):
    suffix = resolve(graph, "last-2")
    entering = graph.tensors[suffix.entering]
    return real_values(entering, features(data, graph, suffix, windows)).reshape(len(windows), -1)


def test_the_files_are_the_ones_listed():
    listed = dict(line.split()[::-1] for line in (SHIPPED / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == {path.name for path in SHIPPED.glob("*.tflite")}
    for name, digest in listed.items():
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("name", ["digits", "wrist"])
def test_a_shipped_model_is_small_and_int8_and_of_common_operators(name):
    data = (SHIPPED / f"{name}.tflite").read_bytes()
    graph = read(data)
    assert len(data) < 100_000
    assert {operator.kind for operator in graph.operators} <= OPERATORS
    assert all(tensor.dtype in {"int8", "int32"} for tensor in graph.tensors)
    assert 16_000 < resolve(graph, "last-2").num_params < 32_000


def test_the_three_shares_of_the_digits_are_apart_and_fixed():
    split = digits_split()
    assert {name: len(rows) for name, rows in split.items()} == {"model": 719, "fleet": 719, "test": 359}
    together = np.concatenate(list(split.values()))
    assert np.array_equal(np.sort(together), np.arange(1797))
    digest = hashlib.sha256(together.astype("<i8").tobytes()).hexdigest()
    assert digest == "6bc0646bc0d815dad15e7e65a6e1c2768a7b4622a195d7e272c78e8d2f703f1c"


def test_the_digits_model_reads_digits_it_has_never_seen(digits):
    images, labels = digits
    rows = digits_split()["test"]
    answers = open_model((SHIPPED / "digits.tflite").read_bytes())(images[rows])
    assert answers.dtype == np.int8
    assert (answers.argmax(axis=1) == labels[rows]).mean() >= 0.97


def test_a_new_head_on_the_digits_features_learns_from_the_fleet(digits):
    images, labels = digits
    data, rows = (SHIPPED / "digits.tflite").read_bytes(), digits_split()
    graph = read(data)
    known = real_features(data, graph, images)
    head = LogisticRegression(max_iter=1000).fit(known[rows["fleet"]], labels[rows["fleet"]])
    assert head.score(known[rows["test"]], labels[rows["test"]]) >= 0.98


def test_the_wrist_features_tell_tempo_strength_and_posture():
    data = (SHIPPED / "wrist.tflite").read_bytes()
    graph = read(data)
    time, rng = np.arange(200) / 20, np.random.default_rng(0)
    kinds = [(1.0, 2.0, 0), (3.0, 2.0, 0), (1.0, 8.0, 0), (1.0, 2.0, 2)]  # Hz, m/s^2, which axis points down
    windows, which = [], []
    for index in range(200):
        hz, strength, down = kinds[index % 4]
        motion = strength * np.sin(2 * np.pi * (hz * time[:, None] + rng.uniform(0, 1, 3)))
        motion = motion + rng.normal(0, 0.3, (200, 3)) + 9.81 * np.eye(3)[down]
        windows.append(motion[:, None, :])
        which.append(index % 4)
    known = real_features(data, graph, np.array(windows, np.float32))
    assert known.min() >= 0
    assert known.max() <= 6.01
    head = LogisticRegression(max_iter=500).fit(known[:100], which[:100])
    assert head.score(known[100:], which[100:]) >= 0.98
