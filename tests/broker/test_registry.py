"""Model versions: the first one, its export, its score, and the gate for updates to it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker import evaluate, registry
from broker.admission import admit
from broker.evaluate import EvaluateError
from engine import frozen
from engine.codec import sparse, steps
from engine.codec.steps import Steps
from engine.frame import frame_of
from engine.models import interpreter, tflite
from engine.models.graph import ModelError
from engine.models.scheme import load_params, params_of, reset_params, resolve
from tests.broker.fleet import PLAN
from tests.engine.graph_tflite import write
from tests.engine.sketch import Sketch
from wire.messages import PARAMS_FILE, digest_of, encode

MODEL = (Path(__file__).parents[2] / "firmware_sim/models/digits.tflite").read_bytes()
FRAME = frame_of(MODEL, "last-2")


def params_of_first(train: str, seed: int | None) -> bytes:
    manifest, blobs, _ = registry.first_version(MODEL, "digits", train, seed)
    return registry.params_bytes_of(manifest, blobs.__getitem__)


def test_the_first_version_is_the_file_and_its_own_numbers() -> None:
    manifest, blobs, remainder = registry.first_version(MODEL, "digits", "last-2", None)
    size = FRAME.suffix.num_params
    assert (manifest.model_version, manifest.parent_version, manifest.num_params) == (1, 0, size)
    assert manifest.scale_epoch == 0
    assert [file.name for file in manifest.files] == [registry.MODEL_FILE, PARAMS_FILE]
    assert all(digest_of(content) == digest for digest, content in blobs.items())
    assert registry.model_of(manifest, blobs.__getitem__) == MODEL
    params = load_params(FRAME.suffix, registry.params_bytes_of(manifest, blobs.__getitem__))
    assert np.array_equal(params, np.clip(params_of(FRAME.graph, FRAME.suffix), -FRAME.limit, FRAME.limit))
    assert remainder == bytes(2 * size)  # nothing is owed to rounding yet
    encode(manifest)


def test_a_reset_part_starts_at_the_numbers_of_its_seed() -> None:
    graph = tflite.read(MODEL)
    suffix = resolve(graph, "last-1")
    assert load_params(suffix, params_of_first("last-1", 11)).tolist() == reset_params(graph, suffix, 11).tolist()


@pytest.mark.parametrize(
    ("model", "train"), [(b"TFL3 no model", "last-1"), (MODEL, "last-9"), (MODEL[:5000], "last-1")]
)
def test_what_cannot_be_trained_is_refused(model: bytes, train: str) -> None:
    with pytest.raises(ModelError):
        registry.first_version(model, "digits", train, None)


def test_an_export_is_the_file_of_the_version_and_any_runtime_loads_it() -> None:
    manifest, blobs, _ = registry.first_version(MODEL, "digits", "last-2", 3)
    file = registry.export(manifest, "last-2", blobs.__getitem__)
    assert len(file) == len(MODEL)
    graph = tflite.read(file)
    assert np.array_equal(params_of(graph, resolve(graph, "last-2")), reset_params(FRAME.graph, FRAME.suffix, 3))
    windows = np.random.default_rng(1).random((9, 8, 8, 1)).astype(np.float32)
    answers = np.argmax(interpreter.open_model(file)(windows), axis=1)
    assert frozen.predict(file, graph, windows).tolist() == answers.tolist()


def test_a_file_whose_layers_share_their_bytes_is_refused_before_a_fleet_trains_it() -> None:
    sketch = Sketch((1, 4))
    first = sketch.dense(sketch.entering, 4)
    graph = sketch.graph(sketch.dense(first, 4))
    weights = [operator.inputs[1] for operator in graph.operators]
    registry.first_version(write(graph), "toy", "last-2", None)
    with pytest.raises(ModelError, match="for another layer too"):
        registry.first_version(write(graph, buffers={weights[1]: weights[0]}), "toy", "last-2", None)


def held_out(tmp_path: Path, **arrays: object) -> Path:
    path = tmp_path / "test.npz"
    np.savez(path, **arrays)
    return path


def test_the_score_is_that_of_these_parameters(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    path = held_out(tmp_path, x=(digits.images[:200, :, :, None] / 16).astype(np.float32), y=digits.target[:200])
    data = evaluate.load(path, FRAME)
    trained = data.score(FRAME, params_of_first("last-2", None))
    assert trained.count == 200
    assert trained.correct > 180
    forgot = data.score(FRAME, params_of_first("last-2", 5))
    assert forgot.correct < 60
    assert forgot.loss > trained.loss
    with pytest.raises(EvaluateError, match="do not fit"):
        data.score(FRAME, b"other numbers")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.zeros((3, 8, 8, 1), np.float32)}, "is no .npz with x"),
        ({"x": np.zeros((3, 8, 8, 1), np.float32), "y": np.zeros(2, int)}, "3 windows in x"),
        ({"x": np.zeros((0, 8, 8, 1), np.float32), "y": np.zeros(0, int)}, "0 windows in x"),
        ({"x": np.zeros((3, 9, 8, 1), np.float32), "y": np.zeros(3, int)}, "does not fit the model"),
        ({"x": np.full((3, 8, 8, 1), np.nan, np.float32), "y": np.zeros(3, int)}, "does not fit the model"),
    ],
)
def test_held_out_data_that_does_not_fit_is_a_sentence(tmp_path: Path, arrays: dict, sentence: str) -> None:
    with pytest.raises(EvaluateError, match=sentence):
        evaluate.load(held_out(tmp_path, **arrays), FRAME)


def test_held_out_data_that_is_not_there_or_no_npz_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(EvaluateError, match="cannot read"):
        evaluate.load(tmp_path / "none.npz", FRAME)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(EvaluateError, match=r"is no \.npz"):
        evaluate.load(tmp_path / "text.npz", FRAME)


def test_an_update_is_admitted_by_its_plan_and_refused_with_the_reason() -> None:
    vector = np.array([0.5, 0, -0.25, 0.1], np.float32)
    assert admit(sparse.compress(vector, 2, 4)[0], PLAN) is None
    assert "the plan allows 2" in str(admit(sparse.compress(vector, 3, 4)[0], PLAN))
    assert "this model trains 4" in str(admit(sparse.compress(vector[:3], 2, 4)[0], PLAN))
    assert admit(b"", PLAN) is not None


def test_a_plan_of_whole_steps_admits_nothing_else() -> None:
    plan = msgspec.structs.replace(PLAN, value_bits=0)
    some = steps.encode(Steps(4, np.array([0, 3], np.uint32), np.array([1, -254], np.int16)))
    real = sparse.compress(np.array([0.5, 0, -0.25, 0.1], np.float32), 2, 4)[0]
    assert admit(some, plan) is None
    assert "a format of int8 models" in str(admit(real, plan))
    assert "a format of float32 models" in str(admit(some, PLAN))
    assert "the plan allows 1" in str(admit(some, msgspec.structs.replace(plan, keep_count=1)))
