"""Convolutions backward, all in float32: gradients of weights, of inputs and of the bias.

    dw[(kh, kw, c), o] += sum over n, oh, ow of (x[n, oh*SH + kh - PT, ow*SW + kw - PL, c] - zero) * dy[n, oh, ow, o]
    dx[n, h, w, c]     (+)= sum over kh, kw, o of dy[n, (h + PT - kh)/SH, (w + PL - kw)/SW, o] * weights[o, kh, kw, c]
    db[o]              += sum over n, oh, ow of dy[n, oh, ow, o]

    x [n][H][W][C]   dy [n][OH][OW][O]   dx [n][H][W][C]   dw [KH*KW*C][O rounded up to 16]   db [O]
    packed float32, phase by phase [C/16][taps of the phase][16]: sizes of it and of scratch in `conv_layout.py`

Where weights are int8, `pack_inputs_int8` multiplies them by the scale of their output. Dilations are 1. Order of every
sum: pixels (n, oh, ow) ascending for dw and db, one fused multiply-add (one addition) per term on top of what is there,
so that a batch in two halves gives the bits of the whole; dy (row, column, output) ascending for dx, one fused
multiply-add per term from zero; `accumulate` adds that sum to dx in one rounding.

Strided inputs are done by phases: of a stride S only every S-th tap reaches a given input, and the inputs that the same
taps reach form a convolution of stride 1 over dy. So nothing is multiplied by a zero that was put in between.

Most 3x3 layers of stride 1 go the way of `winograd.py` instead, in its own fixed order: dw gets one sum per sample, so
that two halves of a batch still give the bits of the whole.
"""

import numpy as np

from engine.kernels._jit import NATIVE, inner, kernel
from engine.kernels.conv_images import bring_floats, clear, fill, fill_image, move_floats
from engine.kernels.conv_layout import (
    RUN,
    SLACK,
    aligned,
    blocks_of,
    grad_height,
    grad_width,
    is_pointwise,
    is_winograd,
    is_winograd_weights,
    padded_height,
    padded_width,
    phase_taps,
    reach,
    row_bytes,
)
from engine.kernels.conv_rows import WIDE, outer_row, row_float
from engine.kernels.winograd import wino_image, wino_pack_float, wino_pack_int8, wino_weights

if not NATIVE:
    from engine.kernels._finish import scale_sixteen_floats, scale_sixteen_int8
    from engine.kernels._tiles import tile_column_1, tile_column_8, tile_column_16, tile_column_32
    from engine.kernels._vector import address


@kernel("void(int8[:, :, :, ::1], float32[::1], int64[::1], float32[::1])")
def pack_inputs_int8(weights, scale, geometry, packed):
    """Fill `packed` for `conv_backward_inputs` with scale[o] * weights[o]."""
    outputs, _, _, channels = weights.shape
    if is_winograd(channels, outputs, geometry):
        wino_pack_int8(address(weights), scale, outputs, channels, address(packed))
        return
    at = 0
    for a in range(geometry[2]):
        for b in range(geometry[3]):
            rows, columns = phase_taps(geometry[0], geometry[2], a), phase_taps(geometry[1], geometry[3], b)
            for block in range(blocks_of(channels)):
                for j in range(rows):
                    for i in range(columns):
                        kh, kw = a + geometry[2] * (rows - 1 - j), b + geometry[3] * (columns - 1 - i)
                        for o in range(outputs):
                            if block * 16 + 16 <= channels:
                                w = address(weights) + (
                                    ((o * geometry[0] + kh) * geometry[1] + kw) * channels + block * 16
                                )
                                scale_sixteen_int8(w, scale[o], address(packed) + at * 4)
                            else:
                                for c in range(block * 16, block * 16 + 16):
                                    packed[at + c % 16] = (
                                        scale[o] * np.float32(weights[o, kh, kw, c]) if c < channels else 0.0
                                    )
                            at += 16


@kernel("void(float32[:, :, :, ::1], int64[::1], float32[::1])")
def pack_inputs_float(weights, geometry, packed):
    """Fill `packed` for `conv_backward_inputs` with the weights."""
    outputs, _, _, channels = weights.shape
    if is_winograd(channels, outputs, geometry):
        wino_pack_float(address(weights), outputs, channels, address(packed))
        return
    at = 0
    for a in range(geometry[2]):
        for b in range(geometry[3]):
            rows, columns = phase_taps(geometry[0], geometry[2], a), phase_taps(geometry[1], geometry[3], b)
            for block in range(blocks_of(channels)):
                for j in range(rows):
                    for i in range(columns):
                        kh, kw = a + geometry[2] * (rows - 1 - j), b + geometry[3] * (columns - 1 - i)
                        for o in range(outputs):
                            if block * 16 + 16 <= channels:
                                w = (
                                    address(weights)
                                    + (((o * geometry[0] + kh) * geometry[1] + kw) * channels + block * 16) * 4
                                )
                                scale_sixteen_floats(w, np.float32(1.0), address(packed) + at * 4)
                            else:
                                for c in range(block * 16, block * 16 + 16):
                                    packed[at + c % 16] = weights[o, kh, kw, c] if c < channels else 0.0
                            at += 16


@inner
def backward_weights(kind, source, shape, zero_in, grads, out_shape, geometry, scratch, dw):
    """Go through samples (runs of pixels where 1x1), blocks of outputs and kernel rows."""
    samples, height, width, channels = shape
    _, out_height, out_width, outputs = out_shape
    blocks, flat = blocks_of(outputs), is_pointwise(geometry)
    element, whole = 1 if kind == 4 else 4, outputs % 16 == 0
    rows, columns, total = padded_height(out_height, geometry), padded_width(out_width, geometry), 0
    pixels, across, down = out_height * out_width, out_width, out_height
    if flat:
        total = samples * out_height * out_width
        samples, pixels, rows, columns, down = (total + RUN - 1) // RUN, RUN, 1, RUN, 1
    padded = scratch + 128
    image = padded + pixels * blocks * 64
    step = outputs * 4 if whole else blocks * 64
    clear(padded, pixels * blocks * 64 + aligned(rows * columns * channels * 4 + SLACK))
    pixel = channels * 4
    for n in range(samples):
        at, count = n * pixels, pixels
        if flat:
            count = min(RUN, total - at)
            across = count
            fill(kind, source + at * channels * element, image, count * channels, zero_in)
        else:
            x = source + n * height * width * channels * element
            fill_image(kind, x, height, width, channels, zero_in, rows, columns, geometry[4], geometry[5], image)
        dy = grads + at * outputs * 4
        if not whole:
            move_floats(dy, outputs * 4, padded, step, outputs, count)
            dy = padded
        for block in range(0, blocks, WIDE):
            wide = min(WIDE, blocks - block)
            for kh in range(geometry[0]):
                outer_row(
                    wide,
                    image + kh * columns * pixel,
                    geometry[2] * columns * pixel,
                    geometry[3] * pixel,
                    dy + block * 64,
                    across * step,
                    step,
                    down,
                    across,
                    dw + kh * geometry[1] * channels * blocks * 64 + block * 64,
                    blocks * 64,
                    geometry[1] * channels,
                    scratch,
                )


@inner
def backward_weights_wino(kind, source, shape, zero_in, grads, out_shape, geometry, scratch, dw):
    """Go through samples, each in Winograd's way."""
    samples, height, width, channels = shape
    _, out_height, out_width, outputs = out_shape
    element = 1 if kind == 4 else 4
    rows, columns = padded_height(out_height, geometry), padded_width(out_width, geometry)
    size = aligned(rows * columns * channels * 4 + SLACK)
    image, free = scratch, scratch + size
    clear(image, size)
    for n in range(samples):
        x = source + n * height * width * channels * element
        fill_image(kind, x, height, width, channels, zero_in, rows, columns, geometry[4], geometry[5], image)
        dy = grads + n * out_height * out_width * outputs * 4
        wino_weights(image, columns, channels, dy, out_height, out_width, outputs, dw, free)


@kernel("void(int8[:, :, :, ::1], int64, float32[:, :, :, ::1], int64[::1], uint8[::1], float32[:, ::1])")
def conv_backward_weights_int8(x, zero_in, dy, geometry, scratch, dw):
    """Add to `dw` the sums of (x - zero_in) * dy; columns of `dw` beyond O are left as they are or become zero sums."""
    if is_winograd_weights(dy.shape[1], dy.shape[2], x.shape[3], dy.shape[3], geometry):
        backward_weights_wino(
            4, address(x), x.shape, zero_in, address(dy), dy.shape, geometry, address(scratch), address(dw)
        )
    else:
        backward_weights(
            4, address(x), x.shape, zero_in, address(dy), dy.shape, geometry, address(scratch), address(dw)
        )


@kernel("void(float32[:, :, :, ::1], float32[:, :, :, ::1], int64[::1], uint8[::1], float32[:, ::1])")
def conv_backward_weights_float(x, dy, geometry, scratch, dw):
    """Add to `dw` the sums of x * dy."""
    if is_winograd_weights(dy.shape[1], dy.shape[2], x.shape[3], dy.shape[3], geometry):
        backward_weights_wino(0, address(x), x.shape, 0, address(dy), dy.shape, geometry, address(scratch), address(dw))
    else:
        backward_weights(0, address(x), x.shape, 0, address(dy), dy.shape, geometry, address(scratch), address(dw))


@inner
def phase_row(accumulate, x, pixel, row, rows, taps, weights, blocks, target, apart, channels, count, sums):
    """Fill one row of one phase of dx; straight into dx where whole blocks fit and nothing is to be added."""
    straight = channels % 16 == 0 and not accumulate
    weight_block = rows * taps * 64
    for block in range(0, blocks, WIDE):
        wide = min(WIDE, blocks - block)
        w, to = weights + block * weight_block, target + block * 64
        if straight:
            row_float(wide, x, pixel, row, rows, taps, w, weight_block, to, apart, count)
        else:
            row_float(wide, x, pixel, row, rows, taps, w, weight_block, sums, wide * 64, count)
            for part in range(wide):
                used = min(16, channels - (block + part) * 16)
                bring_floats(accumulate, sums + part * 64, wide * 64, to + part * 64, apart, used, count)


@inner
def no_taps(target, apart, channels, count):
    """Write zeros to inputs that no output sees."""
    for p in range(count):
        clear(target + p * apart, channels * 4)


@inner
def backward_inputs(grads, out_shape, packed, geometry, accumulate, sums, target, shape):
    """Go through samples, phases and rows of dx."""
    samples, height, width, channels = shape
    _, out_height, out_width, outputs = out_shape
    stride_h, stride_w, top, left = geometry[2], geometry[3], geometry[4], geometry[5]
    image, blocks = sums + row_bytes(width, geometry), blocks_of(channels)
    rows, columns = grad_height(height, out_height, geometry), grad_width(width, out_width, geometry)
    above, before = reach(geometry[0], stride_h) - 1, reach(geometry[1], stride_w) - 1
    pixel = outputs * 4
    clear(image, aligned(rows * columns * pixel + SLACK))
    for n in range(samples):
        dy = grads + n * out_height * out_width * pixel
        fill_image(0, dy, out_height, out_width, outputs, 0, rows, columns, above, before, image)
        weights = packed
        for a in range(stride_h):
            taps_h, first_h = phase_taps(geometry[0], stride_h, a), (top - a + stride_h - 1) // stride_h
            last_h = (height - 1 + top - a) // stride_h
            for b in range(stride_w):
                taps_w, first_w = phase_taps(geometry[1], stride_w, b), (left - b + stride_w - 1) // stride_w
                count = (width - 1 + left - b) // stride_w - first_w + 1
                for q in range(first_h, last_h + 1):
                    h, w = q * stride_h + a - top, first_w * stride_w + b - left
                    to = target + ((n * height + h) * width + w) * channels * 4
                    if taps_h > 0 and taps_w > 0:
                        x = image + ((q - taps_h + 1 + above) * columns + first_w - taps_w + 1 + before) * pixel
                        phase_row(
                            accumulate,
                            x,
                            pixel,
                            columns * pixel,
                            taps_h,
                            taps_w * outputs,
                            weights,
                            blocks,
                            to,
                            stride_w * channels * 4,
                            channels,
                            count,
                            sums,
                        )
                    elif not accumulate:
                        no_taps(to, stride_w * channels * 4, channels, count)
                weights += taps_h * taps_w * outputs * blocks * 64


@inner
def backward_inputs_wino(grads, out_shape, packed, geometry, accumulate, scratch, target, shape):
    """Go through samples, each in Winograd's way."""
    samples, height, width, channels = shape
    _, out_height, out_width, outputs = out_shape
    rows, columns = grad_height(height, out_height, geometry), grad_width(width, out_width, geometry)
    size = aligned((rows + 1) * columns * outputs * 4 + SLACK)
    image, free = scratch, scratch + size
    clear(image, size)
    x = image + (geometry[4] * columns + geometry[5]) * outputs * 4
    for n in range(samples):
        dy = grads + n * out_height * out_width * outputs * 4
        fill_image(0, dy, out_height, out_width, outputs, 0, rows, columns, 2, 2, image)
        dx = target + n * height * width * channels * 4
        wino_image(accumulate, x, columns, outputs, packed, channels, height, width, dx, free)


@kernel("void(float32[:, :, :, ::1], float32[::1], int64[::1], boolean, uint8[::1], float32[:, :, :, ::1])")
def conv_backward_inputs(dy, packed, geometry, accumulate, scratch, dx):
    """Fill `dx`, or add to it, from dy and the weights as `pack_inputs_*` lays them out."""
    samples, height, width, channels = dx.shape
    outputs = dy.shape[3]
    if is_pointwise(geometry):
        pixels = samples * height * width
        for at in range(0, pixels, RUN):
            phase_row(
                accumulate,
                address(dy) + at * outputs * 4,
                outputs * 4,
                0,
                1,
                outputs,
                address(packed),
                blocks_of(channels),
                address(dx) + at * channels * 4,
                channels * 4,
                channels,
                min(RUN, pixels - at),
                address(scratch),
            )
    elif is_winograd(channels, outputs, geometry):
        backward_inputs_wino(
            address(dy), dy.shape, address(packed), geometry, accumulate, address(scratch), address(dx), dx.shape
        )
    else:
        backward_inputs(
            address(dy), dy.shape, address(packed), geometry, accumulate, address(scratch), address(dx), dx.shape
        )


@kernel("void(float32[:, :, :, ::1], float32[::1])")
def bias_gradient(dy, db):
    """Add to `db` the sums of dy."""
    outputs = dy.shape[3]
    pixels, step, o = dy.shape[0] * dy.shape[1] * dy.shape[2], outputs * 4, 0
    while o < outputs:
        x, y = address(dy) + o * 4, address(db) + o * 4
        if o + 32 <= outputs:
            tile_column_32(x, step, pixels, y)
            o += 32
        elif o + 16 <= outputs:
            tile_column_16(x, step, pixels, y)
            o += 16
        elif o + 8 <= outputs:
            tile_column_8(x, step, pixels, y)
            o += 8
        else:
            tile_column_1(x, step, pixels, y)
            o += 1
