"""Depthwise convolutions (one output per input channel), forward and backward.

    y[n, oh, ow, c] = finish(sum over kh, kw of (x[n, oh*SH + kh*DH - PT, ow*SW + kw*DW - PL, c] - zero) * w[kh, kw, c])
    dw[(kh, kw), c] += sum over n, oh, ow of (x[..] - zero) * dy[n, oh, ow, c]
    dx[n, h, w, c] (+)= sum over kh, kw of dy[n, (h + PT - kh)/SH, (w + PL - kw)/SW, c] * scale[c] * w[kh, kw, c]

    x [n][H][W][C]   weights [1][KH][KW][C]   y, dy [n][OH][OW][C]   dw [KH*KW][C rounded up to 16]
    packed float32 [C/16][KH*KW][16] (for dx phase by phase)   scratch uint8: sizes of both in `conv_layout.py`

`finish`, `geometry`, `accumulate` and the order of sums are those of `conv.py` and `conv_backward.py`; backward,
dilations are 1. The int8 forward pass multiplies in float32 and is exact: up to 512 taps no sum reaches 2^24.

Why this layout: a vector is 16 channels of a pixel; where a layer has 1, 2, 4 or 8 channels it is 16, 8, 4 or 2 pixels
side by side, and strided columns are split apart when the image is padded, so that they do lie side by side.
"""

import numpy as np

from engine.kernels._jit import NATIVE, inner, kernel
from engine.kernels.conv import FLOAT, ONCE, TWICE, finish_row
from engine.kernels.conv_images import bring_floats, clear, fill, fill_image
from engine.kernels.conv_layout import (
    SLACK,
    aligned,
    blocks_of,
    grad_height,
    grad_width,
    lanes_of,
    padded_height,
    padded_width,
    phase_taps,
    reach,
    split_width,
    splits_of,
    table_bytes,
    vectors_of,
)

if not NATIVE:
    from engine.kernels._depth_tiles import (
        tile_depth_dw_8,
        tile_depth_dw_16,
        tile_depth_float,
        tile_depth_float_few,
        tile_depth_float_many,
        tile_depth_float_one,
        tile_depth_int,
        tile_depth_int_few,
        tile_depth_int_many,
        tile_depth_int_one,
    )
    from engine.kernels._vector import DEPTH, LANES, address, write_float, write_int32, write_int64

    MANY, SOME, FEW = DEPTH


@kernel("void(int8[:, :, :, ::1], float32[::1])")
def pack_depthwise_int8(weights, packed):
    """Fill `packed` for `depthwise_forward_int8`: whole numbers as float32."""
    _, rows, columns, channels = weights.shape
    lanes = lanes_of(channels)
    for at in range(blocks_of(channels) * rows * columns * 16):
        tap = at // 16 % (rows * columns)
        c = at // (16 * rows * columns) * 16 + at % 16 % lanes
        packed[at] = np.float32(weights[0, tap // columns, tap % columns, c]) if c < channels else np.float32(0.0)


@kernel("void(float32[:, :, :, ::1], float32[::1])")
def pack_depthwise_float(weights, packed):
    """Fill `packed` for `depthwise_forward_float`."""
    _, rows, columns, channels = weights.shape
    lanes = lanes_of(channels)
    for at in range(blocks_of(channels) * rows * columns * 16):
        tap = at // 16 % (rows * columns)
        c = at // (16 * rows * columns) * 16 + at % 16 % lanes
        packed[at] = weights[0, tap // columns, tap % columns, c] if c < channels else np.float32(0.0)


@kernel("void(int8[:, :, :, ::1], float32[::1], int64[::1], float32[::1])")
def pack_depthwise_inputs_int8(weights, scale, geometry, packed):
    """Fill `packed` for `depthwise_backward_inputs` with scale[c] * weights[c]."""
    channels, lanes, at = weights.shape[3], lanes_of(weights.shape[3]), 0
    for a in range(geometry[2]):
        for b in range(geometry[3]):
            rows, columns = phase_taps(geometry[0], geometry[2], a), phase_taps(geometry[1], geometry[3], b)
            for block in range(blocks_of(channels)):
                for tap in range(rows * columns):
                    kh = a + geometry[2] * (rows - 1 - tap // columns)
                    kw = b + geometry[3] * (columns - 1 - tap % columns)
                    for lane in range(16):
                        c = block * 16 + lane % lanes
                        packed[at] = scale[c] * np.float32(weights[0, kh, kw, c]) if c < channels else np.float32(0.0)
                        at += 1


@kernel("void(float32[:, :, :, ::1], int64[::1], float32[::1])")
def pack_depthwise_inputs_float(weights, geometry, packed):
    """Fill `packed` for `depthwise_backward_inputs` with the weights."""
    channels, lanes, at = weights.shape[3], lanes_of(weights.shape[3]), 0
    for a in range(geometry[2]):
        for b in range(geometry[3]):
            rows, columns = phase_taps(geometry[0], geometry[2], a), phase_taps(geometry[1], geometry[3], b)
            for block in range(blocks_of(channels)):
                for tap in range(rows * columns):
                    kh = a + geometry[2] * (rows - 1 - tap // columns)
                    kw = b + geometry[3] * (columns - 1 - tap % columns)
                    for lane in range(16):
                        c = block * 16 + lane % lanes
                        packed[at] = weights[0, kh, kw, c] if c < channels else np.float32(0.0)
                        at += 1


@inner
def sum_row(whole, x, step, table, taps, weights, y, y_step, vectors):
    """Fill `vectors` vectors of 16 sums; the last tile lies over the one before it where the tile does not fit."""
    done = 0
    while done < vectors:
        left, size = vectors - done, 1
        if left >= MANY:
            size = MANY
        elif vectors >= SOME and left > FEW:
            size = SOME
        elif vectors >= FEW:
            size = FEW
        at = min(done, vectors - size)
        done = at + size
        xp, yp = x + at * step, y + at * y_step
        if size == MANY:
            if whole:
                tile_depth_int_many(xp, step, table, taps, weights, yp, y_step)
            else:
                tile_depth_float_many(xp, step, table, taps, weights, yp, y_step)
        elif size == SOME:
            if whole:
                tile_depth_int(xp, step, table, taps, weights, yp, y_step)
            else:
                tile_depth_float(xp, step, table, taps, weights, yp, y_step)
        elif size == FEW:
            if whole:
                tile_depth_int_few(xp, step, table, taps, weights, yp, y_step)
            else:
                tile_depth_float_few(xp, step, table, taps, weights, yp, y_step)
        elif whole:
            tile_depth_int_one(xp, step, table, taps, weights, yp, y_step)
        else:
            tile_depth_float_one(xp, step, table, taps, weights, yp, y_step)


@inner
def fill_split(kind, source, height, width, channels, zero, rows, columns, geometry, target):
    """Put one sample into the forward image [rows][splits][columns][lanes]."""
    lanes, splits = lanes_of(channels), splits_of(channels, geometry)
    top, left = geometry[4], geometry[5]
    if splits == 1 and lanes == channels:
        fill_image(kind, source, height, width, channels, zero, rows, columns, top, left, target)
        return
    element = 1 if kind > 0 else 4
    for h in range(min(height, rows - top)):
        for w in range(min(width, columns * splits - left)):
            split, column = (w + left) % splits, (w + left) // splits
            at = target + (((h + top) * splits + split) * columns + column) * lanes * 4
            fill(kind, source + (h * width + w) * channels * element, at, channels, zero)


@inner
def depthwise_forward(finish, source, shape, zero_in, weights, fixed, limits, geometry, params, target, out_shape):
    """Go through samples, rows and blocks of channels; `params` is the scratch's start."""
    samples, height, width, channels = shape
    _, out_height, out_width, _ = out_shape
    kind, element, out_element = (0, 4, 4) if finish == FLOAT else (4, 1, 1)
    lanes, splits, blocks = lanes_of(channels), splits_of(channels, geometry), blocks_of(channels)
    rows, columns = padded_height(out_height, geometry), split_width(out_width, channels, geometry)
    vectors, taps = vectors_of(out_width, channels), geometry[0] * geometry[1]
    table = params + blocks * 256
    row = table + table_bytes(geometry)
    narrow = row + vectors * 64
    image = narrow + aligned(vectors * 16)
    for tap in range(taps):
        column = tap % geometry[1] * geometry[7]
        over = (tap // geometry[1] * geometry[6] * splits + column % splits) * columns + column // splits
        write_int64(table, tap, over * lanes * 4)
    clear(image, aligned(rows * splits * columns * lanes * 4 + SLACK))
    step = 64 if lanes < 16 else geometry[3] * lanes * 4
    for n in range(samples):
        x = source + n * height * width * channels * element
        fill_split(kind, x, height, width, channels, zero_in, rows, columns, geometry, image)
        for oh in range(out_height):
            x = image + oh * geometry[2] * splits * columns * lanes * 4
            y = target + (n * out_height + oh) * out_width * channels * out_element
            for block in range(blocks):
                w, p = weights + block * taps * 64, params + block * 256
                sum_row(finish != FLOAT, x + block * 64, step, table, taps, w, row, 64, vectors)
                if lanes < 16:
                    full, rest = out_width * channels // 16, out_width * channels % 16
                    finish_row(finish, row, 64, p, fixed, limits, y, 16, full, 16, narrow)
                    end = y + full * 16 * out_element
                    finish_row(finish, row + full * 64, 64, p, fixed, limits, end, 16, min(rest, 1), rest, narrow)
                else:
                    used = min(16, channels - block * 16)
                    to = y + block * 16 * out_element
                    finish_row(finish, row, 64, p, fixed, limits, to, channels, vectors, used, narrow)


@kernel(
    "void(int8[:, :, :, ::1], int64, float32[::1], int32[::1], int32[::1], int32[::1], int64, int64, int64, boolean,"
    " int64[::1], uint8[::1], int8[:, :, :, ::1])"
)
def depthwise_forward_int8(
    x, zero_in, packed, bias, multiplier, shift, zero_out, low, high, double_rounding, geometry, scratch, y
):
    """Fill the int8 `y`, as `conv_forward_int8` does."""
    params, channels = address(scratch), bias.shape[0]
    for lane in range(blocks_of(channels) * 16):
        at, i = params + lane // 16 * 256, lane % 16
        c = lane if lanes_of(channels) >= 16 else lane % channels
        used = c < channels and shift[c] >= -31
        write_int32(at, i, bias[c] if used else 0)
        write_int32(at, i + 16, multiplier[c] if used else 0)
        write_int32(at, i + 32, max(shift[c], 0) if used else 0)
        write_int32(at, i + 48, max(-shift[c], 0) if used else 0)
    finish = TWICE if double_rounding else ONCE
    fixed, limits = (zero_out, low, high), (np.float32(0.0), np.float32(0.0))
    depthwise_forward(
        finish, address(x), x.shape, zero_in, address(packed), fixed, limits, geometry, params, address(y), y.shape
    )


@kernel(
    "void(float32[:, :, :, ::1], float32[::1], float32[::1], float32, float32, int64[::1], uint8[::1],"
    " float32[:, :, :, ::1])"
)
def depthwise_forward_float(x, packed, bias, low, high, geometry, scratch, y):
    """Fill the float32 `y`, as `conv_forward_float` does."""
    params, channels = address(scratch), bias.shape[0]
    for lane in range(blocks_of(channels) * 16):
        c = lane if lanes_of(channels) >= 16 else lane % channels
        write_float(params + lane // 16 * 256, lane % 16, bias[c] if c < channels else np.float32(0.0))
    depthwise_forward(
        FLOAT, address(x), x.shape, 0, address(packed), (0, 0, 0), (low, high), geometry, params, address(y), y.shape
    )


@inner
def widen_pixels(kind, source, pixels, channels, zero, step, target):
    """Copy pixels one by one to where they lie `step` bytes apart."""
    element = 1 if kind > 0 else 4
    for p in range(pixels):
        fill(kind, source + p * channels * element, target + p * step, channels, zero)


@inner
def depthwise_weights(kind, source, shape, zero_in, grads, out_shape, geometry, scratch, dw):
    """Go through samples, blocks of channels and tiles of taps."""
    samples, height, width, channels = shape
    _, out_height, out_width, _ = out_shape
    element = 1 if kind == 4 else 4
    step, pixels = (channels + 7) // 8 * 32, out_height * out_width
    rows, columns = padded_height(out_height, geometry), padded_width(out_width, geometry)
    padded = scratch + 64
    image = padded + aligned(pixels * step)
    whole = channels % 8 == 0
    clear(padded, aligned(pixels * step) + aligned(rows * columns * step + SLACK))
    top, left = geometry[4], geometry[5]
    for n in range(samples):
        x, dy = source + n * height * width * channels * element, grads + n * pixels * channels * 4
        if whole:
            fill_image(kind, x, height, width, channels, zero_in, rows, columns, top, left, image)
        else:
            for h in range(min(height, rows - top)):
                at = image + ((h + top) * columns + left) * step
                count = min(width, columns - left)
                widen_pixels(kind, x + h * width * channels * element, count, channels, zero_in, step, at)
            widen_pixels(0, dy, pixels, channels, 0, step, padded)
            dy = padded
        row, pixel, across = geometry[2] * columns * step, geometry[3] * step, out_width * step
        dw_tap = blocks_of(channels) * 64
        dw_row = geometry[1] * dw_tap
        for kh in range(0, geometry[0], 3):
            for kw in range(0, geometry[1], 3):
                down, over = min(3, geometry[0] - kh), min(3, geometry[1] - kw)
                at = 0
                while at < step:
                    xp, dyp = image + (kh * columns + kw) * step + at, dy + at
                    to = dw + kh * dw_row + kw * dw_tap + at
                    if LANES == 16 and at + 64 <= step:
                        tile_depth_dw_16(
                            xp,
                            row,
                            pixel,
                            columns * step,
                            step,
                            dyp,
                            across,
                            step,
                            out_height,
                            out_width,
                            to,
                            dw_row,
                            dw_tap,
                            down,
                            over,
                            scratch,
                        )
                        at += 64
                    else:
                        tile_depth_dw_8(
                            xp,
                            row,
                            pixel,
                            columns * step,
                            step,
                            dyp,
                            across,
                            step,
                            out_height,
                            out_width,
                            to,
                            dw_row,
                            dw_tap,
                            down,
                            over,
                            scratch,
                        )
                        at += 32


@kernel("void(int8[:, :, :, ::1], int64, float32[:, :, :, ::1], int64[::1], uint8[::1], float32[:, ::1])")
def depthwise_backward_weights_int8(x, zero_in, dy, geometry, scratch, dw):
    """Add to `dw` the sums of (x - zero_in) * dy."""
    depthwise_weights(4, address(x), x.shape, zero_in, address(dy), dy.shape, geometry, address(scratch), address(dw))


@kernel("void(float32[:, :, :, ::1], float32[:, :, :, ::1], int64[::1], uint8[::1], float32[:, ::1])")
def depthwise_backward_weights_float(x, dy, geometry, scratch, dw):
    """Add to `dw` the sums of x * dy."""
    depthwise_weights(0, address(x), x.shape, 0, address(dy), dy.shape, geometry, address(scratch), address(dw))


@kernel("void(float32[:, :, :, ::1], float32[::1], int64[::1], boolean, uint8[::1], float32[:, :, :, ::1])")
def depthwise_backward_inputs(dy, packed, geometry, accumulate, scratch, dx):
    """Fill `dx`, or add to it, from dy and the weights as `pack_depthwise_inputs_*` lays them out."""
    samples, height, width, channels = dx.shape
    _, out_height, out_width, _ = dy.shape
    stride_h, stride_w, top, left = geometry[2], geometry[3], geometry[4], geometry[5]
    lanes, blocks = lanes_of(channels), blocks_of(channels)
    rows, columns = grad_height(height, out_height, geometry), grad_width(width, out_width, geometry)
    above, before = reach(geometry[0], stride_h) - 1, reach(geometry[1], stride_w) - 1
    table = address(scratch)
    sums = table + table_bytes(geometry)
    image = sums + vectors_of(width, channels) * 64
    step, pixel = (64 if lanes < 16 else lanes * 4), lanes * 4
    straight = channels % 16 == 0 and not accumulate
    clear(image, aligned(rows * columns * pixel + SLACK))
    for n in range(samples):
        source = address(dy) + n * out_height * out_width * channels * 4
        if lanes == channels:
            fill_image(0, source, out_height, out_width, channels, 0, rows, columns, above, before, image)
        else:
            for oh in range(out_height):
                at = image + ((oh + above) * columns + before) * pixel
                widen_pixels(0, source + oh * out_width * channels * 4, out_width, channels, 0, pixel, at)
        weights = address(packed)
        for a in range(stride_h):
            taps_h, first_h = phase_taps(geometry[0], stride_h, a), (top - a + stride_h - 1) // stride_h
            last_h = (height - 1 + top - a) // stride_h
            for b in range(stride_w):
                taps_w, first_w = phase_taps(geometry[1], stride_w, b), (left - b + stride_w - 1) // stride_w
                count = (width - 1 + left - b) // stride_w - first_w + 1
                taps = taps_h * taps_w
                for tap in range(taps):
                    write_int64(table, tap, (tap // taps_w * columns + tap % taps_w) * pixel)
                for q in range(first_h, last_h + 1):
                    h, w = q * stride_h + a - top, first_w * stride_w + b - left
                    to = address(dx) + ((n * height + h) * width + w) * channels * 4
                    x = image + ((q - taps_h + 1 + above) * columns + first_w - taps_w + 1 + before) * pixel
                    if taps == 0:
                        x = image
                    for block in range(blocks):
                        used = min(16, channels - block * 16)
                        w = weights + block * taps * 64
                        if taps > 0 and straight:
                            apart = stride_w * channels * 4
                            sum_row(False, x + block * 64, step, table, taps, w, to + block * 64, apart, count)
                        elif taps > 0:
                            sum_row(False, x + block * 64, step, table, taps, w, sums, 64, vectors_of(count, channels))
                            if lanes < 16 and stride_w == 1:
                                bring_floats(accumulate, sums, 0, to, 0, channels * count, 1)
                            else:
                                between = lanes * 4 if lanes < 16 else 64
                                apart = stride_w * channels * 4
                                bring_floats(accumulate, sums, between, to + block * 64, apart, used, count)
                        elif not accumulate:
                            for p in range(count):
                                clear(to + block * 64 + p * stride_w * channels * 4, used * 4)
                weights += taps * blocks * 64
