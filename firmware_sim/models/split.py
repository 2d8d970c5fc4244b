"""Which of the 1797 handwritten digits belong to whom: the shipped model, the simulated fleet, or the test.

The digits are scikit-learn's `load_digits()` (UCI optdigits, its test part). Rows are dealt once, by position in the
permutation `numpy.random.default_rng(2026).permutation(1797)`: the first 719 taught the frozen part of
`digits.tflite`, the next 719 are for devices, the last 359 for measuring. No row is in two of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = 1797
SEED = 2026
MODEL_END = 719  # 40 %
FLEET_END = 1438  # 40 %; the remaining 359 rows, 20 %, are the test


def digits_split() -> dict[str, NDArray[np.int64]]:
    """Return the row numbers of 'model' [719], 'fleet' [719] and 'test' [359], int64, in dealt order."""
    dealt = np.random.default_rng(SEED).permutation(ROWS).astype(np.int64)
    return {"model": dealt[:MODEL_END], "fleet": dealt[MODEL_END:FLEET_END], "test": dealt[FLEET_END:]}
