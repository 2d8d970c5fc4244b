"""A link that costs money: what the agent leaves when the day's or month's bytes are spent, and what it never does."""

from __future__ import annotations

import msgspec
import pytest

from edge_agent.budget import PACKET_BYTES, UPDATE_BYTES_MIN, Limits, link_refusal, refusal, update_bytes_max
from edge_agent.effects import Reading, StartTraining, StopTraining
from tests.edge_agent.stage import FINE, PLAN, Stage, manifest, names, said
from wire import chunks
from wire.messages import Traffic

LIMITS = Limits(update_bytes_max=4_000, day_bytes_max=5_000_000, month_bytes_max=900_000)
SPENT = msgspec.structs.replace(FINE, day_bytes_left=UPDATE_BYTES_MIN - 1, month_bytes_left=500_000)
LEFT = msgspec.structs.replace(FINE, day_bytes_left=UPDATE_BYTES_MIN, month_bytes_left=500_000)
WHY = "the day's 5.0 MB are spent; more from 00:00 UTC"


def test_spent_bytes_are_a_reason_and_the_longer_wait_is_the_one_that_is_told():
    assert refusal(LIMITS, PLAN, SPENT) == WHY
    assert refusal(LIMITS, PLAN, LEFT) is None
    both = msgspec.structs.replace(SPENT, month_bytes_left=0)
    assert link_refusal(LIMITS, both) == "the month's 900.0 kB are spent; more from the 1st, 00:00 UTC"
    assert link_refusal(LIMITS, Reading()) is None  # no limit, nothing need be known


@pytest.mark.parametrize(
    ("limits", "day", "month", "most"),
    [
        (Limits(), None, None, 0),
        (LIMITS, None, None, 4_000),
        (LIMITS, 10**6, 10**6, 4_000),
        (LIMITS, 2_000, 10**6, 2_000 - PACKET_BYTES),
        (Limits(), 10**6, UPDATE_BYTES_MIN, UPDATE_BYTES_MIN - PACKET_BYTES),
        (Limits(), 0, None, 1),
    ],
)
def test_an_update_may_have_what_the_owner_allows_and_what_is_left(limits, day, month, most):
    assert update_bytes_max(limits, Reading(day_bytes_left=day, month_bytes_left=month)) == most


def test_the_training_child_is_told_how_large_its_update_may_be():
    stage = Stage(limits=LIMITS)
    stage.training()
    (start,) = [effect for effect in stage.effects if isinstance(effect, StartTraining)]
    assert start.job.update_bytes_max == 4_000
    stage = Stage(limits=LIMITS).ready()
    stage.read(LEFT)
    stage.serve(stage.offer(1))
    (start,) = [effect for effect in stage.effects if isinstance(effect, StartTraining)]
    assert start.job.update_bytes_max == UPDATE_BYTES_MIN - PACKET_BYTES


def test_nothing_is_fetched_nor_told_while_the_bytes_are_spent_and_all_of_it_after():
    stage = Stage(limits=LIMITS).ready()
    stage.read(SPENT)
    assert names(stage.offer(1)) == []
    assert stage.agent.reason == WHY
    told = [message for _ in range(10) for message in said(stage.tick(60_000 - 1), "telemetry")]
    assert told == []
    followed = stage.read(LEFT)
    assert "OpenFile" in names(followed)
    stage.offer(2)
    stage.serve(followed)
    assert stage.agent.work.value == "training"
    assert said(stage.tick(300_000), "telemetry")


def test_a_fetch_under_way_stops_asking_and_keeps_what_still_comes():
    stage = Stage(limits=LIMITS).ready()
    (want,) = said(stage.offer(1, lasts_ms=10**9), "want")
    stage.read(SPENT)
    file = next(file for file in manifest().files if file.digest == want.digest)
    came = stage.hear("chunk", chunks.chunk_at(stage.data[file.name], file, 0))
    assert names(came) == ["WriteChunk"]
    before = len(stage.effects)
    for _ in range(50):
        wake = stage.agent.wake_at_ms
        stage.now_ms = max(wake, stage.now_ms)
        stage.tick()
        assert stage.agent.wake_at_ms is None or stage.agent.wake_at_ms > stage.now_ms  # nothing keeps the shell busy
    assert said(stage.effects[before:], "want") == []
    assert stage.agent.reason == WHY
    stage.offer(2)
    stage.serve(stage.read(LEFT))
    assert stage.agent.work.value == "training"


def test_a_fetch_by_http_pauses_too_and_keeps_no_shell_busy():
    stage = Stage(limits=LIMITS).ready()
    elsewhere = msgspec.structs.replace(manifest(), model_version=2, parent_version=1, url="http://files.example")
    stage.hear("manifest", elsewhere)
    assert "FetchRanges" in names(stage.offer(1, version=2, lasts_ms=10**9))
    stage.read(SPENT)
    before = len(stage.effects)
    for _ in range(20):
        stage.now_ms = max(stage.agent.wake_at_ms, stage.now_ms)
        stage.tick()
        assert stage.agent.wake_at_ms > stage.now_ms
    assert "FetchRanges" not in names(stage.effects[before:])
    assert "FetchRanges" in names(stage.read(LEFT))


def test_no_more_is_asked_for_than_fits_into_what_is_left_but_one_chunk():
    for left, count in ((10**6, 3), (2_999, 2), (1_500, 1), (UPDATE_BYTES_MIN, 1)):
        stage = Stage(limits=LIMITS).ready()
        stage.read(msgspec.structs.replace(FINE, month_bytes_left=left))
        (want,) = said(stage.offer(1), "want")
        assert sum(span.count for span in want.ranges) == count  # of 1000 bytes each


def test_a_training_under_way_is_stopped_and_taken_up_again():
    stage = Stage(limits=LIMITS).training()
    followed = stage.read(SPENT)
    assert StopTraining(WHY) in followed
    stage.read(LEFT)
    assert "StartTraining" in names(stage.tick(60_000))


def test_a_finished_update_is_sent_and_sent_again_though_the_bytes_are_spent():
    stage = Stage(limits=LIMITS)
    sealed = stage.sending()
    stage.read(SPENT)
    before = len(stage.effects)
    for _ in range(3):
        stage.tick(30 * 60_000)
    assert len(said(stage.effects[before:], "update")) == 3
    assert said(stage.effects[before:], "telemetry") == []
    stage.receipt(sealed, "accepted")
    assert stage.agent.durable.outbox == b""


def test_over_a_metered_link_only_a_finished_update_is_sent():
    metered = msgspec.structs.replace(FINE, route="wwan0")
    stage = Stage(limits=Limits(metered=("wwan0",))).ready()
    stage.read(msgspec.structs.replace(FINE, route="eth0"))
    stage.sending()
    stage.read(metered)
    before = len(stage.effects)
    for _ in range(3):
        stage.tick(30 * 60_000)
    assert len(said(stage.effects[before:], "update")) == 3
    assert said(stage.effects[before:], "telemetry") == []
    other = Stage(limits=Limits(metered=("wwan0",))).ready()
    other.read(metered)
    assert said(other.offer(1), "want") == []
    assert other.agent.reason == "the link goes by wwan0, which is metered"
    assert "OpenFile" in names(other.read(msgspec.structs.replace(FINE, route="eth0")))


def test_telemetry_carries_the_account():
    account = Traffic(update_up=7, model_down=9)
    stage = Stage().ready()
    stage.read(msgspec.structs.replace(FINE, traffic=account))
    (telemetry,) = said(stage.tick(300_000), "telemetry")
    assert telemetry.traffic == account
