"""What trains: cuts, blocks, layers, channels and params, on drawn models and on real ones."""

import hashlib
import math
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from engine.models.cuts import answer_of, articulations, blocks_of, cuts, layers_of, macs_of
from engine.models.graph import ABSENT, ModelError
from engine.models.scheme import (
    constants_of,
    dump_params,
    load_params,
    params_of,
    reset_params,
    resolve,
    scales_of,
    shapes_of,
    units_of,
)
from engine.models.shapes import check_shapes
from engine.models.tflite import patch, read
from tests.engine.sketch import Sketch, residual_net

SHIPPED = Path(__file__).parents[2] / "firmware_sim" / "models"
ELSEWHERE = Path(os.environ.get("FLEET_MODELS", "/nowhere")) / "mlperf_tiny"
needs_elsewhere = pytest.mark.skipif(
    not ELSEWHERE.is_dir(), reason="FLEET_MODELS names no folder with the MLPerf Tiny models in mlperf_tiny"
)
MLPERF = [
    "ad01_int8",
    "ad01_fp32",
    "kws_ref_model",
    "pretrainedResnet",
    "pretrainedResnet_large_int8",
    "pretrainedResnet_quant",
    "str_ww_ref_model",
    "vww_96_int8",
]
MODELS = [
    SHIPPED / "digits.tflite",
    SHIPPED / "wrist.tflite",
    *(pytest.param(ELSEWHERE / f"{name}.tflite", marks=needs_elsewhere) for name in MLPERF),
]
each_model = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)


@pytest.mark.parametrize(
    ("train", "cut", "layers"),
    [
        ("last-1", 7, [7]),
        ("last-2", 5, [5, 7]),
        ("last-3", 4, [4, 5, 7]),
        ("last-4", 1, [2, 4, 5, 7]),
        ("bias-4", 1, [2, 4, 5, 7]),
        ("blocks-1", 4, [4, 5, 7]),
        ("blocks-2", 1, [1, 2, 4, 5, 7]),
        ("blocks-3", 0, [0, 1, 2, 4, 5, 7]),
        ("full", 0, [0, 1, 2, 4, 5, 7]),
        ("2:b", 1, [2]),
        ("7:w,5:w/4", 5, [5, 7]),
    ],
)
def test_the_cut_is_the_last_place_with_one_live_tensor_before_all_that_trains(train, cut, layers):
    graph = residual_net()
    suffix = resolve(graph, train)
    assert (suffix.cut, [layer.operator for layer in suffix.layers], suffix.train) == (cut, layers, train)
    assert suffix.entering == graph.operators[cut].inputs[0]
    assert suffix.answer == graph.operators[7].outputs[0]
    assert (suffix.lane, resolve(residual_net("float32"), train).lane) == ("int8", "float32")


def test_blocks_are_residual_units_depthwise_pairs_and_single_layers():
    assert blocks_of(residual_net()) == ((0,), (1, 2), (4, 5, 7))
    sketch = Sketch((1, 16))
    x = sketch.dense(sketch.dense(sketch.entering, 8, "RELU"), 8, "RELU")
    assert blocks_of(sketch.graph(sketch.dense(x, 16))) == ((0,), (1,), (2,))
    sketch = Sketch((1, 4, 4, 3))
    x = sketch.depthwise(sketch.conv(sketch.depthwise(sketch.entering), 8, size=3))
    x = sketch.dense(sketch.mean(sketch.conv(x, 8, size=1)), 5)
    assert blocks_of(sketch.graph(sketch.dense(x, 5))) == ((0,), (1,), (2, 3), (5,), (6,))


@pytest.mark.parametrize(
    ("name", "blocks_2", "cut"),
    [
        ("kws_ref_model", [5, 6, 7, 8, 11], 5),
        ("pretrainedResnet_quant", [4, 5, 6, 8, 9, 10, 14], 4),
        ("pretrainedResnet_large_int8", [4, 5, 6, 8, 9, 10, 14], 4),
        ("str_ww_ref_model", [4, 5, 6, 7, 9], 4),
        ("vww_96_int8", [23, 24, 25, 26, 29], 23),
        ("ad01_int8", [8, 9], 8),
    ],
)
@needs_elsewhere
def test_two_blocks_of_a_real_model_are_what_people_mean(name, blocks_2, cut):
    suffix = resolve(read((ELSEWHERE / f"{name}.tflite").read_bytes()), "blocks-2")
    assert ([layer.operator for layer in suffix.layers], suffix.cut) == (blocks_2, cut)


@needs_elsewhere
def test_a_real_model_costs_what_is_published():
    expected = {"kws_ref_model": 2_656_768, "pretrainedResnet_quant": 12_501_632, "vww_96_int8": 7_489_664}
    for name, macs in expected.items():
        graph = read((ELSEWHERE / f"{name}.tflite").read_bytes())
        assert sum(macs_of(graph, operator) for operator in graph.operators) == macs
        first, *_, last = cuts(graph)
        assert (first.operator, first.frozen_macs, first.suffix_macs) == (0, 0, macs)
        assert last.operator == layers_of(graph)[-1]
        assert last.frozen_macs + last.suffix_macs == macs
    two_blocks = next(
        cut for cut in cuts(read((ELSEWHERE / "pretrainedResnet_quant.tflite").read_bytes())) if cut.operator == 4
    )
    # what operators 4, 5, 8, 9 and 14 take, and a bit for each entry that 5, 6, 9, 10 and 11 make and no layer takes
    assert two_blocks.saved_bytes == 16384 + 8192 + 8192 + 4096 + 64 + (8192 * 2 + 4096 * 3) // 8
    assert two_blocks.entering_bytes == 16384


def test_shape_arithmetic_before_a_reshape_is_looked_through():
    sketch = Sketch((1, 4, 4, 3))
    x = sketch.conv(sketch.entering, 8)
    shape = sketch.operator("SHAPE", [x], (4,))
    part = sketch.operator("STRIDED_SLICE", [shape], ())
    wanted = sketch.operator("PACK", [part], (2,))
    flat = sketch.operator("RESHAPE", [x, wanted], (1, 128))
    graph = sketch.graph(sketch.dense(flat, 4))
    assert [place for place, _ in articulations(graph)] == [0, 4, 5]
    assert resolve(graph, "full").cut == 0
    assert resolve(graph, "last-1").entering == flat


def test_the_answer_is_what_enters_a_final_softmax():
    sketch = Sketch((1, 8))
    logits = sketch.dense(sketch.entering, 4)
    out = sketch.same("DEQUANTIZE", sketch.same("QUANTIZE", sketch.same("SOFTMAX", sketch.same("RESHAPE", logits))))
    assert answer_of(sketch.graph(out)) == logits
    assert answer_of(sketch.graph(logits)) == logits
    assert layers_of(sketch.graph(out)) == (0,)
    twice = sketch.same("SOFTMAX", sketch.same("SOFTMAX", logits))
    assert answer_of(sketch.graph(twice)) == sketch.operators[-2].outputs[0]


@each_model
@pytest.mark.parametrize("train", ["last-1", "last-2", "last-3", "blocks-1", "blocks-2", "full"])
def test_params_written_back_are_the_files_own_constants(path, train):
    graph = read(path.read_bytes())
    suffix = resolve(graph, train)
    params = params_of(graph, suffix)
    assert (params.shape, params.dtype) == ((suffix.num_params,), "int32" if suffix.lane == "int8" else "float32")
    assert len(scales_of(graph, suffix)) == len(units_of(graph, suffix)) == suffix.num_params
    shapes = shapes_of(graph, suffix)
    changing = [t for layer in suffix.layers for t in (layer.weights, layer.bias) if t != ABSENT]
    assert [rows * columns for rows, columns in shapes] == [graph.tensors[t].data.size for t in changing]
    assert np.array_equal(load_params(suffix, dump_params(suffix, params)), params)
    changed = constants_of(graph, suffix, params)
    assert set(changed) == {t for layer in suffix.layers for t in (layer.weights, layer.bias)} - {ABSENT}
    for index, array in changed.items():
        assert array.dtype == graph.tensors[index].data.dtype
        assert np.array_equal(array, graph.tensors[index].data)


@each_model
def test_every_model_trains_whole_and_from_every_cut(path):
    graph = read(path.read_bytes())
    for place in cuts(graph):
        first = next(layer for layer in layers_of(graph) if layer >= place.operator)
        suffix = resolve(graph, ",".join(f"{layer}:w" for layer in layers_of(graph) if layer >= first))
        assert suffix.cut >= place.operator
        assert [layer.first for layer in suffix.layers] == [
            sum(layer.num_weights + layer.num_bias for layer in suffix.layers[:at]) for at in range(len(suffix.layers))
        ]


def largest(data, scale, axis, count):
    """The naive twin: exact fractions, one entry after another."""
    norms = []
    for channel in range(data.shape[-1]):
        total = Fraction(0)
        for where in np.ndindex(*data.shape[:-1]):
            position = (*where, channel)
            step = Fraction(float(scale[position[axis]] if len(scale) > 1 else scale[0])) if len(scale) else 1
            total += (Fraction(float(data[position])) * step) ** 2
        norms.append(total)
    return tuple(sorted(sorted(range(len(norms)), key=lambda channel: (-norms[channel], channel))[:count]))


@pytest.mark.parametrize("lane", ["int8", "float32"])
@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_a_share_takes_the_channels_with_the_largest_real_norm(lane, divisor):
    graph = residual_net(lane)
    suffix = resolve(graph, f"2:w/{divisor},4:w/{divisor},7:w/{divisor}")
    for layer, operator, axis in zip(suffix.layers, (2, 4, 7), (0, 3, 0), strict=True):
        weights = graph.tensors[graph.operators[operator].inputs[1]]
        count = weights.shape[-1] // divisor
        assert layer.channels == largest(weights.data, weights.scale, axis, count)
        assert layer.num_weights == math.prod(weights.shape[:-1]) * count
        # rows are output channels, but of a depthwise layer what is left of the columns, its channels
        rest = layer.num_weights // count if axis == 3 else weights.shape[0]
        table = (rest, layer.num_weights // rest)
        assert table in shapes_of(graph, suffix)
        assert axis != 3 or table[1] == count


def test_equal_channels_are_taken_from_the_lowest_and_never_none():
    graph = residual_net()
    operator = graph.operators[7]
    weights = graph.tensors[operator.inputs[1]]
    even = replace(weights, data=np.ones_like(weights.data))
    flat = replace(graph, tensors=tuple(even if t.index == even.index else t for t in graph.tensors))
    assert resolve(flat, "7:w/8").layers[0].channels == (0, 1)
    assert resolve(flat, "0:w/8").layers[0].channels is not None
    assert [len(resolve(flat, f"0:{share}").layers[0].channels) for share in ("w/8", "w/2", "w")] == [1, 1, 3]


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_changed_params_land_where_they_came_from_and_nowhere_else(data):
    graph = residual_net(data.draw(st.sampled_from(["int8", "float32"])))
    parts = st.sampled_from(["b", "w", "w/2", "w/4", "w/8"])
    wishes = data.draw(st.dictionaries(st.sampled_from([0, 1, 2, 4, 5, 7]), parts, min_size=1))
    suffix = resolve(graph, ",".join(f"{index}:{part}" for index, part in wishes.items()))
    params = params_of(graph, suffix)
    at = data.draw(st.integers(0, suffix.num_params - 1))
    params[at] = 5 if params[at] != 5 else 6
    changed = constants_of(graph, suffix, params)
    differing = [
        (index, where)
        for index, array in changed.items()
        for where in np.argwhere(array != graph.tensors[index].data).tolist()
    ]
    layer = next(layer for layer in reversed(suffix.layers) if layer.first <= at)
    is_bias = at >= layer.first + layer.num_weights
    ((index, where),) = differing
    assert index == (layer.bias if is_bias else layer.weights)
    if is_bias:
        assert where == [at - layer.first - layer.num_weights]
    else:
        shape = (*graph.tensors[index].shape[:-1], len(layer.channels))
        *rest, channel = (int(n) for n in np.unravel_index(at - layer.first, shape))
        assert where == [*rest, layer.channels[channel]]
    again = resolve(
        replace(
            graph, tensors=tuple(replace(t, data=changed[t.index]) if t.index in changed else t for t in graph.tensors)
        ),
        suffix.train,
    )
    assert again.num_params == suffix.num_params
    assert np.array_equal(load_params(suffix, dump_params(suffix, params)), params)


def test_a_step_is_as_large_as_the_file_says():
    graph = residual_net()
    suffix = resolve(graph, "4:w/2,5:w,7:w/2")
    scales, units = scales_of(graph, suffix), units_of(graph, suffix)
    for layer in suffix.layers:
        operator = graph.operators[layer.operator]
        weights = graph.tensors[operator.inputs[1]]
        is_depthwise = operator.kind == "DEPTHWISE_CONV_2D"
        for number in range(layer.num_weights):
            shape = (*weights.shape[:-1], len(layer.channels))
            first, *_, channel = np.unravel_index(number, shape)
            output = layer.channels[channel] if is_depthwise else first
            assert scales[layer.first + number] == weights.scale[output]
        behind = layer.first + layer.num_weights
        expected = weights.scale * np.float32(0.25)  # the input's scale
        assert np.array_equal(scales[behind : behind + layer.num_bias], expected)
        assert set(units[layer.first : behind].tolist()) == {1}
        assert set(units[behind : behind + layer.num_bias].tolist()) == {4}
    assert set(scales_of(residual_net("float32"), resolve(residual_net("float32"), "full")).tolist()) == {1.0}


@pytest.mark.parametrize(
    ("scale", "unit"),
    [(0.25, 4), (1 / 5.9, 4), (1 / 6.1, 8), (1 / 6, 8), (1.0, 1), (0.7, 1), (0.6, 2), (40.0, 1), (1e-9, 1 << 20)],
)
def test_a_unit_of_a_bias_is_the_nearest_power_of_two(scale, unit):
    sketch = Sketch((1, 8))
    sketch.tensors[sketch.entering] = replace(sketch.tensors[0], scale=np.array([scale], np.float64))
    graph = sketch.graph(sketch.dense(sketch.entering, 4))
    assert units_of(graph, resolve(graph, "last-1")).tolist() == [1] * 32 + [unit] * 4


def test_fresh_params_are_the_same_bits_everywhere_and_fit_their_layer():
    for lane in ("int8", "float32"):
        graph = residual_net(lane)
        suffix = resolve(graph, "full")
        fresh, again, other = (reset_params(graph, suffix, seed) for seed in (1, 1, 2))
        assert np.array_equal(fresh, again)
        assert not np.array_equal(fresh, other)
        real = fresh * scales_of(graph, suffix).astype(np.float64)
        for layer in suffix.layers:
            shape = graph.tensors[layer.weights].shape
            depthwise = graph.operators[layer.operator].kind == "DEPTHWISE_CONV_2D"
            fan_in = 9 if depthwise else math.prod(shape[1:])
            bound = math.sqrt((3 if graph.operators[layer.operator].activation == "NONE" else 6) / fan_in)
            span = slice(layer.first, layer.first + layer.num_weights)
            assert np.abs(real[span]).max() <= bound * 1.2
            if lane == "float32":
                assert abs(real[span].std() / (bound / math.sqrt(3)) - 1) < 0.25
            assert not fresh[span.stop : span.stop + layer.num_bias].any()
        assert fresh.dtype == ("int32" if lane == "int8" else "float32")
        assert lane == "float32" or np.abs(fresh).max() == 127


def test_a_dead_channel_starts_at_zero():
    graph = residual_net()
    weights = graph.tensors[graph.operators[7].inputs[1]]
    scale = weights.scale.copy()
    scale[2], scale[3] = 1e-9, 0
    dead = replace(graph, tensors=tuple(replace(t, scale=scale) if t is weights else t for t in graph.tensors))
    fresh = reset_params(dead, resolve(dead, "last-1"), 3)[:64].reshape(4, 16)
    assert fresh[:2].any(axis=1).all()
    assert not fresh[2:].any()


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ("all", "train is 'all', and 'all' says nothing; write last-2, bias-4, blocks-2, full"),
        ("last-0", "says nothing"),
        ("last-1000", "says nothing"),
        ("", "says nothing"),
        ("7:w,", "'' says nothing"),
        ("7:w/3", "'7:w/3' says nothing"),
        ("last-7", "has 6 layers with weights, and last-7 wants more; choose last-6"),
        ("blocks-4", "has 3 blocks, and blocks-4 wants more; choose blocks-3"),
        ("3:w", r"operator 3 \(ADD, 't\d+'\) is no layer with weights before the output; those are 0, 1, 2, 4, 5, 7"),
        ("99:w", "operator 99 is no layer"),
        ("7:w,7:b", "names operator 7 twice"),
    ],
)
def test_a_train_that_says_nothing_is_refused_with_a_sentence(train, sentence):
    with pytest.raises(ModelError, match=sentence):
        resolve(residual_net(), train)


def refused(graph, train, sentence):
    with pytest.raises(ModelError, match=sentence):
        resolve(graph, train)


def test_an_operator_without_a_gradient_is_named_with_what_to_choose_instead():
    sketch = Sketch((1, 4, 4, 3))
    x = sketch.same("HARD_SWISH", sketch.conv(sketch.entering, 8))
    x = sketch.dense(sketch.mean(sketch.conv(x, 8)), 4)
    graph = sketch.graph(x)
    refused(graph, "full", r"operator 1 \(HARD_SWISH, 't\d+'\) .* gradient is not known.*; or choose last-2")
    assert resolve(graph, "last-2").cut == 2
    x = sketch.same("TANH", sketch.dense(x, 4))
    early = sketch.graph(sketch.dense(x, 4))
    refused(early, "full", r"operator 6 \(TANH.*; or choose last-1")  # not operator 1, before which more could train
    refused(sketch.graph(x), "last-1", r"operator 6 \(TANH.*; or choose another model")


def test_what_cannot_train_is_refused_by_its_reason():
    def drawn(make, shape=(1, 4, 4, 4), lane="int8"):
        sketch = Sketch(shape, lane)
        x = make(sketch, sketch.conv(sketch.entering, 4) if len(shape) == 4 else sketch.entering)
        return sketch.graph(x)

    refused(drawn(lambda s, x: s.conv(x, 4, activation="TANH")), "full", "activation TANH")
    refused(drawn(lambda s, x: s.conv(x, 4, dilation_width=2)), "full", "is dilated")
    refused(
        drawn(lambda s, x: s.same("ADD", x, s.tensor((1, 4, 4, 4), np.ones((1, 4, 4, 4), np.int8)))), "full", "adds"
    )
    refused(drawn(lambda s, x: s.same("CONCATENATION", x, x, axis=1)), "full", "joins along axis 1")
    refused(drawn(lambda s, x: s.dense(x, 4, bias=False)), "bias-1", "has no bias of its own to train")
    refused(
        drawn(lambda s, x: s.operator("DEPTHWISE_CONV_2D", [x, *s.weights((1, 3, 3, 8), 3, 8)], (1, 4, 4, 8))),
        "full",
        "multiplier",
    )
    refused(
        drawn(lambda s, x: s.operator("MEAN", [x, s.tensor((1,), np.array([3]), "int32")], (1, 4, 4))),
        "full",
        "over other axes",
    )
    widths = np.array([[0, 0], [1, 1], [0, 0], [0, 2]])
    refused(
        drawn(lambda s, x: s.operator("PAD", [x, s.tensor((4, 2), widths, "int32")], (1, 6, 4, 6))),
        "full",
        "pads other",
    )
    rows = lambda s, x: s.operator("FULLY_CONNECTED", [x, *s.weights((4, 4), 0, 4)], (1, 3, 4))  # noqa: E731
    refused(drawn(rows, (1, 3, 4)), "full", "one row per window")
    refused(drawn(lambda s, x: s.dense(x, 4), (2, 4)), "full", "batch 1")
    refused(drawn(lambda s, x: s.dense(x, 4), (1, 1, 1, 2, 4)), "full", "at most 4 dimensions")
    refused(drawn(lambda s, x: s.same("ADD", x, s.tensor((1, 4, 4, 4)))), "full", "reads a tensor that nothing makes")
    refused(drawn(lambda s, x: s.operator("MUL", [x], (1, 4, 4, 4))), "full", "1 inputs and 1 outputs")


def test_a_shape_that_does_not_follow_is_refused_before_a_kernel_believes_it():
    graph = residual_net()
    for operator in graph.operators[:8]:
        leaving = graph.tensors[operator.outputs[0]]
        for shape in ((*leaving.shape[:-1], leaving.shape[-1] + 1), (1, 99, *leaving.shape[2:])):
            wrong = replace(leaving, shape=shape)
            tensors = tuple(wrong if t is leaving else t for t in graph.tensors)
            with pytest.raises(ModelError):
                resolve(replace(graph, tensors=tensors), "full")


@pytest.mark.parametrize(
    "slide",  # padding (0 SAME, 1 VALID), size, window, stride, dilation, and what comes out
    [(0, 10, 3, 1, 1, 10), (0, 10, 3, 3, 1, 4), (1, 10, 3, 1, 1, 8), (1, 10, 3, 2, 1, 4), (1, 9, 3, 2, 1, 4),
     (1, 10, 3, 1, 2, 6), (0, 10, 3, 2, 4, 5), (1, 3, 3, 1, 1, 1)],
)  # fmt: skip
def test_a_window_slides_as_far_as_padding_stride_and_dilation_let_it(slide):
    padding, size, window, stride, dilation, made = slide
    sketch = Sketch((1, size, 7, 2))
    options = {"padding": padding, "stride_height": stride, "stride_width": 1, "dilation_height": dilation}
    weights = sketch.weights((4, window, 1, 2), 0, 4)
    for height in (made - 1, made, made + 1):
        leaving = sketch.operator("CONV_2D", [sketch.entering, *weights], (1, height, 7, 4), **options)
        graph = sketch.graph(leaving)
        if height == made:
            check_shapes(graph, graph.operators[-1])
        else:
            with pytest.raises(ModelError, match="cannot make the shape"):
                check_shapes(graph, graph.operators[-1])


def test_the_channels_of_what_is_joined_add_up():
    sketch = Sketch((1, 4, 4, 3))
    for channels, fits in ((6, True), (7, False)):
        sketch.operator("CONCATENATION", [0, 0], (1, 4, 4, channels), axis=-1)
        graph = sketch.graph(sketch.operators[-1].outputs[0])
        if fits:
            check_shapes(graph, graph.operators[-1])
        else:
            with pytest.raises(ModelError, match="cannot make the shape"):
                check_shapes(graph, graph.operators[-1])


@each_model
def test_the_shapes_of_a_sound_file_follow_from_each_other(path):
    graph = read(path.read_bytes())
    for operator in graph.operators:
        check_shapes(graph, operator)


def test_weights_that_are_not_symmetric_or_of_two_layers_are_refused():
    graph = residual_net()
    weights = graph.tensors[graph.operators[7].inputs[1]]

    def changed(**fields):
        return replace(graph, tensors=tuple(replace(t, **fields) if t is weights else t for t in graph.tensors))

    refused(changed(zero_point=np.array([0, 0, 1, 0])), "last-1", "not symmetric")
    refused(changed(quantized_axis=1), "last-1", "not symmetric")
    refused(changed(dtype="float32", data=weights.data.astype(np.float32)), "last-1", "float32 weights and int8 activ")
    refused(changed(data=None), "full", "no constant weights")
    entering = graph.tensors[graph.operators[7].inputs[0]]
    far = replace(entering, zero_point=np.array([300]))
    far_graph = replace(graph, tensors=tuple(far if t is entering else t for t in graph.tensors))
    refused(far_graph, "last-1", "zero-point beyond int8")
    first, second = graph.operators[1], graph.operators[2]
    twin = replace(second, inputs=(second.inputs[0], first.inputs[1], second.inputs[2]))
    refused(replace(graph, operators=(*graph.operators[:2], twin, *graph.operators[3:])), "full", r"shares 't\d+' with")


def test_a_bias_whose_bytes_the_file_keeps_for_two_layers_stays_as_it_is():
    graph = residual_net()
    first, second = (graph.tensors[graph.operators[index].inputs[2]] for index in (1, 2))
    twin = replace(second, data=first.data)
    graph = replace(graph, tensors=tuple(twin if t is second else t for t in graph.tensors))
    suffix = resolve(graph, "blocks-2")
    assert [layer.num_bias for layer in suffix.layers] == [0, 0, 8, 16, 4]
    assert [layer.bias == ABSENT for layer in suffix.layers] == [True, True, False, False, False]
    assert not {first.index, second.index} & set(constants_of(graph, suffix, params_of(graph, suffix)))
    refused(graph, "2:b", "no bias of its own")
    weights = graph.tensors[graph.operators[1].inputs[1]]
    other = replace(graph.tensors[graph.operators[2].inputs[1]], data=weights.data)
    refused(
        replace(graph, tensors=tuple(other if t.index == other.index else t for t in graph.tensors)),
        "2:w",
        "bytes the file keeps for another layer too",
    )


@needs_elsewhere
def test_the_wake_words_biases_that_are_one_buffer_do_not_train():
    data = (ELSEWHERE / "str_ww_ref_model.tflite").read_bytes()
    graph = read(data)
    suffix = resolve(graph, "full")
    assert [layer.operator for layer in suffix.layers if layer.bias == ABSENT] == [2, 4, 6]
    params = params_of(graph, suffix)
    assert read(patch(data, graph, constants_of(graph, suffix, params - np.sign(params)))).operators == graph.operators


def test_a_model_with_two_inputs_trains_only_where_one_tensor_is_left():
    sketch = Sketch((1, 8))
    other = sketch.tensor((1, 8))
    x = sketch.same("ADD", sketch.dense(sketch.entering, 8), sketch.dense(other, 8))
    graph = replace(sketch.graph(sketch.dense(x, 4)), inputs=(sketch.entering, other))
    assert resolve(graph, "last-1").cut == 3
    refused(graph, "last-2", "more than one tensor is live at every place before it")
    refused(replace(graph, outputs=(0, 1)), "last-1", "has 2 outputs")
    refused(replace(graph, outputs=(0,)), "last-1", "no operator of the model makes its output")


def test_params_of_another_length_or_no_int8_are_refused():
    graph = residual_net()
    suffix = resolve(graph, "last-2")
    params = params_of(graph, suffix)
    for wrong in (params[:-1], np.append(params, 0)):
        with pytest.raises(ModelError, match="do not fit last-2"):
            constants_of(graph, suffix, wrong)
        with pytest.raises(ModelError, match="do not fit last-2"):
            dump_params(suffix, wrong)
    with pytest.raises(ModelError, match=r"params of \d+ bytes do not fit last-2, which has"):
        load_params(suffix, dump_params(suffix, params)[:-1])
    params[3] = 200
    with pytest.raises(ModelError, match="operator 5 are no int8 weights"):
        constants_of(graph, suffix, params)


def test_fresh_params_of_a_shipped_model_have_these_bits():
    graph = read((SHIPPED / "digits.tflite").read_bytes())
    suffix = resolve(graph, "last-2")
    digest = hashlib.sha256(dump_params(suffix, reset_params(graph, suffix, 7))).hexdigest()
    assert digest == "82ad0f0174229192b53cd72228ad5f6f92b48cd1d2198405ae556928aed166bc"


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_a_graph_that_is_bent_anyhow_resolves_or_is_refused_with_a_sentence(data):
    """Readers promise indices that exist and an order that runs (engine/models/soundness.py), and nothing else."""
    graph = residual_net(data.draw(st.sampled_from(["int8", "float32"])))
    tensors, operators = list(graph.tensors), list(graph.operators)
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(tensors) - 1))
        fields = {
            "shape": st.lists(st.integers(0, 9), max_size=5).map(tuple),
            "dtype": st.sampled_from(["int8", "float32", "int32", "uint8", "TYPE_99"]),
            "scale": st.lists(st.floats(0, 2, width=32), max_size=9).map(lambda s: np.array(s, np.float32)),
            "quantized_axis": st.integers(0, 3),
            "data": st.sampled_from([None, np.ones((4, 16), np.int8), np.ones(8, np.int32)]),
        }
        name = data.draw(st.sampled_from(sorted(fields)))
        changes = {name: data.draw(fields[name])}
        if name == "data" and changes["data"] is not None:
            changes["shape"], changes["dtype"] = changes["data"].shape, str(changes["data"].dtype)
        if tensors[index].data is None or name in {"scale", "quantized_axis", "data"}:
            tensors[index] = replace(tensors[index], **changes)
        at = data.draw(st.integers(0, len(operators) - 1))
        known = [*range(operators[at].outputs[0]), ABSENT]
        bent = {
            "inputs": st.lists(st.sampled_from(known), max_size=4).map(tuple),
            "kind": st.sampled_from(["ADD", "MUL", "PAD", "MEAN", "CONCATENATION", "RESHAPE", "FULLY_CONNECTED"]),
            "activation": st.sampled_from(["NONE", "RELU6", "TANH"]),
        }
        name = data.draw(st.sampled_from(sorted(bent)))
        operators[at] = replace(operators[at], **{name: data.draw(bent[name])})
    graph = replace(graph, tensors=tuple(tensors), operators=tuple(operators))
    for train in ("last-1", "blocks-2", "full", "bias-2", "2:w/4"):
        try:
            suffix = resolve(graph, train)
        except ModelError:
            continue
        params = params_of(graph, suffix)
        assert len(params) == len(scales_of(graph, suffix)) == len(units_of(graph, suffix)) == suffix.num_params
        assert sum(rows * columns for rows, columns in shapes_of(graph, suffix)) == suffix.num_params
        assert np.array_equal(load_params(suffix, dump_params(suffix, params)), params)
        constants_of(graph, suffix, reset_params(graph, suffix, 1))
