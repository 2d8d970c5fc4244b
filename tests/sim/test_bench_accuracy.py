"""The accuracy benchmark: its fleets are dealt as they say, and its figures are counted as they say."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy, accuracy_bytes, accuracy_plot, accuracy_runs, fleet_tasks
from benchmarks.accuracy_runs import MODES, Measured, Mode
from benchmarks.federation import Result
from benchmarks.fleet_tasks import Learning, Task
from benchmarks.fresh_model import fresh_convolution
from benchmarks.postage import Post
from engine import frozen, train
from engine.frame import frame_of
from engine.models import tflite
from engine.train import Score
from firmware_sim import data

SHIPPED = Path(__file__).parents[2] / "firmware_sim/models"
DATA = Path(os.environ.get("FLEET_DATA", "/nowhere"))
MODELS = Path(os.environ.get("FLEET_MODELS", "/nowhere"))


def pictures(count):
    """Bright squares in one of ten places, which is the label."""
    labels = np.arange(count, dtype=np.int32) % 10
    windows = np.random.default_rng(3).uniform(0.0, 0.2, (count, 28, 28, 1)).astype(np.float32)
    for window, label in zip(windows, labels, strict=True):
        row, column = 14 * (label // 5), 5 * (label % 5)
        window[row : row + 12, column : column + 5] += 0.7
    return windows, labels


def small_task(rounds=10):
    dataset = data.digits()
    frame = frame_of((SHIPPED / "digits.tflite").read_bytes(), "last-2")
    features = frozen.features(frame.model, frame.graph, frame.suffix, dataset.windows)
    return Task("digits", frame, replace(dataset, windows=features), True, 6, 3, rounds, Learning(1, 0.05))


def test_the_fresh_network_is_a_sound_file_and_learns_from_nothing():
    windows, labels = pictures(300)
    model = fresh_convolution(windows[:100], classes=10)
    graph = tflite.read(model)
    assert model == fresh_convolution(windows[:100], classes=10)
    frame = frame_of(model, "full")
    assert (frame.lane, frame.suffix.num_params) == ("int8", 103_018)
    stored = frozen.stored_windows(graph, windows)
    before = train.evaluate(frame.graph, frame.suffix, stored, labels)
    tuned = train.fine_tune(frame.graph, frame.suffix, stored, labels, train.Recipe(2, 16, 0.1, 0.0, 1))
    after = train.evaluate(frame.graph_with(tuned.params), frame.suffix, stored, labels)
    assert before.correct < 100
    assert after.correct > 280


def test_the_fresh_network_gives_the_model_runtimes_own_numbers():
    from engine.models.interpreter import open_model

    windows, _ = pictures(20)
    model = fresh_convolution(windows, classes=10)
    graph = tflite.read(model)
    stored = frozen.stored_windows(graph, windows)
    np.testing.assert_array_equal(open_model(model)(stored), frozen.answers(model, graph, windows))


def test_what_stays_at_home_shows_in_points_and_bytes():
    task = small_task()
    dense = accuracy_runs.measure(task, Mode("dense"), (1,), lambda _text: None)
    sparse = accuracy_runs.measure(task, Mode("0.1 %", "1 bit"), (1,), lambda _text: None)
    rows = [accuracy_runs.row(one, dense) for one in (dense, sparse)]
    assert rows[0]["points_lost"] == 0.0
    assert rows[0]["curve"][-1][1] > 0.8
    assert rows[1]["points_lost"] == pytest.approx(100 * (rows[0]["accuracy"] - rows[1]["accuracy"]))
    assert rows[1]["bytes_a_round"]["update_up"] < 200
    assert rows[0]["bytes_a_round"]["update_up"] > 1000
    assert [at for at, _, _ in rows[0]["curve"]] == [0, 5, 10]
    assert rows[0]["curve"][0][2] == 0
    assert rows[0]["curve"][1][2] > rows[1]["curve"][1][2] > 0


def result(curve, bytes_a_round):
    at = tuple(range(0, 5 * len(curve), 5))
    scores = tuple(Score(round(1000 * share), 1000, 0.0) for share in curve)
    spent = tuple(Post(number * bytes_a_round, 0, 7, number * bytes_a_round // 2, 0, number) for number in at)
    return Result("digits", 17802, 6, at, scores, spent)


def test_an_accuracy_is_reached_when_three_scores_in_a_row_have_it_on_average():
    one = Measured(small_task(), Mode("dense"), (result([0.1, 0.9, 0.5, 0.7, 0.8, 0.9, 0.9], 100),))
    assert one.reached(0.8) == [(25, Post(2500, 0, 7, 1250, 0, 25))]
    assert one.reached(0.95) is None
    assert one.scores == [pytest.approx((0.8 + 0.9 + 0.9) / 3)]
    assert one.spent[2] == pytest.approx((1000 + 500) / 6)


def test_bytes_are_held_against_flowers_at_the_rounds_of_the_dense_fleet(monkeypatch):
    monkeypatch.setattr(accuracy_bytes, "flower_bytes", lambda _frame: (72_000, "made up"))
    monkeypatch.setattr(accuracy_bytes, "GIVEN", {"digits": (0.8,)})
    monkeypatch.setattr(accuracy_bytes, "HEADLINE", ("digits", 0.8))
    task = small_task()
    dense = Measured(task, Mode("dense"), (result([0.1, 0.8, 0.8, 0.8, 0.8], 1000),))
    late = Measured(task, Mode("1 %", "1 bit"), (result([0.1, 0.2, 0.8, 0.8, 0.8], 100),))
    never = Measured(task, Mode("0.1 %", "1 bit"), (result([0.1, 0.2, 0.2, 0.2, 0.2], 10),))
    rows = accuracy_bytes.rows([dense, late, never])
    flower, ours, sparse, failed = rows
    assert flower["up"] == flower["down"] == 15 * 3 * 72_000 / 6
    assert ours["uplink_vs_flower"] == pytest.approx(1000 * 15 / (15 * 3 * 72_000))
    assert sparse["uplink_vs_flower"] == pytest.approx(100 * 20 / (15 * 3 * 72_000))
    assert sparse["installed_vs_flower"] == pytest.approx(100 * 20 * 1.5 / (2 * 15 * 3 * 72_000))
    assert sparse["total_vs_flower"] == pytest.approx((3000 + 7) / (2 * 15 * 3 * 72_000))
    assert failed["rounds"] is None
    assert accuracy_bytes.headline(rows) is sparse


def every_row(lost):
    names = [(task, mode) for task in accuracy.TASKS for mode in MODES]
    return [
        {"kind": "accuracy", "task": task, "mode": mode.name, "kept": mode.kept, "points_lost": lost(task, mode)}
        for task, mode in names
    ]


def test_points_lost_are_those_of_the_worst_task_and_bits():
    rows = every_row(lambda task, mode: {"1 %": 0.5, "0.1 %": 1.0}.get(mode.kept, 0.0) + (task == "resnet8") / 4)
    found = accuracy.targets(rows)
    assert (found["points_lost_1pct_max"], found["points_lost_01pct_max"]) == (0.75, 1.25)
    assert found["total_bytes_to_accuracy_vs_flower"] is None


def test_a_part_of_the_benchmark_claims_no_target():
    rows = [row for row in every_row(lambda *_: 0.1) if (row["task"], row["mode"]) != ("wisdm", "1 %, 4 bits")]
    found = accuracy.targets(rows)
    assert found["points_lost_1pct_max"] is None
    assert found["points_lost_01pct_max"] == 0.1


def test_the_picture_is_drawn(tmp_path):
    curve = [[0, 0.1, 0.0], [5, 0.8, 1e4], [10, 0.9, 2e4]]
    both = {"task": "writers", "mode": "dense", "curve": curve, "devices": 100, "devices_a_round": 10}
    flower = {"kind": "bytes", "task": "writers", "mode": "Flower, dense", "message_bytes": 412_000}
    found = {"date": "2026-11-20", "rows": [{"kind": "accuracy"} | both, flower]}
    accuracy_plot.plot(found, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", fleet_tasks.NAMES)
def test_a_fleet_is_dealt_whole_and_never_sees_what_measures(name):
    if not (DATA / "mnist_test_writers").is_dir() or not (MODELS / "mlperf_tiny").is_dir():
        pytest.skip("FLEET_DATA and FLEET_MODELS name no folders with the data sets and models")
    task = fleet_tasks.build(name, MODELS, DATA, SHIPPED)
    fleet = task.fleet(1)
    assert len(fleet.held) == task.devices
    assert task.per_round == 10
    assert name in accuracy_runs.RATES
    assert sum(len(labels) for _, labels in fleet.held.values()) + len(fleet.test[1]) == len(task.data.labels)
    assert len(fleet.params) == task.frame.suffix.num_params
    again = task.fleet(1)
    assert all(np.array_equal(again.held[device][0], mine[0]) for device, mine in fleet.held.items())
    assert np.unique(fleet.test[1]).tolist() == np.unique(task.data.labels).tolist()
