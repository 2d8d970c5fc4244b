"""The `.tflite` reader, the cut, the frozen part and the interpreter seam, checked against the runtime itself.

The MLPerf Tiny models are read from the folder in FLEET_MODELS; without it those cases are skipped by name.
"""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from engine.frozen import features
from engine.models import interpreter
from engine.models.graph import ModelError
from engine.models.interpreter import open_model, runtime_name
from engine.models.scheme import resolve
from engine.models.tflite import cut_prefix, read
from tests.engine.models_at_hand import ELSEWHERE, SHIPPED, each_model, loaded, needs_elsewhere, random_input


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
@pytest.mark.parametrize("train", ["last-1", "last-2", "blocks-1"])
def test_the_cut_file_gives_the_tensor_that_the_whole_file_has_at_the_cut(path, train):
    data = path.read_bytes()
    graph = read(data)
    suffix = resolve(graph, train)
    cut = cut_prefix(data, suffix.cut, suffix.entering)
    assert len(cut) == len(data)
    assert read(cut).operators == graph.operators[: suffix.cut]
    frozen, whole = loaded(cut), loaded(data, experimental_preserve_all_tensors=True)
    for seed in range(3):
        given = random_input(graph, seed)
        for opened in (frozen, whole):
            opened.set_tensor(graph.inputs[0], given)
            opened.invoke()
        answer = frozen.get_tensor(frozen.get_output_details()[0]["index"])
        assert np.array_equal(answer, whole.get_tensor(suffix.entering))
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
    suffix = resolve(read(data), "last-2")
    opened = loaded(cut_prefix(data, suffix.cut, suffix.entering))
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


@pytest.mark.parametrize(("name", "window"), [("digits", (8, 8, 1)), ("wrist", (200, 1, 3))])
def test_a_window_has_the_same_features_in_any_company(name, window):
    data = (SHIPPED / f"{name}.tflite").read_bytes()
    graph = read(data)
    suffix = resolve(graph, "last-2")
    windows = np.random.default_rng(3).uniform(-1, 1, (70, *window)).astype(np.float32)
    together = features(data, graph, suffix, windows)
    assert together.shape == (70, *graph.tensors[suffix.entering].shape[1:])
    assert together.dtype == np.int8
    for count in (1, 31, 32, 33):
        assert np.array_equal(features(data, graph, suffix, windows[-count:]), together[-count:])
    assert features(data, graph, suffix, windows[:0]).shape == (0, *together.shape[1:])


@pytest.mark.parametrize(
    ("name", "window", "digest"),
    [
        ("digits", (8, 8, 1), "45fc9e66b8a877ba6f154a1d2f7f84868e2502817f93b54ac8847859338ae259"),
        ("wrist", (200, 1, 3), "ee73165d13c2e969f68ecad61e1c40641f30de3d9549ca3a7b6a34495caf0b68"),
    ],
)
def test_features_are_the_same_bits_in_every_runtime_and_in_our_own_kernels(name, window, digest):
    data = (SHIPPED / f"{name}.tflite").read_bytes()
    graph = read(data)
    # The digests belong to the shipped files: models built anew have other features.
    steps = np.random.default_rng(5).integers(-4096, 4096, (40, *window))
    windows = (steps / 4096 * (20 if name == "wrist" else 1)).astype(np.float32)
    suffix = resolve(graph, "last-2")
    entering = graph.tensors[suffix.entering]
    for stored in (
        features(data, graph, suffix, windows),
        open_model(cut_prefix(data, suffix.cut, suffix.entering))(windows),
    ):
        real = (stored.astype(np.float32) - np.float32(entering.zero_point[0])) * entering.scale[0]
        assert hashlib.sha256(real.tobytes()).hexdigest() == digest


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
        "import sys, engine.models.interpreter, engine.models.onnx, engine.models.scheme\n"
        "heavy = {'numba', 'tensorflow', 'onnx', 'tflite_runtime', 'ai_edge_litert', 'llvmlite'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@needs_elsewhere
def test_a_model_that_trains_from_its_first_layer_has_its_input_as_features():
    data = (ELSEWHERE / "ad01_int8.tflite").read_bytes()
    graph = read(data)
    suffix = resolve(graph, "full")
    assert (suffix.cut, suffix.entering) == (0, graph.inputs[0])
    windows = np.random.default_rng(0).normal(0, 2, (5, 640)).astype(np.float32)
    entering = graph.tensors[suffix.entering]
    real = (features(data, graph, suffix, windows) - np.float32(entering.zero_point[0])) * entering.scale[0]
    assert np.abs(real - windows).max() <= entering.scale[0] / 2 * 1.01
