"""Two losses, forward and backward: softmax cross-entropy (its exp and log are our own) and the mean squared error.

    forward      p[b, c] = exp(z[b, c] - m[b]) / s[b]        m[b] = max_c z[b, c]    s[b] = sum_c exp(z[b, c] - m[b])
                 loss = sum_b (log s[b] - (z[b, y[b]] - m[b]))
    backward     dz[b, c] = (p[b, c] - [c == y[b]]) / batch
    prediction   the lowest c with the largest z[b, c]
    mse          loss = sum_b mean_f (o[b, f] - t[b, f])^2      do[b, f] = 2 (o[b, f] - t[b, f]) / (features batch)

    logits z and grad_logits dz float32 [batch][classes]; labels y int32 [batch];
    probabilities p float64 [batch][classes]; outputs o, targets t and grad_outputs do float32 [batch][features].

libm's `expf` differs between C libraries in one result of some millions, which is enough to make two devices
disagree; so both functions are range reduction plus a polynomial, in float64, with +, -, * and / only:

    exp_negative(x), x <= 0:   x = r - n ln 2, |r| <= ln 2 / 2; Taylor to r^13 / 13!; 2^-n from a table of exact powers.
        Relative error below 2.5e-16 for x >= -87 (truncation 5e-18, the rest is rounding); 0 below -87, where the
        float32 numbers end.
    log_above_one(x), x >= 1:  x = m 2^e, m in (0.7, 1.42); 2 artanh(t), t = (m-1) / (m+1), to t^19.
        Error below 3e-16 (1 + log x).
"""

import numpy as np

from engine.kernels._jit import inner, kernel

LOWEST = -87.0
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.6931471803691238  # the first 32 bits of ln 2: n * LN2_HIGH is exact for n < 2^20
LN2_LOW = 1.9082149292705877e-10
LN2 = 0.6931471805599453
SQRT2 = 1.4142135623730951
HALVINGS = np.array([0.5**n for n in range(128)], dtype=np.float64)


@inner
def exp_negative(x):
    """Give exp(x) for x <= 0 (float64); 0 below -87 and for NaN, which callers refuse beforehand."""
    if not x >= LOWEST:
        return 0.0
    n = np.int64(0.5 - x * LOG2_E)
    r = (x + n * LN2_HIGH) + n * LN2_LOW
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    # r + r^2 p is small beside 1, so that only the last addition rounds at full size
    return (1.0 + (r + (r * r) * p)) * HALVINGS[n]


@inner
def log_above_one(x):
    """Give log(x) for finite x >= 1 (float64)."""
    exponent = 0
    while x > SQRT2:
        x = x * 0.5
        exponent += 1
    t = (x - 1.0) / (x + 1.0)
    square = t * t
    series = 1.0 / 19.0
    for odd in range(17, 0, -2):
        series = series * square + 1.0 / odd
    return exponent * LN2 + 2.0 * t * series


@kernel("float64(float32[:, ::1], int32[::1], float64[:, ::1])")
def softmax_forward(logits, labels, probabilities):
    """Fill `probabilities`; return the summed loss (float64), or NaN if any logit is NaN or infinite."""
    batch, classes = logits.shape
    loss = 0.0
    for b in range(batch):
        largest = np.float64(logits[b, 0])
        for c in range(classes):
            z = np.float64(logits[b, c])
            if z - z != 0.0:
                return np.nan
            largest = max(largest, z)
        total = 0.0
        for c in range(classes):
            p = exp_negative(np.float64(logits[b, c]) - largest)
            probabilities[b, c] = p
            total += p
        for c in range(classes):
            probabilities[b, c] = probabilities[b, c] / total
        loss += log_above_one(total) - (np.float64(logits[b, labels[b]]) - largest)
    return loss


@kernel("void(float64[:, ::1], int32[::1], float32[:, ::1])")
def softmax_backward(probabilities, labels, grad_logits):
    """Fill `grad_logits` with the gradient of the *mean* loss; each entry is rounded to float32 once."""
    batch, classes = probabilities.shape
    for b in range(batch):
        for c in range(classes):
            wanted = 1.0 if c == labels[b] else 0.0
            grad_logits[b, c] = np.float32((probabilities[b, c] - wanted) / batch)


@kernel("void(float32[:, ::1], int32[::1])")
def largest_logit(logits, predictions):
    """Fill `predictions` int32 [batch]; of equal logits the lowest class wins."""
    batch, classes = logits.shape
    for b in range(batch):
        best = 0
        for c in range(1, classes):
            if logits[b, c] > logits[b, best]:
                best = c
        predictions[b] = best


@kernel("float64(float32[:, ::1], float32[:, ::1])")
def mse_forward(outputs, targets):
    """Return the summed loss of the batch, or NaN if any output is NaN or infinite."""
    batch, features = outputs.shape
    loss = 0.0
    for b in range(batch):
        total = 0.0
        for f in range(features):
            miss = np.float64(outputs[b, f]) - np.float64(targets[b, f])
            if miss - miss != 0.0:
                return np.nan
            total += miss * miss
        loss += total / features
    return loss


@kernel("void(float32[:, ::1], float32[:, ::1], float32[:, ::1])")
def mse_backward(outputs, targets, grad_outputs):
    """Fill `grad_outputs` with the gradient of the *mean* loss; each entry is rounded to float32 once."""
    batch, features = outputs.shape
    for b in range(batch):
        for f in range(features):
            miss = np.float64(outputs[b, f]) - np.float64(targets[b, f])
            grad_outputs[b, f] = np.float32(2.0 * miss / (features * batch))
