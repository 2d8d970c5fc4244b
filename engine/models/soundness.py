"""What must hold of every graph, whatever file it was read from, and what must hold after a file was written back.

Both readers end in `checked`: indices that exist, sizes that a device could hold, and operators in the order in which
they can be run. Both writers end in `check_written`: the file they made is read again, and the two graphs may differ
in the constants and scales that were asked for and in nothing else.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models.graph import ABSENT, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from engine.models.graph import Graph, Operator, Tensor

DIMENSIONS_MAX = 8
ELEMENTS_MAX = 1 << 28  # of one tensor, for one window


def checked(graph: Graph) -> Graph:
    """Return the graph as it is; ModelError where it names what is not there, or cannot be run in its order."""
    for tensor in graph.tensors:
        check_shape(tensor.index, tensor.shape)
    count = len(graph.tensors)
    for operator in graph.operators:
        _check_range(place(operator), operator.inputs, ABSENT, count)
        _check_range(place(operator), operator.outputs, 0, count)
    _check_range("the model's input list", graph.inputs, 0, count)
    _check_range("the model's output list", graph.outputs, 0, count)
    _check_order(graph)
    return graph


def check_shape(index: int, shape: tuple[int, ...]) -> None:
    """Raise ModelError for the shape of tensor `index` where it has unknown sizes, or sizes that nobody can hold."""
    if len(shape) > DIMENSIONS_MAX or any(size < 0 for size in shape) or math.prod(shape) > ELEMENTS_MAX:
        raise ModelError(f"tensor {index} of the model has the shape {shape[:9]}; export it with fixed, smaller sizes")


def place(operator: Operator) -> str:
    """Return how an error names an operator."""
    return f"operator {operator.index} ({operator.kind})"


def replacement(graph: Graph, index: int, values: NDArray[Any]) -> NDArray[Any]:
    """Return `values` as the little-endian bytes that may stand for constant `index`; ModelError where they may not."""
    tensor = _tensor_at(graph, index)
    if tensor.data is None:
        raise ModelError(f"{_name(tensor)} is no constant of the model; only constants can be written back")
    if values.dtype != np.dtype(tensor.dtype) or values.shape != tensor.shape:
        raise ModelError(
            f"{_name(tensor)} is {tensor.dtype} {tensor.shape}, and {values.dtype} {values.shape} was to be written; "
            "write the shape and dtype of the file"
        )
    if values.dtype.kind == "f" and not bool(np.isfinite(values).all()):
        raise ModelError(f"{_name(tensor)} was to be written with NaN or infinity; train again with a smaller rate")
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))


def scale_replacement(graph: Graph, index: int, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `scale` as the bytes that may stand for the scales of tensor `index`; ModelError where it may not."""
    tensor = _tensor_at(graph, index)
    if scale.dtype != np.float32 or scale.shape != tensor.scale.shape or not len(scale):
        raise ModelError(
            f"{_name(tensor)} has {len(tensor.scale)} scales, and {scale.dtype} {scale.shape} was to be written; "
            "write as many float32 as the file has"
        )
    if not bool((np.isfinite(scale) & (scale >= 0)).all()):
        raise ModelError(f"{_name(tensor)} was to get a scale that is no positive number; compute the scales again")
    return np.ascontiguousarray(scale, np.dtype("<f4"))


def check_written(
    before: Graph,
    after: Graph,
    constants: Mapping[int, NDArray[Any]],
    scales: Mapping[int, NDArray[np.float32]],
) -> None:
    """Raise ModelError unless `after` is `before` with these constants and scales and no other difference."""
    if (before.operators, before.inputs, before.outputs) != (after.operators, after.inputs, after.outputs):
        raise ModelError("writing the constants back would change the model's operators; export the model again")
    for old, new in zip(before.tensors, after.tensors, strict=True):
        data, scale = constants.get(old.index, old.data), scales.get(old.index, old.scale)
        like = (old.name, old.shape, old.dtype, old.quantized_axis) == (
            new.name, new.shape, new.dtype, new.quantized_axis,
        )  # fmt: skip
        if not like or not (
            _same(data, new.data) and _same(scale, new.scale) and _same(old.zero_point, new.zero_point)
        ):
            raise ModelError(f"writing the constants back would change {_name(old)} otherwise; export the model again")


def _check_range(where: str, indices: tuple[int, ...], lowest: int, count: int) -> None:
    if any(not lowest <= index < count for index in indices):
        raise ModelError(f"{where} names a tensor outside the {count} of the model; export it again")


def _check_order(graph: Graph) -> None:
    maker: dict[int, Operator] = {}
    given = set(graph.inputs)
    for operator in graph.operators:
        for index in operator.outputs:
            if index in maker or index in given or graph.tensors[index].data is not None:
                raise ModelError(f"{place(operator)} makes tensor {index}, which is there already; export it again")
            maker[index] = operator
    for operator in graph.operators:
        for index in operator.inputs:
            if index in maker and maker[index].index >= operator.index:
                raise ModelError(
                    f"{place(operator)} uses tensor {index} before {place(maker[index])} makes it; export it again"
                )


def _tensor_at(graph: Graph, index: int) -> Tensor:
    if not 0 <= index < len(graph.tensors):
        raise ModelError(f"tensor {index} is not one of the {len(graph.tensors)} of the model; name one that it has")
    return graph.tensors[index]


def _name(tensor: Tensor) -> str:
    return f"tensor {tensor.index} ({tensor.name!r})"


def _same(old: NDArray[Any] | None, new: NDArray[Any] | None) -> bool:
    """Whether two arrays hold the same bytes (NaN included)."""
    if old is None or new is None:
        return old is new
    return old.shape == new.shape and old.tobytes() == new.tobytes()
