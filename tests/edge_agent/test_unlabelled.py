"""A device whose windows need no label: each is its own target, for a model that gives its window back."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edge_agent import config, predictions, samples, service
from edge_agent.effects import Job
from edge_agent.trainer import Base, Keeping, train
from edge_agent.trying import InUse
from engine.frame import frame_of
from engine.train import TrainingError
from tests.edge_agent.test_trainer import BASE, JOB
from tests.engine.models_at_hand import ELSEWHERE, needs_elsewhere
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


@needs_elsewhere
@pytest.mark.parametrize("lane", ["economy", "trial"])
def test_an_autoencoder_learns_what_is_usual_here_without_a_label(tmp_path, lane):
    model = (ELSEWHERE / "ad01_int8.tflite").read_bytes()
    frame = frame_of(model, "last-1")
    usual = np.load(ELSEWHERE / "ad_sample_f32_frames128.npy").astype(np.float32).reshape(-1, 640)[:80] + 2.0
    labels = np.where(np.arange(len(usual)) % 2, -1, 1).astype(np.int32)  # some have one: it makes no difference
    examples = samples.Arrays(usual, labels, np.arange(1, len(usual) + 1, dtype=np.uint64))
    plan = msgspec.structs.replace(
        QUICK, train="last-1", num_params=frame.suffix.num_params, lane=lane, learning_rate=1.0, epochs=4
    )
    job, base = Job("dev-1", 3, 2, plan, (), 0), Base(model, frame.own())
    in_use = InUse(1, "last-1", model, frame.own())
    keeping = Keeping(tmp_path / "features", 1 << 20, 50)
    for _ in range(2):  # the second time the features are there
        answer = train(job, base, examples, None, RATE, keeping=keeping, in_use=in_use, unlabelled=True).answer
        assert (answer.held_out_correct, answer.held_out_count) == (0, 0)
        assert (answer.trial.won, answer.trial.lost, answer.trial.refused) == (0, 0, "")
        held_out = sum(samples.is_held_out(number, RATE) for number in range(1, len(usual) + 1))
        assert answer.num_examples == len(usual) - held_out
        assert (answer.payload != b"") == (lane == "economy")
        if lane == "economy":
            assert answer.loss_after < 0.9 * answer.loss_before
