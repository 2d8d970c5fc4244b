"""Pictures of a camera, each a window: scaled to its size, grey or RGB, between 0 and 1. Needs `hedgerow[camera]`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_agent.sources.settings import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

FAILURES_MAX: Final = 10  # pictures in a row that do not come: then it is gone


class Camera:
    """A picture every `period_s` of `device` (a number, or a path; "": the first), as `window` [height, width, 1 or 3].

    Raises SourceError where it cannot be had.
    """

    def __init__(self, device: str, window: tuple[int, ...], period_s: float, drop: Callable[[str], None]) -> None:
        self._window, self._period_s, self._drop = window, period_s, drop
        self._name = device or "0"
        self._is_open = True
        if len(window) != 3 or window[2] not in {1, 3}:
            raise SourceError(f"a camera gives windows of [height, width, 1 or 3], not {list(window)}")
        try:
            import cv2
        except ImportError as error:
            raise SourceError("a camera needs OpenCV: install it with pip install 'hedgerow[camera]'") from error
        self._cv2: Any = cv2
        self._capture: Any = cv2.VideoCapture(int(self._name) if self._name.isdecimal() else self._name)
        if not self._capture.isOpened():
            raise SourceError(f"cannot open camera {self._name}: is it plugged in, and this user in the group video?")

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """See `edge_agent.sources.source.Source`."""
        failures, due_s = 0, time.monotonic()
        while self._is_open:
            has_come, picture = self._capture.read()
            failures = 0 if has_come else failures + 1
            if failures > FAILURES_MAX:
                raise SourceError(f"camera {self._name} gives no pictures any more")
            if has_come:
                yield self._fitted(picture)
            else:
                self._drop("not read")
            due_s = max(due_s + self._period_s, time.monotonic() - self._period_s)
            time.sleep(max(0.0, due_s - time.monotonic()))

    def close(self) -> None:
        """See `edge_agent.sources.source.Source`."""
        self._is_open = False
        self._capture.release()

    def _fitted(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """OpenCV's blue, green, red bytes of any size as the model takes them."""
        cv2, (height, width, channels) = self._cv2, self._window
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        colours = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2RGB)
        fitted: NDArray[np.float32] = colours.reshape(self._window).astype(np.float32) / np.float32(255)
        return fitted
