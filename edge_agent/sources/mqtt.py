"""Samples or windows that the owner publishes on a topic: JSON numbers, or raw float32.

JSON is a list of numbers (one sample, or the numbers of a whole window) or a list of such lists. Raw is little-endian
float32, without a head. The agent's own link hears the topic and hands the bytes on; here they are believed no further
than their form.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_agent.sources.contents import as_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_LIST = msgspec.json.Decoder(list[float])
_LISTS = msgspec.json.Decoder(list[list[float]])


class Topic:
    """What `heard` brings, payload by payload, in `form` 'json' or 'float32'."""

    def __init__(self, heard: Iterator[bytes], form: str, drop: Callable[[str], None]) -> None:
        self._heard, self._drop = heard, drop
        self._read = _raw if form == "float32" else _json
        self._is_open = True

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """See `edge_agent.sources.source.Source`."""
        for payload in self._heard:
            if not self._is_open:
                return
            try:
                piece = self._read(payload)
            except ValueError:  # msgspec's DecodeError and NumPy's complaint about lists of unequal length
                self._drop("not numbers")
            else:
                yield piece

    def close(self) -> None:
        """See `edge_agent.sources.source.Source`."""
        self._is_open = False


def _json(payload: bytes) -> NDArray[np.float32]:
    with contextlib.suppress(msgspec.ValidationError):
        return as_float32(_LIST.decode(payload))
    return as_float32(_LISTS.decode(payload))


def _raw(payload: bytes) -> NDArray[np.float32]:
    return as_float32(np.frombuffer(payload, "<f4"))
