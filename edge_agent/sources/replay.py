"""One file played at a rate, for trials: of an .npz or .npy a window each period, of a .csv a sample each period."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edge_agent.sources.contents import SUFFIXES, pieces_of
from edge_agent.sources.settings import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


class Replay:
    """What is in `path`, once, one item every `period_s`; 0: as fast as it is taken."""

    def __init__(self, path: Path, period_s: float, drop: Callable[[str], None]) -> None:
        if path.suffix not in SUFFIXES or not path.is_file():
            raise SourceError(f"cannot replay {path}: it is no file that ends in {', '.join(SUFFIXES)}")
        self._path, self._period_s, self._drop = path, period_s, drop
        self._is_open = True

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """See `edge_agent.sources.source.Source`."""
        due_s = time.monotonic()
        for piece in pieces_of(self._path, self._drop):
            for item in piece:
                if not self._is_open:
                    return
                due_s = max(due_s + self._period_s, time.monotonic() - self._period_s)
                time.sleep(max(0.0, due_s - time.monotonic()))
                yield item.reshape(-1) if item.ndim == 0 else item

    def close(self) -> None:
        """See `edge_agent.sources.source.Source`."""
        self._is_open = False
