"""Model versions: the first one, its export, its score, and the gate for updates to it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from broker import evaluate, registry
from broker.admission import admit
from broker.evaluate import EvaluateError
from engine.codec import sparse
from engine.models import tflite
from engine.models.graph import ModelError
from engine.models.plan import head_of, params_of, reset_params
from tests.broker.fleet import PLAN
from wire.messages import PARAMS_FILE, digest_of, encode

MODEL = (Path(__file__).parents[2] / "firmware_sim/models/digits.tflite").read_bytes()


def test_the_first_version_is_the_file_and_its_own_numbers() -> None:
    manifest, blobs = registry.first_version(MODEL, "digits", "last-2", None)
    graph = tflite.read(MODEL)
    head = head_of(graph, "last-2")
    assert (manifest.model_version, manifest.parent_version, manifest.num_params) == (1, 0, head.num_params)
    assert [file.name for file in manifest.files] == [registry.MODEL_FILE, PARAMS_FILE]
    assert all(digest_of(content) == digest for digest, content in blobs.items())
    assert registry.model_of(manifest, blobs.__getitem__) == MODEL
    assert registry.params_bytes_of(manifest, blobs.__getitem__) == params_of(graph, head).astype("<f4").tobytes()
    encode(manifest)


def test_a_reset_head_starts_at_the_numbers_of_its_seed() -> None:
    manifest, blobs = registry.first_version(MODEL, "digits", "last-1", 11)
    expected = reset_params(head_of(tflite.read(MODEL), "last-1"), 11)
    assert registry.params_bytes_of(manifest, blobs.__getitem__) == expected.tobytes()


@pytest.mark.parametrize(
    ("model", "train"), [(b"TFL3 no model", "last-1"), (MODEL, "last-9"), (MODEL[:5000], "last-1")]
)
def test_what_cannot_be_trained_is_refused(model: bytes, train: str) -> None:
    with pytest.raises(ModelError):
        registry.first_version(model, "digits", train, None)


def test_an_export_has_the_layers_apart_and_together() -> None:
    manifest, blobs = registry.first_version(MODEL, "digits", "last-2", 3)
    data = np.load(io.BytesIO(registry.export(manifest, "last-2", blobs.__getitem__)))
    layers = head_of(tflite.read(MODEL), "last-2").layers
    parts = []
    for number, layer in enumerate(layers):
        assert data[f"weights_{number}"].shape == (layer.outputs, layer.inputs)
        parts += [data[f"weights_{number}"].ravel(), data[f"bias_{number}"]]
    assert np.concatenate(parts).tobytes() == data["params"].tobytes()
    assert int(data["model_version"]) == 1


def held_out(tmp_path: Path, **arrays: object) -> Path:
    path = tmp_path / "test.npz"
    np.savez(path, **arrays)
    return path


def test_the_score_is_that_of_these_parameters(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    path = held_out(tmp_path, x=(digits.images[:200, :, :, None] / 16).astype(np.float32), y=digits.target[:200])
    data = evaluate.load(path, MODEL, "last-2")
    manifest, blobs = registry.first_version(MODEL, "digits", "last-2", None)
    trained = data.score(registry.params_bytes_of(manifest, blobs.__getitem__))
    assert trained.count == 200
    assert trained.correct > 180
    manifest, blobs = registry.first_version(MODEL, "digits", "last-2", 5)
    forgot = data.score(registry.params_bytes_of(manifest, blobs.__getitem__))
    assert forgot.correct < 60
    assert forgot.loss > trained.loss


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
        evaluate.load(held_out(tmp_path, **arrays), MODEL, "last-2")


def test_held_out_data_that_is_not_there_or_no_npz_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(EvaluateError, match="cannot read"):
        evaluate.load(tmp_path / "none.npz", MODEL, "last-2")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(EvaluateError, match=r"is no \.npz"):
        evaluate.load(tmp_path / "text.npz", MODEL, "last-2")


def test_an_update_is_admitted_by_its_plan_and_refused_with_the_reason() -> None:
    vector = np.array([0.5, 0, -0.25, 0.1], np.float32)
    assert admit(sparse.compress(vector, 2, 4)[0], PLAN) is None
    assert "the plan allows 2" in str(admit(sparse.compress(vector, 3, 4)[0], PLAN))
    assert "this model trains 4" in str(admit(sparse.compress(vector[:3], 2, 4)[0], PLAN))
    assert admit(b"", PLAN) is not None
