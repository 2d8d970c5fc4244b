"""The HTTP server with the model files, simulated, and one device's fetching from it.

It stands beside the MQTT server and knows nothing of its troubles. A fetch brings one chunk after the other, fails at
any of them, or is never heard of again. What is fetched next takes the place of what was fetched before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edge_agent.effects import Fetched, FetchFailed
from wire import chunks

if TYPE_CHECKING:
    from edge_agent.effects import FetchRanges
    from firmware_sim.device import Device
    from firmware_sim.world import World

URL: Final = "http://files.sim/barn"
NASTY: Final = "IncompleteRead\r\n\x1b[31m" + "~" * 200


class Fetcher:
    """The thread of one device that fetches; it ends with the device's life."""

    def __init__(self, world: World, device: Device) -> None:
        self._world = world
        self._device = device
        self._newest: FetchRanges | None = None

    def fetch(self, wanted: FetchRanges) -> None:
        """Begin to fetch these chunks."""
        assert wanted.url == URL, "a device fetches from the place that the manifest names"
        self._newest = wanted
        indexes = [index for r in wanted.ranges for index in range(r.first, r.first + r.count)]
        self._plan(wanted, indexes, self._device.life)

    def _plan(self, wanted: FetchRanges, indexes: list[int], life: int) -> None:
        delay_ms = 1 + self._world.random.randrange(self._world.weather.delay_ms_max)
        self._world.at(delay_ms, self._answer, wanted, indexes, life)

    def _answer(self, wanted: FetchRanges, indexes: list[int], life: int) -> None:
        """One answer of the server, if the device still waits for it."""
        world, file = self._world, wanted.file
        if wanted is not self._newest or life != self._device.life:
            return
        if world.chance(world.weather.http_hangs_rate, "http_hangs"):
            return
        if world.chance(world.weather.http_fails_rate, "http_fails"):
            self._device.answer(life, FetchFailed(file.digest, NASTY))
            return
        chunk = chunks.chunk_at(world.database.blob(file.digest), file, indexes[0])
        world.auditor.fetched_count += 1
        if indexes[1:]:
            self._plan(wanted, indexes[1:], life)
        self._device.answer(life, Fetched(file.digest, chunk.index, chunk.data))
