"""The loop around the machine: order on the disk and on the wire, and what the log says."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker import founding, service
from broker.config import load
from broker.effects import Aggregate, CommitRound, Publish, StoreEpoch, StoreRound, StoreSeen, StoreUpdate
from broker.registry import params_bytes_of
from broker.service import Service, ServiceError, runs
from broker.sqlite import StoreError
from broker.store import Store
from broker.views import ask_for_rounds, current_plan
from engine import master
from engine.codec import steps
from engine.codec.steps import Steps
from engine.frame import frame_of
from engine.master import Numbers
from engine.models.scheme import load_params
from tests.broker import fleet
from tests.broker.fleet import KEY, SIGN
from tests.broker.test_store import commit, update_row
from wire import envelope, keys, topics
from wire.link import Arrived, LinkDown, LinkUp
from wire.log_line import line
from wire.messages import Message, Offer, Plan, Receipt, Update

MODEL = Path(__file__).parents[2] / "firmware_sim/models/digits.tflite"


@dataclasses.dataclass
class PaperLink:
    """A link that writes down what it is given, and can be told what to do meanwhile."""

    verify: envelope.Verify
    published: list[tuple[str, bytes, bool]] = dataclasses.field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    alive: bool = True
    stopped: bool = False

    def start(self) -> None: ...

    def stop(self) -> None:
        self.stopped = True

    def is_alive(self) -> bool:
        return self.alive

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self.published.append((topic, payload, retain))
        self.bytes_up += len(payload)

    def heard(self, kind: type) -> list[Message]:
        messages = [envelope.unseal(payload, topic, self.verify) for topic, payload, _ in self.published]
        return [message for message in messages if isinstance(message, kind)]


class Rig:
    """A service of a real directory, with a paper link, turned by hand."""

    def __init__(self, directory: Path, **changes: object) -> None:
        self.config = msgspec.structs.replace(load(directory / "broker.toml"), **changes)
        self.store = Store(directory / "broker.db")
        self.said: list[str] = []
        self.service = Service(self.config, self.store, self.said.append)
        public = keys.public_text(keys.load_seed(directory / "coordinator.key"))
        self.link = PaperLink(keys.verifier(public))
        self.service._link = self.link
        self.service._poll_at_s = 0.0

    def turn(self, *events: object) -> None:
        for event in events:
            self.service.post(event)
        self.service._poll_at_s = 0.0
        self.service._turn(None)

    def say(self, device: str, message: Message, sign: str | None = None) -> Arrived:
        topic = topics.up("farm", device, type(message).__name__.lower())
        return Arrived(topic, envelope.seal(message, topic, SIGN[sign or device]), False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    founding.found(tmp_path / "farm", founding.Wishes(MODEL, "digits", reset_seed=3, fleet="farm"))
    with Store(tmp_path / "farm/broker.db") as store:
        for device in fleet.DEVICES:
            store.add_device(device, KEY[device])
    return tmp_path / "farm"


@pytest.fixture
def rig(directory: Path) -> Rig:
    return Rig(directory)


def payload(rig: Rig, at: int = 0) -> bytes:
    size = rig.store.snapshot().manifest.num_params
    return steps.encode(Steps(size, np.array([at], np.uint32), np.array([7], np.int16)))


def open_round(rig: Rig, *devices: str, updates_min: int = 1, keep_rate: float = 0.01) -> None:
    rig.turn(LinkUp())
    rig.turn(*(rig.say(device, fleet.birth()) for device in devices))
    with Store(rig.store.path) as operator:
        ask_for_rounds(
            rig.config,
            operator,
            count=1,
            updates_min=updates_min,
            cohort_max=None,
            lasts_ms=None,
            keep_rate=keep_rate,
        )
    rig.turn()
    rig.service.coordinator._settled_at_ms = None  # births had their time


def test_what_the_operator_asks_for_is_noticed_in_the_store(rig: Rig) -> None:
    open_round(rig, "cabin")
    assert [offer.round_id for offer in rig.link.heard(Offer)] == [1]
    assert any(said.startswith("event=round-open round=1 version=1") for said in rig.said)
    with Store(rig.store.path) as operator:
        operator.remove_device("cabin")
    rig.turn()
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, payload(rig))))
    assert rig.link.heard(Receipt)[-1].verdict == "unknown"


def test_a_round_that_the_operator_gives_up_ends_and_its_updates_are_counted_by_the_next(rig: Rig) -> None:
    open_round(rig, "cabin", updates_min=3)
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, payload(rig))))
    with Store(rig.store.path) as operator:
        operator.cancel_round(1)
    rig.turn()
    assert rig.said[-1] == "event=round-cancelled round=1"
    assert [each.is_cancelled for each in rig.store.rounds()] == [True]
    open_round(rig, "cabin")
    rig.turn(rig.say("cabin", Update(2, 1, 40, 0, 0, payload(rig))))
    assert [update.counted_in for update in rig.store.updates()] == [2, 2]


def test_a_wish_from_before_the_start_is_carried_out_before_there_is_a_link(directory: Path) -> None:
    with Store(directory / "broker.db") as operator:
        operator.request_rounds(fleet.PLAN, 2, 1, 0, 1000)
        operator.apply(StoreRound(fleet.row(1, status="open", base_version=1)))
        operator.cancel_round(1)
        operator.cancel_round(2)
    rig = Rig(directory)
    started: list[str] = []

    def start() -> None:
        started.extend(rig.said)
        rig.service._stopping = True

    rig.link.start = start  # type: ignore[method-assign]
    rig.service.run(rig.link)
    assert started == ["event=round-cancelled round=2", "event=round-cancelled round=1"]
    assert [each.is_cancelled for each in rig.store.rounds()] == [True, True]


def test_a_round_becomes_a_version_and_its_cost_is_kept(rig: Rig) -> None:
    open_round(rig, "cabin")
    rig.link.bytes_down += 700
    rig.turn(rig.say("cabin", Update(1, 1, 40, 1, 2, payload(rig))))
    newest = rig.store.versions()[-1]
    assert (newest.model_version, newest.members, newest.accuracy) == (2, 1, None)
    assert newest.bytes_up == 700
    assert newest.bytes_down > 100
    (accepted,) = [said for said in rig.said if said.startswith("event=accepted ")]
    (closed,) = [said for said in rig.said if said.startswith("event=round-closed ")]
    assert accepted.startswith("event=accepted device=cabin round=1 digest=")
    assert accepted.endswith(" pending=1")
    assert f" members=1 accuracy=none bytes_up=700 bytes_down={newest.bytes_down} " in closed
    assert rig.said.index(accepted) < rig.said.index(closed)


def test_what_rounding_took_from_a_version_is_kept_and_joins_the_next_round(rig: Rig) -> None:
    frame = frame_of(MODEL.read_bytes(), "last-2")

    def whole() -> tuple[int, int]:
        manifest = rig.store.snapshot().manifest
        published = params_bytes_of(manifest, rig.store.blob)
        numbers = Numbers(published, rig.store.remainder(manifest.model_version))
        return int(master.read(frame, numbers)[0]), int(load_params(frame.suffix, published)[0])

    rig.service._learning_rate = 0.06
    seen = [whole()]
    for round_id in range(1, 4):
        open_round(rig, "cabin")
        rig.turn(rig.say("cabin", Update(round_id, round_id, 40, 0, 0, payload(rig))))
        seen.append(whole())
    start, step = seen[0][0], round(0.06 * 7 * 65536)
    assert [master_ for master_, _ in seen] == [start, start + step, start + 2 * step, start + 3 * step]
    assert [published - seen[0][1] for _, published in seen] == [0, 0, 1, 1]  # 0.42, 0.84, 1.26 of a step


def test_crowded_weights_get_room_and_everyone_fetches_the_new_base(rig: Rig) -> None:
    open_round(rig, "cabin", keep_rate=1.0)
    size = rig.store.snapshot().manifest.num_params
    most = steps.encode(Steps(size, np.arange(1000, dtype=np.uint32), np.full(1000, 254, np.int16)))
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, most)))
    (held,) = [said for said in rig.said if said.startswith("event=weights-held")]
    assert held == "event=weights-held round=1 count=1000"
    assert "event=rescaled round=1 scale_epoch=1" in rig.said
    manifest = rig.store.snapshot().manifest
    assert manifest.scale_epoch == 1
    model = next(file for file in manifest.files if file.name == "model.tflite")
    assert rig.store.blob(model.digest) != MODEL.read_bytes()
    assert ask_plan(rig).scale_epoch == 1


def ask_plan(rig: Rig) -> Plan:
    with Store(rig.store.path) as operator:
        return current_plan(rig.config, operator)


def test_accuracy_is_measured_where_there_is_data(directory: Path, tmp_path: Path) -> None:
    windows = np.random.default_rng(1).random((20, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "test.npz", x=windows, y=np.zeros(20, int))
    config = load(directory / "broker.toml")
    rig = Rig(directory, evaluate=msgspec.structs.replace(config.evaluate, data=str(tmp_path / "test.npz")))
    open_round(rig, "cabin")
    rig.turn(rig.say("cabin", Update(1, 1, 40, 1, 2, payload(rig))))
    newest = rig.store.versions()[-1]
    assert newest.accuracy is not None
    assert newest.loss is not None
    assert f"accuracy={newest.accuracy:.4f}" in rig.said[-1]


def test_a_full_disk_ends_the_loop_before_any_receipt(rig: Rig) -> None:
    open_round(rig, "cabin", keep_rate=1.0)
    size = rig.store.snapshot().manifest.num_params
    large = steps.encode(Steps(size, np.arange(size, dtype=np.uint32), np.resize([3, -200, 17], size).astype(np.int16)))
    rig.store._db.run(f"PRAGMA max_page_count = {rig.store._db.rows('PRAGMA page_count')[0][0]}")
    before = len(rig.link.published)
    with pytest.raises(StoreError, match="make room"):
        rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, large)))
    assert len(rig.link.published) == before
    assert not any(said.startswith("event=accepted") for said in rig.said)


def test_a_burst_of_updates_is_one_write_and_every_receipt_comes_after_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_round(rig, *fleet.DEVICES, updates_min=3)
    order: list[str] = []
    apply_all, publish = rig.store.apply_all, rig.link.publish
    monkeypatch.setattr(
        rig.store, "apply_all", lambda effects: order.append(f"store {len(effects)}") or apply_all(effects)
    )
    monkeypatch.setattr(rig.link, "publish", lambda *a: order.append("publish") or publish(*a))
    monkeypatch.setattr(rig.service, "_commit", lambda effect: order.append("commit"))
    rig.turn(*(rig.say(device, Update(1, 1, 40, 0, 0, payload(rig))) for device in fleet.DEVICES))
    assert order[:4] == ["store 3", "publish", "publish", "publish"]
    assert "commit" in order


def test_a_message_that_we_fail_at_is_dropped_and_the_loop_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    open_round(rig, "cabin")

    def fail(*_: object) -> None:
        raise ZeroDivisionError("ours")

    with monkeypatch.context() as patched:
        patched.setattr(rig.service.coordinator, "_on_update", fail)
        rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, payload(rig))))
    assert rig.said[-1].startswith("event=fault topic=fl/v1/farm/")
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, payload(rig))))
    assert rig.link.heard(Receipt)[-1].verdict == "accepted"


def test_what_was_refused_is_said_with_its_reason(rig: Rig) -> None:
    open_round(rig, "cabin")
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, b"junk")))
    assert rig.said[-1].startswith('event=refused reason="refused" device=cabin why="The update does not start')
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, payload(rig)), sign="dune"))
    assert rig.said[-1].startswith('event=refused reason="signature" device=cabin')
    rig.turn(rig.say("stranger", fleet.birth()))
    assert rig.said[-1].startswith('event=refused reason="unknown" device=stranger')


def test_a_lost_link_is_said_with_its_reason_and_changes_nothing_on_disk(rig: Rig) -> None:
    open_round(rig, "cabin")
    before = rig.store.snapshot()
    rig.turn(LinkDown("the cable is out"))
    assert rig.said[-1] == 'event=link-down reason="the cable is out"'
    assert rig.store.snapshot() == before


def test_a_dead_link_thread_ends_the_loop(rig: Rig) -> None:
    rig.link.alive = False
    with pytest.raises(ServiceError, match="fault of ours"):
        rig.turn()


def test_a_signal_ends_the_loop_with_a_goodbye(rig: Rig) -> None:
    def stop() -> None:
        time.sleep(0.2)
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop).start()
    rig.service.run(rig.link)
    assert rig.link.stopped
    topic, _, retain = rig.link.published[-1]
    assert (topic, retain) == (topics.shared("farm", "state"), True)
    assert rig.said[-1] == "event=stopped"
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_aggregation_that_fails_is_said_and_keeps_the_updates(rig: Rig) -> None:
    open_round(rig, "cabin")
    rig.service._learning_rate = float("nan")
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, payload(rig))))
    assert any(said.startswith("event=aggregate-failed round=1") for said in rig.said)
    assert [update.counted_in for update in rig.store.updates()] == [None]


def test_stores_move_ahead_only_within_a_piece() -> None:
    update, other = StoreUpdate(update_row()), StoreUpdate(update_row("dune"))
    receipt, seen = Publish("t", b""), StoreSeen("cabin", True)
    epoch, opened, closed = StoreEpoch(1), StoreRound(fleet.row(1)), commit(1, 2)
    aggregate = Aggregate(1, fleet.PLAN, fleet.first_manifest()[0], ())
    assert isinstance(closed, CommitRound)
    assert runs([]) == []
    assert runs([update, receipt, "said", other, seen]) == [[update, receipt, "said", other, seen]]
    effects = [epoch, receipt, opened, receipt, update, receipt, aggregate, other, receipt, closed, receipt]
    assert runs(effects) == [
        [epoch], [receipt], [opened], [receipt, update, receipt], [aggregate], [other, receipt], [closed], [receipt],
    ]  # fmt: skip
    assert [effect for piece in runs(effects) for effect in piece] == effects


def test_a_line_of_the_log_can_be_split_again() -> None:
    assert line("x", a=1, b="two words", c="it's") == 'event=x a=1 b="two words" c="it\'s"'


def test_only_one_serves_a_store(directory: Path) -> None:
    path = directory / "broker.db"
    with service._only_one(path), pytest.raises(ServiceError, match="another broker serve has"):
        service._only_one(path).__enter__()
    with service._only_one(path):
        pass
