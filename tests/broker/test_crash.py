"""A power cut at every place: the store as it is then, a new coordinator, and the same devices resending.

Witness training: device n's update is one-hot at n, so the version that comes of it shows who was lost (0), counted
(1) or counted twice (2). Nothing inside the coordinator is believed.
"""

from __future__ import annotations

import random
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
from tests.broker.fleet import DEVICES, KEY, PLAN, first_manifest, params, said, sealed
from wire.messages import Receipt, digest_of

if TYPE_CHECKING:
    from pathlib import Path


class PowerCutError(Exception):
    """The power is gone."""


class World:
    """A coordinator over a real store, and a knife that falls at one effect."""

    def __init__(self, path: Path, cut_at: int | None, *, performed: bool) -> None:
        self.path = path
        self.receipted: set[bytes] = set()
        self.effects = 0
        self._cut_at, self._performed = cut_at, performed
        self.start()

    def start(self) -> None:
        self.store = Store(self.path)
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


def make(path: Path) -> None:
    with Store(path) as store:
        store.put_first_version(*first_manifest(), b"first")
        for device in DEVICES:
            store.add_device(device, KEY[device])
        store.request_rounds(PLAN, 1, 2, 0, 60_000)


def life(path: Path, cut_at: int | None, *, performed: bool) -> World:
    make(path)
    world = World(path, cut_at, performed=performed)
    try:
        live(world)
    except PowerCutError:
        world.start()  # on what is on disk; the writer before it was never closed
        live(world)
    return world


def test_the_scripted_life_closes_its_round_and_counts_everyone_once(tmp_path: Path) -> None:
    world = life(tmp_path / "a.db", None, performed=True)
    assert struct.unpack("<4f", newest(world.store)) == (1, 1, 1, 0)
    assert world.effects > 15


def newest(store: Store) -> bytes:
    return store.blob(store.versions()[-1].params_digest)


@pytest.mark.parametrize("performed", [True, False], ids=["after", "before"])
def test_no_cut_loses_or_doubles_an_update_that_has_a_receipt(tmp_path: Path, performed: bool) -> None:
    whole = life(tmp_path / "whole.db", None, performed=True).effects
    for cut_at in range(1, whole + 1):
        world = life(tmp_path / f"{cut_at}.db", cut_at, performed=performed)
        assert world.receipted == {digest_of(payload) for _, payload in UPDATES.values()}, cut_at
        counted = struct.unpack("<4f", newest(world.store))
        pending = {waiting.device_id for waiting in world.store.snapshot().pending}
        expected = [float(device not in pending) for device in DEVICES]
        assert list(counted) == [*expected, 0.0], f"cut {'after' if performed else 'before'} effect {cut_at}"
        assert [each.status for each in world.store.rounds()] == ["closed"], cut_at
        assert world.store.patches(1, 2) == [b"the way"], cut_at
        assert (world.store.remainder(1), world.store.remainder(2)) == (b"", b"owed"), cut_at


@pytest.mark.parametrize(
    "which", ["INSERT INTO blobs", "INSERT INTO versions", "INSERT INTO rounds", "UPDATE versions"]
)
def test_a_version_and_the_patch_that_leads_to_it_are_on_disk_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """The power goes at each statement of the commit: what the next run finds is version 1 as it was."""
    make(tmp_path / "a.db")
    world = World(tmp_path / "a.db", None, performed=True)
    run, commits = world.store._db.run, []

    def cut(sql: str, values: object = None) -> int:
        if world.store._db._db.in_transaction and sql.startswith(which) and commits:
            raise PowerCutError
        return run(sql, values)

    apply = world.store.apply
    monkeypatch.setattr(world.store._db, "run", cut)
    monkeypatch.setattr(
        world.store, "apply", lambda effect: commits.extend([effect] * isinstance(effect, CommitRound)) or apply(effect)
    )
    with pytest.raises(PowerCutError):
        live(world)
    left = Store(tmp_path / "a.db")
    assert len(left.versions()) == 1
    assert (left.remainder(1), left.patches(1, 2)) == (b"first", [])
    assert len(left.snapshot().pending) == 3
    world.start()
    live(world)
    assert world.store.patches(1, 2) == [b"the way"]
    assert struct.unpack("<4f", newest(world.store)) == (1, 1, 1, 0)
