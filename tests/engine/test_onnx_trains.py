"""An ONNX model's whole way: read, run by our own kernels, trained, written back, and better by the reference."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from engine.frozen import features
from engine.models.onnx import patch, read
from engine.models.scheme import resolve
from engine.program import Runner
from engine.train import Recipe, fine_tune
from tests.engine.test_onnx import FLOAT, Net, QuantizedNet, chain_of_int8, channels_last, flatten_dense, qlinear

# The others have a LEAKY_RELU, PADV2 or TRANSPOSE, or two outputs per channel of a depthwise layer.
OURS = sorted(set(FLOAT) - {"leaky", "maximum of an even image", "flattened arithmetic", "depthwise with multiplier"})


@pytest.mark.parametrize("name", OURS)
def test_our_own_kernels_answer_as_the_reference_does(name):
    net = Net(3, 9, 8)
    FLOAT[name][0](net)
    model = net.model()
    windows = net.rng.normal(0, 1, (3, 3, 9, 8)).astype(np.float32)
    graph = read(model.SerializeToString())
    reference = ReferenceEvaluator(model)
    expected = np.concatenate([channels_last(reference.run(None, {"x": window[None]})[0]) for window in windows])
    answer = Runner(graph, graph.outputs[0], batch=2)(channels_last(windows))
    assert np.abs(answer.reshape(expected.shape) - expected).max() < 2e-5


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize(("build", "step"), [(chain_of_int8, 0.04), (lambda net: qlinear(net, net.kind), 0.03)])
def test_our_own_int8_kernels_are_off_the_reference_by_one_step_at_most(build, step, kind):
    net = QuantizedNet(3, 9, 8, kind=kind)
    build(net)
    model = net.model()
    windows = net.rng.normal(0, 1, (3, 3, 9, 8)).astype(np.float32)
    graph = read(model.SerializeToString())
    reference = ReferenceEvaluator(model)
    expected = np.concatenate([reference.run(None, {"x": window[None]})[0] for window in windows])
    answer = Runner(graph, graph.outputs[0], batch=3)(channels_last(windows))
    assert np.abs(answer - expected).max() < step * 1.01
    assert (answer == expected).mean() > 0.8


def cross_entropy(data, windows, labels):
    reference = ReferenceEvaluator(onnx.load_model_from_string(data))
    logits = np.concatenate([reference.run(None, {"x": window[None]})[0] for window in windows]).astype(np.float64)
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]))


@pytest.mark.parametrize("kind", [np.float32, np.int8, np.uint8])
@pytest.mark.parametrize("train", ["last-1", "full"])
def test_a_tuned_model_is_written_back_and_is_better(kind, train):
    if kind == np.float32:
        net = Net(3, 9, 8)
        flatten_dense(net)
    else:
        net = QuantizedNet(3, 9, 8, kind=kind, per_channel=kind == np.int8)
        chain_of_int8(net)
    data = net.bytes()
    graph = read(data)
    rng = np.random.default_rng(0)
    windows = rng.normal(0, 0.8, (60, *net.input)).astype(np.float32)
    labels = (windows[:, 0, :4].mean(axis=(1, 2)) > 0).astype(np.int32) + 2 * (windows[:, 1].mean(axis=(1, 2)) > 0)
    suffix = resolve(graph, train)
    entering = features(data, graph, suffix, channels_last(windows))
    tuned = fine_tune(graph, suffix, entering, labels, Recipe(10, 8, 0.02, 0.0, 1))
    written = patch(data, graph, tuned.constants)
    before, after = (cross_entropy(file, windows, labels) for file in (data, written))
    assert after < before - 0.3
    assert after < tuned.losses[0]
