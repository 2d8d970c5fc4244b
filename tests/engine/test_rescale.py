"""Room for crowded channels: the same real model in larger steps, in a file that every runtime loads."""

from pathlib import Path

import numpy as np
import pytest

from engine import master, rescale
from engine.frame import frame_of
from engine.models import interpreter, tflite
from engine.models.scheme import params_of
from tests.engine.graph_tflite import write
from tests.engine.models_at_hand import ELSEWHERE, needs_elsewhere
from tests.engine.sketch import Sketch, residual_net

INT8 = (
    "ad01_int8.tflite",
    "kws_ref_model.tflite",
    "pretrainedResnet_quant.tflite",
    "str_ww_ref_model.tflite",
    "vww_96_int8.tflite",
)
MODEL = (Path(__file__).parents[2] / "firmware_sim/models/digits.tflite").read_bytes()
NET = write(residual_net())  # conv 0 | conv 1, conv 2, ADD 3 | depthwise 4, conv 5 | MEAN 6, dense 7


def numbers_of(frame, operator=None, entries=()):
    """The file's own numbers, with these entries of one layer's weights, counted from its first, at an end."""
    params = np.where(np.abs(given := params_of(frame.graph, frame.suffix)) == 127, 126, given)
    for layer in frame.suffix.layers:
        if layer.operator == operator:
            params[layer.first + np.asarray(entries)] = np.resize([127, -127], len(entries))
    return master.first(frame, params)


def real(frame, numbers):
    return master.read(frame, numbers) / 65536 * frame.scale.astype(np.float64)


def scales(frame, operator):
    weights = frame.graph.operators[operator].inputs[1]
    return frame.graph.tensors[weights].scale


def test_a_model_as_it_was_converted_is_not_crowded():
    for frame in (frame_of(NET, "last-3"), frame_of(MODEL, "full")):
        assert rescale.grown(frame, master.first(frame, params_of(frame.graph, frame.suffix))) is None


@needs_elsewhere
@pytest.mark.parametrize("name", INT8)
def test_no_reference_model_is_crowded_as_it_comes(name):
    frame = frame_of((ELSEWHERE / name).read_bytes(), "full")
    assert rescale.grown(frame, master.first(frame, params_of(frame.graph, frame.suffix))) is None


def test_a_dead_channel_is_left_alone():
    frame = frame_of(NET, "last-3")
    numbers = numbers_of(frame, 5, [16, 17, 18, 19])
    weights = frame.graph.operators[5].inputs[1]
    scale = np.full(16, 1e-7, np.float32)
    dead = frame_of(tflite.patch_scales(NET, tflite.read(NET), {weights: scale}), "last-3")
    assert rescale.grown(dead, numbers) is None


def test_a_crowded_channel_alone_gets_larger_steps_and_keeps_its_real_numbers():
    frame = frame_of(NET, "last-3")
    numbers = numbers_of(frame, 5, [16, 17, 18, 19])  # operator 5 is 16 x 1 x 1 x 8: entries 16 .. 23 are channel 2
    after, moved = rescale.grown(frame, numbers)
    grew = scales(after, 5) / scales(frame, 5)
    assert grew.tolist() == [2.0 if channel == 2 else 1.0 for channel in range(16)]
    assert np.array_equal(scales(after, 7), scales(frame, 7))
    assert np.abs(real(after, moved) - real(frame, numbers)).max() < 2e-5 * after.scale.max()
    assert after.suffix == frame.suffix
    assert np.array_equal(after.unit, frame.unit)
    untouched = after.scale == frame.scale
    assert np.count_nonzero(~untouched) == 9  # eight weights and a bias
    assert np.array_equal(master.read(after, moved)[untouched], master.read(frame, numbers)[untouched])


def test_a_bias_is_stored_in_the_scale_of_the_input_times_that_of_its_weights_as_before():
    frame = frame_of(NET, "last-3")
    after, _ = rescale.grown(frame, numbers_of(frame, 5, range(16, 24)))
    weights, bias = after.graph.operators[5].inputs[1:]
    entering = after.graph.tensors[after.graph.operators[5].inputs[0]]
    want = entering.scale.astype(np.float64) * after.graph.tensors[weights].scale
    np.testing.assert_allclose(after.graph.tensors[bias].scale, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("operator", "entries", "grows"),
    [
        (5, [16, 17, 18], None),  # three of eight: many, and yet only three
        (5, [16, 17, 24, 25], None),  # two in each of two channels
        (5, [16, 17, 18, 23], 2),
        (4, [3, 11, 19, 67], 3),  # depthwise 3 x 3 x 8: every eighth entry is channel 3's
        (4, [3, 11, 19, 66], None),
    ],
)
def test_a_channel_is_crowded_when_four_of_its_weights_are_at_an_end(operator, entries, grows):
    frame = frame_of(NET, "last-4")
    found = rescale.grown(frame, numbers_of(frame, operator, entries))
    if grows is None:
        assert found is None
    else:
        assert np.flatnonzero(scales(found[0], operator) != scales(frame, operator)).tolist() == [grows]


def test_of_many_weights_a_tenth_must_be_at_an_end():
    frame = frame_of(MODEL, "last-2")
    operator = frame.suffix.layers[0].operator
    row = 128 if len(scales(frame, operator)) > 1 else 16_384  # one scale for each row, or one for all
    limit = int(rescale.CROWD_SHARE * row)
    start = 5 * 128
    assert rescale.grown(frame, numbers_of(frame, operator, start + np.arange(limit))) is None
    assert rescale.grown(frame, numbers_of(frame, operator, start + np.arange(limit + 1))) is not None


def test_one_scale_for_all_channels_grows_for_all():
    sketch = Sketch((1, 6))
    weights = sketch.tensor((4, 6), np.arange(-12, 12, dtype=np.int8).reshape(4, 6), scale=(0.5,))
    answer = sketch.operator("FULLY_CONNECTED", [sketch.entering, weights], (1, 4))
    frame = frame_of(write(sketch.graph(answer)), "last-1")
    numbers = numbers_of(frame, 0, [0, 7, 14, 23])
    after, moved = rescale.grown(frame, numbers)
    assert scales(after, 0).tolist() == [1.0]
    assert np.abs(real(after, moved) - real(frame, numbers)).max() < 2e-5


def test_weights_that_do_not_train_are_rescaled_with_their_channel_in_the_base():
    frame = frame_of(NET, "5:w/2,7:w")
    (layer,) = (layer for layer in frame.suffix.layers if layer.operator == 5)
    assert len(layer.channels) == 4
    after, _ = rescale.grown(frame, numbers_of(frame, 5, [8, 9, 10, 11]))  # all of output channel 2
    before, now = (each.graph.tensors[layer.weights].data.astype(np.int64) for each in (frame, after))
    frozen = [channel for channel in range(8) if channel not in layer.channels]
    assert np.array_equal(now[2][..., frozen], np.rint(before[2][..., frozen] / 2))
    assert np.array_equal(np.delete(now[..., frozen], 2, axis=0), np.delete(before[..., frozen], 2, axis=0))


@pytest.mark.parametrize("train", ["last-3", "5:w/2,7:w"])
def test_the_new_base_file_holds_what_is_published_of_the_version(train):
    frame = frame_of(NET, train)
    numbers = numbers_of(frame, 5, [8, 9, 10, 11] if train != "last-3" else [16, 17, 18, 19])
    after, moved = rescale.grown(frame, numbers)
    assert frame_of(after.model, train).own() == after.own() == moved.published
    assert after.file_with(moved.published) == after.model


def test_a_file_that_would_choose_other_channels_by_the_numbers_is_not_made(monkeypatch):
    frame = frame_of(NET, "5:w/2,7:w")
    (layer,) = (layer for layer in frame.suffix.layers if layer.operator == 5)
    numbers = numbers_of(frame, 5, [8, 9, 10, 11])
    assert rescale.grown(frame, numbers) is not None
    faint = np.zeros(frame.suffix.num_params, np.int32)
    faint[layer.first + np.arange(8, 12)] = 127  # one output channel is crowded, and the others are nothing
    assert frame.holding(master.first(frame, 0 * faint).published) is None
    assert rescale.grown(frame, master.first(frame, faint)) is None


def test_the_channels_that_train_stay_the_same_or_the_scales_do(monkeypatch):
    frame = frame_of(NET, "5:w/2,7:w")
    numbers = numbers_of(frame, 5, [8, 9, 10, 11])
    other = frame_of(NET, "5:w/4,7:w")
    monkeypatch.setattr(rescale, "frame_of", lambda model, train: other)
    assert rescale.grown(frame, numbers) is None


def test_a_float_model_is_never_crowded():
    frame = frame_of(write(residual_net("float32")), "last-1")
    numbers = master.first(frame, np.full(frame.suffix.num_params, 127, np.float32))
    assert rescale.grown(frame, numbers) is None


def test_the_rescaled_file_answers_as_the_one_before_but_for_rounding():
    frame = frame_of(MODEL, "last-2")
    operator = frame.suffix.layers[0].operator
    numbers = numbers_of(frame, operator, np.arange(0, 16_384, 9))
    after, moved = rescale.grown(frame, numbers)
    windows = np.random.default_rng(1).random((64, 8, 8, 1)).astype(np.float32)
    one, other = (
        interpreter.open_model(each.file_with(each_numbers.published))(windows).astype(np.int64)
        for each, each_numbers in ((frame, numbers), (after, moved))
    )
    assert np.abs(one - other).mean() < 4  # of 256 steps of a probability
    assert (np.argmax(one, axis=1) == np.argmax(other, axis=1)).mean() > 0.9
    assert len(after.model) == len(MODEL)
    assert tflite.read(after.model).operators == frame.graph.operators
