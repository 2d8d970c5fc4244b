"""How the convolution kernels lay out what their caller allocates: packed weights and scratch, in exact sizes.

Plain integer arithmetic: called from Python these are Python functions, and nothing is compiled to answer a planner.
Kernels call the very same functions, so a size and its use cannot drift apart.

Weights are packed in blocks of 16 outputs, whatever the processor: `[O/16][taps][16]`, the last block filled up with
zeros. `geometry` is int64 [8]: KH, KW, SH, SW, PT, PL, DH, DW (kernel, stride, padding above and to the left,
dilation). Every size is in bytes where its name says so, else in elements of the packed array.
"""

from engine.kernels._jit import NATIVE

RUN = 128  # pixels of a 1x1 convolution that are worked on at once
TILES = 32  # 2x2 tiles of a Winograd convolution that are worked on at once, or one row of them
SLACK = 256  # bytes behind a padded image that a tile may read and then not use


def blocks_of(count):
    """Give how many blocks of 16 hold `count` outputs."""
    return (count + 15) // 16


def aligned(count):
    """Give `count` bytes rounded up to a cache line."""
    return (count + 63) // 64 * 64


def pairs_size(outputs, rows, columns, channels, geometry):
    """Give the int16 elements of weights packed as pairs of taps; a kernel row of odd length ends with a zero tap."""
    if is_winograd(channels, outputs, geometry):
        return channels * outputs * 16
    return blocks_of(outputs) * rows * ((columns * channels + 1) // 2) * 32


def packed_size(outputs, rows, columns, channels):
    """Give the float32 elements of weights packed for the float forward pass."""
    return blocks_of(outputs) * rows * columns * channels * 16


def packed_inputs_size(outputs, rows, columns, channels, geometry):
    """Give the float32 elements of weights packed for gradients of inputs: every tap is in exactly one phase."""
    if is_winograd(channels, outputs, geometry):
        return channels * outputs * 16
    return blocks_of(channels) * rows * columns * outputs * 16


def is_pointwise(geometry):
    """Tell whether each output pixel needs its own input pixel only, so that all pixels form one long row."""
    one_tap = geometry[0] == 1 and geometry[1] == 1
    in_step = geometry[2] == 1 and geometry[3] == 1
    return one_tap and in_step and geometry[4] == 0 and geometry[5] == 0


def is_winograd(channels, outputs, geometry):
    """Tell whether int8 forward and gradients of inputs go Winograd's way: 3x3, stride 1, whole blocks of both."""
    three = geometry[0] == 3 and geometry[1] == 3 and geometry[6] == 1 and geometry[7] == 1
    dense = geometry[2] == 1 and geometry[3] == 1
    return three and dense and channels % 16 == 0 and outputs % 16 == 0 and channels <= 1024


def is_winograd_weights(out_height, out_width, channels, outputs, geometry):
    """Tell whether gradients of weights do: whole tiles too, and enough to be worth a sample's overhead."""
    whole = out_height % 2 == 0 and out_width % 2 == 0 and out_height * out_width >= 64
    return whole and is_winograd(channels, outputs, geometry)


def wino_rows(height, width):
    """Give how many rows of tiles are worked on at once."""
    return min((height + 1) // 2, max(1, TILES // ((width + 1) // 2)))


def wino_groups(height, width):
    """Give how often that is until all rows of tiles are done."""
    rows = wino_rows(height, width)
    return ((height + 1) // 2 + rows - 1) // rows


def wino_forward_bytes(height, width, channels):
    """Give the scratch that the int8 forward pass needs besides: a spare vector, tiles, sums of two blocks."""
    return 64 + 16 * (wino_rows(height, width) * ((width + 1) // 2) * (channels * 2 + 128) + 128)


def wino_inputs_bytes(height, width, inputs):
    """Give the scratch that gradients of inputs need besides the padded dy: a spare vector, tiles, two blocks' sums."""
    return 64 + 16 * (wino_rows(height, width) * ((width + 1) // 2) * (inputs * 4 + 128) + 128)


def wino_weights_bytes(height, width, channels, outputs):
    """Give the scratch that gradients of weights need besides the padded image: a spare row, tiles, sums."""
    tiles = wino_rows(height, width) * ((width + 1) // 2)
    return 128 + 16 * (tiles * (channels + outputs) * 4 + channels * outputs * 4 + 192)


def padded_height(out_height, geometry):
    """Give the input rows that `out_height` rows of outputs reach, padding included."""
    return (out_height - 1) * geometry[2] + (geometry[0] - 1) * geometry[6] + 1


def padded_width(out_width, geometry):
    """Give the columns of the padded image; with a dilation in width every output column has its own taps."""
    if geometry[7] != 1:
        return out_width * geometry[1]
    return (out_width - 1) * geometry[3] + geometry[1]


def image_bytes(out_height, out_width, channels, item, geometry):
    """Give the bytes of one padded image of `item`-byte elements (of one run of pixels where 1x1)."""
    if is_pointwise(geometry):
        return aligned(RUN * channels * item + SLACK)
    return aligned(padded_height(out_height, geometry) * padded_width(out_width, geometry) * channels * item + SLACK)


def row_bytes(out_width, geometry):
    """Give the bytes of one row of sums: two blocks of 16, 4 bytes each."""
    return aligned((RUN if is_pointwise(geometry) else out_width) * 128)


def forward_bytes(out_height, out_width, channels, outputs, item, geometry):
    """Give the scratch of a forward pass: parameters, a row of sums, narrow bytes, the image.

    `item` is 2 for `conv_forward_int8` and `conv_forward_real`, 4 for `conv_forward_float`.
    """
    row = row_bytes(out_width, geometry)
    if item == 2 and is_winograd(channels, outputs, geometry):
        image = aligned((out_height + 3) * (out_width + 2) * channels * 2 + SLACK)
        return (
            blocks_of(outputs) * 256 + 2 * row + row // 8 + image + wino_forward_bytes(out_height, out_width, channels)
        )
    return blocks_of(outputs) * 256 + row + row // 8 + image_bytes(out_height, out_width, channels, item, geometry)


def weights_bytes(out_height, out_width, channels, outputs, geometry):
    """Give the scratch of `conv_backward_weights_*`: a spare row, dy in whole blocks, the padded image."""
    if is_winograd_weights(out_height, out_width, channels, outputs, geometry):
        image = image_bytes(out_height, out_width, channels, 4, geometry)
        return image + wino_weights_bytes(out_height, out_width, channels, outputs)
    pixels = RUN if is_pointwise(geometry) else out_height * out_width
    return 128 + pixels * blocks_of(outputs) * 64 + image_bytes(out_height, out_width, channels, 4, geometry)


def reach(taps, stride):
    """Give the largest number of taps any phase has."""
    return (taps + stride - 1) // stride


def phase_taps(taps, stride, phase):
    """Give how many taps reach the inputs of one phase: `phase`, `phase + stride`, ..."""
    return (taps - phase + stride - 1) // stride if phase < taps else 0


def grad_height(height, out_height, geometry):
    """Give the rows of the padded dy."""
    return max(out_height, (height - 1 + geometry[4]) // geometry[2] + 1) + reach(geometry[0], geometry[2]) - 1


def grad_width(width, out_width, geometry):
    """Give the columns of the padded dy."""
    return max(out_width, (width - 1 + geometry[5]) // geometry[3] + 1) + reach(geometry[1], geometry[3]) - 1


def inputs_bytes(height, width, channels, out_height, out_width, outputs, geometry):
    """Give the scratch of `conv_backward_inputs`: a row of sums (or what Winograd's way needs) and the padded dy."""
    if is_pointwise(geometry):
        return RUN * 128
    rows, columns = grad_height(height, out_height, geometry), grad_width(width, out_width, geometry)
    if is_winograd(channels, outputs, geometry):
        return aligned((rows + 1) * columns * outputs * 4 + SLACK) + wino_inputs_bytes(height, width, outputs)
    return row_bytes(width, geometry) + aligned(rows * columns * outputs * 4 + SLACK)


def lanes_of(channels):
    """Give the channels of a pixel in a depthwise image: 1, 2, 4 or 8 as they are, others in whole blocks of 16."""
    if channels <= 8 and channels & (channels - 1) == 0:
        return channels
    return blocks_of(channels) * 16


def vectors_of(pixels, channels):
    """Give how many vectors of 16 hold a row of `pixels` (of one block, where channels come in blocks)."""
    return blocks_of(pixels * lanes_of(channels)) if lanes_of(channels) < 16 else pixels


def splits_of(channels, geometry):
    """Give into how many interleaved columns a depthwise image is split, so that a vector holds several pixels."""
    return geometry[3] if lanes_of(channels) < 16 else 1


def split_width(out_width, channels, geometry):
    """Give the columns of one split."""
    whole = (out_width - 1) * geometry[3] + (geometry[1] - 1) * geometry[7] + 1
    return (whole + splits_of(channels, geometry) - 1) // splits_of(channels, geometry)


def depthwise_size(rows, columns, channels):
    """Give the float32 elements of packed depthwise weights, for any pass."""
    return blocks_of(channels) * rows * columns * 16


def table_bytes(geometry):
    """Give the bytes of the taps' offsets."""
    return aligned(geometry[0] * geometry[1] * 8)


def depthwise_forward_bytes(out_height, out_width, channels, geometry):
    """Give the scratch of `depthwise_forward_*`: parameters, taps, a row of sums, narrow bytes, the image."""
    row = vectors_of(out_width, channels) * 64
    columns = split_width(out_width, channels, geometry) * splits_of(channels, geometry)
    image = padded_height(out_height, geometry) * columns * lanes_of(channels) * 4
    return blocks_of(channels) * 256 + table_bytes(geometry) + row + aligned(row // 4) + aligned(image + SLACK)


def depthwise_weights_bytes(out_height, out_width, channels, geometry):
    """Give the scratch of `depthwise_backward_weights_*`: a spare vector, dy and the image in blocks of 8."""
    pixel = (channels + 7) // 8 * 32
    image = padded_height(out_height, geometry) * padded_width(out_width, geometry) * pixel
    return 64 + aligned(out_height * out_width * pixel) + aligned(image + SLACK)


def depthwise_inputs_bytes(height, width, out_height, out_width, channels, geometry):
    """Give the scratch of `depthwise_backward_inputs`: taps, a row of sums, the padded dy."""
    image = grad_height(height, out_height, geometry) * grad_width(width, out_width, geometry)
    row = vectors_of(width, channels) * 64
    return table_bytes(geometry) + row + aligned(image * lanes_of(channels) * 4 + SLACK)


if not NATIVE:
    from numba.extending import register_jitable

    for _function in (
        blocks_of,
        aligned,
        pairs_size,
        packed_size,
        packed_inputs_size,
        is_pointwise,
        is_winograd,
        is_winograd_weights,
        wino_rows,
        wino_groups,
        wino_forward_bytes,
        wino_inputs_bytes,
        wino_weights_bytes,
        padded_height,
        padded_width,
        image_bytes,
        row_bytes,
        forward_bytes,
        weights_bytes,
        reach,
        phase_taps,
        grad_height,
        grad_width,
        inputs_bytes,
        lanes_of,
        vectors_of,
        splits_of,
        split_width,
        depthwise_size,
        table_bytes,
        depthwise_forward_bytes,
        depthwise_weights_bytes,
        depthwise_inputs_bytes,
    ):
        register_jitable(_function)
