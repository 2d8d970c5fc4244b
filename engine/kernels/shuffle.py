"""A seeded order of the examples: splitmix64 as a counter, Fisher-Yates in integers.

    draw(seed, n) = mix64(seed + (n + 1) * 0x9E3779B97F4A7C15)         Steele, Lea, Flood: SplittableRandom, OOPSLA 2014
    for i = count-1 .. 1:  j = (draw >> 32) * (i + 1) >> 32;  swap order[i], order[j]

A draw depends on nothing but the seed and its number, so any epoch can be replayed alone. The multiplication favours
some j by at most (i + 1) / 2^32, which no number of examples on a device can show.
"""

import numpy as np

from engine.kernels._jit import inner, kernel

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)


@inner
def splitmix64(seed, number):
    """Give draw `number` (uint64) of the stream `seed` (uint64)."""
    z = seed + (number + np.uint64(1)) * GOLDEN
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return z ^ (z >> np.uint64(31))


@kernel("void(int64[::1], uint64, uint64)")
def shuffle(order, seed, first_draw):
    """Permute `order` int64 [count] in place with the draws `first_draw` .. `first_draw + count - 2` (uint64)."""
    draw = first_draw
    for i in range(order.shape[0] - 1, 0, -1):
        high = splitmix64(seed, draw) >> np.uint64(32)
        j = np.int64((high * np.uint64(i + 1)) >> np.uint64(32))
        draw += np.uint64(1)
        held = order[i]
        order[i] = order[j]
        order[j] = held
