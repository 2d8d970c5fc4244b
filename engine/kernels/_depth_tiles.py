"""The register tiles of depthwise convolutions, as LLVM IR: vectors run over channels.

tile_depth_*      sums[v] = sum_t x[v + t] * w[t]      float32, one fused multiply-add per term, taps ascending
tile_depth_dw_*   dw[t] += sum_p x[p + t] * dy[p]      float32, pixels ascending
"""

# ruff: noqa: ARG001  an intrinsic names its arguments for whoever calls it, and receives them in a list

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from engine.kernels._vector import DEPTH, F32, I32, I64, LANES, TwoLoops, ahead, load, multiply_add, store


def _depth_tile(vectors, whole):
    """Make the depthwise tile: `vectors` x 16 sums over `taps` taps, stored as int32 where `whole`.

    tile(x, step, table, taps, w, y, y_step): x the first vector, step the bytes to the next; table int64 [taps], bytes
    from x to each tap's vector; w 64 bytes for each tap; y the sums, y_step bytes apart. Sums stored as int32 must be
    whole numbers below 2^24, which float32 holds exactly.
    """
    parts = 16 // LANES

    @intrinsic
    def tile(_, x, step, table, taps, w, y, y_step):
        def emit(context, b, _, arguments):
            x, step, table, taps, w, y, y_step = arguments
            fused = multiply_add(b, LANES)
            register = ir.VectorType(F32, LANES)
            starts = [ahead(b, x, step, n) for n in range(vectors)]
            zeros = [ir.Constant(register, None)] * (vectors * parts)
            loops = TwoLoops(b, I64(1), taps, zeros, [(table, I64(0), I64(8)), (w, I64(0), I64(64))])
            offset = load(b, loops.at[0], I64)
            weights = [load(b, b.add(loops.at[1], I64(v * LANES * 4)), register) for v in range(parts)]
            sums = []
            for n in range(vectors):
                at = b.add(starts[n], offset)
                for v in range(parts):
                    one = load(b, b.add(at, I64(v * LANES * 4)), register)
                    sums.append(fused(one, weights[v], loops.carried[n * parts + v]))
            loops.close(sums)
            for n in range(vectors):
                to = ahead(b, y, y_step, n)
                for v in range(parts):
                    total = sums[n * parts + v]
                    total = b.fptosi(total, ir.VectorType(I32, LANES)) if whole else total
                    store(b, total, b.add(to, I64(v * LANES * 4)))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), emit

    return tile


def _depth_outer_tile(lanes):
    """Make the tile of a depthwise weight gradient: 3 x 3 taps x `lanes` sums over `rows` x `columns` pixels.

    tile(x, x_row, x_pixel, tap_row, tap, dy, dy_row, dy_pixel, rows, columns, dw, dw_row, dw_tap, used_rows, used,
    spare): as `_outer_tile`'s; from tap to tap it is `tap` bytes in x, from a kernel row to the next `tap_row`. Taps
    from `used` on and kernel rows from `used_rows` on are not wanted: nothing behind the wanted ones is read.
    """
    width = min(lanes, LANES)
    parts = lanes // width

    @intrinsic
    def tile(
        _,
        x,
        x_row,
        x_pixel,
        tap_row,
        tap,
        dy,
        dy_row,
        dy_pixel,
        rows,
        columns,
        dw,
        dw_row,
        dw_tap,
        used_rows,
        used,
        spare,
    ):
        def emit(context, b, _, arguments):
            x, x_row, x_pixel, tap_row, tap, dy, dy_row, dy_pixel, rows, columns = arguments[:10]
            dw, dw_row, dw_tap, used_rows, used, spare = arguments[10:]
            register = ir.VectorType(F32, width)
            fused = multiply_add(b, width)
            down = [b.icmp_signed("<", I64(k), used_rows) for k in range(3)]
            across = [b.icmp_signed("<", I64(k), used) for k in range(3)]
            homes = [
                b.select(b.and_(down[i], across[j]), ahead(b, ahead(b, dw, dw_row, i), dw_tap, j), spare)
                for i in range(3)
                for j in range(3)
            ]
            lines = [b.select(down[k], ahead(b, I64(0), tap_row, k), I64(0)) for k in range(3)]
            sides = [b.select(across[k], ahead(b, I64(0), tap, k), I64(0)) for k in range(3)]
            sums = [load(b, b.add(home, I64(v * width * 4)), register) for home in homes for v in range(parts)]
            starts = [(b.add(x, line), x_row, x_pixel) for line in lines]
            loops = TwoLoops(b, rows, columns, sums, [*starts, (dy, dy_row, dy_pixel)])
            loaded = [load(b, b.add(loops.at[3], I64(v * width * 4)), register) for v in range(parts)]
            sums = []
            for k in range(9):
                for v in range(parts):
                    at = b.add(b.add(loops.at[k // 3], sides[k % 3]), I64(v * width * 4))
                    sums.append(fused(load(b, at, register), loaded[v], loops.carried[k * parts + v]))
            loops.close(sums)
            for k in range(9):
                for v in range(parts):
                    store(b, sums[k * parts + v], b.add(homes[k], I64(v * width * 4)))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 16), emit

    return tile


tile_depth_int_many = _depth_tile(DEPTH[0], True)
tile_depth_int = _depth_tile(DEPTH[1], True)
tile_depth_int_few = _depth_tile(DEPTH[2], True)
tile_depth_int_one = _depth_tile(1, True)
tile_depth_float_many = _depth_tile(DEPTH[0], False)
tile_depth_float = _depth_tile(DEPTH[1], False)
tile_depth_float_few = _depth_tile(DEPTH[2], False)
tile_depth_float_one = _depth_tile(1, False)
tile_depth_dw_16 = _depth_outer_tile(16)
tile_depth_dw_8 = _depth_outer_tile(8)
