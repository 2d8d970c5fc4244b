"""How a convolution's input gets into scratch: padded, widened, ready for tiles; and how results leave it.

What kernels of convolutions share, all `inner`s. Addresses and strides are in bytes, as the tiles take them;
`conv_layout.py` says how large everything is. A padded image keeps its border of zeros from sample to sample: `clear`
writes it once, and only the inside is filled anew.
"""

from engine.kernels._jit import NATIVE, inner

if not NATIVE:
    from engine.kernels._finish import (
        add_floats_1,
        add_floats_8,
        add_floats_16,
        move_bytes_1,
        move_bytes_8,
        move_floats_1,
        move_floats_8,
        move_floats_16,
    )
    from engine.kernels._vector import as_float, minus, read_float, read_int8, write_float, write_int16, write_int32


@inner
def clear(target, size):
    """Fill `size` bytes, a multiple of 4, with zeros."""
    for i in range(size // 4):
        write_int32(target, i, 0)


@inner
def widen_to_int16(source, target, count, zero):
    """Give int8 minus its zero point as int16."""
    for i in range(count):
        write_int16(target, i, minus(read_int8(source, i), zero))


@inner
def widen_to_float(source, target, count, zero):
    """Give int8 minus its zero point as float32, exactly."""
    for i in range(count):
        write_float(target, i, as_float(minus(read_int8(source, i), zero)))


@inner
def copy_floats(source, target, count):
    """Copy `count` float32."""
    for i in range(count):
        write_float(target, i, read_float(source, i))


@inner
def move_floats(source, step, target, apart, width, count):
    """Copy `count` rows of `width` floats from `step` to `apart` bytes from row to row."""
    done = 0
    while done < width and count > 0:
        x, y = source + done * 4, target + done * 4
        if width - done >= 16:
            move_floats_16(x, step, y, apart, count)
            done += 16
        elif width - done >= 8:
            move_floats_8(x, step, y, apart, count)
            done += 8
        else:
            move_floats_1(x, step, y, apart, count)
            done += 1


@inner
def bring_floats(accumulate, source, step, target, apart, width, count):
    """Copy rows of floats, or add them to what is there."""
    if not accumulate:
        move_floats(source, step, target, apart, width, count)
        return
    done = 0
    while done < width and count > 0:
        x, y = source + done * 4, target + done * 4
        if width - done >= 16:
            add_floats_16(x, step, y, apart, count)
            done += 16
        elif width - done >= 8:
            add_floats_8(x, step, y, apart, count)
            done += 8
        else:
            add_floats_1(x, step, y, apart, count)
            done += 1


@inner
def move_bytes(source, step, target, apart, width, count):
    """Copy `count` rows of `width` bytes from `step` to `apart` bytes from row to row."""
    done = 0
    while done < width and count > 0:
        if width - done >= 8:
            move_bytes_8(source + done, step, target + done, apart, count)
            done += 8
        else:
            move_bytes_1(source + done, step, target + done, apart, count)
            done += 1


@inner
def fill(kind, source, target, count, zero):
    """Copy `count` elements into scratch: kind 2 int8 to int16, kind 4 int8 to float32, kind 0 float32 as it is."""
    if kind == 2:
        widen_to_int16(source, target, count, zero)
    elif kind == 4:
        widen_to_float(source, target, count, zero)
    else:
        copy_floats(source, target, count)


@inner
def fill_image(kind, source, height, width, channels, zero, rows, columns, top, left, target):
    """Put one sample inside the padded image of rows x columns; what reaches beyond it below or right is dropped."""
    item = 2 if kind == 2 else 4
    element = 1 if kind > 0 else 4
    count = min(width, columns - left) * channels
    for h in range(min(height, rows - top)):
        at = target + ((h + top) * columns + left) * channels * item
        fill(kind, source + h * width * channels * element, at, count, zero)


@inner
def fill_dilated(kind, source, height, width, channels, zero, out_width, geometry, target):
    """The same with a dilation in width: every output column gets its own copy of the KW pixels it needs."""
    item = 2 if kind == 2 else 4
    element = 1 if kind > 0 else 4
    rows = geometry[1] * out_width
    for h in range(height):
        for ow in range(out_width):
            for kw in range(geometry[1]):
                w = ow * geometry[3] + kw * geometry[7] - geometry[5]
                if 0 <= w < width:
                    at = target + (h * rows + ow * geometry[1] + kw) * channels * item
                    fill(kind, source + (h * width + w) * channels * element, at, channels, zero)


@inner
def fill_sample(kind, source, height, width, channels, zero, rows, columns, out_width, geometry, target):
    """Put one sample into the image that the forward pass and the gradients of weights read."""
    if geometry[7] == 1:
        fill_image(kind, source, height, width, channels, zero, rows, columns, geometry[4], geometry[5], target)
        return
    item = 2 if kind == 2 else 4
    inside = target + geometry[4] * columns * channels * item
    fill_dilated(kind, source, min(height, rows - geometry[4]), width, channels, zero, out_width, geometry, inside)
