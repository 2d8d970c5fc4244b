"""Scales and zero-points of an `.onnx` file: QuantizeLinear, DequantizeLinear and the operators named QLinear."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models.onnx_build import SHIFT, Constant, Quantization, Value, shifted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.models.onnx_build import Workbench
    from engine.models.onnx_file import Node

BIAS_SCALE_TOLERANCE = 1e-3  # how far a bias's own scale may be from input scale times weight scale
_UINT8 = 2  # of TensorProto.DataType


def quantization_of(bench: Workbench, node: Node, position: int, dtype: str = "") -> tuple[Quantization, str]:
    """Return the scale at input `position` and the zero-point behind it, for int8 numbers, and the file's dtype.

    `dtype` is that of the numbers where the zero-point is left out. A uint8 zero-point is less 128 here.
    """
    scale = _float_constant(bench, node, position)
    known = bench.constant(node.inputs[position + 1]) if len(node.inputs) > position + 1 else None
    if known is None and len(node.inputs) > position + 1 and node.inputs[position + 1]:
        raise node.refusal("has a zero-point that is no constant; export it with static quantization")
    if node.integer("block_size", 0):
        raise node.refusal("is quantised in blocks; export it with one scale, or one per channel")
    dtype = known.data.dtype.name if known else dtype or "uint8"
    if dtype not in {"int8", "uint8", "int32"}:
        raise node.refusal(f"is quantised as {dtype}; export it as int8 or uint8")
    zero_point = np.zeros(len(scale), np.int64)
    if known is not None:
        if known.data.size != len(scale):
            raise node.refusal(f"has {len(scale)} scales and {known.data.size} zero-points; export it again")
        zero_point = known.data.reshape(-1).astype(np.int64)
    return Quantization(scale, zero_point - (SHIFT if dtype == "uint8" else 0)), dtype


def per_tensor(node: Node, known: Quantization) -> Quantization:
    """Return the quantization; ModelError where it has several scales."""
    if len(known.scale) != 1:
        raise node.refusal(f"has {len(known.scale)} scales where one is needed; export it with one scale per tensor")
    return known


def quantize_linear(bench: Workbench, node: Node) -> None:
    """QuantizeLinear: int8 numbers from real ones, or from int8 ones of another scale; nothing where it is the same."""
    dtype = "int8" if node.integer("output_dtype", 0) not in {0, _UINT8} else "uint8"
    known, dtype = quantization_of(bench, node, 1, dtype)
    given, name = bench.known(node, 0), node.outputs[0]
    if isinstance(given, Constant):
        bench.keep(name, _steps_of(node, given, known, dtype))
        return
    known = per_tensor(node, known)
    if not given.is_real:
        raise node.refusal("quantises whole numbers; export the model again")
    bench.values[name] = replace(bench.requantized(given, known, name), is_real=False)


def dequantize_linear(bench: Workbench, node: Node) -> None:
    """DequantizeLinear: the same numbers, looked at as real ones."""
    given, name = bench.known(node, 0), node.outputs[0]
    if isinstance(given, Constant):
        if given.quantization is None:  # else it comes from a QuantizeLinear of a constant, with the same numbers
            given = weights_of(bench, node, given, 1, node.integer("axis", 1))
        bench.keep(name, given)
        return
    known, _ = quantization_of(bench, node, 1)
    bench.values[name] = replace(with_scale(bench, node, given, per_tensor(node, known)), is_real=True)


def with_scale(bench: Workbench, node: Node, given: Value, known: Quantization) -> Value:
    """Return int8 numbers that are to be read with this scale: they have it already, or are an input without one."""
    tensor = bench.tensor(given)
    if given.is_real or tensor.dtype != "int8":
        raise node.refusal("takes real numbers where int8 ones are needed; export the model again")
    if not len(tensor.scale):
        bench.tensors[given.tensor] = replace(tensor, scale=known.scale, zero_point=known.zero_point)
    elif not known.equals(Quantization(tensor.scale, tensor.zero_point)):
        raise node.refusal(f"reads {tensor.name!r} with another scale than it was written with; export it again")
    return given


def weights_of(bench: Workbench, node: Node, given: Constant, position: int, axis: int) -> Constant:
    """Return a constant of int8, uint8 or int32 with the scales and zero-points at `position`, along `axis` if many."""
    known, dtype = quantization_of(bench, node, position, given.data.dtype.name)
    if given.data.dtype.name != dtype:
        raise node.refusal(f"has {given.data.dtype} numbers with a zero-point of {dtype}; export it again")
    return shifted(given, replace(known, axis=_axis(node, given, known, axis)))


def real_constant(node: Node, given: Constant) -> Constant:
    """Return a constant as float32 numbers; what is computed here cannot be written back."""
    known = given.quantization
    if known is None:
        if given.data.dtype != np.float32:
            raise node.refusal(f"takes the constant {given.name!r} of {given.data.dtype}; export it as float32")
        return given
    scale, zero_point = _along(given, known.scale, known), _along(given, known.zero_point.astype(np.float32), known)
    with np.errstate(over="ignore"):
        data = np.asarray((given.data.astype(np.float32) - zero_point) * scale)
    return Constant(data, given.name, None)


def bias_steps(node: Node, given: Constant, entering: Quantization, weights: Quantization) -> Constant:
    """Return a bias [O] as int32 in steps of input scale times weight scale.

    An int32 bias keeps its numbers, and real ones are rounded, ties to even; both can be written back.
    """
    scale = entering.scale * weights.scale
    about = Quantization(scale, np.zeros(len(scale), np.int64), 0)
    if given.data.dtype == np.int32:
        known = given.quantization
        if known is None or _is_near(
            np.broadcast_to(known.scale, scale.shape) if len(known.scale) == 1 else known.scale, scale
        ):
            return replace(given, quantization=about)
        given = real_constant(node, given)
    given = real_constant(node, given)
    return _rounded(node, given, about, np.iinfo(np.int32), np.dtype(np.int32))


def _steps_of(node: Node, given: Constant, known: Quantization, dtype: str) -> Constant:
    """QuantizeLinear of a constant: weights that the file keeps as real numbers."""
    given = real_constant(node, given)
    known = replace(known, axis=_axis(node, given, known, node.integer("axis", 1)))
    if dtype == "int32":
        raise node.refusal("quantises to int32; export it as int8 or uint8")
    return _rounded(node, given, known, np.iinfo(np.int8), np.dtype(np.int8))


def _rounded(node: Node, given: Constant, known: Quantization, limits: Any, dtype: np.dtype[Any]) -> Constant:
    """Real numbers over scale, rounded with ties to even, plus zero-point, clamped; NaN is refused."""
    if not bool(np.isfinite(given.data).all()):
        raise node.refusal("quantises NaN or infinity; train and export the model again")
    scale = _along(given, known.scale, known)
    steps = np.rint(given.data.astype(np.float64) / scale.astype(np.float64))
    steps = np.asarray(np.clip(steps + _along(given, known.zero_point, known), limits.min, limits.max).astype(dtype))
    origin = None
    if given.origin is not None and not known.zero_point.any():
        origin = replace(given.origin, step=np.ascontiguousarray(scale))
    return Constant(steps, given.name, origin, known)


def _along(given: Constant, numbers: NDArray[Any], known: Quantization) -> NDArray[Any]:
    """Return scales or zero-points in a shape that broadcasts over the constant."""
    form = [1] * given.data.ndim
    if len(numbers) > 1:
        form[known.axis] = len(numbers)
    return numbers.reshape(form)


def _axis(node: Node, given: Constant, known: Quantization, axis: int) -> int:
    """Return the axis of the scales, from 0; 0 where there is one for all."""
    if len(known.scale) == 1:
        return 0
    axis += given.data.ndim if axis < 0 else 0
    if not 0 <= axis < given.data.ndim or given.data.shape[axis] != len(known.scale):
        raise node.refusal(f"has {len(known.scale)} scales along axis {axis} of {given.data.shape}; export it again")
    return axis


def _float_constant(bench: Workbench, node: Node, position: int) -> NDArray[np.float32]:
    known = bench.constant(node.inputs[position]) if len(node.inputs) > position else None
    if known is None or known.data.dtype != np.float32 or known.data.ndim > 1 or not known.data.size:
        raise node.refusal("has a scale that is no float32 constant; export it with static quantization")
    scale: NDArray[np.float32] = known.data.reshape(-1)
    if not bool((np.isfinite(scale) & (scale > 0)).all()):
        raise node.refusal("has a scale that is no positive number; export it again")
    return scale


def _is_near(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    return ours.shape == theirs.shape and bool((np.abs(ours - theirs) <= BIAS_SCALE_TOLERANCE * theirs).all())
