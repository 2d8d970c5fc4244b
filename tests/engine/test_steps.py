"""The integer kernels that decide what of an int8 model's update is sent, against their twins."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels import steps as kernels
from tests import naive_steps as naive

fast = settings(deadline=None, max_examples=60)
seeds, sizes = st.integers(0, 2**32), st.integers(0, 50)
WHOLE = 2**31 - 1


def numbers(seed, size, largest=WHOLE):
    """Mostly small, a few as large as they may be."""
    chance = np.random.default_rng(seed)
    small, large = chance.integers(-400, 401, size), chance.integers(-largest, largest + 1, size)
    return np.where(chance.random(size) < 0.2, large, small).astype(np.int32)


def units_of(seed, size):
    return (1 << np.random.default_rng(seed).integers(0, 13, size)).astype(np.int32)


@fast
@given(seeds, sizes, st.floats(0.01, 100.0))
def test_steps_are_clipped_as_the_twin_does_it(seed, size, clip_norm):
    steps = numbers(seed, size)
    scale = np.random.default_rng(seed).uniform(0, 0.1, size).astype(np.float32)
    want, norm = naive.clip_steps(steps, scale, clip_norm)
    assert kernels.clip_steps(steps, scale, clip_norm) == norm
    assert np.array_equal(steps, want)


@fast
@given(seeds, sizes, st.integers(0, 2**16 - 1))
def test_steps_gather_speed_as_the_twin_does_it(seed, size, momentum):
    velocity, steps = numbers(seed, size, WHOLE // 2), numbers(seed + 1, size, WHOLE // 2)
    want, beyond = naive.gather_steps(velocity, steps, momentum)
    assert beyond == 0
    assert kernels.gather_steps(velocity, steps, momentum) == 0
    assert velocity.tolist() == want


@fast
@given(seeds, sizes, st.one_of(st.integers(0, 2**32), st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32])))
def test_steps_decay_as_the_twin_does_it(seed, size, factor):
    residual = numbers(seed, size)
    want = naive.decay_steps(residual, factor)
    kernels.decay_steps(residual, factor)
    assert residual.tolist() == want


@fast
@given(seeds, sizes)
def test_steps_are_folded_weighed_and_taken_out_as_the_twin_does_it(seed, size):
    steps, residual, unit = numbers(seed, size, WHOLE // 2), numbers(seed + 1, size, WHOLE // 2), units_of(seed, size)
    scale = np.random.default_rng(seed).uniform(0, 0.1, size).astype(np.float32)
    total, magnitude = np.empty(size, np.int32), np.empty(size, np.float32)
    assert kernels.fold_units(steps, residual, unit, scale, total, magnitude) == 0
    want_total, want_magnitude, _ = naive.fold_units(steps, residual, unit, scale)
    assert total.tolist() == want_total
    assert np.array_equal(magnitude.view(np.uint32), want_magnitude.view(np.uint32))
    indices = np.arange(0, size, 2, dtype=np.uint32)
    units = np.empty(len(indices), np.int32)
    kernels.units_at(total, unit, indices, units)
    assert units.tolist() == naive.units_at(total, unit, indices)
    rounded = units + np.where(units > 7, 2, -1).astype(np.int32)
    want, beyond = naive.take_units(total, unit, indices, rounded)
    assert kernels.take_units(total, unit, indices, rounded) == beyond == 0
    assert total.tolist() == want


def test_what_does_not_fit_32_bits_is_counted():
    far, one = np.array([WHOLE, -WHOLE, 5], np.int32), np.ones(3, np.int32)
    steps, scale = np.array([1, -1, 1], np.int32), np.ones(3, np.float32)
    assert kernels.fold_units(far, steps, one, scale, np.empty(3, np.int32), np.empty(3, np.float32)) == 2
    assert naive.fold_units(far, steps, one, scale)[2] == 2
    assert kernels.gather_steps(far.copy(), far, 2**15) == naive.gather_steps(far, far, 2**15)[1] == 2
    wide, places = np.full(3, 2**30, np.int32), np.array([0, 2], np.uint32)
    sent = np.array([-2, 3], np.int32)
    assert naive.take_units(far, wide, places, sent)[1] == 2
    assert kernels.take_units(far, wide, places, sent) == 2
