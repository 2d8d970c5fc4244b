"""The rules over one dense array, ours and NumPy's: what `benchmarks/aggregate.py` measures.

Each takes rows float32 [n, P] and gives float32 [P]. Ours are the product's own kernels and functions; those that work
on inner products make these first and never hold a second array of the size of the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from engine import ranking, robust
from engine.gramian import gram_of, mixed, summed

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Rows = NDArray[np.float32]
    RowsRule = Callable[[Rows], Rows]

DISHONEST_RATE: Final = 0.2
COLUMNS: Final = 1_024  # that are mixed at a time


def f_of(rows: Rows) -> int:
    """A fifth may lie."""
    return int(DISHONEST_RATE * len(rows))


def _even(n: int) -> NDArray[np.float64]:
    return np.full(n, 1.0 / n)


def mean(rows: Rows) -> Rows:
    """The plain mean."""
    return summed(rows, _even(len(rows)))


def trimmed(rows: Rows) -> Rows:
    """Without a fifth at either end."""
    return ranking.trimmed_mean(rows, f_of(rows))


def krum(rows: Rows) -> Rows:
    """One update."""
    return summed(rows, robust.krum(gram_of(rows), f_of(rows), 1))


def multi_krum(rows: Rows) -> Rows:
    """The mean of four fifths."""
    return summed(rows, robust.krum(gram_of(rows), f_of(rows), len(rows) - f_of(rows)))


def geometric_median(rows: Rows) -> Rows:
    """32 steps of Weiszfeld's."""
    factors = robust.geometric_median(gram_of(rows), _even(len(rows)), 1e-6, robust.WEISZFELD_STEPS)
    return summed(rows, factors)


def centered_clipping(rows: Rows) -> Rows:
    """Three steps from 0, to within the median norm."""
    n = len(rows)
    gram = np.zeros((n + 1, n + 1))
    gram[:n, :n] = gram_of(rows)
    radius = float(np.median(np.sqrt(np.diagonal(gram)[:n])))
    return summed(rows, robust.centered_clipping(gram, np.append(_even(n), 0.0), radius, 3)[:n])


def mixing(rows: Rows) -> Rows:
    """Nearest-neighbour mixing, then the trimmed mean."""
    mix = robust.nearest_mixing(gram_of(rows), f_of(rows))
    out = np.empty(rows.shape[1], dtype=np.float32)
    for first in range(0, rows.shape[1], COLUMNS):
        columns = np.ascontiguousarray(rows[:, first : first + COLUMNS])
        out[first : first + COLUMNS] = ranking.trimmed_mean(mixed(mix, columns), f_of(rows))
    return out


OURS: Final[dict[str, RowsRule]] = {
    "mean": mean,
    "median": ranking.median,
    "trimmed mean": trimmed,
    "krum": krum,
    "multi-krum": multi_krum,
    "geometric median": geometric_median,
    "centered clipping": centered_clipping,
    "mixing, trimmed mean": mixing,
}


def _numpy_trimmed(rows: Rows) -> Rows:
    f = f_of(rows)
    kept: Rows = np.sort(rows, axis=0)[f : len(rows) - f].mean(axis=0)
    return kept


def _numpy_median(rows: Rows) -> Rows:
    middle: Rows = np.median(rows, axis=0)
    return middle


def _numpy_mean(rows: Rows) -> Rows:
    whole: Rows = rows.mean(axis=0)
    return whole


NUMPY: Final[dict[str, RowsRule]] = {
    "memcpy": np.copy,
    "mean": _numpy_mean,
    "median": _numpy_median,
    "trimmed mean": _numpy_trimmed,
}
