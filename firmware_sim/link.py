"""The fake network: an MQTT server, and each program's line to it.

As the real ones: QoS 1 over clean sessions, one session a client id, retained messages, wills. A connection can
break so that both ends hear of it, or silently, so that each end finds out by its own keepalive; what was under way
is lost or not, by coin. Within one topic the order holds, mostly; between topics there is none. A line reconnects by
itself after a pause, as `wire.link` does, and drops what is published while it is down.

    line:  down ──pause over, server up──▶ open ──break, noticed by this end──▶ down
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wire.limits import KEEPALIVE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from firmware_sim.world import World

KEEPALIVE_MS: Final = KEEPALIVE_S * 1000
PAUSE_MS_MAX: Final = 4_000
NOTICE_MS_MAX: Final = 1_000


class Connection:
    """One TCP connection and its MQTT session: seen by both ends, which may think differently of it."""

    def __init__(self, line: Line, will: tuple[str, bytes, bool]) -> None:
        self.line = line
        self.will = will  # topic, payload, retain
        self.flows = True  # bytes pass
        self.known_to_server = True
        self.last_up: dict[str, int] = {}  # topic → when its newest message arrives
        self.last_down: dict[str, int] = {}


class Line:
    """One program's end. Calls back `on_up()`, `on_down()`, `on_message(topic, payload)` of its program."""

    def __init__(
        self,
        world: World,
        client_id: str,
        filters: Sequence[str],
        will: Callable[[], tuple[str, bytes, bool]],
        *,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_message: Callable[[str, bytes], None],
    ) -> None:
        self.client_id = client_id
        self.filters = filters
        self.connection: Connection | None = None
        self.on_up = on_up
        self.on_down = on_down
        self.on_message = on_message
        self._world = world
        self._will = will
        self._running = True
        world.at(world.random.randrange(PAUSE_MS_MAX), self._connect)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Hand over bytes; lost without a word when the line is down."""
        self._world.auditor.on_sent(self.client_id, topic, payload)
        if self.connection is not None:
            self._world.server.carry_up(self.connection, topic, payload, retain=retain)

    def stop(self, *, silent: bool) -> None:
        """The program is gone: with its power (silent), or killed, which closes its socket."""
        self._running = False
        if self.connection is not None:
            self._world.server.lose(self.connection, silent=silent)
            self.connection = None

    def drop(self, connection: Connection) -> None:
        """This end notices that the connection is gone."""
        if connection is not self.connection:
            return
        self.connection = None
        self._world.at(1 + self._world.random.randrange(PAUSE_MS_MAX), self._connect)
        self.on_down()

    def _connect(self) -> None:
        if not self._running:
            return
        world = self._world
        if not world.server.up or world.chance(world.weather.connect_fails_rate, "connect_fails"):
            world.at(1 + world.random.randrange(PAUSE_MS_MAX), self._connect)
            return
        self.connection = connection = world.server.accept(self, self._will())
        world.at(1 + world.random.randrange(world.weather.delay_ms_max), self._granted, connection)

    def _granted(self, connection: Connection) -> None:
        if connection is self.connection and connection.flows:
            self.on_up()
            self._world.server.subscribe(connection)


class Server:
    """The MQTT server."""

    def __init__(self, world: World) -> None:
        self.up = True
        self._world = world
        self._sessions: dict[str, Connection] = {}
        self._subscribed: dict[str, Connection] = {}
        self._retained: dict[str, bytes] = {}
        self._filters: dict[str, Sequence[str]] = {}  # client id → what it ever subscribed to
        self._readers: dict[str, list[str]] = {}  # topic → client ids, in order; known once asked

    def accept(self, line: Line, will: tuple[str, bytes, bool]) -> Connection:
        """Open a session; an older one of the same client id is taken over."""
        world = self._world
        old = self._sessions.get(line.client_id)
        if old is not None:
            old.flows = False
            self._close(old, with_will=world.chance(world.weather.takeover_will_rate, "takeover_will"))
        connection = self._sessions[line.client_id] = Connection(line, will)
        world.note("server", f"accepts {line.client_id}")
        return connection

    def subscribe(self, connection: Connection) -> None:
        """Grant the filters and deliver what is retained under them."""
        if not connection.known_to_server:
            return
        client_id = connection.line.client_id
        self._subscribed[client_id] = connection
        if client_id not in self._filters:
            self._filters[client_id] = connection.line.filters
            self._readers.clear()
        for topic, payload in self._retained.items():
            if client_id in self._readers_of(topic):
                self._carry_down(connection, topic, payload)

    def lose(self, connection: Connection, *, silent: bool) -> None:
        """Cut the connection. Each end notices in its own time, which may be its keepalive."""
        connection.flows = False
        world = self._world
        if silent:
            world.tally["silent"] += 1
            mine, server = KEEPALIVE_MS // 2, KEEPALIVE_MS
        else:
            mine = server = 0
        world.at(mine + world.random.randrange(NOTICE_MS_MAX + mine), connection.line.drop, connection)
        world.at(server + world.random.randrange(NOTICE_MS_MAX + server // 2), self._notice, connection)

    def restart(self, down_ms: int, *, keep_retained: bool) -> None:
        """Die without a will for anybody, and come back."""
        self.up = False
        if not keep_retained:
            self._retained.clear()
        connections, self._sessions, self._subscribed = list(self._sessions.values()), {}, {}
        for connection in connections:
            connection.flows = connection.known_to_server = False
            self._world.at(self._world.random.randrange(NOTICE_MS_MAX), connection.line.drop, connection)
        self._world.at(down_ms, self._start)

    def carry_up(self, connection: Connection, topic: str, payload: bytes, *, retain: bool) -> None:
        """Bring a publish from a program to the server, or lose it."""
        world = self._world
        if not connection.flows or world.chance(world.weather.drop_rate, "drop"):
            return
        arrival = self._arrival(connection.last_up, topic)
        world.at(arrival, self._on_publish, connection, topic, payload, retain)
        if world.chance(world.weather.duplicate_rate, "duplicate"):
            world.at(arrival + world.random.randrange(1, 5_000), self._on_publish, connection, topic, payload, retain)

    def spread(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """A publish is accepted: everyone who subscribed to it gets it."""
        self._world.note("server", topic, payload)
        if retain:
            self._retained[topic] = payload
        for client_id in self._readers_of(topic):
            connection = self._subscribed.get(client_id)
            if connection is not None:
                self._carry_down(connection, topic, payload)

    def _start(self) -> None:
        self.up = True

    def _on_publish(self, connection: Connection, topic: str, payload: bytes, retain: bool) -> None:
        if not connection.known_to_server or not self._outlives(connection):
            return
        self._world.attacker.hear(topic, payload)
        self.spread(topic, payload, retain=retain)

    def _carry_down(self, connection: Connection, topic: str, payload: bytes) -> None:
        world = self._world
        if not connection.flows or world.chance(world.weather.drop_rate, "drop"):
            return
        arrival = self._arrival(connection.last_down, topic)
        world.at(arrival, self._deliver, connection, topic, payload)
        if world.chance(world.weather.duplicate_rate, "duplicate"):
            world.at(arrival + world.random.randrange(1, 5_000), self._deliver, connection, topic, payload)

    def _deliver(self, connection: Connection, topic: str, payload: bytes) -> None:
        line = connection.line
        if connection is not line.connection or not self._outlives(connection):
            return
        self._world.delivered_count += 1
        self._world.note(line.client_id, topic, payload)
        self._world.auditor.on_delivered(line.client_id, topic, payload)
        line.on_message(topic, payload)

    def _outlives(self, connection: Connection) -> bool:
        """Does a message that was under way when the connection broke arrive all the same?"""
        return connection.flows or self._world.random.random() < 0.5

    def _notice(self, connection: Connection) -> None:
        if connection.known_to_server:
            self._close(connection, with_will=True)

    def _close(self, connection: Connection, *, with_will: bool) -> None:
        connection.known_to_server = False
        client_id = connection.line.client_id
        if self._sessions.get(client_id) is connection:
            del self._sessions[client_id]
        if self._subscribed.get(client_id) is connection:
            del self._subscribed[client_id]
        if with_will:
            topic, payload, retain = connection.will
            self._world.tally["will"] += 1
            self.spread(topic, payload, retain=retain)

    def _arrival(self, last: dict[str, int], topic: str) -> int:
        """In how many ms a message arrives: after its topic's earlier ones, but for a rare one that overtakes."""
        world = self._world
        delay = 1 + world.random.randrange(world.weather.delay_ms_max)
        now = world.now_ms
        if world.chance(world.weather.reorder_rate, "reorder"):
            return delay
        last[topic] = max(now + delay, last.get(topic, 0) + 1)
        return last[topic] - now

    def _readers_of(self, topic: str) -> list[str]:
        if topic not in self._readers:
            self._readers[topic] = [
                client_id
                for client_id, filters in sorted(self._filters.items())
                if any(matches(pattern, topic) for pattern in filters)
            ]
        return self._readers[topic]


def matches(pattern: str, topic: str) -> bool:
    """Does this topic filter cover the topic? `+` is one level (MQTT 3.1.1, section 4.7); we use no `#`."""
    levels, parts = pattern.split("/"), topic.split("/")
    return len(levels) == len(parts) and all(a in ("+", b) for a, b in zip(levels, parts, strict=True))
