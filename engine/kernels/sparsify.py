"""What of an update is sent and what stays owed: fold the residual in, choose the k largest, take the sent part out.

    fold in      u = delta + residual
    decay        residual = residual * factor                     (what a debt of missed rounds is still worth)
    choose       the k entries with the largest |u|; of equal ones the lowest index; zeros are never chosen
    take out     residual[index] = u[index] - sent,  in place

    delta, residual, u float32 [P]; factor float64; values float32 [k]; indices uint32 [k], strictly increasing;
    bits uint32 [P], the view of a float32 vector; histogram int64 [2048]; places, magnitudes uint32 [room].

The bit pattern of a positive float32 grows with its value, so magnitudes are compared as 31-bit integers, and the k-th
largest is found digit by digit (11, 10 and 10 bits) with a histogram per digit: `choose_largest`, exact and O(P).

`choose_by_sample` finds the same k in one cheap pass. Some 4096 entries, one from each stretch at a place that a fixed
generator names, tell a magnitude that very likely k entries or somewhat more reach. A block whose largest entry is
smaller is passed over; the others leave candidates, and among those the choice is exact. Where fewer than k reach that
magnitude, or more than there is room for, the sample misled: that is told, and nothing is chosen.
"""

import math

import numpy as np

from engine.kernels._jit import inner, kernel
from engine.kernels.shuffle import splitmix64

MAGNITUDE = 0x7FFFFFFF
MISLED = -1
SAMPLES = 4096
BLOCK = 64  # a multiple of every vector register
SURE = 4.0  # standard deviations of the number of large entries that a sample meets


@kernel("void(float32[::1], float32[::1], float32[::1])")
def fold_in(delta, residual, total):
    """Fill `total` with delta + residual."""
    for i in range(total.shape[0]):
        total[i] = delta[i] + residual[i]


@kernel("void(float32[::1], float64)")
def decay_reals(residual, factor):
    """Multiply `residual` in place, rounded once to float32."""
    for i in range(residual.shape[0]):
        residual[i] = np.float32(np.float64(residual[i]) * factor)


@inner
def _kth_largest(bits, count, k, histogram):
    """Give the k-th largest magnitude of the first `count`, and how many of its equals belong to the k largest."""
    wanted = k
    prefix = 0
    shift = 31
    for digit in range(3):
        above = shift
        shift = 20 - 10 * digit
        digits = 1 << (above - shift)
        for d in range(digits):
            histogram[d] = 0
        for i in range(count):
            magnitude = np.int64(bits[i]) & MAGNITUDE
            if magnitude >> above == prefix:
                histogram[(magnitude >> shift) & (digits - 1)] += 1
        d = digits - 1
        while d > 0 and histogram[d] < wanted:
            wanted -= histogram[d]
            d -= 1
        prefix = (prefix << (above - shift)) | d
    return prefix, wanted


@kernel("int64(uint32[::1], int64, int64[::1], uint32[::1])")
def choose_largest(bits, k, histogram, indices):
    """Fill `indices`, which has room for k, and return how many were chosen: min(k, entries that are not zero)."""
    if k == 0:
        return 0
    least, wanted = _kth_largest(bits, bits.shape[0], k, histogram)
    count = 0
    for i in range(bits.shape[0]):
        magnitude = np.int64(bits[i]) & MAGNITUDE
        if magnitude == least and wanted > 0 and magnitude > 0:
            wanted -= 1
            indices[count] = i
            count += 1
        elif magnitude > least:
            indices[count] = i
            count += 1
    return count


@inner
def _likely_reached(bits, k, magnitudes, histogram):
    """Give a magnitude, at least 1, that very likely at least k of `bits` reach; `magnitudes` is used up."""
    size = bits.shape[0]
    stretch = max(size // SAMPLES, 1)
    samples = min(size, SAMPLES)
    for j in range(samples):
        # not every 256th: a model's columns often recur at such a distance
        high = splitmix64(np.uint64(0), np.uint64(j)) >> np.uint64(32)
        magnitudes[j] = bits[j * stretch + np.int64((high * np.uint64(stretch)) >> np.uint64(32))]
    expected = np.float64(k) / stretch
    rank = min(np.int64(expected + SURE * math.sqrt(expected) + SURE), samples)
    reached, _ = _kth_largest(magnitudes, samples, rank, histogram)
    return max(reached, 1)


@inner
def _candidates(bits, least, places, magnitudes):
    """Gather the entries of `least` or more and give how many, or MISLED if there is not room for them and a block."""
    reached = np.uint32(least)
    room = places.shape[0]
    blocks_end = bits.shape[0] - bits.shape[0] % BLOCK
    count = 0
    for start in range(0, blocks_end, BLOCK):
        largest = np.uint32(0)
        for i in range(start, start + BLOCK):  # a known number of turns: the compiler makes vectors of it
            largest = max(largest, np.uint32(bits[i] & np.uint32(MAGNITUDE)))
        if largest >= reached:
            if count + BLOCK > room:
                return MISLED
            for i in range(start, start + BLOCK):
                magnitude = bits[i] & np.uint32(MAGNITUDE)
                if magnitude >= reached:
                    places[count] = i
                    magnitudes[count] = magnitude
                    count += 1
    if count + BLOCK > room:
        return MISLED
    for i in range(blocks_end, bits.shape[0]):
        magnitude = bits[i] & np.uint32(MAGNITUDE)
        if magnitude >= reached:
            places[count] = i
            magnitudes[count] = magnitude
            count += 1
    return count


@kernel("int64(uint32[::1], int64, int64[::1], uint32[::1], uint32[::1], uint32[::1])")
def choose_by_sample(bits, k, histogram, places, magnitudes, indices):
    """As `choose_largest`, or MISLED; `places` and `magnitudes` have the same room, SAMPLES or more; k is 1 or more."""
    least = _likely_reached(bits, k, magnitudes, histogram)
    found = _candidates(bits, least, places, magnitudes)
    if found == MISLED or (found < k and least > 1):
        return MISLED
    if found == 0:
        return 0
    least, wanted = _kth_largest(magnitudes, found, min(k, found), histogram)
    count = 0
    for j in range(found):
        magnitude = np.int64(magnitudes[j])
        if magnitude == least and wanted > 0:
            wanted -= 1
            indices[count] = places[j]
            count += 1
        elif magnitude > least:
            indices[count] = places[j]
            count += 1
    return count


@kernel("void(float32[::1], uint32[::1], float32[::1])")
def pick(vector, indices, values):
    """Fill `values` with vector[indices]."""
    for j in range(indices.shape[0]):
        values[j] = vector[indices[j]]


@kernel("void(float32[::1], uint32[::1], float32[::1])")
def take_out(total, indices, values):
    """Take `values` at `indices`, which are sent, out of `total` in place: what is left is still owed."""
    for j in range(indices.shape[0]):
        total[indices[j]] -= values[j]
