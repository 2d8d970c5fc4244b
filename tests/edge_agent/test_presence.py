"""When does a device believe that the coordinator has heard of it? After words that nobody else can bring about."""

from __future__ import annotations

import pytest

from tests.edge_agent.stage import MODEL, Stage, manifest, said
from wire import chunks
from wire.messages import Receipt

TELEMETRY_MS = 300_000


def births_with_telemetry(stage: Stage) -> int:
    """How many births go with the next telemetry."""
    return len(said(stage.tick(TELEMETRY_MS), "birth"))


def test_a_birth_that_nobody_answers_is_repeated_with_each_telemetry():
    stage = Stage().ready()
    assert [births_with_telemetry(stage) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("verdict", ["refused", "stale", "duplicate"])
def test_a_receipt_for_what_others_said_in_our_name_is_no_answer_to_us(verdict: str):
    stage = Stage().ready()
    stage.hear("receipt", Receipt(bytes(32), 1, verdict, "the signature is not by the expected key"))
    assert births_with_telemetry(stage) == 1


def test_a_receipt_for_our_own_update_is():
    stage = Stage()
    sealed = stage.sending()
    stage.tick(TELEMETRY_MS)
    stage.receipt(sealed, "accepted")
    assert births_with_telemetry(stage) == 0
    assert births_with_telemetry(stage) == 1


def test_an_offer_is_an_answer_once_however_often_it_is_sent_again():
    stage = Stage().ready()
    stage.offer(3)
    assert births_with_telemetry(stage) == 0
    for _ in range(2):
        stage.offer(3)
        stage.offer(2)
        assert births_with_telemetry(stage) == 1


def test_an_old_chunk_sent_again_is_no_answer_to_who_fetches_nothing():
    stage = Stage().training()
    births_with_telemetry(stage)
    stage.hear("chunk", chunks.chunk_at(MODEL, manifest().files[0], 0))
    assert births_with_telemetry(stage) == 1
