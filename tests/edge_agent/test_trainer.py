"""The training child's work: the update it makes, what it refuses, and that it ends well as a process."""

from __future__ import annotations

import fcntl
import queue
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from edge_agent import child, flash, residuals, samples, trainer
from edge_agent.disk import Directory
from edge_agent.effects import Job
from edge_agent.trainer import Base, TrainerError, train
from engine import frozen
from engine.codec import estimate, payload
from engine.codec.estimate import Estimate
from engine.codec.header import CodecError
from engine.codec.residual import Owed, dump_owed
from engine.codec.update import dense
from engine.models.graph import ModelError
from engine.models.scheme import load_params
from engine.train import TrainingError, evaluate
from tests.real.scripted_coordinator import FRAME, MODEL, PARAMS, QUICK, SIZE, write_digits
from wire import chunks, envelope, keys, topics
from wire.limits import EXAMPLES_MAX, UPDATE_PAYLOAD_BYTES_MAX
from wire.messages import Update

if TYPE_CHECKING:
    from pathlib import Path

FILES = (chunks.split("model.tflite", MODEL), chunks.split("params.bin", PARAMS))
JOB = Job("dev-1", 3, 1, QUICK, FILES, 0)
BASE = Base(MODEL, PARAMS)
RATE = 0.2


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> samples.Arrays:
    with np.load(write_digits(tmp_path_factory.mktemp("digits") / "d.npz", 60)) as arrays:
        return samples.Arrays(arrays["x"], arrays["y"].astype(np.int32), np.arange(1, 61, dtype=np.uint64))


def read(coded: bytes, k_max: int = QUICK.keep_count, coding: str = "rice"):
    return payload.decode(coded, FRAME.shapes, lane="int8", k_max=k_max, coding=coding)


def with_plan(**changes) -> Job:
    return msgspec.structs.replace(JOB, plan=msgspec.structs.replace(QUICK, **changes))


def test_the_update_is_sparse_and_what_it_leaves_out_is_owed(digits):
    trained = train(JOB, BASE, digits, None, RATE)
    sent = read(trained.answer.payload)
    assert len(sent.indices) == QUICK.keep_count
    assert np.count_nonzero(trained.owed.residual) > QUICK.keep_count
    assert trained.owed.base_version == JOB.base_version
    assert trained.answer.loss_after < trained.answer.loss_before
    moved = dense(sent) * FRAME.unit
    assert loss_of_the_base(digits, moved) < loss_of_the_base(digits, 0 * moved) < loss_of_the_base(digits, -moved)
    assert trained.answer.note == ""


def loss_of_the_base(digits, moved) -> float:
    """With the update added: local = base + delta, never the opposite sign."""
    params = np.clip(load_params(FRAME.suffix, PARAMS) + moved, -FRAME.limit, FRAME.limit)
    features = frozen.features(MODEL, FRAME.graph, FRAME.suffix, digits.windows)
    return evaluate(FRAME.graph_with(params), FRAME.suffix, features, digits.labels).loss


def test_held_out_windows_measure_and_never_train(digits):
    held_out = np.array([samples.is_held_out(int(n), RATE) for n in digits.numbers])
    first = train(JOB, BASE, digits, None, RATE)
    assert first.answer.held_out_count == held_out.sum()
    assert first.answer.num_examples == (~held_out).sum()
    spoilt = digits.windows.copy()
    spoilt[held_out] = 1.0
    again = train(JOB, BASE, digits._replace(windows=spoilt), None, RATE)
    assert again.answer.payload == first.answer.payload


def test_the_same_job_gives_the_same_bytes_and_another_device_others(digits):
    again = train(JOB, BASE, digits, None, RATE)
    assert again.answer == train(JOB, BASE, digits, None, RATE).answer
    other = msgspec.structs.replace(JOB, device_id="dev-2")
    assert train(other, BASE, digits, None, RATE).answer.payload != again.answer.payload


def test_the_frozen_part_runs_once_for_each_window_and_the_update_is_the_same(digits, tmp_path, monkeypatch):
    keeping = trainer.Keeping(tmp_path / "features", 1 << 20, 0)
    plain = train(JOB, BASE, digits, None, RATE)
    assert train(JOB, BASE, digits, None, RATE, keeping=keeping).answer == plain.answer
    ran = []
    whole = frozen.features
    monkeypatch.setattr(frozen, "features", lambda *given: ran.append(len(given[-1])) or whole(*given))
    assert train(JOB, BASE, digits, None, RATE, keeping=keeping).answer == plain.answer
    assert sum(ran) == 0
    more = digits._replace(numbers=np.r_[digits.numbers[:-1], np.uint64(99)])
    train(JOB, BASE, more, None, RATE, keeping=keeping)
    assert sum(ran) == 1


def test_windows_that_have_left_the_store_can_train_again(digits, tmp_path):
    keeping = trainer.Keeping(tmp_path / "features", 1 << 20, 20)
    train(JOB, BASE, digits, None, RATE, keeping=keeping)
    rest = samples.Arrays(*(part[30:] for part in digits))
    alone = train(JOB, BASE, rest, None, RATE)
    together = train(JOB, BASE, rest, None, RATE, keeping=keeping)
    assert together.answer.payload != alone.answer.payload
    assert together.answer.num_examples == alone.answer.num_examples  # its weight is that of what is new


def test_windows_without_a_label_wait(digits):
    labels = digits.labels.copy()
    labels[:30] = samples.UNKNOWN
    answer = train(JOB, BASE, digits._replace(labels=labels), None, RATE).answer
    assert answer.num_examples + answer.held_out_count == 30


def test_what_is_owed_joins_the_update_and_a_damaged_debt_counts_as_none(digits):
    without = train(JOB, BASE, digits, None, RATE)
    owed = np.zeros(SIZE, np.int32)
    owed[0] = 500
    kept = dump_owed(Owed(owed), 0)
    with_debt = train(JOB, BASE, digits, kept, RATE)
    sent = read(with_debt.answer.payload)
    assert (sent.indices[0], sent.values[0]) == (0, 254)
    assert 150 < with_debt.owed.residual[0] < 350
    damaged = train(JOB, BASE, digits, kept[:-1] + bytes([kept[-1] ^ 1]), RATE)
    assert damaged.answer.payload == without.answer.payload
    assert "damaged" in damaged.answer.note


def test_a_debt_in_the_steps_of_an_older_scale_epoch_is_let_go_and_told(digits):
    kept = dump_owed(Owed(np.full(SIZE, 9, np.int32)), 0)
    without = train(with_plan(scale_epoch=1), BASE, digits, None, RATE)
    with_old = train(with_plan(scale_epoch=1), BASE, digits, kept, RATE)
    assert with_old.answer.payload == without.answer.payload
    assert "of scale epoch 0, the model of 1" in with_old.answer.note


def test_the_plan_says_whether_a_debt_fades_and_gathers_speed(digits):
    debt = np.zeros(SIZE, np.int32)
    debt[0] = 16_000
    kept = dump_owed(Owed(debt, None, 1), 0)
    later = msgspec.structs.replace(with_plan(residual_decay=0.5), base_version=5)  # 2, 3 and 4 are missed
    assert 1_500 < train(later, BASE, digits, kept, RATE).owed.residual[0] < 2_000
    on_time = msgspec.structs.replace(later, base_version=2)
    assert train(on_time, BASE, digits, kept, RATE).owed.residual[0] > 15_000
    assert train(JOB, BASE, digits, kept, RATE).owed.velocity is None
    quick = train(with_plan(momentum_correction=0.9), BASE, digits, kept, RATE)
    assert quick.owed.velocity[0] == 0  # it was sent
    assert np.count_nonzero(quick.owed.velocity) > QUICK.keep_count


def test_the_plan_says_how_the_update_is_coded(digits):
    plain = train(JOB, BASE, digits, None, RATE)
    shorter = train(with_plan(coding="context"), BASE, digits, None, RATE)
    assert len(shorter.answer.payload) < len(plain.answer.payload)
    same, other = read(plain.answer.payload), read(shorter.answer.payload, coding="context")
    assert np.array_equal(dense(same), dense(other))
    rounded = train(with_plan(value_bits=1), BASE, digits, None, RATE)
    assert len(rounded.answer.payload) < len(plain.answer.payload)
    assert len(np.unique(np.abs(read(rounded.answer.payload).values))) <= len(FRAME.shapes)


def test_an_update_keeps_to_the_smaller_limit_of_plan_and_device_and_says_what_it_chose(digits):
    free = train(JOB, BASE, digits, None, RATE)
    for plan_max, device_max in ((300, 0), (0, 300), (1000, 300), (300, 1000)):
        job = msgspec.structs.replace(with_plan(update_bytes_max=plan_max), update_bytes_max=device_max)
        tight = train(job, BASE, digits, None, RATE)
        assert len(tight.answer.payload) <= 300 - trainer.ENVELOPE_BYTES_MAX < len(free.answer.payload)
        count = len(read(tight.answer.payload).indices)
        assert tight.answer.note == f"{count} of {QUICK.keep_count} values at full precision: 100 bytes allowed"
        moved = dense(read(tight.answer.payload)) * FRAME.unit + tight.owed.residual
        assert np.array_equal(moved, dense(read(free.answer.payload)) * FRAME.unit + free.owed.residual)
    wide = msgspec.structs.replace(with_plan(update_bytes_max=100_000), update_bytes_max=100_000)
    assert train(wide, BASE, digits, None, RATE).answer == free.answer


def test_a_limit_below_the_envelope_or_one_value_is_told(digits):
    with pytest.raises(TrainerError, match="200 bytes are allowed for an update, and its envelope alone may take 200"):
        train(with_plan(update_bytes_max=200), BASE, digits, None, RATE)
    with pytest.raises(CodecError, match="may have 3 bytes, and with 1 values it takes"):
        train(msgspec.structs.replace(JOB, update_bytes_max=203), BASE, digits, None, RATE)


def test_the_envelope_never_takes_more_than_what_is_reserved_for_it():
    size = UPDATE_PAYLOAD_BYTES_MAX
    largest = Update(2**53, 2**53, EXAMPLES_MAX, EXAMPLES_MAX, EXAMPLES_MAX, bytes(size))
    sealed = envelope.seal(largest, topics.up("f" * 32, "d" * 32, "update"), keys.signer(bytes(32)))
    assert size < len(sealed) <= size + trainer.ENVELOPE_BYTES_MAX
    assert trainer.payload_bytes_max(JOB) == size


def test_whole_steps_of_a_float_model_are_refused_before_any_work():
    frame = SimpleNamespace(lane="float32", suffix=SimpleNamespace(num_params=SIZE))
    with pytest.raises(TrainerError, match="sends whole steps"):
        trainer._check_plan(JOB, frame)
    trainer._check_plan(with_plan(value_bits=4), frame)


@pytest.mark.parametrize(
    ("error", "sentence", "change"),
    [
        (TrainerError, "plan is for another model", {"num_params": 5}),
        (ModelError, "last-9", {"train": "last-9"}),
        (TrainingError, "Training diverged", {"learning_rate": 1e38}),
    ],
)
def test_a_plan_that_does_not_fit_is_one_sentence(digits, error, sentence, change):
    plan = msgspec.structs.replace(QUICK, **change)
    with pytest.raises(error, match=sentence):
        train(msgspec.structs.replace(JOB, plan=plan), BASE, digits, None, RATE)


def test_a_model_that_is_none_and_params_of_another_length_are_refused(digits):
    with pytest.raises(ModelError):
        train(JOB, Base(b"not a model", PARAMS), digits, None, RATE)
    with pytest.raises(ModelError, match="bytes do not fit"):
        train(JOB, Base(MODEL, PARAMS[:-4]), digits, None, RATE)


def test_no_examples_at_all_is_told(digits):
    nothing = samples.Arrays(*(array[:0] for array in digits))
    with pytest.raises(TrainingError, match="no labelled samples"):
        train(JOB, BASE, nothing, None, RATE)


# Lane hardened, and what holds a device near its fleet


def test_in_lane_hardened_an_update_says_what_is_missing_of_the_estimate_and_names_it(digits):
    job = with_plan(lane="hardened")
    first = train(job, BASE, digits, None, RATE)
    follows, content = estimate.split(first.answer.payload)
    assert follows == 0
    assert np.array_equal(dense(read(content)), first.owed.values)
    kept = estimate.dump(first.owed, 0)
    later = msgspec.structs.replace(job, round_id=7, residual_round_id=3)
    second = train(later, BASE, digits, kept, RATE)
    follows, content = estimate.split(second.answer.payload)
    assert follows == 3
    assert np.array_equal(first.owed.values + dense(read(content)), second.owed.values)
    assert second.owed.round_id == 7
    assert len(estimate.split(train(later, BASE, digits, None, RATE).answer.payload)) == 2
    limited = msgspec.structs.replace(job, update_bytes_max=400)
    assert len(train(limited, BASE, digits, None, RATE).answer.payload) <= 400 - trainer.ENVELOPE_BYTES_MAX


@pytest.mark.parametrize("damage", ["a bit", "a debt of lane economy", "another scale epoch"])
def test_an_estimate_that_cannot_be_read_is_nothing_to_build_on_and_told(digits, damage):
    kept = estimate.dump(Estimate(np.ones(SIZE, np.float16), 2), int(damage == "another scale epoch"))
    kept = kept[:-1] + bytes([kept[-1] ^ 1]) if damage == "a bit" else kept
    kept = dump_owed(Owed(np.full(SIZE, 9, np.int32)), 0) if damage == "a debt of lane economy" else kept
    job = msgspec.structs.replace(with_plan(lane="hardened"), residual_round_id=2)
    trained = train(job, BASE, digits, kept, RATE)
    assert trained.answer.payload == train(job, BASE, digits, None, RATE).answer.payload
    assert estimate.split(trained.answer.payload)[0] == 0
    assert "the next update builds on nothing" in trained.answer.note


def test_a_trial_leaves_the_estimate_as_it_was(root):
    kept = estimate.dump(Estimate(np.ones(SIZE, np.float16), 2), 0)
    flash.write_file(root / flash.residual_name(2), kept)
    _, answer = run(root, msgspec.structs.replace(with_plan(lane="trial"), residual_round_id=2))
    assert (answer.reason, answer.note) == ("", "")
    assert flash.read_file(root / flash.residual_name(3)) == kept


def test_a_pull_to_the_base_shortens_what_is_learned(digits):
    def length(proximal):
        left = train(with_plan(proximal=proximal, keep_count=1), BASE, digits, None, RATE).owed.residual
        return float(np.sqrt(((left * FRAME.scale.astype(float)) ** 2).sum()))

    assert length(10.0) < 0.8 * length(0.0)


def test_a_control_is_kept_beside_the_residual_and_corrects_from_the_next_version_on(digits):
    job = with_plan(scaffold=True)
    first = train(job, BASE, digits, None, RATE)
    assert first.answer.payload == train(JOB, BASE, digits, None, RATE).answer.payload, "nothing is known at first"
    assert first.control.version == (1, PARAMS)
    kept = residuals.dump(residuals.Left(first.owed, first.control), 0)
    again = msgspec.structs.replace(job, residual_round_id=3, round_id=4)
    plain = residuals.dump(residuals.Left(first.owed), 0)
    assert kept != plain == dump_owed(first.owed, 0)

    def payloads(here: Job) -> list[bytes]:
        return [train(here, BASE, digits, each, RATE).answer.payload for each in (kept, plain)]

    same, other = payloads(again), payloads(msgspec.structs.replace(again, base_version=2))
    assert same[0] == same[1], "of the same version nothing more is known"
    assert other[0] != other[1]
    assert other[1] == same[1]
    notes = train(with_plan(scaffold=False), BASE, digits, kept, RATE)
    assert (notes.control, notes.answer.note) == (None, "")
    assert notes.answer.payload == train(JOB, BASE, digits, plain, RATE).answer.payload


def test_a_damaged_control_costs_the_correction_alone(digits):
    job = msgspec.structs.replace(with_plan(scaffold=True), base_version=2, residual_round_id=3)
    first = train(with_plan(scaffold=True), BASE, digits, None, RATE)
    kept = residuals.dump(residuals.Left(first.owed, first.control), 0)
    damaged = train(job, BASE, digits, kept[:-1] + bytes([kept[-1] ^ 1]), RATE)
    assert damaged.answer.note == "The control on flash is damaged; this training is not corrected."
    assert damaged.answer.payload == train(job, BASE, digits, dump_owed(first.owed, 0), RATE).answer.payload


@pytest.mark.parametrize("lane", ["economy", "hardened"])
def test_the_child_keeps_a_control_and_a_trial_leaves_it_as_it_was(root, digits, lane):
    job = with_plan(scaffold=True, lane=lane)
    assert run(root, job)[1].reason == ""
    expected, kept = train(job, BASE, digits, None, RATE), flash.read_file(root / flash.residual_name(3))
    assert kept == residuals.dump(residuals.Left(expected.owed, expected.control), 0)
    trial = msgspec.structs.replace(with_plan(lane="trial"), round_id=4, residual_round_id=3)
    assert run(root, trial)[1].note == ""
    assert flash.read_file(root / flash.residual_name(4)) == kept


# As a process


@pytest.fixture
def root(tmp_path, digits) -> Path:
    store = flash.Flash(Directory(tmp_path))
    for file, data in zip(FILES, (MODEL, PARAMS), strict=True):
        store.open_file(file)
        for index in range(len(file.chunk_digests)):
            store.write_chunk(file, index, chunks.chunk_at(data, file, index).data)
        assert store.seal_file(file).ready
    kept = samples.create(tmp_path / "samples", (8, 8, 1), 100)
    kept.extend([window.astype("<f4").tobytes() for window in digits.windows], [int(label) for label in digits.labels])
    return tmp_path


def run(root: Path, job: Job = JOB) -> tuple[child.Ended, trainer.Answer]:
    ends: queue.SimpleQueue[child.Ended] = queue.SimpleQueue()
    task = trainer.Task(job, str(root), str(root / "samples"), RATE)
    running = child.Child("edge_agent.trainer", trainer.tree_of(task), ends.put)
    ended = ends.get(timeout=150)
    assert ended.child is running
    return ended, trainer.answer_of(ended.answer)


def test_the_child_gives_what_the_function_gives_and_the_residual_is_on_flash(root, digits):
    ended, answer = run(root)
    expected = train(JOB, BASE, digits, None, RATE)
    assert answer == expected.answer
    assert flash.read_file(root / flash.residual_name(3)) == dump_owed(expected.owed, 0)
    assert 30_000 < ended.peak_rss_kb < 400_000
    assert 0.1 < ended.cpu_s < 60
    assert not list(root.glob("**/.*.new"))


def test_a_damaged_model_file_is_told_and_leaves_no_residual(root):
    path = root / flash.file_name(FILES[0].digest)
    path.write_bytes(MODEL[:-1] + b"!")
    _, answer = run(root)
    assert answer.reason == "model.tflite of version 1 is damaged on flash; it is fetched again"
    path.unlink()
    assert run(root)[1].reason == answer.reason
    assert not (root / flash.residual_name(3)).exists()


def test_one_trainer_per_state_directory(root):
    with (root / "trainer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another trainer works" in run(root)[1].reason


def test_a_residual_that_is_gone_is_noted_and_training_goes_on(root):
    _, answer = run(root, msgspec.structs.replace(JOB, residual_round_id=2))
    assert answer.reason == ""
    assert "residual of round 2 is gone" in answer.note


def test_a_store_of_other_windows_is_one_sentence(root):
    (root / "samples").unlink()
    samples.create(root / "samples", (4,), 100).append(np.zeros(4, "<f4").tobytes(), 1)
    assert "windows are (1, 4)" in run(root)[1].reason
    (root / "samples").unlink()
    assert "there are no samples" in run(root)[1].reason


def test_a_limit_that_nothing_fits_leaves_what_is_owed_as_it_was(root):
    kept = dump_owed(Owed(np.full(SIZE, 9, np.int32), None, 1), 0)
    flash.write_file(root / flash.residual_name(2), kept)
    job = msgspec.structs.replace(JOB, residual_round_id=2, update_bytes_max=203)
    answer = run(root, job)[1]
    assert "nothing is sent until the limit is raised" in answer.reason
    assert answer.payload == b""
    assert flash.read_file(root / flash.residual_name(2)) == kept
    assert not (root / flash.residual_name(3)).exists()


def test_no_room_for_the_residual_means_no_update(root):
    (root / "residual").rename(root / "elsewhere")
    (root / "residual").write_text("a file where the directory should be")
    answer = run(root)[1]
    assert answer.payload == b""
    assert answer.reason.startswith("cannot read or write ")
