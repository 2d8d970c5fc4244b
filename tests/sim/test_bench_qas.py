"""The comparison of int8 with float32 training: both sides see the same, and the figures are counted as they say."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import qas, qas_fleet, qas_single
from benchmarks.float_twin import float_twin
from engine import frozen, train
from engine.frame import frame_of
from engine.models import scheme, tflite
from firmware_sim import data

MODEL = (Path(__file__).parents[2] / "firmware_sim/models/digits.tflite").read_bytes()
DATA = Path(os.environ.get("FLEET_DATA", "/nowhere"))
MODELS = Path(os.environ.get("FLEET_MODELS", "/nowhere"))


def test_the_float_twin_answers_what_the_int8_model_means():
    graph = tflite.read(MODEL)
    twin = float_twin(graph)
    dataset = data.digits()
    suffix = scheme.resolve(graph, "last-2")
    entering, leaving = graph.tensors[suffix.entering], graph.tensors[suffix.answer]
    features = frozen.features(MODEL, graph, suffix, dataset.windows[:200])
    from engine.program import Runner

    stored = Runner(graph, suffix.answer, first=suffix.cut, entering=suffix.entering)(features)
    real = Runner(twin, suffix.answer, first=suffix.cut, entering=suffix.entering)(
        train.real_values(entering, features)
    )
    assert real.dtype == np.float32
    assert np.abs(train.real_values(leaving, stored) - real).max() < 3 * leaving.scale[0]
    assert {tensor.dtype for tensor in twin.tensors if tensor.data is None} == {"float32"}
    assert scheme.resolve(twin, "last-2").lane == "float32"


def small_task() -> qas_single.Task:
    graph, dataset = tflite.read(MODEL), data.digits()
    stored = frozen.stored_windows(graph, 1.0 - dataset.windows)
    parts = [qas_single.Part(stored[rows], dataset.labels[rows]) for rows in np.split(np.arange(600), [200, 300])]
    folds = (qas_single.Fold(*parts), qas_single.Fold(parts[2], parts[1], parts[0]))
    rates = {"last": (0.05,), "int8": (1e-9, 0.2), "float": (0.05, 1e20)}
    return qas_single.Task("digits", MODEL, "last-2", rates, folds)


@pytest.fixture(scope="module")
def row():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qas_single, "SEEDS", (1, 2))
        patch.setattr(qas_single, "EPOCHS", 3)
        return qas_single.run(small_task(), lambda _text: None)


def test_a_rate_that_does_nothing_or_diverges_is_not_chosen(row):
    assert row["int8"]["rates"] == [0.2, 0.2]
    assert row["float"]["rates"] == [0.05, 0.05]


def test_gain_and_points_are_those_of_the_mean_over_seeds_and_all_folds(row):
    for method in ("last", "int8", "float"):
        assert len(row[method]["scores"]) == 2
        assert row[method]["accuracy"] == pytest.approx(sum(row[method]["scores"]) / 2)
        for score in row[method]["scores"]:  # of 300 + 200 examples
            assert score * 500 == pytest.approx(round(score * 500))
    gains = [row[method]["accuracy"] - row["before"] for method in ("int8", "float")]
    assert min(gains) > 0.1
    assert row["gain_over_float_gain"] == pytest.approx(gains[0] / gains[1])
    assert row["points_over_last"] == pytest.approx(100 * (row["int8"]["accuracy"] - row["last"]["accuracy"]))


def test_the_same_seed_gives_the_same_figures(row, monkeypatch):
    monkeypatch.setattr(qas_single, "SEEDS", (1, 2))
    monkeypatch.setattr(qas_single, "EPOCHS", 3)
    assert qas_single.run(small_task(), lambda _text: None) == row


def test_both_fleets_start_alike_and_learn(monkeypatch):
    setting = qas_fleet.Setting("few digits", "last-2", 5, 0.05, 3)
    monkeypatch.setattr(qas_fleet, "SEEDS", (1,))
    found = qas_fleet._setting(setting, frame_of(MODEL, "last-2"), data.digits(), lambda _text: None, reset=True)
    for lane in ("int8", "float"):
        curve = found["curves"][lane]
        assert len(curve) == 3
        assert curve[-1] > 0.8
    assert found["int8_over_float"] == found["accuracy"]["int8"] / found["accuracy"]["float"]
    for lane in ("int8", "float"):
        assert found["curves"][lane][0] > 0.3  # chance is 0.1


def test_the_table_and_the_plot_show_every_row(row, tmp_path):
    fleet = [
        {"setting": f"fleet {at}", "rounds": 2, "int8_over_float": 0.99, "accuracy": {"int8": 0.5, "float": 0.505},
         "curves": {"int8": [0.1, 0.5], "float": [0.1, 0.505]}}
        for at in range(4)
    ]  # fmt: skip
    found = {"machine": "m", "date": "d", "processor_s": 1, "targets": {"a_target": 0.987}}
    text = "\n".join(qas.table(found, [row], fleet))
    assert f"**{row['gain_over_float_gain']:.3f}**" in text
    assert text.count("**0.990**") == 4
    assert text.endswith("a_target 0.987")
    qas.plot(tmp_path / "q.png", [row], fleet)
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    json.dumps([row, fleet])


@pytest.mark.skipif(not (DATA / "speech_commands_300").is_dir(), reason="FLEET_DATA names no speech_commands_300")
@pytest.mark.skipif(not (MODELS / "mlperf_tiny").is_dir(), reason="FLEET_MODELS names no folder with mlperf_tiny")
def test_every_clip_measures_once_and_never_where_it_trained():
    task = qas_single._speech(MODELS, DATA)
    assert sum(len(fold.measures.labels) for fold in task.folds) == 120 * qas_single.NOISES[1]
    for fold in task.folds:
        counts = [len(part.labels) for part in (fold.trains, fold.chooses, fold.measures)]
        assert counts[0] / qas_single.NOISES[0] + (counts[1] + counts[2]) / qas_single.NOISES[1] == 120
