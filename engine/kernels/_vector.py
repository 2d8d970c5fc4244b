"""What the vector code of convolutions is written with: a small vocabulary over LLVM's own language.

A loop written in Python leaves it to LLVM's vectoriser to guess; it guesses badly where rows are short (16 outputs). So
the innermost loops are spelled out as LLVM IR, in functions that Numba calls intrinsics: `_tiles.py` convolutions,
`_depth_tiles.py` depthwise ones, `_winograd.py` 3x3 ones, `_finish.py` what becomes of sums. They take addresses and
strides in bytes, as integers, and know nothing of arrays.

How many sums one tile holds in registers depends on the processor (`TARGET`); the layout of memory and the result never
do: every sum is one chain of operations in one order, and a tile only says how many chains run side by side.
"""

# ruff: noqa: ARG001  an intrinsic names its arguments for whoever calls it, and receives them in a list

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from engine.kernels._jit import TARGET

I1, I8, I16, I32, I64, F32 = (
    ir.IntType(1),
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
    ir.FloatType(),
)

LANES = {"x86-64-v4": 16, "x86-64-v3": 8}.get(TARGET, 4)  # 4-byte elements in one register
PIXELS = {"x86-64-v4": 8, "x86-64-v3": 6, "aarch64": 6}.get(TARGET, 2)  # rows of a tile
FEW = min(4, PIXELS)  # the smaller tile, for what is left of a row
MANY = {"x86-64-v4": 16}.get(TARGET, PIXELS)  # the larger tile, where there is one block of outputs
WIDE = {"x86-64-v4": 2}.get(TARGET, 1)  # blocks of 16 outputs of a tile
DEPTH = {"x86-64-v4": (12, 6, 3), "x86-64-v3": (6, 6, 3), "aarch64": (6, 6, 3)}.get(
    TARGET, (2, 2, 2)
)  # depthwise tiles
TAPS = {"x86-64-v4": (16, 9, 4), "x86-64-v3": (6, 6, 4), "aarch64": (6, 6, 4)}.get(
    TARGET, (2, 2, 2)
)  # rows of a weight
TAPS_WIDE = {"x86-64-v4": (8, 8, 4)}.get(TARGET, TAPS)  # gradient's tile: where there are many, some, few taps left


def pointer(b, address, kind):
    return b.inttoptr(address, kind.as_pointer())


def load(b, address, kind, align=4):
    value = b.load(pointer(b, address, kind))
    value.align = align
    return value


def store(b, value, address, align=4):
    b.store(value, pointer(b, address, value.type)).align = align


def splat(b, value, lanes):
    kind = ir.VectorType(value.type, lanes)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def constant(kind, lanes, value):
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def shuffle(b, value, picks):
    mask = ir.Constant(ir.VectorType(I32, len(picks)), picks)
    return b.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def ahead(b, base, stride, times):
    return base if times == 0 else b.add(base, b.mul(stride, I64(times)))


def multiply_add(b, lanes):
    """Give x * w + total in one rounding, for registers of float32."""
    kind = ir.VectorType(F32, lanes)
    fma = get_or_insert_function(b.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.v{lanes}f32")
    return lambda x, w, total: b.call(fma, [x, w, total])


class TwoLoops:
    """`for i in range(outer): for j in range(inner):`, with registers carried as phi nodes; each runs once or more."""

    def __init__(self, b, outer, inner, carried, addresses):
        """Open both loops. `carried`: registers; `addresses`: (start, step of outer, step of inner) in bytes."""
        self.b, self.limits, self.steps = b, (outer, inner), addresses
        before = b.block
        self.heads = [b.append_basic_block("outer"), b.append_basic_block("inner")]
        b.branch(self.heads[0])
        b.position_at_end(self.heads[0])
        self.outer_phis = self._phis([I64(0), *(a[0] for a in addresses), *carried], before)
        b.branch(self.heads[1])
        b.position_at_end(self.heads[1])
        self.inner_phis = self._phis([I64(0), *self.outer_phis[1:]], self.heads[0])
        self.at = self.inner_phis[1 : 1 + len(addresses)]
        self.carried = self.inner_phis[1 + len(addresses) :]

    def _phis(self, values, block):
        phis = [self.b.phi(value.type) for value in values]
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, block)
        return phis

    def close(self, carried):
        """End both loops with the new values of the registers and leave the builder behind them."""
        b = self.b
        moved = [b.add(at, step[2]) for at, step in zip(self.at, self.steps, strict=True)]
        turn = b.add(self.inner_phis[0], I64(1))
        for phi, value in zip(self.inner_phis, [turn, *moved, *carried], strict=True):
            phi.add_incoming(value, b.block)
        between, behind = b.append_basic_block("between"), b.append_basic_block("behind")
        b.cbranch(b.icmp_signed("<", turn, self.limits[1]), self.heads[1], between)
        b.position_at_end(between)
        turn = b.add(self.outer_phis[0], I64(1))
        after = [
            last if step[1] is None else b.add(at, step[1])
            for at, last, step in zip(self.outer_phis[1:], moved, self.steps, strict=False)
        ]
        for phi, value in zip(self.outer_phis, [turn, *after, *carried], strict=True):
            phi.add_incoming(value, between)
        b.cbranch(b.icmp_signed("<", turn, self.limits[0]), self.heads[0], behind)
        b.position_at_end(behind)


def _reader(kind, result, convert):
    """Make read(base, index): element `index` of the array at an address, as LLVM's vectoriser can follow it."""

    @intrinsic
    def read(_, base, index):
        def emit(_, b, __, arguments):
            value = b.load(b.gep(pointer(b, arguments[0], kind), [arguments[1]]))
            value.align = 1 if kind is I8 else 4
            return convert(b, value)

        return result(types.intp, types.intp), emit

    return read


def _writer(kind, given):
    """Make write(base, index, value): store the value as an element of the array at an address."""

    @intrinsic
    def write(_, base, index, value):
        def emit(context, b, _, arguments):
            base, index, value = arguments
            if kind is I8 or kind is I16:
                value = b.trunc(value, kind)
            b.store(value, b.gep(pointer(b, base, kind), [index])).align = min(4, getattr(kind, "width", 32) // 8)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, given), emit

    return write


@intrinsic
def address(_, array):
    """Give the address of an array's first element."""

    def emit(context, b, signature, arguments):
        return b.ptrtoint(make_array(signature.args[0])(context, b, arguments[0]).data, I64)

    return types.intp(array), emit


@intrinsic
def as_float(_, value):
    """Give the float32 nearest to an int32."""

    def emit(_, b, __, arguments):
        return b.sitofp(arguments[0], F32)

    return types.float32(types.int32), emit


@intrinsic
def minus(_, value, other):
    """Give value - other in int32, where Numba would widen to int64 and halve the vectors."""

    def emit(_, b, __, arguments):
        return b.sub(*arguments)

    return types.int32(types.int32, types.int32), emit


@intrinsic
def turn_square(_, start, stride, to):
    """Copy 16 rows of 16 float32, `stride` bytes apart, as columns to where rows are 64 bytes apart; give 0.

    In four steps: of each pair of rows that are 8 apart, then 4, 2, 1, those halves, quarters ... change places that
    stand on the wrong side of the diagonal.
    """

    def emit(_, b, __, arguments):
        start, stride, to = arguments
        rows = [load(b, ahead(b, start, stride, i), ir.VectorType(F32, 16)) for i in range(16)]
        for step in (8, 4, 2, 1):
            upper = [lane + 16 - step if lane & step else lane for lane in range(16)]
            lower = [lane + 16 if lane & step else lane + step for lane in range(16)]
            for i in range(16):
                if not i & step:
                    pair = rows[i], rows[i + step]
                    rows[i], rows[i + step] = (
                        b.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, 16), picks)) for picks in (upper, lower)
                    )
        for i, row in enumerate(rows):
            store(b, row, b.add(to, I64(64 * i)))
        return I64(0)

    return types.int64(types.int64, types.int64, types.int64), emit


read_int8 = _reader(I8, types.int32, lambda b, value: b.sext(value, I32))
read_int32 = _reader(I32, types.int32, lambda _, value: value)
read_float = _reader(F32, types.float32, lambda _, value: value)
write_int16 = _writer(I16, types.int32)
write_int32 = _writer(I32, types.int32)
write_float = _writer(F32, types.float32)
write_int64 = _writer(I64, types.int64)
