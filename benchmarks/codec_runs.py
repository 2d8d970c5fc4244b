"""The updates of the codec benchmark: synthetic ones without any structure, and real ones along whole federated runs.

A run is 40 rounds with error feedback, at 1 bit a value and coding 'context'; what is counted are the payloads that
its devices send, all of them. From some rounds the first device's update is kept as a *sample*, as it was before its
values were rounded, for every other coder to try.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks import federation
from benchmarks.codec_peers import bound_bits, rice_bytes, stc_bytes
from benchmarks.postage import sealed_update_bytes
from engine.codec import payload
from engine.codec.update import Update

if TYPE_CHECKING:
    from benchmarks.codec_tasks import Task

    Shapes = tuple[tuple[int, int], ...]

RATES: Final = {"1 %": 0.01, "0.1 %": 0.001}
SAMPLED: Final = (1, 5, 15, 25, 39)  # rounds
IID_SIZE: Final = 1_000_000
IID_SHAPES: Final = ((1000, 1000),)
IID_SEEDS: Final = (1, 2, 3)
DEVICE: Final = "device-01"


@dataclass(frozen=True)
class Group:
    """Which updates belong together: data of the model, dealt how, and the part of the parameters that is sent."""

    data: str
    spread: str  # even, uneven, or synthetic
    rate: str


@dataclass(frozen=True, eq=False)
class Sample:
    """One update before its values were rounded."""

    group: Group
    round_id: int
    update: Update
    shapes: Shapes


@dataclass(frozen=True)
class Size:
    """What one update of a run took: our payload, the same with coding 'rice', plain Golomb-Rice, STC's count."""

    round_id: int
    count: int
    size: int
    payload: int
    sealed: int
    ours_rice: int
    rice: int
    stc: float
    bound_bits: float


@dataclass(frozen=True, eq=False)
class Run:
    """All updates of one group."""

    group: Group
    num_params: int
    scores: tuple[tuple[int, float, float], ...]  # round, accuracy, loss
    sizes: list[Size] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def synthetic() -> list[Run]:
    """A million values of Student's t with 3 degrees of freedom, the largest of them sent: the coders' worst case."""
    runs = []
    for rate, part in RATES.items():
        run = Run(Group("iid t(3)", "synthetic", rate), IID_SIZE, ())
        for seed in IID_SEEDS:
            drawn = np.random.default_rng(seed).standard_t(3, IID_SIZE).astype(np.float32) * np.float32(1e-3)
            count = round(IID_SIZE * part)
            indices = np.sort(np.argsort(-np.abs(drawn), kind="stable")[:count]).astype(np.uint32)
            update = Update("float32", IID_SIZE, indices, drawn[indices])
            sent = payload.encode(update, IID_SHAPES, value_bits=1, coding="context").payload
            run.sizes.append(_size(seed, update, IID_SHAPES, sent))
            run.samples.append(Sample(run.group, seed, update, IID_SHAPES))
        runs.append(run)
    return runs


def real(task: Task, spread: str, rate: str, *, rounds: int = 0, sampled: tuple[int, ...] = SAMPLED) -> Run:
    """One federated run; `rounds` 0 is the task's own number."""
    shapes, num_params = task.frame.shapes, task.frame.suffix.num_params
    group = Group(task.name, spread, rate)
    sizes: list[Size] = []
    samples: list[Sample] = []

    def each(done: federation.Round) -> None:
        sizes.extend(_size(done.round_id, sent.meant, shapes, sent.payload) for sent in done.sent)
        if done.round_id in sampled:
            samples.append(Sample(group, done.round_id, done.sent[0].meant, shapes))

    total = rounds or task.rounds
    options = federation.Options(
        federation.sending(num_params, RATES[rate], 1), rounds=total, score_every=max(1, total // 4)
    )
    result = federation.run(task, options, each)
    scores = zip(result.at, result.scores, strict=True)
    told = tuple((at, score.correct / score.count, score.loss) for at, score in scores)
    return Run(group, num_params, told, sizes, samples)


def _size(round_id: int, meant: Update, shapes: Shapes, sent: bytes) -> Size:
    count = len(meant.indices)
    return Size(
        round_id=round_id,
        count=count,
        size=meant.size,
        payload=len(sent),
        sealed=sealed_update_bytes(DEVICE, sent),
        ours_rice=len(payload.encode(meant, shapes, value_bits=1, coding="rice").payload),
        rice=rice_bytes(meant.indices),
        stc=stc_bytes(meant.size, count),
        bound_bits=bound_bits(meant.size, count),
    )
