"""The model reader, the cut, the trainable part and the interpreter seam, checked against the runtime itself.

The MLPerf Tiny models are read from the folder in FLEET_MODELS; without it those cases are skipped by name.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.models import interpreter
from engine.models.graph import Graph, ModelError, Operator, Tensor
from engine.models.interpreter import features, open_model, runtime_name
from engine.models.plan import Head, Layer, head_of, params_of, reset_params
from engine.models.tflite import cut_prefix, read

SHIPPED = Path(__file__).parents[2] / "firmware_sim" / "models"
ELSEWHERE = Path(os.environ.get("FLEET_MODELS", "/nowhere")) / "mlperf_tiny"
needs_elsewhere = pytest.mark.skipif(
    not ELSEWHERE.is_dir(), reason="FLEET_MODELS names no folder with the MLPerf Tiny models in mlperf_tiny"
)
MLPERF = [
    "ad01_int8.tflite",
    "ad01_fp32.tflite",
    "kws_ref_model.tflite",
    "pretrainedResnet_quant.tflite",
    "pretrainedResnet.tflite",
    "str_ww_ref_model.tflite",
    "vww_96_int8.tflite",
]
MODELS = [
    SHIPPED / "digits.tflite",
    SHIPPED / "wrist.tflite",
    *(pytest.param(ELSEWHERE / name, marks=needs_elsewhere) for name in MLPERF),
]
each_model = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)


def loaded(data, **options):
    _, module = interpreter._runtime()
    opened = module.Interpreter(
        model_content=data,
        num_threads=1,
        experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF,
        **options,
    )
    opened.allocate_tensors()
    return opened


def random_input(graph, seed=0):
    entry = graph.tensors[graph.inputs[0]]
    rng = np.random.default_rng(seed)
    if entry.dtype == "float32":
        return rng.normal(0, 1, entry.shape).astype(np.float32)
    return rng.integers(-128, 128, entry.shape).astype(np.int8)


@each_model
def test_the_graph_says_what_the_runtime_says(path):
    data = path.read_bytes()
    graph, opened = read(data), loaded(data)
    theirs = {entry["index"]: entry for entry in opened.get_tensor_details()}
    for tensor in graph.tensors:
        if tensor.index not in theirs:
            continue
        entry = theirs[tensor.index]
        assert (tensor.name, tensor.shape) == (entry["name"], tuple(entry["shape"]))
        assert np.dtype(tensor.dtype) == entry["dtype"]
        quantization = entry["quantization_parameters"]
        assert np.array_equal(tensor.scale, quantization["scales"])
        assert np.array_equal(tensor.zero_point, quantization["zero_points"])
        assert tensor.quantized_axis == quantization["quantized_dimension"]
        if tensor.data is not None:
            assert np.array_equal(tensor.data, opened.get_tensor(tensor.index))
    assert graph.inputs == tuple(entry["index"] for entry in opened.get_input_details())
    assert graph.outputs == tuple(entry["index"] for entry in opened.get_output_details())
    steps = opened._get_ops_details()[: len(graph.operators)]
    assert [op.kind for op in graph.operators] == [step["op_name"] for step in steps]
    assert [op.inputs for op in graph.operators] == [tuple(step["inputs"]) for step in steps]
    assert [op.outputs for op in graph.operators] == [tuple(step["outputs"]) for step in steps]


@each_model
def test_the_graph_has_constants_and_they_cannot_be_written(path):
    constants = [tensor.data for tensor in read(path.read_bytes()).tensors if tensor.data is not None]
    assert len(constants) >= 4
    assert not any(data.flags.writeable for data in constants)


@each_model
@pytest.mark.parametrize("train", ["last-1", "last-2"])
def test_the_cut_file_gives_the_tensor_that_the_whole_file_has_at_the_cut(path, train):
    data = path.read_bytes()
    graph = read(data)
    try:
        head = head_of(graph, train)
    except ModelError:
        assert train == "last-2"  # the convolutional MLPerf models have one dense layer
        return
    cut = cut_prefix(data, head.cut, head.feature_tensor)
    assert len(cut) == len(data)
    assert read(cut).operators == graph.operators[: head.cut]
    frozen, whole = loaded(cut), loaded(data, experimental_preserve_all_tensors=True)
    for seed in range(3):
        given = random_input(graph, seed)
        for opened in (frozen, whole):
            opened.set_tensor(graph.inputs[0], given)
            opened.invoke()
        answer = frozen.get_tensor(frozen.get_output_details()[0]["index"])
        assert np.array_equal(answer, whole.get_tensor(head.feature_tensor))
        assert len(np.unique(answer)) > 2


def test_a_file_can_be_cut_inside_its_frozen_part_too():
    data = (SHIPPED / "digits.tflite").read_bytes()
    graph = read(data)
    whole = loaded(data, experimental_preserve_all_tensors=True)
    whole.set_tensor(graph.inputs[0], random_input(graph))
    whole.invoke()
    for op in graph.operators:
        cut = loaded(cut_prefix(data, op.index + 1, op.outputs[0]))
        cut.set_tensor(graph.inputs[0], random_input(graph))
        cut.invoke()
        assert np.array_equal(cut.get_tensor(op.outputs[0]), whole.get_tensor(op.outputs[0])), op.kind


def test_a_signature_names_the_cut_as_its_output():
    data = (SHIPPED / "digits.tflite").read_bytes()
    head = head_of(read(data), "last-2")
    opened = loaded(cut_prefix(data, head.cut, head.feature_tensor))
    run = opened.get_signature_runner()
    (answer,) = run(**{next(iter(run.get_input_details())): random_input(read(data))}).values()
    assert answer.shape == (1, 128)


def test_a_cut_that_is_not_there_is_refused():
    data = (SHIPPED / "digits.tflite").read_bytes()
    graph = read(data)
    with pytest.raises(ModelError, match="cannot keep 11 operators of a model with 10"):
        cut_prefix(data, 11, graph.outputs[0])
    with pytest.raises(ModelError, match="not made by the first 3 operators"):
        cut_prefix(data, 3, graph.outputs[0])


def test_the_shipped_models_have_the_documented_heads():
    digits = head_of(read((SHIPPED / "digits.tflite").read_bytes()), "last-2")
    wrist = head_of(read((SHIPPED / "wrist.tflite").read_bytes()), "last-2")
    assert digits.layers == (Layer(128, 128, "RELU"), Layer(128, 10, "NONE"))
    assert digits.num_params == 128 * 128 + 128 + 128 * 10 + 10
    assert wrist.layers == (Layer(256, 64, "RELU"), Layer(64, 6, "NONE"))


def test_the_params_of_the_file_on_its_features_answer_as_the_file_does():
    data = (SHIPPED / "digits.tflite").read_bytes()
    graph = read(data)
    head = head_of(graph, "last-2")
    windows = np.random.default_rng(0).uniform(0, 1, (200, 8, 8, 1)).astype(np.float32)
    values, params = features(data, graph, head, windows), params_of(graph, head)
    assert params.dtype == np.float32
    assert params.shape == (head.num_params,)
    for layer in head.layers:
        count = layer.inputs * layer.outputs
        weights, bias = params[:count].reshape(layer.outputs, layer.inputs), params[count : layer.num_params]
        values = values @ weights.T + bias
        values = np.maximum(values, 0) if layer.activation == "RELU" else values
        params = params[layer.num_params :]
    logits = graph.tensors[graph.operators[-1].inputs[0]]
    whole = cut_prefix(data, len(graph.operators) - 1, logits.index)
    stored = open_model(whole)(windows)
    real = (stored.astype(np.float32) - logits.zero_point[0]) * logits.scale[0]
    assert np.abs(real - values).max() < 6 * float(logits.scale[0])
    assert (real.argmax(axis=1) == values.argmax(axis=1)).mean() > 0.97


def test_reset_params_are_the_same_bits_everywhere():
    head = Head(0, 0, 1.0, 0, (Layer(128, 128, "RELU"), Layer(128, 10, "NONE")))
    digest = hashlib.sha256(reset_params(head, 7).astype("<f4").tobytes()).hexdigest()
    assert digest == "bda04eed892a446fe9af2aa9081f02772d4670ff00e374f72ce9b00905a4e8b2"


def test_splitmix64_gives_the_published_numbers():
    from engine.models.plan import _GOLDEN, _mix

    # The first three outputs for state 1234567, as printed with many implementations of the generator.
    states = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * _GOLDEN
    assert _mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_reset_params_keep_their_bounds_and_leave_biases_zero():
    head = Head(0, 0, 1.0, 0, (Layer(50, 40, "RELU"), Layer(40, 5, "NONE")))
    params = reset_params(head, 1)
    first, rest = params[:2000], params[2040:]
    assert not params[2000:2040].any()
    assert not rest[200:].any()
    assert 0.9 < np.abs(first).max() / np.sqrt(6 / 50) <= 1
    assert 0.9 < np.abs(rest[:200]).max() / np.sqrt(3 / 40) <= 1
    assert abs(first.mean()) < 0.03
    assert len(np.unique(first)) > 1990
    assert not np.isin(first, reset_params(head, 2)[:2000]).any()


def dense_graph(kinds, *, shape=(1, 4), **changed):
    """A chain of operators of width 4: 'FULLY_CONNECTED' takes constants, anything else only its input."""
    none = np.zeros(0, np.float32), np.zeros(0, np.int64)
    tensors = [Tensor(0, "in", shape, "float32", *none, 0, None)]
    operators = []
    for index, kind in enumerate(kinds):
        entering, inputs = len(tensors) - 1, ()
        if kind.startswith("FULLY_CONNECTED"):
            inputs = (len(tensors), len(tensors) + 1)
            tensors.append(Tensor(inputs[0], "w", (4, 4), "float32", *none, 0, changed.get("weights", np.eye(4))))
            tensors.append(Tensor(inputs[1], "b", (4,), "float32", *none, 0, np.zeros(4)))
        name, _, activation = kind.partition("+")
        leaving = len(tensors)
        tensors.append(Tensor(leaving, f"out {index}", shape, "float32", *none, 0, None))
        operators.append(Operator(index, name, (entering, *inputs), (leaving,), activation or "NONE", {}))
    return Graph(tuple(tensors), tuple(operators), (0,), (len(tensors) - 1,))


def test_an_operator_that_cannot_train_is_refused_by_name():
    graph = dense_graph(["FULLY_CONNECTED", "TANH", "FULLY_CONNECTED", "SOFTMAX"])
    assert head_of(graph, "last-1").cut == 2
    with pytest.raises(ModelError) as refused:
        head_of(graph, "last-2")
    assert str(refused.value) == (
        "operator 1 (TANH, 'out 1') stands in the trainable part; last-2 can train FULLY_CONNECTED with NONE or RELU "
        "only; choose last-1 or another model"
    )


def test_steps_that_change_nothing_are_passed_over():
    chain = ["TANH", "RESHAPE", "FULLY_CONNECTED+RELU", "QUANTIZE", "FULLY_CONNECTED", "SOFTMAX", "DEQUANTIZE"]
    head = head_of(dense_graph(chain), "last-2")
    assert head.cut == 2
    assert [layer.activation for layer in head.layers] == ["RELU", "NONE"]


@pytest.mark.parametrize(
    ("graph", "train", "sentence"),
    [
        (dense_graph(["FULLY_CONNECTED"]), "all", "write last-1"),
        (dense_graph(["FULLY_CONNECTED"]), "last-0", "write last-1"),
        (dense_graph(["FULLY_CONNECTED"]), "last-2", "has 1 dense layers .* choose last-1"),
        (dense_graph(["FULLY_CONNECTED", "OP_99"]), "last-1", r"operator 1 \(OP_99, .* choose another model"),
        (dense_graph(["FULLY_CONNECTED+RELU6"]), "last-1", "FULLY_CONNECTED with RELU6"),
        (dense_graph(["SOFTMAX", "FULLY_CONNECTED", "FULLY_CONNECTED"]), "last-3", r"operator 0 \(SOFTMAX"),
        (dense_graph(["FULLY_CONNECTED"], weights=None), "last-1", "no constant weights"),
        (dense_graph(["FULLY_CONNECTED", "RESHAPE"], shape=(1, 1, 1, 4)), "last-1", r"operator 1 \(RESHAPE"),
        (dense_graph(["FULLY_CONNECTED"], shape=(1, 3, 4)), "last-1", "one row per window"),
    ],
)
def test_what_cannot_train_is_refused_with_a_sentence(graph, train, sentence):
    with pytest.raises(ModelError, match=sentence):
        head_of(graph, train)


def test_a_trainable_part_that_branches_is_refused():
    graph = dense_graph(["FULLY_CONNECTED", "FULLY_CONNECTED", "FULLY_CONNECTED"])
    first, second, third = graph.operators
    skipping = Operator(2, "ADD", (second.outputs[0], first.outputs[0]), third.outputs, "NONE", {})
    with pytest.raises(ModelError, match=r"operator 2 \(ADD"):
        head_of(Graph(graph.tensors, (first, second, skipping), graph.inputs, graph.outputs), "last-1")
    early = Operator(2, "FULLY_CONNECTED", (first.outputs[0], *third.inputs[1:]), third.outputs, "NONE", {})
    with pytest.raises(ModelError, match="branches"):
        head_of(Graph(graph.tensors, (first, second, early), graph.inputs, graph.outputs), "last-2")


@pytest.mark.parametrize(("name", "window"), [("digits", (8, 8, 1)), ("wrist", (200, 1, 3))])
def test_a_window_has_the_same_features_in_any_company(name, window):
    data = (SHIPPED / f"{name}.tflite").read_bytes()
    graph = read(data)
    head = head_of(graph, "last-2")
    windows = np.random.default_rng(3).uniform(-1, 1, (70, *window)).astype(np.float32)
    together = features(data, graph, head, windows)
    assert together.shape == (70, head.layers[0].inputs)
    assert together.dtype == np.float32
    for count in (1, 31, 32, 33):
        assert np.array_equal(features(data, graph, head, windows[-count:]), together[-count:])
    assert features(data, graph, head, windows[:0]).shape == (0, head.layers[0].inputs)


@pytest.mark.parametrize(
    ("name", "window", "digest"),
    [
        ("digits", (8, 8, 1), "45fc9e66b8a877ba6f154a1d2f7f84868e2502817f93b54ac8847859338ae259"),
        ("wrist", (200, 1, 3), "ee73165d13c2e969f68ecad61e1c40641f30de3d9549ca3a7b6a34495caf0b68"),
    ],
)
def test_features_are_the_same_bits_in_every_runtime(name, window, digest):
    data = (SHIPPED / f"{name}.tflite").read_bytes()
    graph = read(data)
    # The digests belong to the shipped files: models built anew have other features.
    steps = np.random.default_rng(5).integers(-4096, 4096, (40, *window))
    windows = (steps / 4096 * (20 if name == "wrist" else 1)).astype(np.float32)
    got = features(data, graph, head_of(graph, "last-2"), windows)
    assert hashlib.sha256(got.tobytes()).hexdigest() == digest


def test_windows_that_hold_no_numbers_or_have_another_shape_are_refused():
    run = open_model((SHIPPED / "digits.tflite").read_bytes())
    windows = np.zeros((3, 8, 8, 1), np.float32)
    for wrong in (np.nan, np.inf, -np.inf):
        windows[1, 4, 4, 0] = wrong
        with pytest.raises(ValueError, match="window 1 holds NaN or infinity"):
            run(windows)
    with pytest.raises(ValueError, match=r"takes float32 \[n, "):
        run(np.zeros((3, 8, 8), np.float32))
    with pytest.raises(ValueError, match="float64"):
        run(np.zeros((3, 8, 8, 1)))


def test_a_window_is_quantised_with_ties_to_even_and_clamped():
    entry = {"dtype": np.int8, "quantization": (0.5, 3)}
    real = np.array([[0.0, 0.25, 0.75, 1.25, -0.25, -0.75, 1e30, -1e30]], np.float32)
    assert interpreter._quantise(real, entry).tolist() == [[3, 3, 5, 5, 3, 1, 127, -128]]


def test_the_runtime_is_named_and_a_missing_one_is_said_plainly(monkeypatch):
    assert runtime_name() in interpreter.RUNTIMES
    monkeypatch.setattr(interpreter, "RUNTIMES", ("no_such_runtime",))
    with pytest.raises(ModelError, match=r"install hedgerow\[agent\]"):
        runtime_name()


def test_bytes_that_the_runtime_refuses_are_a_model_error():
    with pytest.raises(ModelError, match="convert it again"):
        open_model(b"\x00" * 64)


def test_reading_a_model_loads_no_runtime_and_no_compiler():
    code = (
        "import sys, engine.models.interpreter, engine.models.plan, engine.models.tflite\n"
        "heavy = {'numba', 'tensorflow', 'onnx', 'tflite_runtime', 'ai_edge_litert', 'llvmlite'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@needs_elsewhere
def test_a_model_that_trains_from_its_first_layer_has_its_input_as_features():
    data = (ELSEWHERE / "ad01_int8.tflite").read_bytes()
    graph = read(data)
    head = head_of(graph, "last-10")
    assert (head.cut, head.feature_tensor) == (0, graph.inputs[0])
    windows = np.random.default_rng(0).normal(0, 2, (5, 640)).astype(np.float32)
    assert np.abs(features(data, graph, head, windows) - windows).max() <= head.feature_scale / 2 * 1.01
