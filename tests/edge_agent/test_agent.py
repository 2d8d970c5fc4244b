"""The agent's machine: every rule of its docstring, every verdict, one event at a time."""

from __future__ import annotations

import cbor2
import msgspec
import pytest

from edge_agent import agent as machine
from edge_agent.budget import Limits
from edge_agent.effects import (
    Base,
    Disconnected,
    Durable,
    Fetched,
    FetchFailed,
    FetchRanges,
    FileFailed,
    Forget,
    PatchFailed,
    Persist,
    Publish,
    Reading,
    Received,
    SetLabel,
    StartTraining,
    StopTraining,
    Trained,
    TrainingFailed,
)
from edge_agent.tries import RETRY_MS, TRIES_MAX
from tests.edge_agent.stage import (
    DEVICE,
    FINE,
    FLEET,
    LASTS_MS,
    MODEL,
    PLAN,
    Stage,
    coordinator_sign,
    manifest,
    names,
    patch_to,
    said,
)
from wire import chunks, envelope, topics
from wire.limits import RESEND_MS_MAX, RESEND_MS_MIN, UPDATE_PAYLOAD_BYTES_MAX
from wire.messages import Death, Label, Offer, Range, Receipt, State, digest_of


def test_the_first_thing_a_boot_does_is_to_count_itself_on_flash():
    stage = Stage(Durable(boot=4))
    first, second = stage.boot()
    assert first == Persist(Durable(boot=5))
    assert second == Forget(None, frozenset())
    assert stage.agent.work.value == "idle"


def test_the_birth_and_the_will_carry_the_numbers_of_this_boot_and_connection():
    stage = Stage(Durable(boot=4, model_version=3))
    stage.boot()
    stage.read()
    (birth,) = said(stage.connect(2), "birth")
    assert (birth.boot, birth.connection, birth.epoch, birth.model_version) == (5, 2, 0, 3)
    assert birth.num_examples == FINE.num_examples
    topic, payload = stage.agent.last_will(3)
    death = envelope.unseal(payload, topic, lambda data, mac: machine_sign(data) == mac)
    assert (topic, death) == (topics.up(FLEET, DEVICE, "death"), Death(5, 3))


def machine_sign(data: bytes) -> bytes:
    from tests.edge_agent.stage import sign

    return sign(data)


def test_a_new_epoch_is_answered_by_a_birth_and_the_same_one_is_not():
    stage = Stage()
    stage.boot()
    stage.connect()
    assert [b.epoch for b in said(stage.hear("state", State(7, True, 0, 0)), "birth")] == [7]
    assert stage.hear("state", State(7, True, 0, 0)) == []
    assert stage.hear("state", State(8, False, 0, 0)) == []  # a farewell asks for nothing


def test_a_round_goes_offer_fetch_train_persist_publish_receipt_in_this_order():
    stage = Stage().ready()
    opened = stage.offer()
    assert names(opened) == ["Forget", "OpenFile", "OpenFile", "Publish"]
    assert stage.agent.work.value == "fetching"
    fetched = stage.serve(opened)
    assert names(fetched)[-1] == "StartTraining"
    job = fetched[-1].job
    assert (job.round_id, job.base_version, job.plan, job.residual_round_id) == (1, 1, PLAN, 0)
    assert job.files == manifest().files
    kept, sent = stage.trained()
    outbox = kept.durable.outbox
    assert isinstance(kept, Persist)
    assert (kept.durable.last_round_id, kept.durable.outbox_round_id) == (1, 1)
    assert sent == Publish(topics.up(FLEET, DEVICE, "update"), outbox)
    (update,) = said([sent], "update")
    assert (update.round_id, update.num_examples, update.payload) == (1, 40, b"payload")
    assert (update.held_out_correct, update.held_out_count) == (3, 10)
    assert stage.agent.work.value == "sending"
    emptied, forgotten = stage.receipt(outbox, "accepted")
    assert emptied.durable.outbox == b""
    assert emptied.durable.residual_round_id == 1
    assert forgotten == Forget(frozenset(file.digest for file in manifest().files), frozenset({1}))
    assert stage.agent.work.value == "idle"


@pytest.mark.parametrize(
    ("verdict", "empties", "residual"),
    [
        ("accepted", True, 2),
        ("duplicate", True, 2),
        ("stale", True, 1),
        ("refused", True, 1),
        ("unknown", False, 1),
        ("unfounded", True, 0),
    ],
)
def test_every_verdict_empties_the_outbox_but_unknown_and_only_counted_ones_take_the_new_residual(
    verdict, empties, residual
):
    stage = Stage(Durable(residual_round_id=1, last_round_id=1)).ready()
    outbox = stage.sending(2)
    stage.receipt(outbox, verdict, round_id=2, reason="told so")
    durable = stage.agent.durable
    assert (durable.outbox == b"") == empties
    assert durable.residual_round_id == residual
    assert durable.last_round_id == 2
    assert ("told so" in stage.agent.reason) == (verdict not in ("accepted", "duplicate"))


def test_a_receipt_with_another_digest_changes_nothing():
    stage = Stage()
    outbox = stage.sending()
    for verdict in ("accepted", "duplicate", "stale", "refused", "unknown", "unfounded"):
        assert stage.receipt(outbox + b"x", verdict) == []
    assert stage.agent.durable.outbox == outbox


def test_a_receipt_moved_from_another_device_or_with_another_key_is_not_believed():
    stage = Stage()
    outbox = stage.sending()
    receipt = Receipt(digest_of(outbox), 1, "accepted")
    mine, other = topics.dn(FLEET, DEVICE, "receipt"), topics.dn(FLEET, "dev-2", "receipt")
    moved = Received(mine, envelope.seal(receipt, other, coordinator_sign))
    forged = Received(mine, envelope.seal(receipt, mine, machine_sign))
    astray = Received(other, envelope.seal(receipt, other, coordinator_sign))
    for event in (moved, forged, astray, Received("nonsense", b""), Received(mine, b"\xff")):
        assert stage.handle(event) == []
    assert stage.agent.durable.outbox == outbox
    assert stage.agent.refused_count == {"signature": 2, "address": 1, "topic": 1, "shape": 1}


def test_the_outbox_is_resent_unchanged_with_growing_pauses_until_its_receipt():
    stage = Stage()
    outbox = stage.sending()
    pauses = []
    for _ in range(15):
        asleep = stage.agent.wake_at_ms - stage.now_ms
        resent = [e.payload for e in stage.tick(asleep) if isinstance(e, Publish) and e.topic.endswith("update")]
        assert resent in ([outbox], [])  # [] is a tick for telemetry
        pauses += [asleep] * len(resent)
    assert min(pauses) >= RESEND_MS_MIN // 2
    assert max(pauses) <= 1.5 * RESEND_MS_MAX
    assert pauses[-1] > 10 * pauses[0]


def test_a_boot_with_a_full_outbox_sends_it_once_connected_and_never_trains_that_round_again():
    outbox = Stage().sending()
    stage = Stage(Durable(boot=1, last_round_id=1, outbox=outbox, outbox_round_id=1))
    assert names(stage.boot()) == ["Persist", "Forget"]
    assert [e.payload for e in stage.connect() if isinstance(e, Publish)][-1] == outbox
    stage.read()
    stage.hear("plan", PLAN)
    stage.hear("manifest", manifest())
    assert {type(e) for e in stage.offer(1)} == {Publish}  # resent, since it was asked for
    assert stage.agent.durable.outbox == outbox


def test_a_newer_round_waits_for_the_receipt_of_the_older_one():
    stage = Stage()
    outbox = stage.sending(1)
    assert "StartTraining" not in names(stage.offer(2))
    assert "StartTraining" not in names(stage.read())
    followed = stage.receipt(outbox, "accepted")
    assert names(followed) == ["Persist", "Forget", "StartTraining"]
    assert followed[-1].job.round_id == 2
    assert followed[-1].job.residual_round_id == 1


def test_a_link_that_drops_while_training_changes_no_work():
    stage = Stage().training()
    assert stage.handle(Disconnected()) == []
    assert stage.agent.work.value == "training"
    assert "StartTraining" not in names(stage.connect(2) + stage.offer(1))
    assert names(stage.trained()) == ["Persist", "Publish"]


def test_what_is_trained_without_a_link_is_kept_and_sent_at_the_next_connection():
    stage = Stage().training()
    stage.handle(Disconnected())
    assert names(stage.trained()) == ["Persist"]
    assert "update" in [e.topic.rpartition("/")[2] for e in stage.connect(2)]


def test_unknown_asks_rarely_and_says_why():
    stage = Stage()
    outbox = stage.sending()
    assert stage.receipt(outbox, "unknown", reason="not in the fleet") == []
    assert "does not know this device" in stage.agent.reason
    assert stage.agent.durable.outbox == outbox
    quiet = [e for _ in range(3) for e in stage.tick(RESEND_MS_MAX // 8) if isinstance(e, Publish)]
    assert outbox not in [e.payload for e in quiet]
    stage.receipt(outbox, "accepted")
    assert stage.agent.reason == ""


def test_who_is_let_in_after_all_sends_its_outbox_at_once():
    stage = Stage()
    outbox = stage.sending()
    birth = [e.payload for e in stage.effects if isinstance(e, Publish) and e.topic.endswith("/up/birth")][-1]
    stage.receipt(outbox, "unknown", reason="not in the fleet")
    assert stage.receipt(birth, "refused", round_id=0) == []
    effects = stage.receipt(birth, "accepted", round_id=0)
    assert [e.payload for e in effects if isinstance(e, Publish)] == [outbox]
    assert stage.agent.reason == ""
    assert stage.agent.durable.outbox == outbox


def test_training_that_fails_is_tried_three_times_and_then_the_round_is_left():
    stage = Stage().training()
    for _attempt in range(TRIES_MAX - 1):
        stage.handle(TrainingFailed(1, "no luck\nat all"))
        assert stage.agent.reason == "training failed: no luck at all"  # fit for a terminal and a message
        assert "StartTraining" not in names(stage.read())  # a good reading is no reason to hurry
        assert "StartTraining" in names(stage.tick(RETRY_MS))
    followed = stage.handle(TrainingFailed(1, "no luck"))
    assert followed[0] == Persist(stage.agent.durable)
    assert stage.agent.durable.last_round_id == 1
    assert stage.agent.durable.outbox == b""
    assert "StartTraining" not in names(stage.offer(1) + stage.tick(RETRY_MS))


def test_a_failed_try_asks_flash_again_whether_the_files_are_whole():
    stage = Stage().training()
    stage.handle(TrainingFailed(1, "model.tflite is damaged on flash"))
    file = manifest().files[0]
    del stage.flash[file.digest][1]  # what flash says now
    retried = stage.tick(RETRY_MS)
    (want,) = said(retried, "want")
    assert (want.digest, [(r.first, r.count) for r in want.ranges]) == (file.digest, [(1, 1)])
    assert names(stage.serve(retried))[-1] == "StartTraining"


def test_three_failures_of_an_old_round_do_not_lose_the_newer_offer():
    stage = Stage().training(1)
    stage.offer(2)
    stage.agent._tries.round_id, stage.agent._tries.failed_count = 1, TRIES_MAX - 1
    followed = stage.handle(TrainingFailed(1, "no luck"))
    assert stage.agent.durable.last_round_id == 1
    assert [e.job.round_id for e in followed if isinstance(e, StartTraining)] == [2]


def test_the_deadline_stops_the_child_and_its_late_result_is_not_believed():
    stage = Stage().training()
    assert stage.agent.wake_at_ms == stage.now_ms + PLAN.trainer_ms_max
    assert stage.tick(PLAN.trainer_ms_max)[0] == StopTraining("deadline")
    assert stage.trained() == []
    assert stage.agent.durable.outbox == b""


def test_the_pause_before_the_next_try_outlives_the_offer():
    # The deadline and the end of the offer come together; offered again at once, the round must still wait, or the
    # late answer of the stopped child would be taken for the new one's.
    stage = Stage().ready()
    stage.serve(stage.offer(1, lasts_ms=PLAN.trainer_ms_max))
    assert stage.agent.work.value == "training"
    assert stage.tick(PLAN.trainer_ms_max)[0] == StopTraining("deadline")
    again = stage.offer(1)
    assert "StartTraining" not in names(again + stage.serve(again))
    assert stage.trained() == []
    later = stage.tick(RETRY_MS)
    assert names(later + stage.serve(later))[-1] == "StartTraining"


def test_the_result_of_another_round_is_not_believed():
    stage = Stage().training()
    assert stage.trained(round_id=2) == []
    assert stage.handle(TrainingFailed(2, "what?")) == []
    assert stage.agent.work.value == "training"


@pytest.mark.parametrize(
    "wrong",
    [
        {"payload": b"x" * (UPDATE_PAYLOAD_BYTES_MAX + 1)},
        {"num_examples": 0},
        {"held_out_correct": 11},
        {"held_out_count": -1},
    ],
)
def test_a_result_that_no_message_can_carry_counts_as_a_failure(wrong):
    stage = Stage().training()
    followed = stage.trained(**wrong)
    assert "Persist" not in names(followed)
    assert stage.agent.reason.startswith("training failed")
    assert stage.agent.work.value == "waiting"


@pytest.mark.parametrize(
    ("limits", "reading", "why"),
    [
        (Limits(temperature_c_max=60.0), {"temperature_c": 70.0}, "70.0 C"),
        (Limits(temperature_c_max=60.0), {"temperature_c": None}, "unknown"),
        (Limits(mains_only=True), {"on_mains": False}, "mains"),
        (Limits(), {"num_examples": 4}, "4 labelled"),
        (Limits(memory_bytes_max=32 << 20), {}, "32 MB"),
    ],
)
def test_the_owners_limits_keep_it_waiting_with_the_reason_and_nothing_is_fetched(limits, reading, why):
    stage = Stage(limits=limits)
    stage.ready()
    stage.read(msgspec.structs.replace(FINE, **reading))
    assert stage.offer() == []
    assert stage.agent.work.value == "waiting"
    assert why in stage.agent.reason


def test_a_training_that_no_memory_holds_is_refused_before_anything_is_fetched_and_the_next_is_not():
    stage = Stage().ready()
    large = msgspec.structs.replace(PLAN, trainer_arena_bytes=60 << 20)
    stage.hear("plan", large)
    assert names(stage.offer(plan=large)) == []
    assert stage.agent.reason == "training needs 79 MB, the plan allows 64 MB"
    stage.hear("plan", PLAN)
    assert "OpenFile" in names(stage.offer(2))


def test_it_begins_as_soon_as_the_limits_allow():
    stage = Stage(limits=Limits(temperature_c_max=60.0)).ready()
    stage.read(msgspec.structs.replace(FINE, temperature_c=70.0))
    stage.offer()
    assert "StartTraining" in names(stage.serve(stage.read()))


def test_a_device_that_grows_too_hot_stops_training_and_does_not_flutter():
    stage = Stage(limits=Limits(temperature_c_max=60.0)).training()
    hot = msgspec.structs.replace(FINE, temperature_c=61.0)
    (stopped,) = stage.read(hot)
    assert stopped == StopTraining("61.0 C, the owner allows 60.0 C")
    assert stage.trained() == []
    stage.now_ms += 10_000
    assert "StartTraining" not in names(stage.read())
    assert "StartTraining" in names(stage.tick(machine.BUDGET_CHECK_MS))
    assert stage.agent._tries.failed_count == 0  # heat is no failure of the round


def test_an_offer_waits_for_its_plan_and_its_manifest():
    stage = Stage()
    stage.boot()
    stage.read()
    stage.connect()
    assert stage.offer() == []
    assert "plan" in stage.agent.reason
    assert stage.hear("manifest", manifest()) == []
    assert names(stage.hear("plan", PLAN))[:3] == ["Forget", "OpenFile", "OpenFile"]


def test_an_offer_of_another_version_than_the_manifest_is_not_trained():
    stage = Stage().ready()
    assert stage.offer(version=2) == []
    assert stage.agent.work.value == "waiting"


def test_an_offer_ends_after_its_duration_and_a_new_one_is_taken():
    stage = Stage().ready()
    stage.read(Reading())
    stage.offer(lasts_ms=5000)
    assert stage.agent.wake_at_ms <= stage.now_ms + LASTS_MS
    stage.tick(5000)
    assert stage.agent.work.value == "idle"
    assert "StartTraining" in names(stage.read() + stage.serve(stage.offer(1)))


def test_an_offer_that_ended_while_the_update_waits_wakes_nobody():
    stage = Stage()
    stage.sending()
    stage.tick(LASTS_MS + 1)
    assert stage.agent.wake_at_ms > stage.now_ms


def test_nothing_more_is_asked_for_after_the_offer_has_ended():
    stage = Stage().ready()
    assert said(stage.offer(lasts_ms=3000), "want")
    for _ in range(10):
        assert said(stage.tick(3000), "want") == []


def test_an_older_offer_never_replaces_a_newer_one():
    stage = Stage().ready()
    stage.read(Reading())
    stage.offer(5)
    stage.offer(4)
    followed = stage.serve(stage.read())
    assert [e.job.round_id for e in followed if isinstance(e, StartTraining)] == [5]


def test_an_older_manifest_is_a_replay_and_is_counted():
    stage = Stage(Durable(model_version=3))
    stage.boot()
    stage.hear("manifest", manifest(2))
    assert stage.agent.refused_count == {"old": 1}
    assert "older" in stage.agent.reason
    stage.hear("manifest", manifest(4))
    stage.hear("manifest", manifest(3))  # not older than flash knows, but older than what was heard
    assert stage.agent.refused_count == {"old": 2}


def test_a_newer_manifest_ends_the_fetch_of_the_older_one():
    stage = Stage().ready()
    old_want = said(stage.offer(), "want")
    assert old_want
    stage.hear("manifest", manifest(2, b"q" * 1000))
    for _ in range(5):
        assert said(stage.tick(60_000), "want") == []
    opened = stage.offer(2, version=2)
    assert names(opened)[:3] == ["Forget", "OpenFile", "OpenFile"]
    assert opened[0].keep_files == frozenset(f.digest for f in manifest(2, b"q" * 1000).files)


def test_a_disk_without_room_is_a_reason_that_travels_and_is_tried_again_later():
    stage = Stage().ready()
    stage.offer()
    followed = stage.handle(FileFailed(manifest().files[0].digest, "no room for model.tflite"))
    assert [t.reason for t in said(followed, "telemetry")] == ["no room for model.tflite"]
    assert stage.read() == []
    assert "OpenFile" in names(stage.tick(machine.BUDGET_CHECK_MS))


def test_a_manifest_that_contradicts_itself_is_given_up_with_a_reason():
    stage = Stage().ready()
    files = manifest().files
    wrong = (msgspec.structs.replace(files[0], digest=b"\x01" * 32), files[1])
    stage.hear("manifest", msgspec.structs.replace(manifest(), files=wrong, model_version=2))
    followed = stage.offer(version=2)
    for index, data in enumerate((b"m" * 1000, b"m" * 1000, b"m" * 500)):
        from wire.messages import Chunk

        followed += stage.hear("chunk", Chunk(wrong[0].digest, index, data))
    assert 1 <= names(followed).count("SealFile") <= 3
    assert "does not match its own digest" in stage.agent.reason


def after_version_1() -> Stage:
    """Version 1 was trained here and is whole; version 2 is offered. Returns the stage at its first want."""
    stage = Stage(Durable(last_round_id=1, model_version=1)).ready()
    model, params = manifest().files
    stage.base = Base(1, params.digest, model.digest)
    stage.flash[model.digest] = {index: chunks.chunk_at(MODEL, model, index).data for index in range(3)}
    stage.hear("manifest", manifest(2, NEXT))
    return stage


NEXT = b"q" * 1000
NEXT_FILE = manifest(2, NEXT).files[1]


def test_a_round_on_the_next_version_fetches_a_patch_and_nothing_else():
    stage = after_version_1()
    opened = stage.offer(2, version=2)
    (want,) = said(opened, "want")
    assert (want.digest, want.base_version) == (NEXT_FILE.digest, 1)
    followed = stage.hear("patch", patch_to(NEXT_FILE, stage.base))
    assert names(followed) == ["WritePatch", "StartTraining"]
    assert followed[0].patch == patch_to(NEXT_FILE, stage.base)
    assert followed[1].job.base_version == 2


def test_a_patch_that_fails_costs_one_whole_download_and_no_try_of_the_round():
    stage = after_version_1()
    stage.data["params.bin"] = NEXT
    stage.offer(2, version=2)
    patch = patch_to(NEXT_FILE, stage.base)
    stage.hear("patch", patch)
    assert stage.agent.work.value == "training"
    failed = stage.handle(PatchFailed(2, "it makes something else"))
    assert names(failed) == ["DropPatch", "Forget", "OpenFile", "OpenFile", "Publish"]
    (want,) = said(failed, "want")
    assert (want.digest, want.base_version) == (NEXT_FILE.digest, 0)
    assert stage.agent.work.value == "fetching"
    assert stage.hear("patch", patch) == []  # nobody asked for it
    done = stage.hear("chunk", chunks.chunk_at(NEXT, NEXT_FILE, 0))
    assert names(done) == ["WriteChunk", "SealFile", "StartTraining"]
    assert stage.agent._tries.failed_count == 0
    for _ in range(TRIES_MAX - 1):
        stage.handle(TrainingFailed(2, "no luck"))
        assert stage.agent.durable.last_round_id == 1
        assert "StartTraining" in names(stage.tick(RETRY_MS))


def test_the_word_of_a_child_about_the_patch_of_another_round_is_not_believed():
    stage = Stage().training()
    assert stage.handle(PatchFailed(2, "what?")) == []
    assert stage.agent.work.value == "training"
    stage.trained()
    assert stage.handle(PatchFailed(1, "what?")) == []


def test_a_patch_on_flash_is_found_again_after_a_power_cut():
    before = after_version_1()
    before.offer(2, version=2)
    before.hear("patch", patch_to(NEXT_FILE, before.base))
    stage = after_version_1()
    stage.patches = before.patches
    opened = stage.offer(2, version=2)
    assert names(opened) == ["Forget", "OpenFile", "OpenFile", "StartTraining"]


def test_a_patch_is_heard_only_from_the_coordinator_and_counts_as_its_word():
    stage = after_version_1()
    stage.offer(2, version=2)
    topic = topics.dn(FLEET, DEVICE, "patch")
    patch = patch_to(NEXT_FILE, stage.base)
    assert stage.handle(Received(topic, envelope.seal(patch, topic, machine_sign))) == []
    assert "WritePatch" in names(stage.handle(Received(topic, envelope.seal(patch, topic, coordinator_sign))))
    assert said(stage.tick(machine.BUDGET_CHECK_MS * 5), "birth") == []


URL = "https://models.example"


def test_what_is_large_is_fetched_by_http_and_after_a_failure_over_the_link():
    stage = Stage().ready()
    stage.hear("manifest", manifest(url=URL))
    opened = stage.offer()
    model = manifest().files[0]
    assert opened[-1] == FetchRanges(URL, model, (Range(0, 3),))
    assert said(opened, "want") == []
    assert names(stage.handle(Fetched(model.digest, 1, MODEL[1000:2000]))) == ["WriteChunk"]
    assert stage.handle(Fetched(model.digest, 2, b"m" * 499)) == []
    wants = said(stage.handle(FetchFailed(model.digest, "404")), "want")
    assert stage.agent.reason == "fetching over MQTT, since HTTP failed: 404"
    assert [(want.digest, want.ranges) for want in wants] == [(model.digest, (Range(0, 1), Range(2, 1)))]


def test_chunks_that_http_brings_while_the_link_is_down_are_kept():
    stage = Stage().ready()
    stage.hear("manifest", manifest(url=URL))
    stage.offer()
    stage.handle(Disconnected())
    model = manifest().files[0]
    for index in range(3):
        assert "WriteChunk" in names(stage.handle(Fetched(model.digest, index, b"m" * (1000 if index < 2 else 500))))
    (want,) = said(stage.connect(2), "want")
    assert want.digest == manifest().files[1].digest


def test_what_http_says_when_nothing_is_fetched_changes_nothing():
    stage = Stage().ready()
    assert stage.handle(Fetched(b"x" * 32, 0, b"data")) == []
    assert stage.handle(FetchFailed(b"x" * 32, "404")) == []


@pytest.mark.parametrize("encoded", ["newer", "older"])
def test_a_plan_is_named_by_the_bytes_that_its_coordinator_signed(encoded):
    """One program has a field more than the other: both mean the same plan, and write other bytes."""
    stage = Stage().ready()
    tree = msgspec.to_builtins(PLAN, builtin_types=(bytes,))
    sent = cbor2.dumps([*tree, 7] if encoded == "newer" else tree[:-1], canonical=True)
    topic = topics.shared(FLEET, "plan")
    stage.handle(Received(topic, sealed_bytes(sent, topic)))
    followed = stage.hear("offer", Offer(1, digest_of(sent), 1, LASTS_MS))
    assert names(stage.serve(followed))[-1] == "StartTraining"


def sealed_bytes(encoded: bytes, topic: str) -> bytes:
    wrapped = cbor2.dumps(encoded)
    signed = b"\x84\x6aSignature1\x43\xa1\x01\x27" + cbor2.dumps(topic.encode()) + wrapped
    return bytes.fromhex("d28443a10127a0") + wrapped + b"\x58\x40" + coordinator_sign(signed)


def test_a_label_goes_to_the_samples():
    stage = Stage().ready()
    assert stage.hear("label", Label(17, 3)) == [SetLabel(17, 3)]


def test_telemetry_comes_at_its_interval_and_numbers_itself():
    stage = Stage(telemetry_ms=1000).ready()
    first = said(stage.tick(1000), "telemetry")
    second = said(stage.tick(1000), "telemetry")
    assert [t.sequence for t in first + second] == [1, 2]
    assert first[0].work == "idle"
    assert first[0].temperature_c == FINE.temperature_c
    stage.handle(Disconnected())
    assert said(stage.tick(5000), "telemetry") == []


def test_trained_before_any_job_is_nothing():
    assert Stage().ready().handle(Trained(1, b"", 1, 0, 0)) == []
