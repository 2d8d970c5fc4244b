"""Windows of fixed shape, cut from whatever a source hands out.

    piece [*window], [n, *window]     whole windows; so are the numbers of one or more in a row, where width is not 1
    piece [n, width], [n * width]     samples of a stream: window[0] of them make a window, the next begins `hop` later
    an empty piece                    a hole, or the end of a file: no window spans it
    anything else, NaN, infinity      dropped and counted; in a stream it is a hole, too

Only the shape of a piece decides what it is: `width` is how many numbers one sample has, all of window but its first.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


HOLE: Final = np.empty(0, np.float32)  # the piece that says: here something is missing


class Windower:
    """Makes windows of `shape`; `hop` samples lie between the starts of two. `drop` counts under a reason."""

    def __init__(self, shape: tuple[int, ...], hop: int, drop: Callable[[str], None]) -> None:
        self._shape, self._hop, self._drop = shape, hop, drop
        self._width = prod(shape[1:])
        self._samples = np.empty((0, self._width), np.float32)  # fewer than make a window

    def take(self, piece: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Give every window that this piece completes, float32 [*shape], C-contiguous."""
        is_flat = piece.ndim == 1
        are_flat = is_flat and self._width > 1 and piece.size % prod(self._shape) == 0
        if piece.size == 0:
            self._samples = self._samples[:0]
        elif self._shape in {piece.shape, piece.shape[1:]} or are_flat:
            yield from self._whole(piece.reshape(-1, *self._shape))
        elif is_flat and piece.size % self._width == 0:
            yield from self._cut(piece.reshape(-1, self._width))
        elif piece.ndim == 2 and piece.shape[1] == self._width:
            yield from self._cut(piece)
        else:
            self._drop("another shape")

    def _whole(self, windows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        for window in windows:
            if np.isfinite(window).all():
                yield np.ascontiguousarray(window)
            else:
                self._drop("not finite")

    def _cut(self, samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        if not np.isfinite(samples).all():
            self._drop("not finite")
            self._samples = self._samples[:0]
            return
        count, start = self._shape[0], 0
        gathered = np.concatenate([self._samples, samples])
        while start + count <= len(gathered):
            yield gathered[start : start + count].reshape(self._shape).copy()
            start += self._hop
        self._samples = gathered[start:].copy()
