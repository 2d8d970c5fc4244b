"""How much each update counts, by what the others are like: rules over inner products alone.

gram float64 [n, n], weights float64 [n]; the answer is factors float64 [n], whose sum over the updates is the step.
Up to `f` of the n may be dishonest. Which rule withstands what: docs/decisions/0017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from engine.batch import length, total
from engine.kernels.robust import (
    clip_centered,
    krum_scores,
    mix_nearest,
    mixed_gram,
    squared_distances,
    weiszfeld,
)

if TYPE_CHECKING:
    from engine.batch import Batch, Matrix, Vector

WEISZFELD_STEPS: Final = 32
SMOOTHING: Final = 1e-6  # of the median norm: nearer than that is there
BLOCK: Final = 1_024  # updates that are compared each with each; more are compared in blocks
SPREAD: Final = 2.0  # medians: as far as honest updates are from 0, and from the course, but for the longest
COURSE_MIN: Final = 0.02  # the least cosine by which the middle of the fleet agrees on a direction
COURSE_FULL: Final = 0.5  # who agrees with it at least half as well as the middle of the fleet counts fully


def krum(gram: Matrix, f: int, chosen: int) -> Vector:
    """Multi-Krum: the mean of the `chosen` updates that are nearest to their n - f - 2 nearest; Krum is chosen = 1."""
    n = len(gram)
    scores, order = np.empty(n), np.empty(n, dtype=np.int64)
    krum_scores(_distances(gram), max(1, n - f - 2), order, scores)
    factors = np.zeros(n)
    factors[np.argsort(scores, kind="stable")[:chosen]] = 1.0 / chosen
    return factors


def geometric_median(gram: Matrix, weights: Vector, smoothing: float, steps: int) -> Vector:
    """The point with the least weighted sum of distances, by Weiszfeld's steps from 0; `smoothing` > 0 is nu."""
    factors = np.zeros(len(gram))
    weiszfeld(gram, weights, smoothing, steps, np.empty(len(gram)), factors)
    return factors


def centered_clipping(gram: Matrix, weights: Vector, radius: float, steps: int) -> Vector:
    """Each update drawn to within `radius` of the centre, then their mean; around that again, `steps` times.

    The last of the n is the centre to begin with; its weight is 0, the other weights add up to 1.
    """
    factors = np.zeros(len(gram))
    factors[-1] = 1.0
    clip_centered(gram, weights, radius, steps, np.empty(len(gram)), factors)
    return factors


def nearest_mixing(gram: Matrix, f: int) -> Matrix:
    """What makes of each update the mean of its n - f nearest: mix [n, n], rows that add up to 1."""
    n = len(gram)
    mix = np.empty((n, n))
    mix_nearest(_distances(gram), max(1, n - f), np.empty(n, dtype=np.int64), mix)
    return mix


def bucketing(order: list[int], size: int) -> Matrix:
    """The means of `size` updates each, in this order; the last bucket may hold fewer. mix [m, n]."""
    n = len(order)
    mix = np.zeros(((n + size - 1) // size, n))
    for first in range(0, n, size):
        bucket = order[first : first + size]
        mix[first // size, bucket] = 1.0 / len(bucket)
    return mix


def mixed(mix: Matrix, gram: Matrix) -> Matrix:
    """The inner products of mixed updates [m, m]."""
    m, n = mix.shape
    made = np.empty((m, m))
    mixed_gram(mix, gram, np.empty((m, n)), made)
    return made


def bounded(norms: Vector, times: float = 1.0) -> Vector:
    """The factors [n] that leave no update longer, or heavier, than so many times the median."""
    bound = times * float(np.median(norms))
    return np.divide(bound, norms, out=np.ones_like(norms), where=norms > bound)


def tempered(norms: Vector) -> Vector:
    """The factors [n] that leave honest lengths as they are: the further beyond twice the median, the *shorter*.

    Honest devices differ in length by three or four times, and a bound at the median would slow all of them down. Who
    is ten times as long is no honest device, and is not given the length of one either.
    """
    within = bounded(norms, SPREAD)
    return within * within


def uncrowded(batch: Batch) -> Vector:
    """How much of each update's weight [n] is its own: 1, or less where others send nearly the same.

    Two updates resemble each other by the parameters that both send (Ochiai's coefficient: shared / sqrt(k * l)), or by
    their direction (cosine). Chance gives some of that, and honest devices that learn alike more: so the measure is how
    like its nearest neighbour the *median* update is, and only what lies beyond half the way from there to 1 is
    crowding. An update with m full likenesses counts 1 / (m + 1): colluders who send one and the same count as one.
    """
    own = np.empty(len(batch))
    for first in range(0, len(batch), BLOCK):
        block = batch.part(first, min(first + BLOCK, len(batch)))
        own[first : first + len(block)] = np.minimum(_own(block.shared()), _own(block.gram()))
    return own


def others(batch: Batch, factors: Vector) -> tuple[Vector, Vector, Vector]:
    """What `on_course` asks, where each update's course is the sum of factors times the *other* updates.

    With itself in it, everybody seems to go with the fleet: of fifteen the own share alone is a cosine of 0.2.
    """
    whole = batch.combined_reals(factors)
    norms, products, reach = batch.norms(), batch.along(whole), length(whole)
    own = factors * norms * norms
    squared = reach * reach - 2.0 * factors * products + factors * own
    return products - own, norms, np.sqrt(np.maximum(squared, 0.0))


def on_course(products: Vector, norms: Vector, course: Vector | float) -> Vector:
    """How far each update [n] goes where the fleet is heading: 1, less where it hardly does, 0 where it goes back.

    `products` are with a vector of length `course`. Where the fleet agrees on no direction everybody counts.
    """
    lengths = norms * course
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0.0)
    middle = float(np.median(cosines))
    if middle <= COURSE_MIN:
        return np.ones_like(cosines)
    return np.clip(cosines / (middle * COURSE_FULL), 0.0, 1.0)


class Clipped(NamedTuple):
    """What a step around a centre is made of: factors [n] of the updates, and how much of the centre stays."""

    factors: Vector
    centre: float


def clipped(batch: Batch, weights: Vector, shrunk: Vector, centre: Vector, times: float = 1.0) -> Clipped:
    """One step of centered clipping for updates that count `weights` [n] and are shrunk by factors [n] before.

    The radius is so many times the median distance from the centre [size]; at 1 half of the updates are drawn nearer.
    """
    norms, reach = batch.norms() * shrunk, length(centre)
    squared = norms * norms - 2.0 * shrunk * batch.along(centre) + reach * reach
    distances = np.sqrt(np.maximum(squared, 0.0))
    shares = bounded(distances, times) * (weights / total(weights))
    return Clipped(shares * shrunk, 1.0 - total(shares))


def _own(products: Matrix) -> Vector:
    """See `uncrowded`; products [n, n] of each with each."""
    n = len(products)
    lengths = np.sqrt(np.diagonal(products))
    sides = np.maximum(np.outer(lengths, lengths), np.finfo(np.float64).tiny)
    alike = np.clip(products / sides, 0.0, 1.0)
    np.fill_diagonal(alike, 0.0)
    usual = (1.0 + float(np.median(alike.max(axis=1, initial=0.0)))) / 2.0
    crowding = np.maximum(alike - usual, 0.0) / (1.0 - usual) if usual < 1.0 else np.zeros((n, n))
    return 1.0 / (1.0 + np.array([total(row) for row in crowding]))


def _distances(gram: Matrix) -> Matrix:
    distances = np.empty_like(gram)
    squared_distances(gram, distances)
    return distances
