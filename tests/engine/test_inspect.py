"""A model in numbers: what the CLI prints of it."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.models.inspect import dead_channels, inspect
from engine.models.tflite import read
from tests.engine.sketch import Sketch, residual_net

SHIPPED = Path(__file__).parents[2] / "firmware_sim" / "models"
ELSEWHERE = Path(os.environ.get("FLEET_MODELS", "/nowhere")) / "mlperf_tiny"
needs_elsewhere = pytest.mark.skipif(
    not ELSEWHERE.is_dir(), reason="FLEET_MODELS names no folder with the MLPerf Tiny models in mlperf_tiny"
)


@needs_elsewhere
@pytest.mark.parametrize(
    ("name", "macs", "num_params", "dead", "channels"),
    [
        ("kws_ref_model", 2_656_768, 22_604, 0, 588),
        ("pretrainedResnet_quant", 12_501_632, 77_706, 0, 346),
        ("pretrainedResnet_large_int8", 76_473_920, 480_330, 31, 850),
        ("vww_96_int8", 7_489_664, 210_850, 974, 2736 + 2),  # the dense layer has two
        ("ad01_int8", 264_192, 265_864, 0, 1672),
        ("ad01_fp32", 264_192, 265_864, 0, 1672),
        ("str_ww_ref_model", 826_368, 46_883, 0, 843),
    ],
)
def test_a_real_model_is_told_in_its_known_numbers(name, macs, num_params, dead, channels):
    facts = inspect(read((ELSEWHERE / f"{name}.tflite").read_bytes()), 16)
    assert (facts.macs, facts.num_params, facts.num_dead, facts.num_channels) == (macs, num_params, dead, channels)
    assert not [cut.refusal for cut in facts.cuts if cut.refusal]


def test_a_layer_is_told_as_it_is_drawn():
    graph = residual_net()
    facts = inspect(graph, 16)
    assert facts.inputs == (("t0", "int8", (1, 6, 6, 3)),)
    assert facts.outputs[0][1:] == ("int8", (1, 4))
    assert facts.kinds == {
        "CONV_2D": 4, "ADD": 1, "DEPTHWISE_CONV_2D": 1, "MEAN": 1, "FULLY_CONNECTED": 1, "SOFTMAX": 1
    }  # fmt: skip
    first, pair = facts.layers[0], facts.layers[3]
    weights = graph.tensors[graph.operators[0].inputs[1]]
    assert (first.operator, first.kind, first.activation, first.dtype) == (0, "CONV_2D", "RELU", "int8")
    assert (first.shape, first.weights, first.num_params) == ((1, 6, 6, 8), (8, 3, 3, 3), 8 * 27 + 8)
    assert (first.macs, pair.macs) == (36 * 8 * 27, 36 * 8 * 9)
    assert (first.scale_min, first.scale_max) == (weights.scale.min(), weights.scale.max())
    assert first.scale_median == np.median(weights.scale)
    assert first.saturated_share == (np.abs(weights.data.astype(int)) == 127).mean()
    assert facts.macs == sum(layer.macs for layer in facts.layers)
    of_floats = inspect(residual_net("float32"), 16).layers[0]
    assert (of_floats.scale_min, of_floats.scale_max, of_floats.saturated_share) == (None, None, None)


@pytest.mark.parametrize(("operator", "axis"), [(0, 0), (4, 3), (7, 0)])
def test_a_channel_is_dead_by_its_scale_or_by_its_weights(operator, axis):
    graph = residual_net()
    weights = graph.tensors[graph.operators[operator].inputs[1]]
    scale, data = weights.scale.copy(), np.moveaxis(weights.data.copy(), axis, 0)
    scale[1], data[3] = 9e-7, 0
    changed = replace(weights, scale=scale, data=np.ascontiguousarray(np.moveaxis(data, 0, axis)))
    graph = replace(graph, tensors=tuple(changed if t is weights else t for t in graph.tensors))
    assert np.flatnonzero(dead_channels(graph, graph.operators[operator])).tolist() == [1, 3]
    assert inspect(graph, 1).num_dead == 2


def test_a_cut_is_offered_once_for_each_set_of_layers_with_what_it_costs():
    asked = []

    def memory_of(graph, suffix, batch):
        asked.append((suffix.train, batch))
        return 1000 * batch + suffix.cut

    facts = inspect(residual_net(), 8, memory_of)
    assert [(cut.cut.operator, cut.train) for cut in facts.cuts] == [
        (0, "last-6"), (1, "last-5"), (4, "last-3"), (5, "last-2"), (7, "last-1")
    ]  # fmt: skip
    assert asked == [(cut.train, 8) for cut in facts.cuts]
    assert [cut.memory_bytes for cut in facts.cuts] == [8000, 8001, 8004, 8005, 8007]
    assert facts.cuts[-1].num_params == 16 * 4 + 4
    assert all(cut.memory_bytes is None for cut in inspect(residual_net(), 8).cuts)


def test_what_cannot_train_is_told_and_the_rest_still_counted():
    sketch = Sketch((1, 4, 4, 3))
    x = sketch.same("HARD_SWISH", sketch.conv(sketch.entering, 8))
    facts = inspect(sketch.graph(sketch.dense(sketch.mean(x), 4)), 16)
    refusals = {cut.train: cut.refusal for cut in facts.cuts}
    assert refusals["last-1"] == ""
    assert "HARD_SWISH" in refusals["last-2"]
    assert len(facts.layers) == 2


@pytest.mark.parametrize("name", ["digits", "wrist"])
def test_the_shipped_models_are_healthy(name):
    facts = inspect(read((SHIPPED / f"{name}.tflite").read_bytes()), 16)
    assert not [cut.refusal for cut in facts.cuts if cut.refusal]
    assert facts.num_dead == 0
    for layer in facts.layers:  # each channel's scale is its largest weight over 127
        assert layer.num_channels / math.prod(layer.weights) <= layer.saturated_share <= 0.35
