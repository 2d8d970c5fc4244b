"""One MQTT 3.1.1 connection that does exactly what it is told: what the doctor probes a server with.

The link of our programs would not do: it refuses large payloads, reads all the time, says goodbye and comes back by
itself. This one can be silent, stand still, be cut without a goodbye, and tells what the server acknowledged. It is
for probing alone, knows QoS 1 and clean sessions, and speaks by the packets of the standard (OASIS MQTT 3.1.1,
chapter 3).
"""

from __future__ import annotations

import collections
import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from wire.server_url import parse_url, tls_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

ANSWER_S: Final = 8.0  # what a server may take for an answer
PACKET_BYTES_MAX: Final = 4 << 20
# the upper half of a packet's first byte
_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _SUBSCRIBE, _SUBACK, _DISCONNECT = 1, 2, 3, 4, 8, 9, 14
_QOS_1: Final = 2  # as flag bits
_RETAIN: Final = 1
_REFUSED: Final = 0x80
_REASONS: Final = {1: "protocol version", 2: "client id", 3: "unavailable", 4: "bad password", 5: "not authorised"}


class LostError(Exception):
    """The server refused us, or the connection ended; the sentence says how."""


class Access(NamedTuple):
    """Where an MQTT server is, and who we are there."""

    url: str
    username: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @property
    def is_anonymous(self) -> bool:
        """Whether anyone could do the same."""
        return self.username is None and self.cert_file is None

    def check(self) -> None:
        """Raise ValueError, one line, for what can never work."""
        files = (self.ca_file, self.cert_file, self.key_file)
        if parse_url(self.url).tls:
            tls_context(*files)
        elif any(files):
            raise ValueError(
                f"{self.url} is without TLS, but certificates are given: write mqtts://, or leave them out"
            )


class Message(NamedTuple):
    """A message that arrived."""

    topic: str
    payload: bytes
    retain: bool


class RawMqtt:
    """Connected from the start. Raises LostError or OSError. As a context it ends with a goodbye."""

    def __init__(self, access: Access, client_id: str, *, will: Message | None = None, keepalive_s: int = 60) -> None:
        self._sock = _connected(access)
        self._buffer = bytearray()
        self._inbox: collections.deque[Message] = collections.deque()
        self._unacknowledged: set[int] = set()
        self._packet_id = 0
        self._answers: dict[int, bytes] = {}  # the last packet of each kind that answers one of ours
        try:
            self._greet(_connect(access, client_id, will, keepalive_s))
        except (LostError, OSError):
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def subscribe(self, *filters: str) -> None:
        """Subscribe at QoS 1; LostError when one is refused."""
        body = b"".join(_text(filter_) + b"\x01" for filter_ in filters)
        self._send(_SUBSCRIBE << 4 | 2, self._next_id() + body)
        granted = self._answer(_SUBACK)[2:]
        if any(code >= _REFUSED for code in granted):
            raise LostError(f"it refused the subscription to {', '.join(filters)}")

    def publish(self, topic: str, *payloads: bytes, retain: bool = False, within_s: float = ANSWER_S) -> int:
        """Send all `payloads` at once, then wait; returns how many were acknowledged."""
        packets = bytearray()
        sent: set[int] = set()
        first = _PUBLISH << 4 | _QOS_1 | (_RETAIN if retain else 0)
        for payload in payloads:
            packet_id = self._next_id()
            sent.add(self._packet_id)
            packets += _packet(first, _text(topic) + packet_id + payload)
        self._unacknowledged |= sent
        self._sock.settimeout(ANSWER_S)
        self._sock.sendall(packets)
        self._until(lambda: not sent & self._unacknowledged, within_s)
        return len(sent - self._unacknowledged)

    def messages(self, count: int, idle_s: float = ANSWER_S) -> list[Message]:
        """Up to `count` messages; fewer when nothing came for `idle_s`. Each is acknowledged."""
        while len(self._inbox) < count and self._one_more(idle_s):
            pass
        return [self._inbox.popleft() for _ in range(min(count, len(self._inbox)))]

    def ends_within(self, seconds: float) -> bool:
        """Whether the server, or somebody else with our client id, ends the connection in that time."""
        try:
            self._until(lambda: False, seconds)
        except (LostError, OSError):
            return True
        return False

    def leave(self) -> None:
        """Say goodbye, so that no will is published."""
        with contextlib.suppress(OSError):
            self._send(_DISCONNECT << 4, b"")
        self._sock.close()

    def cut(self) -> None:
        """End as a device does that loses power, but so that the server learns it at once: by a reset."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def _greet(self, connect: bytes) -> None:
        self._send(_CONNECT << 4, connect)
        code = self._answer(_CONNACK)[-1]
        if code:
            raise LostError(f"it refused the connection: {_REASONS.get(code, f'code {code}')}")

    def _answer(self, kind: int) -> bytes:
        self._answers.pop(kind, None)
        if not self._until(lambda: bool(self._answers.get(kind)), ANSWER_S):
            raise LostError(f"it gives no answer within {ANSWER_S:.0f} s")
        return self._answers[kind]

    def _next_id(self) -> bytes:
        self._packet_id = self._packet_id % 0xFFFF + 1
        return self._packet_id.to_bytes(2, "big")

    def _send(self, first: int, body: bytes) -> None:
        self._sock.settimeout(ANSWER_S)
        self._sock.sendall(_packet(first, body))

    def _one_more(self, idle_s: float) -> bool:
        before = len(self._inbox)
        return self._until(lambda: len(self._inbox) > before, idle_s)

    def _until(self, condition: Callable[[], bool], within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline or not self._read(deadline):
                return condition()
        return True

    def _read(self, deadline: float) -> bool:
        """Take in one packet; False when none came until then."""
        while (found := _first_packet(self._buffer)) is None:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._sock.recv(65_536)
            except TimeoutError:
                return False
            if not data:
                raise LostError("it ended the connection")
            self._buffer += data
        first, body, size = found
        del self._buffer[:size]
        self._take(first, body)
        return True

    def _take(self, first: int, body: bytes) -> None:
        if first >> 4 == _PUBLISH:
            self._take_message(first, body)
        elif first >> 4 == _PUBACK:
            self._unacknowledged.discard(int.from_bytes(body[:2], "big"))
        else:
            self._answers[first >> 4] = body

    def _take_message(self, first: int, body: bytes) -> None:
        end = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:end].decode("utf-8", "replace")
        has_id = bool(first & 0b110)
        self._inbox.append(Message(topic, body[end + 2 * has_id :], bool(first & _RETAIN)))
        if has_id:
            self._send(_PUBACK << 4, body[end : end + 2])


def _connected(access: Access) -> socket.socket:
    """A TCP connection, with TLS where the URL says so. Raises ValueError for what can never work, OSError else."""
    server = parse_url(access.url)
    sock = socket.create_connection((server.host, server.port), ANSWER_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not server.tls:
        return sock
    try:
        context = tls_context(access.ca_file, access.cert_file, access.key_file)
        return context.wrap_socket(sock, server_hostname=server.host)
    except (OSError, ValueError):
        sock.close()
        raise


def _connect(access: Access, client_id: str, will: Message | None, keepalive_s: int) -> bytes:
    flags = 0b10  # a clean session
    fields = _text(client_id)
    if will is not None:
        flags |= 0b1100 | (0b10_0000 if will.retain else 0)  # a will at QoS 1
        fields += _text(will.topic) + len(will.payload).to_bytes(2, "big") + will.payload
    if access.username is not None:
        flags |= 0b1000_0000
        fields += _text(access.username)
    if access.username is not None and access.password is not None:
        flags |= 0b100_0000
        fields += _text(access.password)
    return _text("MQTT") + bytes([4, flags]) + keepalive_s.to_bytes(2, "big") + fields


def _packet(first: int, body: bytes) -> bytes:
    """The fixed header of section 2.2, its length in groups of seven bits, and `body`."""
    length, left = bytearray(), len(body)
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    return bytes([first, *length, left]) + body


def _first_packet(buffer: bytearray) -> tuple[int, bytes, int] | None:
    """First byte, body, and whole size of the packet that `buffer` begins with; None while it is not all there."""
    length = 0
    for index, byte in enumerate(buffer[1:5]):
        length |= (byte & 127) << 7 * index
        if length > PACKET_BYTES_MAX:
            raise LostError(f"it sends a packet of {length} bytes: is it an MQTT server?")
        if byte < 128:
            start = 2 + index
            size = start + length
            return (buffer[0], bytes(buffer[start:size]), size) if len(buffer) >= size else None
    if len(buffer) >= 5:
        raise LostError("it sends what is no MQTT packet")
    return None


def _text(text: str) -> bytes:
    return len(text.encode()).to_bytes(2, "big") + text.encode()
