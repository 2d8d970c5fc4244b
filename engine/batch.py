"""The updates of a round side by side, and what rules that compare them see: inner products, never n x P numbers.

A batch is made of updates in the order of their keys, so that nothing depends on who came first. Distances are measured
in real numbers, whatever the lane: a step of an int8 model times how large that step is. What comes out again is in the
updates' own units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.kernels.gram import dot, sparse_combine, sparse_dots, sparse_gram, squared_norms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from engine.codec.update import Update

    Vector = NDArray[np.float64]
    Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Batch:
    """n sparse updates to `size` parameters, one behind the other: update i is at offsets[i] .. offsets[i + 1]."""

    size: int
    offsets: NDArray[np.int64]  # [n + 1]
    indices: NDArray[np.uint32]  # [m]
    units: Vector  # [m], as they were sent
    reals: Vector  # [m], in real numbers

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, first: int, end: int) -> Batch:
        """Updates first .. end alone."""
        span = slice(int(self.offsets[first]), int(self.offsets[end]))
        offsets = self.offsets[first : end + 1] - self.offsets[first]
        return Batch(self.size, offsets, self.indices[span], self.units[span], self.reals[span])

    def norms(self) -> Vector:
        """The length of each update [n]."""
        squared = np.empty(len(self))
        squared_norms(self.offsets, self.reals, squared)
        return np.sqrt(squared)

    def gram(self) -> Matrix:
        """The inner products of all pairs [n, n]."""
        return self._gram(self.reals)

    def shared(self) -> Matrix:
        """How many parameters each pair has in common [n, n]."""
        return self._gram(np.ones(len(self.indices)))

    def along(self, direction: Vector) -> Vector:
        """Each update's inner product with a vector of real numbers [size]."""
        products = np.empty(len(self))
        sparse_dots(self.offsets, self.indices, self.reals, direction, products)
        return products

    def combined(self, factors: Vector) -> Vector:
        """The sum of factors[i] times update i, [size], in the updates' units."""
        return self._combined(self.units, factors)

    def combined_reals(self, factors: Vector) -> Vector:
        """The same in real numbers."""
        return self._combined(self.reals, factors)

    def _gram(self, values: Vector) -> Matrix:
        starts, rows = np.empty(self.size + 1, dtype=np.int64), np.empty(len(values), dtype=np.int32)
        gram = np.empty((len(self), len(self)))
        sparse_gram(self.offsets, self.indices, values, starts, rows, np.empty(len(values)), gram)
        return gram

    def _combined(self, values: Vector, factors: Vector) -> Vector:
        total = np.zeros(self.size)
        sparse_combine(self.offsets, self.indices, values, factors, total)
        return total


def batch_of(updates: Sequence[Update], size: int, real: Vector) -> Batch:
    """Put updates to `size` parameters side by side; real [size] is how large a step of 1 is in real numbers."""
    offsets = np.zeros(len(updates) + 1, dtype=np.int64)
    offsets[1:] = np.cumsum([len(update.indices) for update in updates])
    indices = np.concatenate([np.empty(0, np.uint32), *(update.indices for update in updates)]).astype(np.uint32)
    units = np.concatenate([np.empty(0), *(update.values.astype(np.float64) for update in updates)])
    return Batch(size, offsets, indices, units, units * real[indices])


def length(vector: Vector) -> float:
    """The norm of a vector [size]."""
    return math.sqrt(dot(vector, vector))


def total(numbers: Vector) -> float:
    """Their sum, rounded once: in whatever order."""
    return math.fsum(numbers.tolist())
