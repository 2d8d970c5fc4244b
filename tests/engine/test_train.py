"""Local fine-tuning: right gradients, the same bits everywhere, and clear refusals."""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from engine import train
from engine.kernels import warm
from engine.train import Recipe, Score, TrainingError, evaluate, fine_tune, mix_seed, predict
from tests import naive

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/train_v1.json"


@dataclass(frozen=True)
class Layer:
    inputs: int
    outputs: int
    activation: str


@dataclass(frozen=True)
class Head:
    layers: tuple[Layer, ...]

    @property
    def num_params(self):
        return sum((layer.inputs + 1) * layer.outputs for layer in self.layers)


TINY = Head((Layer(5, 7, "RELU"), Layer(7, 6, "RELU"), Layer(6, 3, "NONE")))
SMALL = Head((Layer(24, 33, "RELU"), Layer(33, 5, "NONE")))
RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.05, momentum=0.9, seed=mix_seed(7, "hen-01", 3))


def uniform(stream, count):
    """Exact float32 in [-1, 1) from integers: the same on every machine and NumPy."""
    draws = [naive.splitmix64(stream << 32, n) >> 40 for n in range(count)]
    return (np.array(draws, np.int64) - 2**23).astype(np.float32) / np.float32(2**23)


def problem(head, count, stream=1):
    """Features, labels (the largest of the first inputs: learnable) and small starting parameters."""
    width, classes = head.layers[0].inputs, head.layers[-1].outputs
    features = uniform(stream, count * width).reshape(count, width)
    labels = features[:, :classes].argmax(axis=1).astype(np.int32)
    return features, labels, uniform(stream + 1, head.num_params) * np.float32(0.3)


def gradient(features, labels, params, head):
    """What one step of plain descent at rate 1 subtracts."""
    plain = Recipe(epochs=1, batch_size=len(labels), learning_rate=1.0, momentum=0.0, seed=0)
    return params.astype(np.float64) - fine_tune(features, labels, params, head, plain)


def test_the_gradient_agrees_with_central_differences():
    features, labels, params = problem(TINY, 9)
    got = gradient(features, labels, params, TINY)
    exact = params.astype(np.float64)
    for p in range(len(params)):
        sides = []
        for sign in (1, -1):
            moved = exact.copy()
            moved[p] += sign * 1e-6
            sides.append(naive.mean_loss(moved.tolist(), TINY.layers, features.tolist(), labels.tolist()))
        assert got[p] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=3e-7)


def test_the_score_agrees_with_the_twin_over_several_evaluation_batches():
    count = 2 * train.EVALUATION_BATCH + 37
    features, labels, params = problem(TINY, count)
    score = evaluate(features, labels, params, TINY)
    want = naive.mean_loss(params.astype(float).tolist(), TINY.layers, features.tolist(), labels.tolist())
    assert score.loss == pytest.approx(want, rel=1e-5)
    assert score.count == count
    assert score.correct == int((predict(features, params, TINY) == labels).sum())


def test_training_learns():
    features, labels, params = problem(SMALL, 400)
    before = evaluate(features, labels, params, SMALL)
    local = fine_tune(features, labels, params, SMALL, replace(RECIPE, epochs=20))
    after = evaluate(features, labels, local, SMALL)
    assert after.correct > 0.9 * after.count > before.correct
    assert after.loss < before.loss


def test_the_inputs_are_left_alone_and_may_be_read_only_strided_or_of_another_type():
    features, labels, params = problem(SMALL, 50)
    want = fine_tune(features, labels, params, SMALL, RECIPE)
    for array in (features, labels, params):
        array.flags.writeable = False
    assert np.array_equal(fine_tune(features, labels, params, SMALL, RECIPE), want)
    wide = np.repeat(features.astype(np.float64), 2, axis=1)[:, ::2]
    assert np.array_equal(fine_tune(wide, labels.astype(np.int64), params, SMALL, RECIPE), want)


def test_the_seed_decides_the_order_and_nothing_else_does():
    features, labels, params = problem(SMALL, 50)
    one = fine_tune(features, labels, params, SMALL, RECIPE)
    assert np.array_equal(one, fine_tune(features, labels, params, SMALL, RECIPE))
    assert not np.array_equal(one, fine_tune(features, labels, params, SMALL, replace(RECIPE, seed=1)))


def test_seeds_differ_by_plan_device_and_round():
    seeds = {mix_seed(p, d, r) for p in (0, 1, 11) for d in ("a", "b", "1\na") for r in (0, 1, 11)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert mix_seed(7, "hen-01", 3) == json.loads(GOLDEN.read_text())["seed"]
    assert mix_seed(7, "hen-01", 3) == int(hashlib.sha256(b"7\n3\nhen-01").hexdigest()[:16], 16)


def digest():
    features, labels, params = problem(SMALL, 203)
    local = fine_tune(features, labels, params, SMALL, RECIPE)
    return hashlib.sha256(local.astype("<f4").tobytes()).hexdigest()


def test_the_trained_parameters_are_the_golden_bits():
    assert digest() == json.loads(GOLDEN.read_text())["sha256"]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_another_process_gives_the_same_bits_and_compiles_nothing():
    warm.warm(lambda _: None)
    code = """
from tests.engine.test_train import digest
print(digest())
import numpy as np
from engine import ring
from engine.codec import residual, sparse
delta = np.linspace(-1, 1, 1000, dtype=np.float32)
payload, owed = residual.step(delta, np.zeros_like(delta), 10, 4, 1.0)
got = sparse.decode(payload, size=1000, k_max=10)
ring.mean_step(ring.add(ring.empty(1000), got, 3), 1.0)
residual.load_residual(residual.dump_residual(owed), 1000)
from engine.kernels.warm import calls
print([k.__name__ for k, _ in calls() if sum(k.stats.cache_misses.values())])
"""
    assert run(code).splitlines() == [digest(), "[]"]


def test_the_interpreter_without_the_compiler_gives_the_same_bits():
    code = """
import os
os.environ["NUMBA_DISABLE_JIT"] = "1"
import numpy as np
np.seterr(all="ignore")
from tests.engine.test_train import TINY, RECIPE, problem
from engine.train import fine_tune
print(fine_tune(*problem(TINY, 21), TINY, RECIPE).tobytes().hex())
"""
    assert run(code) == fine_tune(*problem(TINY, 21), TINY, RECIPE).tobytes().hex()


def test_no_examples_are_refused_for_training_and_score_nothing():
    features, labels, params = problem(TINY, 0)
    with pytest.raises(TrainingError, match="nothing to train on"):
        fine_tune(features, labels, params, TINY, RECIPE)
    assert evaluate(features, labels, params, TINY) == Score(0, 0, 0.0)
    assert predict(features, params, TINY).shape == (0,)


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_diverging_training_is_refused(rate):
    wild = replace(RECIPE, learning_rate=rate, epochs=20)
    features, labels, params = problem(SMALL, 100)
    with pytest.raises(TrainingError, match="diverged"):
        fine_tune(features * np.float32(1e6), labels, params, SMALL, wild)


def test_divergence_in_the_last_step_alone_is_seen():
    features, labels, params = problem(SMALL, 100)
    one_step = replace(RECIPE, epochs=1, batch_size=100, learning_rate=1e38)
    with pytest.raises(TrainingError, match="diverged"):
        fine_tune(features * np.float32(1e4), labels, params, SMALL, one_step)


def test_outputs_beyond_all_numbers_are_seen_even_where_the_step_would_be_finite():
    head = Head((Layer(2, 2, "NONE"),))
    huge = np.full((4, 2), 3e38, np.float32)
    params = np.array([3, 3, -3, 1, 0, 0], np.float32)
    still = Recipe(epochs=1, batch_size=4, learning_rate=1e-38, momentum=0.0, seed=1)
    with pytest.raises(TrainingError, match="diverged"):
        fine_tune(huge, np.zeros(4, np.int32), params, head, still)
    with pytest.raises(TrainingError, match="outputs are not finite"):
        evaluate(huge, np.zeros(4, np.int32), params, head)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_at_the_door(bad):
    features, labels, params = problem(TINY, 8)
    features[3, 2] = bad
    for call in (
        lambda: fine_tune(features, labels, params, TINY, RECIPE),
        lambda: evaluate(features, labels, params, TINY),
        lambda: predict(features, params, TINY),
    ):
        with pytest.raises(TrainingError, match="feature is NaN"):
            call()
    features[3, 2] = 0
    params[-1] = bad
    with pytest.raises(TrainingError, match="parameter is NaN"):
        fine_tune(features, labels, params, TINY, RECIPE)


def test_what_does_not_fit_the_head_is_refused():
    features, labels, params = problem(TINY, 8)
    for call, sentence in [
        (lambda: fine_tune(features[:, 1:], labels, params, TINY, RECIPE), "the head reads 5"),
        (lambda: fine_tune(features, labels[1:], params, TINY, RECIPE), "8 rows of features"),
        (lambda: fine_tune(features, labels + 1, params, TINY, RECIPE), "label lies outside 0 .. 2"),
        (lambda: evaluate(features, labels - 1, params, TINY), "label lies outside 0 .. 2"),
        (lambda: predict(features, params[1:], TINY), "but the head has"),
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
def test_a_recipe_that_makes_no_sense_is_refused(change):
    with pytest.raises(TrainingError, match="recipe"):
        fine_tune(*problem(TINY, 8), TINY, replace(RECIPE, **change))
