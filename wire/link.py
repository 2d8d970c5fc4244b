"""The link: one program's connection to the MQTT server, kept up for ever. The only file that knows paho.

A link is one line (wire.line) in a thread of its own. It connects, subscribes, moves bytes, and reconnects after a
jittered pause; what happens it posts to its owner as events.

Four habits keep paho's faults away, each with its regression test in tests/real/test_link.py:

- a new paho client for each connection, so it has nothing to queue while offline and nothing to resend in a burst;
- at most `in_flight_max` publishes handed to it and not acknowledged yet; the others wait in our own bounded queue;
- `selectors` in place of its loop_start, whose select() ends at file descriptor 1023, and a socket that we have opened
  (wire.dial), since its own connect() waits;
- its callbacks only append to a list; all else happens outside of them, where paho holds no lock.
"""

from __future__ import annotations

import math
import selectors
import socket
import ssl
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from wire import limits
from wire.dial import Dial
from wire.line import Line
from wire.lines import Lines
from wire.link_terms import (
    FILTERS_MAX,
    QUEUE_BYTES_MAX,
    QUEUE_COUNT_MAX,
    STOPPED,
    Arrived,
    Ended,
    LinkDown,
    LinkEvent,
    LinkUp,
    Settings,
    pause_ms,
    server_of,
)
from wire.meter import Meter
from wire.server_url import Server, parse_url
from wire.waiting import Waiting

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = [
    "Arrived",
    "Line",
    "Link",
    "LinkDown",
    "LinkEvent",
    "LinkUp",
    "Server",
    "new_line",
    "parse_url",
    "pause_ms",
]

CONNECT_TIMEOUT_S: Final = 5.0  # for TCP, and again for TLS
ANSWER_TIMEOUT_S: Final = 10.0  # from CONNECT to CONNACK, and again to SUBACK
ACK_TIMEOUT_S: Final = 60.0  # a server that acknowledges nothing for so long is as good as gone
FLUSH_S: Final = 2.0
UNREAD_S: Final = 20.0  # in a crowd a line may wait so long for its turn to read, which is well within the keepalive
_TICK_S: Final = 5.0
_READS_MAX: Final = 64  # messages read before anything is written again
_FAILURE: Final = 0x80  # unspecified; all reason codes from here on are failures (MQTT 5; paho translates 3.1.1's)
_REFUSED: Final = frozenset({0x84, 0x85, 0x86, 0x87})  # protocol version, client id, password, not authorised


class Link:
    """One connection to one MQTT server, for ever: see the module.

    `url`: as `parse_url` takes it. `post`: takes the events, in the link's thread; give it a queue's `put`. `jitter`
    spreads the pauses. `meter` counts what is carried. The others: as in Settings; `will` too is called in that thread.

    What exceeds the bounds of the queue is dropped, the newest, and counted. None of it survives a disconnection.

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
        server, tls = server_of(url, ca_file, cert_file, key_file)
        login = (username, password)
        bounds = (in_flight_max, queue_count_max, queue_bytes_max)
        settings = Settings(server, client_id, tuple(filters), will, will_retain, *login, tls, *bounds)
        self._meter = meter or Meter()
        self._lines = Lines()
        self._line = new_line(settings, post=post, jitter=jitter, meter=self._meter, hurry=self._lines.hurry)
        self._thread = threading.Thread(target=self._run, name=f"link {client_id}", daemon=True)

    def start(self) -> None:
        """Start the thread: it connects, and reconnects until `stop`."""
        self._lines.hurry(self._line)
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread runs. False between `start` and `stop` is a fault of ours: restart the program."""
        return self._thread.is_alive()

    def publish(self, topic: str, payload: bytes, retain: bool = False, qos: int = 1) -> bool:
        """Hand `payload` over for sending, from any thread; False, and counted, when there is no connection for it.

        Raises ValueError for a payload above PAYLOAD_BYTES_MAX: some server on the way would answer it by cutting
        the connection, after each resend again.
        """
        return self._line.publish(topic, payload, retain, qos)

    def stop(self) -> None:
        """Send what waits (for at most FLUSH_S), say goodbye so that no will is published, and end the thread.

        Takes no lock of the link; may be called twice, and without `start`.
        """
        self._line.stop()
        if self._thread.ident is None:
            self._lines.close()
        elif self._thread is not threading.current_thread():
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
        return self._line.dropped

    @property
    def reconnects(self) -> int:
        """How often the link came up again."""
        return max(0, self._meter.connections - 1)

    def _run(self) -> None:
        while not self._line.is_over:
            self._lines.turn()
        self._lines.close()


def new_line(
    settings: Settings,
    *,
    post: Callable[[LinkEvent], None],
    jitter: random.Random,
    hurry: Callable[[Line], None],
    meter: Meter,
) -> Line:
    """Make a line for the loop whose `hurry` this is. `post` and `will` are called within its steps.

    Raises ValueError, one line.
    """
    if not 1 <= len(settings.filters) <= FILTERS_MAX:
        raise ValueError(f"a link subscribes to 1 to {FILTERS_MAX} filters, not {len(settings.filters)}")
    waiting = Waiting(settings.queue_count_max, settings.queue_bytes_max)
    return Line(waiting, partial(Connection, settings, meter, post), post=post, jitter=jitter, hurry=hurry)


class Connection:
    """One paho client, from the call of its server to its end."""

    def __init__(self, settings: Settings, meter: Meter, post: Callable[[LinkEvent], None], waiting: Waiting) -> None:
        self.up_since_s: float | None = None
        self._settings = settings
        self._waiting = waiting
        self._meter = meter
        self._post = post
        self._dial: Dial | None = None
        self._client: Client | None = None
        self._sock: socket.socket | None = None
        self._inbox: list[tuple[str, Any]] = []  # what paho's callbacks appended
        self._in_flight: dict[int, tuple[float, str]] = {}  # packet id → when handed to paho, its kind; oldest first
        self._early: list[Arrived] = []  # what came before SUBACK
        self._ended: Ended | None = None
        self._answer_until_s = math.inf
        self._flush_until_s = 0.0
        self._tick_s = 0.0
        self._read_s = 0.0

    @property
    def sock(self) -> socket.socket | None:
        """The socket of the call, then of the client; None once it is closed."""
        if self._client is not None:
            return self._sock if self._client.socket() is not None else None
        return self._dial.sock if self._dial is not None else None

    @property
    def wanted(self) -> int:
        """Events to watch it for."""
        if self._client is not None:
            return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._client.want_write() else 0)
        return self._dial.wanted if self._dial is not None else 0

    def due_s(self, *, stopping: bool) -> float:
        """When the next step must be taken even if nothing happens."""
        if self._client is None:
            return 0.0 if stopping or self._dial is None else self._dial.until_s
        if self._client.socket() is None or self._has_buffered() or (stopping and not self._flush_until_s):
            return 0.0
        return min(self._tick_s, self._flush_until_s if stopping else math.inf, self._answer_until_s)

    def step(self, ready: int, now_s: float, *, stopping: bool) -> Ended | None:
        """Go on as far as is possible now; why it has ended, if it has."""
        if self._client is None:
            try:
                self._connect(now_s)
            except (OSError, ValueError) as error:  # ValueError: a certificate that is being renewed, a host no name
                sentence = getattr(error, "strerror", None) or str(error)
                return Ended(f"cannot connect to {self._settings.where}: {sentence}")
            ready = 0
        if self._client is None:
            return STOPPED if stopping else None
        return self._serve(self._client, ready, now_s, stopping=stopping)

    def close(self, now_s: float) -> float:
        """Let go of everything; for how many seconds it had been up, more than 0 if it ever was."""
        if self._sock is not None:
            self._meter.look(self._sock)
            self._sock.close()
        elif self._dial is not None:
            self._dial.close()
        return 0.0 if self.up_since_s is None else max(now_s - self.up_since_s, 1e-9)

    def _connect(self, now_s: float) -> None:
        settings = self._settings
        if self._dial is None:
            tls = settings.tls() if settings.tls is not None else None
            self._dial = Dial(settings.server, tls, CONNECT_TIMEOUT_S, now_s)
        self._dial.step(now_s)
        if self._dial.is_open:
            self._sock, self._dial = self._dial.sock, None
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._client = self._new_client(self._sock)
            self._meter.on_connection()
            self._answer_until_s = now_s + ANSWER_TIMEOUT_S

    def _new_client(self, sock: socket.socket) -> Client:
        """A paho client that has written its CONNECT to `sock`."""
        settings, note = self._settings, self._inbox.append
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(settings.in_flight_max)
        client.on_connect = lambda _client, _data, _flags, code, _properties: note(("connack", code))
        client.on_subscribe = lambda _client, _data, _mid, codes, _properties: note(("suback", codes))
        client.on_publish = lambda _client, _data, mid, _code, _properties: note(("puback", mid))
        client.on_message = lambda _client, _data, message: note(("publish", message))
        client.on_disconnect = lambda _client, _data, _flags, code, _properties: note(("end", code))
        if settings.username is not None:
            client.username_pw_set(settings.username, settings.password)
        if settings.will is not None:
            topic, payload = settings.will()
            client.will_set(topic, payload, qos=1, retain=settings.will_retain)
        # paho has no other place for a socket of ours; test_link.py holds it to this one
        client._create_socket = lambda: sock  # type: ignore[method-assign]  # noqa: SLF001
        client.connect(settings.server.host, settings.server.port, keepalive=limits.KEEPALIVE_S)
        return client

    def _serve(self, client: Client, ready: int, now_s: float, *, stopping: bool) -> Ended | None:
        self._move(client, ready, now_s)
        self._tick_s = now_s + _TICK_S
        self._read_inbox(client, now_s)
        if self._ended is not None:
            return self._ended
        if client.socket() is None or self._sock is None:
            return self._lost("closed by the server or the network")
        self._meter.look(self._sock)
        if now_s > self._answer_until_s:
            return Ended(f"{self._settings.where} does not answer as an MQTT server does; is it the right port?")
        if self._in_flight and now_s - next(iter(self._in_flight.values()))[0] > ACK_TIMEOUT_S:
            return Ended(f"{self._settings.where} acknowledged nothing for {ACK_TIMEOUT_S:.0f} s")
        if stopping:
            self._flush_until_s = self._flush_until_s or now_s + FLUSH_S
            idle = self._waiting.is_empty() and not self._in_flight
            if idle or now_s > self._flush_until_s or self.up_since_s is None:
                client.disconnect()
                return STOPPED
        self._hand_over(client, now_s)
        return None

    def _move(self, client: Client, ready: int, now_s: float) -> None:
        """Let paho read and write what can be read and written.

        In a crowd, answers may wait in the socket while this line waits for its turn. They are no silence, so nobody is
        given up, by paho either, before what is there has been read.
        """
        is_late = now_s >= min(self._read_s + UNREAD_S, self._answer_until_s)
        if ready & selectors.EVENT_READ or is_late or self._has_buffered():
            self._read_s = now_s
            self._read(client)
        if ready & selectors.EVENT_WRITE:
            client.loop_write()
        client.loop_misc()

    def _has_buffered(self) -> bool:
        """Does TLS hold decrypted bytes of a record already read? No selector sees those."""
        return isinstance(self._sock, ssl.SSLSocket) and self._sock.fileno() >= 0 and self._sock.pending() > 0

    def _read(self, client: Client) -> None:
        """Read while messages come: paho reads one at a time and does not say whether there are more."""
        for _ in range(_READS_MAX):
            before = len(self._inbox)
            client.loop_read()
            if len(self._inbox) == before or client.socket() is None:
                return

    def _read_inbox(self, client: Client, now_s: float) -> None:
        while self._inbox and self._ended is None:
            match self._inbox.pop(0):
                case ("publish", message):
                    self._on_message(message)
                case ("puback", mid):
                    if mid in self._in_flight:
                        self._meter.on_puback(self._in_flight.pop(mid)[1])
                case ("connack", code):
                    self._on_connack(client, code, now_s)
                case ("suback", codes):
                    self._on_suback(codes, now_s)
                case ("end", code):
                    silent = code.value == _FAILURE  # "Unspecified error": paho saw the socket close
                    self._ended = self._lost("closed by the server or the network" if silent else str(code))

    def _on_connack(self, client: Client, code: Any, now_s: float) -> None:
        if code.value >= _FAILURE:
            refused = code.value in _REFUSED
            self._ended = Ended(f"{self._settings.where} refused {self._settings.client_id!r}: {code}", refused)
        else:
            self._answer_until_s = now_s + ANSWER_TIMEOUT_S
            client.subscribe([(filter_, 1) for filter_ in self._settings.filters])

    def _on_suback(self, codes: Sequence[Any], now_s: float) -> None:
        if any(code.value >= _FAILURE for code in codes):
            topics = ", ".join(self._settings.filters)
            self._ended = Ended(f"{self._settings.where} refused the subscription to {topics}", refused=True)
            return
        self.up_since_s, self._answer_until_s = now_s, math.inf
        self._meter.connections += 1
        self._waiting.open()  # first, so that what the owner publishes on LinkUp is not dropped
        self._post(LinkUp())
        for arrived in self._early:
            self._post(arrived)
        self._early.clear()

    def _on_message(self, message: Any) -> None:
        try:
            arrived = Arrived(message.topic, bytes(message.payload), bool(message.retain))
        except UnicodeDecodeError:
            return  # a topic that is not UTF-8 is none of ours
        if len(arrived.payload) > limits.PAYLOAD_BYTES_MAX:
            return  # counted nowhere, kept nowhere: no message of the contract is so large
        self._meter.on_arrived(arrived.topic, arrived.payload, message.qos)
        if self.up_since_s is None:
            self._early.append(arrived)
        else:
            self._post(arrived)

    def _hand_over(self, client: Client, now_s: float) -> None:
        while self.up_since_s is not None and len(self._in_flight) < self._settings.in_flight_max:
            outgoing = None if client.want_write() else self._waiting.take()
            if outgoing is None:
                return
            topic, payload, retain, qos = outgoing
            info = client.publish(topic, payload, qos=qos, retain=retain)
            kind = self._meter.on_publish(topic, payload, qos)
            if qos:  # else it is as good as sent, and what the socket does not take yet holds the others back
                self._in_flight[info.mid] = (now_s, kind)
            if client.socket() is None:
                return

    def _lost(self, how: str) -> Ended:
        if self.up_since_s is None:
            hint = "is it an MQTT server, with TLS exactly when the URL says mqtts? Is our certificate revoked or over?"
            return Ended(f"{self._settings.where} ended the connection without an answer ({how}): {hint}")
        return Ended(f"the connection to {self._settings.where} ended: {how}")
