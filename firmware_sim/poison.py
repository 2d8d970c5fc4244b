"""What dishonest devices send in place of what they learned: the numbers of an attack, as small pure functions.

A delta is whole steps of an int8 model, int64 [P]; `honest` are those of the round's honest devices, int64 [n, P].
The colluders know them, as in the papers: the worst case. What comes out is again whole steps, which the attacker
codes as any other update, but clips to nothing and owes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Delta = NDArray[np.int64]

SCALE: Final = 50  # more than there are devices, so that one of them alone outweighs the others
# Standard normal quantiles, by probability: Baruch et al.'s z_max by linear interpolation, without a logarithm.
_QUANTILES: Final = (
    (0.5, 0.0), (0.55, 0.1257), (0.6, 0.2533), (0.65, 0.3853), (0.7, 0.5244), (0.75, 0.6745), (0.8, 0.8416),
    (0.85, 1.0364), (0.9, 1.2816), (0.925, 1.4395), (0.95, 1.6449), (0.975, 1.96), (0.99, 2.3263), (0.999, 3.0902),
)  # fmt: skip


def flipped_labels(labels: NDArray[Any], classes: int) -> NDArray[Any]:
    """Every label c becomes classes - 1 - c (Fung et al. 2020; the "label flip" of most tables)."""
    flipped: NDArray[Any] = (classes - 1 - labels).astype(labels.dtype)
    return flipped


def flipped_sign(delta: Delta) -> Delta:
    """The way back: -delta."""
    return -delta


def scaled(delta: Delta) -> Delta:
    """SCALE times the way: model replacement (Bagdasaryan et al. 2020, arXiv:1807.00459), if the way is a wrong one."""
    return delta * SCALE


def little_is_enough(honest: Delta, z: float) -> Delta:
    """ALIE (Baruch et al. 2019, arXiv:1902.06156): mean - z * standard deviation, parameter by parameter."""
    return _whole(honest.mean(axis=0) - z * honest.std(axis=0, ddof=1))


def z_max(devices: int, dishonest: int) -> float:
    """How far ALIE may stray among so many devices: the z with Phi(z) = (n - m - s) / (n - m), s = n // 2 + 1 - m."""
    honest = devices - dishonest
    needed = devices // 2 + 1 - dishonest
    share = min((honest - needed) / honest, _QUANTILES[-1][0])
    return float(np.interp(share, [p for p, _ in _QUANTILES], [z for _, z in _QUANTILES]))


def inner_product(honest: Delta, epsilon: float) -> Delta:
    """IPM (Xie et al. 2019, arXiv:1903.03936): -epsilon * mean, so that the sum's product with the mean is negative."""
    return _whole(-epsilon * honest.mean(axis=0))


def turning(devices: int, dishonest: int) -> float:
    """The epsilon with which IPM turns what the honest give to the sum into its opposite: twice (n - m) / m."""
    return 2 * (devices - dishonest) / dishonest


def min_max(honest: Delta, scale: NDArray[np.float32]) -> Delta:
    """Min-Max (Shejwalkar and Houmansadr 2021): as far as nobody is from the honest whom an honest device is not.

    mean - gamma * standard deviation, with the largest gamma at which the greatest distance to an honest update is that
    of two honest ones. `scale` is how large one step of a parameter is in real numbers [P].
    """
    real = honest * scale.astype(np.float64)
    mean, spread = real.mean(axis=0), real.std(axis=0)
    squares = (real * real).sum(axis=1)
    furthest = np.max(squares[:, None] + squares - 2.0 * (real @ real.T))
    # |mean - x - gamma * spread|^2 <= furthest, for each x: of every parabola the larger root, and the least of them
    gaps = mean - real
    a, b, c = (spread * spread).sum(), gaps @ spread, (gaps * gaps).sum(axis=1) - furthest
    gamma = np.min((b + np.sqrt(np.maximum(b * b - a * c, 0.0))) / max(a, np.finfo(np.float64).tiny))
    return _whole((mean - gamma * spread) / scale)


def concentrated(honest: Delta, scale: NDArray[np.float32], count: int) -> Delta:
    """All of an honest norm, reversed, on the `count` parameters on which the honest agree most.

    Honest devices send different parameters, so there the colluders are the majority. `scale` is how large one step of
    a parameter is in real numbers [P].
    """
    real = honest * scale.astype(np.float64)
    mean = real.mean(axis=0)
    norm = np.sqrt((real * real).sum(axis=1)).mean()
    chosen = np.argsort(-np.abs(mean), kind="stable")[:count]
    made = np.zeros(honest.shape[1])
    made[chosen] = -np.sign(mean[chosen]) * norm / np.sqrt(count) / scale[chosen]
    return _whole(made)


def noise(size: int, count: int, unit: NDArray[np.int32], seed: int) -> Delta:
    """What a free rider sends, who has learned nothing: one unit up or down, at `count` places drawn by lot."""
    chance = np.random.default_rng(seed)
    made = np.zeros(size, np.int64)
    places = chance.choice(size, count, replace=False)
    made[places] = unit[places] * chance.choice([-1, 1], count)
    return made


def _whole(delta: NDArray[np.float64]) -> Delta:
    whole: Delta = np.rint(delta).astype(np.int64)
    return whole
