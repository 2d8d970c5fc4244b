"""What becomes of sums, as LLVM IR: requantized, clamped, scaled, moved to where they belong.

All of it is elementwise; every function walks along a row of pixels, 16 outputs (or fewer, where it says so) of each.
"""

# ruff: noqa: ARG001  an intrinsic names its arguments for whoever calls it, and receives them in a list

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from engine.kernels._jit import TARGET
from engine.kernels._vector import F32, I8, I32, I64, TwoLoops, constant, load, splat, store


def _requantizer(double_rounding):
    """Make the last step of the int8 forward pass, for 16 outputs of a row of pixels.

    requantize(sums, sums_pixel, params, zero, low, high, y, y_pixel, count): `params` is four int32 [16] in a row:
    bias, multiplier, left shift, right shift; `low` and `high` are the int8 limits. Every pixel's 16 bytes are written
    to `y`, `y_pixel` bytes apart. Double rounding is gemmlowp's: a saturating rounding doubling high multiplication
    (ties up), then a rounding division by a power of two (ties away from zero); single rounding is one shift of the
    64-bit product (ties up).
    """
    words, longs, eights = ir.VectorType(I32, 16), ir.VectorType(I64, 16), ir.VectorType(I64, 8)

    def high_half(b, total, multiplier):
        """Give (total * multiplier + 2^30) >> 31."""
        if not TARGET.startswith("x86"):
            product = b.add(b.mul(b.sext(total, longs), b.sext(multiplier, longs)), constant(I64, 16, 1 << 30))
            return b.trunc(b.ashr(product, constant(I64, 16, 31)), words)
        # x86 multiplies every second int32: even ones as they lie, odd ones moved down, and joined without a shuffle
        sides = [[b.bitcast(value, eights) for value in (total, multiplier)] for _ in range(2)]
        half = constant(I64, 8, 32)
        sides[0] = [b.shl(value, half) for value in sides[0]]
        even, odd = [
            b.add(b.mul(*[b.ashr(value, half) for value in side]), constant(I64, 8, 1 << 30)) for side in sides
        ]
        even = b.and_(b.lshr(even, constant(I64, 8, 31)), constant(I64, 8, 0xFFFFFFFF))
        odd = b.and_(b.shl(odd, constant(I64, 8, 1)), constant(I64, 8, 0xFFFFFFFF << 32))
        return b.bitcast(b.or_(even, odd), words)

    def twice(b, total, multiplier, left, right):
        one = constant(I32, 16, 1)
        high = high_half(b, b.shl(total, left), multiplier)
        mask = b.sub(b.shl(one, right), one)
        limit = b.sub(b.lshr(mask, one), b.ashr(high, constant(I32, 16, 31)))
        up = b.zext(b.icmp_signed(">", b.and_(high, mask), limit), words)
        return b.add(b.ashr(high, right), up)

    def once(b, total, multiplier, left, right):
        shift = b.zext(b.sub(b.add(right, constant(I32, 16, 31)), left), longs)
        half = b.shl(constant(I64, 16, 1), b.sub(shift, constant(I64, 16, 1)))
        product = b.add(b.mul(b.sext(total, longs), b.sext(multiplier, longs)), half)
        return b.ashr(product, shift)

    def clamp(b, value, low, high):
        kind = value.type
        largest = get_or_insert_function(b.module, ir.FunctionType(kind, [kind] * 2), f"llvm.smax.v16{kind.element}")
        smallest = get_or_insert_function(b.module, ir.FunctionType(kind, [kind] * 2), f"llvm.smin.v16{kind.element}")
        return b.call(smallest, [b.call(largest, [value, low]), high])

    @intrinsic
    def requantize(_, sums, sums_pixel, params, zero, low, high, y, y_pixel, count):
        def emit(context, b, _, arguments):
            sums, sums_pixel, params, zero, low, high, y, y_pixel, count = arguments
            bias, *fixed = [load(b, b.add(params, I64(64 * k)), words) for k in range(4)]
            wide = I32 if double_rounding else I64
            limits = [b.sub(limit, zero) for limit in (low, high)]
            limits = [splat(b, b.trunc(limit, wide) if wide is I32 else limit, 16) for limit in limits]
            offset = splat(b, b.trunc(zero, wide) if wide is I32 else zero, 16)
            loops = TwoLoops(b, I64(1), count, [], [(sums, I64(0), sums_pixel), (y, I64(0), y_pixel)])
            total = b.add(load(b, loops.at[0], words), bias)
            value = (twice if double_rounding else once)(b, total, *fixed)
            value = b.add(clamp(b, value, *limits), offset)
            store(b, b.trunc(value, ir.VectorType(I8, 16)), loops.at[1], 1)
            loops.close([])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), emit

    return requantize


def _mover(kind, lanes, add):
    """Make move(source, step, target, apart, count): set, or add, `lanes` elements of each of `count` rows."""
    register = ir.VectorType(kind, lanes)

    @intrinsic
    def move(_, source, step, target, apart, count):
        def emit(context, b, _, arguments):
            source, step, target, apart, count = arguments
            loops = TwoLoops(b, I64(1), count, [], [(source, I64(0), step), (target, I64(0), apart)])
            align = 1 if kind is I8 else 4
            value = load(b, loops.at[0], register, align)
            if add:
                value = b.fadd(load(b, loops.at[1], register), value)
            store(b, value, loops.at[1], align)
            loops.close([])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), emit

    return move


@intrinsic
def finish_floats(_, sums, step, bias, low, high, y, apart, count):
    """Add the bias to 16 sums of each of `count` pixels and clamp them to [low, high]; a NaN stays a NaN."""

    def emit(context, b, _, arguments):
        sums, step, bias, low, high, y, apart, count = arguments
        loaded = load(b, bias, ir.VectorType(F32, 16))
        low, high = splat(b, low, 16), splat(b, high, 16)
        loops = TwoLoops(b, I64(1), count, [], [(sums, I64(0), step), (y, I64(0), apart)])
        value = b.fadd(load(b, loops.at[0], loaded.type), loaded)
        value = b.select(b.fcmp_ordered("<", value, low), low, value)
        value = b.select(b.fcmp_ordered(">", value, high), high, value)
        store(b, value, loops.at[1])
        loops.close([])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3, types.float32, types.float32, *[types.intp] * 3), emit


def _scaler(kind):
    """Make scale_sixteen(source, factor, target): 16 numbers, int8 or float32, times a float32, as float32."""
    register = ir.VectorType(F32, 16)

    @intrinsic
    def scale_sixteen(_, source, factor, target):
        def emit(context, b, _, arguments):
            source, factor, target = arguments
            value = load(b, source, ir.VectorType(kind, 16), 1 if kind is I8 else 4)
            value = b.sitofp(b.sext(value, ir.VectorType(I32, 16)), register) if kind is I8 else value
            store(b, b.fmul(value, splat(b, factor, 16)), target)
            return context.get_dummy_value()

        return types.void(types.intp, types.float32, types.intp), emit

    return scale_sixteen


move_floats_16 = _mover(F32, 16, False)
move_floats_8 = _mover(F32, 8, False)
move_floats_1 = _mover(F32, 1, False)
add_floats_16 = _mover(F32, 16, True)
add_floats_8 = _mover(F32, 8, True)
add_floats_1 = _mover(F32, 1, True)
move_bytes_8 = _mover(I8, 8, False)
move_bytes_1 = _mover(I8, 1, False)
scale_sixteen_int8 = _scaler(I8)
scale_sixteen_floats = _scaler(F32)
requantize_twice = _requantizer(True)
requantize_once = _requantizer(False)
