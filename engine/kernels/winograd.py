"""3x3 convolutions of stride 1 with 16 multiplications for four outputs instead of 36: Winograd's F(2x2, 3x3).

Inputs are cut into 4x4 tiles that overlap by two, weights are 3x3; both become 4x4 by a few additions (`_winograd.py`
has the formulas), and products at one of the 16 positions sum up over channels like a 1x1 convolution, for which the
register tiles are made. A few more additions turn 4x4 sums into 2x2 outputs. The same identity, read backwards, gives
the gradient of the weights.

The result differs from the plain sum by float32 rounding only; additions have one fixed order, so all processors agree.
With `d` an input of the sum, an output depends on exactly those inputs that it does in the plain sum: a NaN spreads no
further. Used where channels and outputs come in blocks of 16.

In int8 the taps are multiplied by 4 instead of halved, products of int16 pairs are summed in int32, and the sums are
shifted right by two: exactly the plain sum, as long as four times it fits in int32 (up to 1024 channels).

    u float32 [16][tiles][C]    v float32 [blocks][16][C][16]    m float32 [16][tiles][16 or 32]
"""

import numpy as np

from engine.kernels._jit import NATIVE, inner
from engine.kernels.conv_images import clear
from engine.kernels.conv_layout import blocks_of, wino_groups, wino_rows
from engine.kernels.conv_rows import WIDE, outer_row, row_float, row_pairs

APART = 64  # bytes between planes: strides that are powers of two would fall on the same lines of the cache
LANES = 1
if not NATIVE:
    from engine.kernels._vector import LANES
    from engine.kernels._winograd import (
        add_outputs,
        add_tap_grads,
        set_outputs,
        set_outputs_int32,
        transform_float_weights,
        transform_grads,
        transform_inputs,
        transform_inputs_int16,
        transform_int8_weights,
    )


@inner
def wino_pack_int8(weights, scale, outputs, channels, packed):
    """Fill `packed` [C/16][16][O][16] from int8 weights [O][3][3][C], turned round for the gradient of inputs."""
    for o in range(outputs):
        for c in range(0, channels, LANES):
            v = packed + (c // 16 * 16 * outputs + o) * 64 + c % 16 * 4
            transform_int8_weights(weights + o * 9 * channels + c, channels, scale[o], v, outputs * 64)


@inner
def wino_pack_float(weights, outputs, channels, packed):
    """The same from float32 weights."""
    for o in range(outputs):
        for c in range(0, channels, LANES):
            v = packed + (c // 16 * 16 * outputs + o) * 64 + c % 16 * 4
            transform_float_weights(weights + (o * 9 * channels + c) * 4, channels * 4, 1.0, v, outputs * 64)


@inner
def taps_of_four(first, second, third, which):
    """Give one of the four numbers that three taps become, twice over."""
    if which == 0:
        return 2 * first
    if which == 3:
        return 2 * third
    return first + third + (second if which == 1 else -second)


@inner
def wino_pack_pairs(weights, pairs):
    """Fill `pairs` [O/16][16][C/2][16][2] from int8 weights [O][3][3][C]: four times GgG'."""
    outputs, _, _, channels = weights.shape
    for o in range(outputs):
        for c in range(channels):
            at = ((o // 16 * 16 * (channels // 2) + c // 2) * 16 + o % 16) * 2 + c % 2
            for j in range(4):
                row0 = taps_of_four(
                    np.int32(weights[o, 0, 0, c]), np.int32(weights[o, 0, 1, c]), np.int32(weights[o, 0, 2, c]), j
                )
                row1 = taps_of_four(
                    np.int32(weights[o, 1, 0, c]), np.int32(weights[o, 1, 1, c]), np.int32(weights[o, 1, 2, c]), j
                )
                row2 = taps_of_four(
                    np.int32(weights[o, 2, 0, c]), np.int32(weights[o, 2, 1, c]), np.int32(weights[o, 2, 2, c]), j
                )
                for k in range(4):
                    pairs[at + (4 * k + j) * channels * 16] = taps_of_four(row0, row1, row2, k)


@inner
def wino_tiles(x, columns, channels, first, count, across, strips, u):
    """Turn `count` rows of tiles of a padded int16 image into u, at the start of a block of strips."""
    pixel, row = channels * 2, columns * channels * 2
    plane = strips * across * pixel + APART
    for strip in range(count):
        for c in range(0, pixel, 16 if LANES == 4 else 32):
            to = u + strip * across * pixel + c
            transform_inputs_int16(x + (first + strip) * 2 * row + c, row, pixel, across, to, plane)


@inner
def wino_block_sums(u, channels, pairs, block, wide, tiles, strips, across, m):
    """Sum the products of one tile's blocks of outputs, at all 16 positions."""
    pixel = channels * 2
    u_plane, m_plane = strips * across * pixel + APART, tiles * wide * 64 + APART
    for plane in range(16):
        v = pairs + (block * 16 + plane) * channels * 32
        x, y = u + plane * u_plane, m + plane * m_plane
        row_pairs(wide, x, pixel, 0, 1, channels // 2, v, 16 * channels * 32, y, wide * 64, tiles)


@inner
def wino_rows_out(m, tiles, wide, strip, width, lower, rows, spare):
    """Turn the products of one row of tiles into two rows of int32 sums at `rows`, or one where `lower` is False."""
    across = (width + 1) // 2
    below = width * wide * 64 if lower else 0
    for o in range(0, wide * 64, LANES * 4):
        at = m + strip * across * wide * 64 + o
        set_outputs_int32(
            at, wide * 64, tiles * wide * 64 + APART, across, rows + o, below, wide * 64, width % 2, spare
        )


@inner
def wino_image(accumulate, x, columns, inputs, packed, outputs, height, width, y, spare):
    """Fill or add to one image y [height][width][outputs] from the padded image x [.][columns][inputs]."""
    across, down = (width + 1) // 2, (height + 1) // 2
    strips = wino_rows(height, width)
    pixel, row = inputs * 4, columns * inputs * 4
    u = spare + 64
    u_plane = strips * across * pixel + APART
    m = u + 16 * u_plane
    blocks = blocks_of(outputs)
    for group in range(wino_groups(height, width)):
        first = group * strips
        count = min(strips, down - first)
        for strip in range(count):
            for c in range(0, pixel, LANES * 4):
                to = u + strip * across * pixel + c
                transform_inputs(x + (first + strip) * 2 * row + c, row, pixel, across, to, u_plane)
        for block in range(0, blocks, WIDE):
            wide = min(WIDE, blocks - block)
            m_plane = count * across * wide * 64 + APART
            for plane in range(16):
                v = packed + (block * 16 + plane) * inputs * 64
                row_float(
                    wide,
                    u + plane * u_plane,
                    pixel,
                    0,
                    1,
                    inputs,
                    v,
                    16 * inputs * 64,
                    m + plane * m_plane,
                    wide * 64,
                    count * across,
                )
            for strip in range(count):
                h = (first + strip) * 2
                below = width * outputs * 4 if h + 1 < height else 0
                for o in range(0, wide * 64, LANES * 4):
                    at = m + strip * across * wide * 64 + o
                    to = y + h * width * outputs * 4 + block * 64 + o
                    if accumulate:
                        add_outputs(at, wide * 64, m_plane, across, to, below, outputs * 4, width % 2, spare)
                    else:
                        set_outputs(at, wide * 64, m_plane, across, to, below, outputs * 4, width % 2, spare)


@inner
def wino_weights(x, columns, channels, dy, height, width, outputs, dw, scratch):
    """Add one sample's gradient to dw [9 * C][O]; x [.][columns][C] is padded, dy [height][width][O], both even."""
    across, down = width // 2, height // 2
    strips = wino_rows(height, width)
    pixel, row, grad = channels * 4, columns * channels * 4, outputs * 4
    tiles = strips * across
    u_plane, g_plane, m_plane = tiles * pixel + APART, tiles * grad + APART, channels * grad + APART
    u = scratch + 128
    g = u + 16 * u_plane
    m = g + 16 * g_plane
    blocks = blocks_of(outputs)
    for group in range(wino_groups(height, width)):
        first = group * strips
        count = min(strips, down - first)
        for strip in range(count):
            for c in range(0, pixel, LANES * 4):
                to = u + strip * across * pixel + c
                transform_inputs(x + (first + strip) * 2 * row + c, row, pixel, across, to, u_plane)
            for o in range(0, grad, LANES * 4):
                to = g + strip * across * grad + o
                transform_grads(dy + (first + strip) * 2 * width * grad + o, width * grad, grad, across, to, g_plane)
        if down <= strips:
            wino_blocks(u, u_plane, g, g_plane, across * down, channels, outputs, dw, m, scratch)
            return
        if first == 0:
            clear(m, 16 * m_plane)
        for plane in range(16):
            for block in range(0, blocks, WIDE):
                wide = min(WIDE, blocks - block)
                up, gp = u + plane * u_plane, g + plane * g_plane + block * 64
                to = m + plane * m_plane + block * 64
                outer_row(wide, up, 0, pixel, gp, 0, grad, 1, count * across, to, grad, channels, scratch)
    for o in range(0, grad, LANES * 4):
        add_tap_grads(m + o, grad, m_plane, channels, dw + o, grad, channels * grad)


@inner
def wino_blocks(u, u_plane, g, g_plane, tiles, channels, outputs, dw, m, spare):
    """Do the same from all tiles of one sample, block by block: the sums of a block stay in the nearest cache."""
    pixel, grad, blocks = channels * 4, outputs * 4, blocks_of(outputs)
    for c in range(0, channels, 16):
        for block in range(0, blocks, WIDE):
            wide = min(WIDE, blocks - block)
            step = wide * 64
            clear(m, 16 * 16 * step)
            for plane in range(16):
                up, gp = u + plane * u_plane + c * 4, g + plane * g_plane + block * 64
                outer_row(wide, up, 0, pixel, gp, 0, grad, 1, tiles, m + plane * 16 * step, step, 16, spare)
            for o in range(0, step, LANES * 4):
                add_tap_grads(m + o, step, 16 * step, 16, dw + c * grad + block * 64 + o, grad, channels * grad)
