"""Which payload format belongs to which lane of numbers, and the one door through which a payload is read.

A model whose trained weights are int8 (lane 'int8') is averaged in whole steps: format 2. A float model (lane
'float32') is averaged in real numbers: format 1. The plan tells which by its `value_bits`: 0 is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from engine.codec import sparse, steps
from engine.codec.header import CodecError

if TYPE_CHECKING:
    from engine.codec.sparse import Sparse
    from engine.codec.steps import Steps

Lane: TypeAlias = Literal["int8", "float32"]

FORMATS = {"float32": (sparse.FORMAT,), "int8": (steps.FORMAT,)}


def lane_of(value_bits: int) -> Lane:
    """The lane of a plan: with no bits for rounded values, its values are exact steps."""
    return "float32" if value_bits else "int8"


def decode(payload: bytes, lane: Lane, *, size: int, k_max: int) -> Sparse | Steps:
    """Read an update of a model with `size` parameters, of which the plan allows `k_max`.

    Raises:
        CodecError: the payload is of no format of this lane, or not what its format writes for this size and k_max.
    """
    known = FORMATS[lane]
    if not payload or payload[0] not in known:
        names = ", ".join(map(str, known))
        raise CodecError(f"The update does not start with a format of {lane} models ({names}): it is of another plan.")
    if payload[0] == steps.FORMAT:
        return steps.decode(payload, size=size, k_max=k_max)
    return sparse.decode(payload, size=size, k_max=k_max)


def count_of(payload: bytes) -> int:
    """How many values a payload says it holds. Raises CodecError for a header of no known format."""
    if payload[:1] == bytes([steps.FORMAT]):
        return steps.describe(payload).count
    return sparse.describe(payload).count
