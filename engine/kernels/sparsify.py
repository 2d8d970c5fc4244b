"""What of an update is sent and what stays owed: fold the residual in, choose the k largest, take the sent part out.

    fold in      u = delta + residual
    choose       the k entries with the largest |u|; of equal ones the lowest index; zeros are never chosen
    take out     residual = u;  residual[index] = u[index] - sent

    delta, residual, u float32 [P]; values float32 [k]; indices uint32 [k], strictly increasing; histogram int64 [2048].

Choosing is exact and O(P): the bit pattern of a positive float32 grows with its value, so magnitudes are compared as
31-bit integers, and the k-th largest is found digit by digit (11, 10 and 10 bits) with a histogram per digit.
"""

import numpy as np

from engine.kernels._jit import kernel

MAGNITUDE = 0x7FFFFFFF


@kernel("void(float32[::1], float32[::1], float32[::1])")
def fold_in(delta, residual, total):
    """Fill `total` with delta + residual."""
    for i in range(total.shape[0]):
        total[i] = delta[i] + residual[i]


@kernel("int64(uint32[::1], int64, int64[::1], uint32[::1])")
def choose_largest(bits, k, histogram, indices):
    """Fill `indices` and return how many were chosen: min(k, entries that are not zero).

    `bits` is the uint32 view of a float32 vector without NaN; `indices` has room for k.
    """
    if k == 0:
        return 0
    wanted = k
    prefix = 0
    shift = 31
    for digit in range(3):
        above = shift
        shift = 20 - 10 * digit
        digits = 1 << (above - shift)
        for d in range(digits):
            histogram[d] = 0
        for i in range(bits.shape[0]):
            magnitude = np.int64(bits[i]) & MAGNITUDE
            if magnitude >> above == prefix:
                histogram[(magnitude >> shift) & (digits - 1)] += 1
        d = digits - 1
        while d > 0 and histogram[d] < wanted:
            wanted -= histogram[d]
            d -= 1
        prefix = (prefix << (above - shift)) | d
    # prefix is now the k-th largest magnitude, and `wanted` of its equals belong to the chosen
    count = 0
    for i in range(bits.shape[0]):
        magnitude = np.int64(bits[i]) & MAGNITUDE
        if magnitude == prefix and wanted > 0 and magnitude > 0:
            wanted -= 1
            indices[count] = i
            count += 1
        elif magnitude > prefix:
            indices[count] = i
            count += 1
    return count


@kernel("void(float32[::1], uint32[::1], float32[::1])")
def pick(vector, indices, values):
    """Fill `values` with vector[indices]."""
    for j in range(indices.shape[0]):
        values[j] = vector[indices[j]]


@kernel("void(float32[::1], uint32[::1], float32[::1], float32[::1])")
def take_out(total, indices, values, residual):
    """Fill `residual` with what is still owed once `values` at `indices` have been sent."""
    for i in range(total.shape[0]):
        residual[i] = total[i]
    for j in range(indices.shape[0]):
        residual[indices[j]] = total[indices[j]] - values[j]
