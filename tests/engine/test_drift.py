"""FedProx and SCAFFOLD in a device's step: kernels against their twins, whole trainings against laws of their own."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine import frozen
from engine.kernels import drift
from engine.models import scheme, tflite
from engine.program import Training, memory_of
from engine.recording import Descent
from engine.train import Recipe, TrainingError, fine_tune
from firmware_sim.models.digits_net import digits
from tests import naive, naive_drift
from tests.engine.sketch import residual_net

F = np.float32
FILE = (Path(__file__).parents[2] / "firmware_sim/models/digits.tflite").read_bytes()
GOLDEN = Path(__file__).parents[1] / "golden/drift_v1.json"
RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.03, momentum=0.0, seed=11)
fast = settings(deadline=None, max_examples=40)
finite = st.floats(-1e3, 1e3, width=32)


@pytest.fixture(scope="module")
def graph():
    return tflite.read(FILE)


@pytest.fixture(scope="module")
def data(graph):
    """Digits upside down: windows as stored, and labels."""
    windows, labels = digits()
    entering = graph.tensors[graph.inputs[0]]
    turned = np.ascontiguousarray(windows[:300, ::-1]).astype(F)
    stored = np.clip(np.rint(turned / entering.scale[0]) + entering.zero_point[0], -128, 127).astype(np.int8)
    return stored, labels[:300].astype(np.int32)


def prepared(graph, data, wish):
    suffix = scheme.resolve(graph, wish)
    return suffix, frozen.features(FILE, graph, suffix, data[0]), data[1]


def distance(graph, suffix, params):
    """How far params are from the file's own, in real numbers."""
    steps = (params - scheme.params_of(graph, suffix)) * scheme.scales_of(graph, suffix).astype(float)
    return float(np.sqrt((steps**2).sum()))


@fast
@given(st.data(), st.sampled_from([(drift.pull_int8, np.int8), (drift.pull_bias, np.int32), (drift.pull_float, F)]))
def test_a_pull_equals_its_twin(data, kind):
    kernel, dtype = kind
    elements = finite if dtype is F else st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    count, columns, taps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    size = count * columns * taps
    weights, base = (data.draw(hnp.arrays(dtype, size, elements=elements)) for _ in range(2))
    rows, places = np.arange(count * taps), np.arange(columns) * (count * taps)
    factor = data.draw(hnp.arrays(F, columns, elements=st.floats(0, 2, width=32)))
    grad = data.draw(hnp.arrays(F, (count * taps, columns + data.draw(st.integers(0, 3))), elements=finite))
    want = getattr(naive_drift, kernel.__name__)(weights, base, rows, places, factor, grad)
    kernel(weights, base, rows, places, factor, grad)
    assert np.array_equal(grad, want)


@fast
@given(hnp.arrays(F, (3, 5), elements=finite), hnp.arrays(F, (3, 5), elements=finite))
def test_a_correction_equals_its_twin(grad, correction):
    total = grad[::-1].copy()
    want = naive_drift.correct(grad, correction, total)
    drift.correct(grad, correction, total)
    assert np.array_equal(grad, want[0])
    assert np.array_equal(total, want[1])


@pytest.mark.parametrize("wish", ["last-2", "full", "5:w/4,7:w/2,8:w"])
def test_a_plan_without_a_pull_has_the_program_that_it_always_had(graph, data, wish):
    suffix, *examples = prepared(graph, data, wish)
    plain = Training(graph, suffix, Descent(0.05, 0.5), batch=16, seed=3)
    without = Training(graph, suffix, Descent(0.05, 0.5, 0.0), batch=16, seed=3)
    kernels = [[call[0] for call in each._recording.tape.calls] for each in (plain, without)]
    assert kernels[0] == kernels[1]
    assert not {drift.pull_int8, drift.pull_bias, drift.pull_float, drift.correct} & set(kernels[0])
    assert plain.num_bytes == without.num_bytes == memory_of(graph, suffix, 16, 0.5)
    assert np.array_equal(
        fine_tune(graph, suffix, *examples, RECIPE).params,
        fine_tune(graph, suffix, *examples, replace(RECIPE, proximal=0.0)).params,
    )


@pytest.mark.parametrize("wish", ["last-2", "blocks-2", "full"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_harder_the_pull_the_nearer_to_the_base(graph, data, wish, momentum):
    suffix, *examples = prepared(graph, data, wish)
    recipe = replace(RECIPE, momentum=momentum, learning_rate=0.03 * (1 - momentum))
    reached = [
        distance(graph, suffix, fine_tune(graph, suffix, *examples, replace(recipe, proximal=mu)).params)
        for mu in (0.0, 1.0, 10.0)
    ]
    assert reached[1] < 0.95 * reached[0]
    assert reached[2] < 0.6 * reached[0]


@pytest.mark.parametrize("wish", ["last-2", "blocks-2", "full", "5:w/4,7:w/2,8:w"])
def test_a_correction_of_nothing_changes_nothing_and_tells_the_gradient(graph, data, wish):
    suffix, features, labels = prepared(graph, data, wish)
    recipe = replace(RECIPE, epochs=1, batch_size=300, learning_rate=0.004)  # no layer is thrown off
    plain = fine_tune(graph, suffix, features, labels, recipe)
    told = fine_tune(graph, suffix, features, labels, recipe, correction=np.zeros(suffix.num_params, F))
    assert plain.gradient is None
    assert np.array_equal(plain.params, told.params)
    assert told.memory_bytes == memory_of(graph, suffix, 300, corrects=True) > plain.memory_bytes
    # whole steps by chance: on the average they are the gradient's
    scales = scheme.scales_of(graph, suffix).astype(np.float64)
    moved = (plain.params - scheme.params_of(graph, suffix)) * scales
    wished = -recipe.learning_rate * told.gradient.astype(np.float64)
    assert np.abs(moved - wished).max() <= 1.001 * scales.max()
    assert np.corrcoef(moved / scales, wished / scales)[0, 1] > 0.3


@pytest.mark.parametrize("wish", ["last-2", "full", "5:w/4,7:w/2,8:w"])
def test_a_correction_that_undoes_the_gradient_moves_nothing(graph, data, wish):
    """So both ways of the layout are each other's inverse, for weights, some channels of them, and biases."""
    suffix, features, labels = prepared(graph, data, wish)
    recipe = replace(RECIPE, epochs=1, batch_size=300)
    told = fine_tune(graph, suffix, features, labels, recipe, correction=np.zeros(suffix.num_params, F))
    back = fine_tune(graph, suffix, features, labels, recipe, correction=-told.gradient)
    moved = int(np.count_nonzero(back.params != scheme.params_of(graph, suffix)))
    plain = int(np.count_nonzero(told.params != scheme.params_of(graph, suffix)))
    assert plain > 100
    assert moved <= plain // 50  # rounding of a difference may leave a wish of 2^-24


@pytest.mark.parametrize("mu", [-1.0, float("nan"), float("inf")])
def test_a_pull_that_is_none_is_refused(graph, data, mu):
    suffix, *examples = prepared(graph, data, "last-2")
    with pytest.raises(TrainingError, match="proximal"):
        fine_tune(graph, suffix, *examples, replace(RECIPE, proximal=mu))


def pushed(graph, suffix, descent):
    """A training whose params are a few steps away from the base, and those params [P]."""
    training, push, parts = Training(graph, suffix, descent, batch=8, seed=1), np.random.default_rng(5), []
    for layer in suffix.layers:
        for tensor in (layer.weights, layer.bias):
            array = training._arena.array(training._recording.params[tensor])
            array[...] = np.clip(array, -120, 120) if array.dtype == np.int8 else array
            array += push.integers(-3, 4, array.shape).astype(array.dtype)
            parts.append(array.ravel().copy())
    return training, np.concatenate(parts)


def velocities(training, graph, suffix):
    """What one step's gradients are in the end, in the order of the way back."""
    draw, source = np.random.default_rng(3), graph.tensors[suffix.entering]
    features = draw.integers(-9, 9, (8, *source.shape[1:])).astype(source.dtype)
    training.step(features, draw.integers(0, 4, 8).astype(np.int32), np.arange(8))
    rooms = [room for room in training._recording.tape.rooms if room.label == "velocity"]
    return [training._arena.array(room).copy() for room in rooms]


@pytest.mark.parametrize("lane", ["int8", "float32"])
def test_a_step_away_from_the_base_is_pulled_back_by_as_much_as_the_formula_says(lane):
    """In convolutions, depthwise and dense layers, weights and biases: real gradient + mu * (real w - real base)."""
    graph = residual_net(lane)
    suffix = scheme.resolve(graph, "full")
    training, now = pushed(graph, suffix, Descent(0.01, 0.5))
    plain = velocities(training, graph, suffix)
    pulled = velocities(pushed(graph, suffix, Descent(0.01, 0.5, 0.5))[0], graph, suffix)
    away = (now - scheme.params_of(graph, suffix)) * scheme.scales_of(graph, suffix).astype(np.float64)
    seen = 0
    for part, before, after in zip(parts_of(graph, suffix), plain, pulled, strict=True):
        want = part.laid_out((0.5 * away).astype(F), before.shape)
        assert np.allclose(after - before, want, rtol=1e-4, atol=2e-5 * np.abs(before).max())
        seen += int(np.count_nonzero(want))
    assert seen > 0.5 * suffix.num_params


def parts_of(graph, suffix):
    """How the gradients lie, in the order of the way back."""
    training = Training(graph, suffix, Descent(0.1, 0.0, 0.0, np.zeros(suffix.num_params, F)), batch=8, seed=1)
    return [part for part, _ in training._recording.totals]


@pytest.mark.parametrize("lane", ["int8", "float32"])
def test_a_layout_there_and_back_is_what_it_was(lane):
    graph = residual_net(lane)
    suffix = scheme.resolve(graph, "full")
    params, back = np.arange(1, suffix.num_params + 1, dtype=F), np.zeros(suffix.num_params, F)
    for part in parts_of(graph, suffix):
        part.take_back(part.laid_out(params, (len(part.rows), len(part.columns) + 3)), back)
    assert np.allclose(back, params, rtol=1e-6)


def digest():
    """What some steps with a pull and a correction come to, in an int8 and a float32 net of every kind of layer."""
    whole = hashlib.sha256()
    for lane in ("int8", "float32"):
        graph = residual_net(lane)
        suffix = scheme.resolve(graph, "full")
        shape = graph.tensors[suffix.entering].shape[1:]
        drawn = [naive.splitmix64(7, n) >> 40 for n in range(12 * int(np.prod(shape)) + suffix.num_params)]
        windows = (np.array(drawn[: 12 * int(np.prod(shape))]) % 64 - 32).reshape(12, *shape)
        correction = ((np.array(drawn[-suffix.num_params :]) % 256 - 128) / 2**12).astype(F)
        windows = windows.astype(np.int8) if lane == "int8" else (windows / 64).astype(F)
        recipe = Recipe(epochs=5, batch_size=4, learning_rate=2.0**-7, momentum=0.5, seed=3, proximal=0.25)
        labels = np.arange(12, dtype=np.int32) % 4
        tuned = fine_tune(graph, suffix, windows, labels, recipe, correction=correction)
        assert np.count_nonzero(tuned.params != scheme.params_of(graph, suffix)) > suffix.num_params // 20
        whole.update(tuned.params.tobytes() + tuned.gradient.tobytes() + np.float64(tuned.losses).tobytes())
    return whole.hexdigest()


def test_a_pull_and_a_correction_give_the_golden_bits():
    assert digest() == json.loads(GOLDEN.read_text("utf-8"))["sha256"]
