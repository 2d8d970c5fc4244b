"""How much of one model version a device is sent: to ask costs it a hundred bytes, to answer costs us a million.

A device that fetches honestly asks for each chunk once, and again for what was lost on the way. One that asks for
ever could make us pour out everything we have, a thousand bytes for each of its own. So in ten minutes it is sent four
times the chunks of a version, or CHUNKS_MIN of a small one; a new version begins a new account. Who is refused hears
nothing, asks again after a pause, as it does when an answer is lost, and is served when the ten minutes are over. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from wire.messages import Manifest, Want

WINDOW_MS: Final = 600_000
TIMES: Final = 4  # a fetch over a link that loses two messages of three
CHUNKS_MIN: Final = 64


class Rations:
    """The account of every device that wanted something of the newest version. Size: one entry a device."""

    def __init__(self) -> None:
        self._model_version = 0
        self._taken: dict[str, tuple[int, int]] = {}  # device → when its window ends, chunks that it took in it

    def grant(self, device_id: str, want: Want, manifest: Manifest, now_ms: int) -> bool:
        """May the device be sent what it wants? It is noted as sent if it may."""
        if manifest.model_version != self._model_version:
            self._model_version = manifest.model_version
            self._taken.clear()
        ends_at_ms, taken = self._taken.get(device_id, (now_ms, 0))
        if now_ms >= ends_at_ms:
            ends_at_ms, taken = now_ms + WINDOW_MS, 0
        taken += sum(wanted.count for wanted in want.ranges)
        if taken > max(CHUNKS_MIN, TIMES * sum(len(file.chunk_digests) for file in manifest.files)):
            return False
        self._taken[device_id] = ends_at_ms, taken
        return True
