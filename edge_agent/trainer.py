"""The training child: one job in, one update's payload and the next residual out, then it is gone.

    samples ─▶ frozen part ─▶ features ─▶ fine-tune the head ─▶ delta = local - base ─▶ + residual ─▶ payload
                                                                                          └─▶ what stays owed

It runs under the memory limit that the plan names (RLIMIT_DATA: what a process may allocate, program text aside), at
low priority, with one thread, and dies with its agent. The libraries are loaded before the limit is set, because
OpenBLAS asks for ever when it is refused; their share counts all the same.

What can go wrong with a model, the samples or the disk is one sentence in its answer; the agent decides whether to
try again. The new residual is on flash before the answer is given: an update never leaves without it.
"""

from __future__ import annotations

import fcntl
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from edge_agent import child, flash
from edge_agent.effects import Job  # noqa: TC001 - msgspec reads the annotation
from edge_agent.samples import Arrays, SamplesError, is_held_out, read_arrays
from wire.messages import MODEL_FILE, PARAMS_FILE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Task(msgspec.Struct, frozen=True):
    """What the agent hands to this child."""

    job: Job
    root: str  # the state directory
    samples_path: str
    held_out_rate: float


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


class TrainerError(Exception):
    """No update comes of this job; the sentence says why."""


class Base(NamedTuple):
    """The model version to start from."""

    model: bytes  # the .tflite file
    params: bytes  # raw little-endian float32 [P]


class Trained(NamedTuple):
    """What `train` makes of a job: the payload, what stays owed, and the figures for the answer."""

    residual: NDArray[np.float32]
    answer: Answer


def tree_of(task: Task) -> Any:
    """The task as a tree that CBOR can carry."""
    return msgspec.to_builtins(task, builtin_types=(bytes,))


def answer_of(tree: Any) -> Answer:
    """The answer that a child's tree is."""
    return msgspec.convert(tree, Answer, builtin_types=(bytes,))


def train(job: Job, base: Base, examples: Arrays, kept_residual: bytes | None, held_out_rate: float) -> Trained:
    """Fine-tune the head of `base` on the labelled examples and code the update.

    The examples that `is_held_out` chooses never train: they tell how good the base params are. A residual that is
    damaged, or of another size, counts as zero, with a note.

    Raises TrainerError, and engine's own ModelError, TrainingError, CodecError and ValueError, each one sentence.
    """
    import numpy as np

    from engine.codec import residual, sparse
    from engine.models import interpreter, plan, tflite
    from engine.train import Recipe, evaluate, fine_tune, mix_seed

    graph = tflite.read(base.model)
    head = plan.head_of(graph, job.plan.train)
    if head.num_params != job.plan.num_params or len(base.params) != 4 * head.num_params:
        raise TrainerError(
            f"the plan trains {job.plan.num_params} params and version {job.base_version} brings {len(base.params)} "
            f"bytes of them, but {job.plan.train} of its model has {head.num_params}: the plan is for another model"
        )
    known = examples.labels >= 0
    windows, labels = examples.windows[known], examples.labels[known]
    held_out = np.array([is_held_out(int(n), held_out_rate) for n in examples.numbers[known]], dtype=bool)
    features = interpreter.features(base.model, graph, head, windows)
    params = np.frombuffer(base.params, dtype="<f4").astype(np.float32)
    mine, answers = features[~held_out], labels[~held_out]
    score = evaluate(features[held_out], labels[held_out], params, head)
    recipe = Recipe(
        epochs=job.plan.epochs,
        batch_size=job.plan.batch_size,
        learning_rate=job.plan.learning_rate,
        momentum=job.plan.momentum,
        seed=mix_seed(job.plan.seed, job.device_id, job.round_id),
    )
    local = fine_tune(mine, answers, params, head, recipe)
    owed, note = np.zeros(head.num_params, np.float32), ""
    if kept_residual is not None:
        try:
            owed = residual.load_residual(kept_residual, head.num_params)
        except sparse.CodecError as error:
            note = str(error)
    keep = min(job.plan.keep_count, head.num_params)
    payload, left = residual.step(local - params, owed, keep, job.plan.value_bits, job.plan.clip_norm)
    answer = Answer(
        payload=payload,
        num_examples=len(answers),
        held_out_correct=score.correct,
        held_out_count=score.count,
        loss_before=evaluate(mine, answers, params, head).loss,
        loss_after=evaluate(mine, answers, local, head).loss,
        note=note,
    )
    return Trained(left, answer)


def main() -> int:
    """Run as `python -m edge_agent.trainer`: exit status 0 with an update, 1 with a reason, 2 without an answer."""
    tree, tell = child.begin()
    task = msgspec.convert(tree, Task, builtin_types=(bytes,))
    answer = _run(task)
    tell(msgspec.to_builtins(answer, builtin_types=(bytes,)))
    return 1 if answer.reason else 0


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
            taken = _load_libraries()
            if taken >= limit:
                return Answer(reason=f"out of memory: the plan allows {limit >> 20} MB, libraries take {taken >> 20}")
            resource.setrlimit(resource.RLIMIT_DATA, (limit, unlimited[1]))
            return _train_and_keep(task, root)
        except MemoryError:
            resource.setrlimit(resource.RLIMIT_DATA, unlimited)  # enough to say so
            return Answer(reason=f"out of memory: the plan allows {limit >> 20} MB")
        except ImportError as error:
            return Answer(reason=f"a library is missing: {error}")
        except OSError as error:
            return Answer(reason=f"cannot read or write {error.filename or root}: {error.strerror or error}")


def _load_libraries() -> int:
    """Import what training needs; return how many bytes this process has allocated since it began (VmData)."""
    import numpy as np

    import engine.codec.residual
    import engine.models.interpreter
    import engine.train
    from engine.kernels.optimize import all_finite

    engine.models.interpreter.runtime_name()
    all_finite(np.zeros(1, np.float32))  # the first kernel brings the compiler, and whatever that finds to import
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _train_and_keep(task: Task, root: Path) -> Answer:
    from engine.codec.sparse import CodecError
    from engine.train import TrainingError

    job = task.job
    kept = flash.read_file(flash.residual_path(root, job.residual_round_id)) if job.residual_round_id else None
    try:
        base = Base(_content(root, job, MODEL_FILE), _content(root, job, PARAMS_FILE))
        trained = train(job, base, read_arrays(Path(task.samples_path)), kept, task.held_out_rate)
    except (TrainerError, SamplesError, TrainingError, CodecError, ValueError) as error:  # ModelError is a ValueError
        return Answer(reason=str(error))
    note = trained.answer.note
    if job.residual_round_id and kept is None:
        note = f"the residual of round {job.residual_round_id} is gone from flash: what was owed is lost"
    from engine.codec.residual import dump_residual

    flash.write_file(flash.residual_path(root, job.round_id), dump_residual(trained.residual))
    return msgspec.structs.replace(trained.answer, note=note)


def _content(root: Path, job: Job, name: str) -> bytes:
    if all(file.name != name for file in job.files):
        raise TrainerError(f"version {job.base_version} has no file {name}: another program version published it")
    data = flash.read_model_file(root, job.files, name)
    if data is None:
        raise TrainerError(f"{name} of version {job.base_version} is damaged on flash; it is fetched again")
    return data


if __name__ == "__main__":
    raise SystemExit(main())
