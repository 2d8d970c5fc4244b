"""The training child: one job in, one update's payload and the next residual out, then it is gone, or waits a moment.

    samples ─▶ frozen part ─▶ features ─▶ fine-tune the rest ─▶ delta = local - base ─▶ + residual ─▶ payload
                                                                                          └─▶ what stays owed

It runs under the memory limit that the plan names (RLIMIT_DATA: what a process may allocate, program text aside), at
low priority, with one thread, and dies with its agent. It takes another job within some seconds, so that rounds that
follow each other do not each start Python and its libraries. The libraries are loaded before the limit is set, because
OpenBLAS asks for ever when it is refused; their share counts all the same.

What can go wrong with a model, the samples or the disk is one sentence in its answer; the agent decides whether to
try again. What is wrong with a patch of the params it says apart, since that costs the patch alone. The new residual is
on flash before the answer is given: an update never leaves without it.
"""

from __future__ import annotations

import fcntl
import resource
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from edge_agent import child, flash, residuals, slots
from edge_agent.disk import Directory
from edge_agent.effects import Job  # noqa: TC001 - msgspec reads the annotation
from edge_agent.patching import PatchError, make_params
from edge_agent.samples import Arrays, SamplesError, is_held_out, read_arrays
from edge_agent.trying import HeldOut, InUse, better_own, try_out
from wire.limits import UPDATE_PAYLOAD_BYTES_MAX
from wire.messages import MODEL_FILE, PARAMS_FILE, Trial

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_agent.disk import Disk
    from edge_agent.patching import Read
    from engine.codec.estimate import Estimate
    from engine.codec.residual import Owed
    from engine.control import Control
    from engine.frame import Frame
    from engine.models.graph import Content, Graph
    from engine.own import Own
    from engine.train import Tuned

ENVELOPE_BYTES_MAX = 200  # of a sealed update, what is not its payload: the signature, the message's own fields


class Task(msgspec.Struct, frozen=True):
    """What the agent hands to this child."""

    job: Job
    root: str  # the state directory
    samples_path: str
    held_out_rate: float
    features_bytes_max: int = 0  # what may be kept on flash of what the frozen part makes of windows
    replay: int = 0  # so many windows that have left the store train again
    unlabelled: bool = False  # every window trains, as its own target


class Answer(msgspec.Struct, frozen=True):
    """What it hands back. `reason` is empty when there is an update."""

    reason: str = ""
    payload: bytes = b""
    num_examples: int = 0
    held_out_correct: int = 0  # of the base params
    held_out_count: int = 0
    loss_before: float = 0.0  # mean cross-entropy in nats on the examples that trained
    loss_after: float = 0.0
    note: str = ""  # something to tell the owner that does not stop the training
    patch_failed: bool = False  # the params could not be made of their patch: fetch them whole
    trial: Trial | None = None  # how the version did beside the one in use; None: it was not tried


class TrainerError(Exception):
    """No update comes of this job; the sentence says why."""


class Base(NamedTuple):
    """The model version to start from."""

    model: Content  # the .tflite file
    params: Content  # what trains of it, as it stores them


class Keeping(NamedTuple):
    """Where features are kept from round to round, how many bytes of them, and how many old ones train again."""

    path: Path
    bytes_max: int
    replay: int


class Trained(NamedTuple):
    """What `train` makes of a job: the payload, what stays owed, and the figures for the answer."""

    owed: Owed | Estimate
    answer: Answer
    control: Control | None = None  # where the plan corrects gradients
    own: Own | None = None  # where the plan lets layers stay here


def tree_of(task: Task) -> Any:
    """The task as a tree that CBOR can carry."""
    return msgspec.to_builtins(task, builtin_types=(bytes,))


def answer_of(tree: Any) -> Answer:
    """The answer that a child's tree is."""
    return msgspec.convert(tree, Answer, builtin_types=(bytes,))


def train(
    job: Job,
    base: Base,
    examples: Arrays,
    kept_residual: Content | None,
    held_out_rate: float,
    *,
    keeping: Keeping | None = None,
    in_use: InUse | None = None,
    unlabelled: bool = False,
) -> Trained:
    """Fine-tune what the plan trains of `base` on the labelled examples and code the update.

    The examples that `is_held_out` chooses never train: they tell how good the base params are. A residual that is
    damaged, or of another model or scale epoch, counts as zero, with a note. With `keeping` the frozen part runs only
    for windows that it has not seen. `unlabelled`: every window trains, as its own target, and no answer is right or
    wrong, so none is counted. The base params are tried beside the version `in_use`; a plan of lane 'trial' asks
    for nothing more, and leaves the residual as it was.

    Raises TrainerError, and engine's own ModelError, TrainingError, CodecError and ValueError, each one sentence.
    """
    import numpy as np

    from engine.train import Deployed

    start = _begin(job, base, examples, kept_residual, held_out_rate, keeping=keeping, unlabelled=unlabelled)
    frame, left, unseen, shared = start.frame, start.left, start.unseen, start.shared
    graph = frame.graph_with(start.params)
    before = Deployed(graph, frame.suffix)
    score = before.score(unseen.features, unseen.labels)
    counts = (0, 0) if unlabelled else (score.correct, score.count)
    trial = try_out(job, frame, base.params, unseen, in_use, ready=before)
    if job.plan.lane == "trial":
        note = "; ".join(filter(None, (start.note, trial.refused)))
        answer = Answer("", b"", max(1, len(start.labels)), *counts, note=note, trial=trial)
        return Trained(left.owed, answer, left.control, left.own)
    if trial.refused and not trial.compared_with:
        raise TrainerError(trial.refused)
    loss_before = before.score(start.features, start.labels).loss
    del before  # what it holds makes room for what trains
    tuned, control = _tune(job, base, start, graph)
    delta = np.subtract(tuned.params, start.params, dtype=np.float32 if frame.lane == "float32" else np.int64)
    delta[shared:] = 0  # what stays here is not told
    own = better_own(frame, unseen, start.params, tuned.params[shared:])
    sent = residuals.code(delta, left.owed, frame, job, payload_bytes_max(job))
    answer = Answer(
        payload=sent.payload,
        num_examples=len(start.labels),
        held_out_correct=counts[0],
        held_out_count=counts[1],
        loss_before=loss_before,
        loss_after=Deployed(frame.graph_with(tuned.params), frame.suffix).score(start.features, start.labels).loss,
        note="; ".join(filter(None, (start.note, sent.note, trial.refused))),
        trial=trial,
    )
    return Trained(sent.owed, answer, control, own)


class _Start(NamedTuple):
    """What a training begins with."""

    frame: Frame
    params: NDArray[Any]  # [P], those of the version, and at their end the device's own
    shared: int  # so many of them are the fleet's
    left: residuals.Left
    note: str
    features: NDArray[Any]  # of the examples that train, with their labels
    labels: NDArray[Any]
    old: tuple[NDArray[Any], NDArray[Any]]  # the same of some that are in the store no more
    unseen: HeldOut


def _begin(
    job: Job,
    base: Base,
    examples: Arrays,
    kept: Content | None,
    held_out_rate: float,
    *,
    keeping: Keeping | None,
    unlabelled: bool,
) -> _Start:
    import numpy as np

    from engine.frame import frame_of
    from engine.models.scheme import load_params
    from engine.own import shared_count, with_own

    frame = frame_of(base.model, job.plan.train)
    _check_plan(job, frame)
    left, note = residuals.read(kept, job.plan, frame)
    shared = shared_count(frame.suffix, job.plan.keep_local)
    if left.own is not None and len(left.own.params) != frame.suffix.num_params - shared:
        left = left._replace(own=None)  # the plan lets others stay than the last one did
    params = with_own(load_params(frame.suffix, base.params), left.own)
    known = np.full(len(examples.labels), fill_value=True) if unlabelled else examples.labels >= 0
    labels = examples.windows.reshape(len(known), -1) if unlabelled else examples.labels[known]
    held_out = np.array([is_held_out(int(n), held_out_rate) for n in examples.numbers[known]], dtype=bool)
    features, old = _features(base, frame, examples, known, keeping, seed=job.round_id, held_out_rate=held_out_rate)
    old = (features[:0], labels[:0]) if unlabelled else old
    unseen = HeldOut(features[held_out], labels[held_out], left.own)
    return _Start(frame, params, shared, left, note, features[~held_out], labels[~held_out], old, unseen)


def _tune(job: Job, base: Base, start: _Start, graph: Graph) -> tuple[Tuned, Control | None]:
    """Train `graph` as the plan says; and what corrects the next time, if it does."""
    import numpy as np

    from engine.control import Version, control_of, correction_of
    from engine.train import Recipe, fine_tune, mix_seed

    plan, version = job.plan, Version(job.base_version, base.params)
    recipe = Recipe(
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        momentum=plan.momentum,
        seed=mix_seed(plan.seed, job.device_id, job.round_id),
        proximal=plan.proximal,
    )
    features, labels = (np.concatenate(both) for both in ((start.features, start.old[0]), (start.labels, start.old[1])))
    known, frame = start.left.control, start.frame
    correction = correction_of(known, frame, version, recipe, len(labels)) if plan.scaffold else None
    tuned = fine_tune(graph, frame.suffix, features, labels, recipe, correction=correction)
    return tuned, None if tuned.gradient is None else control_of(tuned.gradient, version)


def _features(
    base: Base,
    frame: Frame,
    examples: Arrays,
    known: NDArray[np.bool_],
    keeping: Keeping | None,
    *,
    seed: int,
    held_out_rate: float,
) -> tuple[NDArray[Any], tuple[NDArray[Any], NDArray[Any]]]:
    """The features of the `known` windows; and (features, labels) of some that are in the store no more."""
    import numpy as np

    from edge_agent.feature_cache import FeatureCache, features_through_cache
    from engine import frozen
    from engine.models.cuts import frozen_digest

    suffix = frame.suffix
    windows, labels, numbers = examples.windows[known], examples.labels[known], examples.numbers[known]

    def compute(some: NDArray[Any]) -> NDArray[Any]:
        return frozen.features(base.model, frame.graph, suffix, some)

    if keeping is None or not keeping.bytes_max or suffix.entering in frame.graph.inputs:
        features = compute(windows)
        return features, (features[:0], labels[:0])
    entering = frame.graph.tensors[suffix.entering]
    digest = frozen_digest(frame.graph, suffix.cut, suffix.entering)
    cache = FeatureCache(keeping.path, digest, entering.shape[1:], entering.dtype, keeping.bytes_max)
    features = features_through_cache(cache, numbers, labels, windows, compute)
    stored = set(examples.numbers.tolist())
    old = cache.replayed(
        keeping.replay, seed, lambda number: number not in stored and not is_held_out(number, held_out_rate)
    )
    return features, (old.features, old.labels.astype(np.asarray(labels).dtype))


def _check_plan(job: Job, frame: Frame) -> None:
    """Refuse a plan that was made for another model, or whose update can never fit, before any work is done."""
    plan, suffix = job.plan, frame.suffix
    if suffix.num_params != plan.num_params:
        raise TrainerError(
            f"the plan trains {plan.num_params} params, but {plan.train} of the model of version {job.base_version} "
            f"has {suffix.num_params}: the plan is for another model"
        )
    if frame.lane == "float32" and not plan.value_bits:
        raise TrainerError(
            f"the plan sends whole steps (value_bits 0), but {plan.train} of the model of version {job.base_version} "
            "is float32: the plan is for another model"
        )
    payload_bytes_max(job)


def payload_bytes_max(job: Job) -> int:
    """How long the payload may be: as the plan, the device and the contract allow, the least of them.

    Raises TrainerError where a limit leaves no room beside the envelope.
    """
    limits = [limit - ENVELOPE_BYTES_MAX for limit in (job.plan.update_bytes_max, job.update_bytes_max) if limit]
    least = min([*limits, UPDATE_PAYLOAD_BYTES_MAX])
    if least <= 0:
        raise TrainerError(
            f"{least + ENVELOPE_BYTES_MAX} bytes are allowed for an update, and its envelope alone may take "
            f"{ENVELOPE_BYTES_MAX}: raise update_bytes_max, or set it to 0"
        )
    return least


def main() -> int:
    """Run as `python -m edge_agent.trainer`: exit status 0 with an update, 1 with a reason, 2 without an answer."""
    status = 2
    for tree, tell in child.tasks():
        answer = _run(msgspec.convert(tree, Task, builtin_types=(bytes,)))
        tell(msgspec.to_builtins(answer, builtin_types=(bytes,)))
        status = 1 if answer.reason else 0
    return status


def _run(task: Task) -> Answer:
    root = Path(task.root)
    limit = task.job.plan.trainer_memory_bytes_max
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    with (root / "trainer.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Answer(reason=f"another trainer works under {root}: one state directory, one trainer")
        try:
            taken, arena = _load_libraries(), task.job.plan.trainer_arena_bytes
            if taken + arena >= limit:
                why = f"libraries take {taken >> 20} and training {arena >> 20}"
                return Answer(reason=f"out of memory: the plan allows {limit >> 20} MB, {why}")
            resource.setrlimit(resource.RLIMIT_DATA, (limit, unlimited[1]))
            return _train_and_keep(task, root)
        except MemoryError:
            resource.setrlimit(resource.RLIMIT_DATA, unlimited)  # enough to say so
            return Answer(reason=f"out of memory: the plan allows {limit >> 20} MB")
        except ImportError as error:
            return Answer(reason=f"a library is missing: {error}")
        except OSError as error:
            return Answer(reason=f"cannot read or write {error.filename or root}: {error.strerror or error}")
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, unlimited)  # another task has a limit of its own


def _load_libraries() -> int:
    """Import what training needs; return how many bytes this process has allocated since it began."""
    import numpy as np

    from engine.kernels.optimize import all_finite

    all_finite(np.zeros(1, np.float32))  # the first kernel brings the compiler, and whatever that finds to import
    return child.allocated_bytes()


def _train_and_keep(task: Task, root: Path) -> Answer:
    from engine.codec.header import CodecError
    from engine.train import TrainingError

    job = task.job
    disk = Directory(root)
    kept = _kept(disk, job)
    read = cache(partial(flash.map_whole, disk))  # one file may be asked for as several things
    try:
        model = _content(read, job, MODEL_FILE)
        made = make_params(disk, job, model, read)
        base = Base(model, _content(read, job, PARAMS_FILE) if made is None else made)
        keeping = Keeping(root / "features", task.features_bytes_max, task.replay)
        examples = read_arrays(Path(task.samples_path))
        in_use = _in_use(disk, read)
        trained = train(
            job, base, examples, kept, task.held_out_rate, keeping=keeping, in_use=in_use, unlabelled=task.unlabelled
        )
    except PatchError as error:
        return Answer(reason=str(error), patch_failed=True)
    except (TrainerError, SamplesError, TrainingError, CodecError, ValueError) as error:  # ModelError is a ValueError
        return Answer(reason=str(error))
    note = trained.answer.note
    if job.residual_round_id and kept is None:
        gone = f"the residual of round {job.residual_round_id} is gone from flash: what was owed is lost"
        note = "; ".join(filter(None, (gone, note)))
    left = residuals.Left(trained.owed, trained.control, trained.own)
    flash.replace_file(disk, flash.residual_name(job.round_id), residuals.dump(left, job.plan.scale_epoch))
    return msgspec.structs.replace(trained.answer, note=note)


def _kept(disk: Disk, job: Job) -> Content | None:
    """What the last update left; None where there is nothing."""
    name = flash.residual_name(job.residual_round_id)
    return disk.view(name) if job.residual_round_id and disk.size_bytes(name) is not None else None


def _in_use(disk: Disk, read: Read) -> InUse | None:
    """The version that predicts here, if it is whole on flash."""
    kept = slots.load(disk)
    if kept is None:
        return None
    digests = {file.name: file.digest for file in kept.now.files}
    model, params = (read(digests[name]) if name in digests else None for name in (MODEL_FILE, PARAMS_FILE))
    return None if model is None or params is None else InUse(kept.now.version, kept.now.train, model, params)


def _content(read: Read, job: Job, name: str) -> Content:
    digest = next((file.digest for file in job.files if file.name == name), None)
    if digest is None:
        raise TrainerError(f"version {job.base_version} has no file {name}: another program version published it")
    data = read(digest)
    if data is None:
        raise TrainerError(f"{name} of version {job.base_version} is damaged on flash; it is fetched again")
    return data


if __name__ == "__main__":
    raise SystemExit(main())
