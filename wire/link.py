"""The link: one program's connection to the MQTT server, kept up for ever. The only file that knows paho.

A link has one thread. It connects, subscribes, moves bytes, and reconnects after a jittered pause; what happens it
posts to its owner as events. It decides nothing and remembers nothing: what must arrive is sent again by the state
machines when a receipt fails to come.

                     refused, no answer, lost
           +------------------------------------------+
           v                                          |
        waiting --pause over--> connecting --SUBACK--> up
        LinkDown                                       LinkUp, Arrived ...

Four habits keep paho's faults away, each with its regression test in tests/real/test_link.py:

- a new paho client for each connection, so it has nothing to queue while offline and nothing to resend in a burst;
- at most `in_flight_max` publishes handed to it and not acknowledged yet; the others wait in our own bounded queue;
- `selectors` in place of its loop_start, whose select() ends at file descriptor 1023;
- its callbacks only append to a list; all else happens outside of them, where paho holds no lock.
"""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from wire import limits
from wire.meter import Meter
from wire.server_url import Server, parse_url, tls_context
from wire.waiting import Outgoing, Waiting

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["Arrived", "Link", "LinkDown", "LinkEvent", "LinkUp", "Server", "parse_url", "pause_ms"]

FILTERS_MAX: Final = 8  # what AWS IoT takes in one SUBSCRIBE
QUEUE_COUNT_MAX: Final = 1024
QUEUE_BYTES_MAX: Final = 8 * 1024 * 1024
CONNECT_TIMEOUT_S: Final = 5.0  # for TCP, and again for TLS
ANSWER_TIMEOUT_S: Final = 10.0  # from CONNECT to SUBACK
ACK_TIMEOUT_S: Final = 60.0  # a server that acknowledges nothing for so long is as good as gone
LASTED_S: Final = 20.0  # a connection that lived so long makes the next pause short again
REFUSED_PAUSE_MS_MIN: Final = 60_000  # wrong credentials do not mend themselves in a second
FLUSH_S: Final = 2.0
_TICK_S: Final = 5.0
_READS_MAX: Final = 64  # messages read before anything is written again
_FAILURE: Final = 0x80  # unspecified; all reason codes from here on are failures (MQTT 5; paho translates 3.1.1's)
_REFUSED: Final = frozenset({0x84, 0x85, 0x86, 0x87})  # protocol version, client id, password, not authorised


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Connected, and every filter is subscribed: the answer to anything published from now on cannot be missed."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """No connection, for this reason. Posted when a connection ends or the reason changes, not for each attempt."""

    reason: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message, always after the LinkUp of its connection. `retain`: kept from before our subscription."""

    topic: str
    payload: bytes
    retain: bool


LinkEvent: TypeAlias = LinkUp | LinkDown | Arrived


def pause_ms(jitter: random.Random, failures: int, *, refused: bool) -> int:
    """Full jitter: anything from 0 to a ceiling that doubles with each failure. Refusals wait a minute or more."""
    if refused:
        return jitter.randint(REFUSED_PAUSE_MS_MIN, limits.RECONNECT_MS_MAX)
    return jitter.randint(0, min(limits.RECONNECT_MS_MAX, limits.RECONNECT_MS_MIN << min(failures, 20)))


class Link:
    """One connection to one MQTT server, for ever: see the module.

    `url`: as `parse_url` takes it. `filters`: 1 to 8, all at QoS 1. `will`: called in the link's thread before each
    attempt to connect, for the (topic, payload) that the server publishes should it end without our goodbye;
    `will_retain`: and then keeps for those who subscribe later. `meter` counts what is carried.
    `post`: takes the events, in the link's thread; give it a queue's `put`. `jitter` spreads the pauses.

    What waits is bounded by `queue_count_max` messages and `queue_bytes_max` bytes of payload; beyond either the
    newest is dropped and counted. None of it survives a disconnection.

    Raises ValueError, one line, for settings that cannot work.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        filters: Sequence[str],
        will: Callable[[], tuple[str, bytes]] | None,
        post: Callable[[LinkEvent], None],
        jitter: random.Random,
        will_retain: bool = False,
        username: str | None = None,
        password: str | None = None,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        in_flight_max: int = limits.IN_FLIGHT_MAX,
        queue_count_max: int = QUEUE_COUNT_MAX,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        meter: Meter | None = None,
    ) -> None:
        server = parse_url(url)
        if not 1 <= len(filters) <= FILTERS_MAX:
            raise ValueError(f"a link subscribes to 1 to {FILTERS_MAX} filters, not {len(filters)}")
        files = (ca_file, cert_file, key_file)
        if any(files) and not server.tls:
            raise ValueError(f"{url} is without TLS, but certificates are given: write mqtts://, or leave them out")
        if server.tls:
            tls_context(*files)  # now, so that a missing file is the caller's error and no reason to retry
        self._settings = _Settings(
            server, client_id, tuple(filters), will, will_retain, post, username, password, files, in_flight_max
        )
        self._jitter = jitter
        self._waiting = Waiting(queue_count_max, queue_bytes_max)
        self._meter = meter or Meter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"link {client_id}", daemon=True)

    def start(self) -> None:
        """Start the thread: it connects, and reconnects until `stop`."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread runs. False between `start` and `stop` is a fault of ours: restart the program."""
        return self._thread.is_alive()

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Hand `payload` over for sending at QoS 1, from any thread; dropped and counted when there is no connection.

        Raises ValueError for a payload above PAYLOAD_BYTES_MAX: some server on the way would answer it by cutting
        the connection, after each resend again.
        """
        if len(payload) > limits.PAYLOAD_BYTES_MAX:
            raise ValueError(f"{len(payload)} bytes for {topic}: {limits.PAYLOAD_BYTES_MAX} fit into one message")
        self._waiting.put(Outgoing(topic, payload, retain))

    def stop(self) -> None:
        """Send what waits (for at most FLUSH_S), say goodbye so that no will is published, and end the thread.

        Takes no lock of the link; may be called twice, and without `start`.
        """
        self._stop.set()
        if self._thread.ident is None:
            self._waiting.release()
            return
        self._waiting.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(2 * CONNECT_TIMEOUT_S + FLUSH_S)

    @property
    def bytes_up(self) -> int:
        """Bytes of PUBLISH and PUBACK packets sent, as MQTT writes them: without TCP and TLS."""
        return self._meter.bytes_sent

    @property
    def bytes_down(self) -> int:
        """Bytes of PUBLISH and PUBACK packets received."""
        return self._meter.bytes_received

    @property
    def dropped(self) -> int:
        """Publishes never handed to a connection: there was none, or no room."""
        return self._waiting.dropped

    @property
    def reconnects(self) -> int:
        """How often the link came up again."""
        return max(0, self._meter.connections - 1)

    def _run(self) -> None:
        failures = 0
        last_reason = ""
        with selectors.DefaultSelector() as selector:
            selector.register(self._waiting.wake_socket, selectors.EVENT_READ)
            while not self._stop.is_set():
                connection = _Connection(self._settings, self._waiting, self._meter, self._stop)
                ended, up_s = connection.live(selector)
                self._waiting.close()
                if self._stop.is_set():
                    break
                if up_s > 0.0 or ended.reason != last_reason:
                    self._settings.post(LinkDown(ended.reason))
                last_reason = ended.reason
                failures = 0 if up_s >= LASTED_S else failures + 1
                self._rest(selector, pause_ms(self._jitter, failures, refused=ended.refused) / 1000)
        self._waiting.release()

    def _rest(self, selector: selectors.BaseSelector, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            selector.select(left)
            self._waiting.drain_wake()


class _Settings(NamedTuple):
    server: Server
    client_id: str
    filters: tuple[str, ...]
    will: Callable[[], tuple[str, bytes]] | None
    will_retain: bool
    post: Callable[[LinkEvent], None]
    username: str | None
    password: str | None
    files: tuple[Path | None, Path | None, Path | None]
    in_flight_max: int

    @property
    def where(self) -> str:
        return f"{self.server.host}:{self.server.port}"


class _Ended(NamedTuple):
    """Why a connection ended. `refused`: something that only an operator can mend."""

    reason: str
    refused: bool = False


class _Connection:
    """One paho client, from its CONNECT to its end."""

    def __init__(self, settings: _Settings, waiting: Waiting, meter: Meter, stop: threading.Event) -> None:
        self._settings = settings
        self._waiting = waiting
        self._meter = meter
        self._stop = stop
        self._inbox: collections.deque[tuple[str, Any]] = collections.deque()  # what paho's callbacks appended
        self._in_flight: dict[int, tuple[float, str]] = {}  # packet id → when handed to paho, its kind; oldest first
        self._early: list[Arrived] = []  # what came before SUBACK
        self._up_since: float | None = None
        self._ended: _Ended | None = None

    def live(self, selector: selectors.BaseSelector) -> tuple[_Ended, float]:
        """Connect, serve until the end; return why it ended and for how many seconds it had been up."""
        try:
            client, sock = self._connect()
        except (
            OSError,
            ValueError,
        ) as error:  # ValueError: a certificate that is being renewed, a host that is no name
            sentence = getattr(error, "strerror", None) or str(error)
            return _Ended(f"cannot connect to {self._settings.where}: {sentence}"), 0.0
        selector.register(sock, selectors.EVENT_READ)
        self._meter.on_connection()
        try:
            ended = self._serve(client, sock, selector)
        finally:
            self._meter.look(sock)
            with contextlib.suppress(KeyError, ValueError):
                selector.unregister(sock)
            sock.close()
        return ended, 0.0 if self._up_since is None else time.monotonic() - self._up_since

    def _connect(self) -> tuple[Client, socket.socket]:
        settings = self._settings
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(settings.in_flight_max)
        client.on_connect = lambda _client, _data, _flags, code, _properties: self._inbox.append(("connack", code))
        client.on_subscribe = lambda _client, _data, _mid, codes, _properties: self._inbox.append(("suback", codes))
        client.on_publish = lambda _client, _data, mid, _code, _properties: self._inbox.append(("puback", mid))
        client.on_message = lambda _client, _data, message: self._inbox.append(("publish", message))
        client.on_disconnect = lambda _client, _data, _flags, code, _properties: self._inbox.append(("end", code))
        if settings.username is not None:
            client.username_pw_set(settings.username, settings.password)
        if settings.server.tls:
            client.tls_set_context(tls_context(*settings.files))
        if settings.will is not None:
            topic, payload = settings.will()
            client.will_set(topic, payload, qos=1, retain=settings.will_retain)
        client.connect(settings.server.host, settings.server.port, keepalive=limits.KEEPALIVE_S)
        sock = cast("socket.socket | None", client.socket())
        if sock is None:  # the first write failed already
            raise ConnectionResetError("the connection ended before the first byte")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, sock

    def _serve(self, client: Client, sock: socket.socket, selector: selectors.BaseSelector) -> _Ended:
        answer_until = time.monotonic() + ANSWER_TIMEOUT_S
        flush_until = 0.0
        while True:
            self._move(client, sock, selector)
            self._read_inbox(client)
            self._meter.look(sock)
            if self._ended is not None:
                return self._ended
            now = time.monotonic()
            if client.socket() is None:
                return self._lost("closed by the server or the network")
            if self._up_since is None and now > answer_until:
                return _Ended(f"{self._settings.where} does not answer as an MQTT server does; is it the right port?")
            if self._in_flight and now - next(iter(self._in_flight.values()))[0] > ACK_TIMEOUT_S:
                return _Ended(f"{self._settings.where} acknowledged nothing for {ACK_TIMEOUT_S:.0f} s")
            if self._stop.is_set():
                flush_until = flush_until or now + FLUSH_S
                idle = self._waiting.is_empty() and not self._in_flight
                if idle or now > flush_until or self._up_since is None:
                    client.disconnect()
                    return _Ended("stopped")
            self._hand_over(client)

    def _move(self, client: Client, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        """Wait until something can be read or written, and let paho do it."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.want_write() else 0)
        if client.socket() is None:
            return
        if selector.get_key(sock).events != wanted:
            selector.modify(sock, wanted)
        # TLS may hold decrypted bytes of a record already read: no selector sees those.
        buffered = self._settings.server.tls and sock.pending() > 0  # type: ignore[attr-defined]
        hurried = self._up_since is None or self._stop.is_set()
        ready = {key.fileobj: mask for key, mask in selector.select(0 if buffered else 0.1 if hurried else _TICK_S)}
        if self._waiting.wake_socket in ready:
            self._waiting.drain_wake()
        if buffered or ready.get(sock, 0) & selectors.EVENT_READ:
            self._read(client)
        if ready.get(sock, 0) & selectors.EVENT_WRITE:
            client.loop_write()
        client.loop_misc()

    def _read(self, client: Client) -> None:
        """Read while messages come: paho reads one at a time and does not say whether there are more."""
        for _ in range(_READS_MAX):
            before = len(self._inbox)
            client.loop_read()
            if len(self._inbox) == before or client.socket() is None:
                return

    def _read_inbox(self, client: Client) -> None:
        while self._inbox and self._ended is None:
            match self._inbox.popleft():
                case ("publish", message):
                    self._on_message(message)
                case ("puback", mid):
                    if mid in self._in_flight:
                        self._meter.on_puback(self._in_flight.pop(mid)[1])
                case ("connack", code):
                    self._on_connack(client, code)
                case ("suback", codes):
                    self._on_suback(codes)
                case ("end", code):
                    silent = code.value == _FAILURE  # "Unspecified error": paho saw the socket close
                    self._ended = self._lost("closed by the server or the network" if silent else str(code))

    def _on_connack(self, client: Client, code: Any) -> None:
        if code.value >= _FAILURE:
            refused = code.value in _REFUSED
            self._ended = _Ended(f"{self._settings.where} refused {self._settings.client_id!r}: {code}", refused)
        else:
            client.subscribe([(filter_, 1) for filter_ in self._settings.filters])

    def _on_suback(self, codes: Sequence[Any]) -> None:
        if any(code.value >= _FAILURE for code in codes):
            topics = ", ".join(self._settings.filters)
            self._ended = _Ended(f"{self._settings.where} refused the subscription to {topics}", refused=True)
            return
        self._up_since = time.monotonic()
        self._meter.connections += 1
        self._waiting.open()  # first, so that what the owner publishes on LinkUp is not dropped
        self._settings.post(LinkUp())
        for arrived in self._early:
            self._settings.post(arrived)
        self._early.clear()

    def _on_message(self, message: Any) -> None:
        try:
            arrived = Arrived(message.topic, bytes(message.payload), bool(message.retain))
        except UnicodeDecodeError:
            return  # a topic that is not UTF-8 is none of ours
        if len(arrived.payload) > limits.PAYLOAD_BYTES_MAX:
            return  # counted nowhere, kept nowhere: no message of the contract is so large
        self._meter.on_arrived(arrived.topic, arrived.payload, message.qos)
        if self._up_since is None:
            self._early.append(arrived)
        else:
            self._settings.post(arrived)

    def _hand_over(self, client: Client) -> None:
        while self._up_since is not None and len(self._in_flight) < self._settings.in_flight_max:
            outgoing = self._waiting.take()
            if outgoing is None:
                return
            info = client.publish(outgoing.topic, outgoing.payload, qos=1, retain=outgoing.retain)
            self._in_flight[info.mid] = (time.monotonic(), self._meter.on_publish(outgoing.topic, outgoing.payload))
            if client.socket() is None:
                return

    def _lost(self, how: str) -> _Ended:
        if self._up_since is None:
            hint = "is it an MQTT server, and with TLS exactly when the URL says mqtts?"
            return _Ended(f"{self._settings.where} ended the connection without an answer ({how}): {hint}")
        return _Ended(f"the connection to {self._settings.where} ended: {how}")
