"""What befalls one device's card: the weather's say before each of its operations.

    begin ─▶ the device ends here (Stopped) │ the disk is full, for a while │ a write or a sync fails │ nothing

A device that was stopped in the middle of an operation does no other one: what its code would still clean up is not
cleaned up, as in a process that is no more.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from firmware_sim.card import Operation
    from firmware_sim.world import Fate, World

NO_ROOM: Final = "No space left on device\n"


class Stopped(Exception):  # noqa: N818 - not an error of anyone's
    """Power or process ended before a disk operation. It passes through the product's code like the end itself."""

    def __init__(self, fate: Fate) -> None:
        super().__init__(fate)
        self.fate = fate


class Ills:
    """The ills of one card. `begin` and `coin` are what `card.Card` asks for."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self._stopped: Fate = ""
        self._full_until_ms = 0

    def begin(self, operation: Operation) -> None:
        """Raise what happens instead of this operation, if anything does."""
        world, weather = self._world, self._world.weather
        if not self._stopped:
            rates = (weather.cut_at_operation_rate, weather.exit_at_operation_rate)
            self._stopped = world.fate_within(self._name, *rates)
        if self._stopped:
            raise Stopped(self._stopped)
        if operation == "grow" and self._is_full():
            raise OSError(errno.ENOSPC, NO_ROOM)
        if operation == "write" and world.chance(weather.write_fails_rate, "write_fails"):
            raise OSError(errno.EIO, "Input/output error")
        if operation in ("sync", "sync names") and world.chance(weather.sync_fails_rate, "sync_fails"):
            raise OSError(errno.EIO, "Input/output error")

    def coin(self) -> bool:
        """One of two, by chance."""
        return self._world.random.random() < 0.5

    def start(self) -> None:
        """Another process begins."""
        self._stopped = ""

    def _is_full(self) -> bool:
        world, weather = self._world, self._world.weather
        if weather.disk_full_rate and world.now_ms >= self._full_until_ms:
            if not world.chance(weather.disk_full_rate, "disk_full"):
                return False
            self._full_until_ms = world.now_ms + 1 + world.draw(weather.disk_full_ms_max)
        return bool(weather.disk_full_rate)
