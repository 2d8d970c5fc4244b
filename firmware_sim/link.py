"""One program's end of the fake network: its line to an MQTT server, and the connection that both ends see.

A line reconnects by itself after a pause, as `wire.link` does, and drops what is published while it is down. A
connection can break so that both ends hear of it, or silently, so that each end finds out by its own keepalive.

    line:  down ──pause over, server up and in reach──▶ open ──break, noticed by this end──▶ down
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from firmware_sim.mqtt import Server
    from firmware_sim.world import World

PAUSE_MS_MAX: Final = 4_000


class Connection:
    """One TCP connection and what the server holds for it: seen by both ends, which may think differently of it."""

    def __init__(self, line: Line, will: tuple[str, bytes, bool] | None) -> None:
        self.line = line
        self.will = will  # topic, payload, retain
        self.flows = True  # bytes pass
        self.known_to_server = True
        self.last_up: dict[str, int] = {}  # topic → when its newest message arrives
        self.last_down: dict[str, int] = {}
        self.busy_until_ms = 0  # of a slow line: when its newest byte has passed
        self.in_flight = 0  # messages to the program on their way
        self.waiting: collections.deque[tuple[str, bytes]] = collections.deque()  # for a place in that window


class Line:
    """One program's end. Calls back `on_up()`, `on_down()`, `on_message(topic, payload)` of its program.

    `keeps_session`: the server keeps what comes while the line is down, as it does for a bridge of another server.
    """

    def __init__(
        self,
        world: World,
        client_id: str,
        filters: Sequence[str],
        will: Callable[[], tuple[str, bytes, bool]] | None,
        *,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_message: Callable[[str, bytes], None],
        keeps_session: bool = False,
    ) -> None:
        self.client_id = client_id
        self.filters = filters
        self.keeps_session = keeps_session
        self.connection: Connection | None = None
        self.on_up = on_up
        self.on_down = on_down
        self.on_message = on_message
        self.server: Server = world.server_of(client_id)
        self.bytes_per_s = world.speed_of(client_id)  # 0: fast
        self._world = world
        self._will = will
        self._running = True
        world.at(world.draw(PAUSE_MS_MAX), self._connect)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Hand over bytes; lost without a word when the line is down."""
        self._world.auditor.on_sent(self.client_id, topic, payload)
        if self.connection is not None:
            self.server.carry_up(self.connection, topic, payload, retain=retain)

    def stop(self, *, silent: bool) -> None:
        """The program is gone: with its power (silent), or killed, which closes its socket."""
        self._running = False
        if self.connection is not None:
            self.server.lose(self.connection, silent=silent)
            self.connection = None

    def drop(self, connection: Connection) -> None:
        """This end notices that the connection is gone."""
        if connection is not self.connection:
            return
        self.connection = None
        self._world.at(1 + self._world.draw(PAUSE_MS_MAX), self._connect)
        self.on_down()

    def _connect(self) -> None:
        if not self._running:
            return
        world, server = self._world, self.server
        away = self.client_id in world.cut_off
        if away or not server.up or world.chance(world.weather.connect_fails_rate, "connect_fails"):
            world.at(1 + world.draw(PAUSE_MS_MAX), self._connect)
            return
        self.connection = connection = server.accept(self, self._will() if self._will is not None else None)
        world.at(1 + world.draw(world.weather.delay_ms_max), self._granted, connection)

    def _granted(self, connection: Connection) -> None:
        if connection is self.connection and connection.flows:
            self.on_up()
            self.server.subscribe(connection)
