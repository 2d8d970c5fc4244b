"""The runs of the accuracy benchmark: fleets that send everything, and fleets that send little.

A *mode* is how a fleet talks: how much of an update a device keeps, at how many bits, how much of the model a version
may change, and the coordinator's learning rate. A fleet that sends little hears of each change late, and the
coordinator makes up for it by longer steps; RATES says how long for each task. They were chosen on runs of seeds 101
and 102, scored on the same held-out examples as those that measure; not every pair of task and rate was tried.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from benchmarks import federation
from benchmarks.federation import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.federation import Result
    from benchmarks.fleet_tasks import Task
    from benchmarks.postage import Post

DENSE: Final = "dense"
KEEPS: Final = {"1 %": 0.01, "0.1 %": 0.001}
BITS: Final = {"exact": 0, "1 bit": 1, "4 bits": 4, "8 bits": 8}
PUBLISHED: Final = {DENSE: 1.0, "1 %": 0.1, "0.1 %": 0.01}  # the most a version may change: all that ten updates touch
RATES: Final = {
    "digits": {DENSE: 1.0, "1 %": 2.0, "0.1 %": 2.0},
    "digits-iid": {DENSE: 1.0, "1 %": 2.0, "0.1 %": 2.0},
    "writers": {DENSE: 2.0, "1 %": 2.0, "0.1 %": 3.0},
    "wisdm": {DENSE: 1.0, "1 %": 1.5, "0.1 %": 2.0},
    "resnet8": {DENSE: 1.0, "1 %": 2.0, "0.1 %": 2.0},
}
SCORE_EVERY: Final = 5  # rounds
SMOOTHED: Final = 3  # scores, the mean of which counts


@dataclass(frozen=True)
class Mode:
    """How a fleet talks. `kept` is a key of KEEPS, or DENSE."""

    kept: str
    bits: str = "exact"

    @property
    def name(self) -> str:
        """As rows have it."""
        return DENSE if self.kept == DENSE else f"{self.kept}, {self.bits}"

    @property
    def keep_rate(self) -> float:
        """The part of the parameters that an update has."""
        return KEEPS.get(self.kept, 1.0)


MODES: Final = (Mode(DENSE), *(Mode(kept, bits) for kept in KEEPS for bits in BITS))


@dataclass(frozen=True, eq=False)
class Measured:
    """All seeds of one task in one mode."""

    task: Task
    mode: Mode
    runs: tuple[Result, ...]

    @property
    def scores(self) -> list[float]:
        """The accuracy at the end of each run: the mean of the last SMOOTHED scores."""
        return [statistics.mean(run.accuracy[-SMOOTHED:]) for run in self.runs]

    @property
    def accuracy(self) -> float:
        """Their mean."""
        return statistics.mean(self.scores)

    @property
    def curve(self) -> list[float]:
        """Mean accuracy at each of `runs[0].at`."""
        return [statistics.mean(scores) for scores in zip(*(run.accuracy for run in self.runs), strict=True)]

    @property
    def spent(self) -> list[float]:
        """Mean bytes of a device until then, both ways, the base file left out."""
        return [
            statistics.mean(post.up + post.down - post.base_down for post in posts) / self.task.devices
            for posts in zip(*(run.spent for run in self.runs), strict=True)
        ]

    def reached(self, wanted: float) -> list[tuple[int, Post]] | None:
        """When each run had `wanted`: the round, and what the fleet had carried by then; None unless all runs did."""
        found = [_reached(run, wanted) for run in self.runs]
        return [one for one in found if one is not None] if None not in found else None


def measure(task: Task, mode: Mode, seeds: Sequence[int], tell: Callable[[str], None]) -> Measured:
    """Run every seed."""
    num_params = task.frame.suffix.num_params
    runs = []
    for seed in seeds:
        options = Options(
            federation.sending(num_params, mode.keep_rate, BITS[mode.bits]), seed=seed, score_every=SCORE_EVERY,
            learning_rate=RATES[task.name][mode.kept], publish_rate=PUBLISHED[mode.kept],
        )  # fmt: skip
        runs.append(federation.run(task, options))
        tell(f"{task.name}, {mode.name}, seed {seed}: {statistics.mean(runs[-1].accuracy[-SMOOTHED:]):.4f}")
    return Measured(task, mode, tuple(runs))


def row(measured: Measured, dense: Measured | None) -> dict[str, Any]:
    """What one task in one mode came to; points are hundredths, against the dense fleet of the same seeds."""
    task, mode, scores = measured.task, measured.mode, measured.scores
    ends = [run.spent[-1] for run in measured.runs]
    participations = sum(end.participations for end in ends)
    return {
        "task": task.name, "mode": mode.name, "kept": mode.kept, "bits": mode.bits, "rounds": task.rounds,
        "parameters": task.frame.suffix.num_params, "devices": task.devices, "devices_a_round": task.per_round,
        "learning_rate": RATES[task.name][mode.kept], "publish_rate": PUBLISHED[mode.kept],
        "accuracy": measured.accuracy, "spread": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "scores": scores,
        "points_lost": None if dense is None else 100.0 * (dense.accuracy - measured.accuracy),
        "bytes_a_round": {
            name: sum(getattr(end, name) for end in ends) / participations
            for name in ("update_up", "control_up", "model_down", "control_down")
        },
        "curve": [list(point) for point in zip(measured.runs[0].at, measured.curve, measured.spent, strict=True)],
    }  # fmt: skip


def _reached(run: Result, wanted: float) -> tuple[int, Post] | None:
    """The first score from which on SMOOTHED of them together reach `wanted`, dated by the last of these."""
    for end in range(SMOOTHED, len(run.at) + 1):
        if statistics.mean(run.accuracy[end - SMOOTHED : end]) >= wanted:
            return run.at[end - 1], run.spent[end - 1]
    return None
