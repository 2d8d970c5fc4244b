"""The audit finds what a coordinator hides: its store is written as if all were well, and its sums are not."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from broker.aggregate.rules import next_params, rule_named
from broker.effects import CommitRound, Pending, RoundRow, StoreRound, StoreUpdate, UpdateRow
from broker.rounds import weigh
from broker.store import Store
from engine.codec.residual import step
from firmware_sim.lineage import Finished, Lineage, judge
from wire import chunks
from wire.messages import Manifest, Plan, Update

SIZE = 40
DEVICES = ("cabin", "dune", "elm")
PLAN = Plan(
    model="toy",
    train="last-1",
    lane="economy",
    num_params=SIZE,
    epochs=1,
    batch_size=4,
    learning_rate=0.1,
    momentum=0.0,
    clip_norm=10.0,
    keep_count=8,
    value_bits=4,
    seed=1,
    num_examples_min=1,
    num_examples_max=30,
    trainer_memory_bytes_max=64 << 20,
    trainer_ms_max=1000,
)


def manifest_of(version: int, params: bytes) -> Manifest:
    return Manifest("toy", version, version - 1, SIZE, (chunks.split("params.f32", params),))


class Fleet:
    """A store and a wire, filled round by round by a coordinator that may cheat."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.chance = np.random.default_rng(5)
        self.first = self.chance.normal(size=SIZE).astype("<f4").tobytes()
        self.params = self.first
        first = manifest_of(1, self.first)
        self.store.put_first_version(first, {first.files[0].digest: self.first})
        self.store.request_rounds(PLAN, 5, 1, 0, 1000)
        self.wire: dict[bytes, Update] = {}
        self.finished: dict[bytes, Finished] = {}

    def make(self, device: str, round_id: int, base: int) -> Pending:
        payload, _ = step(
            self.chance.normal(size=SIZE).astype(np.float32), np.zeros(SIZE, np.float32), 8, 4, float("inf")
        )
        update = Update(round_id, base, 20 + 5 * len(device), 0, 0, payload)
        digest = hashlib.sha256(payload + device.encode()).digest()
        self.wire[digest] = update
        self.finished[digest] = Finished(device, round_id, len(payload) + 100)
        weight = min(update.num_examples, 30)
        self.store.apply(StoreUpdate(UpdateRow(device, round_id, base, weight, digest, 0, 0, payload)))
        return Pending(device, round_id, base, weight)

    def close(self, round_id: int, members: list[Pending], really: list[Pending] | None = None) -> None:
        version = round_id  # round r turns version r into r + 1
        weighed = [weigh(member, version) for member in members]
        added = weighed if really is None else [weigh(member, version) for member in really]
        payload_of = self.store.update_payload
        self.params = next_params(self.params, added, payload_of, rule_named("fedavg"), 1.0)
        opened = RoundRow(round_id, PLAN, "open", 1, 0, 1000, version)
        self.store.apply(StoreRound(opened))
        closed = RoundRow(round_id, PLAN, "closed", 1, 0, 1000, version, version + 1)
        manifest = manifest_of(version + 1, self.params)
        self.store.apply(CommitRound(closed, manifest, self.params, tuple(weighed), None, None))

    def honest_round(self, round_id: int) -> None:
        self.close(round_id, [self.make(device, round_id, round_id) for device in DEVICES])


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "broker.db")
    yield made
    made.store.close()


def test_an_honest_lineage_is_proved_bit_for_bit(fleet: Fleet) -> None:
    fleet.honest_round(1)
    late = fleet.make("fen", 1, 1)  # of round 1, counted in round 3: stale, and so lighter
    fleet.honest_round(2)
    fleet.close(3, [late, *(fleet.make(device, 3, 3) for device in DEVICES)])
    lineage = Lineage(fleet.first, 1.0)
    lineage.advance(fleet.store, fleet.wire.get)
    assert lineage.params == fleet.params
    verdict = judge(fleet.finished, fleet.store.updates(), [], lineage)
    assert (verdict.versions_proved, verdict.versions_wrong, verdict.from_store) == (3, 0, 0)
    assert (verdict.finished, verdict.counted, verdict.lost, verdict.double_counted) == (10, 10, [], [])


def test_an_update_added_twice_and_written_down_once_is_found(fleet: Fleet) -> None:
    fleet.honest_round(1)
    members = [fleet.make(device, 2, 2) for device in DEVICES]
    fleet.close(2, members, really=[*members, members[1]])
    fleet.honest_round(3)
    lineage = Lineage(fleet.first, 1.0)
    lineage.advance(fleet.store, fleet.wire.get)
    verdict = judge(fleet.finished, fleet.store.updates(), [], lineage)
    assert verdict.double_counted == [("dune", 2)]
    assert (verdict.versions_proved, verdict.versions_wrong, verdict.lost) == (2, 1, [])


def test_an_update_written_down_and_never_added_is_lost(fleet: Fleet) -> None:
    members = [fleet.make(device, 1, 1) for device in DEVICES]
    fleet.close(1, members, really=members[:2])
    lineage = Lineage(fleet.first, 1.0)
    lineage.advance(fleet.store, fleet.wire.get)
    verdict = judge(fleet.finished, fleet.store.updates(), [], lineage)
    assert verdict.lost == [("elm", 1)]
    assert (verdict.counted, verdict.versions_wrong) == (2, 1)


def test_parameters_that_nothing_explains_prove_nothing(fleet: Fleet) -> None:
    members = [fleet.make(device, 1, 1) for device in DEVICES]
    fleet.close(1, members, really=members[:1])  # two of three left out
    lineage = Lineage(fleet.first, 1.0)
    lineage.advance(fleet.store, fleet.wire.get)
    verdict = judge(fleet.finished, fleet.store.updates(), [], lineage)
    assert verdict.lost == [("cabin", 1), ("dune", 1), ("elm", 1)]
    fleet.honest_round(2)
    lineage.advance(fleet.store, fleet.wire.get)
    assert lineage.proved == [3]  # and the audit goes on from there


def test_an_update_that_waits_in_the_store_is_not_counted(fleet: Fleet) -> None:
    fleet.honest_round(1)
    fleet.make("fen", 1, 1)
    lineage = Lineage(fleet.first, 1.0)
    lineage.advance(fleet.store, fleet.wire.get)
    assert judge(fleet.finished, fleet.store.updates(), [], lineage).lost == [("fen", 1)]


def test_a_refusal_is_no_loss_and_a_stored_update_of_nobody_is_named(fleet: Fleet) -> None:
    fleet.honest_round(1)
    fleet.finished[b"r" * 32] = Finished("gorse", 1, 300)
    digest = next(iter(fleet.wire))
    del fleet.finished[digest]
    lineage = Lineage(fleet.first, 1.0)
    lineage.advance(fleet.store, fleet.wire.get)
    verdict = judge(fleet.finished, fleet.store.updates(), [b"r" * 32, b"x" * 32], lineage)
    assert verdict.refused == [("gorse", 1)]
    assert verdict.lost == []
    assert verdict.unknown == [("cabin", 1)]


def test_what_the_wire_did_not_show_is_taken_from_the_store_and_told(fleet: Fleet) -> None:
    fleet.honest_round(1)
    del fleet.wire[next(iter(fleet.wire))]
    lineage = Lineage(fleet.first, 1.0)
    lineage.advance(fleet.store, fleet.wire.get)
    assert lineage.proved == [2]
    assert lineage.from_store == 1
