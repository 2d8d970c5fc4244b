"""What a link carried, in bytes, by kind of message: counted by the link's thread, read by anyone.

A kind is the last level of a topic. A PUBLISH counts as MQTT writes it, topic and header included; its PUBACK, which
goes the other way, under the same kind. The bytes of one update sent again, to the byte the same, are a kind of their
own: RESENT. What TCP carried beyond all these (MQTT's other packets, TLS, messages cut short) is asked of the kernel
(`getsockopt(TCP_INFO)`) and is 0 where that does not tell; the headers of TCP and IP are in no figure.
"""

from __future__ import annotations

import collections
import hashlib
import socket
import struct
import threading
from typing import Final, NamedTuple

from wire import topics

RESENT: Final = "resent"
OTHER: Final = "other"  # what arrived on a topic that is none of the contract's
PUBACK_BYTES: Final = 4
# struct tcp_info of Linux, the same on every machine since its fields are aligned: bytes_acked and bytes_received are
# there since Linux 4.1, bytes_sent (bytes_acked counts the SYN as a byte, and not what is under way) since 4.19.
_ACKED_RECEIVED: Final = struct.Struct("=QQ")
_ACKED_AT: Final = 120
_SENT: Final = struct.Struct("=Q")
_SENT_AT: Final = 200
_INFO_BYTES_MAX: Final = 512
_KINDS: Final = frozenset((*topics.UP_KINDS, *topics.DN_KINDS, *topics.SHARED_KINDS))


class Carried(NamedTuple):
    """Bytes by kind since the meter was made. Kinds that never came are missing."""

    sent: dict[str, int]
    received: dict[str, int]
    fetched: int = 0  # of files that came by HTTP
    transport_sent: int = 0
    transport_received: int = 0


class Meter:
    """One link's counts, over all its connections. `update_digest`: of the last update that an earlier run sent."""

    def __init__(self, update_digest: bytes = b"") -> None:
        self.update_digest = update_digest
        self.connections = 0  # that came up
        self._lock = threading.Lock()
        self._sent: collections.Counter[str] = collections.Counter()
        self._received: collections.Counter[str] = collections.Counter()
        self._fetched = 0
        self._transport = (0, 0)  # of the connections that ended
        self._beyond = (0, 0)  # of the one that is up
        self._at_connect = (0, 0)

    @property
    def bytes_sent(self) -> int:
        """All PUBLISH and PUBACK packets sent."""
        with self._lock:
            return self._sent.total()

    @property
    def bytes_received(self) -> int:
        """All PUBLISH and PUBACK packets received."""
        with self._lock:
            return self._received.total()

    def carried(self) -> Carried:
        """All counts, as they are now."""
        with self._lock:
            up, down = (done + beyond for done, beyond in zip(self._transport, self._beyond, strict=True))
            return Carried(dict(self._sent), dict(self._received), self._fetched, up, down)

    def on_publish(self, topic: str, payload: bytes, qos: int = 1) -> str:
        """Count a PUBLISH that we send; returns its kind, for `on_puback` where a PUBACK is due."""
        kind = _kind(topic)
        if kind == "update":
            digest = hashlib.sha256(payload).digest()
            kind = RESENT if digest == self.update_digest else kind
            self.update_digest = digest
        with self._lock:
            self._sent[kind] += publish_bytes(topic, payload, qos)
        return kind

    def on_puback(self, kind: str) -> None:
        """Count the PUBACK that answers a PUBLISH of ours."""
        with self._lock:
            self._received[kind] += PUBACK_BYTES

    def on_arrived(self, topic: str, payload: bytes, qos: int) -> None:
        """Count a PUBLISH that arrived, and our PUBACK where one is due."""
        kind = _kind(topic)
        with self._lock:
            self._received[kind] += publish_bytes(topic, payload, qos)
            if qos:
                self._sent[kind] += PUBACK_BYTES

    def on_fetched(self, byte_count: int) -> None:
        """Count bytes of a file that came by HTTP, beside this link: without headers and TLS."""
        with self._lock:
            self._fetched += byte_count

    def on_connection(self) -> None:
        """Begin with a new connection: what TCP says from now on is of this one."""
        with self._lock:
            up, down = (done + beyond for done, beyond in zip(self._transport, self._beyond, strict=True))
            self._transport, self._beyond = (up, down), (0, 0)
            self._at_connect = (self._sent.total(), self._received.total())

    def look(self, sock: socket.socket) -> None:
        """Ask the kernel what the connection has carried; a socket that was closed meanwhile leaves the last answer."""
        told = tcp_bytes(sock)
        if told is None:
            return
        with self._lock:
            ours = (self._sent.total() - self._at_connect[0], self._received.total() - self._at_connect[1])
            self._beyond = (max(0, told[0] - ours[0]), max(0, told[1] - ours[1]))


def tcp_bytes(sock: socket.socket) -> tuple[int, int] | None:
    """Bytes that TCP sent and received over `sock`, without headers; None where the host does not tell."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES_MAX)
    except (OSError, AttributeError):  # closed, or no Linux
        return None
    if len(info) < _ACKED_AT + _ACKED_RECEIVED.size:
        return None
    acked, received = _ACKED_RECEIVED.unpack_from(info, _ACKED_AT)
    sent = _SENT.unpack_from(info, _SENT_AT)[0] if len(info) >= _SENT_AT + _SENT.size else 0
    return sent or acked, received


def publish_bytes(topic: str, payload: bytes, qos: int = 1) -> int:
    """The size of a PUBLISH packet (MQTT 3.1.1, section 3.3)."""
    remaining = 2 + len(topic.encode()) + (2 if qos else 0) + len(payload)
    length_bytes = 1 if remaining < 128 else 2 if remaining < 16_384 else 3 if remaining < 2_097_152 else 4
    return 1 + length_bytes + remaining


def _kind(topic: str) -> str:
    kind = topic.rpartition("/")[2]
    return kind if kind in _KINDS else OTHER
