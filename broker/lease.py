"""One coordinator a store: the others stand by, and one of them takes over when it ends.

On one machine the kernel keeps a lock for us, which ends with its process, however that ends. On PostgreSQL a row says
who may write:

    free, or past its end ──take: term + 1──▶ held ──renewed every RENEW_S──▶ held
            ▲                                  │
            └───── given back, or LEASE_S without a renewal ─────┘

Both ends of it are told by the database's own clock. A holder that slept past the end wakes up with an old term, with
which `broker.postgres` writes nothing, and ends. The MQTT server fences the link in its own way: every coordinator of a
fleet has the same client id, of which it lets only the newest stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.database import Address, StoreError, open_database
from wire.log_line import line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker.database import Database, Place

LEASE_S: Final = 6.0  # how long a fleet is without a coordinator whose machine has died
RENEW_S: Final = 1.5
POLL_S: Final = 0.5

_HOLDER: Final = "SELECT holder FROM lease WHERE ends_unix_s > EXTRACT(EPOCH FROM clock_timestamp())"
_TAKE: Final = """
    INSERT INTO lease (only_row, term, holder, ends_unix_s)
    VALUES (1, 1, :holder, EXTRACT(EPOCH FROM clock_timestamp()) + :lease_s)
    ON CONFLICT (only_row) DO UPDATE
    SET term = lease.term + 1, holder = excluded.holder, ends_unix_s = excluded.ends_unix_s
    WHERE lease.ends_unix_s <= EXTRACT(EPOCH FROM clock_timestamp()) RETURNING term
"""
_RENEW: Final = """
    UPDATE lease SET ends_unix_s = EXTRACT(EPOCH FROM clock_timestamp()) + :lease_s WHERE term = :term RETURNING term
"""
_GIVE_BACK: Final = "UPDATE lease SET ends_unix_s = 0 WHERE term = :term RETURNING term"


@contextlib.contextmanager
def only_one(place: Place, say: Callable[[str], None]) -> Iterator[int]:
    """Wait until no other coordinator has the store, and have it for the block. Raises StoreError.

    Gives the term with which the store is to be opened: 0 where the lock of a file is enough. `say` takes the lines of
    the log.
    """
    me = f"{socket.gethostname()}:{os.getpid()}"
    with _lock(place, me, say) if isinstance(place, Path) else _lease(place, me, say) as term:
        yield term


@contextlib.contextmanager
def _lock(store_path: Path, me: str, say: Callable[[str], None]) -> Iterator[int]:
    path = store_path.with_name(f".{store_path.name}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"cannot lock {path}: {error.strerror}") from error
    try:
        _wait(lambda: _has_locked(descriptor), lambda: os.pread(descriptor, 100, 0).decode("utf-8", "replace"), say)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, me.encode(), 0)
        yield 0
    finally:
        os.close(descriptor)


def _has_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _lease(address: Address, me: str, say: Callable[[str], None]) -> Iterator[int]:
    with contextlib.closing(open_database(address, make=False)) as database:
        terms: list[int] = []
        _wait(lambda: _has_taken(database, me, terms), lambda: _holder(database), say)
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(address, terms[0], ended), name="lease", daemon=True)
    keeper.start()
    try:
        yield terms[0]
    finally:
        ended.set()
        keeper.join()


def _has_taken(database: Database, me: str, terms: list[int]) -> bool:
    if _holder(database):  # asked first, because to try counts as a write
        return False
    with database.transaction():  # and so none of the last holder's is under way
        terms += [term for (term,) in database.rows(_TAKE, {"holder": me, "lease_s": LEASE_S})]
    return bool(terms)


def _holder(database: Database) -> str:
    found = database.rows(_HOLDER)
    return str(found[0][0]) if found else ""


def _keep(address: Address, term: int, ended: threading.Event) -> None:
    """Renew until `ended`, then give back; with another connection where one was cut. Ends when the term is over."""
    while not ended.is_set():
        with contextlib.suppress(StoreError), contextlib.closing(open_database(address, make=False)) as database:
            while database.rows(_RENEW, {"term": term, "lease_s": LEASE_S}):
                if ended.wait(RENEW_S):
                    database.rows(_GIVE_BACK, {"term": term})
                    return
            return  # somebody else has it, which our next write is told
        ended.wait(RENEW_S)


def _wait(is_ours: Callable[[], bool], holder: Callable[[], str], say: Callable[[str], None]) -> None:
    told = ""
    while not is_ours():
        other = holder()
        if other and other != told:
            say(line("standby", holder=other))
            told = other
        time.sleep(POLL_S)
    if told:
        say(line("took-over", holder=told))
