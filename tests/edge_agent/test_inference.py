"""The version in use, loaded again when another is: the same answers as the engine's, and none lost on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from edge_agent import inference, slots
from edge_agent.disk import Directory
from edge_agent.effects import Durable, Job
from edge_agent.flash import Flash, Model, file_name, replace_file, residual_name
from edge_agent.inference import InUse
from edge_agent.residuals import Left, dump
from edge_agent.trainer import Base, train
from engine import frozen
from engine.frame import frame_of
from engine.models import tflite
from engine.models.cuts import answer_of
from engine.models.interpreter import open_model
from tests.edge_agent.test_own import digits  # noqa: F401
from tests.engine.models_at_hand import ELSEWHERE, needs_elsewhere
from tests.real.scripted_coordinator import FRAME, MODEL, PARAMS, QUICK, SIZE, moved
from wire import chunks

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (8, 8, 1)
NEXT = moved(range(0, SIZE, 7), 5)


@pytest.fixture
def root(tmp_path) -> Path:
    Flash(Directory(tmp_path))
    return tmp_path


def put(root: Path, version: int, params: bytes, model: bytes = MODEL, train: str = "last-2") -> Model:
    """Lay a whole version on flash and take it into use."""
    store, files = Flash(Directory(root)), []
    for name, content in (("model.tflite", model), ("params.bin", params)):
        file = chunks.split(name, content)
        store.open_file(file)
        for index in range(len(file.chunk_digests)):
            store.write_chunk(file, index, chunks.chunk_at(content, file, index).data)
        store.seal_file(file)
        files.append(file)
    made = Model(version, train, tuple(files))
    slots.take(Directory(root), made)
    return made


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the test moves."""
    now = [100.0]
    monkeypatch.setattr(inference.time, "monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def labels_of(in_use: InUse, windows) -> list[int]:
    return [in_use.now().answer(window).label for window in windows]


def test_the_labels_are_the_engines_and_the_score_is_a_probability(root, digits):  # noqa: F811
    put(root, 1, PARAMS)
    in_use = InUse(root, SHAPE)
    whole = FRAME.file_with(PARAMS)
    assert labels_of(in_use, digits.windows) == frozen.predict(whole, tflite.read(whole), digits.windows).tolist()
    answers = [in_use.now().answer(window) for window in digits.windows]
    assert all(0.1 <= answer.score <= 1.0 for answer in answers)
    assert len({answer.score for answer in answers}) > 50
    assert in_use.reason == ""


def test_the_next_version_answers_as_soon_as_it_is_in_use_and_not_before_a_look(root, digits, clock):  # noqa: F811
    put(root, 1, PARAMS)
    in_use = InUse(root, SHAPE)
    first = in_use.now()
    put(root, 2, NEXT)
    assert in_use.now() is first
    clock(inference.LOOK_S)
    assert in_use.now().number == 2
    whole = FRAME.file_with(NEXT)
    assert labels_of(in_use, digits.windows) == frozen.predict(whole, tflite.read(whole), digits.windows).tolist()
    second = in_use.now()
    os.utime(root / "in_use")
    clock(inference.LOOK_S)
    assert in_use.now() is second  # the same need not be loaded again


def test_a_version_that_cannot_be_loaded_leaves_the_one_before_and_is_tried_again(root, clock):
    put(root, 1, PARAMS)
    in_use = InUse(root, SHAPE)
    first = in_use.now()
    damaged = put(root, 2, NEXT)
    params = root / file_name(damaged.files[1].digest)
    whole = params.read_bytes()
    params.write_bytes(whole[:-1])
    clock(inference.LOOK_S)
    assert in_use.now() is first
    assert "params.bin of version 2 is not whole on flash" in in_use.reason
    assert in_use.failures == 1
    params.write_bytes(whole)
    clock(inference.LOOK_S)
    assert in_use.now() is first
    clock(inference.AGAIN_S)
    assert in_use.now().number == 2
    assert (in_use.reason, in_use.failures) == ("", 1)


@pytest.mark.parametrize("model", [b"rubbish", MODEL[: len(MODEL) // 2], bytes(1000)])
def test_a_file_that_is_no_model_is_a_reason(root, clock, model):
    put(root, 1, PARAMS, model)
    in_use = InUse(root, SHAPE)
    assert in_use.now() is None
    assert in_use.reason


def test_without_a_version_and_for_other_windows_there_is_a_reason(root, clock):
    in_use = InUse(root, (80, 3))
    assert in_use.now() is None
    assert "fetched once the link is up" in in_use.reason
    put(root, 1, PARAMS)
    clock(inference.LOOK_S)
    assert in_use.now() is None
    assert "window = [80, 3], but the model takes [8, 8, 1]" in in_use.reason


def test_the_layers_of_its_own_answer_once_their_update_is_accepted(root, digits, clock):  # noqa: F811
    plan = msgspec.structs.replace(QUICK, keep_local=1, keep_count=FRAME.suffix.num_params, coding="rice")
    trained = train(Job("dev-1", 3, 1, plan, (), 0), Base(MODEL, PARAMS), digits, None, 0.3)
    put(root, 1, PARAMS)
    in_use = InUse(root, SHAPE)
    before = np.mean(np.array(labels_of(in_use, digits.windows)) == digits.labels)
    replace_file(Directory(root), residual_name(3), dump(Left(trained.owed, trained.control, trained.own), 0))
    clock(inference.LOOK_S)
    assert np.mean(np.array(labels_of(in_use, digits.windows)) == digits.labels) == before
    Flash(Directory(root)).save(Durable(residual_round_id=3))
    clock(inference.LOOK_S)
    assert np.mean(np.array(labels_of(in_use, digits.windows)) == digits.labels) > before + 0.15


@needs_elsewhere
def test_a_model_that_gives_its_window_back_answers_with_the_error_and_no_label(root):
    model = (ELSEWHERE / "ad01_int8.tflite").read_bytes()
    put(root, 1, frame_of(model, "last-1").own(), model, "last-1")
    in_use = InUse(root, (640,))
    usual = np.load(ELSEWHERE / "ad_sample_f32_frames128.npy")[:20].astype(np.float32)
    window = usual.reshape(-1, 640)[0]
    given = open_model(model, 1)(window[None])[0].astype(np.float64)
    leaving = tflite.read(model).tensors[answer_of(tflite.read(model))]
    expected = np.mean((window - (given - leaving.zero_point[0]) * leaving.scale[0]) ** 2)
    assert in_use.now().answer(window) == (None, pytest.approx(expected, rel=1e-5))
    assert in_use.now().answer(window[::-1].copy()).score > 2 * expected


def test_no_kernel_and_no_compiler_is_loaded(root):
    put(root, 1, PARAMS)
    code = (
        "import sys, numpy, pathlib; from edge_agent.inference import InUse; "
        f"print(InUse(pathlib.Path({str(root)!r}), (8, 8, 1)).now().answer(numpy.zeros((8, 8, 1), 'f4')).label); "
        "print(*sorted({'numba', 'llvmlite', 'engine.kernels._jit', 'paho', 'cryptography'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    label, loaded = done.stdout.split("\n")[:2]
    assert label.isdigit()
    assert loaded == ""
