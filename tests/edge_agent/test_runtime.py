"""What a runtime can run: the table is asked of the runtime itself, and a version beyond it is not fetched."""

from __future__ import annotations

from importlib import metadata

import msgspec
import numpy as np
import pytest

from edge_agent.effects import OpenFile
from edge_agent.runtime import NEWEST, installed_runtime, refusal
from engine.models import interpreter
from engine.models.graph import ModelError
from engine.models.tflite import KINDS
from tests.edge_agent.stage import Stage, manifest, said
from tests.engine import tiny_tflite
from wire.messages import Operator

RUNTIME = "tflite-runtime 2.14.0"
FITS = (Operator("CONV_2D", 6), Operator("FULLY_CONNECTED", 9), Operator("CUSTOM", 1), Operator("OP_200", 3))
TOO_NEW = (Operator("CONV_2D", 3), Operator("FULLY_CONNECTED", 12))
WHY = (
    "model version 1 needs FULLY_CONNECTED version 12, tflite-runtime 2.14.0 has 9: export the model for an older "
    "runtime, or install a newer one"
)


def loads(code: int, version: int) -> bool:
    """Whether the runtime takes a file that names this operator beside a RELU, and does not use it."""
    tensors = [tiny_tflite._tensor(index, tiny_tflite.Array((1, 4), "float32"), 0) for index in range(2)]
    relu = {0: ("I", 0), 1: np.array([0], "<i4"), 2: np.array([1], "<i4")}
    subgraph = {0: tensors, 1: np.array([0], "<i4"), 2: np.array([1], "<i4"), 3: [relu]}
    codes = [{0: ("b", min(n, 127)), 2: ("i", v), 3: ("i", n)} for n, v in ((19, 1), (code, version))]
    try:
        interpreter.open_model(tiny_tflite._Writer().file({0: ("I", 3), 1: codes, 2: [subgraph], 4: [{}]}), batch=1)
    except ModelError as error:
        return "Didn't find op" not in str(error)
    return True


@pytest.mark.skipif(installed_runtime() != RUNTIME, reason=f"asks {RUNTIME}")
def test_the_table_is_what_the_runtime_says_of_itself():
    found = {}
    for code, kind in KINDS.items():
        has = [version for version in range(1, 30) if kind != "CUSTOM" and loads(code, version)]
        assert has == list(range(1, len(has) + 1))
        if has:
            found[kind] = len(has)
    assert found == NEWEST[RUNTIME]
    assert set(KINDS.values()) - set(found) == {"CUSTOM"}


def test_the_runtime_is_the_one_that_the_engine_takes(monkeypatch):
    assert installed_runtime().partition(" ")[0].replace("-", "_") == interpreter.runtime_name()

    def none(_name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", none)
    assert installed_runtime() == ""


def test_a_version_is_refused_for_what_the_runtime_is_known_to_lack_and_for_nothing_else():
    told = msgspec.structs.replace(manifest(), operators=TOO_NEW)
    assert refusal(told, RUNTIME) == WHY
    assert refusal(told, "ai-edge-litert 2.1.0") is None
    assert refusal(told, "") is None
    assert refusal(msgspec.structs.replace(manifest(), operators=FITS), RUNTIME) is None
    assert refusal(manifest(), RUNTIME) is None  # its coordinator is older than the field


def staged(runtime: str) -> Stage:
    stage = Stage()
    stage.agent._id = msgspec.structs.replace(stage.agent._id, runtime=runtime)
    return stage.ready()


def test_a_device_that_cannot_run_a_version_fetches_nothing_of_it_and_says_why():
    stage = staged(RUNTIME)
    stage.hear("manifest", msgspec.structs.replace(manifest(), operators=TOO_NEW))
    followed = stage.offer()
    assert not any(isinstance(effect, OpenFile) for effect in followed)
    assert (stage.agent.work.value, stage.agent.reason) == ("waiting", WHY)
    stage.now_ms = stage.agent._presence.due_ms
    assert said(stage.tick(), "telemetry")[0].reason == WHY
    stage.hear("manifest", manifest(2))
    assert any(isinstance(effect, OpenFile) for effect in stage.offer(2, 2))


@pytest.mark.parametrize(("runtime", "operators"), [(RUNTIME, FITS), ("", TOO_NEW), ("ai-edge-litert 2.1.0", TOO_NEW)])
def test_any_other_fetches_it(runtime, operators):
    stage = staged(runtime)
    stage.hear("manifest", msgspec.structs.replace(manifest(), operators=operators))
    assert any(isinstance(effect, OpenFile) for effect in stage.offer())
