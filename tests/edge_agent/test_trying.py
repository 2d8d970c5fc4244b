"""Is a version any worse here? The child's answer, in a trial and beside a training."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np
import pytest

from edge_agent import samples, trainer
from edge_agent.effects import Job
from edge_agent.trainer import Base, TrainerError, train
from edge_agent.trying import InUse
from engine.codec.residual import dump_owed, load_owed
from engine.dry_run import golden, made_up
from engine.models.scheme import dump_params, load_params
from engine.sign_test import is_worse
from tests.real.scripted_coordinator import FRAME, MODEL, PARAMS, QUICK, write_digits
from wire import chunks

FILES = (chunks.split("model.tflite", MODEL), chunks.split("params.bin", PARAMS))
JOB = Job("dev-1", 3, 2, msgspec.structs.replace(QUICK, lane="trial"), FILES, 0, golden=golden(FRAME, PARAMS))
RATE = 0.5


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> samples.Arrays:
    with np.load(write_digits(tmp_path_factory.mktemp("digits") / "d.npz", 120)) as arrays:
        return samples.Arrays(arrays["x"], arrays["y"].astype(np.int32), np.arange(1, 121, dtype=np.uint64))


@pytest.fixture(scope="module")
def learnt(digits) -> bytes:
    """Params that are far better than those of the file, whose last layers know nothing yet."""
    params = load_params(FRAME.suffix, PARAMS)
    plan = msgspec.structs.replace(QUICK, epochs=6, learning_rate=0.02)
    from engine import frozen
    from engine.train import Recipe, fine_tune

    features = frozen.features(MODEL, FRAME.graph, FRAME.suffix, digits.windows)
    recipe = Recipe(plan.epochs, 16, plan.learning_rate, 0.9, 1)
    return dump_params(
        FRAME.suffix, fine_tune(FRAME.graph_with(params), FRAME.suffix, features, digits.labels, recipe).params
    )


def try_it(params: bytes, digits, in_use: bytes | None = None, job: Job = JOB, kept: bytes | None = None):
    job = msgspec.structs.replace(job, golden=golden(FRAME, params))
    used = None if in_use is None else InUse(1, job.plan.train, MODEL, in_use)
    return train(job, Base(MODEL, params), digits, kept, RATE, in_use=used)


def test_a_trial_trains_nothing_sends_no_payload_and_leaves_the_residual_as_it_was(digits):
    owed = train(msgspec.structs.replace(JOB, plan=QUICK), Base(MODEL, PARAMS), digits, None, RATE).owed
    kept = dump_owed(owed, JOB.plan.scale_epoch)
    tried = try_it(PARAMS, digits, kept=kept)
    assert tried.answer.payload == b""
    assert tried.answer.held_out_count > 40
    assert tried.answer.trial.compared_with == 0
    assert dump_owed(tried.owed, JOB.plan.scale_epoch) == kept
    assert load_owed(kept, FRAME.suffix.num_params, FRAME.lane, JOB.plan.scale_epoch) is not None


def test_what_is_better_here_is_taken_and_what_is_worse_is_refused_with_the_figures(digits, learnt):
    better = try_it(learnt, digits, PARAMS).answer.trial
    assert better.compared_with == 1
    assert better.won > better.lost
    assert better.refused == ""
    worse = try_it(PARAMS, digits, learnt).answer.trial
    assert (worse.won, worse.lost) == (better.lost, better.won)
    assert f"{worse.lost} lost, {worse.won} won" in worse.refused
    assert "worse here than version 1" in worse.refused


def test_a_training_compares_as_well_and_trains_all_the_same(digits, learnt):
    job = msgspec.structs.replace(JOB, plan=QUICK)
    answer = try_it(PARAMS, digits, learnt, job).answer
    assert answer.payload
    assert "worse here" in answer.trial.refused
    assert answer.trial.refused in answer.note


def test_a_version_whose_dry_run_gives_other_numbers_is_refused_in_a_trial_and_not_trained(digits):
    ill = msgspec.structs.replace(JOB, golden=b"x" * 32)
    answer = train(ill, Base(MODEL, PARAMS), digits, None, RATE).answer
    assert "dry run" in answer.trial.refused
    with pytest.raises(TrainerError, match="dry run"):
        train(msgspec.structs.replace(ill, plan=QUICK), Base(MODEL, PARAMS), digits, None, RATE)


def test_one_weight_that_is_another_is_seen_by_the_dry_run():
    params = load_params(FRAME.suffix, PARAMS)
    changed = params.copy()
    changed[: len(params) // 2] = np.where(changed[: len(params) // 2] < 100, changed[: len(params) // 2] + 9, 0)
    assert golden(FRAME, dump_params(FRAME.suffix, changed)) != golden(FRAME, PARAMS)


def test_what_is_made_up_is_the_same_everywhere_and_fills_the_range():
    drawn = made_up((16, 25), np.dtype(np.int8))
    assert drawn[0, :3].tolist() == [-81, -12, 79]  # the lowest bytes of the published first draws of seed 0
    assert drawn.min() < -120
    assert drawn.max() > 120
    reals = made_up((16, 25), np.dtype(np.float32))
    assert (reals >= -1.0).all()
    assert (reals < 1.0).all()
    assert abs(float(reals.mean())) < 0.1


@pytest.mark.parametrize(
    ("won", "lost", "worse"),
    [(0, 4, False), (0, 5, True), (3, 3, False), (9, 2, False), (10, 25, True), (20, 30, False)],
)
def test_worse_is_more_than_chance_makes_it(won, lost, worse):
    assert is_worse(won, lost) is worse


def test_what_is_in_use_is_read_from_flash_and_of_a_lost_file_nothing_is(tmp_path):
    from edge_agent import slots
    from edge_agent.disk import Directory
    from edge_agent.flash import Flash, Model, map_whole

    disk = Directory(tmp_path)
    store, read = Flash(disk), partial(map_whole, disk)
    assert trainer._in_use(disk, read) is None
    slots.take(disk, Model(1, "last-2", FILES))
    assert trainer._in_use(disk, read) is None
    for file, content in zip(FILES, (MODEL, PARAMS), strict=True):
        store.open_file(file)
        for index in range(len(file.chunk_digests)):
            store.write_chunk(file, index, chunks.chunk_at(content, file, index).data)
        store.seal_file(file)
    assert trainer._in_use(disk, read) == InUse(1, "last-2", MODEL, PARAMS)
