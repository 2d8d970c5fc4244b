"""What of a graph need not be run again for every window: constants in disguise, and arithmetic on shapes.

Converters leave two kinds of operators that compute nothing on the data. A float model may keep its constants as int8
or float16 and turn them into float32 with a DEQUANTIZE; `fold` does so once. And a flatten for any batch size asks for
the SHAPE of its input, slices it, packs it, and hands the result to a RESHAPE; in a graph for one window the RESHAPE's
output tensor already has its shape, so `live_operators` leaves the whole chain out. No operator is renumbered: an
index stays the one in the file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from engine.models.graph import ABSENT, FILE_BYTES_MAX, Graph, ModelError
from engine.models.soundness import place

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from engine.models.graph import Operator, Tensor

FOLDED_BYTES_MAX = FILE_BYTES_MAX  # of all constants made here: a small file may name one large constant many times


def fold(graph: Graph) -> Graph:
    """Return the graph with every DEQUANTIZE of a constant computed: its output becomes a constant float32 tensor.

    Such a tensor is not in the file, so it can be run but not written back (`Tensor.data` of the file's own tensor is
    None). Raises ModelError where the constants would outgrow what a file may hold.
    """
    tensors, made_bytes = list(graph.tensors), 0
    for operator in graph.operators:
        if operator.kind != "DEQUANTIZE" or len(operator.inputs) != 1 or len(operator.outputs) != 1:
            continue
        stored, real = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
        if stored.data is None or real.dtype != "float32":
            continue
        if stored.shape != real.shape:
            raise ModelError(f"{place(operator)} makes {real.shape} out of {stored.shape}; export the model again")
        made_bytes += stored.data.size * 4
        if made_bytes > FOLDED_BYTES_MAX:
            raise ModelError(
                f"{place(operator)} is one of many that unpack constants, over {FOLDED_BYTES_MAX} bytes in all; "
                "export the model with float32 constants"
            )
        tensors[real.index] = replace(real, data=_real(stored, operator))
    return replace(graph, tensors=tuple(tensors))


def live_operators(graph: Graph) -> tuple[int, ...]:
    """Return the indices, ascending, of the operators that compute on the data of a window.

    Left out are operators whose outputs are constants (after `fold`), and operators whose results depend on shapes
    and constants only and are used for nothing but the shape of a RESHAPE.
    """
    shapely = _of_shapes_only(graph)
    dead: set[int] = set()
    leaving = set(graph.outputs)
    users: dict[int, list[tuple[Operator, int]]] = {}
    for operator in graph.operators:
        for slot, index in enumerate(operator.inputs):
            users.setdefault(index, []).append((operator, slot))
    for operator in reversed(graph.operators):
        if all(graph.tensors[index].data is not None for index in operator.outputs):
            dead.add(operator.index)
        elif operator.index in shapely and leaving.isdisjoint(operator.outputs):
            asking = [user for index in operator.outputs for user in users.get(index, ())]
            if all(user.index in dead or (user.kind == "RESHAPE" and slot == 1) for user, slot in asking):
                dead.add(operator.index)
    return tuple(operator.index for operator in graph.operators if operator.index not in dead)


def _of_shapes_only(graph: Graph) -> set[int]:
    """Return the operators whose results are the same for every window: a SHAPE, and what is computed from it."""
    fixed = {tensor.index for tensor in graph.tensors if tensor.data is not None} | {ABSENT}
    found: set[int] = set()
    for operator in graph.operators:
        if operator.kind == "SHAPE" or (operator.inputs and fixed.issuperset(operator.inputs)):
            found.add(operator.index)
            fixed.update(operator.outputs)
    return found


def _real(stored: Tensor, operator: Operator) -> NDArray[Any]:
    """(stored - zero_point) * scale in float32, read-only; float16 has no scale and is widened."""
    assert stored.data is not None, "only constants are folded"
    if stored.dtype == "float16":
        real = stored.data.astype(np.float32)
    elif stored.dtype in {"int8", "uint8", "int16"} and len(stored.scale):
        along = [1] * len(stored.shape)
        if len(stored.scale) > 1:
            along[stored.quantized_axis] = len(stored.scale)
        zero_point = stored.zero_point if len(stored.zero_point) else np.zeros_like(stored.scale, np.int64)
        steps = stored.data.astype(np.float32) - zero_point.astype(np.float32).reshape(along)  # exact: few bits
        with np.errstate(over="ignore"):  # a result that is no number is refused by who uses it
            real = steps * stored.scale.reshape(along)
    else:
        raise ModelError(f"{place(operator)} unpacks a constant of {stored.dtype}; export the model with float32 ones")
    real.flags.writeable = False
    return real
