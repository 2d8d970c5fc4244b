"""Rules over inner products: the published numbers, the twins, and what holds whatever the updates are."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import gramian, ranking, robust
from engine.batch import batch_of, length, total
from engine.codec.update import Update
from engine.kernels import robust as steps
from tests import naive_robust as naive

# The example of byzfl's docstrings (LPD-EPFL/byzfl, 69bd1ac0), three vectors of three.
PUBLISHED = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
GRAM = naive.dense_gram(PUBLISHED)
EVEN = np.full(3, 1 / 3)


def made(factors, rows=PUBLISHED):
    return (np.asarray(factors)[:, None] * rows.astype(float)).sum(axis=0)


def test_median_and_trimmed_mean_as_published():
    assert ranking.median(PUBLISHED).tolist() == [4, 5, 6]
    assert ranking.trimmed_mean(PUBLISHED, 1).tolist() == [4, 5, 6]


def test_krum_and_multi_krum_as_published():
    assert made(robust.krum(GRAM, 1, 1)).tolist() == [1, 2, 3]
    assert made(robust.krum(GRAM, 1, 2)).tolist() == [2.5, 3.5, 4.5]


def test_the_geometric_median_as_published():
    point = made(robust.geometric_median(GRAM, EVEN, 0.1, 3))
    np.testing.assert_allclose(point, [3.78788764, 4.78788764, 5.78788764], atol=5e-9)


def test_centered_clipping_as_published():
    around = np.zeros((4, 4))
    around[:3, :3] = GRAM
    factors = robust.centered_clipping(around, np.append(EVEN, 0.0), 100.0, 1)
    np.testing.assert_allclose(made(factors[:3]), [4, 5, 6])


def test_nearest_neighbour_mixing_as_published():
    mix = robust.nearest_mixing(GRAM, 1)
    assert [made(row).tolist() for row in mix] == [[2.5, 3.5, 4.5], [2.5, 3.5, 4.5], [5.5, 6.5, 7.5]]
    assert gramian.mixed(mix, PUBLISHED).tolist() == [[2.5, 3.5, 4.5], [2.5, 3.5, 4.5], [5.5, 6.5, 7.5]]


def sparse(n, size, k, seed):
    chance = np.random.default_rng(seed)
    updates = []
    for _ in range(n):
        at = np.sort(chance.choice(size, int(chance.integers(0, k + 1)), replace=False)).astype(np.uint32)
        updates.append(Update("float32", size, at, chance.normal(size=len(at)).astype(np.float32)))
    return updates, chance.uniform(0.1, 2.0, size)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 2**32))
def test_a_batch_is_its_twins(n, size, seed):
    updates, real = sparse(n, size, size, seed)
    batch = batch_of(updates, size, real)
    chance = np.random.default_rng(seed)
    centre, factors = chance.normal(size=size), chance.normal(size=n)
    entries = batch.offsets, batch.indices, batch.reals
    assert np.array_equal(batch.gram(), naive.sparse_gram(*entries, size))
    assert np.array_equal(
        batch.shared(), naive.sparse_gram(batch.offsets, batch.indices, np.ones(len(real[batch.indices])), size)
    )
    assert np.array_equal(batch.along(centre), naive.sparse_dots(*entries, centre))
    assert np.array_equal(batch.combined_reals(factors), naive.sparse_combine(*entries, factors, size))
    units = batch.offsets, batch.indices, batch.units
    assert np.array_equal(batch.combined(factors), naive.sparse_combine(*units, factors, size))
    assert np.array_equal(batch.norms() ** 2, np.sqrt(naive.squared_norms(*entries, size)) ** 2)
    assert length(centre) == math.sqrt(naive.dot(centre, centre))
    assert total(factors) == math.fsum(factors)
    half = batch.part(n // 2, n)
    assert np.array_equal(half.gram(), batch.gram()[n // 2 :, n // 2 :])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 50), st.integers(1, 300), st.integers(0, 2**32))
def test_dense_updates_give_the_same_as_sparse_ones_that_hold_everything(n, size, seed):
    chance = np.random.default_rng(seed)
    rows = chance.integers(-9, 10, (n, size)).astype(np.float32)  # whole, so that every order adds up to the same
    factors = chance.integers(-9, 10, n).astype(np.float64)
    everything = np.arange(size, dtype=np.uint32)
    batch = batch_of([Update("float32", size, everything, row) for row in rows], size, np.ones(size))
    assert np.array_equal(gramian.gram_of(rows), rows.astype(float) @ rows.T.astype(float))
    assert np.array_equal(gramian.gram_of(rows), batch.gram())
    assert np.array_equal(gramian.summed(rows, factors), naive.dense_combine(rows, factors))
    assert np.array_equal(batch.combined(factors), naive.dense_combine(rows, factors))
    mix = chance.integers(-9, 10, (int(chance.integers(1, 40)), n)).astype(np.float64)
    assert np.array_equal(gramian.mixed(mix, rows), naive.dense_mix(mix, rows))


def test_a_dense_gram_of_real_numbers_is_its_twin_to_seven_digits():
    rows = np.random.default_rng(5).normal(size=(37, 1_000)).astype(np.float32)
    np.testing.assert_allclose(gramian.gram_of(rows), naive.dense_gram(rows), atol=1e-3)
    sums = np.random.default_rng(6).normal(size=37)
    assert np.array_equal(gramian.summed(rows, sums), naive.dense_combine(rows, sums))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(1, 12), st.integers(0, 2**32))
def test_every_step_over_inner_products_is_its_twin_over_the_updates(n, size, seed):
    chance = np.random.default_rng(seed)
    rows, weights = chance.normal(size=(n, size)), chance.uniform(0.1, 1, n)
    gram = naive.dense_gram(rows)
    distances, order = np.empty((n, n)), np.empty(n, np.int64)
    steps.squared_distances(gram, distances)
    np.testing.assert_allclose(distances, naive.squared_distances(rows), atol=1e-12)
    near = int(chance.integers(1, n))
    scores, mix = np.empty(n), np.empty((n, n))
    steps.krum_scores(distances, near, order, scores)
    np.testing.assert_allclose(scores, naive.krum_scores(distances, near))
    steps.mix_nearest(distances, near, order, mix)
    assert np.array_equal(mix, naive.mix_nearest(distances, near))
    np.testing.assert_allclose(robust.mixed(mix, gram), naive.mixed_gram(mix, rows), atol=1e-12)
    point = made(robust.geometric_median(gram, weights, 0.01, 4), rows)
    np.testing.assert_allclose(point, naive.weiszfeld(rows, weights, 0.01, 4), atol=1e-9)
    shares = np.append(weights[:-1] / weights[:-1].sum(), 0.0)
    moved = made(robust.centered_clipping(gram, shares, 0.7, 3), rows)
    np.testing.assert_allclose(moved, naive.clip_centered(rows, shares, 0.7, 3), atol=1e-9)


def honest_and_liars(seed, n=20, f=4, size=40):
    """Honest rows around a mean; liars somewhere else, all alike or each for itself."""
    chance = np.random.default_rng(seed)
    honest = 1.0 + chance.normal(size=(n - f, size)) * 0.3
    there = chance.normal(size=(1 if seed % 2 else f, size)) * 10 ** chance.uniform(-1, 2)
    return honest, np.broadcast_to(there, (f, size))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "rule", ["krum", "multi-krum", "geometric", "mixed geometric", "mixed trimmed", "median", "trimmed"]
)
def test_a_fifth_of_liars_moves_no_rule_further_than_the_honest_are_apart(rule, seed):
    """The bound of (f, kappa)-robustness (Allouah et al. 2023): |step - honest mean|^2 <= kappa * honest variance."""
    f = 4
    honest, liars = honest_and_liars(seed, f=f)
    rows = np.concatenate([liars, honest]).astype(np.float32)
    gram, even = naive.dense_gram(rows), np.full(len(rows), 1 / len(rows))
    mix = robust.nearest_mixing(gram, f)
    if rule == "krum":
        step = made(robust.krum(gram, f, 1), rows)
    elif rule == "multi-krum":
        step = made(robust.krum(gram, f, len(rows) - f), rows)
    elif rule == "geometric":
        step = made(robust.geometric_median(gram, even, 1e-6, 32), rows)
    elif rule == "mixed geometric":
        step = made(robust.geometric_median(robust.mixed(mix, gram), even, 1e-6, 32), gramian.mixed(mix, rows))
    else:
        ranked = gramian.mixed(mix, rows) if rule.startswith("mixed") else rows
        step = ranking.median(ranked) if rule == "median" else ranking.trimmed_mean(ranked, f)
    variance = ((honest - honest.mean(axis=0)) ** 2).sum(axis=1).mean()
    kappa = {"krum": 6.0, "multi-krum": 6.0}.get(rule, 2.0)
    assert ((step - honest.mean(axis=0)) ** 2).sum() <= kappa * variance
    far = 1e3 * np.ones_like(liars)
    mean = np.concatenate([far, honest]).mean(axis=0)
    assert ((mean - honest.mean(axis=0)) ** 2).sum() > 100 * variance, "the mean has no such bound"


def test_no_update_is_longer_than_the_median_one():
    assert robust.bounded(np.array([1.0, 2.0, 8.0])).tolist() == [1.0, 1.0, 0.25]
    assert robust.bounded(np.array([0.0, 0.0, 5.0])).tolist() == [1.0, 1.0, 0.0]
    assert robust.bounded(np.array([3.0])).tolist() == [1.0]


def test_honest_lengths_stay_and_the_longest_shrink_below_them():
    lengths = np.array([0.5, 1.0, 1.0, 2.0, 2.5, 40.0])
    assert (robust.tempered(lengths) * lengths).tolist() == pytest.approx([0.5, 1, 1, 2, 2.5, 9 / 40])
    assert robust.tempered(np.zeros(3)).tolist() == [1, 1, 1]
    assert robust.bounded(lengths, 2.0)[-1] == 3 / 40


def colluding(alike, others=12, size=4_000, k=40, seed=0):
    """Honest updates at places of their own, and `alike` that are the same but for a little noise."""
    chance = np.random.default_rng(seed)

    def one(at, spread=1.0):
        at = np.sort(at).astype(np.uint32)
        return Update("float32", size, at, (1 + spread * chance.normal(size=len(at))).astype(np.float32))

    honest = [one(chance.choice(size, k, replace=False)) for _ in range(others)]
    same = chance.choice(size, k, replace=False)
    return batch_of([*honest, *(one(same, 0.01) for _ in range(alike))], size, np.ones(size))


def test_who_sends_nearly_the_same_as_others_shares_one_weight_with_them():
    own = robust.uncrowded(colluding(alike=4))
    assert own[:12].tolist() == [1.0] * 12
    assert 0.9 < own[12:].sum() < 1.2
    assert robust.uncrowded(colluding(alike=0)).tolist() == [1.0] * 12
    assert robust.uncrowded(colluding(alike=0, others=1)).tolist() == [1.0]


def test_colluders_on_the_same_places_are_seen_though_their_numbers_differ():
    batch = colluding(alike=3)
    batch.reals[batch.offsets[12] :] *= np.random.default_rng(1).choice(
        [-1.0, 1.0], len(batch.reals) - batch.offsets[12]
    )
    assert robust.uncrowded(batch)[12:].sum() < 1.2


def test_a_fleet_in_which_everybody_is_alike_is_not_crowded():
    everything = np.arange(50, dtype=np.uint32)
    row = np.linspace(1, 2, 50, dtype=np.float32)
    batch = batch_of([Update("float32", 50, everything, row)] * 5, 50, np.ones(50))
    assert robust.uncrowded(batch).tolist() == [1.0] * 5


def test_a_large_fleet_is_compared_in_blocks(monkeypatch):
    monkeypatch.setattr(robust, "BLOCK", 8)
    own = robust.uncrowded(colluding(alike=4))  # eight honest, then four honest and the four
    assert own[:12].tolist() == [1.0] * 12
    assert own[12:].sum() < 1.5


def test_who_goes_back_does_not_count_and_who_agrees_half_as_well_as_the_middle_does_fully():
    norms, course = np.full(5, 2.0), 3.0
    cosines = np.array([-0.5, 0.1, 0.2, 0.4, 0.9])
    assert robust.on_course(cosines * 6.0, norms, course).tolist() == pytest.approx([0, 1.0, 1, 1, 1])
    assert robust.on_course(np.array([0.05, 0.4, 0.4]) * 6, np.full(3, 2.0), course).tolist() == pytest.approx(
        [0.25, 1, 1]
    )
    assert robust.on_course(np.array([-0.5, 0.01, 0.5]) * 6, np.full(3, 2.0), course).tolist() == [1, 1, 1]
    assert robust.on_course(np.zeros(3), np.zeros(3), 0.0).tolist() == [1, 1, 1]


def test_the_course_of_the_first_round_is_that_of_the_others():
    updates, real = sparse(7, 30, 20, 3)
    batch, factors = batch_of(updates, 30, real), np.random.default_rng(3).uniform(0.1, 1, 7)
    rows = naive.rows_of(batch.offsets, batch.indices, batch.reals, 30)
    products, norms, reach = robust.others(batch, factors)
    for i in range(7):
        course = sum(factors[j] * rows[j] for j in range(7) if j != i)
        assert products[i] == pytest.approx(rows[i] @ course)
        assert (norms[i], reach[i]) == (pytest.approx(np.linalg.norm(rows[i])), pytest.approx(np.linalg.norm(course)))
