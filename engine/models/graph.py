"""The small picture of a model that the engine works with: tensors, operators, and what goes in and out.

A model file, whatever its format, is read into these three frozen records (`tflite.py` does it for `.tflite`,
`onnx.py` for `.onnx`). They hold no behaviour: `plan.py` decides what may train, `interpreter.py` runs the file
itself. Constant data are read-only views into the bytes of the file, so a graph costs little more than the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    Content: TypeAlias = "bytes | memoryview"  # of a file: read, or mapped from a disk, and then to be read alone

FILE_BYTES_MAX = 64 << 20  # the largest model file that is read
ABSENT = -1  # an operator's optional input that is not there (a FULLY_CONNECTED without bias)


class ModelError(ValueError):
    """A model file, or the wish to train a part of it, is refused; the sentence says what, where and how to mend."""


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where a constant comes from in a file that keeps it in another form, and so how it is written back there.

    The file's array of this `name`, `shape` and `dtype` becomes the graph's in this order: each of `moves`, which is
    ('reshape', new shape) or ('transpose', axes); then minus `shift` (uint8 becomes int8), or divided by `step`, real
    numbers shaped like the graph's array or broadcast to it, and rounded.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    moves: tuple[tuple[str, tuple[int, ...]], ...] = ()
    shift: int = 0
    step: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One array of the graph, constant (`data` is there) or computed (`data` is None).

    real value = (stored - zero_point) * scale, one pair for the tensor, or one per slice along `quantized_axis`.
    A tensor that is not quantised has empty `scale` and `zero_point`. `dtype` is NumPy's name ('int8', 'float32'),
    or 'TYPE_<n>' for a type of the file format that the engine does not know; such a tensor has no `data`.
    `origin` is None where the file keeps the constant as it stands here, or where it cannot be written back.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    quantized_axis: int
    data: NDArray[Any] | None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Operator:
    """One step: `kind` is TFLite's name ('CONV_2D'), or 'OP_<n>' or 'ONNX_<op>' where the engine knows none.

    `inputs` and `outputs` are tensor indices (`ABSENT` for an optional input left out); `activation` is the fused
    one: 'NONE', 'RELU', 'RELU6' or another name of the format; `options` holds the numbers of the operator.
    """

    index: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    activation: str
    options: Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole model in execution order; `inputs` and `outputs` are tensor indices."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
