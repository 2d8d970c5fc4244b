"""The link over a real mosquitto, and over servers that do what servers should not."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.real import scripted_server as scripted
from wire import limits, link, meter

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from broker.mqtt_server import Server

pytestmark = pytest.mark.real

Event = TypeVar("Event", link.LinkUp, link.LinkDown, link.Arrived)


class Peer:
    """A link and the events that it posted."""

    def __init__(self, url: str, client_id: str, filters: list[str], **settings: object) -> None:
        self.events: queue.SimpleQueue[link.LinkEvent] = queue.SimpleQueue()
        arguments: dict[str, object] = {"will": None, "jitter": random.Random(5), **settings}
        self.link = link.Link(url, client_id, filters=filters, post=self.events.put, **arguments)  # type: ignore[arg-type]
        self.link.start()

    def next(self, kind: type[Event], within_s: float = 6.0) -> Event:
        event = self.events.get(timeout=within_s)
        assert isinstance(event, kind), event
        return event

    def wait_until_up(self, within_s: float = 8.0) -> None:
        until = time.monotonic() + within_s
        while not isinstance(self.events.get(timeout=max(0.0, until - time.monotonic())), link.LinkUp):
            pass

    def payloads(self, count: int, within_s: float = 10.0) -> list[bytes]:
        return [self.next(link.Arrived, within_s).payload for _ in range(count)]

    def is_silent(self, seconds: float) -> bool:
        with contextlib.suppress(queue.Empty):
            self.events.get(timeout=seconds)
            return False
        return True


@pytest.fixture
def connect() -> Iterator[Callable[..., Peer]]:
    """Make peers, and stop them at the end."""
    peers: list[Peer] = []

    def make(url: str, client_id: str = "pi-07", filters: tuple[str, ...] = ("dn/#",), **settings: object) -> Peer:
        peers.append(Peer(url, client_id, list(filters), **settings))
        return peers[-1]

    yield make
    for peer in peers:
        peer.link.stop()
        assert not peer.link.is_alive()


def seen_within(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


# -- over mosquitto -----------------------------------------------------------------------------------------------


def test_two_links_talk_up_to_the_largest_payload(mosquitto_server: Server, connect: Callable[..., Peer]) -> None:
    device = connect(mosquitto_server.url, "pi-07", ("dn/#",))
    coordinator = connect(mosquitto_server.url, "coordinator", ("up/#",))
    device.wait_until_up()
    coordinator.wait_until_up()
    sent = [b"", b"x", bytes(limits.PAYLOAD_BYTES_MAX)]
    for payload in sent:
        device.link.publish("up/update", payload)
    assert coordinator.payloads(3) == sent
    coordinator.link.publish("dn/offer", b"train")
    assert device.next(link.Arrived) == link.Arrived("dn/offer", b"train", False)
    assert device.link.dropped == coordinator.link.dropped == 0
    assert device.link.bytes_up > sum(map(len, sent))
    assert coordinator.link.bytes_down - device.link.bytes_up == pytest.approx(0, abs=16)  # but for PUBACKs


def test_every_byte_of_tcp_is_a_message_or_transport_over_all_connections(
    mosquitto_server: Server, connect: Callable[..., Peer]
) -> None:
    counted = meter.Meter()
    device = connect(mosquitto_server.url, "pi-07", ("dn/#",), meter=counted)
    device.wait_until_up()
    device.link.publish("fl/v1/f/00/pi-07/up/update", bytes(90_000))
    device.link.publish("fl/v1/f/00/pi-07/up/update", bytes(90_000))
    assert seen_within(lambda: counted.carried().received.get("resent", 0) == 4, 5)  # its PUBACK
    connect_packet, subscribe = 2 + 10 + 2 + len("pi-07"), 2 + 2 + 2 + len("dn/#") + 1
    assert seen_within(lambda: counted.carried().transport_sent == connect_packet + subscribe, 6)
    carried = counted.carried()
    assert carried.sent["update"] == carried.sent["resent"] == 90_000 + 1 + 3 + 2 + 26 + 2
    connack, suback = 4, 5
    assert carried.transport_received == connack + suback
    mosquitto_server.kill()
    device.next(link.LinkDown)
    mosquitto_server.restart()
    device.wait_until_up()
    device.link.stop()
    carried = counted.carried()
    assert carried.transport_received == 2 * (connack + suback)
    assert carried.transport_sent == 2 * (connect_packet + subscribe)  # DISCONNECT left a socket closed already


def test_a_retained_message_comes_after_link_up_and_says_so(
    mosquitto_server: Server, connect: Callable[..., Peer]
) -> None:
    coordinator = connect(mosquitto_server.url, "coordinator", ("up/#",))
    coordinator.wait_until_up()
    coordinator.link.publish("dn/plan", b"rules", retain=True)
    assert seen_within(lambda: coordinator.link.bytes_down > 0, 3)  # its PUBACK
    device = connect(mosquitto_server.url)
    device.next(link.LinkUp)
    assert device.next(link.Arrived) == link.Arrived("dn/plan", b"rules", True)


def test_what_is_published_at_link_up_gets_its_answer(mosquitto_server: Server, connect: Callable[..., Peer]) -> None:
    """LinkUp comes after SUBACK: nothing answered at once can be missed."""
    for number in range(10):
        echo = connect(mosquitto_server.url, f"echo-{number}", (f"echo/{number}",))
        echo.next(link.LinkUp)
        echo.link.publish(f"echo/{number}", b"hello")
        assert echo.payloads(1) == [b"hello"]


def test_the_server_restarts_after_sigkill_and_the_link_is_back_within_seconds(
    mosquitto_server: Server, connect: Callable[..., Peer]
) -> None:
    device = connect(mosquitto_server.url)
    observer = connect(mosquitto_server.url, "observer", ("up/#",))
    device.wait_until_up()
    observer.wait_until_up()
    mosquitto_server.kill()
    assert "closed by the server or the network" in device.next(link.LinkDown).reason
    for _ in range(200):  # offline: dropped, counted, kept nowhere
        device.link.publish("up/offline", bytes(100_000))
    assert device.link.dropped == 200
    mosquitto_server.restart()
    device.wait_until_up()
    observer.wait_until_up()
    assert device.link.reconnects == 1
    device.link.publish("up/now", b"now")
    assert observer.payloads(1) == [b"now"]
    assert observer.is_silent(0.3)


def test_stop_sends_what_waits_and_leaves_no_will(mosquitto_server: Server, connect: Callable[..., Peer]) -> None:
    observer = connect(mosquitto_server.url, "observer", ("up/#",))
    observer.wait_until_up()
    device = connect(mosquitto_server.url, will=lambda: ("up/death", b"will"))
    device.wait_until_up()
    sent = [b"%d" % number for number in range(100)]
    for payload in sent:
        device.link.publish("up/x", payload)
    device.link.stop()
    assert observer.payloads(100) == sent
    assert observer.is_silent(0.3)
    device.link.stop()  # twice is fine
    device.link.publish("up/x", b"late")
    assert device.link.dropped == 1


CHILD = """
import random, signal, sys
from wire.link import Link, LinkUp
def post(event):
    if isinstance(event, LinkUp):
        print("up", flush=True)
link = Link(sys.argv[1], "child", filters=["dn/#"], will=lambda: ("up/death", b"will"), post=post,
            jitter=random.Random(1))
def end(signum, frame):
    link.stop()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
link.start()
if len(sys.argv) > 2:
    import wire.envelope, wire.keys
    print(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")), flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def child(mosquitto_server: Server) -> Iterator[subprocess.Popen[str]]:
    """A program with a link whose will is `will` on up/death, connected."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, mosquitto_server.url, "memory"], stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()


def test_a_killed_program_leaves_its_will(
    mosquitto_server: Server, child: subprocess.Popen[str], connect: Callable[..., Peer]
) -> None:
    observer = connect(mosquitto_server.url, "observer", ("up/#",))
    observer.wait_until_up()
    assert child.stdout is not None
    lines = {child.stdout.readline().split(":")[0].strip() for _ in range(3)}
    assert "up" in lines
    child.send_signal(signal.SIGKILL)
    assert observer.payloads(1) == [b"will"]


def test_a_retained_will_is_there_for_those_who_come_later(
    mosquitto_server: Server, connect: Callable[..., Peer]
) -> None:
    connect(
        mosquitto_server.url, "coordinator", will=lambda: ("dn/state", b"offline"), will_retain=True
    ).wait_until_up()
    usurper = connect(mosquitto_server.url, "coordinator")  # takes over, which publishes the will of the first
    usurper.wait_until_up()
    device = connect(mosquitto_server.url)
    device.wait_until_up()
    assert device.next(link.Arrived) == link.Arrived("dn/state", b"offline", True)


def test_sigterm_ends_a_program_in_order_and_leaves_no_will(
    mosquitto_server: Server, child: subprocess.Popen[str], connect: Callable[..., Peer]
) -> None:
    observer = connect(mosquitto_server.url, "observer", ("up/#",))
    observer.wait_until_up()
    assert child.stdout is not None
    while child.stdout.readline().strip() != "up":
        pass
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=3) == 0
    assert observer.is_silent(0.3)


def test_a_program_with_link_envelope_and_keys_stays_small(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    line = next(line for line in child.stdout if line.startswith("VmRSS"))
    assert int(line.split()[1]) < 40 * 1024, line  # kB


def test_a_second_device_with_the_same_id_takes_over_and_both_get_slower(
    mosquitto_server: Server, connect: Callable[..., Peer]
) -> None:
    """The MQTT server ends the first connection and publishes its will. Two such devices must not storm it."""
    observer = connect(mosquitto_server.url, "observer", ("up/#",))
    observer.wait_until_up()
    numbers = itertools.count(1)
    first = connect(mosquitto_server.url, "twin", will=lambda: ("up/death", b"%d" % next(numbers)))
    first.wait_until_up()
    second = connect(mosquitto_server.url, "twin", jitter=random.Random(6))
    second.wait_until_up()
    first.next(link.LinkDown)
    assert observer.payloads(1) == [b"1"]
    first.wait_until_up()  # it takes over in turn, with a fresh will
    second.link.stop()
    time.sleep(0.5)
    assert first.link.reconnects + second.link.reconnects < 8


def test_four_threads_publish_and_all_of_it_arrives_once(
    mosquitto_server: Server, connect: Callable[..., Peer]
) -> None:
    observer = connect(mosquitto_server.url, "observer", ("up/#",))
    device = connect(mosquitto_server.url)
    observer.wait_until_up()
    device.wait_until_up()

    def publish(thread: int) -> None:
        for number in range(200):
            device.link.publish("up/x", b"%d-%d" % (thread, number))

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    expected = sorted(b"%d-%d" % pair for pair in itertools.product(range(4), range(200)))
    assert sorted(observer.payloads(800)) == expected
    for thread in threads:
        thread.join()


def test_a_burst_at_qos_0_is_not_held_up_by_the_window_and_has_no_acknowledgement(
    mosquitto_server: Server, connect: Callable[..., Peer]
) -> None:
    counted = meter.Meter()
    observer = connect(mosquitto_server.url, "observer", ("owner/#",))
    device = connect(mosquitto_server.url, meter=counted)
    observer.wait_until_up()
    device.wait_until_up()
    began = time.monotonic()
    sent = [b"%d" % number + bytes(2000) for number in range(500)]
    assert all(device.link.publish("owner/x", payload, False, 0) for payload in sent)
    assert observer.payloads(500) == sent
    assert time.monotonic() - began < 4.0  # one tick is 5 s: none was waited for
    device.link.publish("owner/x", b"last")
    assert observer.payloads(1) == [b"last"]
    assert seen_within(lambda: counted.carried().received == {"other": 4}, 5)  # the PUBACK of the last
    size = sum(meter.publish_bytes("owner/x", payload, 0) for payload in sent)
    assert counted.carried().sent == {"other": size + meter.publish_bytes("owner/x", b"last", 1)}
    device.link.stop()
    assert not device.link.publish("owner/x", b"too late", False, 0)
    assert device.link.dropped == 1


def test_it_works_with_more_than_1024_open_files(mosquitto_server: Server, connect: Callable[..., Peer]) -> None:
    """paho's own loop uses select(), which stops at descriptor 1023 without a word."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    files = []
    try:
        files = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
        device = connect(mosquitto_server.url, "many-files", ("echo",))
        device.wait_until_up()
        device.link.publish("echo", b"hello")
        assert device.payloads(1) == [b"hello"]
        device.link.stop()
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_nothing_stays_open_after_twenty_links(mosquitto_server: Server) -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def one() -> None:
        peer = Peer(mosquitto_server.url, "x", ["x"])
        peer.wait_until_up()
        peer.link.stop()

    one()
    before = open_files()
    for _ in range(20):
        one()
    assert open_files() <= before


def test_an_unreachable_server_is_reported_once_and_found_when_it_comes(
    mosquitto_server: Server, connect: Callable[..., Peer]
) -> None:
    mosquitto_server.stop()
    device = connect(mosquitto_server.url)
    reason = device.next(link.LinkDown).reason
    assert reason == f"cannot connect to 127.0.0.1:{mosquitto_server.port}: Connection refused"
    assert device.is_silent(2.0)  # attempts go on, quietly
    mosquitto_server.restart()
    device.wait_until_up()


def test_a_host_that_does_not_exist_is_named(connect: Callable[..., Peer]) -> None:
    device = connect("mqtt://no-such-host.invalid")
    assert "no-such-host.invalid:1883" in device.next(link.LinkDown, 10).reason


# -- over a server that misbehaves ----------------------------------------------------------------------------------


def test_no_more_than_the_window_is_ever_unacknowledged_and_nothing_is_resent(connect: Callable[..., Peer]) -> None:
    """paho itself sends its whole queue at once after a reconnect, and all of it again."""
    received: list[list[scripted.Packet]] = []

    def swallow(connection: socket.socket) -> None:
        scripted.greet(connection)
        received.append([])
        connection.settimeout(0.6)
        with contextlib.suppress(TimeoutError):
            while True:
                received[-1].append(scripted.read(connection))

    def acknowledge_one_by_one(connection: socket.socket) -> None:
        scripted.greet(connection)
        received.append([])
        for _ in range(20):
            received[-1].append(packet := scripted.read(connection))
            connection.sendall(scripted.puback(packet))

    with scripted.scripted(swallow, swallow, acknowledge_one_by_one) as port:
        device = connect(f"mqtt://127.0.0.1:{port}")
        device.wait_until_up()
        for number in range(200):
            device.link.publish("up/x", b"first %d" % number)
        device.next(link.LinkDown)
        device.wait_until_up()  # second connection: silence
        device.wait_until_up()  # third
        for number in range(20):
            device.link.publish("up/x", b"third %d" % number)
        assert seen_within(lambda: len(received) == 3 and len(received[2]) == 20, 5)
    assert [packet.payload for packet in received[0]] == [b"first %d" % number for number in range(4)]
    assert received[1] == []
    assert [packet.payload for packet in received[2]] == [b"third %d" % number for number in range(20)]
    assert all(packet.flags == 0x02 for packet in received[0] + received[2])  # QoS 1, never a duplicate
    assert device.link.dropped == 196


def test_the_queue_is_bounded_while_the_server_acknowledges_nothing(connect: Callable[..., Peer]) -> None:
    def swallow(connection: socket.socket) -> None:
        scripted.greet(connection)
        with contextlib.suppress(TimeoutError):
            while True:
                scripted.read(connection)

    with scripted.scripted(swallow) as port:
        device = connect(f"mqtt://127.0.0.1:{port}", queue_count_max=10)
        device.wait_until_up()
        for _ in range(4):
            device.link.publish("up/x", b"in flight")
        assert seen_within(device.link._line._waiting.is_empty, 2)
        for _ in range(25):
            device.link.publish("up/x", b"waits")
        assert device.link.dropped == 15
        device.link.stop()


def test_a_server_that_acknowledges_nothing_is_given_up(
    connect: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "ACK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(link, "_TICK_S", 0.1)

    def swallow(connection: socket.socket) -> None:
        scripted.greet(connection)
        while True:
            scripted.read(connection)

    with scripted.scripted(swallow) as port:
        device = connect(f"mqtt://127.0.0.1:{port}")
        device.wait_until_up()
        device.link.publish("up/x", b"x")
        assert "acknowledged nothing" in device.next(link.LinkDown).reason


def test_a_program_that_is_no_mqtt_server_is_recognised(
    connect: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "ANSWER_TIMEOUT_S", 0.3)

    def ssh(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        scripted.read(connection)
        connection.recv(1)

    def silent(connection: socket.socket) -> None:
        scripted.read(connection)
        connection.recv(1)

    def http(connection: socket.socket) -> None:
        scripted.read(connection)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    for script, sentence in (
        (ssh, "is it the right port?"),
        (silent, "is it the right port?"),
        (http, "is it an MQTT server"),
    ):
        with scripted.scripted(script) as port:
            reason = connect(f"mqtt://127.0.0.1:{port}").next(link.LinkDown).reason
            assert f"127.0.0.1:{port}" in reason
            assert sentence in reason


def test_a_refused_login_is_said_and_not_repeated_every_second(connect: Callable[..., Peer]) -> None:
    attempts = []

    def refuse(connection: socket.socket) -> None:
        scripted.read(connection)
        attempts.append(1)
        connection.sendall(b"\x20\x02\x00\x05")

    with scripted.scripted(refuse, refuse) as port:
        device = connect(f"mqtt://127.0.0.1:{port}", username="pi-07", password="wrong")
        reason = device.next(link.LinkDown).reason
        assert reason == f"127.0.0.1:{port} refused 'pi-07': Not authorized"
        assert device.is_silent(1.5)
        assert len(attempts) == 1
        device.link.stop()


def test_a_refused_subscription_is_no_link(connect: Callable[..., Peer]) -> None:
    def refuse(connection: socket.socket) -> None:
        scripted.greet(connection, granted=0x80)
        connection.recv(1)

    with scripted.scripted(refuse) as port:
        assert "refused the subscription to dn/#" in connect(f"mqtt://127.0.0.1:{port}").next(link.LinkDown).reason


def test_a_message_before_suback_is_posted_after_link_up(connect: Callable[..., Peer]) -> None:
    def eager(connection: socket.socket) -> None:
        scripted.read(connection)
        connection.sendall(scripted.CONNACK)
        subscribe = scripted.read(connection)
        connection.sendall(scripted.publish("dn/plan", b"early"))
        time.sleep(0.2)
        connection.sendall(b"\x90\x03" + subscribe.packet_id + b"\x01")
        connection.recv(1)

    with scripted.scripted(eager) as port:
        device = connect(f"mqtt://127.0.0.1:{port}")
        device.next(link.LinkUp)
        assert device.next(link.Arrived) == link.Arrived("dn/plan", b"early", True)
        device.link.stop()


def test_no_nonsense_of_a_server_ends_the_thread(connect: Callable[..., Peer]) -> None:
    chance = random.Random(11)
    blobs = [chance.randbytes(chance.randrange(1, 200)) for _ in range(40)]
    blobs += [bytes([kind << 4 | chance.randrange(16), 4]) + chance.randbytes(4) for kind in range(16)]
    blobs += [b"\x30\xff\xff\xff\xff\x7f", b"\x32\x05\x00\x02\xff\xfe\x00", b"\x90\x00", b"\x40\x01\x00"]
    for blob in blobs:

        def babble(connection: socket.socket, blob: bytes = blob) -> None:
            scripted.greet(connection)
            connection.sendall(blob)

        with scripted.scripted(babble) as port:
            device = connect(f"mqtt://127.0.0.1:{port}")
            device.wait_until_up()
            while not isinstance(device.events.get(timeout=5), link.LinkDown):
                pass
            assert device.link.is_alive()
            device.link.stop()


def test_stop_is_quick_in_every_state(connect: Callable[..., Peer]) -> None:
    def silent(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.recv(1)

    with scripted.scripted(silent) as port:
        connecting = connect(f"mqtt://127.0.0.1:{port}")
        time.sleep(0.1)
        began = time.monotonic()
        connecting.link.stop()
    waiting = connect(f"mqtt://127.0.0.1:{port}")
    waiting.next(link.LinkDown)
    waiting.link.stop()
    assert time.monotonic() - began < 1.0
