"""One coordinator a store: who comes second stands by, on either database, and never do both write."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from broker import lease
from broker.database import StoreError
from broker.effects import StoreEpoch
from broker.lease import only_one
from broker.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker.database import Place
    from tests.databases import PostgresServer

PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LEASE_S": 1.0, "RENEW_S": 0.2, "POLL_S": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)


class Standby:
    """A coordinator in a thread of its own, that waits for its turn and then holds it until told to end."""

    def __init__(self, place: Place) -> None:
        self.said: list[str] = []
        self.term: int | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(place,), daemon=True)
        self._thread.start()

    def _run(self, place: Place) -> None:
        with only_one(place, self.said.append) as term:
            self.term = term
            self._end.wait(PATIENCE_S)

    def end(self) -> None:
        self._end.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def wait_until(is_so: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.01)
    return time.monotonic() - began


def made(place: Place) -> Place:
    Store(place).close()
    return place


def test_who_comes_second_stands_by_and_takes_over_when_the_first_ends(place: Place) -> None:
    with only_one(made(place), pytest.fail):
        second = Standby(place)
        wait_until(lambda: bool(second.said))
        time.sleep(1.5)  # longer than a lease: the first renews it
        assert second.term is None
        assert second.said[0].startswith("event=standby holder=")
        assert second.said[0].endswith(f":{os.getpid()}")
    assert wait_until(lambda: second.term is not None) < 0.9  # what is given back need not run out
    second.end()
    assert [said.partition(" ")[0] for said in second.said] == ["event=standby", "event=took-over"]


def test_a_lock_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot lock"), only_one(tmp_path / "none/broker.db", print):
        pass


def test_every_holder_has_a_larger_term(postgres: PostgresServer) -> None:
    address = made(postgres.fresh())
    terms = []
    for _ in range(3):
        with only_one(address, print) as term:
            terms.append(term)
    assert terms == [1, 2, 3]


def test_a_holder_that_stood_still_finds_another_term_and_writes_nothing(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = made(postgres.fresh())
    with monkeypatch.context() as stopped:
        stopped.setattr(lease, "_keep", lambda *_: None)  # it does not renew, as if it slept
        with only_one(address, print) as term, Store(address, term=term) as sleeper:
            sleeper.apply(StoreEpoch(1))
            second = Standby(address)
            assert 0.5 < wait_until(lambda: second.term is not None) < 5.0
            with pytest.raises(StoreError, match="has taken over the store"):
                sleeper.apply(StoreEpoch(2))
            with Store(address, term=second.term or 0) as holder:
                holder.apply(StoreEpoch(3))
                assert holder.snapshot().epoch == 3
    second.end()


def test_a_holder_past_its_end_goes_on_as_long_as_nobody_has_taken_over(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_keep", lambda *_: None)
    address = made(postgres.fresh())
    with only_one(address, print) as term, Store(address, term=term) as holder:
        time.sleep(1.2)
        holder.apply(StoreEpoch(1))
        assert holder.change_counter() >= 0


def test_a_write_that_is_under_way_is_over_before_another_holder_begins(postgres: PostgresServer) -> None:
    """The term is looked at with the writer's lock in hand: between the look and the commit nobody takes over."""
    address = made(postgres.fresh())
    postgres.ask("INSERT INTO lease VALUES (1, 7, 'old:1', 0)", address.url)  # past its end
    with Store(address, term=7) as writer:
        with writer.transaction():
            writer.apply(StoreEpoch(5))
            second = Standby(address)
            time.sleep(0.5)
            assert second.term is None
        wait_until(lambda: second.term is not None)
        assert second.term == 8
        with pytest.raises(StoreError, match="has taken over"):
            writer.apply(StoreEpoch(6))
    second.end()
    assert Store(address).snapshot().epoch == 5


def test_a_write_that_waited_for_a_take_over_finds_another_term(postgres: PostgresServer) -> None:
    """What it looks at must be what is true once it has the lock, and not what was true when it began to wait."""
    address = made(postgres.fresh())
    postgres.ask("INSERT INTO lease VALUES (1, 7, 'old:1', 0)", address.url)
    told = []

    def write() -> None:
        with Store(address, term=7) as sleeper:
            told.append("began")
            with pytest.raises(StoreError, match="has taken over"):
                sleeper.apply(StoreEpoch(6))
            told.append("refused")

    with Store(address) as taker, taker.transaction():
        taker._db.run("UPDATE lease SET term = 8")
        waiting = threading.Thread(target=write)
        waiting.start()
        wait_until(lambda: bool(told))
        time.sleep(0.3)
        assert waiting.is_alive()
    waiting.join(PATIENCE_S)
    assert told == ["began", "refused"]
    assert Store(address).snapshot().epoch == 0


def test_nobody_renews_the_lease_of_another(postgres: PostgresServer) -> None:
    address = made(postgres.fresh())
    with only_one(address, print):
        wait_until(lambda: postgres.ask("SELECT ends_unix_s > 0 FROM lease", address.url) == [(True,)])
        postgres.ask("UPDATE lease SET term = 99, ends_unix_s = 0", address.url)
        time.sleep(0.6)
    assert postgres.ask("SELECT term, ends_unix_s FROM lease", address.url) == [(99, 0.0)]


def test_two_that_come_at_once_are_never_both_holders(postgres: PostgresServer) -> None:
    address = made(postgres.fresh())
    all_of_them = [Standby(address) for _ in range(4)]
    for turn in range(4):
        wait_until(lambda: any(each.term is not None for each in all_of_them))
        time.sleep(0.2)
        (holder,) = [each for each in all_of_them if each.term is not None]
        assert holder.term == turn + 1
        holder.end()
        all_of_them.remove(holder)


def test_the_renewal_survives_a_cut_connection(postgres: PostgresServer) -> None:
    address = made(postgres.fresh())
    with only_one(address, print) as term:
        wait_until(lambda: postgres.ask("SELECT count(*) FROM lease WHERE ends_unix_s > 0", address.url) == [(1,)])
        with contextlib.suppress(Exception):
            postgres.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        second = Standby(address)
        time.sleep(1.6)
        assert second.term is None
        with Store(address, term=term) as holder:
            holder.apply(StoreEpoch(1))
    second.end()
