"""A fleet that learns together, on the product's own code but for its network: what benchmarks run.

    fine_tune -> residual.step -> payload -> ring -> master.advance -> patch -> the next version

In every round some devices are drawn. Each brings itself up to date, trains on its own examples, and sends the largest
changes; what it leaves out it owes (one `Owed` per device). The sum is exact, the coordinator keeps the master, and
what it publishes is what the next device trains. Nothing is lost and nobody is late.

Bytes are those of the product's messages, built, encoded and sealed one by one (`benchmarks/postage.py`): a device
connects once for every round that it takes part in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from benchmarks.postage import Post, Postage, sealed_update_bytes
from broker.versions import PUBLISHED_PER_SENT
from engine import master, ring, train
from engine.codec import patch, payload, residual
from engine.control import Version, control_of, correction_of
from engine.kernels.quantize import UNIT_MAX
from engine.models import scheme

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from engine.codec.update import Update
    from engine.control import Control
    from engine.frame import Frame
    from engine.train import Recipe, Score

    Example = tuple[NDArray[Any], NDArray[Any]]  # features at the cut [n, ...]; labels int32 [n], or float32 [n, d]

NO_CLIP: Final = 1e6  # the largest that a plan may name
WEIGHT_MAX: Final = 4096


class Fleet(Protocol):
    """The first parameters [P], what each device holds, and what nobody holds."""

    params: NDArray[Any]
    held: dict[str, Example]
    test: Example


class Task(Protocol):
    """What a fleet is taught; `benchmarks/fleet_tasks.py` has some."""

    name: str
    frame: Frame
    per_round: int
    rounds: int

    def fleet(self, seed: int) -> Fleet:
        """Deal the data to devices."""

    def recipe(self, seed: int, device: str, round_id: int) -> Recipe:
        """How one device trains in one round."""


@dataclass(frozen=True)
class Options:
    """How a fleet talks. `publish_rate` is the part of the parameters that a version may change; 0: 4 x sending.k."""

    sending: residual.Sending
    seed: int = 1
    rounds: int = 0  # 0: the task's own number
    per_round: int = 0
    learning_rate: float = 1.0  # the coordinator's
    publish_rate: float = 0.0
    score_every: int = 1
    proximal: float = 0.0
    scaffold: bool = False


@dataclass(frozen=True, eq=False)
class Sent:
    """One device's update of one round."""

    device: str
    payload: bytes
    update: Update  # as the coordinator reads it
    meant: Update  # the same before its values were rounded
    sealed_bytes: int  # of the message: the whole payload of its MQTT PUBLISH


@dataclass(frozen=True, eq=False)
class Round:
    """What a round did: `round_id` from 1; `patch` makes `published` out of the version before."""

    round_id: int
    sent: tuple[Sent, ...]
    published: bytes
    patch: bytes
    score: Score | None


@dataclass(frozen=True)
class Result:
    """`scores[i]` was measured after round `at[i]`, when the fleet had carried `spent[i]` bytes; entry 0 is before."""

    name: str
    num_params: int
    devices: int
    at: tuple[int, ...]
    scores: tuple[Score, ...]
    spent: tuple[Post, ...]

    @property
    def accuracy(self) -> tuple[float, ...]:
        """The share of right answers at each of `at`."""
        return tuple(score.correct / score.count for score in self.scores)


def sending(num_params: int, rate: float, value_bits: int, coding: payload.Coding = "context") -> residual.Sending:
    """The largest `rate` of the parameters at `value_bits` bits, with nothing else asked for."""
    return residual.Sending(max(1, round(rate * num_params)), value_bits, coding, clip_norm=NO_CLIP)


def run(task: Task, options: Options, each: Callable[[Round], None] | None = None) -> Result:
    """Teach the fleet; `each` is called with what every round did."""
    fleet = task.fleet(options.seed)
    coordinator = _Coordinator(task.frame, fleet.params, options)
    devices = {name: _Device(name, task, example, options) for name, example in fleet.held.items()}
    chance = np.random.default_rng(options.seed)
    at, scores, spent = [0], [coordinator.score(fleet.test)], [Post()]
    total = Post()
    rounds, cohort = options.rounds or task.rounds, min(options.per_round or task.per_round, len(devices))
    for round_id in range(1, rounds + 1):
        names = [str(name) for name in chance.choice(sorted(devices), cohort, replace=False)]
        sent = []
        for name in names:
            total += coordinator.bring_up_to_date(devices[name])
            sent.append(devices[name].take_part(coordinator, round_id))
            total += coordinator.postage.update(name, sent[-1].payload)
        step = coordinator.close([(one.update, devices[one.device].weight) for one in sent])
        score = coordinator.score(fleet.test) if round_id % options.score_every == 0 or round_id == rounds else None
        if score is not None:
            at, scores, spent = [*at, round_id], [*scores, score], [*spent, total]
        if each is not None:
            each(Round(round_id, tuple(sent), coordinator.numbers.published, step, score))
    return Result(task.name, task.frame.suffix.num_params, len(devices), tuple(at), tuple(scores), tuple(spent))


class _Coordinator:
    """The master, every version that it published, and what it costs to bring a device up to date."""

    def __init__(self, frame: Frame, params: NDArray[Any], options: Options) -> None:
        self.frame, self._options = frame, options
        self.numbers = master.first(frame, params)
        self.postage = Postage(frame, self.numbers.published)
        self._published = {1: self.numbers.published}
        self._patches: dict[int, bytes] = {}  # by the version that it makes
        self._merged: dict[int, bytes] = {}  # to the newest version, by the version that it starts from
        self.version = 1
        self._in_base = (
            0 if frame.holding(self.numbers.published) is None else 1
        )  # the version that the base file holds

    def params(self) -> NDArray[Any]:
        """What the newest version's numbers are, [P]."""
        return scheme.load_params(self.frame.suffix, self.numbers.published)

    def score(self, test: Example) -> Score:
        """Measure the newest version."""
        return train.evaluate(self.frame.graph_with(self.params()), self.frame.suffix, *test)

    def bring_up_to_date(self, device: _Device) -> Post:
        """Give the device the newest version; tell what that costs."""
        start = device.version or self._in_base
        merged = self._patch_from(start) if start and device.version != self.version else None
        cost = self.postage.round(device.name, device.version, self.version, merged)
        device.version = self.version
        return cost

    def close(self, updates: list[tuple[Update, int]]) -> bytes:
        """End a round: sum, step, publish. Gives the patch from the version before."""
        before, frame = self.numbers.published, self.frame
        size, rate = frame.suffix.num_params, self._options.publish_rate
        members = [ring.Member((str(place), 1), *update) for place, update in enumerate(updates)]
        total = ring.add_all(ring.empty(ring.Purpose(size, frame.lane)), members)
        step = ring.mean_step(total, self._options.learning_rate)
        most = min(size, max(1, round(rate * size)) if rate else PUBLISHED_PER_SENT * self._options.sending.k)
        self.numbers = master.advance(frame, self.numbers, step, publish_max=most).numbers
        self.version += 1
        self._published[self.version] = self.numbers.published
        self._patches[self.version] = patch.make(frame, before, self.numbers.published)
        self._merged.clear()
        self.postage.publish(self.version, self.numbers.published)
        return self._patches[self.version]

    def _patch_from(self, version: int) -> bytes:
        """The stored patches since `version` as one, which makes the newest version to the bit."""
        if version not in self._merged:
            chain = [self._patches[number] for number in range(version + 1, self.version + 1)]
            chain = chain or [patch.make(self.frame, self.numbers.published, self.numbers.published)]
            self._merged[version] = chain[0] if len(chain) == 1 else patch.merge(self.frame, chain)
            made = patch.apply(self.frame, self._published[version], self._merged[version])
            assert made == self.numbers.published, f"the patches since version {version} make something else"
        return self._merged[version]


class _Device:
    """One device: its examples, what it owes, and the version that it holds."""

    def __init__(self, name: str, task: Task, example: Example, options: Options) -> None:
        self.name, self._task, self._example, self._options = name, task, example, options
        self._owed: residual.Owed | None = None
        self._control: Control | None = None
        self.version = 0
        self.weight = min(len(example[0]), WEIGHT_MAX)

    def take_part(self, coordinator: _Coordinator, round_id: int) -> Sent:
        """Train the newest version and code what came of it; the receipt is certain."""
        frame, base, options = coordinator.frame, coordinator.params(), self._options
        recipe = replace(self._task.recipe(options.seed, self.name, round_id), proximal=options.proximal)
        version = Version(self.version, coordinator.numbers.published)
        corrected = (
            correction_of(self._control, frame, version, recipe, len(self._example[0])) if options.scaffold else None
        )
        tuned = train.fine_tune(frame.graph_with(base), frame.suffix, *self._example, recipe, correction=corrected)
        self._control = None if tuned.gradient is None else control_of(tuned.gradient, version)
        local = tuned.params
        delta = local.astype(np.int64) - base if frame.lane == "int8" else local - base
        owed = self._owed or residual.nothing_owed(frame)
        made = residual.step(delta, owed, frame, self._options.sending, self.version)
        self._owed = made.owed
        sealed = sealed_update_bytes(self.name, made.payload)
        return Sent(self.name, made.payload, made.update, _before_rounding(made, frame), sealed)


def _before_rounding(made: residual.Sent, frame: Frame) -> Update:
    """The update that was meant: what was sent, and what of the same parameters is owed again."""
    sent, owed = made.update, made.owed.residual[made.update.indices]
    if sent.lane == "float32":
        return replace(sent, values=(sent.values + owed).astype(np.float32))
    unit = frame.unit[sent.indices].astype(np.int64)
    total = sent.values * unit + owed
    whole = np.minimum(np.abs(total) // unit, UNIT_MAX)  # as engine/kernels/steps.py takes them
    return replace(sent, values=(np.sign(total) * whole).astype(np.int32))
