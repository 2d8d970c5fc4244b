"""Lines in one loop, over a server that behaves and one that is played."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.real import scripted_server as scripted
from wire import limits, link
from wire.lines import Lines
from wire.link_terms import Settings, server_of
from wire.meter import Meter

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from broker.mqtt_server import Server
    from wire.line import Line

pytestmark = pytest.mark.real

PINGREQ, PINGRESP = 12, b"\xd0\x00"


@pytest.fixture
def loop() -> Iterator[Lines]:
    made = Lines()
    yield made
    made.close()


def new_line(loop: Lines, url: str, client_id: str, post: Callable[[link.LinkEvent], None], *filters: str) -> Line:
    settings = Settings(server_of(url)[0], client_id, filters, None)
    line = link.new_line(settings, post=post, jitter=random.Random(1), hurry=loop.hurry, meter=Meter())
    loop.hurry(line)
    return line


def turn_until(loop: Lines, condition: Callable[[], bool], within_s: float = 10.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        loop.turn(time.monotonic() + 0.05)


def test_many_lines_of_one_thread_each_hear_their_own(mosquitto_server: Server, loop: Lines) -> None:
    heard: dict[int, list[bytes]] = {number: [] for number in range(150)}
    ups: list[int] = []

    def post(number: int, event: link.LinkEvent) -> None:
        if isinstance(event, link.LinkUp):
            ups.append(number)
            lines[number].publish(f"echo/{number}", b"%d" % number)  # in its own step
        elif isinstance(event, link.Arrived):
            heard[number].append(event.payload)

    lines = [
        new_line(loop, mosquitto_server.url, f"line-{n}", lambda event, number=n: post(number, event), f"echo/{n}")
        for n in range(150)
    ]
    turn_until(loop, lambda: all(heard.values()))
    for number, line in enumerate(lines):  # from outside of any step
        line.publish(f"echo/{number}", b"again")
    turn_until(loop, lambda: all(len(payloads) == 2 for payloads in heard.values()))
    assert heard == {number: [b"%d" % number, b"again"] for number in range(150)}
    assert sorted(ups) == list(range(150))
    for line in lines:
        line.stop()
    turn_until(loop, lambda: all(line.is_over for line in lines))


def test_answers_that_wait_in_the_socket_are_no_silence(loop: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a crowd a line may be due before it is read; what the server said in time must count."""
    monkeypatch.setattr(limits, "KEEPALIVE_S", 1)
    monkeypatch.setattr(link, "_TICK_S", 0.1)
    monkeypatch.setattr(link, "UNREAD_S", 0.5)
    pings: list[int] = []

    def punctual(connection: socket.socket) -> None:
        scripted.greet(connection)
        while True:
            if scripted.read(connection).kind == PINGREQ:
                connection.sendall(PINGRESP)
                pings.append(1)

    events: list[link.LinkEvent] = []
    with scripted.scripted(punctual) as port:
        line = new_line(loop, f"mqtt://127.0.0.1:{port}", "late", events.append, "dn/#")
        turn_until(loop, lambda: bool(pings))
        time.sleep(1.2)  # the loop is busy elsewhere, for longer than the keepalive
        line.step(0, time.monotonic())
        assert events == [link.LinkUp()]
        line.stop()
        turn_until(loop, lambda: line.is_over)


def test_each_answer_of_the_server_has_its_own_time(loop: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "ANSWER_TIMEOUT_S", 0.6)

    def slow(connection: socket.socket) -> None:
        scripted.read(connection)
        time.sleep(0.4)
        connection.sendall(scripted.CONNACK)
        subscribe = scripted.read(connection)
        time.sleep(0.4)
        connection.sendall(b"\x90\x03" + subscribe.packet_id + b"\x01")
        connection.recv(100)

    events: list[link.LinkEvent] = []
    with scripted.scripted(slow) as port:
        line = new_line(loop, f"mqtt://127.0.0.1:{port}", "patient", events.append, "dn/#")
        turn_until(loop, lambda: bool(events))
        assert events == [link.LinkUp()]
        line.stop()
        turn_until(loop, lambda: line.is_over)
