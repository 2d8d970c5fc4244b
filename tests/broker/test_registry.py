"""Model versions: the first one, its export, its score, and the gate for updates to it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker import evaluate, registry
from broker.admission import gate
from broker.evaluate import EvaluateError
from engine import frozen, master
from engine.codec import payload
from engine.codec.update import Update
from engine.frame import Frame, frame_of
from engine.models import interpreter, tflite
from engine.models.graph import ModelError
from engine.models.scheme import load_params, params_of, reset_params, resolve
from engine.rescale import grown
from tests.broker.fleet import PLAN
from tests.engine.graph_tflite import write
from tests.engine.sketch import Sketch, residual_net
from tests.engine.test_master import frame
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
    assert (manifest.scale_epoch, manifest.base_version) == (0, 1)
    assert [file.name for file in manifest.files] == [registry.MODEL_FILE, PARAMS_FILE]
    assert all(digest_of(content) == digest for digest, content in blobs.items())
    assert registry.model_of(manifest, blobs.__getitem__) == MODEL
    params = load_params(FRAME.suffix, registry.params_bytes_of(manifest, blobs.__getitem__))
    assert np.array_equal(params, np.clip(params_of(FRAME.graph, FRAME.suffix), -FRAME.limit, FRAME.limit))
    kinds = {"CONV_2D": 3, "FULLY_CONNECTED": 4, "MAX_POOL_2D": 2, "MEAN": 2, "SOFTMAX": 2}
    assert {operator.kind: operator.version for operator in manifest.operators} == kinds
    assert not any(remainder)  # nothing is owed to rounding yet
    encode(manifest)


@pytest.mark.parametrize("seed", [None, 11])
@pytest.mark.parametrize("model", [MODEL, write(residual_net("float32"))], ids=["int8", "float32"])
def test_the_base_file_holds_the_published_numbers_of_the_first_version(model: bytes, seed: int | None) -> None:
    manifest, blobs, _ = registry.first_version(model, "toy", "last-2", seed)
    base = registry.model_of(manifest, blobs.__getitem__)
    assert frame_of(base, "last-2").own() == registry.params_bytes_of(manifest, blobs.__getitem__)
    assert registry.export(manifest, "last-2", blobs.__getitem__) == base  # as before, so what leaves is the same file
    assert frame_of(model, "last-2").file_with(frame_of(base, "last-2").own()) == base
    assert manifest.base_version == 1


def test_fresh_numbers_are_given_room_before_anyone_has_the_file() -> None:
    """Rescaled after the first round only, every device would fetch the base file twice."""
    full = frame_of(MODEL, "full")
    fresh = master.first(full, reset_params(full.graph, full.suffix, 1))
    assert grown(full, fresh) is not None
    manifest, blobs, remainder = registry.first_version(MODEL, "digits", "full", 1)
    base = frame_of(registry.model_of(manifest, blobs.__getitem__), "full")
    numbers = master.Numbers(registry.params_bytes_of(manifest, blobs.__getitem__), remainder)
    assert grown(base, numbers) is None
    assert base.own() == numbers.published
    before, now = (master.read(f, n) * f.scale.astype(np.float64) for f, n in ((full, fresh), (base, numbers)))
    np.testing.assert_allclose(now, before, rtol=1e-6)
    assert (manifest.scale_epoch, manifest.base_version) == (0, 1)


def test_a_base_file_in_which_fresh_numbers_would_choose_other_channels_stays_as_it_is(monkeypatch) -> None:
    """Whose channels are the largest is asked of the file; what a version trains must not change with its numbers."""
    monkeypatch.setattr(Frame, "holding", lambda _frame, _published: None)
    manifest, blobs, _ = registry.first_version(MODEL, "digits", "last-2", 11)
    assert registry.model_of(manifest, blobs.__getitem__) == MODEL
    assert manifest.base_version == 0


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


def integers(*units: int) -> Update:
    at = np.flatnonzero(units)
    return Update("int8", len(units), at.astype(np.uint32), np.array(units, np.int32)[at])


def reals(*values: float) -> Update:
    at = np.flatnonzero(values)
    return Update("float32", len(values), at.astype(np.uint32), np.array(values, np.float32)[at])


def coded(update: Update, value_bits: int, coding: str = "rice") -> bytes:
    return payload.encode(update, [(1, update.size)], value_bits=value_bits, coding=coding).payload


def test_an_update_is_admitted_by_its_plan_and_refused_with_the_reason() -> None:
    admit = gate(lambda _plan: frame(4, 0, lane="float32"))
    assert admit(coded(reals(0.5, 0, -0.25, 0), 4), PLAN) is None
    assert "the plan allows 2" in str(admit(coded(reals(0.5, 0, -0.25, 0.1), 4), PLAN))
    assert "this model trains 4" in str(admit(coded(reals(0.5, 0, -0.25), 4), PLAN))
    assert "belongs to another plan" in str(admit(coded(integers(1, 0, -254, 0), 0), PLAN))
    assert admit(b"", PLAN) is not None


@pytest.mark.parametrize("value_bits", [0, 1, 4])
def test_an_update_to_an_int8_model_is_whole_units_rounded_or_not(value_bits: int) -> None:
    admit = gate(lambda _plan: frame(4, 0))
    plan = msgspec.structs.replace(PLAN, value_bits=value_bits)
    some = coded(integers(1, 0, 0, -254), value_bits)
    assert admit(some, plan) is None
    assert "belongs to another plan" in str(admit(coded(reals(0.5, 0, -0.25, 0), 4), plan))
    assert "the plan allows 1" in str(admit(some, msgspec.structs.replace(plan, keep_count=1)))


def test_a_plan_that_is_cheap_to_read_admits_no_update_that_is_not() -> None:
    admit = gate(lambda _plan: FRAME)
    size = FRAME.suffix.num_params
    units = np.zeros(size, np.int32)
    units[3 * FRAME.shapes[0][1] :][:300] = 1  # a few whole rows: what the context coder is for
    payloads_ = {
        coding: payload.encode(integers(*units), FRAME.shapes, value_bits=0, coding=coding).payload
        for coding in ("rice", "context")
    }
    assert len(payloads_["context"]) < len(payloads_["rice"])
    cheap = msgspec.structs.replace(PLAN, num_params=size, keep_count=300, value_bits=0, coding="rice")
    assert admit(payloads_["rice"], cheap) is None
    assert "context-coded" in str(admit(payloads_["context"], cheap))
    short = msgspec.structs.replace(cheap, coding="context")
    assert admit(payloads_["rice"], short) is admit(payloads_["context"], short) is None


def test_the_frame_of_an_update_is_that_of_its_plan() -> None:
    asked = []
    admit = gate(lambda plan: asked.append(plan.train) or frame(4, 0))
    admit(coded(integers(1, 0, 0, 2), 0), msgspec.structs.replace(PLAN, train="bias-1"))
    assert asked == ["bias-1"]


def test_the_published_floats_of_the_first_version_are_rounded_and_the_master_is_not() -> None:
    manifest, blobs, remainder = registry.first_version(write(residual_net("float32")), "toy", "last-2", None)
    model = frame_of(write(residual_net("float32")), "last-2")
    own = params_of(model.graph, model.suffix)
    published = load_params(model.suffix, registry.params_bytes_of(manifest, blobs.__getitem__))
    assert np.array_equal(np.frombuffer(remainder, "<f4"), own)
    assert not (published.view(np.uint32) & 0xFFFF).any()
    assert np.abs(published - own).max() <= np.abs(own).max() * 2**-8
    assert not np.array_equal(published, own)
