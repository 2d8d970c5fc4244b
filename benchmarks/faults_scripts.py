"""The faults themselves: five scripts that strike whatever fleet they are given, ours or a peer's, at the same moments.

A script is a generator. The fleet's driver takes one step of it at each look, about thirty times a second; a script
waits by yielding. It sees a fleet through `Side` alone, and everything that it does to it goes through there, too.

    power_cut     the link of all is held while they train; a device loses power when its training is finished and
                  not sent; in the next round, once more, one that still trains
    outage        the link of all devices is gone while they train, and until 75 s after the first one is finished
    coordinator   SIGKILL when some results have reached it and some have not; back after five seconds
    mqtt_server   the same for the MQTT server
    all_at_once   the outage; when the first device is finished: that device, coordinator and MQTT server get SIGKILL
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from collections.abc import Set as AbstractSet

Script: TypeAlias = "Callable[[Side], Steps]"
Steps: TypeAlias = "Generator[None, None, None]"

OUTAGE_S: Final = 75.0
DOWN_S: Final = 5.0
HELD_S: Final = 1.0  # how long a link stays silent after the power of a device has gone
ROUNDS: Final = 3
STRUCK_ROUND: Final = 2
COORDINATOR: Final = "coordinator"
MQTT_SERVER: Final = "MQTT server"


class Side(Protocol):
    """A fleet as a script sees it. Sets hold device ids, and speak of the open round."""

    devices: AbstractSet[str]
    open_round: int

    def training(self) -> AbstractSet[str]:
        """Who trains now."""

    def finished(self) -> AbstractSet[str]:
        """Whose training is finished: its result is in the device's hands."""

    def stored(self) -> AbstractSet[str]:
        """Whose result has reached the coordinator."""

    def shut(self) -> None:
        """Cut every device's link."""

    def open(self) -> None:
        """Mend it."""

    def kill(self, name: str) -> None:
        """SIGKILL a device with all its processes, COORDINATOR or MQTT_SERVER."""

    def start(self, name: str) -> None:
        """Start it again."""

    def strike(self) -> None:
        """Note that a fault begins: what is finished and not yet in a model is at stake."""

    def heal(self) -> None:
        """Note that it is over: what was finished until now was at stake."""


def calm(side: Side) -> Steps:
    """Nothing happens: what the others are compared with."""
    yield from _until(lambda: side.open_round >= 1)


def power_cut(side: Side) -> Steps:
    """A device without power, finished and not sent; and once more, while it trains."""
    yield from _until(lambda: bool(side.training()))
    side.shut()
    yield from _until(lambda: bool(side.finished()))
    victim = min(side.finished())
    side.strike()
    side.kill(victim)
    yield from _wait(HELD_S)
    side.open()
    yield from _wait(DOWN_S)
    side.start(victim)
    side.heal()
    yield from _until(lambda: side.open_round >= STRUCK_ROUND and bool(side.training()))
    victim = min(side.training())
    side.kill(victim)
    yield from _wait(DOWN_S)
    side.start(victim)


def outage(side: Side) -> Steps:
    """No link while results are to be sent."""
    yield from _all_train(side)
    side.shut()
    side.strike()
    yield from _until(lambda: bool(side.finished()))
    yield from _wait(OUTAGE_S)
    side.open()
    side.heal()


def coordinator(side: Side) -> Steps:
    """The coordinator is gone, with some results stored and some not."""
    yield from _kill_while_some_are_stored(side, COORDINATOR)


def mqtt_server(side: Side) -> Steps:
    """The MQTT server is gone, with nothing retained."""
    yield from _kill_while_some_are_stored(side, MQTT_SERVER)


def all_at_once(side: Side) -> Steps:
    """Everything of the above in one moment."""
    yield from _all_train(side)
    side.shut()
    side.strike()
    yield from _until(lambda: bool(side.finished()))
    victim = min(side.finished())
    for name in (victim, COORDINATOR, MQTT_SERVER):
        side.kill(name)
    yield from _wait(DOWN_S)
    for name in (MQTT_SERVER, COORDINATOR, victim):
        side.start(name)
    yield from _wait(OUTAGE_S - DOWN_S)
    side.open()
    side.heal()


SCRIPTS: Final[dict[str, Script]] = {
    "undisturbed": calm,
    "power_cut": power_cut,
    "outage_75s": outage,
    "coordinator_kill": coordinator,
    "mqtt_server_kill": mqtt_server,
    "all_at_once": all_at_once,
}


def _kill_while_some_are_stored(side: Side, name: str) -> Steps:
    yield from _until(lambda: side.open_round >= STRUCK_ROUND and bool(side.stored()) and side.stored() < side.devices)
    side.strike()
    side.kill(name)
    yield from _wait(DOWN_S)
    side.start(name)
    side.heal()


def _all_train(side: Side) -> Steps:
    yield from _until(
        lambda: (
            side.open_round >= STRUCK_ROUND
            and bool(side.training())
            and side.training() | side.finished() == side.devices
        )
    )


def _until(condition: Callable[[], bool]) -> Steps:
    while not condition():
        yield


def _wait(seconds: float) -> Steps:
    until = time.monotonic() + seconds
    yield from _until(lambda: time.monotonic() >= until)
