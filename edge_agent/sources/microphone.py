"""Sound: samples between -1 and 1 at a fixed rate. Needs the extra `hedgerow[microphone]` (sounddevice, PortAudio)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_agent.sources.settings import SourceError
from edge_agent.sources.windower import HOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

BLOCKS_PER_S: Final = 10
_FULL_SCALE: Final = np.float32(1 << 15)


class Microphone:
    """One channel of `device` (a part of its name; "": the default one). Raises SourceError where it cannot be had."""

    def __init__(self, device: str, rate_hz: int, drop: Callable[[str], None]) -> None:
        self._drop, self._block = drop, max(1, rate_hz // BLOCKS_PER_S)
        self._is_open = True
        try:
            import sounddevice
        except (ImportError, OSError) as error:  # OSError: PortAudio itself is missing
            raise SourceError(
                f"a microphone needs sounddevice ({error}): pip install 'hedgerow[microphone]', and libportaudio2"
            ) from error
        self._fault: type[Exception] = sounddevice.PortAudioError
        try:
            self._stream: Any = sounddevice.RawInputStream(
                samplerate=rate_hz, channels=1, dtype="int16", blocksize=self._block, device=device or None
            )
            self._stream.start()
        except (self._fault, ValueError) as error:
            raise SourceError(f"cannot listen to microphone {device or 'default'!r}: {error}") from error

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """See `edge_agent.sources.source.Source`."""
        while self._is_open:
            try:
                data, has_overrun = self._stream.read(self._block)
            except self._fault as error:
                raise SourceError(f"the microphone is silent: {error}") from error
            if has_overrun:
                self._drop("overrun")
                yield HOLE
            yield np.frombuffer(data, "<i2").astype(np.float32) / _FULL_SCALE

    def close(self) -> None:
        """See `edge_agent.sources.source.Source`."""
        self._is_open = False
        with contextlib.suppress(self._fault):
            self._stream.close()
