"""Layers that stay on a device: never told, kept for the next round, and only where they do no worse."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from broker.admission import gate
from edge_agent import predictor, residuals, samples, slots
from edge_agent.disk import Directory
from edge_agent.effects import Durable, Job
from edge_agent.flash import Flash, Model, replace_file, residual_name
from edge_agent.trainer import Base, train
from edge_agent.trying import HeldOut, better_own
from engine import frozen, own
from engine.codec import payload
from engine.codec.header import CodecError
from engine.models.graph import ModelError
from engine.models.scheme import load_params
from tests.real.scripted_coordinator import FRAME, MODEL, PARAMS, QUICK, write_digits
from wire import chunks

FILES = (chunks.split("model.tflite", MODEL), chunks.split("params.bin", PARAMS))
PLAN = msgspec.structs.replace(QUICK, keep_local=1, keep_count=FRAME.suffix.num_params, coding="rice")
JOB = Job("dev-1", 3, 1, PLAN, FILES, 0)
BASE = Base(MODEL, PARAMS)
SHARED = own.shared_count(FRAME.suffix, 1)
RATE = 0.3


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> samples.Arrays:
    with np.load(write_digits(tmp_path_factory.mktemp("digits") / "d.npz", 120)) as arrays:
        return samples.Arrays(arrays["x"], arrays["y"].astype(np.int32), np.arange(1, 121, dtype=np.uint64))


def kept_of(trained) -> bytes:
    return residuals.dump(residuals.Left(trained.owed, trained.control, trained.own), 0)


def read(trained):
    return payload.decode(trained.answer.payload, FRAME.shapes, lane="int8", k_max=PLAN.keep_count, coding="rice")


def test_an_update_says_nothing_of_the_layers_that_stay_and_they_learn_all_the_same(digits):
    trained = train(JOB, BASE, digits, None, RATE)
    assert read(trained).indices.max() < SHARED
    assert not trained.owed.residual[SHARED:].any()
    assert len(trained.own.params) == FRAME.suffix.num_params - SHARED
    assert (trained.own.params != load_params(FRAME.suffix, PARAMS)[SHARED:]).any()


def test_the_next_round_goes_on_from_the_layers_of_its_own(digits):
    first = train(JOB, BASE, digits, None, RATE)
    again = msgspec.structs.replace(JOB, round_id=4, residual_round_id=3)
    second = train(again, BASE, digits, kept_of(first), RATE)
    assert second.answer.held_out_correct > first.answer.held_out_correct
    assert (second.own.params != first.own.params).any()
    assert second.answer.note == ""


def test_a_trial_judges_a_version_with_them_and_keeps_them(digits):
    first = train(JOB, BASE, digits, None, RATE)
    plan = msgspec.structs.replace(PLAN, lane="trial")
    tried = train(msgspec.structs.replace(JOB, plan=plan, round_id=4), BASE, digits, kept_of(first), RATE)
    assert tried.answer.held_out_correct > first.answer.held_out_correct
    assert kept_of(tried) == kept_of(first)


def test_another_plan_begins_again_with_the_versions_layers(digits):
    first = train(JOB, BASE, digits, None, RATE)
    plan = msgspec.structs.replace(PLAN, keep_local=0)
    shared = train(msgspec.structs.replace(JOB, plan=plan, round_id=4), BASE, digits, kept_of(first), RATE)
    assert shared.answer.held_out_correct == first.answer.held_out_correct
    assert shared.own is None


def test_what_was_tuned_is_kept_unless_what_was_there_did_better(digits):
    good = own.with_own(load_params(FRAME.suffix, PARAMS), train(JOB, BASE, digits, None, RATE).own)
    spoilt = good.copy()
    spoilt[SHARED::2] = 0
    held_out = HeldOut(frozen.features(MODEL, FRAME.graph, FRAME.suffix, digits.windows), digits.labels)
    assert (better_own(FRAME, held_out, spoilt, good[SHARED:]).params == good[SHARED:]).all()
    assert (better_own(FRAME, held_out, good, spoilt[SHARED:]).params == good[SHARED:]).all()
    assert better_own(FRAME, held_out, good, good[:0]) is None


def test_what_is_damaged_or_of_another_base_file_is_let_go():
    mine = own.own_of(load_params(FRAME.suffix, PARAMS)[SHARED:], FRAME)
    kept = own.dump(mine)
    assert (own.load(kept, FRAME).params == mine.params).all()
    for at in (0, 5, 20, len(kept) - 1):
        with pytest.raises(CodecError):
            own.load(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :], FRAME)
    for length in (0, 20, len(kept) - 4):
        with pytest.raises(CodecError):
            own.load(kept[:length], FRAME)
    with pytest.raises(CodecError, match="another model"):
        own.load(own.dump(own.Own(mine.params, mine.size, bytes(32))), FRAME)


def test_the_gate_refuses_an_update_that_tells_of_them(digits):
    admit = gate(lambda _plan: FRAME)
    told = train(
        msgspec.structs.replace(JOB, plan=msgspec.structs.replace(PLAN, keep_local=0)), BASE, digits, None, RATE
    )
    assert "which stay on devices" in admit(told.answer.payload, PLAN)
    assert admit(train(JOB, BASE, digits, None, RATE).answer.payload, PLAN) is None


def test_something_must_be_left_for_the_fleet():
    with pytest.raises(ModelError, match="leaves nothing for the fleet: let it be 1 at most"):
        own.shared_count(FRAME.suffix, 2)


def test_predictions_are_made_with_them(digits, tmp_path):
    disk = Directory(tmp_path)
    store = Flash(disk)
    for file, content in zip(FILES, (MODEL, PARAMS), strict=True):
        store.open_file(file)
        for index in range(len(file.chunk_digests)):
            store.write_chunk(file, index, chunks.chunk_at(content, file, index).data)
        store.seal_file(file)
    slots.take(disk, Model(1, PLAN.train, FILES))
    store.save(Durable(residual_round_id=3))
    source = tmp_path / "windows.npz"
    np.savez(source, x=digits.windows, y=digits.labels)
    before = predictor._predict(tmp_path, source).correct
    replace_file(disk, residual_name(3), kept_of(train(JOB, BASE, digits, None, RATE)))
    after = predictor._predict(tmp_path, source).correct
    assert after > before + 20
