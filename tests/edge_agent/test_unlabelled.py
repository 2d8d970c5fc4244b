"""A device whose windows need no label: each is its own target, for a model that gives its window back."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edge_agent import config, inference, predictions, samples, service
from edge_agent.disk import Directory
from edge_agent.effects import Job
from edge_agent.flash import Flash
from edge_agent.trainer import Base, Keeping, train
from edge_agent.trying import InUse
from engine.frame import frame_of
from engine.models.interpreter import open_model
from engine.train import TrainingError
from tests.edge_agent.test_inference import put
from tests.edge_agent.test_trainer import BASE, JOB
from tests.engine.graph_tflite import write
from tests.engine.sketch import Sketch
from tests.real.scripted_coordinator import QUICK
from wire import keys

RATE = 0.3


@pytest.fixture
def settings(tmp_path) -> config.Config:
    made = config.make(tmp_path, "dev-1", "fleet-1", "mqtt://127.0.0.1:9", keys.public_text(keys.generate()))
    text = made.path.read_text().replace("# unlabelled = true", "unlabelled = true")
    made.path.write_text(text + '\n[source]\nkind = "mqtt"\ntopic = "t"\nwindow = [2]\n')
    return config.load(made.path)


def test_what_the_source_brings_trains_at_once_and_a_label_makes_no_second_window_of_it(settings):
    assert settings.waiting_path == settings.samples_path
    store = samples.create(settings.samples_path, (2,), 5)
    store.append(np.ones(2, "<f4").tobytes())
    store.append(np.zeros(2, "<f4").tobytes())
    assert service.Service(settings)._reading().num_examples == 2
    predictions.teach(settings, 1, 0)
    assert (store.count(), store.count_labelled()) == (2, 1)


def test_a_model_that_does_not_give_its_window_back_says_so():
    rng = np.random.default_rng(0)
    windows = rng.random((20, 8, 8, 1)).astype(np.float32)
    examples = samples.Arrays(windows, np.full(20, -1, np.int32), np.arange(1, 21, dtype=np.uint64))
    with pytest.raises(TrainingError, match="the model gives 10 numbers a window"):
        train(JOB, BASE, examples, None, RATE, unlabelled=True)


def autoencoder() -> bytes:
    """A model file that narrows twelve numbers to six, and widens them again."""
    sketch = Sketch((1, 12), seed=4)
    x = sketch.operator("FULLY_CONNECTED", [sketch.entering, *sketch.weights((6, 12), 0, 6)], (1, 6), "RELU")
    x = sketch.operator("FULLY_CONNECTED", [x, *sketch.weights((12, 6), 0, 12)], (1, 12))
    return write(sketch.graph(x))


USUAL = np.random.default_rng(0).integers(-20, 20, (64, 12)).astype(np.float32) / 4


@pytest.mark.parametrize("lane", ["economy", "trial"])
def test_an_autoencoder_learns_what_is_usual_here_without_a_label(tmp_path, lane):
    model = autoencoder()
    frame = frame_of(model, "full")
    labels = np.where(np.arange(64) % 2, -1, 1).astype(np.int32)  # some have one: it makes no difference
    examples = samples.Arrays(USUAL, labels, np.arange(1, 65, dtype=np.uint64))
    plan = msgspec.structs.replace(
        QUICK, train="full", num_params=frame.suffix.num_params, lane=lane, learning_rate=0.01, epochs=30
    )
    job, base = Job("dev-1", 3, 2, plan, (), 0), Base(model, frame.own())
    keeping, in_use = Keeping(tmp_path / "features", 1 << 20, 50), InUse(1, "full", model, frame.own())
    answer = train(job, base, examples, None, RATE, keeping=keeping, in_use=in_use, unlabelled=True).answer
    assert (answer.held_out_correct, answer.held_out_count) == (0, 0)
    assert (answer.trial.won, answer.trial.lost, answer.trial.refused) == (0, 0, "")
    assert answer.num_examples == 64 - sum(samples.is_held_out(number, RATE) for number in range(1, 65))
    assert (answer.payload != b"") == (lane == "economy")
    if lane == "economy":
        assert answer.loss_after < answer.loss_before / 2


def test_the_features_of_windows_without_a_label_are_kept_and_none_of_them_replayed(tmp_path):
    """Those that are gone would need their windows as targets, and features are all that is kept of them."""
    model = autoencoder()
    frame = frame_of(model, "last-1")
    plan = msgspec.structs.replace(QUICK, train="last-1", num_params=frame.suffix.num_params)
    job, base = Job("dev-1", 3, 2, plan, (), 0), Base(model, frame.own())
    keeping = Keeping(tmp_path / "features", 1 << 20, 50)
    for first in (1, 65):  # the second time the store has others
        numbers = np.arange(first, first + 64, dtype=np.uint64)
        examples = samples.Arrays(USUAL, np.full(64, 1, np.int32), numbers)
        train(job, base, examples, None, RATE, keeping=keeping, unlabelled=True)
    assert (tmp_path / "features").stat().st_size > 64 * 6


def test_its_answer_is_how_badly_it_gives_a_window_back_and_no_label(tmp_path):
    Flash(Directory(tmp_path))
    model = autoencoder()
    put(tmp_path, 1, frame_of(model, "full").own(), model, "full")
    loaded = inference.InUse(tmp_path, (12,)).now()
    given = open_model(model, 1)(USUAL).astype(np.float64) * 0.25
    for window, back in zip(USUAL, given, strict=True):
        assert loaded.answer(window) == (None, pytest.approx(np.mean((window - back) ** 2), rel=1e-5))
