"""The workbench on which an `.onnx` file becomes a Graph: what is known of each name, and the operators made so far.

ONNX keeps images as [N, C, H, W], the engine as [N, H, W, C]. So each value remembers in which `order` of ONNX's axes
its numbers are stored, and a change of the axes costs nothing until an operator needs another order; only then a
TRANSPOSE or RESHAPE is made. A flatten of a stored [H, W, C] mixes the columns; the value remembers it (`unrolled`),
and the next dense layer's weights are permuted instead.

Numbers are int8 throughout: uint8 ones are shifted by 128, and their zero-points with them. DequantizeLinear makes
no operator: its result is the same tensor, looked at as real numbers (`is_real`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models.graph import Graph, ModelError, Operator, Origin, Tensor
from engine.models.soundness import check_shape, checked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.models.onnx_file import Node, OnnxFile

NEW = -1  # in an order: an axis of size 1 that ONNX does not have
IMAGE = {4: (0, 2, 3, 1), 3: (0, NEW, 2, 1)}
NO_SCALE = (np.zeros(0, np.float32), np.zeros(0, np.int64))
SHIFT = 128


@dataclass(frozen=True, slots=True)
class Quantization:
    """real = (stored - zero_point) * scale, of int8 numbers; one pair, or one per slice along `axis` (ONNX's)."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int = 0

    def equals(self, other: Quantization) -> bool:
        """Whether both are the same bits."""
        return self.scale.tobytes() == other.scale.tobytes() and np.array_equal(self.zero_point, other.zero_point)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor as ONNX sees it: `shape` and axes are ONNX's (with one window), the tensor is stored in `order`."""

    tensor: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    is_real: bool  # ONNX sees real numbers: float32, or int8 behind a DequantizeLinear
    unrolled: tuple[int, int, int] | None = None  # columns are stored as (H, W, C); ONNX counts (C, H, W), given here

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(1 if axis == NEW else self.shape[axis] for axis in self.order)


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of the file, as changed so far; `quantization` where it stands behind a DequantizeLinear."""

    data: NDArray[Any]
    name: str
    origin: Origin | None
    quantization: Quantization | None = None

    def transposed(self, axes: tuple[int, ...]) -> Constant:
        """Return it with its axes in another order."""
        moved, origin, known = self.data.transpose(axes).copy(order="C"), self.origin, self.quantization
        if origin is not None:
            origin = replace(origin, moves=(*origin.moves, ("transpose", axes)))
        if known is not None:
            known = replace(known, axis=axes.index(known.axis) if len(known.scale) > 1 else 0)
        return Constant(moved, self.name, origin, known)

    def reshaped(self, shape: tuple[int, ...]) -> Constant:
        """Return it in another shape; scales per slice stay with their axis only if that keeps its place."""
        origin = self.origin
        if origin is not None:
            origin = replace(origin, moves=(*origin.moves, ("reshape", shape)))
        return Constant(self.data.reshape(shape), self.name, origin, self.quantization)


class Workbench:
    """The graph under construction. Names are ONNX's; handlers of operators ask for values and emit operators."""

    def __init__(self, file: OnnxFile) -> None:
        self.file = file
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Constant] = {}
        self.makers: dict[int, Operator] = {}
        self.done: set[int] = set()  # nodes that an earlier one has taken into its operator
        self._dequantized: dict[int, int] = {}
        self._users: dict[str, list[Node]] = {}
        self._outputs = {declared.name for declared in file.outputs}
        for node in file.nodes:
            for name in node.inputs:
                self._users.setdefault(name, []).append(node)

    # What is known of a name

    def constant(self, name: str) -> Constant | None:
        """Return the constant of this name; None where it is none."""
        if name not in self.constants:
            data = self.file.constant(name)
            if data is None:
                return None
            form = Origin(name, data.shape, data.dtype.name)
            self.constants[name] = Constant(data, name, form if name in self.file.protos else None)
        return self.constants[name]

    def numbers(self, node: Node, position: int) -> tuple[Any, ...] | None:
        """Return an input that must be a short constant vector; None where it is left out."""
        if len(node.inputs) <= position or not node.inputs[position]:
            return None
        known = self.constant(node.inputs[position])
        if known is None or known.data.ndim > 1 or known.data.size > 64:
            raise node.refusal(f"takes {node.inputs[position]!r}, which is no short constant; export it as a constant")
        return tuple(known.data.reshape(-1).tolist())

    def integers(self, node: Node, position: int) -> tuple[int, ...] | None:
        """Return an input that must be a short constant vector of integers; None where it is left out."""
        numbers = self.numbers(node, position)
        if not all(isinstance(number, int) for number in numbers or ()):
            raise node.refusal(f"takes real numbers as input {position}; export it with whole ones")
        return numbers

    def value(self, node: Node, position: int) -> Value:
        """Return an input that is computed, in whatever order it is stored; a constant becomes a tensor."""
        name = node.inputs[position] if position < len(node.inputs) else ""
        if name in self.values:
            return self.values[name]
        known = self.constant(name)
        if known is None:
            raise node.refusal(f"takes {name!r}, which no node before it makes; export the model again")
        shape = known.data.shape
        return Value(self.add_constant(known), shape, tuple(range(len(shape))), known.data.dtype.kind == "f")

    def known(self, node: Node, position: int) -> Value | Constant:
        """Return an input as the constant it is, or else as a value."""
        name = node.inputs[position] if position < len(node.inputs) else ""
        return self.constant(name) or self.value(node, position)

    def keep(self, name: str, known: Constant) -> None:
        """Remember a constant that a node makes out of others, and pay for it."""
        self.file.spend(known.data.nbytes)
        self.constants[name] = known

    def only_user(self, name: str) -> Node | None:
        """Return the node that alone uses a value and makes another; None where the value is used elsewhere too."""
        users = self._users.get(name, [])
        return users[0] if len(users) == 1 and name not in self._outputs and any(users[0].outputs[:1]) else None

    def users(self, name: str) -> list[Node]:
        """Return the nodes that use a value."""
        return self._users.get(name, [])

    def tensor(self, value: Value) -> Tensor:
        """Return the tensor of a value."""
        return self.tensors[value.tensor]

    def quantization(self, value: Value) -> Quantization | None:
        """Return how a value's tensor is quantised; None where it is float32, or not yet known."""
        tensor = self.tensors[value.tensor]
        return Quantization(tensor.scale, tensor.zero_point) if len(tensor.scale) else None

    # Making tensors and operators

    def add(self, name: str, shape: tuple[int, ...], known: Quantization | None, dtype: str = "float32") -> int:
        """Add a computed tensor, int8 where it is quantised; return its index."""
        check_shape(len(self.tensors), shape)
        scale, zero_point = (known.scale, known.zero_point) if known else NO_SCALE
        dtype = "int8" if known else dtype
        self.tensors.append(Tensor(len(self.tensors), name, shape, dtype, scale, zero_point, 0, None))
        return len(self.tensors) - 1

    def add_constant(self, known: Constant) -> int:
        """Add a constant tensor; return its index."""
        check_shape(len(self.tensors), known.data.shape)
        self.file.spend(known.data.nbytes)
        data = np.asarray(known.data, order="C").view()
        data.flags.writeable = False
        about = known.quantization
        scale, zero_point, axis = (about.scale, about.zero_point, about.axis) if about else (*NO_SCALE, 0)
        index = len(self.tensors)
        self.tensors.append(
            Tensor(index, known.name, data.shape, data.dtype.name, scale, zero_point, axis, data, known.origin)
        )
        return index

    def add_numbers(self, name: str, numbers: Any) -> int:
        """Add a constant that the file does not have (a list of axes, a new shape) as int32."""
        return self.add_constant(Constant(np.array(numbers, np.int32), name, None))

    def emit(
        self,
        kind: str,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        activation: str = "NONE",
        **options: float,
    ) -> None:
        """Add an operator."""
        self.operators.append(Operator(len(self.operators), kind, inputs, outputs, activation, options))
        self.makers.update(dict.fromkeys(outputs, self.operators[-1]))

    # Bringing a value into the form that an operator needs

    def real(self, value: Value) -> Value:
        """Return the value as float32 numbers; a DEQUANTIZE is made once where it is int8."""
        tensor = self.tensors[value.tensor]
        if not value.is_real:
            raise ModelError(f"{tensor.name!r} holds whole numbers where real ones are needed; export the model again")
        if tensor.dtype == "float32":
            return value
        if value.tensor not in self._dequantized:
            made = self.add(f"{tensor.name} as real numbers", tensor.shape, None)
            self.emit("DEQUANTIZE", (value.tensor,), (made,))
            self._dequantized[value.tensor] = made
        return replace(value, tensor=self._dequantized[value.tensor])

    def image(self, node: Node, value: Value) -> Value:
        """Return the value stored as [N, H, W, C]; a row of numbers in time is an image of height 1."""
        if len(value.shape) not in IMAGE:
            raise node.refusal(f"takes {value.shape}; only [N, C, H, W] and [N, C, L] can be read here")
        return self.ordered(value, IMAGE[len(value.shape)])

    def plain(self, value: Value) -> Value:
        """Return the value stored as ONNX counts it."""
        if value.unrolled is not None:
            channels, height, width = value.unrolled
            image = Value(value.tensor, (1, channels, height, width), IMAGE[4], value.is_real)
            image = replace(image, tensor=self.reshape(image.tensor, image.stored_shape))
            rows = self.ordered(image, (0, 1, 2, 3))
            return replace(value, tensor=self.reshape(rows.tensor, value.shape), unrolled=None)
        return self.ordered(value, tuple(range(len(value.shape))))

    def ordered(self, value: Value, order: tuple[int, ...]) -> Value:
        """Return the value stored in another order of its axes."""
        before = [axis for axis in value.order if axis != NEW]
        after = [axis for axis in order if axis != NEW]
        wanted = replace(value, order=order)
        tensor = value.tensor
        if [axis for axis in before if value.shape[axis] != 1] != [axis for axis in after if value.shape[axis] != 1]:
            tensor = self.reshape(tensor, tuple(value.shape[axis] for axis in before))
            axes = tuple(before.index(axis) for axis in after)
            moved = self._like(tensor, tuple(value.shape[axis] for axis in after))
            self.emit("TRANSPOSE", (tensor, self.add_numbers("axes", axes)), (moved,))
            tensor = moved
        return replace(wanted, tensor=self.reshape(tensor, wanted.stored_shape))

    def widened(self, value: Value, rank: int) -> Value:
        """Return the value with axes of size 1 before its own, as broadcasting does; stored as ONNX counts it."""
        value = self.plain(value)
        shape = (1,) * (rank - len(value.shape)) + value.shape
        return Value(self.reshape(value.tensor, shape), shape, tuple(range(rank)), value.is_real)

    def reshape(self, tensor: int, shape: tuple[int, ...]) -> int:
        """Return the tensor in another shape; a RESHAPE where it has not that shape already."""
        if self.tensors[tensor].shape == shape:
            return tensor
        made = self._like(tensor, shape)
        self.emit("RESHAPE", (tensor, self.add_numbers("shape", shape)), (made,))
        return made

    def requantized(self, value: Value, known: Quantization, name: str) -> Value:
        """Return a quantised value with another scale and zero-point; a QUANTIZE where they differ."""
        if (has := self.quantization(value)) and has.equals(known):
            return value
        made = self.add(name, self.tensors[value.tensor].shape, known)
        self.emit("QUANTIZE", (value.tensor,), (made,))
        return replace(value, tensor=made)

    def _like(self, tensor: int, shape: tuple[int, ...]) -> int:
        like = self.tensors[tensor]
        known = Quantization(like.scale, like.zero_point) if len(like.scale) else None
        return self.add(f"{like.name} moved", shape, known, like.dtype)

    def finished(self, inputs: tuple[int, ...]) -> Graph:
        """Return the graph, with the file's outputs as real numbers in the engine's order of axes."""
        outputs = []
        for declared in self.file.outputs:
            if declared.name not in self.values:
                raise ModelError(f"the model's output {declared.name!r} is made by no node; export the model again")
            value = self.values[declared.name]
            value = self.plain(value) if value.unrolled else value
            outputs.append((self.real(value) if value.is_real else value).tensor)
        return checked(Graph(tuple(self.tensors), tuple(self.operators), inputs, tuple(outputs)))


def elements(shape: tuple[int, ...]) -> int:
    """How many numbers a shape holds."""
    return math.prod(shape)


def shifted(known: Constant, quantization: Quantization) -> Constant:
    """Return a constant of int8, uint8 or int32 with this quantization; uint8 numbers become int8, 128 less."""
    if known.data.dtype != np.uint8:
        return replace(known, quantization=quantization)
    origin = replace(known.origin, shift=SHIFT) if known.origin else None
    data = (known.data.astype(np.int16) - SHIFT).astype(np.int8)
    return Constant(data, known.name, origin, quantization)
