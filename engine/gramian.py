"""Inner products and sums of dense updates, rows float32 [n, P]: what `engine.batch` does for sparse ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from engine.kernels.gram import dense_combine, dense_gram, dense_mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]

_GRAM_TILE: Final = 128  # columns whose products are summed in float32
_ROWS_MAX: Final = 16  # of a register tile, on any processor
_TILE: Final = 1_024  # columns that are summed at a time


def gram_of(rows: Rows) -> NDArray[np.float64]:
    """The inner products of all pairs [n, n], float64, to about seven digits."""
    n = len(rows)
    gram, turned = np.empty((n, n)), np.empty(((n + 15) // 16, _GRAM_TILE, 16), dtype=np.float32)
    dense_gram(rows, turned, np.empty((_ROWS_MAX, 16), dtype=np.float32), gram)
    return gram


def summed(rows: Rows, factors: NDArray[np.float64]) -> Rows:
    """The sum of factors[i] times row i, float32 [P]."""
    out = np.empty(rows.shape[1], dtype=np.float32)
    dense_combine(rows, np.ascontiguousarray(factors), np.empty(_TILE), out)
    return out


def mixed(mix: NDArray[np.float64], rows: Rows) -> Rows:
    """The mixed updates, float32 [m, P]: row k is the sum of mix[k, i] times row i. For some columns at a time."""
    made, sums = np.empty((len(mix), rows.shape[1]), dtype=np.float32), np.empty((_ROWS_MAX, 16), dtype=np.float32)
    dense_mix(mix.astype(np.float32), rows, np.empty((len(rows), 16), dtype=np.float32), sums, made)
    return made
