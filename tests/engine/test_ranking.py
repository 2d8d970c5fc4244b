"""Medians and trimmed means: exactly what sorting gives, by either way, and with little memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine import ranking
from engine.kernels import ranks
from tests import naive_robust as naive

F = np.float32
values = st.floats(-64, 64, width=32)
several = st.integers(1, 24).flatmap(
    lambda n: arrays.arrays(F, st.tuples(st.just(n), st.integers(1, 7)), elements=values)
)


@pytest.fixture(params=["network", "bit by bit"])
def way(request, monkeypatch):
    if request.param != "network":
        monkeypatch.setattr(ranking, "NETWORK_MAX", 0)


def test_medians_and_trimmed_means_are_those_of_sorting(way):
    @settings(deadline=None, max_examples=60)
    @given(several, st.data())
    def check(rows, data):
        assert np.array_equal(ranking.median(rows), np.median(rows, axis=0))
        trim = data.draw(st.integers(0, (len(rows) - 1) // 2))
        want = naive.network_trimmed(rows, trim)
        np.testing.assert_allclose(ranking.trimmed_mean(rows, trim), want, rtol=2e-6, atol=2e-5)

    check()


@pytest.mark.parametrize("n", [1, 2, 3, 31, 64, 100, 199])
def test_more_columns_than_a_tile_and_a_part_of_one(way, n):
    rows = np.random.default_rng(n).normal(size=(n, 600)).astype(F)
    assert np.array_equal(ranking.median(rows), np.median(rows, axis=0))
    np.testing.assert_allclose(ranking.trimmed_mean(rows, n // 5), naive.network_trimmed(rows, n // 5), rtol=1e-5)


def test_the_network_adds_in_sorted_order_so_its_trimmed_mean_is_the_twin_to_the_bit():
    rows = np.random.default_rng(1).normal(size=(37, 300)).astype(F)
    assert ranking.trimmed_mean(rows, 7).tobytes() == naive.network_trimmed(rows, 7).tobytes()
    shuffled = np.random.default_rng(2).permutation(rows)
    assert ranking.trimmed_mean(shuffled, 7).tobytes() == ranking.trimmed_mean(rows, 7).tobytes()


@pytest.mark.parametrize("n", range(1, 18))
def test_the_whole_network_sorts_every_choice_of_zeros_and_ones(n):
    """The 0-1 principle (Knuth 5.3.4, theorem Z): what sorts those sorts everything."""
    every = (np.arange(2 ** min(n, 12))[:, None] >> np.arange(n)) & 1
    for a, b in ranking.pairs_for(n, 0, n - 1):
        low, high = np.minimum(every[:, a], every[:, b]), np.maximum(every[:, a], every[:, b])
        every[:, a], every[:, b] = low, high
    assert (np.diff(every, axis=1) >= 0).all()


def test_a_median_needs_fewer_pairs_than_sorting_does():
    assert len(ranking.pairs_for(100, 49, 50)) < 0.85 * len(ranking.pairs_for(100, 0, 99))


def test_a_rank_found_bit_by_bit_and_what_lies_between_two():
    rows = np.random.default_rng(3).choice(np.array([-2.5, -0.0, 0.0, 1e-40, 3, 64], F), (9, 64))
    keys, counts = np.zeros((9, 64), np.uint32), np.zeros(64, np.int32)
    found, beyond = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    for rank in (0, 4, 8):
        ranks.bisect_rank(rows.view(np.uint32), rank, 0, keys, found, counts, beyond)
        low = ranking._values(found)
        for w in range(64):
            value, many, larger = naive.bisect_rank(rows[:, w], rank)
            assert low[w] == value
            assert counts[w] <= many  # -0 lies before 0 here
            if larger is not None and not (value == 0 and counts[w] < many):
                assert ranking._values(beyond)[w] == larger
    sums, around = np.zeros(64), np.zeros((2, 64), np.int32)
    low, high = np.full(64, -2.5, F), np.full(64, 3, F)
    ranks.sum_between(rows, 0, low, high, sums, around)
    for w in range(64):
        assert (sums[w], *around[:, w]) == naive.sum_between(rows[:, w], F(-2.5), F(3))


def test_a_trimmed_mean_of_nothing_is_our_own_mistake():
    with pytest.raises(AssertionError, match="something is left"):
        ranking.trimmed_mean(np.zeros((4, 3), F), 2)
