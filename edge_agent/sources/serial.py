"""A serial line on which a microcontroller writes numbers, a sample a line: 8 bits, no parity, no flow control.

Numbers are apart by comma, semicolon, tab or space. A line that is not numbers (a boot message, one cut short) is
counted and passed over. Source: termios(3).
"""

from __future__ import annotations

import contextlib
import os
import termios
from typing import TYPE_CHECKING, Final

from edge_agent.sources.contents import lines_of, numbers_in
from edge_agent.sources.settings import SourceError
from edge_agent.sources.windower import HOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_READ_BYTES: Final = 4096
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _ISPEED, _OSPEED, _CC = range(7)  # of tcgetattr's list


class SerialLine:
    """The lines of the device `path`. Raises SourceError where it is none."""

    def __init__(self, path: Path, baud: int, drop: Callable[[str], None]) -> None:
        self._path, self._drop = path, drop
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            _make_raw(self._descriptor, getattr(termios, f"B{baud}"))
            os.set_blocking(self._descriptor, True)  # only the opening must not wait, for a carrier
        except termios.error as error:
            self.close()
            raise SourceError(f"{path} is no serial line: {error.args[-1]}") from error

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """See `edge_agent.sources.source.Source`."""
        for line in lines_of(self._blocks(), self._drop):
            numbers = numbers_in(line)
            if numbers is not None:
                yield numbers
            elif line.strip():
                self._drop("not numbers")
                yield HOLE

    def close(self) -> None:
        """See `edge_agent.sources.source.Source`."""
        descriptor, self._descriptor = self._descriptor, -1
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def _blocks(self) -> Iterator[bytes]:
        while self._descriptor >= 0:
            data = os.read(self._descriptor, _READ_BYTES)
            if not data:
                raise SourceError(f"{self._path} has ended: is the cable out?")
            yield data


def _make_raw(descriptor: int, speed: int) -> None:
    """Bytes as they come, at this speed; a read waits for one byte at least."""
    state = termios.tcgetattr(descriptor)
    state[_IFLAG] = state[_OFLAG] = state[_LFLAG] = 0
    state[_CFLAG] = termios.CS8 | termios.CREAD | termios.CLOCAL
    state[_ISPEED] = state[_OSPEED] = speed
    state[_CC][termios.VMIN], state[_CC][termios.VTIME] = 1, 0
    termios.tcsetattr(descriptor, termios.TCSANOW, state)
