"""Ranking needs little beside its input and its output. Apart from those tests of kernels whose calls are recorded."""

import tracemalloc

import numpy as np

from engine import ranking

F = np.float32


def test_scratch_stays_small_beside_input_and_output():
    rows = np.random.default_rng(4).normal(size=(100, 50_000)).astype(F)
    for warm in (ranking.median, lambda some: ranking.trimmed_mean(some, 20)):
        warm(rows[:, :256].copy())  # loads the kernel
    tracemalloc.start()
    ranking.median(rows)
    ranking.trimmed_mean(rows, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * rows[0].nbytes + 2_000_000
