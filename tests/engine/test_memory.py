"""The planner: buffers that live together never share a byte, and the arena is hardly larger than it must be."""

import os
from math import prod
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from engine.memory import ALIGNMENT, Buffer, aligned, peak_of, place
from engine.models.cuts import LAYERS
from engine.models.tflite import read

SHIPPED = Path(__file__).parents[2] / "firmware_sim" / "models"
ELSEWHERE = Path(os.environ.get("FLEET_MODELS", "/nowhere")) / "mlperf_tiny"
needs_elsewhere = pytest.mark.skipif(
    not ELSEWHERE.is_dir(), reason="FLEET_MODELS names no folder with the MLPerf Tiny models in mlperf_tiny"
)
MLPERF = [
    "ad01_int8",
    "kws_ref_model",
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


@st.composite
def buffers(draw):
    lives = draw(
        st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 30), st.integers(0, 30)), max_size=40), label="lives"
    )
    return [Buffer(f"b{i}", size, min(a, b), max(a, b)) for i, (size, a, b) in enumerate(lives)]


def sharing(buffers, offsets):
    """The pairs that live at one step and hold a common byte."""
    spans = list(zip(buffers, offsets, strict=True))
    return [
        (one.name, other.name)
        for at, (one, start) in enumerate(spans)
        for other, begin in spans[:at]
        if one.first <= other.last
        and other.first <= one.last
        and start < begin + other.bytes
        and begin < start + one.bytes
    ]


@given(buffers())
@settings(deadline=None)
@example([Buffer("a", 64, 0, 1), Buffer("b", 64, 1, 2), Buffer("c", 65, 0, 0), Buffer("d", 0, 0, 9)])
def test_buffers_that_live_together_share_no_byte(given_buffers):
    offsets, total = place(given_buffers)
    assert sharing(given_buffers, offsets) == []
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    assert total % ALIGNMENT == 0
    assert all(offset + one.bytes <= total for one, offset in zip(given_buffers, offsets, strict=True))
    assert peak_of(given_buffers) <= total <= sum(aligned(one.bytes) for one in given_buffers)


@given(buffers())
@settings(deadline=None)
def test_the_peak_is_what_a_slow_count_over_every_step_finds(given_buffers):
    steps = range(32)
    slow = [sum(aligned(b.bytes) for b in given_buffers if b.first <= step <= b.last) for step in steps]
    assert peak_of(given_buffers) == max(slow)


def test_buffers_that_follow_each_other_share_their_bytes():
    chain = [Buffer(str(i), 1000, i, i + 1) for i in range(10)]
    offsets, total = place(chain)
    assert total == 2 * 1024
    assert set(offsets) == {0, 1024}


def test_a_buffer_goes_into_the_smallest_gap_that_holds_it():
    wide, gone, wall, narrow_gone, top = (
        Buffer("wide", 640, 0, 9),
        Buffer("gone", 512, 0, 4),
        Buffer("wall", 448, 0, 9),
        Buffer("narrow, gone", 384, 0, 4),
        Buffer("top", 320, 0, 9),
    )
    late = Buffer("late", 300, 5, 9)
    offsets, total = place([wide, gone, wall, narrow_gone, top, late, Buffer("the end", 0, 10, 10)])
    assert total == 640 + 512 + 448 + 384 + 320
    assert offsets[5] == offsets[3]


def test_what_lives_from_first_to_last_lies_at_the_bottom():
    always = [Buffer("weights", 100, 0, 9), Buffer("bias", 10, 0, 9)]
    passing = [Buffer("large", 5000, 0, 4), Buffer("larger", 6000, 5, 9)]
    offsets, total = place([passing[0], *always, passing[1]])
    assert sorted(offsets[1:3]) == [0, 128]
    assert (offsets[0], offsets[3], total) == (192, 192, 192 + aligned(6000))


def test_nothing_takes_no_room():
    assert place([]) == ((), 0)
    assert place([Buffer("empty", 0, 0, 3)]) == ((0,), 0)


def training_buffers(graph, batch):
    """What training a whole model keeps: layer inputs until their gradient, other values and gradients briefly."""
    count = len(graph.operators)
    found = []
    for tensor in graph.tensors:
        made = next((op.index for op in graph.operators if tensor.index in op.outputs), 0)
        used = [op for op in graph.operators if tensor.index in op.inputs]
        if tensor.data is not None or not used:
            continue
        size = prod(tensor.shape) * batch
        last = max(2 * count - op.index if op.kind in LAYERS else op.index for op in used)
        found.append(Buffer(tensor.name, size, made, last))
        readers = [2 * count - op.index for op in used]
        found.append(Buffer(f"gradient of {tensor.name}", 4 * size, min(readers), 2 * count - made))
    return found


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("batch", [1, 16])
def test_training_a_real_model_takes_hardly_more_than_its_peak(path, batch):
    wanted = training_buffers(read(path.read_bytes()), batch)
    offsets, total = place(wanted)
    assert sharing(wanted, offsets) == []
    assert total <= 1.07 * peak_of(wanted)
