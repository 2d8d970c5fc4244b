"""One row of output pixels, in register tiles: the step between a convolution's loops and its innermost ones.

`row_pairs` and `row_float` fill y[p][16 * blocks] for `count` pixels. Where the tile does not divide the row, the last
tile lies over the one before it and computes some pixels twice, to the same bits; a row shorter than the smallest tile
is done pixel by pixel. The arguments are those of the tiles: see `_tiles.py`.
"""

from engine.kernels._jit import NATIVE, inner

WIDE, MANY, PIXELS, FEW = 1, 1, 1, 1
if not NATIVE:
    from engine.kernels._tiles import (
        tile_float,
        tile_float_few,
        tile_float_many,
        tile_float_one,
        tile_float_wide,
        tile_float_wide_few,
        tile_float_wide_one,
        tile_outer,
        tile_outer_few,
        tile_outer_many,
        tile_outer_wide,
        tile_outer_wide_few,
        tile_pairs,
        tile_pairs_few,
        tile_pairs_many,
        tile_pairs_one,
        tile_pairs_wide,
        tile_pairs_wide_few,
        tile_pairs_wide_one,
    )
    from engine.kernels._vector import FEW, MANY, PIXELS, TAPS, TAPS_WIDE

    MANY_TAPS, SOME_TAPS, FEW_TAPS = TAPS
    SOME_WIDE, FEW_WIDE = TAPS_WIDE[1:]


@inner
def tile_size(blocks, left, count):
    """Give how many pixels the next tile takes where `left` of `count` are left to do."""
    if blocks == 1 and count >= MANY and left > PIXELS:
        return MANY
    if count >= PIXELS and left > FEW:
        return PIXELS
    return FEW if count >= FEW else 1


@inner
def row_pairs(blocks, x, pixel, row, rows, taps, w, block, y, y_pixel, count):
    """Sum int16 pairs: the int8 forward pass."""
    done = 0
    while done < count:
        size = tile_size(blocks, count - done, count)
        at = min(done, count - size)
        done = at + size
        xp, yp = x + at * pixel, y + at * y_pixel
        if blocks == 1:
            if size == MANY and MANY > PIXELS:
                tile_pairs_many(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
            elif size == PIXELS:
                tile_pairs(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
            elif size == FEW:
                tile_pairs_few(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
            else:
                tile_pairs_one(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
        elif size == PIXELS:
            tile_pairs_wide(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
        elif size == FEW:
            tile_pairs_wide_few(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
        else:
            tile_pairs_wide_one(xp, pixel, row, rows, taps, w, block, yp, y_pixel)


@inner
def row_float(blocks, x, pixel, row, rows, taps, w, block, y, y_pixel, count):
    """Sum float32: the float forward pass and the gradients of inputs."""
    done = 0
    while done < count:
        size = tile_size(blocks, count - done, count)
        at = min(done, count - size)
        done = at + size
        xp, yp = x + at * pixel, y + at * y_pixel
        if blocks == 1:
            if size == MANY and MANY > PIXELS:
                tile_float_many(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
            elif size == PIXELS:
                tile_float(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
            elif size == FEW:
                tile_float_few(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
            else:
                tile_float_one(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
        elif size == PIXELS:
            tile_float_wide(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
        elif size == FEW:
            tile_float_wide_few(xp, pixel, row, rows, taps, w, block, yp, y_pixel)
        else:
            tile_float_wide_one(xp, pixel, row, rows, taps, w, block, yp, y_pixel)


@inner
def outer_row(blocks, x, x_row, x_pixel, dy, dy_row, dy_pixel, rows, columns, dw, dw_tap, taps, spare):
    """Add x times dy, summed over rows x columns pixels, to `taps` consecutive taps of dw."""
    k = 0
    while k < taps:
        xk, dwk, left = x + 4 * k, dw + k * dw_tap, taps - k
        if blocks == 1 and left >= MANY_TAPS:
            used = MANY_TAPS
            tile_outer_many(xk, x_row, x_pixel, dy, dy_row, dy_pixel, rows, columns, dwk, dw_tap, used, spare)
        elif blocks == 1 and left > FEW_TAPS:
            used = min(SOME_TAPS, left)
            tile_outer(xk, x_row, x_pixel, dy, dy_row, dy_pixel, rows, columns, dwk, dw_tap, used, spare)
        elif blocks == 1:
            used = left
            tile_outer_few(xk, x_row, x_pixel, dy, dy_row, dy_pixel, rows, columns, dwk, dw_tap, used, spare)
        elif left > FEW_WIDE:
            used = min(SOME_WIDE, left)
            tile_outer_wide(xk, x_row, x_pixel, dy, dy_row, dy_pixel, rows, columns, dwk, dw_tap, used, spare)
        else:
            used = left
            tile_outer_wide_few(xk, x_row, x_pixel, dy, dy_row, dy_pixel, rows, columns, dwk, dw_tap, used, spare)
        k += used
