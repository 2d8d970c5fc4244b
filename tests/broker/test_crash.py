"""A power cut at every place: the store as it is then, a new coordinator, and the same devices resending.

Witness training: device n's update is one-hot at n, so the version that comes of it shows who was lost (0), counted
(1) or counted twice (2). Nothing inside the coordinator is believed. All of it on either database.
"""

from __future__ import annotations

import os
import random
import signal
import struct
from typing import TYPE_CHECKING

import pytest

from broker.coordinator import SETTLE_MS, Coordinator
from broker.effects import (
    Aggregate,
    Aggregated,
    CommitRound,
    Connected,
    Effect,
    Event,
    Publish,
    Received,
    RoundsRead,
    Tick,
)
from broker.store import Store
from tests.broker import fleet
from tests.broker.fleet import DEVICES, KEY, first_manifest, params, said, sealed
from wire.messages import Receipt, digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.database import Place


class PowerCutError(Exception):
    """The power is gone."""


class World:
    """A coordinator over a real store, and a knife that falls at one effect."""

    def __init__(self, place: Place, cut_at: int | None, *, performed: bool) -> None:
        self.place = place
        self.receipted: set[bytes] = set()
        self.effects = 0
        self._cut_at, self._performed = cut_at, performed
        self.start()

    def start(self) -> None:
        self.store = Store(self.place)
        self.machine = Coordinator(fleet.identity(), self.store.snapshot(), random.Random(1))

    def handle(self, event: Event, now_ms: int) -> None:
        for effect in self.machine.handle(event, now_ms):
            self.effects += 1
            is_cut = self.effects == self._cut_at
            if not is_cut or self._performed:
                self._perform(effect, now_ms)
            if is_cut:
                raise PowerCutError

    def _perform(self, effect: Effect, now_ms: int) -> None:
        if isinstance(effect, Publish):
            for _, message in said([effect]):
                if isinstance(message, Receipt) and message.verdict in {"accepted", "duplicate"}:
                    self.receipted.add(message.digest)
        elif isinstance(effect, Aggregate):
            before = struct.unpack("<4f", self.store.blob(effect.manifest.files[1].digest))
            payloads = [self.store.update_payload(m.device_id, m.round_id) for m in effect.members]
            deltas = [struct.unpack("<4f", payload) for payload in payloads]
            after = [b + sum(column) for b, column in zip(before, zip(*deltas, strict=True), strict=True)]
            made = Aggregated(effect.round_id, params(*after), None, None, b"owed", patch=b"the way")
            self.handle(made, now_ms)
        else:
            self.store.apply(effect)


def one_hot(device: str) -> bytes:
    return params(*(float(at == DEVICES.index(device)) for at in range(4)))


UPDATES = {device: sealed(device, fleet.update(1, 1, one_hot(device))) for device in DEVICES}


def live(world: World) -> None:
    """A run's worth of events: everyone comes, sends what has no receipt yet, and time passes."""
    world.handle(Connected(), 0)
    world.handle(RoundsRead(world.store.waiting_rounds()), 1)
    for device in DEVICES:
        world.handle(Received(*sealed(device, fleet.birth())), 2)
    for device in DEVICES:
        topic, payload = UPDATES[device]
        if digest_of(payload) not in world.receipted:
            world.handle(Received(topic, payload), 3)
    for now_ms in (SETTLE_MS, SETTLE_MS + 100_000, SETTLE_MS + 200_000):
        world.handle(Tick(), now_ms)


def make(place: Place) -> None:
    with Store(place) as store:
        store.put_first_version(*first_manifest(), b"first")
        for device in DEVICES:
            store.add_device(device, KEY[device])
        store.ask_for([fleet.row(0, updates_min=2)])


def life(place: Place, cut_at: int | None, *, performed: bool) -> World:
    make(place)
    world = World(place, cut_at, performed=performed)
    try:
        live(world)
    except PowerCutError:
        world.start()  # on what is on disk; the writer before it was never closed
        live(world)
    return world


def test_the_scripted_life_closes_its_round_and_counts_everyone_once(place: Place) -> None:
    world = life(place, None, performed=True)
    assert struct.unpack("<4f", newest(world.store)) == (1, 1, 1, 0)
    assert world.effects > 15


def newest(store: Store) -> bytes:
    return store.blob(store.versions()[-1].params_digest)


@pytest.mark.parametrize("performed", [True, False], ids=["after", "before"])
def test_no_cut_loses_or_doubles_an_update_that_has_a_receipt(places: Iterator[Place], performed: bool) -> None:
    whole = life(next(places), None, performed=True).effects
    for cut_at in range(1, whole + 1):
        world = life(next(places), cut_at, performed=performed)
        assert_nothing_lost_or_doubled(world, f"cut {'after' if performed else 'before'} effect {cut_at}")


def assert_nothing_lost_or_doubled(world: World, when: str) -> None:
    assert world.receipted == {digest_of(payload) for _, payload in UPDATES.values()}, when
    counted = struct.unpack("<4f", newest(world.store))
    pending = {waiting.device_id for waiting in world.store.snapshot().pending}
    assert list(counted) == [*(float(device not in pending) for device in DEVICES), 0.0], when
    assert [each.status for each in world.store.rounds()] == ["closed"], when
    assert world.store.patches(1, 2) == [b"the way"], when
    assert (world.store.remainder(1), world.store.remainder(2)) == (b"", b"owed"), when


class Knife:
    """A connection that ends its process, as SIGKILL does, before one of the statements that write, begin or commit."""

    def __init__(self, db: object, fall_at: int) -> None:
        self._db, self._left = db, fall_at

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def execute(self, sql: str | bytes, *values: object, **options: object) -> object:
        text = sql if isinstance(sql, str) else sql.decode()
        if not text.lstrip().startswith(("SELECT", "PRAGMA", "BEGIN ISOLATION LEVEL REPEATABLE")):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._db.execute(sql, *values, **options)


class Told(set[bytes]):
    """What was receipted, told to another process as it happens."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def add(self, digest: bytes) -> None:
        os.write(self._descriptor, digest)
        super().add(digest)


def killed_life(place: Place, kill_at: int) -> set[bytes] | None:
    """A coordinator's life in a process of its own, killed at a statement: what it receipted. None: it lived on."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            world = World(place, None, performed=True)
            world.receipted = Told(writing)
            world.store._db._db = Knife(world.store._db._db, kill_at)
            live(world)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    status = os.waitpid(child, 0)[1]
    return {told[at : at + 32] for at in range(0, len(told), 32)} if os.WIFSIGNALED(status) else None


@pytest.mark.slow
def test_a_coordinator_that_is_killed_at_any_write_resumes_its_round(places: Iterator[Place]) -> None:
    """Each statement, not some: what it receipted before is in the store after, once."""
    kill_at = 0
    while True:
        kill_at += 1
        place = next(places)
        make(place)
        receipted = killed_life(place, kill_at)
        world = World(place, None, performed=True)
        if receipted is None:
            break
        world.receipted = receipted
        live(world)
        assert_nothing_lost_or_doubled(world, f"killed at statement {kill_at}")
        world.store.close()
    assert kill_at > 25
    assert struct.unpack("<4f", newest(world.store)) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    "which", ["INSERT INTO blobs", "INSERT INTO versions", "INSERT INTO rounds", "UPDATE versions"]
)
def test_a_version_and_the_patch_that_leads_to_it_are_on_disk_together_or_not_at_all(
    place: Place, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """The power goes at each statement of the commit: what the next run finds is version 1 as it was."""
    make(place)
    world = World(place, None, performed=True)
    run, commits = world.store._db.run, []

    def cut(sql: str, values: object = None) -> int:
        if sql.startswith(which) and commits:
            raise PowerCutError
        return run(sql, values)

    apply = world.store.apply
    monkeypatch.setattr(world.store._db, "run", cut)
    monkeypatch.setattr(
        world.store, "apply", lambda effect: commits.extend([effect] * isinstance(effect, CommitRound)) or apply(effect)
    )
    with pytest.raises(PowerCutError):
        live(world)
    left = Store(place)
    assert len(left.versions()) == 1
    assert (left.remainder(1), left.patches(1, 2)) == (b"first", [])
    assert len(left.snapshot().pending) == 3
    world.start()
    live(world)
    assert world.store.patches(1, 2) == [b"the way"]
    assert struct.unpack("<4f", newest(world.store)) == (1, 1, 1, 0)
