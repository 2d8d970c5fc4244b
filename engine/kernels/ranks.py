"""The median and the trimmed mean of each coordinate over n updates: rows float32 [n, P], finite, to out float32 [P].

    median         (x[(n - 1) // 2] + x[n // 2]) / 2    of the sorted x, as numpy.median
    trimmed mean   mean of x[trim] .. x[n - trim - 1]   of the sorted x, added in this order in float64

For few updates a sorting network: a fixed list of `pairs` (engine/ranking.py), each of which puts the smaller value
first. It runs over a tile of many coordinates at once, which fits a near cache, so that each pair is a vector
minimum and maximum. A network for n takes about n log(n)^2 / 4 pairs; from some thousand updates on it is cheaper to
find the rank bit by bit: how many are below a half of what is left? For that the values are read as integers that sort
in the same order, and -0 before 0.
"""

# ruff: noqa: FURB136  as choices the pairs take a tenth less time than as min and max, which also ask for NaN

import numpy as np

from engine.kernels._jit import inner, kernel

TOP = np.uint32(0x80000000)


@inner
def sort_tile(rows, pairs, first, many, tile):
    """Fill tile [n, W] with `many` columns from first on, and put the ranks that the pairs are for in their places."""
    for i in range(rows.shape[0]):
        for w in range(many):
            tile[i, w] = rows[i, first + w]
    for p in range(pairs.shape[0]):
        low, high = tile[pairs[p, 0]], tile[pairs[p, 1]]
        for w in range(tile.shape[1]):
            a, b = low[w], high[w]
            low[w] = a if a < b else b
            high[w] = b if a < b else a


@kernel("void(float32[:, ::1], int32[:, ::1], float32[:, ::1], float32[::1])")
def network_median(rows, pairs, tile, out):
    """Fill out with medians; scratch: tile [n, W]."""
    n, size = rows.shape
    width = tile.shape[1]
    for at in range((size + width - 1) // width):
        first = at * width
        many = min(width, size - first)
        sort_tile(rows, pairs, first, many, tile)
        below, above = tile[(n - 1) // 2], tile[n // 2]
        for w in range(many):
            out[first + w] = (below[w] + above[w]) * np.float32(0.5)


@kernel("void(float32[:, ::1], int32[:, ::1], int64, float32[:, ::1], float64[::1], float32[::1])")
def network_trimmed(rows, pairs, trim, tile, sums, out):
    """Fill out with trimmed means; scratch: tile [n, W], sums [W]."""
    n, size = rows.shape
    width = tile.shape[1]
    for at in range((size + width - 1) // width):
        first = at * width
        many = min(width, size - first)
        sort_tile(rows, pairs, first, many, tile)
        sums[:] = 0.0
        for i in range(trim, n - trim):
            for w in range(width):
                sums[w] += np.float64(tile[i, w])
        for w in range(many):
            out[first + w] = np.float32(sums[w] / (n - 2 * trim))


@kernel("void(uint32[:, ::1], int64, int64, uint32[:, ::1], uint32[::1], int32[::1], uint32[::1])")
def bisect_rank(bits, rank, first, keys, found, counts, beyond):
    """Find the key of `rank` (from 0) in columns first .. first + W of the bit patterns [n, P]; then the one after it.

    Fills keys [n, W], found [W] with the key, counts [W] with how many keys are at most that, and beyond [W] with the
    smallest key above it, or the largest that there is. Columns past the end are left as they are.
    """
    n, size = bits.shape
    width = keys.shape[1]
    many = min(width, size - first)
    for i in range(n):
        for w in range(many):
            pattern = bits[i, first + w]
            keys[i, w] = ~pattern if pattern >= TOP else pattern | TOP
    found[:] = 0
    for step in range(32):
        bit = TOP >> np.uint32(step)
        counts[:] = 0
        for i in range(n):
            for w in range(width):
                counts[w] += np.int32(keys[i, w] < (found[w] | bit))
        for w in range(width):
            found[w] = found[w] | bit if counts[w] <= rank else found[w]
    counts[:] = 0
    beyond[:] = 0xFFFFFFFF
    for i in range(n):
        for w in range(width):
            key = keys[i, w]
            counts[w] += np.int32(key <= found[w])
            beyond[w] = key if found[w] < key < beyond[w] else beyond[w]


@kernel("void(float32[:, ::1], int64, float32[::1], float32[::1], float64[::1], int32[:, ::1])")
def sum_between(rows, first, low, high, sums, counts):
    """Add up what lies strictly between low [W] and high [W] in columns first .. first + W; row after row, float64.

    Fills sums [W], and counts [2, W] with how many values are at most low, and how many are below high.
    """
    n, size = rows.shape
    many = min(low.shape[0], size - first)
    sums[:] = 0.0
    counts[:, :] = 0
    for i in range(n):
        for w in range(many):
            x = rows[i, first + w]
            sums[w] += np.float64(x) if low[w] < x < high[w] else 0.0
            counts[0, w] += np.int32(x <= low[w])
            counts[1, w] += np.int32(x < high[w])
