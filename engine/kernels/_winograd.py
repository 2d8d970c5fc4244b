"""Vector code for Winograd's minimal filtering F(2x2, 3x3), as LLVM IR; `winograd.py` says what it is for.

In one dimension, with d four inputs, g three taps, y two outputs:

    y = A'((G g) * (B'd))      B'd = (d0 - d2, d1 + d2, d2 - d1, d1 - d3)        A'm = (m0 + m1 + m2, m1 - m2 - m3)
                               G g = (g0, (g0 + g1 + g2)/2, (g0 - g1 + g2)/2, g2)

and the gradient of the taps is G'((A y) * (B'd)). In two dimensions each step is done down the columns, then along the
rows. Every `@intrinsic` works on one register of channels and walks along a row of 2x2 tiles; a *plane* is one of the
16 products' positions. Addresses and strides are in bytes.
"""

# ruff: noqa: ARG001  an intrinsic names its arguments for whoever calls it, and receives them in a list

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from engine.kernels._vector import F32, I8, I16, I32, I64, LANES, TwoLoops, ahead, constant, load, splat, store

REGISTER = ir.VectorType(F32, LANES)
WHOLE = ir.VectorType(I32, LANES)
HALVES = ir.VectorType(I16, 8 if LANES == 4 else 16)
HALF = ir.Constant(REGISTER, [0.5] * LANES)


def _add(b, one, other):
    return b.fadd(one, other) if one.type == REGISTER else b.add(one, other)


def _subtract(b, one, other):
    return b.fsub(one, other) if one.type == REGISTER else b.sub(one, other)


def _inputs(b, d):
    return [_subtract(b, d[0], d[2]), _add(b, d[1], d[2]), _subtract(b, d[2], d[1]), _subtract(b, d[1], d[3])]


def _outputs(b, m):
    return [_add(b, _add(b, m[0], m[1]), m[2]), _subtract(b, _subtract(b, m[1], m[2]), m[3])]


def _taps(b, g):
    ends = b.fadd(g[0], g[2])
    return [g[0], b.fmul(b.fadd(ends, g[1]), HALF), b.fmul(b.fsub(ends, g[1]), HALF), g[2]]


def _grads(b, y):
    return [y[0], b.fadd(y[0], y[1]), b.fsub(y[0], y[1]), b.fneg(y[1])]


def _tap_grads(b, m):
    middle = b.fmul(b.fadd(m[1], m[2]), HALF)
    return [b.fadd(m[0], middle), b.fmul(b.fsub(m[1], m[2]), HALF), b.fadd(middle, m[3])]


def _both_ways(b, step, square):
    """Apply a one-dimensional step down the columns of `square` (a list of rows), then along its rows."""
    columns = [step(b, [row[k] for row in square]) for k in range(len(square[0]))]
    return [step(b, [column[k] for column in columns]) for k in range(len(columns[0]))]


def _row_of(b, base, step, count, kind=REGISTER):
    return [load(b, ahead(b, base, step, k), kind, 2) for k in range(count)]


def _inputs_transform(kind):
    """Make the step from inputs to tiles.

    transform(x, row, pixel, tiles, u, plane): turns 4 rows of inputs at `x` into `tiles` tiles' B'dB, u[plane][tile],
    the tiles `pixel` bytes apart as the inputs are.
    """

    @intrinsic
    def transform(_, x, row, pixel, tiles, u, plane):
        def emit(context, b, _, arguments):
            x, row, pixel, tiles, u, plane = arguments

            def column(at):
                return _inputs(b, _row_of(b, at, row, 4, kind))

            carried = column(x) + column(b.add(x, pixel))
            two = b.mul(pixel, I64(2))
            loops = TwoLoops(b, I64(1), tiles, carried, [(b.add(x, two), I64(0), two), (u, I64(0), pixel)])
            at, to = loops.at
            new = column(at) + column(b.add(at, pixel))
            columns = [loops.carried[:4], loops.carried[4:], new[:4], new[4:]]
            for k in range(4):
                for j, value in enumerate(_inputs(b, [one[k] for one in columns])):
                    store(b, value, ahead(b, to, plane, 4 * k + j), 2)
            loops.close(new)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), emit

    return transform


@intrinsic
def transform_grads(_, dy, row, pixel, tiles, u, plane):
    """Turn 2 rows of output gradients into `tiles` tiles' A y A': u[plane][tile]."""

    def emit(context, b, _, arguments):
        dy, row, pixel, tiles, u, plane = arguments
        loops = TwoLoops(b, I64(1), tiles, [], [(dy, I64(0), b.mul(pixel, I64(2))), (u, I64(0), pixel)])
        at, to = loops.at
        square = [_row_of(b, at, pixel, 2), _row_of(b, b.add(at, row), pixel, 2)]
        for k, line in enumerate(_both_ways(b, _grads, square)):
            for j, value in enumerate(line):
                store(b, value, ahead(b, to, plane, 4 * k + j))
        loops.close([])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), emit


def _output_transform(kind, accumulate):
    """Make the step from products to outputs; int32 products are of taps times 4.

    transform(m, m_tile, plane, tiles, y, below, pixel, odd, spare): sets (or adds to) 2 x 2 outputs of each tile, the
    upper two at `y`, the lower two `below` bytes on. Where `odd` is 1 the last tile's right outputs, which do not
    exist, go to `spare`, and so does the lower row where `below` is 0.
    """

    @intrinsic
    def transform(_, m, m_tile, plane, tiles, y, below, pixel, odd, spare):
        def emit(context, b, _, arguments):
            m, m_tile, plane, tiles, y, below, pixel, odd, spare = arguments
            two = b.mul(pixel, I64(2))
            loops = TwoLoops(b, I64(1), tiles, [], [(m, I64(0), m_tile), (y, I64(0), two)])
            at, to = loops.at
            square = [_row_of(b, ahead(b, at, plane, 4 * k), plane, 4, kind) for k in range(4)]
            upper, lower = _both_ways(b, _outputs, square)
            if kind == WHOLE:
                upper, lower = [[b.ashr(value, constant(I32, LANES, 2)) for value in row] for row in (upper, lower)]
            cut = b.and_(
                b.icmp_signed("==", odd, I64(1)), b.icmp_signed("==", loops.inner_phis[0], b.sub(tiles, I64(1)))
            )
            missing = b.icmp_signed("==", below, I64(0))
            homes = [
                (lower, b.select(missing, spare, b.add(to, below)), b.select(missing, I64(0), pixel)),
                (upper, to, pixel),
            ]
            for values, left, apart in homes:
                for side, value in enumerate(values):
                    home = left if side == 0 else b.select(cut, spare, b.add(left, apart))
                    store(b, b.fadd(load(b, home, kind), value) if accumulate else value, home)
            loops.close([])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), emit

    return transform


@intrinsic
def add_tap_grads(_, m, m_tap, plane, channels, dw, tap, kernel_tap):
    """Add G'mG of `channels` rows of m[plane][c] to the nine taps of dw: dw[kernel tap][c]."""

    def emit(context, b, _, arguments):
        m, m_tap, plane, channels, dw, tap, kernel_tap = arguments
        loops = TwoLoops(b, I64(1), channels, [], [(m, I64(0), m_tap), (dw, I64(0), tap)])
        at, to = loops.at
        square = [_row_of(b, ahead(b, at, plane, 4 * k), plane, 4) for k in range(4)]
        for k, line in enumerate(_both_ways(b, _tap_grads, square)):
            for j, value in enumerate(line):
                home = ahead(b, to, kernel_tap, 3 * k + j)
                store(b, b.fadd(load(b, home, REGISTER), value), home)
        loops.close([])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), emit


def _weights_transform(kind):
    """Make the step from weights to (G g G')[plane] for one register of input channels, taps in reverse order.

    transform(w, tap, scale, v, plane): taps of w are `tap` bytes apart; int8 weights are multiplied by `scale`.
    """

    @intrinsic
    def transform(_, w, tap, scale, v, plane):
        def emit(context, b, _, arguments):
            w, tap, scale, v, plane = arguments
            source = ir.VectorType(kind, LANES)
            factor = splat(b, scale, LANES)

            def read(k):
                value = load(b, ahead(b, w, tap, k), source, 1 if kind is I8 else 4)
                if kind is I8:
                    value = b.fmul(b.sitofp(b.sext(value, ir.VectorType(I32, LANES)), REGISTER), factor)
                return value

            square = [[read(8 - 3 * k - j) for j in range(3)] for k in range(3)]
            for k, line in enumerate(_both_ways(b, _taps, square)):
                for j, value in enumerate(line):
                    store(b, value, ahead(b, v, plane, 4 * k + j))
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.float32, types.intp, types.intp), emit

    return transform


transform_inputs = _inputs_transform(REGISTER)
transform_inputs_int16 = _inputs_transform(HALVES)
set_outputs = _output_transform(REGISTER, False)
add_outputs = _output_transform(REGISTER, True)
set_outputs_int32 = _output_transform(WHOLE, False)
transform_int8_weights = _weights_transform(I8)
transform_float_weights = _weights_transform(F32)
