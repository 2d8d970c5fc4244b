"""Dialling waits for nothing: the next address after a refusal, a time limit, and nothing left open."""

from __future__ import annotations

import errno
import select
import selectors
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from wire.clock_floor import Tls
from wire.dial import Dial
from wire.server_url import Server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_at(port: int) -> Server:
    return Server("127.0.0.1", port, False)


def drive(dial: Dial, within_s: float = 5.0) -> None:
    """Step as a loop does: on readiness, and when time is up."""
    until = time.monotonic() + within_s
    while not dial.is_open:
        now = time.monotonic()
        assert now < until, "it never ends"
        can_write = dial.wanted & selectors.EVENT_WRITE
        watched: list[list[socket.socket]] = [[], [dial.sock]] if can_write else [[dial.sock], []]
        select.select(*watched, [], max(0.0, min(dial.until_s - now, 1.0)))
        dial.step(time.monotonic())


def test_it_opens_and_the_socket_is_the_callers(listener: socket.socket) -> None:
    dial = Dial(server_at(listener.getsockname()[1]), None, 5.0, time.monotonic())
    drive(dial)
    with dial.sock, listener.accept()[0] as other:
        dial.sock.send(b"x")
        assert other.recv(1) == b"x"


def test_after_a_refusal_the_next_address_is_called(
    listener: socket.socket, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        for port in (closed_port, closed_port, listener.getsockname()[1])
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_named: list(addresses))
    dial = Dial(Server("barn", 1883, False), None, 5.0, time.monotonic())
    drive(dial)
    assert dial.sock.getpeername() == listener.getsockname()
    dial.close()


def test_the_last_refusal_is_the_error_and_leaves_nothing_open(closed_port: int) -> None:
    dial = Dial(server_at(closed_port), None, 5.0, time.monotonic())
    with pytest.raises(OSError, match="Connection refused") as caught:
        drive(dial)
    assert caught.value.errno == errno.ECONNREFUSED
    assert dial.sock.fileno() == -1


def test_who_steps_late_finds_what_was_open_in_time(listener: socket.socket) -> None:
    dial = Dial(server_at(listener.getsockname()[1]), None, 5.0, time.monotonic())
    with listener.accept()[0]:
        dial.step(time.monotonic() + 60)
        assert dial.is_open
    dial.close()


def test_who_does_not_answer_is_given_up_and_not_before(listener: socket.socket) -> None:
    listener.listen(0)
    with socket.socket() as first, socket.socket() as second:  # they fill the queue, and nobody accepts
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        dial = Dial(server_at(listener.getsockname()[1]), None, 0.3, time.monotonic())
        dial.step(time.monotonic())
        assert not dial.is_open
        with pytest.raises(OSError, match="Connection timed out"):
            drive(dial)
    assert dial.sock.fileno() == -1


def test_who_is_silent_in_the_tls_handshake_is_given_up(listener: socket.socket) -> None:
    dial = Dial(server_at(listener.getsockname()[1]), Tls(ssl.create_default_context()), 0.3, time.monotonic())
    began = time.monotonic()
    with pytest.raises(OSError, match="Connection timed out"):
        drive(dial)
    assert 0.2 < time.monotonic() - began < 3
    assert dial.sock.fileno() == -1


def test_who_speaks_no_tls_is_an_error(listener: socket.socket) -> None:
    dial = Dial(server_at(listener.getsockname()[1]), Tls(ssl.create_default_context()), 5.0, time.monotonic())
    with listener.accept()[0] as other:
        other.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        with pytest.raises(ssl.SSLError):
            drive(dial)
    assert dial.sock.fileno() == -1
