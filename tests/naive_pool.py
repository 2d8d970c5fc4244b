"""Slow, obvious twins of `engine/kernels/pool.py`: one window at a time. Outputs are returned, not filled."""

import numpy as np

from tests.naive_pointwise import clipped, multiplied, truncated

F = np.float32


def windows(geometry, entering, leaving):
    """Give ((n, i, j), entries of the window in row order) for every output pixel."""
    kh, kw, sh, sw, pt, pl, _, _ = (int(v) for v in geometry)
    for n, i, j in np.ndindex(entering[0], leaving[1], leaving[2]):
        rows = [h for h in range(i * sh - pt, i * sh - pt + kh) if 0 <= h < entering[1]]
        columns = [w for w in range(j * sw - pl, j * sw - pl + kw) if 0 <= w < entering[2]]
        yield (n, i, j), [(n, h, w) for h in rows for w in columns]


def average_pool_int8(x, low, high, geometry, shape):
    y = np.empty(shape, np.int8)
    for at, window in windows(geometry, x.shape, shape):
        for c in range(shape[3]):
            total, count = sum(int(x[(*entry, c)]) for entry in window), len(window)
            mean = truncated(total + count // 2, count) if total > 0 else truncated(total - count // 2, count)
            y[(*at, c)] = clipped(mean, low, high)
    return y


def average_pool_float(x, low, high, geometry, shape):
    y = np.empty(shape, F)
    for at, window in windows(geometry, x.shape, shape):
        total = np.zeros(shape[3], F)
        for entry in window:
            total = total + x[entry]
        y[at] = np.minimum(np.maximum(total / F(len(window)), F(low)), F(high))
    return y


def average_pool_back(dy, geometry, dx):
    """Give `dx` with the gradient added."""
    dx = dx.copy()
    for at, window in windows(geometry, dx.shape, dy.shape):
        for entry in window:
            dx[entry] = dx[entry] + dy[at] * F(1 / len(window))
    return dx


def max_pool_int8(x, low, high, geometry, shape):
    y = np.empty(shape, x.dtype)
    for at, window in windows(geometry, x.shape, shape):
        y[at] = np.clip(np.max([x[entry] for entry in window], axis=0), low, high)
    return y


def max_pool_float(x, low, high, geometry, shape):
    return max_pool_int8(x, low, high, geometry, shape)


def max_pool_back_int8(x, y, dy, geometry, dx):
    """Give `dx` with the gradient added."""
    dx = dx.copy()
    for at, window in windows(geometry, dx.shape, dy.shape):
        for c in range(dy.shape[3]):
            for entry in window:
                if x[(*entry, c)] == y[(*at, c)]:
                    dx[(*entry, c)] = dx[(*entry, c)] + dy[(*at, c)]
                    break
    return dx


def max_pool_back_float(x, y, dy, geometry, dx):
    return max_pool_back_int8(x, y, dy, geometry, dx)


def mean_int8(x, rule):
    offset, multiplier, shift, zero = rule.tolist()
    y = np.empty((len(x), 1, 1, x.shape[3]), np.int8)
    for n, c in np.ndindex(len(x), x.shape[3]):
        total = sum(x[n, :, :, c].ravel().tolist())
        y[n, 0, 0, c] = clipped(multiplied(total - offset, multiplier, shift) + zero, -128, 127)
    return y
