"""The fake MQTT server: sessions, QoS 1, retained messages, wills, and queues that drop with a success code.

As mosquitto does it (docs of MQTT 3.1.1, sections 3.1.2.4, 3.3.1.3, 4.3.2, 4.6): one session a client id, the older
connection is taken over; at most `in_flight_max` messages under way to a client and `queue_max` behind them, beyond
which what comes is dropped although its publisher was told that all is well; a session that is kept gets what came
meanwhile, and again what may not have arrived. What was under way when a connection broke is lost or not, by coin.
Within one topic the order holds, mostly; between topics there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firmware_sim.link import Connection
from wire.limits import KEEPALIVE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from firmware_sim.link import Line
    from firmware_sim.world import World

KEEPALIVE_MS: Final = KEEPALIVE_S * 1000
NOTICE_MS_MAX: Final = 1_000
_READERS: Final = ""  # no topic level is empty here, so the empty key of a branch holds who reads there


class Filters:
    """Who reads which topics, as a tree of levels; `+` is any one level (section 4.7), and we use no `#`."""

    def __init__(self) -> None:
        self._tree: dict[str, Any] = {}
        self._known: dict[str, list[str]] = {}  # topic → its readers, in the order in which they first subscribed

    def add(self, client_id: str, filters: Sequence[str]) -> None:
        """Subscribe."""
        for pattern in filters:
            branch = self._tree
            for level in pattern.split("/"):
                branch = branch.setdefault(level, {})
            branch.setdefault(_READERS, []).append(client_id)
        self._known.clear()

    def readers(self, topic: str) -> list[str]:
        """The client ids whose filters cover this topic."""
        found = self._known.get(topic)
        if found is None:
            branches = [self._tree]
            for level in topic.split("/"):
                branches = [branch[way] for branch in branches for way in (level, "+") if way in branch]
            found = self._known[topic] = [name for branch in branches for name in branch.get(_READERS, ())]
        return found


class Server:
    """One MQTT server. `on_publish(topic, payload, retain)`, if given, sees all that is accepted, as a bridge does."""

    def __init__(self, world: World, name: str, on_publish: Callable[[str, bytes, bool], None] | None = None) -> None:
        self.name = name
        self.up = True
        self._world = world
        self._on_publish_too = on_publish
        self._connections: dict[str, Connection] = {}
        self._subscribed: dict[str, Connection] = {}
        self._retained: dict[str, bytes] = {}
        self._filters = Filters()
        self._readers: set[str] = set()  # client ids that ever subscribed
        self._kept: dict[str, dict[tuple[str, bytes], None]] = {}  # of sessions that are kept: what is owed, in order

    def accept(self, line: Line, will: tuple[str, bytes, bool] | None) -> Connection:
        """Open a session; an older connection of the same client id is taken over."""
        world = self._world
        old = self._connections.get(line.client_id)
        if old is not None:
            old.flows = False
            self._close(old, with_will=world.chance(world.weather.takeover_will_rate, "takeover_will"))
        connection = self._connections[line.client_id] = Connection(line, will)
        world.note(self.name, f"accepts {line.client_id}")
        return connection

    def subscribe(self, connection: Connection) -> None:
        """Grant the filters; deliver what the session kept, and what is retained under them."""
        if not connection.known_to_server:
            return
        line = connection.line
        self._subscribed[line.client_id] = connection
        if line.client_id not in self._readers:
            self._readers.add(line.client_id)
            self._filters.add(line.client_id, line.filters)
        if line.keeps_session:
            owed = self._kept.setdefault(line.client_id, {})
            for topic, payload in list(owed):
                self._carry_down(connection, topic, payload)
        for topic, payload in self._retained.items():
            if any(matches(pattern, topic) for pattern in line.filters):
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
        world.at(mine + world.draw(NOTICE_MS_MAX + mine), connection.line.drop, connection)
        world.at(server + world.draw(NOTICE_MS_MAX + server // 2), self._notice, connection)

    def restart(self, down_ms: int, *, keep_retained: bool, keep_sessions: bool) -> None:
        """Die without a will for anybody, and come back."""
        self.up = False
        if not keep_retained:
            self._retained.clear()
        if not keep_sessions:
            self._kept.clear()
        connections, self._connections, self._subscribed = list(self._connections.values()), {}, {}
        for connection in connections:
            connection.flows = connection.known_to_server = False
            self._world.at(self._world.draw(NOTICE_MS_MAX), connection.line.drop, connection)
        self._world.at(down_ms, self._start)

    def carry_up(
        self,
        connection: Connection,
        topic: str,
        payload: bytes,
        *,
        retain: bool,
        acknowledged: Callable[[], object] | None = None,
    ) -> None:
        """Bring a publish from a program to the server, or lose it. Its PUBACK calls `acknowledged`."""
        world = self._world
        if not connection.flows or world.chance(world.weather.drop_rate, "drop"):
            return
        arrival = self._arrival(connection, connection.last_up, topic, len(payload))
        world.at(arrival, self._on_publish, connection, topic, payload, retain, acknowledged)
        if world.chance(world.weather.duplicate_rate, "duplicate"):
            world.at(arrival + 1 + world.draw(5_000), self._on_publish, connection, topic, payload, retain, None)

    def spread(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """A publish is accepted: everyone who subscribed to it gets it."""
        self._world.note(self.name, topic, payload)
        if retain:
            self._retained[topic] = payload
        if self._on_publish_too is not None:
            self._on_publish_too(topic, payload, retain)
        for client_id in self._filters.readers(topic):
            connection = self._subscribed.get(client_id)
            if client_id in self._kept:
                self._keep(client_id, topic, payload)
            if connection is not None:
                self._carry_down(connection, topic, payload)

    def _start(self) -> None:
        self.up = True

    def _on_publish(
        self,
        connection: Connection,
        topic: str,
        payload: bytes,
        retain: bool,
        acknowledged: Callable[[], object] | None,
    ) -> None:
        if not connection.known_to_server or not self._outlives(connection):
            return
        if self is self._world.server:
            self._world.attacker.hear(topic, payload)
        self.spread(topic, payload, retain=retain)
        if acknowledged is not None and connection.flows:
            acknowledged()

    # To a program

    def _keep(self, client_id: str, topic: str, payload: bytes) -> None:
        """Owe a message to a session that is kept, until it has arrived."""
        owed = self._kept[client_id]
        if len(owed) < self._world.weather.queue_max:
            owed[topic, payload] = None
        else:
            self._world.happens("queue_full")

    def _carry_down(self, connection: Connection, topic: str, payload: bytes) -> None:
        world = self._world
        if not connection.flows or world.chance(world.weather.drop_rate, "drop"):
            return
        if connection.in_flight < world.weather.in_flight_max:
            self._send(connection, topic, payload)
        elif len(connection.waiting) < world.weather.queue_max:
            connection.waiting.append((topic, payload))
        else:
            world.happens("queue_full")

    def _send(self, connection: Connection, topic: str, payload: bytes) -> None:
        world = self._world
        connection.in_flight += 1
        arrival = self._arrival(connection, connection.last_down, topic, len(payload))
        world.at(arrival, self._arrive, connection, topic, payload)
        if world.chance(world.weather.duplicate_rate, "duplicate"):
            world.at(arrival + 1 + world.draw(5_000), self._deliver, connection, topic, payload)

    def _arrive(self, connection: Connection, topic: str, payload: bytes) -> None:
        """The end of a message's way, which leaves room for one that waits."""
        connection.in_flight -= 1
        if connection.waiting and connection.flows:
            self._send(connection, *connection.waiting.popleft())
        self._deliver(connection, topic, payload)

    def _deliver(self, connection: Connection, topic: str, payload: bytes) -> None:
        line = connection.line
        if connection is not line.connection or not self._outlives(connection):
            return
        if line.keeps_session and connection.flows:  # else its PUBACK is lost, and it comes again
            self._kept.get(line.client_id, {}).pop((topic, payload), None)
        self._world.delivered_count += 1
        self._world.note(line.client_id, topic, payload)
        self._world.auditor.on_delivered(line.client_id, topic, payload)
        line.on_message(topic, payload)

    def _outlives(self, connection: Connection) -> bool:
        """Does a message that was under way when the connection broke arrive all the same?"""
        return connection.flows or self._world.random.random() < 0.5

    # The end of a connection

    def _notice(self, connection: Connection) -> None:
        if connection.known_to_server:
            self._close(connection, with_will=True)

    def _close(self, connection: Connection, *, with_will: bool) -> None:
        connection.known_to_server = False
        client_id = connection.line.client_id
        if self._connections.get(client_id) is connection:
            del self._connections[client_id]
        if self._subscribed.get(client_id) is connection:
            del self._subscribed[client_id]
        if with_will and connection.will is not None:
            topic, payload, retain = connection.will
            self._world.tally["will"] += 1
            self.spread(topic, payload, retain=retain)

    def _arrival(self, connection: Connection, last: dict[str, int], topic: str, size: int) -> int:
        """In how many ms a message arrives: after its topic's earlier ones, but for a rare one that overtakes."""
        world = self._world
        now = world.now_ms
        delay = 1 + world.draw(world.weather.delay_ms_max)
        if connection.line.bytes_per_s:
            begins = max(now, connection.busy_until_ms)
            connection.busy_until_ms = begins + size * 1000 // connection.line.bytes_per_s
            delay += connection.busy_until_ms - now
        if world.chance(world.weather.reorder_rate, "reorder"):
            return delay
        at = now + delay
        before = last.get(topic, 0)
        last[topic] = at = at if at > before else before + 1
        return at - now


def matches(pattern: str, topic: str) -> bool:
    """Does this topic filter cover the topic?"""
    levels, parts = pattern.split("/"), topic.split("/")
    return len(levels) == len(parts) and all(a in ("+", b) for a, b in zip(levels, parts, strict=True))
