"""Local fine-tuning of the model itself: it learns, the same bits everywhere, and clear refusals."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine import frozen, train
from engine.models import interpreter, scheme, tflite
from engine.models.graph import Graph
from engine.train import Recipe, Score, TrainingError, evaluate, fine_tune, mix_seed, with_constants
from firmware_sim.models.digits_net import digits
from tests import naive
from tests.engine.sketch import Sketch

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/train_v2.json"
FILE = (ROOT / "firmware_sim/models/digits.tflite").read_bytes()
RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=0.02, momentum=0.0, seed=mix_seed(7, "hen-01", 3))


def drawn(stream, count, low, high):
    """Integers in [low, high), the same on every machine and NumPy."""
    draws = [naive.splitmix64(stream << 32, n) >> 33 for n in range(count)]
    return np.array(draws, np.int64) % (high - low) + low


@pytest.fixture(scope="module")
def graph():
    return tflite.read(FILE)


@pytest.fixture(scope="module")
def data(graph):
    """Digits upside down, which the model does not know: stored windows and labels."""
    windows, labels = digits()
    turned = np.ascontiguousarray(windows[:600, ::-1]).astype(np.float32)
    return interpreter.quantised(turned, graph.tensors[graph.inputs[0]]), labels[:600].astype(np.int32)


def prepared(graph, data, wish):
    suffix = scheme.resolve(graph, wish)
    return suffix, frozen.features(FILE, graph, suffix, data[0]), data[1]


@pytest.mark.parametrize("wish", ["last-2", "blocks-2", "full"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_int8_model_learns_what_it_did_not_know(graph, data, wish, momentum):
    suffix, features, labels = prepared(graph, data, wish)
    before = evaluate(graph, suffix, features[400:], labels[400:])
    recipe = replace(RECIPE, epochs=6, momentum=momentum, learning_rate=0.05 * (1 - momentum))
    tuned = fine_tune(graph, suffix, features[:400], labels[:400], recipe)
    after = evaluate(with_constants(graph, tuned.constants), suffix, features[400:], labels[400:])
    assert before.correct < 100
    assert after.correct > 140
    assert tuned.losses[-1] < tuned.losses[0] / 2
    assert len(tuned.params) == suffix.num_params


def test_the_tuned_file_answers_in_the_runtime_as_training_saw_it(graph, data):
    suffix, features, labels = prepared(graph, data, "full")
    tuned = fine_tune(graph, suffix, features[:400], labels[:400], RECIPE)
    patched = tflite.patch(FILE, graph, tuned.constants)
    assert len(patched) == len(FILE)
    reread = tflite.read(patched)
    assert np.array_equal(scheme.params_of(reread, suffix), tuned.params)
    windows, _ = data
    cut = tflite.cut_prefix(patched, graph.operators[-1].index, suffix.answer)
    theirs = interpreter.open_model(cut)(windows)
    assert np.abs(theirs.astype(int) - frozen.answers(patched, reread, windows).reshape(theirs.shape)).max() <= (
        interpreter.runtime_name() != "tflite_runtime"
    )
    found = frozen.predict(patched, reread, windows)
    assert int((found == labels).sum()) == evaluate(reread, suffix, features, labels).correct


def test_an_autoencoder_learns_to_give_back_what_it_got():
    sketch = Sketch((1, 12), seed=4)
    x = sketch.operator("FULLY_CONNECTED", [sketch.entering, *sketch.weights((6, 12), 0, 6)], (1, 6), "RELU")
    x = sketch.operator("FULLY_CONNECTED", [x, *sketch.weights((12, 6), 0, 12)], (1, 12))
    net = Graph(tuple(sketch.tensors), tuple(sketch.operators), (sketch.entering,), (x,))
    suffix = scheme.resolve(net, "full")
    features = np.random.default_rng(0).integers(-20, 20, (64, 12)).astype(np.int8)
    targets = features.astype(np.float32) * np.float32(0.25)
    before = evaluate(net, suffix, features, targets)
    tuned = fine_tune(net, suffix, features, targets, replace(RECIPE, epochs=30, learning_rate=0.01))
    after = evaluate(with_constants(net, tuned.constants), suffix, features, targets)
    assert after.loss < before.loss / 2
    assert after.correct == 0


def test_the_seed_decides_the_order_and_the_rounding_and_nothing_else_does(graph, data):
    suffix, features, labels = prepared(graph, data, "last-2")
    features, labels = features[:50], labels[:50]
    one = fine_tune(graph, suffix, features, labels, RECIPE).params
    features.flags.writeable = False
    assert np.array_equal(one, fine_tune(graph, suffix, features, labels.astype(np.int64), RECIPE).params)
    assert not np.array_equal(one, fine_tune(graph, suffix, features, labels, replace(RECIPE, seed=1)).params)
    assert np.array_equal(scheme.params_of(graph, suffix), scheme.params_of(tflite.read(FILE), suffix))


def test_progress_is_told_at_every_step(graph, data):
    suffix, features, labels = prepared(graph, data, "last-1")
    told = []
    tuned = fine_tune(graph, suffix, features[:40], labels[:40], RECIPE, progress=told.append)
    assert [one.steps_done for one in told] == [1, 2, 3, 4, 5, 6]
    assert {one.steps_in_all for one in told} == {6}
    assert [one.loss for one in told if one.steps_done in {3, 6}] == list(tuned.losses)


def test_seeds_differ_by_plan_device_and_round():
    seeds = {mix_seed(p, d, r) for p in (0, 1, 11) for d in ("a", "b", "1\na") for r in (0, 1, 11)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert mix_seed(7, "hen-01", 3) == json.loads(GOLDEN.read_text())["seed"]
    assert mix_seed(7, "hen-01", 3) == int(hashlib.sha256(b"7\n3\nhen-01").hexdigest()[:16], 16)


def digest():
    """What a hundred steps of the shipped model's convolutions and dense layers come to, in int8 and momentum."""
    net = tflite.read(FILE)
    suffix = scheme.resolve(net, "full")
    shape = net.tensors[net.inputs[0]].shape[1:]
    windows = drawn(1, 160 * int(np.prod(shape)), -128, 128).astype(np.int8).reshape(160, *shape)
    labels = drawn(2, 160, 0, 10).astype(np.int32)
    recipe = replace(RECIPE, epochs=10, learning_rate=0.01, momentum=0.5)
    tuned = fine_tune(net, suffix, windows, labels, recipe)
    return hashlib.sha256(tuned.params.astype("<i4").tobytes() + np.float64(tuned.losses).tobytes()).hexdigest()


def test_the_trained_parameters_are_the_golden_bits():
    assert digest() == json.loads(GOLDEN.read_text())["sha256"]


def test_another_process_gives_the_same_bits():
    code = "from tests.engine.test_train import digest; print(digest())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == json.loads(GOLDEN.read_text())["sha256"]


def test_no_examples_are_refused_for_training_and_score_nothing(graph, data):
    suffix, features, labels = prepared(graph, data, "last-2")
    with pytest.raises(TrainingError, match="nothing to train on"):
        fine_tune(graph, suffix, features[:0], labels[:0], RECIPE)
    assert evaluate(graph, suffix, features[:0], labels[:0]) == Score(0, 0, 0.0)


def float_net():
    sketch = Sketch((1, 6), "float32", seed=4)
    x = sketch.operator("FULLY_CONNECTED", [sketch.entering, *sketch.weights((5, 6), 0, 5)], (1, 5), "RELU")
    x = sketch.operator("FULLY_CONNECTED", [x, *sketch.weights((3, 5), 0, 3)], (1, 3))
    return Graph(tuple(sketch.tensors), tuple(sketch.operators), (sketch.entering,), (x,))


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_diverging_float_training_is_refused(rate):
    net = float_net()
    features = np.full((40, 6), 1e9, np.float32) * np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    with pytest.raises(TrainingError, match="diverged"):
        fine_tune(
            net, scheme.resolve(net, "full"), features, np.arange(40, dtype=np.int32) % 3,
            replace(RECIPE, learning_rate=rate, epochs=20),
        )  # fmt: skip


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_at_the_door(bad):
    net = float_net()
    suffix = scheme.resolve(net, "full")
    features, labels = np.zeros((8, 6), np.float32), np.zeros(8, np.int32)
    targets = np.zeros((8, 3), np.float32)
    features[3, 2] = targets[1, 1] = bad
    with pytest.raises(TrainingError, match="feature is NaN"):
        fine_tune(net, suffix, features, labels, RECIPE)
    with pytest.raises(TrainingError, match="feature is NaN"):
        evaluate(net, suffix, features, labels)
    with pytest.raises(TrainingError, match="target is NaN"):
        fine_tune(net, suffix, np.zeros((8, 6), np.float32), targets, RECIPE)


def test_what_does_not_fit_the_model_is_refused(graph, data):
    suffix, features, labels = prepared(graph, data, "last-2")
    features, labels = features[:8], labels[:8]
    for call, sentence in [
        (lambda: fine_tune(graph, suffix, features[:, 1:], labels, RECIPE), "a window enter"),
        (lambda: fine_tune(graph, suffix, features.astype(np.float32), labels, RECIPE), "a window enter"),
        (lambda: fine_tune(graph, suffix, features, labels[1:], RECIPE), "8 rows of features"),
        (lambda: fine_tune(graph, suffix, features, labels + 10, RECIPE), "label lies outside 0 .. 9"),
        (lambda: evaluate(graph, suffix, features, labels - 10), "label lies outside 0 .. 9"),
        (lambda: fine_tune(graph, suffix, features, np.zeros((8, 3), np.float32), RECIPE), "gives 10 numbers"),
    ]:
        with pytest.raises(TrainingError, match=sentence):
            call()


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(graph, data, change):
    suffix, features, labels = prepared(graph, data, "last-1")
    with pytest.raises(TrainingError, match="recipe"):
        fine_tune(graph, suffix, features[:8], labels[:8], replace(RECIPE, **change))


def test_evaluation_goes_through_several_batches(graph, data):
    suffix, features, labels = prepared(graph, data, "last-1")
    count = 2 * train.EVALUATION_BATCH + 37
    whole = evaluate(graph, suffix, features[:count], labels[:count])
    parts = [evaluate(graph, suffix, features[n : n + 1], labels[n : n + 1]) for n in range(count)]
    assert whole.count == count
    assert whole.correct == sum(part.correct for part in parts)
    assert whole.loss == pytest.approx(sum(part.loss for part in parts) / count)
