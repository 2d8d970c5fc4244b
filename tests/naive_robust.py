"""Slow twins of the kernels of rules that compare devices: gram.py, ranks.py, robust.py. See tests/naive.py."""

import math

import numpy as np

F = np.float32


def rows_of(offsets, indices, values, size):
    rows = np.zeros((len(offsets) - 1, size))
    for i in range(len(offsets) - 1):
        for e in range(offsets[i], offsets[i + 1]):
            rows[i, indices[e]] = values[e]
    return rows


def sparse_gram(offsets, indices, values, size):
    rows = rows_of(offsets, indices, values, size)
    n = len(rows)
    gram = np.zeros((n, n))
    for p in range(size):
        for i in range(n):
            for j in range(n):
                gram[i, j] += rows[i, p] * rows[j, p]
    return gram


def sparse_dots(offsets, indices, values, centre):
    dots = []
    for row in rows_of(offsets, indices, values, len(centre)):
        total = 0.0
        for x, c in zip(row, centre, strict=True):
            total += x * c
        dots.append(total)
    return np.array(dots)


def sparse_combine(offsets, indices, values, factors, size):
    total = np.zeros(size)
    for row, factor in zip(rows_of(offsets, indices, values, size), factors, strict=True):
        for p in range(size):
            total[p] += factor * row[p]
    return total


def squared_norms(offsets, indices, values, size):
    return sparse_gram(offsets, indices, values, size).diagonal()


def dot(one, other):
    total = 0.0
    for a, b in zip(one, other, strict=True):
        total += a * b
    return total


def dense_gram(rows):
    n = len(rows)
    return np.array([[dot(rows[i].astype(float), rows[j].astype(float)) for j in range(n)] for i in range(n)])


def dense_combine(rows, factors):
    total = np.zeros(rows.shape[1])
    for row, factor in zip(rows, factors, strict=True):
        total += factor * row.astype(float)
    return total.astype(F)


def dense_mix(mix, rows):
    return np.array([dense_combine(rows, line) for line in mix])


def network_median(rows):
    return np.array([np.median(column) for column in rows.T], F)


def network_trimmed(rows, trim):
    n, means = len(rows), []
    for column in rows.T:
        total = 0.0
        for x in sorted(column)[trim : n - trim]:
            total += float(x)
        means.append(F(total / (n - 2 * trim)))
    return np.array(means, F)


def bisect_rank(column, rank):
    """Give (the value of this rank, how many are at most that, the next larger one or None)."""
    ordered = sorted(column)
    value = ordered[rank]
    larger = [x for x in ordered if x > value]
    return value, len(ordered) - len(larger), larger[0] if larger else None


def sum_between(column, low, high):
    total = 0.0
    for x in column:
        total += float(x) if low < x < high else 0.0
    return total, sum(x <= low for x in column), sum(x < high for x in column)


def squared_distances(rows):
    return np.array([[dot(a - b, a - b) for b in rows] for a in rows])


def krum_scores(distances, near):
    return [sum(sorted(d for j, d in enumerate(row) if j != i)[:near]) for i, row in enumerate(distances)]


def mix_nearest(distances, many):
    mix = np.zeros((len(distances), len(distances)))
    for i, row in enumerate(distances):
        for j in sorted(range(len(row)), key=lambda j, row=row: (row[j], j))[:many]:
            mix[i, j] = 1.0 / many
    return mix


def mixed_gram(mix, rows):
    return dense_gram(np.array([sum(m * x for m, x in zip(line, rows, strict=True)) for line in mix]))


def weiszfeld(rows, weights, smoothing, steps):
    point = np.zeros(rows.shape[1])
    for _ in range(steps):
        pulls = [w / max(smoothing, math.dist(point, x)) for w, x in zip(weights, rows, strict=True)]
        point = sum(p * x for p, x in zip(pulls, rows, strict=True)) / sum(pulls)
    return point


def clip_centered(rows, weights, radius, steps):
    """The last row is the centre, without weight."""
    point = rows[-1].astype(float)
    for _ in range(steps):
        moves = [
            w * (x - point) * min(1.0, radius / max(math.dist(point, x), 1e-300))
            for w, x in zip(weights, rows, strict=True)
        ]
        point = point + sum(moves)
    return point
