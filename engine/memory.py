"""Where each buffer of a program lies in one block of memory, so that buffers never alive together share bytes.

A program runs steps 0, 1, 2, ...; a buffer is written first at step `first` and read last at step `last`, both
included. `place` gives every buffer an offset into one arena. It takes the buffers by size, largest first, and puts
each into the smallest gap that is free for its whole life (Pisarchyk and Lee 2020, "Efficient Memory Management for
Deep Neural Net Inference", greedy by size). Where that takes more than the peak, what ended up highest goes first and
all is placed again, a bounded number of times; the best placing stands. What comes out depends on nothing but the
list, so the figure a planner prints is the figure a program allocates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ALIGNMENT = 64  # a cache line, and the widest vector register
TRIES = 20
ENOUGH = 64  # within a 64th of the peak no second try is worth its time


@dataclass(frozen=True, slots=True)
class Buffer:
    """`bytes` of memory, alive from step `first` to step `last`, both included."""

    name: str
    bytes: int
    first: int
    last: int


def place(buffers: Sequence[Buffer]) -> tuple[tuple[int, ...], int]:
    """Return each buffer's offset in bytes, in the order given, and the bytes of the whole arena.

    Offsets and the total are multiples of 64. Two buffers that live at the same step share no byte.
    """
    assert all(b.bytes >= 0 and 0 <= b.first <= b.last for b in buffers), "every buffer has a size and a life"
    end = max((b.last for b in buffers), default=0)
    offsets, ground = [0] * len(buffers), 0
    order = []
    for index, buffer in enumerate(buffers):
        if buffer.first == 0 and buffer.last == end:  # shares with nobody: it lies at the bottom
            offsets[index] = ground
            ground += aligned(buffer.bytes)
        else:
            order.append(index)
    order.sort(key=lambda i: (-buffers[i].bytes, buffers[i].first, i))
    enough = peak_of(buffers) - ground
    enough += enough // ENOUGH
    placed, top = best = _place_in(buffers, order)
    for _ in range(TRIES):
        if best[1] <= enough:
            break
        # What stands highest was served badly: it goes first next time.
        order.sort(key=lambda i, at=placed, top=top: at[i] + aligned(buffers[i].bytes) != top)  # type: ignore[misc]
        placed, top = _place_in(buffers, order)
        best = min(best, (placed, top), key=lambda found: found[1])
    for index, offset in best[0].items():
        offsets[index] = ground + offset
    return tuple(offsets), ground + best[1]


def _place_in(buffers: Sequence[Buffer], order: list[int]) -> tuple[dict[int, int], int]:
    """Place the buffers of `order` one after another; return the offset of each, and the end of the highest."""
    offsets: dict[int, int] = {}
    spans: list[tuple[int, int, int, int]] = []  # first, last, start, end of what is placed
    total = 0
    for index in order:
        first, last, size = buffers[index].first, buffers[index].last, aligned(buffers[index].bytes)
        neighbours = sorted((start, end) for since, until, start, end in spans if since <= last and first <= until)
        offsets[index] = _smallest_gap(neighbours, size)
        spans.append((first, last, offsets[index], offsets[index] + size))
        total = max(total, offsets[index] + size)
    return offsets, total


def peak_of(buffers: Sequence[Buffer]) -> int:
    """Return the most bytes, each buffer rounded up to 64, that are alive at one step: no arena can be smaller."""
    return max(
        (sum(aligned(b.bytes) for b in buffers if b.first <= step <= b.last) for step in {b.first for b in buffers}),
        default=0,
    )


def aligned(count: int) -> int:
    """Round `count` bytes up to a multiple of 64."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def _smallest_gap(neighbours: list[tuple[int, int]], wanted: int) -> int:
    """Return where the smallest gap between `neighbours` (start, end), sorted, that holds `wanted` bytes begins."""
    best, best_size, end = -1, 0, 0
    for start, stop in neighbours:
        gap = start - end
        if gap >= wanted and (best < 0 or gap < best_size):
            best, best_size = end, gap
        end = max(end, stop)
    return end if best < 0 else best
