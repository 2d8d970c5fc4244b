"""An MQTT server that misbehaves on demand: one connection after another, each played by a function."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNACK = b"\x20\x02\x00\x00"
PUBLISH, SUBSCRIBE, DISCONNECT = 3, 8, 14


class Packet(NamedTuple):
    """One packet of the client: its type (MQTT 3.1.1, section 2.2.1), flags and body."""

    kind: int
    flags: int
    body: bytes

    @property
    def packet_id(self) -> bytes:
        start = 0 if self.kind != PUBLISH else 2 + int.from_bytes(self.body[:2], "big")
        return self.body[start : start + 2]

    @property
    def payload(self) -> bytes:
        return self.body[4 + int.from_bytes(self.body[:2], "big") :]


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def read(connection: socket.socket) -> Packet:
    """Read one packet; EOFError when the client is gone, TimeoutError when it says nothing."""
    first = _exactly(connection, 1)[0]
    length = shift = 0
    while True:
        byte = _exactly(connection, 1)[0]
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return Packet(first >> 4, first & 15, _exactly(connection, length))


def greet(connection: socket.socket, granted: int = 1) -> None:
    """CONNECT, CONNACK, SUBSCRIBE, SUBACK."""
    read(connection)
    connection.sendall(CONNACK)
    subscribe = read(connection)
    assert subscribe.kind == SUBSCRIBE
    connection.sendall(b"\x90\x03" + subscribe.packet_id + bytes([granted]))


def puback(packet: Packet) -> bytes:
    return b"\x40\x02" + packet.packet_id


def publish(topic: str, payload: bytes) -> bytes:
    body = len(topic).to_bytes(2, "big") + topic.encode() + payload
    assert len(body) < 128
    return bytes([0x31, len(body)]) + body  # QoS 0, retained


@contextlib.contextmanager
def scripted(*scripts: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen on a free port and play one script per connection; yields the port. Further connections are refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def play() -> None:
            for script in scripts:
                with contextlib.suppress(OSError, EOFError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(5)
                        script(connection)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=play, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(6)
