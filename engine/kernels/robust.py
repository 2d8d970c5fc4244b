"""What rules make of the inner products of n updates, without seeing the updates again: gram float64 [n, n].

    distance        |x_i - x_j|^2 = G[i, i] + G[j, j] - 2 G[i, j], never below 0
    Krum            s_i = sum of the distances to the k nearest others (Blanchard et al. 2017)
    mixing          each update becomes the mean of the n - f nearest, itself among them (Allouah et al. 2023)
    geometric       z = sum_i w_i x_i / max(nu, |z - x_i|), made again and again (Weiszfeld; RFA, Pillutla et al. 2022)
    clipping        z = z + sum_i w_i (x_i - z) min(1, tau / |x_i - z|) (Karimireddy et al. 2021)

z is kept as its coefficients over the updates, so |z - x_i|^2 = G[i, i] - 2 (G a)_i + a G a. Everything is float64, in
one order; of equals the first comes first. n is in the hundreds.
"""

import math

from engine.kernels._jit import inner, kernel


@kernel("void(float64[:, ::1], float64[:, ::1])")
def squared_distances(gram, distances):
    """Fill distances [n, n]."""
    n = gram.shape[0]
    for i in range(n):
        for j in range(n):
            squared = gram[i, i] + gram[j, j] - 2.0 * gram[i, j]
            distances[i, j] = squared if squared > 0.0 and i != j else 0.0


@inner
def order_row(row, order):
    """Fill order [n] with the places of row [n] by value, of equals the first first: insertion."""
    for i in range(row.shape[0]):
        place = i
        while place > 0 and row[order[place - 1]] > row[i]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = i


@kernel("void(float64[:, ::1], int64, int64[::1], float64[::1])")
def krum_scores(distances, near, order, scores):
    """Fill scores [n] with each update's sum over its `near` nearest others; scratch: order [n]."""
    n = distances.shape[0]
    for i in range(n):
        order_row(distances[i], order)
        total, taken = 0.0, 0
        for place in range(n):
            if order[place] != i and taken < near:
                total += distances[i, order[place]]
                taken += 1
        scores[i] = total


@kernel("void(float64[:, ::1], int64, int64[::1], float64[:, ::1])")
def mix_nearest(distances, many, order, mix):
    """Fill mix [n, n]: row i says how much of each update makes the mean of the `many` nearest; scratch: order [n]."""
    n = distances.shape[0]
    mix[:, :] = 0.0
    for i in range(n):
        order_row(distances[i], order)
        for place in range(many):
            mix[i, order[place]] = 1.0 / many


@kernel("void(float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1])")
def mixed_gram(mix, gram, half, mixed):
    """Fill mixed [m, m] = mix gram mix^T, for mix [m, n]; scratch: half [m, n]."""
    m, n = mix.shape
    half[:, :] = 0.0
    mixed[:, :] = 0.0
    for i in range(m):
        for j in range(n):
            if mix[i, j] != 0.0:
                for k in range(n):
                    half[i, k] += mix[i, j] * gram[j, k]
    for i in range(m):
        for j in range(m):
            total = 0.0
            for k in range(n):
                total += half[i, k] * mix[j, k]
            mixed[i, j] = total


@inner
def fill_distances(gram, factors, distances):
    """Fill distances [n] from each update to the sum of factors times updates."""
    n = gram.shape[0]
    whole = 0.0
    for i in range(n):
        total = 0.0
        for j in range(n):
            total += gram[i, j] * factors[j]
        distances[i] = total
        whole += factors[i] * total
    for i in range(n):
        squared = gram[i, i] - 2.0 * distances[i] + whole
        distances[i] = math.sqrt(squared) if squared > 0.0 else 0.0


@kernel("void(float64[:, ::1], float64[::1], float64, int64, float64[::1], float64[::1])")
def weiszfeld(gram, weights, smoothing, steps, distances, factors):
    """Move factors [n] so many steps towards the geometric median; scratch: distances [n]."""
    n = gram.shape[0]
    for _ in range(steps):
        fill_distances(gram, factors, distances)
        total = 0.0
        for i in range(n):
            factors[i] = weights[i] / max(smoothing, distances[i])
            total += factors[i]
        for i in range(n):
            factors[i] /= total


@kernel("void(float64[:, ::1], float64[::1], float64, int64, float64[::1], float64[::1])")
def clip_centered(gram, weights, radius, steps, distances, factors):
    """Move factors [n] so many steps; weights [n] add up to 1, a centre's among them is 0; scratch: distances [n]."""
    n = gram.shape[0]
    for _ in range(steps):
        fill_distances(gram, factors, distances)
        kept = 0.0
        for i in range(n):
            distances[i] = weights[i] * (radius / distances[i] if distances[i] > radius else 1.0)
            kept += distances[i]
        for i in range(n):
            factors[i] = (1.0 - kept) * factors[i] + distances[i]
