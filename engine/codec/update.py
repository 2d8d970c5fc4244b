"""An update as numbers: a few chosen parameters of a model, and by how much each of them changed.

`payload.py` turns it into bytes and back. In lane 'int8' the model is averaged in whole units (see engine/frame.py), in
lane 'float32' in real numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Lane: TypeAlias = Literal["int8", "float32"]


@dataclass(frozen=True, eq=False)
class Update:
    """Of `size` parameters those at `indices` uint32 [k], strictly increasing, change by `values` [k].

    In lane 'int8' the values are whole units, int32 and none of them zero; in lane 'float32' float32.
    """

    lane: Lane
    size: int
    indices: NDArray[np.uint32]
    values: NDArray[np.int32] | NDArray[np.float32]


def dense(update: Update) -> NDArray[np.int64] | NDArray[np.float32]:
    """Give the update as a vector [size], int64 in lane 'int8' or float32, zero where nothing was sent."""
    if update.lane == "int8":
        units = np.zeros(update.size, dtype=np.int64)
        units[update.indices] = update.values
        return units
    reals = np.zeros(update.size, dtype=np.float32)
    reals[update.indices] = update.values
    return reals
