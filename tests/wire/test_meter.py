"""Bytes by kind of message, and what the kernel says beyond them."""

from __future__ import annotations

import hashlib
import socket
import struct

import pytest

from wire import meter

UP, DN = "fl/v1/f/00/d/up/", "fl/v1/f/00/d/dn/"


@pytest.mark.parametrize(("size", "extra"), [(0, 2), (108, 2), (109, 3), (200, 3), (20_000, 4), (2_200_000, 5)])
def test_the_size_of_a_publish_is_what_mqtt_writes(size, extra):
    topic = "up/update/at/é"
    qos_1 = meter.publish_bytes(topic, bytes(size))
    assert qos_1 == extra + 2 + len(topic.encode()) + 2 + size
    assert meter.publish_bytes("t", b"", qos=0) == 5


def test_a_publish_and_its_acknowledgement_count_under_one_kind_both_ways():
    counted = meter.Meter()
    kind = counted.on_publish(UP + "want", b"w")
    counted.on_puback(kind)
    counted.on_arrived(DN + "chunk", b"c" * 50, 1)
    counted.on_arrived(DN + "label", b"l", 0)
    carried = counted.carried()
    assert carried.sent == {"want": meter.publish_bytes(UP + "want", b"w"), "chunk": 4}
    label = meter.publish_bytes(DN + "label", b"l", 0)
    assert carried.received == {"want": 4, "chunk": meter.publish_bytes(DN + "chunk", b"c" * 50), "label": label}
    assert (counted.bytes_sent, counted.bytes_received) == (sum(carried.sent.values()), sum(carried.received.values()))


def test_the_same_update_again_is_of_another_kind():
    counted = meter.Meter(hashlib.sha256(b"before the restart").digest())
    kinds = [
        counted.on_publish(UP + "update", payload)
        for payload in (b"before the restart", b"first", b"first", b"first", b"second", b"first")
    ]
    assert kinds == ["resent", "update", "resent", "resent", "update", "update"]
    assert counted.on_publish(UP + "want", b"first") == counted.on_publish(UP + "want", b"first") == "want"


def test_topics_that_are_none_of_the_contract_cannot_fill_the_memory():
    counted = meter.Meter()
    for number in range(100):
        counted.on_arrived(f"dn/{number}", b"x", 1)
    assert list(counted.carried().received) == ["other"]


def test_files_by_http_are_apart_from_the_link():
    counted = meter.Meter()
    counted.on_fetched(500)
    assert (counted.carried().fetched, counted.bytes_received) == (500, 0)


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        with theirs:
            yield ours, theirs


def test_the_kernel_tells_what_a_connection_carried(pair):
    ours, theirs = pair
    ours.sendall(bytes(1000))
    theirs.sendall(bytes(70))
    assert len(ours.recv(100)) == 70
    assert meter.tcp_bytes(ours) == (1000, 70)
    ours.close()
    assert meter.tcp_bytes(ours) is None


def test_what_tcp_carried_beyond_the_messages_adds_up_over_connections(pair):
    ours, theirs = pair
    counted = meter.Meter()
    counted.on_publish(UP + "birth", b"lost with the connection before")
    counted.on_connection()
    size = meter.publish_bytes(UP + "birth", b"b")
    ours.sendall(bytes(size + 30))
    counted.on_publish(UP + "birth", b"b")
    theirs.sendall(bytes(9))
    ours.recv(100)
    counted.look(ours)
    assert counted.carried()[-2:] == (30, 9)
    counted.on_publish(UP + "birth", bytes(500))  # handed over, and not sent: no transport below zero
    counted.look(ours)
    assert counted.carried()[-2:] == (0, 9)
    counted.on_connection()
    ours.sendall(b"x")
    counted.look(ours)  # the same socket stands for a new one here: all of it counts again
    assert counted.carried()[-2:] == (size + 31, 18)


class Kernel:
    """A socket of a kernel that tells as much as it is told to."""

    def __init__(self, info: bytes | None) -> None:
        self.info = info

    def getsockopt(self, *_args: object) -> bytes:
        if self.info is None:
            raise OSError(92, "Protocol not available")
        return self.info


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (None, None),
        (bytes(104), None),  # before 4.1
        (bytes(120) + struct.pack("<QQ", 11, 22), (11, 22)),  # 4.1
        (bytes(120) + struct.pack("<QQ", 11, 22) + bytes(64) + struct.pack("<Q", 10), (10, 22)),  # 4.19
        (bytes(280), (0, 0)),
    ],
)
def test_older_kernels_tell_less_and_break_nothing(info, told):
    assert meter.tcp_bytes(Kernel(info)) == told
    counted = meter.Meter()
    counted.on_connection()
    counted.look(Kernel(info))
    assert counted.carried()[-2:] == (told or (0, 0))
