"""Convolutions forward: exact int8, the same with real results, and float32; and the packing of their weights.

    y[n, oh, ow, o] = finish(sum over kh, kw, c of (x[n, h, w, c] - zero) * weights[o, kh, kw, c])
                      h = oh*SH + kh*DH - PT      w = ow*SW + kw*DW - PL      x outside the image is `zero`

    x [n][H][W][C]   weights [O][KH][KW][C]   y [n][OH][OW][O]   geometry int64 [8]: KH, KW, SH, SW, PT, PL, DH, DW
    pairs int16 [O/16][KH][KW*C/2][16][2]     packed float32 [O/16][KH*KW*C][16]     bias int32 or float32 [O]
    scratch uint8, of any content: its size and those of packed weights are in `conv_layout.py`

Padding below and to the right follows from the shapes. A fully connected layer is 1x1 on x [n][1][1][I].

int8: sums are int32 and wrap, as in TensorFlow Lite; + bias; times multiplier * 2^(shift - 31), rounded twice
(gemmlowp, TensorFlow Lite's reference kernels) or once; + zero_out; clamped to [low, high]. A shift below -31 gives
zero. real: y = float32(sum + bias) * scale[o], for logits. float: one fused multiply-add per term, taps (row, column,
channel) ascending, + bias, clamped to [low, high]; a NaN stays a NaN.

Why this layout: in NHWC the taps of one kernel row are one run of KW*C numbers, for weights and for inputs, so a sample
that lies padded in scratch needs no other rearrangement. Blocks of outputs are outermost within a sample: the block's
weights stay in the cache while the sample passes by. `winograd.py` has a shorter way for most 3x3 layers in int8.
"""

import numpy as np

from engine.kernels._jit import NATIVE, inner, kernel
from engine.kernels.conv_images import clear, fill, fill_image, fill_sample, move_bytes, move_floats
from engine.kernels.conv_layout import (
    RUN,
    SLACK,
    aligned,
    blocks_of,
    is_pointwise,
    is_winograd,
    padded_height,
    padded_width,
    row_bytes,
    wino_groups,
    wino_rows,
)
from engine.kernels.conv_rows import WIDE, row_float, row_pairs
from engine.kernels.winograd import APART, wino_block_sums, wino_pack_pairs, wino_rows_out, wino_tiles

if not NATIVE:
    from engine.kernels._finish import finish_floats, requantize_once, requantize_twice
    from engine.kernels._vector import address, read_float, read_int32, write_float, write_int32

TWICE, ONCE, REAL, FLOAT = range(4)  # how sums become results


@kernel("void(int8[:, :, :, ::1], int64[::1], int16[::1])")
def pack_pairs(weights, geometry, pairs):
    """Fill `pairs` for `conv_forward_int8` and `conv_forward_real`."""
    outputs, rows, columns, channels = weights.shape
    if is_winograd(channels, outputs, geometry):
        wino_pack_pairs(weights, pairs)
        return
    half = (columns * channels + 1) // 2
    for o in range(blocks_of(outputs) * 16):
        for kh in range(rows):
            at = ((o // 16 * rows + kh) * half * 16 + o % 16) * 2
            for kw in range(columns):
                for c in range(channels):
                    t = kw * channels + c
                    pairs[at + t // 2 * 32 + t % 2] = weights[o, kh, kw, c] if o < outputs else 0
            if columns * channels % 2 == 1:
                pairs[at + half * 32 - 31] = 0


@kernel("void(float32[:, :, :, ::1], float32[::1])")
def pack_float(weights, packed):
    """Fill `packed` for `conv_forward_float`."""
    outputs, rows, columns, channels = weights.shape
    at = 0
    for block in range(blocks_of(outputs)):
        for kh in range(rows):
            for kw in range(columns):
                for c in range(channels):
                    for o in range(block * 16, block * 16 + 16):
                        packed[at] = weights[o, kh, kw, c] if o < outputs else np.float32(0.0)
                        at += 1


@inner
def image_sums(image, item, channels, columns, out_row, count, geometry, blocks, weights, block, y, y_pixel):
    """Sum one row of `count` output pixels from the padded image, for one tile's blocks of outputs."""
    step = channels * item
    pixel = (geometry[1] if geometry[7] != 1 else geometry[3]) * step
    x = image + out_row * geometry[2] * columns * step
    rows, taps, row = geometry[0], geometry[1] * channels, geometry[6] * columns * step
    if item == 2:
        row_pairs(blocks, x, pixel, row, rows, (taps + 1) // 2, weights, block, y, y_pixel, count)
    else:
        row_float(blocks, x, pixel, row, rows, taps, weights, block, y, y_pixel, count)


@inner
def finish_row(finish, sums, step, params, fixed, limits, y, outputs, count, used, narrow):
    """Turn 16 sums of each of `count` pixels into results; only the first `used` of the 16 exist in `y`."""
    if finish == REAL:
        for p in range(count):
            for o in range(used):
                total = read_int32(sums + p * step, o) + read_int32(params, o)
                write_float(y + p * outputs * 4, o, np.float32(total) * read_float(params + 64, o))
    elif finish == FLOAT and count > 0:
        low, high = limits
        to, apart = (y, outputs * 4) if used == 16 else (sums, step)
        finish_floats(sums, step, params, low, high, to, apart, count)
        if used < 16:
            move_floats(sums, step, y, outputs * 4, used, count)
    elif count > 0:
        zero, low, high = fixed
        to, apart = (y, outputs) if used == 16 else (narrow, 16)
        if finish == TWICE:
            requantize_twice(sums, step, params, zero, low, high, to, apart, count)
        else:
            requantize_once(sums, step, params, zero, low, high, to, apart, count)
        if used < 16:
            move_bytes(narrow, 16, y, outputs, used, count)


@inner
def forward_wino(finish, source, shape, zero_in, weights, fixed, limits, geometry, params, target, out_shape):
    """Do the same for int8 in Winograd's way."""
    samples, height, width, channels = shape
    _, out_height, out_width, outputs = out_shape
    out_element = 4 if finish == REAL else 1
    row = params + blocks_of(outputs) * 256
    narrow = row + 2 * row_bytes(out_width, geometry)
    image = narrow + row_bytes(out_width, geometry) // 8
    rows, columns = out_height + 3, out_width + 2
    size = aligned(rows * columns * channels * 2 + SLACK)
    across, strips = (out_width + 1) // 2, wino_rows(out_height, out_width)
    spare = image + size
    u = spare + 64
    m = u + 16 * (strips * across * channels * 2 + APART)
    clear(image, size)
    for n in range(samples):
        x = source + n * height * width * channels
        fill_image(2, x, height, width, channels, zero_in, rows, columns, geometry[4], geometry[5], image)
        for group in range(wino_groups(out_height, out_width)):
            first = group * strips
            count = min(strips, (out_height + 1) // 2 - first)
            wino_tiles(image, columns, channels, first, count, across, strips, u)
            for block in range(0, blocks_of(outputs), WIDE):
                wide = min(WIDE, blocks_of(outputs) - block)
                wino_block_sums(u, channels, weights, block, wide, count * across, strips, across, m)
                for strip in range(count):
                    h = (first + strip) * 2
                    wino_rows_out(m, count * across, wide, strip, out_width, h + 1 < out_height, row, spare)
                    for oh in range(h, min(h + 2, out_height)):
                        sums = row + (oh - h) * out_width * wide * 64
                        for part in range(block, block + wide):
                            y = target + ((n * out_height + oh) * out_width * outputs + part * 16) * out_element
                            at, p = sums + (part - block) * 64, params + part * 256
                            finish_row(finish, at, wide * 64, p, fixed, limits, y, outputs, out_width, 16, narrow)


@inner
def forward(finish, source, shape, zero_in, weights, fixed, limits, geometry, params, target, out_shape):
    """Go through samples (runs of pixels where 1x1), blocks of outputs and rows; `params` is the scratch's start."""
    samples, height, width, channels = shape
    _, out_height, out_width, outputs = out_shape
    if finish != FLOAT and is_winograd(channels, outputs, geometry):
        forward_wino(finish, source, shape, zero_in, weights, fixed, limits, geometry, params, target, out_shape)
        return
    item, kind, element, out_element = (4, 0, 4, 4) if finish == FLOAT else (2, 2, 1, 4 if finish == REAL else 1)
    blocks = blocks_of(outputs)
    row = params + blocks * 256
    narrow = row + row_bytes(out_width, geometry)
    image = narrow + row_bytes(out_width, geometry) // 8
    rows, columns, pixels, count = padded_height(out_height, geometry), padded_width(out_width, geometry), 0, out_width
    flat = is_pointwise(geometry)
    if flat:
        pixels = samples * out_height * out_width
        samples, out_height, rows, columns = (pixels + RUN - 1) // RUN, 1, 1, RUN
    taps = geometry[1] * channels
    weight_block = geometry[0] * ((taps + 1) // 2 if item == 2 else taps) * 64
    clear(image, aligned(rows * columns * channels * item + SLACK))
    for n in range(samples):
        at = n * out_height * out_width
        if flat:
            at = n * RUN
            count = min(RUN, pixels - at)
            fill(kind, source + at * channels * element, image, count * channels, zero_in)
        else:
            x = source + n * height * width * channels * element
            fill_sample(kind, x, height, width, channels, zero_in, rows, columns, out_width, geometry, image)
        for block in range(0, blocks, WIDE):
            wide = min(WIDE, blocks - block)
            w = weights + block * weight_block
            for oh in range(out_height):
                image_sums(image, item, channels, columns, oh, count, geometry, wide, w, weight_block, row, wide * 64)
                for part in range(block, block + wide):
                    sums, used = row + (part - block) * 64, min(16, outputs - part * 16)
                    y = target + ((at + oh * out_width) * outputs + part * 16) * out_element
                    finish_row(
                        finish, sums, wide * 64, params + part * 256, fixed, limits, y, outputs, count, used, narrow
                    )


@kernel(
    "void(int8[:, :, :, ::1], int64, int16[::1], int32[::1], int32[::1], int32[::1], int64, int64, int64, boolean,"
    " int64[::1], uint8[::1], int8[:, :, :, ::1])"
)
def conv_forward_int8(
    x, zero_in, pairs, bias, multiplier, shift, zero_out, low, high, double_rounding, geometry, scratch, y
):
    """Fill the int8 `y`; `multiplier` (>= 0) and `shift` hold one pair per output, `low` and `high` are int8 limits."""
    params = address(scratch)
    for o in range(blocks_of(bias.shape[0]) * 16):
        at, i = params + o // 16 * 256, o % 16
        used = o < bias.shape[0] and shift[o] >= -31
        write_int32(at, i, bias[o] if used else 0)
        write_int32(at, i + 16, multiplier[o] if used else 0)
        write_int32(at, i + 32, max(shift[o], 0) if used else 0)
        write_int32(at, i + 48, max(-shift[o], 0) if used else 0)
    finish = TWICE if double_rounding else ONCE
    fixed, limits = (zero_out, low, high), (np.float32(0.0), np.float32(0.0))
    forward(finish, address(x), x.shape, zero_in, address(pairs), fixed, limits, geometry, params, address(y), y.shape)


@kernel(
    "void(int8[:, :, :, ::1], int64, int16[::1], int32[::1], float32[::1], int64[::1], uint8[::1],"
    " float32[:, :, :, ::1])"
)
def conv_forward_real(x, zero_in, pairs, bias, scale, geometry, scratch, y):
    """Fill the float32 `y` with the exact sums times `scale`, one rounding for each of the two."""
    params = address(scratch)
    for o in range(blocks_of(bias.shape[0]) * 16):
        at, used = params + o // 16 * 256, o < bias.shape[0]
        write_int32(at, o % 16, bias[o] if used else 0)
        write_float(at + 64, o % 16, scale[o] if used else np.float32(0.0))
    fixed, limits = (0, 0, 0), (np.float32(0.0), np.float32(0.0))
    forward(REAL, address(x), x.shape, zero_in, address(pairs), fixed, limits, geometry, params, address(y), y.shape)


@kernel(
    "void(float32[:, :, :, ::1], float32[::1], float32[::1], float32, float32, int64[::1], uint8[::1],"
    " float32[:, :, :, ::1])"
)
def conv_forward_float(x, packed, bias, low, high, geometry, scratch, y):
    """Fill the float32 `y`; infinite limits are no limits."""
    params = address(scratch)
    for o in range(blocks_of(bias.shape[0]) * 16):
        write_float(params + o // 16 * 256, o % 16, bias[o] if o < bias.shape[0] else np.float32(0.0))
    fixed, limits = (0, 0, 0), (low, high)
    forward(FLOAT, address(x), x.shape, 0, address(packed), fixed, limits, geometry, params, address(y), y.shape)
