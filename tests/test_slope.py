"""The line that says whether something grows."""

import random

import pytest

from tests.slope import slope

MINUTES = [60.0 * number for number in range(60)]


def test_a_line_has_its_own_slope_and_no_error():
    found = slope(MINUTES, [7 + 2 * second / 3600 for second in MINUTES])
    assert found.per_hour == pytest.approx(2)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.complaint(2.1) == ""
    assert found.complaint(1.9).startswith("grows by +2.0")


def test_noise_is_no_growth_and_too_much_of_it_is_no_answer():
    chance = random.Random(3)
    calm = slope(MINUTES, [chance.gauss(100, 1) for _ in MINUTES])
    assert abs(calm.per_hour) < calm.error < 3
    assert calm.complaint(3) == ""
    assert calm.complaint(calm.error / 2).startswith("cannot be told")


def test_the_error_is_one_in_twenty_times_too_small():
    chance = random.Random(5)
    found = [slope(MINUTES, [chance.gauss(0, 1) for _ in MINUTES]) for _ in range(2000)]
    assert 0.93 < sum(abs(one.per_hour) <= one.error for one in found) / len(found) < 0.97
