"""The convolution kernels against their slow twins: to the bit for int8, exactly for whole numbers, closely for floats.

Every array a kernel may write lies between guard bytes, so that a size which is too small is a failure here.
"""

# ruff: noqa: PLR0917  as many arguments as the kernels have

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels import conv, conv_backward, depthwise
from engine.kernels import conv_layout as layout
from tests import naive_conv

F = np.float32
GUARD = 4096
fast = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**32 - 1)


class Rooms:
    """Arrays between guard bytes, filled with noise where the kernel promises to fill or to ignore them."""

    def __init__(self, rng):
        self.rng, self.whole = rng, []

    def empty(self, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = np.full(size + 2 * GUARD, 0xA5, np.uint8)
        self.whole.append((buffer, size))
        inside = buffer[GUARD : GUARD + size]
        inside[...] = self.rng.integers(0, 256, size)
        return inside.view(dtype).reshape(shape)

    def filled(self, values, dtype):
        room = self.empty(values.shape, dtype)
        room[...] = values
        return room

    def check(self):
        for buffer, size in self.whole:
            assert (buffer[:GUARD] == 0xA5).all(), "a kernel wrote before an array"
            assert (buffer[GUARD + size :] == 0xA5).all(), "a kernel wrote behind an array"


@dataclass
class Case:
    """One layer's shapes and its random numbers."""

    geometry: np.ndarray
    x: tuple[int, int, int, int]
    y: tuple[int, int, int, int]
    rng: np.random.Generator
    depth: bool

    @property
    def weights(self):
        kernel = int(self.geometry[0]), int(self.geometry[1])
        return (1, *kernel, self.x[3]) if self.depth else (self.y[3], *kernel, self.x[3])

    def int8(self, shape):
        return self.rng.integers(-128, 128, shape).astype(np.int8)

    def whole(self, shape):
        """Give small whole numbers as float32: every sum of their products is exact, whatever its order."""
        return self.rng.integers(-9, 10, shape).astype(F)

    def floats(self, shape):
        return self.rng.standard_normal(shape).astype(F)


@st.composite
def cases(draw, depth, dilations=1):
    kernel_h, kernel_w = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 1), (2, 4), (4, 7)]))
    stride_h, stride_w = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 2), (2, 3)]))
    down, across = draw(st.integers(1, dilations)), draw(st.integers(1, dilations))
    samples, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 21))
    channels = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 10, 12, 16, 24, 32]))
    outputs = channels if depth else draw(st.sampled_from([1, 2, 3, 10, 12, 16, 20, 32, 40, 48]))
    out_h, top = out_and_pad(height, (kernel_h - 1) * down + 1, stride_h, draw(st.booleans()))
    out_w, left = out_and_pad(width, (kernel_w - 1) * across + 1, stride_w, draw(st.booleans()))
    geometry = np.array([kernel_h, kernel_w, stride_h, stride_w, top, left, down, across])
    rng = np.random.default_rng(draw(seeds))
    return Case(geometry, (samples, height, width, channels), (samples, out_h, out_w, outputs), rng, depth)


def out_and_pad(size, kernel, stride, same):
    """Give (output size, padding before) as TensorFlow Lite has it for SAME and, where the kernel fits, VALID."""
    if not same and size >= kernel:
        return (size - kernel) // stride + 1, 0
    out = -(-size // stride)
    return out, max((out - 1) * stride + kernel - size, 0) // 2


def forward_int8(case, rooms, x, zero_in, weights, finish):
    """Run the int8 forward kernel; `finish` is (bias, multiplier, shift, zero_out, low, high, double_rounding)."""
    y = rooms.empty(case.y, np.int8)
    channels = case.x[3]
    if case.depth:
        packed = rooms.empty(layout.depthwise_size(*weights.shape[1:]), F)
        depthwise.pack_depthwise_int8(weights, packed)
        size = layout.depthwise_forward_bytes(*case.y[1:3], channels, case.geometry)
        kernel = depthwise.depthwise_forward_int8
    else:
        packed = rooms.empty(layout.pairs_size(*weights.shape, case.geometry), np.int16)
        conv.pack_pairs(weights, case.geometry, packed)
        size = layout.forward_bytes(*case.y[1:3], channels, case.y[3], 2, case.geometry)
        kernel = conv.conv_forward_int8
    kernel(x, zero_in, packed, *finish, case.geometry, rooms.empty(size, np.uint8), y)
    rooms.check()
    return y


def forward_float(case, rooms, x, weights, bias, low, high):
    y = rooms.empty(case.y, F)
    channels = case.x[3]
    if case.depth:
        packed = rooms.empty(layout.depthwise_size(*weights.shape[1:]), F)
        depthwise.pack_depthwise_float(weights, packed)
        size = layout.depthwise_forward_bytes(*case.y[1:3], channels, case.geometry)
        kernel = depthwise.depthwise_forward_float
    else:
        packed = rooms.empty(layout.packed_size(*weights.shape), F)
        conv.pack_float(weights, packed)
        size = layout.forward_bytes(*case.y[1:3], channels, case.y[3], 4, case.geometry)
        kernel = conv.conv_forward_float
    kernel(x, packed, bias, F(low), F(high), case.geometry, rooms.empty(size, np.uint8), y)
    rooms.check()
    return y


def weights_gradient(case, rooms, x, zero_in, dy, start=None):
    """Give dw as the weights lie in a model; `x` is int8 or float32; `start` is what the kernel adds to."""
    taps, shape = int(case.geometry[0] * case.geometry[1]), case.weights
    columns = layout.blocks_of(shape[3] if case.depth else shape[0]) * 16
    rows = taps if case.depth else taps * shape[3]
    dw = rooms.filled(np.zeros((rows, columns)) if start is None else start, F)
    if case.depth:
        size = layout.depthwise_weights_bytes(*dy.shape[1:3], shape[3], case.geometry)
        kernels = depthwise.depthwise_backward_weights_int8, depthwise.depthwise_backward_weights_float
    else:
        size = layout.weights_bytes(*dy.shape[1:3], shape[3], shape[0], case.geometry)
        kernels = conv_backward.conv_backward_weights_int8, conv_backward.conv_backward_weights_float
    scratch = rooms.empty(size, np.uint8)
    if x.dtype == np.int8:
        kernels[0](x, zero_in, dy, case.geometry, scratch, dw)
    else:
        kernels[1](x, dy, case.geometry, scratch, dw)
    rooms.check()
    return dw


def as_weights(case, dw):
    return dw[:, : case.x[3]].reshape(case.weights) if case.depth else dw[:, : case.y[3]].T.reshape(case.weights)


def inputs_gradient(case, rooms, dy, weights, scale=None, start=None):
    """Give dx; with `scale` the weights are int8. With `start` the kernel adds to it."""
    dx = rooms.empty(case.x, F) if start is None else rooms.filled(start, F)
    if case.depth:
        packed = rooms.empty(layout.depthwise_size(*weights.shape[1:]), F)
        pack = depthwise.pack_depthwise_inputs_float, depthwise.pack_depthwise_inputs_int8
        size = layout.depthwise_inputs_bytes(*case.x[1:3], *case.y[1:3], case.x[3], case.geometry)
        kernel = depthwise.depthwise_backward_inputs
    else:
        packed = rooms.empty(layout.packed_inputs_size(*weights.shape, case.geometry), F)
        pack = conv_backward.pack_inputs_float, conv_backward.pack_inputs_int8
        size = layout.inputs_bytes(*case.x[1:], *case.y[1:3], case.y[3], case.geometry)
        kernel = conv_backward.conv_backward_inputs
    if scale is None:
        pack[0](weights, case.geometry, packed)
    else:
        pack[1](weights, scale, case.geometry, packed)
    kernel(dy, packed, case.geometry, start is not None, rooms.empty(size, np.uint8), dx)
    rooms.check()
    return dx


def twin_sums(case, x, weights):
    twin = naive_conv.depthwise_sums if case.depth else naive_conv.conv_sums
    return twin(x, weights, case.y, case.geometry)


def twin_inputs(case, dy, weights):
    twin = naive_conv.depthwise_backward_inputs if case.depth else naive_conv.conv_backward_inputs
    return twin(dy, weights, case.x, case.geometry)


def twin_weights(case, x, dy):
    forms = naive_conv.depthwise_backward_weights_float, naive_conv.conv_backward_weights_float
    twin = forms[0] if case.depth else forms[1]
    return twin(x, dy, case.weights, case.geometry)


@fast
@given(st.one_of(cases(False, 3), cases(True, 3)), st.integers(-128, 127), st.integers(-128, 127), st.booleans())
def test_the_int8_forward_pass_equals_its_twin_to_the_bit(case, zero_in, zero_out, double_rounding):
    x, weights, outputs = case.int8(case.x), case.int8(case.weights), case.y[3]
    sums = twin_sums(case, x.astype(np.int64) - zero_in, weights.astype(np.int64))
    # multipliers that spread the sums over the int8 range
    spread = 60.0 / max(1.0, float(np.abs(sums).max()))
    shift = np.full(outputs, int(np.floor(np.log2(spread))) + 1, np.int32)
    multiplier = case.rng.integers(2**30, 2**31, outputs).astype(np.int32)
    bias = case.rng.integers(-(2**9), 2**9, outputs).astype(np.int32)
    low, high = sorted(case.rng.integers(-128, 128, 2).tolist()) if case.rng.integers(2) else (-128, 127)
    finish = (bias, multiplier, shift, zero_out, low, high, double_rounding)
    y = forward_int8(case, Rooms(case.rng), x, zero_in, weights, finish)
    assert np.array_equal(y, naive_conv.finish_int8(sums, *finish))


EDGES = [-(2**31), 1 - 2**31, -(2**30), -65537, -3, -2, -1, 0, 1, 2, 3, 65536, 2**30 - 1, 2**30, 2**31 - 2, 2**31 - 1]


@pytest.mark.parametrize("double_rounding", [True, False])
@pytest.mark.parametrize("depth", [True, False])
def test_requantizing_is_exact_at_every_edge(depth, double_rounding):
    rng = np.random.default_rng(3)
    edges = EDGES + rng.integers(-(2**31), 2**31, 40).tolist() + [int(s) << k for k in range(2, 30, 3) for s in (-3, 3)]
    grid = [
        (total, multiplier, shift)
        for total in edges
        for multiplier in (0, 2**30, 2**30 + 1, 1518500250, 2**31 - 1)
        for shift in (-40, -32, -31, -30, -24, -9, -8, -1, 0, 1, 2, 7, 15)
    ]
    total, multiplier, shift = (np.array(column, np.int32) for column in zip(*grid, strict=True))
    outputs = len(grid)
    case = Case(np.array([1, 1, 1, 1, 0, 0, 1, 1]), (1, 1, 1, outputs if depth else 1), (1, 1, 1, outputs), rng, depth)
    finish = (total, multiplier, shift, 3, -128, 127, double_rounding)
    x, weights = np.zeros(case.x, np.int8), np.zeros(case.weights, np.int8)
    y = forward_int8(case, Rooms(rng), x, 0, weights, finish)
    assert np.array_equal(y, naive_conv.finish_int8(np.zeros(case.y, np.int64), *finish))


def test_int8_sums_wrap_as_int32_does():
    rng = np.random.default_rng(4)
    case = Case(np.array([1, 1, 1, 1, 0, 0, 1, 1]), (1, 1, 2, 3), (1, 1, 2, 2), rng, False)
    x, weights = np.full(case.x, 127, np.int8), np.full(case.weights, 127, np.int8)
    finish = (np.array([2**31 - 1, -(2**31)], np.int32), np.full(2, 2**30, np.int32), np.full(2, -23, np.int32), 0)
    y = forward_int8(case, Rooms(rng), x, -128, weights, (*finish, -128, 127, True))
    sums = np.full(case.y, 3 * 255 * 127)
    assert np.array_equal(y, naive_conv.finish_int8(sums, *finish, -128, 127, True))
    assert y[0, 0, 0, 0] == -128, "the sum went past 2^31 and came back negative"


@fast
@given(cases(False), st.integers(-128, 127))
def test_real_logits_are_the_exact_sums_times_the_scale(case, zero_in):
    x, weights, rooms = case.int8(case.x), case.int8(case.weights), Rooms(case.rng)
    bias = case.rng.integers(-(2**20), 2**20, case.y[3]).astype(np.int32)
    scale = case.rng.random(case.y[3], F)
    pairs, y = rooms.empty(layout.pairs_size(*weights.shape, case.geometry), np.int16), rooms.empty(case.y, F)
    size = layout.forward_bytes(*case.y[1:3], case.x[3], case.y[3], 2, case.geometry)
    conv.pack_pairs(weights, case.geometry, pairs)
    conv.conv_forward_real(x, zero_in, pairs, bias, scale, case.geometry, rooms.empty(size, np.uint8), y)
    rooms.check()
    assert np.array_equal(y, naive_conv.conv_forward_real(x, zero_in, weights, bias, scale, case.y, case.geometry))


@fast
@given(st.one_of(cases(False), cases(True)))
def test_packed_weights_lie_as_their_twins_say(case):
    weights, real, geometry = case.int8(case.weights), case.whole(case.weights), case.geometry
    scale = F(2) ** case.rng.integers(-3, 3, case.y[3]).astype(F)
    shape, rooms = weights.shape, Rooms(case.rng)
    if case.depth:
        packed = rooms.empty(layout.depthwise_size(*shape[1:]), F)
        calls = [
            (depthwise.pack_depthwise_int8, (weights,), naive_conv.pack_depthwise_int8(weights)),
            (depthwise.pack_depthwise_float, (real,), naive_conv.pack_depthwise_float(real)),
            (
                depthwise.pack_depthwise_inputs_int8,
                (weights, scale, geometry),
                naive_conv.pack_depthwise_inputs_int8(weights, scale, geometry),
            ),
            (
                depthwise.pack_depthwise_inputs_float,
                (real, geometry),
                naive_conv.pack_depthwise_inputs_float(real, geometry),
            ),
        ]
        for kernel, arguments, want in calls:
            kernel(*arguments, packed)
            assert np.array_equal(packed, want)
    else:
        way = layout.is_winograd(shape[3], shape[0], geometry)
        pairs = rooms.empty(layout.pairs_size(*shape, geometry), np.int16)
        conv.pack_pairs(weights, geometry, pairs)
        assert np.array_equal(pairs, naive_conv.pack_pairs(weights, way))
        packed = rooms.empty(layout.packed_size(*shape), F)
        conv.pack_float(real, packed)
        assert np.array_equal(packed, naive_conv.pack_float(real))
        packed = rooms.empty(layout.packed_inputs_size(*shape, geometry), F)
        conv_backward.pack_inputs_float(real, geometry, packed)
        assert np.array_equal(packed, naive_conv.pack_inputs_float(real, geometry, way))
        conv_backward.pack_inputs_int8(weights, scale, geometry, packed)
        assert np.array_equal(packed, naive_conv.pack_inputs_int8(weights, scale, geometry, way))
    rooms.check()


@fast
@given(st.one_of(cases(False, 3), cases(True, 3)))
def test_the_float_forward_pass_is_exact_on_whole_numbers(case):
    x, weights, bias = case.whole(case.x), case.whole(case.weights), case.whole(case.y[3])
    y = forward_float(case, Rooms(case.rng), x, weights, bias, -100, np.inf)
    assert np.array_equal(y, np.maximum(twin_sums(case, x, weights) + bias, F(-100)))


@fast
@given(st.one_of(cases(False), cases(True)), st.integers(-128, 127))
def test_gradients_of_weights_are_exact_on_whole_numbers(case, zero_in):
    dy, x, x8 = case.whole(case.y), case.whole(case.x), case.int8(case.x)
    start = case.whole((1, 1))
    for seen, zero in ((x, 0), (x8, zero_in)):
        dw = as_weights(case, weights_gradient(case, Rooms(case.rng), seen, zero, dy))
        assert np.array_equal(dw, twin_weights(case, seen.astype(F) - F(zero), dy))
    shape = weights_gradient(case, Rooms(case.rng), x, 0, dy).shape
    dw = as_weights(case, weights_gradient(case, Rooms(case.rng), x, 0, dy, np.broadcast_to(start, shape)))
    assert np.array_equal(dw, twin_weights(case, x, dy) + start[0, 0]), "the kernel adds to what is there"


@fast
@given(st.one_of(cases(False), cases(True)))
def test_gradients_of_inputs_are_exact_on_whole_numbers(case):
    dy, weights = case.whole(case.y), case.whole(case.weights)
    start, rooms = case.whole(case.x), Rooms(case.rng)
    want = twin_inputs(case, dy, weights)
    assert np.array_equal(inputs_gradient(case, rooms, dy, weights), want)
    assert np.array_equal(inputs_gradient(case, rooms, dy, weights, start=start), start + want)
    weights8 = case.int8(case.weights)
    scale = F(2) ** case.rng.integers(-3, 3, case.y[3]).astype(F)
    real = weights8 * (scale if case.depth else scale[:, None, None, None])
    want = twin_inputs(case, dy, real.astype(F))
    assert np.array_equal(inputs_gradient(case, rooms, dy, weights8, scale), want)


@fast
@given(st.one_of(cases(False), cases(True)))
def test_gradients_are_the_slopes_of_the_loss(case):
    """Central differences in float64 of sum(dy * conv(x, w)) at a few places; it is linear, so they are exact."""
    x, weights, dy = case.floats(case.x), case.floats(case.weights), case.floats(case.y)
    dx = inputs_gradient(case, Rooms(case.rng), dy, weights)
    dw = as_weights(case, weights_gradient(case, Rooms(case.rng), x, 0, dy))

    def slope(array, other, index, swap):
        there, back = array.astype(np.float64), array.astype(np.float64)
        there[index] += 0.5
        back[index] -= 0.5
        other = other.astype(np.float64)
        ends = [twin_sums(case, other, end) if swap else twin_sums(case, end, other) for end in (there, back)]
        return float(((ends[0] - ends[1]) * dy.astype(np.float64)).sum())

    for array, other, got, swap in ((x, weights, dx, False), (weights, x, dw, True)):
        for _ in range(3):
            index = tuple(int(case.rng.integers(size)) for size in array.shape)
            assert abs(slope(array, other, index, swap) - got[index]) < 1e-5 * (got.size + dy.size) ** 0.5 + 1e-5


@fast
@given(st.one_of(cases(False), cases(True)), st.integers(1, 2))
def test_a_batch_in_two_parts_gives_the_bits_of_the_whole(case, first):
    x, x8, dy = case.floats(case.x), case.int8(case.x), case.floats(case.y)
    for seen in (x, x8):
        whole = weights_gradient(case, Rooms(case.rng), seen, 3, dy)
        part = weights_gradient(case, Rooms(case.rng), seen[:first], 3, dy[:first])
        if first < len(x):
            part = weights_gradient(case, Rooms(case.rng), seen[first:], 3, dy[first:], part)
        assert np.array_equal(as_weights(case, whole), as_weights(case, part))
    db, halves = np.ones(case.y[3], F), np.ones(case.y[3], F)
    conv_backward.bias_gradient(dy, db)
    conv_backward.bias_gradient(dy[:first], halves)
    if first < len(x):
        conv_backward.bias_gradient(dy[first:], halves)
    assert np.array_equal(db, halves)


def fused(x, w, total):
    """Give x * w + total, rounded once to float32, ties to even."""
    exact = Fraction(float(x)) * Fraction(float(w)) + Fraction(float(total))
    near = F(float(exact))
    around = [np.nextafter(near, F(-np.inf)), near, np.nextafter(near, F(np.inf))]
    return min(around, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.uint32)) & 1))


def chain(pairs, start=0.0):
    total = F(start)
    for x, w in pairs:
        total = fused(x, w, total)
    return total


@pytest.mark.parametrize("depth", [False, True])
def test_sums_are_chains_of_fused_multiply_adds_in_the_promised_order(depth):
    rng = np.random.default_rng(7)
    outputs = 5 if depth else 3
    case = Case(np.array([3, 2, 1, 1, 0, 0, 1, 1]), (2, 5, 6, 5), (2, 3, 5, outputs), rng, depth)
    x, weights, dy = case.floats(case.x), case.floats(case.weights), case.floats(case.y)
    bias, start = case.floats(outputs), case.floats(weights_gradient(case, Rooms(rng), x, 0, dy).shape)
    y = forward_float(case, Rooms(rng), x, weights, bias, -np.inf, np.inf)
    dw = weights_gradient(case, Rooms(rng), x, 0, dy, start)
    dx = inputs_gradient(case, Rooms(rng), dy, weights)
    pixels = list(np.ndindex(2, 3, 5))
    for o in range(outputs):
        for n, h, w in pixels[::7]:
            inputs = [(kh, kw, c) for kh, kw in np.ndindex(3, 2) for c in ([o] if depth else range(5))]
            terms = [(x[n, h + kh, w + kw, c], weights[0 if depth else o, kh, kw, c]) for kh, kw, c in inputs]
            assert y[n, h, w, o] == F(chain(terms) + bias[o])
        for kh, kw, c in [(0, 0, o), (2, 1, o), (1, 0, o)]:
            terms = [(x[n, h + kh, w + kw, c], dy[n, h, w, o]) for n, h, w in pixels]
            row = kh * 2 + kw if depth else (kh * 2 + kw) * 5 + c
            assert dw[row, o] == chain(terms, start[row, o])
    for n, h, w, c in [(0, 2, 2, 0), (1, 0, 0, 1), (1, 4, 5, 4), (0, 3, 1, 2)]:
        seen = [(i, j) for i in range(h - 2, h + 1) for j in range(w - 1, w + 1) if 0 <= i < 3 and 0 <= j < 5]
        each = [c] if depth else range(outputs)
        terms = [(dy[n, i, j, o], weights[0 if depth else o, h - i, w - j, c]) for i, j in seen for o in each]
        assert dx[n, h, w, c] == chain(terms)


@fast
@given(cases(False), st.integers(0, 2**31))
def test_the_bias_gradient_adds_in_order_to_what_is_there(case, seed):
    dy, start = case.floats(case.y), np.random.default_rng(seed).standard_normal(case.y[3]).astype(F)
    db = start.copy()
    conv_backward.bias_gradient(dy, db)
    assert np.array_equal(db, naive_conv.bias_gradient(dy, start))


@pytest.mark.parametrize("depth", [False, True])
def test_a_nan_is_seen_and_not_hidden(depth):
    rng = np.random.default_rng(8)
    case = Case(np.array([3, 3, 1, 1, 1, 1, 1, 1]), (1, 4, 4, 8), (1, 4, 4, 8), rng, depth)
    x, weights, dy = case.floats(case.x), case.floats(case.weights), case.floats(case.y)
    x[0, 2, 2, 3] = np.nan
    dy[0, 1, 1, 3] = np.nan
    y = forward_float(case, Rooms(rng), x, weights, np.zeros(8, F), 0, 6)
    assert np.isnan(y[0, 1, 1, 3])
    assert not np.isnan(y[0, 0]).any()
    assert np.isnan(inputs_gradient(case, Rooms(rng), dy, weights)[0, 0, 0, 3])
    dw = weights_gradient(case, Rooms(rng), case.floats(case.x), 0, dy)
    assert np.isnan(dw[:, 3]).all()
    assert not np.isnan(dw[:, 2]).any()


def test_long_rows_of_pixels_are_cut_into_runs_without_a_seam():
    rng = np.random.default_rng(9)
    case = Case(np.array([1, 1, 1, 1, 0, 0, 1, 1]), (3, 9, 13, 10), (3, 9, 13, 20), rng, False)
    x, weights, dy = case.whole(case.x), case.whole(case.weights), case.whole(case.y)
    assert 2 * layout.RUN < 3 * 9 * 13
    y = forward_float(case, Rooms(rng), x, weights, np.zeros(20, F), -np.inf, np.inf)
    assert np.array_equal(y, twin_sums(case, x, weights))
    dw = as_weights(case, weights_gradient(case, Rooms(rng), x, 0, dy))
    assert np.array_equal(dw, twin_weights(case, x, dy))
    dx = inputs_gradient(case, Rooms(rng), dy, weights)
    assert np.array_equal(dx, twin_inputs(case, dy, weights))


# 3x3 layers of stride 1 whose channels and outputs come in blocks of 16: rows longer and shorter than a strip of tiles,
# odd heights and widths, and samples large and small enough for either way of the gradient of weights.
SQUARES = [
    (2, 16, 14, 16, 16, True),
    (1, 15, 13, 16, 48, True),
    (2, 8, 8, 32, 32, True),
    (1, 9, 71, 16, 32, False),
    (3, 3, 4, 48, 16, False),
    (2, 6, 6, 32, 32, True),
    (1, 1, 1, 16, 16, True),
    (1, 18, 18, 32, 16, False),
]


def square_case(samples, height, width, channels, outputs, same):
    (out_h, top), (out_w, left) = (out_and_pad(size, 3, 1, same) for size in (height, width))
    rng = np.random.default_rng(height * 100 + width)
    geometry = np.array([3, 3, 1, 1, top, left, 1, 1])
    return Case(geometry, (samples, height, width, channels), (samples, out_h, out_w, outputs), rng, False)


@pytest.mark.parametrize("shape", SQUARES)
def test_3x3_layers_in_whole_blocks_are_exact_too(shape):
    case = square_case(*shape)
    assert layout.is_winograd(case.x[3], case.y[3], case.geometry)
    x8, weights8, outputs = case.int8(case.x), case.int8(case.weights), case.y[3]
    sums = twin_sums(case, x8.astype(np.int64) + 7, weights8.astype(np.int64))
    shift = np.full(outputs, int(np.floor(np.log2(60.0 / np.abs(sums).max()))) + 1, np.int32)
    multiplier = case.rng.integers(2**30, 2**31, outputs).astype(np.int32)
    finish = (np.arange(outputs, dtype=np.int32), multiplier, shift, 5, -128, 127, True)
    y = forward_int8(case, Rooms(case.rng), x8, -7, weights8, finish)
    assert np.array_equal(y, naive_conv.finish_int8(sums, *finish))

    x, weights, dy, start = (case.whole(s) for s in (case.x, case.weights, case.y, case.x))
    dw = as_weights(case, weights_gradient(case, Rooms(case.rng), x, 0, dy))
    assert np.array_equal(dw, twin_weights(case, x, dy))
    dw = as_weights(case, weights_gradient(case, Rooms(case.rng), x8, 4, dy))
    assert np.array_equal(dw, twin_weights(case, x8.astype(F) - 4, dy))
    want = twin_inputs(case, dy, weights)
    assert np.array_equal(inputs_gradient(case, Rooms(case.rng), dy, weights), want)
    assert np.array_equal(inputs_gradient(case, Rooms(case.rng), dy, weights, start=start), start + want)


def test_both_ways_of_3x3_gradients_of_weights_are_tried():
    ways = [layout.is_winograd_weights(*square_case(*s).y[1:3], s[3], s[4], square_case(*s).geometry) for s in SQUARES]
    assert True in ways
    assert False in ways


def test_extreme_int8_values_do_not_overflow_the_way_of_3x3_layers():
    case = square_case(1, 6, 6, 1024, 16, True)
    x, weights = np.full(case.x, 127, np.int8), np.full(case.weights, -128, np.int8)
    weights[:8] = 127
    sums = twin_sums(case, x.astype(np.int64) + 128, weights.astype(np.int64))
    finish = (np.zeros(16, np.int32), np.full(16, 2**30, np.int32), np.full(16, -22, np.int32), 0, -128, 127, True)
    y = forward_int8(case, Rooms(case.rng), x, -128, weights, finish)
    assert np.array_equal(y, naive_conv.finish_int8(sums, *finish))
    assert len(np.unique(y)) > 3


def test_3x3_gradients_in_whole_blocks_are_close_and_split_by_sample_to_the_bit():
    case = square_case(3, 16, 16, 16, 16, True)
    x, weights, dy = case.floats(case.x), case.floats(case.weights), case.floats(case.y)
    dw = weights_gradient(case, Rooms(case.rng), x, 0, dy)
    part = weights_gradient(case, Rooms(case.rng), x[:1], 0, dy[:1])
    part = weights_gradient(case, Rooms(case.rng), x[1:], 0, dy[1:], part)
    assert np.array_equal(dw, part)
    want = twin_weights(case, x.astype(np.float64), dy.astype(np.float64))
    assert np.abs(as_weights(case, dw) - want).max() < 2e-6 * np.abs(want).max()
    want = twin_inputs(case, dy.astype(np.float64), weights.astype(np.float64))
    assert np.abs(inputs_gradient(case, Rooms(case.rng), dy, weights) - want).max() < 1e-6 * np.abs(want).max()


def test_a_nan_spreads_no_further_in_3x3_layers():
    case = square_case(1, 8, 8, 16, 16, True)
    dy, weights = case.floats(case.y), case.floats(case.weights)
    dy[0, 4, 3, 2] = np.nan
    dx = inputs_gradient(case, Rooms(case.rng), dy, weights)
    reached = np.zeros((8, 8), bool)
    reached[3:6, 2:5] = True
    assert np.array_equal(np.isnan(dx[0]).any(2), reached)
