"""A model as a program: the reference kernels' numbers, the right gradients, and the memory that was promised."""

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models import interpreter, scheme, tflite
from engine.models.fold import fold, live_operators
from engine.models.graph import Graph, ModelError
from engine.program import Runner, Training, memory_of
from engine.recording import Descent
from engine.train import with_constants
from firmware_sim.models.digits_net import digits
from tests.engine.graph_tflite import write
from tests.engine.sketch import Sketch

ROOT = Path(__file__).parents[2]
ELSEWHERE = Path(os.environ.get("FLEET_MODELS", "/nowhere")) / "mlperf_tiny"
needs_models = pytest.mark.skipif(
    not ELSEWHERE.is_dir(), reason="FLEET_MODELS names no folder with the MLPerf Tiny models in mlperf_tiny"
)
INT8_MODELS = (
    "kws_ref_model", "pretrainedResnet_quant", "pretrainedResnet_large_int8", "vww_96_int8", "ad01_int8",
    "str_ww_ref_model",
)  # fmt: skip


def reference(data, graph, windows):
    """Every tensor of the graph by the runtime's reference kernels, [n, ...].

    A tensor that feeds an ADD is left out: tflite-runtime adds in place, so it cannot be read there; the sum can.
    """
    _, runtime = interpreter._runtime()
    opened = runtime.Interpreter(
        model_content=data, num_threads=1, experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=runtime.OpResolverType.BUILTIN_REF,
    )  # fmt: skip
    opened.allocate_tensors()
    overwritten = {op.inputs[0] for op in graph.operators if op.kind == "ADD"}
    overwritten |= {op.inputs[1] for op in graph.operators if op.kind == "ADD"}
    wanted = [graph.operators[index].outputs[0] for index in live_operators(graph)]
    wanted = [tensor for tensor in wanted if tensor not in overwritten]
    seen = {tensor: [] for tensor in wanted}
    for window in windows:
        opened.set_tensor(graph.inputs[0], window[None])
        opened.invoke()
        for tensor in wanted:
            seen[tensor].append(opened.get_tensor(tensor).copy())
    return {tensor: np.concatenate(parts) for tensor, parts in seen.items()}


def windows_for(graph, count, seed=0):
    """Noise, and the two ends of the range."""
    shape = graph.tensors[graph.inputs[0]].shape[1:]
    noise = np.random.default_rng(seed).integers(-128, 128, (count, *shape)).astype(np.int8)
    noise[0], noise[1] = -128, 127
    return noise


def dequantised(graph):
    """The same model with real numbers instead of integers: what the float lane trains."""
    tensors = []
    for tensor in graph.tensors:
        data = tensor.data
        if data is not None and len(tensor.scale):
            along = [1] * data.ndim
            along[tensor.quantized_axis] = len(tensor.scale)
            data = data.astype(np.float32) * tensor.scale.reshape(along)
        is_number = tensor.dtype in {"int8", "float32"} or len(tensor.scale)
        empty = np.zeros(0, np.float32), np.zeros(0, np.int64)
        dtype = "float32" if is_number else tensor.dtype
        tensors.append(replace(tensor, data=data, dtype=dtype, scale=empty[0], zero_point=empty[1]))
    return Graph(tuple(tensors), graph.operators, graph.inputs, graph.outputs)


DRIFT = 8  # after ten dense layers, in each of which one step in some hundreds is rounded the other way


def dense_before(graph):
    """How many dense layers led to each tensor: LiteRT rounds each once where tflite-runtime, as we, rounds twice."""
    found = {}
    for op in graph.operators:
        count = max((found.get(tensor, 0) for tensor in op.inputs), default=0) + (op.kind == "FULLY_CONNECTED")
        found |= dict.fromkeys(op.outputs, count)
    return found


@needs_models
@pytest.mark.parametrize("name", INT8_MODELS)
def test_every_tensor_of_a_real_model_is_that_of_the_reference_kernels(name):
    data = (ELSEWHERE / f"{name}.tflite").read_bytes()
    graph = fold(tflite.read(data))
    windows = windows_for(graph, 6 if "large" in name else 20)
    dense = dense_before(graph) if interpreter.runtime_name() == "ai_edge_litert" else {}
    differing = {}
    for tensor, wanted in reference(data, graph, windows).items():
        got = Runner(graph, tensor, batch=8)(windows)
        slack = (0, 1, DRIFT)[min(2, dense.get(tensor, 0))]
        differing[tensor] = int((np.abs(got.astype(int) - wanted.reshape(got.shape)) > slack).sum())
    assert set(differing.values()) == {0}


def tiny_net(seed, stride, channels, depthwise, residual, pool):  # noqa: PLR0917 - what hypothesis draws
    """A small int8 net with the operators that an example asks for."""
    sketch = Sketch((1, 7, 5, channels), seed=seed)
    x = sketch.conv(sketch.entering, 6, stride=stride)
    if depthwise:
        x = sketch.depthwise(x)
    if residual:
        x = sketch.operator("ADD", [x, sketch.conv(x, 6, activation="NONE")], sketch.tensors[x].shape, "RELU")
    height, width = sketch.tensors[x].shape[1:3]
    if pool == "max":
        options = {"padding": 1, "stride_height": 1, "stride_width": 1, "filter_height": 2, "filter_width": 2}
        x = sketch.operator("MAX_POOL_2D", [x], (1, height - 1, width - 1, 6), **options)
    options = {"padding": 1, "stride_height": 1, "stride_width": 1}
    height, width = sketch.tensors[x].shape[1:3]
    options |= {"filter_height": height, "filter_width": width}
    x = sketch.operator("AVERAGE_POOL_2D", [x], (1, 1, 1, 6), **options)
    x = sketch.operator("RESHAPE", [x, sketch.tensor((2,), np.array([-1, 6], np.int32), "int32")], (1, 6))
    answer = sketch.operator("FULLY_CONNECTED", [x, *sketch.weights((4, 6), 0, 4)], (1, 4))
    return Graph(tuple(sketch.tensors), tuple(sketch.operators), (sketch.entering,), (answer,))


nets = st.builds(
    tiny_net, st.integers(0, 99), st.sampled_from([1, 2]), st.integers(1, 4), st.booleans(), st.booleans(),
    st.sampled_from(["max", ""]),
)  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(nets)
def test_a_net_that_nobody_thought_of_runs_as_in_the_runtime_and_learns(graph):
    windows = windows_for(graph, 5)
    data = write(graph)
    wanted = interpreter.open_model(data)(windows)
    got = Runner(graph, graph.outputs[0], batch=3)(windows)
    slack = int(interpreter.runtime_name() != "tflite_runtime")
    assert np.abs(got.reshape(wanted.shape).astype(int) - wanted).max() <= slack
    training = Training(graph, scheme.resolve(graph, "full"), Descent(1e-3, 0.0), batch=3, seed=1)
    assert np.isfinite(training.step(windows, np.array([0, 1, 2, 3, 0], np.int32), np.arange(3)))
    assert training.is_sound()


def mixed_net(lane):
    """Every operator that has a gradient, in one float or int8 net with odd sizes."""
    sketch = Sketch((1, 7, 5, 3), lane, seed=5)
    x = sketch.conv(sketch.entering, 6, stride=2, activation="RELU6")
    pooled = sketch.operator("MEAN", [x, sketch.tensor((2,), np.array([1, 2], np.int32), "int32")], (1, 1, 1, 6))
    gate = sketch.conv(pooled, 6, size=1, activation="NONE")
    gate = sketch.operator("LOGISTIC", [gate], (1, 1, 1, 6))
    x = sketch.operator("MUL", [x, gate], sketch.tensors[x].shape)
    x = sketch.depthwise(x, activation="NONE")
    x = sketch.operator("ADD", [x, sketch.conv(x, 6, activation="NONE")], sketch.tensors[x].shape, "RELU")
    around = sketch.tensor((4, 2), np.array([[0, 0], [1, 0], [0, 1], [0, 0]], np.int32), "int32")
    x = sketch.operator("PAD", [x, around], (1, 5, 4, 6))
    both = {"padding": 1, "stride_height": 1, "stride_width": 1, "filter_height": 2, "filter_width": 2}
    sides = [sketch.operator(kind, [x], (1, 4, 3, 6), **both) for kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D")]
    x = sketch.operator("CONCATENATION", sides, (1, 4, 3, 12), axis=3)
    x = sketch.operator("RESHAPE", [x], (1, 144))
    answer = sketch.operator("FULLY_CONNECTED", [x, *sketch.weights((4, 144), 0, 4)], (1, 4))
    return Graph(tuple(sketch.tensors), tuple(sketch.operators), (sketch.entering,), (answer,))


def loss_of(graph, features, labels):
    """The mean cross-entropy of the float graph's answer, in float64."""
    logits = Runner(graph, graph.outputs[0])(features).reshape(len(features), -1).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]))


def test_a_step_follows_the_slope_of_the_loss_through_every_operator():
    graph = mixed_net("float32")
    suffix = scheme.resolve(graph, "full")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 7, 5, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 3], np.int32)
    shrunk = {
        index: (graph.tensors[index].data * np.float32(0.3 if graph.tensors[index].data.ndim > 1 else 1e-5))
        for layer in suffix.layers
        for index in (layer.weights, layer.bias)
    }
    graph = with_constants(graph, shrunk)
    training = Training(graph, suffix, Descent(1.0, 0.0), batch=4, seed=0)
    training.step(features, labels, np.arange(4))
    after = training.changed()
    for index, new in after.items():
        before, moved, slopes = graph.tensors[index].data, [], []
        for at in {tuple(int(rng.integers(0, n)) for n in before.shape) for _ in range(16)}:
            sides = []
            for nudge in (2e-3, -2e-3):
                nudged = before.copy()
                nudged[at] += np.float32(nudge)
                sides.append(loss_of(with_constants(graph, {index: nudged}), features, labels))
            slopes.append((sides[0] - sides[1]) / 4e-3)
            moved.append(float(before[at]) - float(new[at]))
        wrong = np.abs(np.array(moved) - slopes) > 0.02 * np.abs(slopes).max() + 1e-4
        assert wrong.sum() <= 2, index  # a RELU or a largest entry may change sides within a nudge
        assert np.abs(slopes).max() > 1e-3  # not all of it zeros


def gradients_of(graph, features, labels):
    """Every layer's gradient of the mean loss, last layer first: what momentum has after one step."""
    training = Training(graph, scheme.resolve(graph, "full"), Descent(1e-9, 0.5), batch=len(labels), seed=0)
    training.step(features, labels, np.arange(len(labels)))
    rooms = [room for room in training._recording.tape.rooms if room.label == "velocity"]
    return [training._arena.array(room).astype(np.float64).ravel() for room in rooms]


def test_the_gradients_of_an_int8_model_are_those_of_its_real_twin():
    graph = tflite.read((ROOT / "firmware_sim/models/digits.tflite").read_bytes())
    twin = dequantised(graph)
    entering = graph.tensors[graph.inputs[0]]
    windows, labels = digits()
    windows, labels = windows[:32].astype(np.float32), labels[:32].astype(np.int32)
    mine = gradients_of(graph, interpreter.quantised(windows, entering), labels)
    theirs = gradients_of(twin, windows, labels)
    assert len(mine) == len(theirs) == 12
    layers = [op for op in reversed(graph.operators) if len(op.inputs) > 2 and op.kind != "MEAN"]
    for number, (got, wanted) in enumerate(zip(mine, theirs, strict=True)):
        # weights sum over stored inputs
        factor = 1.0 if number % 2 else graph.tensors[layers[number // 2].inputs[0]].scale[0]
        assert np.corrcoef(got, wanted)[0, 1] > 0.97
        assert 0.8 < factor * (got @ wanted) / (wanted @ wanted) < 1.2


@pytest.mark.parametrize("train", ["last-1", "bias-2", "blocks-1", "full", "0:w/2,2:b"])
def test_only_what_trains_changes_and_the_memory_is_what_was_promised(train):
    graph = tiny_net(3, 1, 4, depthwise=True, residual=True, pool="max")
    suffix = scheme.resolve(graph, train)
    training = Training(graph, suffix, Descent(0.05, 0.0), batch=4, seed=9)
    assert training.num_bytes == memory_of(graph, suffix, 4)
    features = Runner(graph, suffix.entering, batch=4)(windows_for(graph, 8)) if suffix.cut else windows_for(graph, 8)
    labels = np.arange(8, dtype=np.int32) % 4
    training.step(features, labels, np.arange(4))
    tracemalloc.start()
    for _ in range(5):
        training.step(features, labels, np.arange(4, 8))
    assert tracemalloc.get_traced_memory()[1] < 20_000  # a step allocates nothing that grows with the model
    tracemalloc.stop()
    assert training.num_bytes == memory_of(graph, suffix, 4)
    changed = training.changed()
    assert {layer.bias for layer in suffix.layers if layer.num_bias} <= set(changed)
    for layer in suffix.layers:
        if layer.channels is None:
            assert layer.weights not in changed
            continue
        moved = changed[layer.weights] != graph.tensors[layer.weights].data
        others = [c for c in range(moved.shape[-1]) if c not in layer.channels]
        assert moved[..., list(layer.channels)].any()
        assert not moved[..., others].any()


def test_a_dead_channel_stays_as_it_is():
    graph = tiny_net(3, 1, 3, depthwise=False, residual=False, pool="")
    index = graph.operators[0].inputs[1]
    scale = graph.tensors[index].scale.copy()
    scale[2] = 1e-9
    tensors = list(graph.tensors)
    tensors[index] = replace(tensors[index], scale=scale)
    graph = replace(graph, tensors=tuple(tensors))
    training = Training(graph, scheme.resolve(graph, "full"), Descent(0.5, 0.0), batch=4, seed=9)
    for _ in range(4):
        training.step(windows_for(graph, 4), np.arange(4, dtype=np.int32), np.arange(4))
    moved = training.changed()[index] != graph.tensors[index].data
    assert not moved[2].any()
    assert moved.any()


def test_saturation_is_counted_and_no_weight_leaves_its_range():
    graph = tiny_net(3, 1, 3, depthwise=False, residual=False, pool="")
    suffix = scheme.resolve(graph, "last-1")
    full = {layer.weights: np.full_like(graph.tensors[layer.weights].data, 127) for layer in suffix.layers}
    training = Training(with_constants(graph, full), suffix, Descent(50.0, 0.0), batch=4, seed=9)
    features = Runner(graph, suffix.entering)(windows_for(graph, 4))
    for _ in range(3):
        training.step(features, np.arange(4, dtype=np.int32), np.arange(4))
    assert training.saturated > 0
    assert all(new.min() >= -127 for new in training.changed().values() if new.dtype == np.int8)


def test_a_model_that_no_kernel_knows_is_refused_by_name():
    sketch = Sketch((1, 4, 4, 2))
    x = sketch.operator("SPACE_TO_DEPTH", [sketch.entering], (1, 2, 2, 8))
    graph = Graph(tuple(sketch.tensors), tuple(sketch.operators), (sketch.entering,), (x,))
    with pytest.raises(ModelError, match="operator 0 \\(SPACE_TO_DEPTH"):
        Runner(graph, x)
