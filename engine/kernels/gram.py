"""Inner products of updates, and sums of them: all that rules which compare devices need to know of the numbers.

    gram         G[i, j] = sum_p x[i, p] * x[j, p]
    dots         d[i] = sum_p x[i, p] * c[p]
    combine      y[p] = sum_i f[i] * x[i, p]
    mix          y[k, p] = sum_i m[k, i] * x[i, p]

Sparse: the n updates lie one behind the other, update i at offsets[i] .. offsets[i + 1]; indices uint32 [m], values
float64 [m]. Dense: rows float32 [n, P]. Products and sums are float64, each a chain in one order, so that every
processor gives the same bits: by coordinate, then by update. Only the dense Gram and the mixing of dense updates add in
float32, fused: the Gram over the few columns of a tile, and the tiles' sums in float64.

The sparse Gram first sorts all entries by coordinate (counting). Two updates then meet only where they share one, and
nothing is as large as n x P. The dense one turns a tile of columns, sixteen updates side by side, and leaves the rest
to the register tiles of convolutions (`_tiles.py`): a Gram is a convolution of 1 x 1 pixels.
"""

import numpy as np

from engine.kernels._jit import NATIVE, inner, kernel

if not NATIVE:
    from engine.kernels._tiles import tile_float_few, tile_float_many, tile_float_one
    from engine.kernels._vector import FEW, MANY, address, turn_square


@kernel("void(int64[::1], uint32[::1], float64[::1], int64[::1], int32[::1], float64[::1], float64[:, ::1])")
def sparse_gram(offsets, indices, values, starts, rows, sorted_values, gram):
    """Fill gram [n, n]; scratch: starts [P + 1], rows [m], sorted_values [m]."""
    n, size = offsets.shape[0] - 1, starts.shape[0] - 1
    starts[:] = 0
    for e in range(indices.shape[0]):
        starts[indices[e]] += 1
    total = 0
    for p in range(size + 1):
        count = starts[p]
        starts[p] = total
        total += count
    for i in range(n):
        for e in range(offsets[i], offsets[i + 1]):
            place = starts[indices[e]]
            rows[place] = i
            sorted_values[place] = values[e]
            starts[indices[e]] = place + 1
    gram[:, :] = 0.0
    first = 0
    for p in range(size):  # starts[p] is now where coordinate p ends
        for a in range(first, starts[p]):
            row = rows[a]
            for b in range(first, a + 1):
                gram[row, rows[b]] += sorted_values[a] * sorted_values[b]
        first = starts[p]
    for i in range(n):
        for j in range(i):
            gram[j, i] = gram[i, j]


@kernel("void(int64[::1], uint32[::1], float64[::1], float64[::1], float64[::1])")
def sparse_dots(offsets, indices, values, centre, dots):
    """Fill dots [n] with each update's product with centre [P]."""
    for i in range(dots.shape[0]):
        total = 0.0
        for e in range(offsets[i], offsets[i + 1]):
            total += values[e] * centre[indices[e]]
        dots[i] = total


@kernel("void(int64[::1], uint32[::1], float64[::1], float64[::1], float64[::1])")
def sparse_combine(offsets, indices, values, factors, total):
    """Add factors[i] times update i to total [P], update after update."""
    for i in range(factors.shape[0]):
        for e in range(offsets[i], offsets[i + 1]):
            total[indices[e]] += factors[i] * values[e]


@kernel("void(int64[::1], float64[::1], float64[::1])")
def squared_norms(offsets, values, norms):
    """Fill norms [n] with each update's sum of squares."""
    for i in range(norms.shape[0]):
        total = 0.0
        for e in range(offsets[i], offsets[i + 1]):
            total += values[e] * values[e]
        norms[i] = total


@kernel("float64(float64[::1], float64[::1])")
def dot(one, other):
    """Give the inner product of two vectors [P]."""
    total = 0.0
    for p in range(one.shape[0]):
        total += one[p] * other[p]
    return total


@inner
def _turn(rows, top, first, taps, turned):
    """Fill turned [W, 16] with `taps` columns, `first` and on, of the sixteen rows from `top` on, or what there is."""
    many, squares = min(16, rows.shape[0] - top), 0
    if many == 16:
        squares = taps // 16
        for square in range(squares):
            start = address(rows) + (top * rows.shape[1] + first + square * 16) * 4
            turn_square(start, rows.shape[1] * 4, address(turned) + square * 1024)
    for w in range(squares * 16, taps):
        for j in range(many):
            turned[w, j] = rows[top + j, first + w]


@kernel("void(float32[:, ::1], float32[:, :, ::1], float32[:, ::1], float64[:, ::1])")
def dense_gram(rows, turned, sums, gram):
    """Fill gram [n, n] of rows [n, P]; scratch: turned [ceil(n / 16), W, 16], sums [MANY, 16]."""
    n, size = rows.shape
    blocks, width = turned.shape[0], turned.shape[1]
    gram[:, :] = 0.0
    turned[:, :, :] = 0.0
    for at in range((size + width - 1) // width):
        first = at * width
        taps = min(width, size - first)
        for block in range(blocks):
            _turn(rows, block * 16, first, taps, turned[block])
            weights, to = address(turned) + block * width * 64, address(sums)
            i = block * 16
            while i < n:
                x, many = address(rows) + (i * size + first) * 4, n - i
                if many >= MANY:
                    many = MANY
                    tile_float_many(x, size * 4, 0, 1, taps, weights, 0, to, 64)
                elif many >= FEW:
                    many = FEW
                    tile_float_few(x, size * 4, 0, 1, taps, weights, 0, to, 64)
                else:
                    many = 1
                    tile_float_one(x, size * 4, 0, 1, taps, weights, 0, to, 64)
                for p in range(many):
                    for j in range(min(16, n - block * 16)):
                        gram[i + p, block * 16 + j] += np.float64(sums[p, j])
                i += many
    for i in range(n):
        for j in range(i):
            gram[j, i] = gram[i, j]


@kernel("void(float32[:, ::1], float64[::1], float64[::1], float32[::1])")
def dense_combine(rows, factors, sums, total):
    """Fill total [P] with the sum of factors[i] times row i; scratch: sums [W], for as many columns at once."""
    n, size = rows.shape
    width = sums.shape[0]
    for tile in range((size + width - 1) // width):
        first = tile * width
        many = min(width, size - first)
        sums[:] = 0.0
        for i in range(n):
            factor = factors[i]
            for w in range(many):
                sums[w] += factor * np.float64(rows[i, first + w])
        for w in range(many):
            total[first + w] = np.float32(sums[w])


@kernel("void(float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1])")
def dense_mix(mix, rows, packed, sums, made):
    """Fill made [m, P] with mix [m, n] times rows [n, P]; scratch: packed [n, 16], sums [MANY, 16]."""
    m, n = mix.shape
    size = rows.shape[1]
    packed[:, :] = 0.0
    for block in range((size + 15) // 16):
        first = block * 16
        columns = min(16, size - first)
        for i in range(n):
            for w in range(columns):
                packed[i, w] = rows[i, first + w]
        k = 0
        while k < m:
            x, many = address(mix) + k * n * 4, m - k
            if many >= MANY:
                many = MANY
                tile_float_many(x, n * 4, 0, 1, n, address(packed), 0, address(sums), 64)
            elif many >= FEW:
                many = FEW
                tile_float_few(x, n * 4, 0, 1, n, address(packed), 0, address(sums), 64)
            else:
                many = 1
                tile_float_one(x, n * 4, 0, 1, n, address(packed), 0, address(sums), 64)
            for p in range(many):
                for w in range(columns):
                    made[k + p, first + w] = sums[p, w]
            k += many
