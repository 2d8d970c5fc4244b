"""The audit finds what a coordinator hides: its store is written as if all were well, and its sums are not."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest

from broker.aggregate.rules import Recipe, next_numbers, rule_named
from broker.effects import Aggregated, CommitRound, Pending, RoundRow, StoreRound, StoreUpdate, UpdateRow
from broker.estimates import Estimates
from broker.plans import is_dense
from broker.registry import first_version, model_of
from broker.rounds import weigh
from broker.store import Store
from broker.versions import publish_max
from engine.codec import estimate
from engine.codec.residual import Sending, nothing_owed, step
from engine.frame import frame_of
from engine.master import Numbers
from engine.rescale import grown
from firmware_sim.lineage import Finished, Lineage, judge
from tests.engine.graph_tflite import write
from tests.engine.sketch import residual_net
from wire import chunks
from wire.messages import MODEL_FILE, PARAMS_FILE, Manifest, Plan, Update

MODEL = write(residual_net())
SIZE = frame_of(MODEL, "last-1").suffix.num_params
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
    value_bits=0,
    seed=1,
    num_examples_min=1,
    num_examples_max=30,
    trainer_memory_bytes_max=64 << 20,
    trainer_ms_max=1000,
)


class Fleet:
    """A store and a wire, filled round by round by a coordinator that may cheat."""

    def __init__(
        self,
        path: Path,
        publish_rate: float = 0.0,
        rule: str = "fedavg",
        lane: Literal["economy", "hardened"] = "economy",
    ) -> None:
        self.plan = msgspec.structs.replace(PLAN, lane=lane)
        self.estimates = Estimates(path.with_name("estimates"))
        self.said: dict[str, estimate.Estimate] = {}  # by device, in lane hardened
        self.publish_rate, self.rule, self.rule_state = publish_rate, rule_named(rule), b""
        self.store = Store(path)
        self.chance = np.random.default_rng(5)
        manifest, blobs, remainder = first_version(MODEL, "toy", "last-1", 3)
        self.first = Numbers(blobs[manifest.files[1].digest], remainder)
        self.base = frame_of(model_of(manifest, blobs.__getitem__), "last-1")
        self.frame, self.numbers, self.manifest = self.base, self.first, manifest
        self.store.put_first_version(manifest, blobs, remainder)
        self.store.ask_for([RoundRow(0, self.plan, "waiting", 1, 0, 1000)] * 5)
        self.wire: dict[bytes, Update] = {}
        self.finished: dict[bytes, Finished] = {}

    def lineage(self) -> Lineage:
        return Lineage(self.base, self.first, self.rule, 1.0, self.publish_rate)

    def make(self, device: str, round_id: int, base: int, spread: float = 3.0, last: int = 0) -> Pending:
        delta = np.rint(self.chance.normal(size=SIZE) * spread * self.frame.unit).astype(np.int32)
        delta[-1] = last * self.frame.unit[-1] or delta[-1]
        sending = Sending(8 if spread < 9 else SIZE, 0, "context", float("inf"))
        if self.plan.lane == "hardened":
            known = self.said.get(device, estimate.nothing(SIZE))
            payload, self.said[device], _ = estimate.say(delta, known, self.frame, sending, round_id)
        else:
            payload = step(delta, nothing_owed(self.frame), self.frame, sending, base).payload
        update = Update(round_id, base, 20 + 5 * len(device), 0, 0, payload)
        digest = hashlib.sha256(payload + device.encode()).digest()
        self.wire[digest] = update
        self.finished[digest] = Finished(device, round_id, len(payload) + 100)
        weight = min(update.num_examples, 30)
        self.store.apply(StoreUpdate(UpdateRow(device, round_id, base, weight, digest, 0, 0, payload)))
        return Pending(device, round_id, base, weight)

    def close(
        self, round_id: int, members: list[Pending], really: list[Pending] | None = None, *, base: bytes = b""
    ) -> None:
        """`base` is a base file to publish in place of the one that the rule of rescaling gives."""
        version = round_id  # round r turns version r into r + 1
        weighed = [weigh(member, version) for member in members]
        added = weighed if really is None else [weigh(member, version) for member in really]
        before, now = (self.frame, self.numbers), self.manifest
        most = publish_max(self.publish_rate, self.plan)
        closing = round_id, now.model_version, now.scale_epoch, is_dense(self.plan)
        recipe = Recipe(self.rule, 1.0, most, *closing)
        remembered = {"rule_state": self.rule_state, "estimates": self.estimates}
        made = next_numbers(*before, added, self.payload_of, recipe, **remembered)
        self.numbers, _, self.rule_state = made
        self.frame, self.numbers = grown(self.frame, self.numbers) or (self.frame, self.numbers)
        self.store.apply(StoreRound(RoundRow(round_id, self.plan, "open", 1, 0, 1000, version)))
        closed = RoundRow(round_id, self.plan, "closed", 1, 0, 1000, version, version + 1)
        model = base or (self.frame.model if self.frame is not before[0] else b"")
        kept = self.numbers.remainder, model, b"", self.rule_state
        made = Aggregated(round_id, self.numbers.published, None, None, *kept)
        base_file = chunks.split(MODEL_FILE, model) if model else self.manifest.files[0]
        files = (base_file, chunks.split(PARAMS_FILE, self.numbers.published))
        epoch = self.manifest.scale_epoch + int(bool(model))
        opened = version + 1 if model else self.manifest.base_version
        self.manifest = Manifest("toy", version + 1, version, SIZE, files, epoch, base_version=opened)
        self.store.apply(CommitRound(closed, self.manifest, made, tuple(weighed)))

    def payload_of(self, device_id: str, round_id: int) -> bytes:
        return self.store.update_payload(device_id.removesuffix(" again"), round_id)

    def honest_round(self, round_id: int) -> None:
        self.close(round_id, [self.make(device, round_id, round_id) for device in DEVICES])


def again(member: Pending) -> Pending:
    """As a coordinator counts it who adds somebody's update twice."""
    return msgspec.structs.replace(member, device_id=f"{member.device_id} again")


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
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    assert lineage.numbers == fleet.numbers
    verdict = judge(fleet.finished, fleet.store.updates(), [], lineage)
    assert (verdict.versions_proved, verdict.versions_wrong, verdict.from_store) == (3, 0, 0)
    assert (verdict.finished, verdict.counted, verdict.lost, verdict.double_counted) == (10, 10, [], [])


@pytest.mark.parametrize("rule", ["mixed-trimmed-mean", "fedavg"])
def test_in_lane_hardened_what_is_held_of_each_device_is_made_again_from_the_wire(tmp_path: Path, rule: str) -> None:
    fleet = Fleet(tmp_path / "broker.db", rule=rule, lane="hardened")
    fleet.honest_round(1)
    late = fleet.make("fen", 1, 1)
    fleet.honest_round(2)
    fleet.close(3, [late, *(fleet.make(device, 3, 3) for device in (*DEVICES, "fen"))])  # two of fen's, one voice
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    assert (lineage.proved, lineage.wrong) == ([2, 3, 4], [])
    assert lineage.numbers == fleet.numbers
    members = [fleet.make(device, 4, 4) for device in DEVICES]
    fleet.close(4, members, members[1:])  # the first is lost, and the store says that it was counted
    lineage.advance(fleet.store, fleet.wire.get)
    assert lineage.wrong == [5]
    assert lineage.left_out == [("cabin", 4)]


@pytest.mark.parametrize("rule", ["guarded", "fedavgm", "centered-clipping"])
def test_what_a_rule_remembers_is_made_again_from_the_wire(tmp_path: Path, rule: str) -> None:
    fleet = Fleet(tmp_path / "broker.db", rule=rule)
    for round_id in (1, 2, 3):
        fleet.honest_round(round_id)
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    assert (lineage.proved, lineage.wrong) == ([2, 3, 4], [])
    assert lineage.rule_state == fleet.rule_state == fleet.store.rule_state(4) != b""
    assert fleet.store.rule_state(3) == b"", "only the newest version's is kept"
    fleet.rule_state = fleet.rule_state[:-4] + b"\0\0\x80\x3f"  # a coordinator that forgets a little of it
    fleet.honest_round(4)
    lineage.advance(fleet.store, fleet.wire.get)
    assert lineage.wrong == [5]
    fleet.store.close()


def test_what_a_rule_is_said_to_remember_is_not_believed(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "broker.db", rule="guarded")
    fleet.honest_round(1)
    other = fleet.rule_state[:-4] + b"\0\0\x80\x3f"
    fleet.store._db.run("UPDATE versions SET rule_state = :other WHERE model_version = 2", {"other": other})
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    assert (lineage.proved, lineage.wrong) == ([], [2])
    fleet.store.close()


def test_an_update_added_twice_and_written_down_once_is_found(fleet: Fleet) -> None:
    fleet.honest_round(1)
    members = [fleet.make(device, 2, 2) for device in DEVICES]
    fleet.close(2, members, really=[*members, again(members[1])])
    fleet.honest_round(3)
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    verdict = judge(fleet.finished, fleet.store.updates(), [], lineage)
    assert verdict.double_counted == [("dune", 2)]
    assert (verdict.versions_proved, verdict.versions_wrong, verdict.lost) == (2, 1, [])


def test_an_update_written_down_and_never_added_is_lost(fleet: Fleet) -> None:
    members = [fleet.make(device, 1, 1) for device in DEVICES]
    fleet.close(1, members, really=members[:2])
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    verdict = judge(fleet.finished, fleet.store.updates(), [], lineage)
    assert verdict.lost == [("elm", 1)]
    assert (verdict.counted, verdict.versions_wrong) == (2, 1)


def test_what_a_version_holds_back_is_audited_in_the_newest_one(tmp_path: Path) -> None:
    """Of one parameter a version no digest shows that an update was added twice; the master does."""
    published = []
    for doubled in (False, True):
        fleet = Fleet(tmp_path / f"{doubled}.db", publish_rate=1e-9)
        fleet.honest_round(1)  # the toy's first numbers are crowded, and a new scale epoch holds nothing back
        members = [fleet.make(device, 2, 2, last=100) for device in DEVICES]  # this one is published, and all agree
        fleet.close(2, members, really=[*members, again(members[2])] if doubled else None)
        published.append(fleet.manifest.files[1].digest)
        lineage = fleet.lineage()
        lineage.advance(fleet.store, fleet.wire.get)
        assert (lineage.proved, lineage.wrong) == (([2], [3]) if doubled else ([2, 3], []))
        assert lineage.doubled == ([("elm", 2)] if doubled else [])
        assert lineage.numbers == fleet.numbers
        fleet.honest_round(3)
        lineage.advance(fleet.store, fleet.wire.get)
        assert lineage.proved[-1] == 4
        fleet.store.close()
    assert published[0] == published[1]


def test_after_a_version_that_nothing_explains_only_the_newest_is_a_place_to_go_on_from(fleet: Fleet) -> None:
    members = [fleet.make(device, 1, 1) for device in DEVICES]
    fleet.close(1, members, really=members[:1])
    fleet.honest_round(2)
    fleet.honest_round(3)
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    assert (lineage.proved, lineage.wrong) == ([], [2, 3, 4])  # the master of version 2 is gone: who could tell?
    fleet.honest_round(4)
    lineage.advance(fleet.store, fleet.wire.get)
    assert lineage.proved == [5]


def test_parameters_that_nothing_explains_prove_nothing(fleet: Fleet) -> None:
    members = [fleet.make(device, 1, 1) for device in DEVICES]
    fleet.close(1, members, really=members[:1])  # two of three left out
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    verdict = judge(fleet.finished, fleet.store.updates(), [], lineage)
    assert verdict.lost == [("cabin", 1), ("dune", 1), ("elm", 1)]
    fleet.honest_round(2)
    lineage.advance(fleet.store, fleet.wire.get)
    assert lineage.proved == [3]  # and the audit goes on from there


def test_an_update_that_waits_in_the_store_is_not_counted(fleet: Fleet) -> None:
    fleet.honest_round(1)
    fleet.make("fen", 1, 1)
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    assert judge(fleet.finished, fleet.store.updates(), [], lineage).lost == [("fen", 1)]


def test_a_refusal_is_no_loss_and_a_stored_update_of_nobody_is_named(fleet: Fleet) -> None:
    fleet.honest_round(1)
    fleet.finished[b"r" * 32] = Finished("gorse", 1, 300)
    digest = next(iter(fleet.wire))
    del fleet.finished[digest]
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    verdict = judge(fleet.finished, fleet.store.updates(), [b"r" * 32, b"x" * 32], lineage)
    assert verdict.refused == [("gorse", 1)]
    assert verdict.lost == []
    assert verdict.unknown == [("cabin", 1)]


def test_what_the_wire_did_not_show_is_taken_from_the_store_and_told(fleet: Fleet) -> None:
    fleet.honest_round(1)
    del fleet.wire[next(iter(fleet.wire))]
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    assert lineage.proved == [2]
    assert lineage.from_store == 1


@pytest.fixture
def open_handed(tmp_path: Path) -> Iterator[Fleet]:
    """A version may change every parameter."""
    made = Fleet(tmp_path / "broker.db", publish_rate=1.0)
    yield made
    made.store.close()


def crowded_round(fleet: Fleet, base: bytes = b"") -> None:
    fleet.close(1, [fleet.make(device, 1, 1, spread=300.0) for device in DEVICES], base=base)


def test_a_base_that_was_rescaled_by_the_rule_is_proved_and_the_lineage_goes_on_in_it(open_handed: Fleet) -> None:
    fleet = open_handed
    crowded_round(fleet)
    assert fleet.manifest.scale_epoch == 1
    fleet.honest_round(2)
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    assert (lineage.proved, lineage.wrong) == ([2, 3], [])
    assert lineage.frame.model == fleet.frame.model != fleet.base.model
    assert lineage.numbers == fleet.numbers


def test_a_base_file_that_does_not_hold_what_was_published_of_its_version_proves_nothing(open_handed: Fleet) -> None:
    """Its scales are right, and its numbers those of the version before."""
    fleet, old = open_handed, open_handed.first.published
    mine = [fleet.make(device, 1, 1, spread=300.0) for device in DEVICES]
    added = [weigh(member, 1) for member in mine]
    recipe = Recipe(fleet.rule, 1.0, SIZE, 1, 1)
    after, _, _ = next_numbers(fleet.base, fleet.first, added, fleet.store.update_payload, recipe)
    larger, _ = grown(fleet.base, after)
    fleet.close(1, mine, base=larger.file_with(old))
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    assert (lineage.proved, lineage.wrong) == ([], [2])


def test_a_base_that_the_rule_does_not_give_proves_nothing(fleet: Fleet) -> None:
    other = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    crowded_round(fleet, base=other)
    lineage = fleet.lineage()
    lineage.advance(fleet.store, fleet.wire.get)
    assert (lineage.proved, lineage.wrong) == ([], [2])
    assert lineage.frame.model == other
