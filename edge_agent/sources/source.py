"""What every source is, and which one a config names: the one place to touch for another sensor.

    sensor, file, topic ─▶ Source.pieces() ─▶ Windower ─▶ windows        what is broken ─▶ drop(reason)

A source hands out what it gets as it comes; the windower makes windows of it. What is broken, hostile or of a wrong
form is dropped and counted under a short reason: it never ends a source. What a source cannot go on without, a
directory or a device, ends it with one sentence, and it is opened again later. Only the child that watches opens one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edge_agent.sources.settings import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    from edge_agent.sources.settings import Settings

    Drop: TypeAlias = Callable[[str], None]


class Source(Protocol):
    """Where samples come from."""

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """Hand out samples [n, width], a window [*window], windows [n, *window], or any of them flat; HOLE for a gap.

        Ends where the source is over. Raises SourceError or OSError where it cannot go on.
        """

    def close(self) -> None:
        """Let go of what it holds. May be called at any time, and twice."""


def open_source(settings: Settings, memory: Path, heard: Iterator[bytes], drop: Drop) -> Source:
    """Open the source that the settings name.

    `memory` is a file for what it must remember, `heard` what arrives on its topic, `drop` counts under a reason.
    Raises SourceError or OSError.
    """
    from edge_agent.sources import camera, directory, i2c, microphone, mqtt, replay, serial

    path = settings.path
    match settings.kind:
        case "mqtt":
            return mqtt.Topic(heard, settings.form, drop)
        case "i2c":
            return i2c.Accelerometer(settings.bus, settings.chip, settings.period_s, drop)
        case "microphone":
            return microphone.Microphone(settings.device, settings.rate_hz, drop)
        case "camera":
            return camera.Camera(settings.device, settings.window, settings.period_s, drop)
        case _ if path is None:
            raise SourceError(f"[source] kind {settings.kind!r} needs path = …")
        case "directory":
            return directory.Directory(path, memory, settings.period_s, drop)
        case "replay":
            return replay.Replay(path, settings.period_s, drop)
        case "serial":
            return serial.SerialLine(path, settings.baud, drop)
