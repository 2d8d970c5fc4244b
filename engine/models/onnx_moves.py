"""ONNX's operators without weights: pools and means, and what reshapes, transposes, pads and joins.

Arithmetic on shapes is done while the file is read: a graph is read for one window, so every shape is known. The first
axis is that of the windows, and nothing may move it: many windows run through the same operators.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models.graph import ABSENT
from engine.models.onnx_build import IMAGE, Constant, Value, elements
from engine.models.onnx_layers import Tail, tail
from engine.models.onnx_windows import SAME, STEPS_MAX, VALID, geometry, pad, padded

if TYPE_CHECKING:
    from engine.models.onnx_build import Workbench
    from engine.models.onnx_file import Node

SHORT = 64  # numbers in a constant that is computed with while reading


def pool(bench: Workbench, node: Node) -> None:
    """MaxPool and AveragePool, and the same over the whole image."""
    given = bench.image(node, bench.value(node, 0))
    given = given if bench.quantization(given) or not given.is_real else bench.real(given)
    is_maximum, sizes = node.op in {"MaxPool", "GlobalMaxPool"}, given.stored_shape[1:3]
    kernel: tuple[int, ...] = node.integers("kernel_shape") or ()
    if node.op.startswith("Global"):
        kernel = sizes[-(len(given.shape) - 2) :]
    if len(kernel) != len(given.shape) - 2 or any(node.outputs[1:]):
        raise node.refusal(f"has a window {kernel[:4]} for {given.shape}, or indices as its answer; export it again")
    about = geometry(node, given, (kernel[0], kernel[1]) if len(kernel) == 2 else (1, kernel[0]))
    if max(about.dilations) > 1:
        raise node.refusal("is a pool with dilations; export it without")
    before = given.tensor
    given, padding = padded(bench, given, about, lowest=is_maximum)
    if not is_maximum and any(map(any, about.pads)):
        counts_padding = bool(node.integer("count_include_pad", 0))
        if padding == SAME and counts_padding:
            given, padding = pad(bench, given, ((0, 0), *about.pads, (0, 0))), VALID
        elif given.tensor != before and not counts_padding:
            raise node.refusal("pads unlike SAME and does not count its padding; export it with another padding")
    shape = (*given.shape[:2], *about.sizes[-len(kernel) :])
    made = replace(given, shape=shape)
    made = replace(made, tensor=bench.add(node.outputs[0], made.stored_shape, bench.quantization(given)))
    kind = "MAX_POOL_2D" if is_maximum else "AVERAGE_POOL_2D"
    bench.emit(kind, (given.tensor,), (made.tensor,), "NONE", **about.pool_options(padding))
    bench.values[node.outputs[0]] = made


def mean(bench: Workbench, node: Node) -> None:
    """GlobalAveragePool and ReduceMean."""
    given = bench.value(node, 0)
    rank, axes = len(given.shape), tuple(range(2, len(given.shape)))
    keeps = True
    if node.op == "ReduceMean":
        axes = node.integers("axes") or bench.integers(node, 1) or tuple(range(rank))
        keeps = bool(node.integer("keepdims", 1))
    if not axes or not all(-rank <= axis < rank and axis % rank for axis in axes):
        raise node.refusal(f"runs over the axes {axes[:8]} of {given.shape}; export it over axes 1 and up")
    axes = tuple(sorted({axis % rank for axis in axes}))
    is_spatial = rank in IMAGE and axes == tuple(range(2, rank))
    given = bench.image(node, given) if is_spatial else bench.plain(given)
    end = Tail(node.outputs[0])
    if bench.quantization(given) and given.is_real:
        end = tail(bench, node, quantized=True, fuses=False)
    if end.known is None:
        given = bench.real(given)
    emit_mean(bench, given, axes, end, keeps=keeps)


def emit_mean(bench: Workbench, given: Value, axes: tuple[int, ...], end: Tail, *, keeps: bool) -> None:
    """Emit a MEAN over ONNX's `axes`; for an image over its height and width."""
    wide = tuple(1 if axis in axes else size for axis, size in enumerate(given.shape))
    is_image = given.order == IMAGE.get(len(given.shape)) and axes == tuple(range(2, len(given.shape)))
    stored = (1, 2) if is_image else tuple(given.order.index(axis) for axis in axes)
    made = Value(ABSENT, wide, given.order, end.known is None)
    shape = made.stored_shape
    if not keeps:
        shape = tuple(size for position, size in enumerate(shape) if position not in stored)
        kept = tuple(size for axis, size in enumerate(wide) if axis not in axes)
        made = Value(ABSENT, kept, tuple(range(len(kept))), end.known is None)
    made = replace(made, tensor=bench.add(end.name, shape, end.known))
    inputs = (given.tensor, bench.add_numbers("axes", stored))
    bench.emit("MEAN", inputs, (made.tensor,), "NONE", keep_dimensions=int(keeps))
    bench.values[end.name] = made


def reshape(bench: Workbench, node: Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze."""
    given = bench.known(node, 0)
    old = given.data.shape if isinstance(given, Constant) else given.shape
    shape = _new_shape(bench, node, old)
    if elements(shape) != elements(old) or len(shape) > 8 or min(shape, default=0) < 0:
        raise node.refusal(f"makes {shape[:8]} out of {old}; export it again, with one window or any number of them")
    if isinstance(given, Constant):
        if given.quantization and len(given.quantization.scale) > 1 and shape != old:
            raise node.refusal("reshapes weights with a scale per channel; export it with the weights in their shape")
        bench.keep(node.outputs[0], given.reshaped(shape))
        return
    if shape[:1] != (1,):
        raise node.refusal(f"makes {shape} of one window; export it with the axis of the windows first")
    bench.values[node.outputs[0]] = _reshaped(bench, given, shape)


def transpose(bench: Workbench, node: Node) -> None:
    """Transpose: only what ONNX calls the axes changes, and nothing of what is stored."""
    given = bench.known(node, 0)
    rank = len(given.data.shape if isinstance(given, Constant) else given.shape)
    axes = node.integers("perm") or tuple(reversed(range(rank)))
    if sorted(axes) != list(range(rank)):
        raise node.refusal(f"has the axes {axes[:8]} for {rank} of them; export it again")
    if isinstance(given, Constant):
        bench.keep(node.outputs[0], given.transposed(axes))
        return
    if axes[:1] != (0,):
        raise node.refusal(f"moves the axis of the windows ({axes}); export it with that axis first")
    given = bench.plain(given) if given.unrolled else given
    order = tuple(axis if axis < 0 else axes.index(axis) for axis in given.order)
    bench.values[node.outputs[0]] = replace(given, shape=tuple(given.shape[axis] for axis in axes), order=order)


def concatenate(bench: Workbench, node: Node) -> None:
    """Concat; int8 parts are brought to the scale of the QuantizeLinear behind it."""
    parts = [bench.value(node, position) for position in range(len(node.inputs))]
    end, known = Tail(node.outputs[0]), [bench.quantization(part) for part in parts]
    if all(known) and all(part.is_real for part in parts):
        end = tail(bench, node, quantized=True, fuses=False)
    emit_concatenation(bench, node, parts, end, node.integer("axis", 0))


def emit_concatenation(bench: Workbench, node: Node, parts: list[Value], end: Tail, axis: int) -> None:
    """Emit a CONCATENATION of values, int8 if the tail says so."""
    parts = [bench.plain(part) if part.unrolled else part for part in parts]
    rank = len(parts[0].shape) if parts else 0
    axis += rank if axis < 0 else 0
    alike = {(*part.shape[:axis], *part.shape[axis + 1 :]) for part in parts if len(part.shape) == rank}
    if not 0 < axis < rank or len(alike) != 1 or any(len(part.shape) != rank for part in parts):
        raise node.refusal(f"joins {[part.shape for part in parts[:4]]} along axis {axis}; export it again")
    order = next((part.order for part in parts if part.order == IMAGE.get(rank)), parts[0].order)
    parts = [bench.ordered(part, order) for part in parts]
    if end.known:
        parts = [bench.requantized(part, end.known, f"{end.name} part") for part in parts]
    else:
        parts = [bench.real(part) for part in parts]
    shape = tuple(
        sum(part.shape[axis] for part in parts) if position == axis else size
        for position, size in enumerate(parts[0].shape)
    )
    made = Value(ABSENT, shape, order, end.known is None)
    made = replace(made, tensor=bench.add(end.name, made.stored_shape, end.known))
    bench.emit("CONCATENATION", tuple(part.tensor for part in parts), (made.tensor,), "NONE", axis=order.index(axis))
    bench.values[end.name] = made


def pad_node(bench: Workbench, node: Node) -> None:
    """Pad with zeros."""
    given = bench.value(node, 0)
    given = bench.plain(given) if given.unrolled else given
    rank, numbers = len(given.shape), node.integers("pads") or bench.integers(node, 1) or ()
    value = (bench.numbers(node, 2) or (0,))[0] or node.real("value", 0.0)
    mode = node.text("mode", b"constant")
    if len(numbers) != 2 * rank or not all(0 <= number <= STEPS_MAX for number in numbers) or any(node.inputs[3:]):
        raise node.refusal(
            f"has the pads {numbers[:8]} for {given.shape}; export it with {2 * rank} small positive ones"
        )
    if mode != b"constant" or value != 0 or numbers[0] or numbers[rank]:
        raise node.refusal("pads with something else than zeros around a window; export it with zeros")
    if given.is_real and not bench.quantization(given):
        given = bench.real(given)
    sides = tuple((0, 0) if axis < 0 else (numbers[axis], numbers[axis + rank]) for axis in given.order)
    bench.values[node.outputs[0]] = pad(bench, given, sides)


def same(bench: Workbench, node: Node) -> None:
    """Identity, and Dropout and Cast where they change nothing."""
    if node.op == "Cast" and node.integer("to", 0) != 1:
        raise node.refusal("makes another type of a window's numbers; export the model as float32 or int8")
    given = bench.value(node, 0)
    if node.op == "Cast" and not given.is_real:
        raise node.refusal("makes real numbers of whole ones; export the model with a DequantizeLinear")
    bench.values[node.outputs[0]] = given


def computed(bench: Workbench, node: Node) -> bool:
    """Compute a node on shapes and short constants while reading; False where it is no such node."""
    name, op = node.outputs[0] if node.outputs else "", node.op
    if op == "Constant":
        for key, dtype in (
            ("value_ints", "int64"),
            ("value_int", "int64"),
            ("value_floats", "f4"),
            ("value_float", "f4"),
        ):
            value = node.attributes.get(key)
            if isinstance(value, tuple | int | float):
                with np.errstate(invalid="ignore"):
                    bench.constants[name] = Constant(np.array(value).astype(dtype), name, None)
        if bench.constant(name) is None:
            raise node.refusal("holds no numbers; export the model again")
        return True
    if op == "Shape" and node.inputs and node.inputs[0] in bench.values:
        shape = bench.values[node.inputs[0]].shape
        part = shape[node.integer("start", 0) : node.integer("end", len(shape))]
        bench.constants[name] = Constant(np.array(part, np.int64), name, None)
        return True
    if op not in _ON_NUMBERS or not node.inputs:
        return False
    given = [bench.constant(entry) for entry in node.inputs]
    numbers = [known.data for known in given if known is not None and known.data.dtype.kind == "i"]
    if (
        len(numbers) != len(given)
        or any(known.quantization for known in given if known)
        or any(entry.size > SHORT for entry in numbers)
    ):
        return False
    try:
        result = np.asarray(_ON_NUMBERS[op](node, *numbers))
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as why:
        raise node.refusal(f"cannot be computed ({why}); export the model again") from why
    if result.size > SHORT:
        raise node.refusal("makes a long list out of a shape; export it with fixed sizes")
    bench.constants[name] = Constant(result, name, None)
    return True


def _reshaped(bench: Workbench, given: Value, shape: tuple[int, ...]) -> Value:
    if shape == given.shape:
        return given
    rank, is_flat = len(given.shape), len(shape) == 2 and shape[0] == 1
    if given.unrolled == shape[1:]:
        made = replace(given, shape=shape, order=IMAGE[4], unrolled=None)
        return replace(made, tensor=bench.reshape(given.tensor, made.stored_shape))
    if is_flat and rank in IMAGE and given.order == IMAGE[rank] and not given.unrolled:
        channels, (height, width) = given.shape[1], given.stored_shape[1:3]
        mixed = None if channels == 1 or height * width == 1 else (channels, height, width)
        return Value(bench.reshape(given.tensor, shape), shape, (0, 1), given.is_real, mixed)
    given = bench.plain(given)
    return Value(bench.reshape(given.tensor, shape), shape, tuple(range(len(shape))), given.is_real)


def _new_shape(bench: Workbench, node: Node, old: tuple[int, ...]) -> tuple[int, ...]:
    rank = len(old)
    if node.op == "Flatten":
        axis = node.integer("axis", 1)
        axis += rank if axis < 0 else 0
        return (elements(old[:axis]), elements(old[axis:]))
    if node.op == "Reshape":
        wanted = list(bench.integers(node, 1) or node.integers("shape"))
        if not node.integer("allowzero", 0):
            wanted = [old[at] if size == 0 and at < rank else size for at, size in enumerate(wanted)]
        known = elements(tuple(size for size in wanted if size != -1))
        return tuple(elements(old) // max(known, 1) if size == -1 else size for size in wanted)
    axes = node.integers("axes") or bench.integers(node, 1) or ()
    whole = rank if node.op == "Squeeze" else rank + len(axes)
    places = {axis % whole for axis in axes if -whole <= axis < whole}
    if len(places) != len(axes):
        raise node.refusal(f"has the axes {axes[:8]} for {old}; export it again")
    if node.op == "Squeeze":
        places = places or {axis for axis, size in enumerate(old) if size == 1}
        return tuple(size for axis, size in enumerate(old) if axis not in places)
    rest = iter(old)
    return tuple(1 if place in places else next(rest) for place in range(whole))


def _gather(node: Node, numbers: Any, indices: Any) -> Any:
    return np.take(numbers, indices, axis=node.integer("axis", 0))


def _slice(_: Node, numbers: Any, starts: Any, ends: Any, *rest: Any) -> Any:
    if numbers.ndim != 1 or starts.size != 1 or ends.size != 1 or any(part.size != 1 for part in rest):
        raise ValueError("only a list is sliced")
    step = int(rest[1].reshape(-1)[0]) if len(rest) > 1 else 1
    return numbers[int(starts.reshape(-1)[0]) : int(ends.reshape(-1)[0]) : step]


def _unsqueeze(node: Node, numbers: Any, *axes: Any) -> Any:
    return np.expand_dims(numbers, tuple(axes[0].reshape(-1).tolist() if axes else node.integers("axes")))


def _squeeze(_: Node, numbers: Any, *axes: Any) -> Any:
    return np.squeeze(numbers, tuple(axes[0].reshape(-1).tolist()) if axes else None)


def _concat(node: Node, *parts: Any) -> Any:
    return np.concatenate(parts, axis=node.integer("axis", 0))


_ON_NUMBERS: dict[str, Any] = {
    "Gather": _gather,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Identity": lambda _, numbers: numbers,
    "Cast": lambda node, numbers: numbers.astype({6: np.int32, 7: np.int64}[node.integer("to", 0)]),
    "Add": lambda _, a, b: a + b,
    "Mul": lambda _, a, b: a * b,
    "Sub": lambda _, a, b: a - b,
}
