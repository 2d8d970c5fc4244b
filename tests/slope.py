"""Does something grow? A line through what was measured, and how sure its slope is.

Samples that follow each other closely err together, so they are first averaged into a few blocks; the line goes through
the blocks (least squares), and the slope's error is half of its 95 % confidence interval (Student's t).
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCKS: Final = 12
_T: Final = 2.228  # of Student's distribution, 97.5 %, BLOCKS - 2 degrees of freedom
_HOUR_S: Final = 3600.0


class Slope(NamedTuple):
    """`per_hour` ± `error`, and the mean of what was measured."""

    per_hour: float
    error: float
    mean: float

    def complaint(self, most_per_hour: float) -> str:
        """Why this is not shown to grow by no more than so much; '' if it is.

        Who passes grows by less than twice as much: a slope that nobody can tell from a larger one is no success.
        """
        if self.per_hour - self.error > most_per_hour:
            return f"grows by {self}"
        return f"cannot be told: {self}" if self.error > most_per_hour else ""

    def __str__(self) -> str:
        """With its unit left to who prints it."""
        return f"{self.per_hour:+,.1f} ± {self.error:,.1f} an hour, mean {self.mean:,.0f}"


def slope(seconds: Sequence[float], values: Sequence[float]) -> Slope:
    """The slope of at least 2 * BLOCKS samples."""
    assert len(seconds) == len(values) >= 2 * BLOCKS, f"{len(values)} samples are too few for {BLOCKS} blocks"
    edges = [round(number * len(values) / BLOCKS) for number in range(BLOCKS + 1)]
    spans = [slice(start, end) for start, end in itertools.pairwise(edges)]
    x, y = ([_mean(series[span]) for span in spans] for series in (seconds, values))
    x_mean, y_mean = _mean(x), _mean(y)
    spread = sum((one - x_mean) ** 2 for one in x)
    per_s = sum((one - x_mean) * (other - y_mean) for one, other in zip(x, y, strict=True)) / spread
    left = sum((other - y_mean - per_s * (one - x_mean)) ** 2 for one, other in zip(x, y, strict=True))
    error_per_s = _T * math.sqrt(left / (BLOCKS - 2) / spread)
    return Slope(per_s * _HOUR_S, error_per_s * _HOUR_S, _mean(values))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
