"""The register tiles of convolutions, as LLVM IR.

    tile_pairs_*    sums[p][o] = sum_t x[p][t] . w[t][o]     int16 pairs of taps, exact int32 sums: int8 forward
    tile_float_*    the same in float32, one fused multiply-add per term, taps ascending: float forward, dx
    tile_outer_*    dw[k][o] += sum_p x[p][k] * dy[p][o]     float32, pixels ascending: weight gradients
    tile_column_*   y[o] += sum_p x[p][o]                    float32, pixels ascending: bias gradients

Which sizes there are, and which to take, is `conv_rows.py`'s affair.
"""

# ruff: noqa: ARG001  an intrinsic names its arguments for whoever calls it, and receives them in a list

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from engine.kernels._jit import TARGET
from engine.kernels._vector import (
    F32,
    FEW,
    I16,
    I32,
    I64,
    LANES,
    MANY,
    PIXELS,
    TAPS,
    TAPS_WIDE,
    WIDE,
    TwoLoops,
    ahead,
    load,
    multiply_add,
    shuffle,
    splat,
    store,
)


def _floats(b):
    """Give (element type, broadcast of one x, acc + x * w in one rounding)."""
    return F32, lambda x: splat(b, x, LANES), multiply_add(b, LANES)


def _pairs(b):
    """The same on pairs of int16: acc + x[0] * w[0] + x[1] * w[1], where `w` holds the pair of each output."""
    halves = ir.VectorType(I16, 2 * LANES)
    words = ir.VectorType(I32, LANES)
    if TARGET.startswith("x86"):
        name = {16: "avx512.pmaddw.d.512", 8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}[LANES]
        pairs = get_or_insert_function(b.module, ir.FunctionType(words, [halves] * 2), "llvm.x86." + name)

        def multiply(x, w, total):
            return b.add(total, b.call(pairs, [x, b.bitcast(w, halves)]))

        return I32, lambda x: b.bitcast(splat(b, x, LANES), halves), multiply

    def both(x):
        return [b.sext(splat(b, b.trunc(half, I16), LANES), words) for half in (x, b.lshr(x, I32(16)))]

    def multiply_one_by_one(x, w, total):
        for part in (0, 1):
            side = shuffle(b, b.bitcast(w, halves), list(range(part, 2 * LANES, 2)))
            total = b.add(total, b.mul(b.sext(side, words), x[part]))
        return total

    return I32, both, multiply_one_by_one


def _row_tile(pixels, blocks, terms):
    """Make the tile: `pixels` x `blocks` * 16 sums over `rows` kernel rows of `taps` 4-byte terms each.

    tile(x, pixel, row, rows, taps, w, block, y, y_pixel): x the first pixel's first tap; pixel and row the bytes from
    one output pixel's taps to the next one's and from one kernel row to the next; w the first block's weights, 64
    bytes for each term; block the bytes to the next block's; y the sums, y_pixel bytes apart.
    """
    vectors = blocks * 16 // LANES

    @intrinsic
    def tile(_, x, pixel, row, rows, taps, w, block, y, y_pixel):
        def emit(context, b, _, arguments):
            x, pixel, row, rows, taps, w, block, y, y_pixel = arguments
            kind, spread, multiply = terms(b)
            register = ir.VectorType(kind, LANES)
            zero = ir.Constant(register, None)
            starts = [ahead(b, I64(0), pixel, p) for p in range(pixels)]
            sides = [ahead(b, I64(0), block, n) for n in range(blocks)]
            loops = TwoLoops(b, rows, taps, [zero] * (pixels * vectors), [(x, row, I64(4)), (w, None, I64(64))])
            at, weights = loops.at
            loaded = []
            for v in range(vectors):
                side = b.add(weights, sides[v * LANES // 16])
                loaded.append(load(b, b.add(side, I64(v * LANES % 16 * 4)), register))
            sums = []
            for p in range(pixels):
                one = spread(load(b, b.add(at, starts[p]), kind, 2 if kind is I32 else 4))
                sums += [multiply(one, loaded[v], loops.carried[p * vectors + v]) for v in range(vectors)]
            loops.close(sums)
            for p in range(pixels):
                to = ahead(b, y, y_pixel, p)
                for v in range(vectors):
                    store(b, sums[p * vectors + v], b.add(to, I64(v * LANES * 4)))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), emit

    return tile


def _outer_tile(taps, blocks):
    """Make the tile of a weight gradient: `taps` x `blocks` * 16 sums over `rows` x `columns` pixels.

    tile(x, x_row, x_pixel, dy, dy_row, dy_pixel, rows, columns, dw, dw_tap, used, spare): sums start from and return
    to `dw`, `dw_tap` bytes from tap to tap; taps from `used` on are not wanted and go to the address `spare`.
    """
    vectors = blocks * 16 // LANES

    @intrinsic
    def tile(_, x, x_row, x_pixel, dy, dy_row, dy_pixel, rows, columns, dw, dw_tap, used, spare):
        def emit(context, b, _, arguments):
            x, x_row, x_pixel, dy, dy_row, dy_pixel, rows, columns, dw, dw_tap, used, spare = arguments
            kind, spread, multiply = _floats(b)
            register = ir.VectorType(kind, LANES)
            homes = [b.select(b.icmp_signed("<", I64(k), used), ahead(b, dw, dw_tap, k), spare) for k in range(taps)]
            sums = [load(b, b.add(home, I64(v * LANES * 4)), register) for home in homes for v in range(vectors)]
            loops = TwoLoops(b, rows, columns, sums, [(x, x_row, x_pixel), (dy, dy_row, dy_pixel)])
            at, grads = loops.at
            loaded = [load(b, b.add(grads, I64(v * LANES * 4)), register) for v in range(vectors)]
            sums = []
            for k in range(taps):
                one = spread(load(b, b.add(at, I64(4 * k)), kind))
                sums += [multiply(one, loaded[v], loops.carried[k * vectors + v]) for v in range(vectors)]
            loops.close(sums)
            for k in range(taps):
                for v in range(vectors):
                    store(b, sums[k * vectors + v], b.add(homes[k], I64(v * LANES * 4)))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 12), emit

    return tile


def _column_tile(vectors, lanes):
    """Make the tile of a bias gradient: `vectors` x `lanes` columns of floats summed downwards.

    tile(x, step, rows, y): adds the rows of x, `step` bytes apart, in order to the floats at y.
    """
    register = ir.VectorType(F32, lanes)

    @intrinsic
    def tile(_, x, step, rows, y):
        def emit(context, b, _, arguments):
            x, step, rows, y = arguments
            homes = [b.add(y, I64(v * lanes * 4)) for v in range(vectors)]
            loops = TwoLoops(b, I64(1), rows, [load(b, home, register) for home in homes], [(x, I64(0), step)])
            sums = [
                b.fadd(loops.carried[v], load(b, b.add(loops.at[0], I64(v * lanes * 4)), register))
                for v in range(vectors)
            ]
            loops.close(sums)
            for v in range(vectors):
                store(b, sums[v], homes[v])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), emit

    return tile


tile_pairs_wide = _row_tile(PIXELS, WIDE, _pairs)
tile_pairs_wide_few = _row_tile(FEW, WIDE, _pairs)
tile_pairs_wide_one = _row_tile(1, WIDE, _pairs)
tile_pairs_many = _row_tile(MANY, 1, _pairs)
tile_pairs = _row_tile(PIXELS, 1, _pairs)
tile_pairs_few = _row_tile(FEW, 1, _pairs)
tile_pairs_one = _row_tile(1, 1, _pairs)
tile_float_wide = _row_tile(PIXELS, WIDE, _floats)
tile_float_wide_few = _row_tile(FEW, WIDE, _floats)
tile_float_wide_one = _row_tile(1, WIDE, _floats)
tile_float_many = _row_tile(MANY, 1, _floats)
tile_float = _row_tile(PIXELS, 1, _floats)
tile_float_few = _row_tile(FEW, 1, _floats)
tile_float_one = _row_tile(1, 1, _floats)
tile_outer_wide = _outer_tile(TAPS_WIDE[0], WIDE)
tile_outer_wide_few = _outer_tile(TAPS_WIDE[2], WIDE)
tile_outer_many = _outer_tile(TAPS[0], 1)
tile_outer = _outer_tile(TAPS[1], 1)
tile_outer_few = _outer_tile(TAPS[2], 1)
tile_column_32 = _column_tile(2, 16)
tile_column_16 = _column_tile(1, 16)
tile_column_8 = _column_tile(1, 8)
tile_column_1 = _column_tile(1, 1)
