"""A model while it is written onto a tape: which room holds which tensor, what trains, and where gradients flow.

`engine/layers.py` and `engine/operators.py` write each operator's calls through this record; `engine/program.py` walks
the operators, forward and then backward. All tensors are seen as [examples][height][width][channels]; gradients are
float32 and those of *real* values, (stored - zero point) * scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import int8
from engine.models.fold import live_operators
from engine.models.graph import ABSENT, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.drift import Part
    from engine.models.graph import Graph, Operator, Tensor
    from engine.models.scheme import TrainedLayer
    from engine.tape import Room, Tape


@dataclass(frozen=True)
class Descent:
    """How parameters move: the rate of SGD on real-valued parameters, the momentum, and what `engine.drift` adds."""

    learning_rate: float
    momentum: float
    proximal: float = 0.0  # FedProx's mu
    correction: NDArray[np.float32] | None = None  # SCAFFOLD's, of the gradient of real numbers [P]; None: none


@dataclass(eq=False)
class Recording:
    """What is known while operators are recorded; `layers` are the trained ones, by operator."""

    graph: Graph
    tape: Tape
    operators: tuple[Operator, ...]
    layers: dict[int, TrainedLayer] = field(default_factory=dict)
    descent: Descent | None = None
    real_answer: int = ABSENT  # a layer's output that is wanted as real numbers: the logits while training
    values: dict[int, Room] = field(default_factory=dict)
    params: dict[int, Room] = field(default_factory=dict)  # constants in their own arrays, by tensor
    inputs_kept: dict[int, Room] = field(default_factory=dict)  # by operator: the chosen channels of its input
    bits: dict[int, Room] = field(default_factory=dict)  # by tensor: where its gradient may pass
    tally: Room | None = None
    totals: list[tuple[Part, Room]] = field(default_factory=list)  # sums of gradients, where they are corrected
    flowing: frozenset[int] = frozenset()  # tensors with a gradient
    kept: frozenset[int] = frozenset()  # tensors whose values the way back needs
    _grads: dict[int, Room] = field(default_factory=dict)

    def tensor(self, index: int) -> Tensor:
        """Give a tensor of the graph."""
        return self.graph.tensors[index]

    def value(self, index: int) -> Room:
        """Give the room of a tensor that was made, or of a constant."""
        if index not in self.values:
            tensor = self.tensor(index)
            assert tensor.data is not None, f"tensor {index} is made before it is used"
            shape = (1,) * (4 - len(tensor.shape)) + tensor.shape
            self.values[index] = self.tape.constant(tensor.name, tensor.data.reshape(shape))
        return self.values[index]

    def make(self, index: int) -> Room:
        """Open the room of an operator's output."""
        tensor = self.tensor(index)
        dtype = "float32" if index == self.real_answer else tensor.dtype
        if dtype not in {"int8", "float32"}:
            raise ModelError(f"tensor {index} ({tensor.name!r}) is {dtype}; our kernels know int8 and float32")
        self.values[index] = self.tape.room(tensor.name, seen4(tensor), dtype, batched=True)
        return self.values[index]

    def parameter(self, index: int, shape: tuple[int, ...]) -> Room:
        """Give a layer's weights or bias as an array of its own, which may change."""
        if index not in self.params:
            data = self.tensor(index).data
            assert data is not None, "a layer's constants were checked"
            self.params[index] = self.tape.constant(self.tensor(index).name, data.reshape(shape))
        return self.params[index]

    def table(self, label: str, content: NDArray[Any]) -> Room:
        """Give a small constant array (multipliers, scales, a geometry)."""
        return self.tape.constant(label, content)

    def scratch(self, shape: tuple[int, ...], dtype: Any) -> Room:
        """Give room for the one call that names it."""
        return self.tape.room("scratch", shape, dtype)

    def is_int8(self, index: int) -> bool:
        """Whether a tensor is stored as int8."""
        return self.tensor(index).dtype == "int8"

    def quantization(self, index: int) -> tuple[float, int]:
        """Give (scale, zero point) of an int8 activation."""
        tensor = self.tensor(index)
        if len(tensor.scale) != 1:
            raise ModelError(f"tensor {index} ({tensor.name!r}) has {len(tensor.scale)} scales; one is needed")
        return float(tensor.scale[0]), int(tensor.zero_point[0]) if len(tensor.zero_point) else 0

    def range_of(self, operator: Operator) -> tuple[float, float]:
        """Give the ends of an operator's output: of stored numbers for int8, of real ones for float32."""
        output = operator.outputs[0]
        if self.is_int8(output):
            return int8.activation_range(operator.activation, *self.quantization(output))
        return int8.activation_range_float(operator.activation)

    # The way back.

    def grad(self, index: int) -> Room:
        """Give the gradient of a tensor, to which all its users have added."""
        return self._grads[index]

    def flows(self, index: int) -> bool:
        """Whether a tensor has a gradient that somebody wants."""
        return index in self.flowing

    def give(self, index: int) -> tuple[Room, bool]:
        """Give the room of a tensor's gradient, and whether there is something in it to add to."""
        begun = index in self._grads
        if not begun:
            shape = self.values[index].shape
            self._grads[index] = self.tape.room("grad", shape, np.float32, batched=True)
        return self._grads[index], begun

    def hand_over(self, index: int, gradient: Room) -> bool:
        """Let a tensor's gradient be `gradient` itself, which nobody needs any more; False if it has begun."""
        if index in self._grads:
            return False
        self._grads[index] = gradient.seen_as(self.values[index].shape)
        return True


def seen4(tensor: Tensor) -> tuple[int, int, int]:
    """Give (height, width, channels) of one example of an activation."""
    shape = tensor.shape[1:]
    if len(shape) > 3 or (tensor.shape and tensor.shape[0] != 1):
        raise ModelError(
            f"tensor {tensor.index} ({tensor.name!r}) has the shape {tensor.shape}; export it for one window"
        )
    padded = (1,) * (3 - len(shape)) + tuple(shape)
    return padded[0], padded[1], padded[2]


def flat(room: Room) -> Room:
    """See a room as [examples][1][1][entries], for kernels that do not care where a number stands."""
    return room.seen_as((1, 1, prod(room.shape)))


def downstream(operators: tuple[Operator, ...], trained: set[int]) -> frozenset[int]:
    """Give the tensors that depend on the trained operators: gradients flow through them."""
    flowing: set[int] = set()
    for operator in operators:
        if operator.index in trained or any(index in flowing for index in operator.inputs):
            flowing.update(operator.outputs)
    return frozenset(flowing)


def operators_between(graph: Graph, first: int, wanted: int) -> tuple[Operator, ...]:
    """Give the operators from index `first` on that the tensor `wanted` depends on, in order."""
    live = [graph.operators[index] for index in live_operators(graph) if index >= first]
    needed, chosen = {wanted}, []
    for operator in reversed(live):
        if needed & set(operator.outputs):
            chosen.append(operator)
            needed.update(operator.inputs[:1] if operator.kind == "RESHAPE" else operator.inputs)
    return tuple(reversed(chosen))
