"""A gateway: an MQTT server close to some of the devices, and its bridge to the fleet's, as mosquitto bridges are.

    devices ⇄ gateway's server ⇄ bridge ⇄ the fleet's server ⇄ coordinator

What devices say goes up, what they are told comes down, and what is retained there is retained here: while the fleet's
server is away it grows old. The devices' links stand all the while; only nobody answers. The bridge keeps its session
at the fleet's server and its own queue of what is not acknowledged, so it sends some things twice, and drops what
exceeds the queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmware_sim import keyring
from firmware_sim.link import Line
from firmware_sim.mqtt import Server
from wire import topics

if TYPE_CHECKING:
    from firmware_sim.world import World

BRIDGE: Final = "bridge"


class Gateway:
    """The gateway of these devices."""

    def __init__(self, world: World, devices: list[str]) -> None:
        self.server = Server(world, "gateway", self._on_said)
        self._world = world
        self._unsent: dict[int, tuple[str, bytes, bool]] = {}  # up, by number, not acknowledged yet
        self._said = 0
        own = [f"{topics.dn(keyring.FLEET, name, '+')}" for name in devices]
        self.line = Line(
            world,
            BRIDGE,
            (*own, topics.shared(keyring.FLEET, "+")),
            None,
            on_up=self._resend,
            on_down=lambda: None,
            on_message=self._on_heard,
            keeps_session=True,
        )

    def _on_said(self, topic: str, payload: bytes, retain: bool) -> None:
        """Somebody published here: what goes up goes on."""
        if "/up/" not in topic:
            return
        if len(self._unsent) >= self._world.weather.queue_max:
            self._world.happens("queue_full")
            return
        self._said += 1
        self._unsent[self._said] = topic, payload, retain
        self._send(self._said)

    def _on_heard(self, topic: str, payload: bytes) -> None:
        """The fleet's server has something for a device here. A bridge keeps the mark that it is retained."""
        self.server.spread(topic, payload, retain=f"/{topics.ALL}/" in topic)

    def _resend(self) -> None:
        for number in list(self._unsent):
            self._send(number)

    def _send(self, number: int) -> None:
        topic, payload, retain = self._unsent[number]
        if self.line.connection is not None:
            self.line.server.carry_up(
                self.line.connection,
                topic,
                payload,
                retain=retain,
                acknowledged=lambda: self._unsent.pop(number, None),
            )
