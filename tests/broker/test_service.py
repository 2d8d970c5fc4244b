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

from broker import founding, shelf, versions
from broker.config import Aggregate as AggregateTable
from broker.config import Http, load
from broker.database import StoreError
from broker.effects import (
    SendChunk,
    SendPatch,
    StoreRound,
)
from broker.registry import model_of, params_bytes_of
from broker.service import Service
from broker.shelf import Shelf
from broker.store import Store
from broker.views import ask_for_rounds, current_plan
from broker.wiring import ServiceError
from engine import master
from engine.codec import patch as patches
from engine.codec import payload as payloads
from engine.codec.update import Update as Numbered
from engine.frame import frame_of
from engine.master import Numbers
from engine.models.scheme import load_params
from tests.broker import fleet
from tests.broker.fleet import KEY, SIGN
from wire import chunks, envelope, keys, topics
from wire.link import Arrived, LinkDown, LinkUp
from wire.log_line import line
from wire.messages import Chunk, Manifest, Message, Offer, Patch, Plan, Range, Receipt, Update, Want, digest_of

MODEL = Path(__file__).parents[2] / "firmware_sim/models/digits.tflite"
FRAME = frame_of(MODEL.read_bytes(), "last-2")


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
    return coded(rig, np.array([at]), np.array([7]))


def coded(rig: Rig, at: np.ndarray, units: np.ndarray) -> bytes:
    update = Numbered("int8", FRAME.suffix.num_params, at.astype(np.uint32), units.astype(np.int32))
    return payloads.encode(update, FRAME.shapes, value_bits=0, coding="context").payload


def open_round(rig: Rig, *devices: str, updates_min: int = 1, keep_rate: float = 0.01) -> None:
    rig.turn(LinkUp())
    rig.turn(*(rig.say(device, fleet.birth()) for device in devices))
    with Store(rig.store.place) as operator:
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
    with Store(rig.store.place) as operator:
        operator.remove_device("cabin")
    rig.turn()
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, payload(rig))))
    assert rig.link.heard(Receipt)[-1].verdict == "unknown"


def test_a_round_that_the_operator_gives_up_ends_and_its_updates_are_counted_by_the_next(rig: Rig) -> None:
    open_round(rig, "cabin", updates_min=3)
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, payload(rig))))
    with Store(rig.store.place) as operator:
        operator.cancel_round(1)
    rig.turn()
    assert rig.said[-1] == "event=round-cancelled round=1"
    assert [each.is_cancelled for each in rig.store.rounds()] == [True]
    open_round(rig, "cabin")
    rig.turn(rig.say("cabin", Update(2, 1, 40, 0, 0, payload(rig))))
    assert [update.counted_in for update in rig.store.updates()] == [2, 2]


def test_a_wish_from_before_the_start_is_carried_out_before_there_is_a_link(directory: Path) -> None:
    with Store(directory / "broker.db") as operator:
        operator.ask_for([fleet.row(0, lasts_ms=1000)] * 2)
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
    first, second = (rig.store.manifest(version) for version in (1, 2))
    assert second.operators == first.operators != ()
    assert newest.bytes_up == 700
    assert newest.bytes_down > 100
    (accepted,) = [said for said in rig.said if said.startswith("event=accepted ")]
    (closed,) = [said for said in rig.said if said.startswith("event=round-closed ")]
    assert accepted.startswith("event=accepted device=cabin round=1 digest=")
    assert accepted.endswith(" pending=1")
    patch = rig.store.patches(1, 2)[0]
    assert f" members=1 patch_bytes={len(patch)} accuracy=none bytes_up=700 bytes_down={newest.bytes_down} " in closed
    assert rig.said.index(accepted) < rig.said.index(closed)


def test_what_rounding_took_from_a_version_is_kept_and_joins_the_next_round(directory: Path) -> None:
    rig = Rig(directory, aggregate=AggregateTable(learning_rate=0.06))

    def whole() -> tuple[int, int]:
        manifest = rig.store.snapshot().manifest
        published = params_bytes_of(manifest, rig.store.blob)
        numbers = Numbers(published, rig.store.remainder(manifest.model_version))
        return int(master.read(FRAME, numbers)[0]), int(load_params(FRAME.suffix, published)[0])

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
    most = coded(rig, np.arange(1000), np.full(1000, 254))
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, most)))
    (held,) = [said for said in rig.said if said.startswith("event=weights-held")]
    assert held == "event=weights-held round=1 count=1000"
    assert "event=rescaled round=1 scale_epoch=1" in rig.said
    manifest = rig.store.snapshot().manifest
    assert manifest.scale_epoch == 1
    model = next(file for file in manifest.files if file.name == "model.tflite")
    assert rig.store.blob(model.digest) != MODEL.read_bytes()
    assert ask_plan(rig).scale_epoch == 1


def versions_of(rig: Rig, count: int, device: str = "cabin") -> list[bytes]:
    """Close so many rounds of one device; return the parameters of every version, the first one's as well."""
    for round_id in range(1, count + 1):
        open_round(rig, device)
        at = np.arange(17 * round_id, 17 * round_id + 40, 3)
        rig.turn(rig.say(device, Update(round_id, round_id, 40, 0, 0, coded(rig, at, np.resize([1, -2], len(at))))))
    return [rig.store.blob(row.params_digest) for row in rig.store.versions()]


def want(rig: Rig, base_version: int) -> list[Message]:
    """What a device is sent that holds `base_version` and wants the newest parameters."""
    file = next(file for file in rig.store.snapshot().manifest.files if file.name == "params.bin")
    before = len(rig.link.published)
    rig.turn(rig.say("cabin", Want(file.digest, (Range(0, 1),), base_version)))
    return [envelope.unseal(sealed, topic, rig.link.verify) for topic, sealed, _ in rig.link.published[before:]]


def test_who_holds_an_older_version_is_sent_what_leads_to_the_newest(rig: Rig) -> None:
    contents = versions_of(rig, 4)
    for base_version in (1, 2, 4, 3):  # the longest first, and one that begins with a known one
        (patch,) = want(rig, base_version)
        assert isinstance(patch, Patch)
        base = contents[base_version - 1]
        assert (patch.base_version, patch.base_digest) == (base_version, digest_of(base))
        assert patches.apply(FRAME, base, patch.payload) == contents[4]
        assert patch.digest == digest_of(contents[4])
        told = f"event=patch device=cabin base_version={base_version} version=5 bytes={len(patch.payload)}"
        assert rig.said[-1] == told
    assert len(want(rig, 1)[0].payload) < len(contents[4]) / 10


def test_who_holds_the_newest_version_in_its_base_file_is_sent_a_patch_of_nothing(rig: Rig) -> None:
    (first,) = want(rig, 1)  # nobody has trained yet
    assert len(first.payload) < 10
    base = frame_of(model_of(rig.service._manifest, rig.store.blob), rig.config.model.train).own()
    assert (first.digest, first.base_digest) == (digest_of(base), digest_of(base))
    assert patches.apply(FRAME, base, first.payload) == base
    contents = versions_of(rig, 2)
    (patch,) = want(rig, 3)
    assert patches.apply(FRAME, contents[2], patch.payload) == contents[2]


def test_a_patch_of_nothing_is_made_once_for_everybody(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[int] = []
    merge = patches.merge
    monkeypatch.setattr(patches, "merge", lambda frame, parts: sums.append(len(parts)) or merge(frame, parts))
    assert want(rig, 1) == want(rig, 1)
    assert sums == [0]


def test_a_longer_sum_begins_with_the_known_one(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    versions_of(rig, 3)
    sums: list[int] = []
    merge = patches.merge
    monkeypatch.setattr(patches, "merge", lambda frame, parts: sums.append(len(parts)) or merge(frame, parts))
    want(rig, 1)
    want(rig, 1)
    open_round(rig, "cabin")
    rig.turn(rig.say("cabin", Update(4, 4, 40, 0, 0, payload(rig))))
    want(rig, 1)
    assert sums == [3, 2]  # three patches; what is known needs no sum; that one and the new one


def test_a_want_that_was_overtaken_by_a_new_version_is_answered_with_what_it_asked_for(rig: Rig) -> None:
    contents, fresh = versions_of(rig, 4), Shelf(rig.store)
    for version in (5, 3, 4):
        file = chunks.split("params.bin", contents[version - 1])
        part = SendChunk("t", file, 0)
        made = fresh.patch(SendPatch("t", file, 1, version, (part,)), FRAME)
        assert made is not None
        assert made.digest == digest_of(contents[version - 1])
        assert patches.apply(FRAME, contents[0], made.payload) == contents[version - 1]


def test_chunks_are_sent_where_no_patch_leads_or_none_pays(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    versions_of(rig, 2)
    for base_version in (0, 7):  # none at all; one that there never was
        assert [type(message) for message in want(rig, base_version)] == [Chunk]
    kept = rig.store.patches(1, 2)[0]
    rig.store._db.run("UPDATE versions SET patch = NULL WHERE model_version = 2")
    assert [type(message) for message in want(rig, 1)] == [Chunk]
    assert rig.said[-1] == "event=chunk device=cabin file=params.bin index=0"
    assert [type(message) for message in want(rig, 2)] == [Patch]
    rig.store._db.run("UPDATE versions SET patch = :kept WHERE model_version = 2", {"kept": kept})
    rig.store._db.run("UPDATE versions SET patch = :large WHERE model_version = 3", {"large": bytes(20_000)})
    rig.service._shelf = Shelf(rig.store)
    assert [type(message) for message in want(rig, 2)] == [Chunk]
    monkeypatch.setattr(shelf, "SUMMED_BYTES_MAX", 20_000)
    assert [type(message) for message in want(rig, 1)] == [Chunk]  # not even added up


def test_no_patch_leads_into_a_new_scale_epoch(rig: Rig) -> None:
    open_round(rig, "cabin", keep_rate=1.0)
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, coded(rig, np.arange(1000), np.full(1000, 254)))))
    assert rig.store.snapshot().manifest.scale_epoch == 1
    assert rig.store.patches(1, 2) == []
    assert [type(message) for message in want(rig, 1)] == [Chunk]


def test_a_base_is_read_once_however_many_updates_to_it_come(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[bytes] = []
    monkeypatch.setattr(versions, "frame_of", lambda model, train: models.append(model) or frame_of(model, train))
    crowd = coded(rig, np.arange(1000), np.full(1000, 254))
    for round_id, sent in enumerate((payload(rig), crowd, payload(rig), payload(rig)), 1):
        with monkeypatch.context() as operator:  # the operator's own command reads it as well
            operator.setattr(versions, "frame_of", frame_of)
            open_round(rig, "cabin", "dune", keep_rate=1.0, updates_min=2)
        for device in ("cabin", "dune"):
            rig.turn(rig.say(device, Update(round_id, round_id, 40, 0, 0, sent)))
    assert [row.members for row in rig.store.versions()] == [0, 2, 2, 2, 2]
    assert rig.store.snapshot().manifest.scale_epoch == 1
    assert len(models) == len(set(models)) == 2


def test_what_one_version_holds_back_a_later_one_publishes(directory: Path) -> None:
    rig = Rig(directory, aggregate=AggregateTable(publish_rate=1e-9))  # one parameter a version
    open_round(rig, "cabin", keep_rate=1.0)
    sent = coded(rig, np.array([3, 5, 9]), np.array([2, -9, 4]))
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, sent)))
    for round_id in (2, 3):
        open_round(rig, "cabin", keep_rate=1.0)
        nothing = coded(rig, np.array([], np.int64), np.array([], np.int64))
        rig.turn(rig.say("cabin", Update(round_id, round_id, 40, 0, 0, nothing)))
    first, *later = [load_params(FRAME.suffix, rig.store.blob(row.params_digest)) for row in rig.store.versions()]
    assert [[int((params - first)[at]) for at in (3, 5, 9)] for params in later] == [[0, -9, 0], [0, -9, 4], [2, -9, 4]]


def test_the_address_of_the_files_is_in_the_manifest_that_is_shared_and_not_in_the_stored_one(directory: Path) -> None:
    rig = Rig(directory, http=Http(url="https://farm.example:8443/"))
    rig.turn(LinkUp())
    assert [manifest.url for manifest in rig.link.heard(Manifest)] == ["https://farm.example:8443"]
    assert rig.store.snapshot().manifest.url == ""
    versions_of(rig, 1)
    assert [manifest.url for manifest in rig.link.heard(Manifest)][-1] == "https://farm.example:8443"


def ask_plan(rig: Rig) -> Plan:
    with Store(rig.store.place) as operator:
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
    size = FRAME.suffix.num_params
    large = coded(rig, np.arange(size), np.random.default_rng(1).integers(1, 255, size))
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


def test_refusals_are_kept_once_a_while_and_not_each_by_itself(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, int]] = []
    monkeypatch.setattr(rig.store.refusals, "add", lambda day, counts: kept.append({"day": day, **counts}))
    for _ in range(3):
        rig.turn(rig.say("cabin", fleet.birth(), sign="stranger"), rig.say("cabin", fleet.update(9)))
    assert kept == []
    rig.service._tally_at_s = 0.0
    rig.turn()
    assert kept == [{"day": int(time.time() // 86_400), "signature": 3, "refused": 3}]
    rig.service._tally_at_s = 0.0
    rig.turn()
    assert len(kept) == 1  # nothing new, and nothing written


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
    rig.service.coordinator.refused_count["signature"] = 2
    threading.Thread(target=stop).start()
    rig.service.run(rig.link)
    assert rig.link.stopped
    assert [counts for _, *counts in rig.store.refusals.by_day()] == [["signature", 2]]
    topic, _, retain = rig.link.published[-1]
    assert (topic, retain) == (topics.shared("farm", "state"), True)
    assert rig.said[-1] == "event=stopped"
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_aggregation_that_fails_is_said_and_keeps_the_updates(directory: Path) -> None:
    rig = Rig(directory, aggregate=AggregateTable(learning_rate=float("nan")))
    open_round(rig, "cabin")
    rig.turn(rig.say("cabin", Update(1, 1, 40, 0, 0, payload(rig))))
    assert any(said.startswith("event=aggregate-failed round=1") for said in rig.said)
    assert [update.counted_in for update in rig.store.updates()] == [None]


def test_a_line_of_the_log_can_be_split_again() -> None:
    assert line("x", a=1, b="two words", c="it's") == 'event=x a=1 b="two words" c="it\'s"'
