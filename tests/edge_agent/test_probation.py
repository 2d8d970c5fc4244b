"""Probation: tries, health and the way back, without clock and disk; then on a card whose power fails anywhere."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from edge_agent import probation, slots
from edge_agent.flash import Model
from edge_agent.probation import CONNECTED_MS, TRIES, Answered, Ended, Failed, Looked, Probation, Slots, Started
from firmware_sim.card import Card
from wire import chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.probation import Event

CRASH = Failed("the child was ended by SIGSEGV")


def version(number: int) -> Model:
    return Model(number, "last-2", (chunks.split("params.bin", bytes([number]) * 10),))


NEW = Slots(version(2), version(1), tries_left=TRIES - 1)


class Life:
    """One life of the agent, its slots and its clock."""

    def __init__(self, kept: Slots | None, *, must_answer: bool = True) -> None:
        self.slots, self.now_ms = kept, 0
        self.machine = Probation(must_answer=must_answer)

    def tell(self, *events: Event) -> Slots | None:
        for event in events:
            self.slots = self.machine.handle(self.slots, event, self.now_ms)
        return self.slots

    def connected(self, ms: int) -> None:
        """The link is seen up now, and so many milliseconds later."""
        self.tell(Looked(connected=True))
        self.now_ms += ms
        self.tell(Looked(connected=True))

    def apart(self, ms: int) -> None:
        """The link is seen down only after so many milliseconds, and is down for as many after that."""
        self.now_ms += ms
        self.tell(Looked(connected=False))
        self.now_ms += ms


def test_the_one_before_is_the_last_that_stayed_or_else_the_first_of_all():
    first = probation.taken(None, version(1))
    assert first == Slots(version(1), tries_left=TRIES - 1)
    assert probation.taken(first, version(2)) == NEW
    assert probation.taken(replace(first, tries_left=None), version(2)) == NEW
    assert probation.taken(replace(NEW, tries_left=0, connected_ms=9), version(3)) == replace(NEW, now=version(3))


def test_what_is_in_use_or_refused_is_not_taken():
    kept = Slots(version(4), version(3), 5, None, 0, "it failed")
    assert [probation.taken(kept, version(number)) for number in (4, 5)] == [kept, kept]
    assert probation.taken(kept, version(6)) == Slots(version(6), version(4), 5, TRIES - 1, 0, "it failed")


def test_a_version_that_answers_and_is_connected_long_enough_stays():
    life = Life(NEW)
    life.tell(Answered(2))
    life.connected(CONNECTED_MS - 1)
    assert life.slots == NEW  # nothing is written meanwhile
    life.connected(1)
    assert life.slots == Slots(version(2), version(1))
    assert life.tell(CRASH, Started(), Ended(), Answered(1)) == life.slots  # it is the one in use, whatever befalls it


def test_connected_time_is_counted_and_no_other():
    life = Life(NEW)
    life.tell(Answered(2))
    for _ in range(9):
        life.connected(CONNECTED_MS // 10)
        life.apart(100 * CONNECTED_MS)
    assert life.slots == NEW
    life.connected(CONNECTED_MS // 10)
    assert life.slots.tries_left is None


def test_time_before_it_came_into_use_is_not_its_own():
    life = Life(Slots(version(1)))
    life.connected(10 * CONNECTED_MS)
    life.slots = probation.taken(life.slots, version(2))
    life.tell(Answered(2), Looked(connected=True))
    life.connected(CONNECTED_MS - 1)
    assert life.slots == NEW


def test_an_answer_of_another_version_is_none_and_one_from_before_it_was_noted_counts():
    life = Life(NEW)
    life.tell(Answered(1))
    life.connected(2 * CONNECTED_MS)
    assert life.slots == NEW
    early = Life(None)
    early.tell(Answered(1))  # it is whole on flash, and the first: it answers before a child has tried it
    early.slots = probation.taken(None, version(1))
    early.connected(CONNECTED_MS)
    assert early.slots == Slots(version(1))


def test_without_a_source_nothing_need_be_answered():
    life = Life(NEW, must_answer=False)
    life.connected(CONNECTED_MS)
    assert life.slots == Slots(version(2), version(1))


@pytest.mark.parametrize("failure", [CRASH, Started()])
def test_the_version_before_comes_back_after_so_many_tries_and_why_is_said(failure):
    life = Life(NEW)
    left = [life.slots.tries_left, *(life.tell(failure).tries_left for _ in range(3))]
    assert left == [2, 1, 0, None]  # the version is loaded once for each number
    why = "the child was ended by SIGSEGV" if failure == CRASH else "the agent did not end in order"
    assert life.slots == Slots(version(1), None, 2, None, 0, f"it failed 3 times here, at last: {why}")
    assert probation.taken(life.slots, version(2)) == life.slots


def test_a_failure_begins_the_probation_anew():
    life = Life(NEW)
    life.tell(Answered(2))
    life.connected(CONNECTED_MS - 1)
    life.tell(CRASH, Answered(2))
    life.connected(CONNECTED_MS - 1)
    assert life.slots == replace(NEW, tries_left=1)
    silent = Life(NEW)
    silent.tell(Answered(2), CRASH)
    silent.connected(2 * CONNECTED_MS)
    assert silent.slots.tries_left == 1  # it has to answer again


def test_an_orderly_end_gives_the_try_back_and_keeps_the_connected_time():
    kept = NEW
    for _ in range(10):
        life = Life(kept)
        life.tell(Started(), Answered(2))
        life.connected(CONNECTED_MS // 10)
        kept = life.tell(Ended()) if life.slots.tries_left is not None else life.slots
        assert kept.now.version == 2
    assert kept == Slots(version(2), version(1))


def test_where_there_is_nothing_to_go_back_to_it_goes_on_and_nothing_is_written():
    life = Life(Slots(version(1), tries_left=0))
    assert life.tell(CRASH, CRASH, Started()) == Slots(version(1), tries_left=0)
    life.tell(Answered(1))
    life.connected(CONNECTED_MS)
    assert life.slots == Slots(version(1))


# On a card


class PowerCutError(Exception):
    """Power fails before this operation of the card, and until the next boot before each."""


class Board:
    """A device without a source whose power fails when it loads version 2, and before one operation of its card."""

    def __init__(self, kept: Slots, cut_at: int | None, seed: int) -> None:
        self.cut_at, self.operations, self.loads, self.is_dead = None, 0, 0, False
        self.chance, self.now_ms = random.Random(seed), 0
        self.card = Card(self._begin, lambda: False)
        slots._save(self.card, kept)
        self.cut_at, self.operations = cut_at, 0
        self.note = slots.Note(self.card, lambda: self.now_ms, lambda *_, **__: None, must_answer=False)

    def _begin(self, _operation: str) -> None:
        self.is_dead |= self.operations == self.cut_at
        self.operations += 1
        if self.is_dead:
            raise PowerCutError

    def survives(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except PowerCutError:
            self.is_dead = False
            self.card.cut(self.chance, tear=True)
            return False
        return True

    def boot(self) -> None:
        self.note = slots.Note(self.card, lambda: self.now_ms, lambda *_, **__: None, must_answer=False)
        self.note.tell(Started())
        if slots.load(self.card).now.version == 1:
            slots.take(self.card, version(2))  # each round brings it again
        if slots.load(self.card).now.version == 2:
            self.loads += 1
            raise PowerCutError


@pytest.mark.parametrize("seed", range(10))
def test_a_version_that_takes_the_board_down_is_loaded_so_often_and_never_more_wherever_the_power_fails(seed):
    for cut_at in (None, *range(100)):
        board = Board(Slots(version(1)), cut_at, seed)
        boots = 1
        while not board.survives(board.boot):
            boots += 1
            assert boots <= TRIES + 2
        kept = slots.load(board.card)
        assert (kept.now, kept.before, kept.refused_version) == (version(1), None, 2)
        assert board.loads == TRIES if cut_at is None else board.loads in (TRIES - 1, TRIES)
        if cut_at is not None and board.operations <= cut_at:
            break
    assert 20 <= cut_at < 99  # four writes of the note, each of them cut before each of its operations


@pytest.mark.parametrize("event", [Started(), CRASH, Ended(), Looked(connected=True)])
@pytest.mark.parametrize("seed", range(10))
def test_what_follows_is_on_the_card_whole_or_not_at_all(event, seed):
    for cut_at in range(100):
        board = Board(NEW, cut_at, seed)
        board.note.tell(Looked(connected=True))
        board.now_ms = CONNECTED_MS if isinstance(event, Looked) else 0
        if board.survives(lambda board=board: board.note.tell(event)):
            break
        assert slots.load(board.card) in (NEW, expected(event))
    assert slots.load(board.card) == expected(event) != NEW
    assert 5 <= cut_at < 99


def expected(event: Event) -> Slots:
    if isinstance(event, Looked):
        return replace(NEW, tries_left=None)
    return replace(NEW, tries_left=3 if event == Ended() else 1)
