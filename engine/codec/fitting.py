"""A payload that fits a limit of bytes: fewer values, and where that leaves too few of them, fewer bits for each.

    with the plan's bits     as many of the largest values as fit
    fewer than a quarter?    the same with 4 bits, then with 1, until a quarter of the values fits
    still fewer?             the bits with which the most values fit

So a limit that is a little too small costs a few values and no precision; a small one trades precision for places,
because under error feedback a place that is not sent waits for another round, and a rounded value only for the rest of
itself. Whole units (0 bits) stay whole. What is not sent stays owed either way. How many fit is found by coding again,
each time for a number of values between one that fits and one that does not: few times, because a payload grows
almost evenly with its values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from engine.codec.header import CodecError
from engine.codec.largest import largest
from engine.codec.payload import encode
from engine.codec.update import Update

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.codec.payload import Coded, Coding

LESS_PRECISE = (4, 1)  # bits
FEWEST = 4  # fewer than one value in so many is too few
FULL = 32  # a payload that wants less than one part in so many of its limit is full enough


class Wish(NamedTuple):
    """What would be sent if bytes were free: `magnitudes` float32 [k] rank the values of `update`."""

    update: Update
    magnitudes: NDArray[np.float32]
    shapes: tuple[tuple[int, int], ...]
    value_bits: int
    coding: Coding


def fit(wish: Wish, bytes_max: int) -> tuple[Coded, str]:
    """Code what was wished, or as much of it as fits into a payload of `bytes_max` bytes; 0 is no limit.

    Returns:
        The payload with exactly what it says; and one sentence on what was left out, "" if nothing was.

    Raises:
        CodecError: not even one value fits, or the wish cannot be coded at all.
    """
    wanted = len(wish.update.indices)
    whole = _coded(wish, wish.value_bits, wanted)
    if not bytes_max or len(whole.payload) <= bytes_max:
        return whole, ""
    best, best_bits = None, 0
    for bits in (wish.value_bits, *(fewer for fewer in LESS_PRECISE if fewer < wish.value_bits)):
        found = _most(wish, bits, bytes_max, whole if bits == wish.value_bits else _coded(wish, bits, wanted))
        if found is not None and (best is None or _count(found) > _count(best)):
            best, best_bits = found, bits
        if best is not None and FEWEST * _count(best) >= wanted:
            break
    if best is None:
        least = len(_coded(wish, min(wish.value_bits, 1), min(wanted, 1)).payload)
        raise CodecError(
            f"The payload of an update may have {bytes_max} bytes, and with {min(wanted, 1)} values it takes {least}: "
            "nothing is sent until the limit is raised."
        )
    how = f"{best_bits} bits" if best_bits > 1 else "1 bit" if best_bits else "full precision"
    return best, f"{_count(best):,} of {wanted:,} values at {how}: {bytes_max:,} bytes allowed"


def _most(wish: Wish, bits: int, bytes_max: int, whole: Coded) -> Coded | None:
    """The most values that fit with so many bits each; None if not one does. `whole` is all of them so."""
    if len(whole.payload) <= bytes_max:
        return whole
    best, fits, fails = None, (0, 0), (len(wish.update.indices), len(whole.payload))
    turn = 0
    while fails[0] - fits[0] > 1 and FULL * (bytes_max - fits[1]) > bytes_max:
        turn += 1
        between = fails[0] - fits[0]
        if turn % 3:  # aim at where a straight line meets a little less than the limit
            aim = bytes_max - bytes_max // (2 * FULL) - fits[1]
            guess = fits[0] + min(max(between * aim // (fails[1] - fits[1]), 1), between - 1)
        else:
            guess = fits[0] + between // 2
        found = _coded(wish, bits, guess)
        if len(found.payload) <= bytes_max:
            best, fits = found, (guess, len(found.payload))
        else:
            fails = (guess, len(found.payload))
    return best


def _coded(wish: Wish, bits: int, count: int) -> Coded:
    """The payload of the `count` largest values."""
    update = wish.update
    if count < len(update.indices):
        some = largest(wish.magnitudes, count)
        update = Update(update.lane, update.size, update.indices[some], update.values[some])
    return encode(update, wish.shapes, value_bits=bits, coding=wish.coding)


def _count(coded: Coded) -> int:
    return len(coded.sent.indices)
