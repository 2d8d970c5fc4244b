"""The loop over lines that are played: who has a turn, when, and who has to wait."""

from __future__ import annotations

import math
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from wire import lines as loops
from wire.lines import Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Played:
    """What the loop knows of a line; `act` is called in each step."""

    def __init__(self, act: Callable[[Played, int], None] = lambda _line, _ready: None) -> None:
        self.sock: socket.socket | None = None
        self.wanted = selectors.EVENT_READ
        self.due_s = math.inf
        self.is_connecting = False
        self.is_resting = False
        self.steps: list[int] = []
        self._act = act

    def wants_connection(self, _now_s: float) -> bool:
        return self.is_resting

    def step(self, ready: int, _now_s: float) -> None:
        self.steps.append(ready)
        self._act(self, ready)


@pytest.fixture
def loop() -> Iterator[Lines]:
    made = Lines(connecting_max=2)
    yield made
    made.close()


def turn(loop: Lines, seconds: float = 0.0) -> None:
    loop.turn(time.monotonic() + seconds)


def test_it_sleeps_until_the_time_it_was_given(loop: Lines) -> None:
    began = time.monotonic()
    turn(loop, 0.1)
    assert 0.09 < time.monotonic() - began < 2


def test_a_line_steps_when_it_is_due_and_not_before(loop: Lines) -> None:
    line = Played()
    line.due_s = time.monotonic() + 0.15
    loop.hurry(line)
    turn(loop)
    assert line.steps == [0]
    turn(loop, 0.05)
    assert line.steps == [0]
    line.due_s, due_s = math.inf, line.due_s
    turn(loop, 5)
    assert line.steps == [0, 0]
    assert time.monotonic() >= due_s


def test_a_line_that_is_always_due_keeps_no_turn_from_ending(loop: Lines) -> None:
    line = Played()
    line.due_s = 0.0
    loop.hurry(line)
    for _ in range(3):
        turn(loop, 5)
    assert 3 <= len(line.steps) <= 4


def test_another_thread_wakes_it_again_and_again(loop: Lines) -> None:
    line = Played()
    turn(loop)
    for count in (1, 2, 3):
        began = time.monotonic()
        threading.Timer(0.1, loop.hurry, [line]).start()
        turn(loop, 10)
        turn(loop)
        assert len(line.steps) == count
        assert time.monotonic() - began < 5


def test_what_a_line_publishes_in_its_own_step_needs_no_other(loop: Lines) -> None:
    line = Played(lambda line, _ready: loop.hurry(line))  # type: ignore[arg-type]
    loop.hurry(line)
    for _ in range(3):
        turn(loop)
    assert line.steps == [0]


def test_it_follows_a_line_from_socket_to_socket_even_of_the_same_number(loop: Lines) -> None:
    def change(line: Played, _ready: int) -> None:
        if line.sock is not None:
            line.sock.close()
        line.sock, other = socket.socketpair()
        numbers.append(line.sock.fileno())
        others.append(other)

    numbers: list[int] = []
    others: list[socket.socket] = []
    line = Played(change)
    loop.hurry(line)
    turn(loop)
    for count in range(1, 6):
        assert len(line.steps) == count
        others[-1].send(b"x")
        turn(loop, 5)
    assert len(set(numbers)) < len(numbers), "the point of this test is a number that comes again"
    assert line.steps[1:] == [selectors.EVENT_READ] * 5
    line.sock = None
    for sock in others:
        sock.close()


def test_no_more_than_so_many_connect_at_once_and_everybody_does_in_the_end(loop: Lines) -> None:
    def connect(line: Played, _ready: int) -> None:
        line.is_connecting = line.is_resting
        line.is_resting = False

    played = [Played(connect) for _ in range(7)]
    for line in played:
        line.is_resting = True
        loop.hurry(line)
    most = 0
    for _ in range(30):
        turn(loop)
        connecting = [line for line in played if line.is_connecting]
        most = max(most, len(connecting))
        if connecting:
            loop.hurry(connecting[0])  # whose next step finds it up
    assert most == 2
    assert all(line.steps for line in played)
    assert not any(line.is_connecting for line in played)


def test_who_gives_up_while_it_waits_to_connect_holds_up_nobody(loop: Lines) -> None:
    def connect(line: Played, _ready: int) -> None:
        line.is_connecting, line.is_resting = line.is_resting, False

    played = [Played(connect) for _ in range(4)]
    for line in played:
        line.is_resting = True
        loop.hurry(line)
    turn(loop)
    played[2].is_resting = False  # stopped
    for line in played[:2]:
        loop.hurry(line)
    for _ in range(5):
        turn(loop)
    assert played[3].is_connecting


def test_a_crowd_that_can_be_read_keeps_no_line_from_its_deadline(loop: Lines) -> None:
    crowd, pairs = [], []
    for _ in range(40):
        line = Played(lambda _line, _ready: time.sleep(0.02))
        line.sock, other = socket.socketpair()
        other.send(b"x")  # and nobody reads it
        crowd.append(line)
        pairs.append(other)
        loop.hurry(line)
    turn(loop)
    pressed = Played()
    pressed.due_s = time.monotonic() + 0.05
    loop.hurry(pressed)
    turn(loop)
    before = len(pressed.steps)
    began = time.monotonic()
    while len(pressed.steps) == before:
        turn(loop, 1)
    assert time.monotonic() - began < 2 * loops.SLICE_S + 0.2  # all of the crowd takes 0.8 s
    for _ in range(8):
        turn(loop)
    assert all(len(line.steps) > 1 for line in crowd), "and nobody of the crowd is forgotten"
    for line, other in zip(crowd, pairs, strict=True):
        assert line.sock is not None
        line.sock.close()
        other.close()


def test_news_of_a_connection_that_has_ended_is_not_taken_for_the_next_ones(loop: Lines) -> None:
    """Both were ready in the same moment; the step of the first replaced the socket of the second."""

    def replace(_line: Played, ready: int) -> None:
        if ready:
            old = second.sock
            second.sock, other = socket.socketpair()
            kept.extend([old, other])

    kept: list[socket.socket | None] = []
    first, second = Played(replace), Played()
    senders = []
    for line in (first, second):
        line.sock, sender = socket.socketpair()
        senders.append(sender)
        loop.hurry(line)
    turn(loop)
    for sender in senders:
        sender.send(b"x")
    turn(loop, 5)
    assert first.steps == [0, selectors.EVENT_READ]  # the kernel names them in the order of their news
    assert second.steps == [0]
    for sock in (*kept, *senders, first.sock, second.sock):
        if sock is not None:
            sock.close()
