"""The numbers of each attack, on arrays small enough to see."""

import statistics

import numpy as np
import pytest

from firmware_sim import poison

HONEST = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]) * 10
SAME_SCALE = np.full(3, 0.5, np.float32)


def test_a_flipped_label_is_the_one_at_the_other_end():
    assert poison.flipped_labels(np.array([0, 3, 9], np.int32), 10).tolist() == [9, 6, 0]
    assert poison.flipped_labels(np.array([0], np.int32), 10).dtype == np.int32


def test_a_flipped_sign_is_the_way_back_and_a_scaled_delta_the_same_way_further():
    assert poison.flipped_sign(HONEST[0]).tolist() == [-10, -20, -30]
    assert poison.scaled(HONEST[0]).tolist() == [10 * poison.SCALE, 20 * poison.SCALE, 30 * poison.SCALE]


def test_a_little_is_enough_is_the_mean_less_some_standard_deviations():
    # byzfl gives [8.5, 9.5, 10.5] for 1.5 on a tenth of this, which is the same on the other side of the mean
    assert poison.little_is_enough(HONEST, 1.5).tolist() == [-5, 5, 15]
    assert poison.little_is_enough(HONEST, 0.0).tolist() == [40, 50, 60]


@pytest.mark.parametrize(("devices", "dishonest"), [(50, 24), (15, 3), (20, 8), (10, 4), (50, 12)])
def test_how_far_alie_may_stray_is_the_quantile_of_the_paper(devices, dishonest):
    needed = devices // 2 + 1 - dishonest
    share = (devices - dishonest - needed) / (devices - dishonest)
    exact = statistics.NormalDist().inv_cdf(share)
    assert poison.z_max(devices, dishonest) == pytest.approx(exact, abs=0.01)


def test_fifty_workers_of_whom_twenty_four_collude_may_stray_as_far_as_the_paper_says():
    assert poison.z_max(50, 24) == pytest.approx(1.43, abs=0.01)  # Baruch et al. 2019, section 4: 1.5 is chosen


def test_an_inner_product_attack_turns_against_the_mean():
    assert poison.inner_product(HONEST, 2).tolist() == [-80, -100, -120]


@pytest.mark.parametrize(("devices", "dishonest"), [(15, 3), (10, 4), (50, 1)])
def test_with_the_turning_epsilon_the_sum_is_the_opposite_of_what_the_honest_give(devices, dishonest):
    honest = np.tile(np.array([[100, -100]]), (devices - dishonest, 1))
    theirs = poison.inner_product(honest, poison.turning(devices, dishonest))
    everyone = np.concatenate([honest, np.tile(theirs, (dishonest, 1))]).sum(axis=0)
    assert everyone == pytest.approx(-honest.sum(axis=0), rel=0.02)


def distance(one, other, scale):
    return np.linalg.norm((np.asarray(one) - other) * scale)


@pytest.mark.parametrize("seed", range(5))
def test_min_max_is_just_as_far_from_the_honest_as_two_of_them_are_from_each_other(seed):
    chance = np.random.default_rng(seed)
    scale = chance.uniform(0.5, 2.0, 12)
    honest = np.rint(chance.normal(size=(6, 12)) * 10_000).astype(np.int64)
    made = poison.min_max(honest, scale)
    furthest = max(distance(one, other, scale) for one in honest for other in honest)
    assert max(distance(made, each, scale) for each in honest) == pytest.approx(furthest, rel=1e-3)
    mean = honest.mean(axis=0)
    spread = honest.std(axis=0)
    gammas = (mean - made) / spread
    assert gammas.min() > 0
    assert np.ptp(gammas) < 0.01
    further = mean - 1.01 * gammas.mean() * spread
    assert max(distance(further, each, scale) for each in honest) > furthest


def test_min_max_among_devices_that_all_say_the_same_is_that_same():
    assert poison.min_max(np.array([[3, -4], [3, -4]]), np.ones(2, np.float32)).tolist() == [3, -4]


def test_concentration_puts_an_honest_norm_on_a_few_places_against_the_mean():
    made = poison.concentrated(HONEST, SAME_SCALE, 1)
    norm = np.mean([np.linalg.norm(each) for each in HONEST])
    assert made.tolist() == [0, 0, -round(norm)]


def test_concentration_weighs_places_by_what_a_step_is_worth():
    made = poison.concentrated(HONEST, np.array([1, 0.001, 0.001], np.float32), 1)
    assert np.flatnonzero(made).tolist() == [0]
    assert made[0] < 0


def test_noise_is_one_unit_here_and_there_and_the_same_for_one_seed():
    unit = np.array([1, 1, 4, 1, 1, 1, 1, 1], np.int32)
    made = poison.noise(8, 8, unit, 3)
    assert np.abs(made).tolist() == unit.tolist()
    assert np.count_nonzero(poison.noise(8, 2, unit, 3)) == 2
    assert made.tolist() == poison.noise(8, 8, unit, 3).tolist()
    assert made.tolist() != poison.noise(8, 8, unit, 4).tolist()
