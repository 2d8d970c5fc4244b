"""A fleet in virtual time: devices of very different speeds, the product's rounds, and what they learn.

    buffered      everyone trains; the K-th update closes the round, the next one opens at once; an update that comes
                  later is counted by a later round, and weighs less by its staleness
    synchronous   1.3 times as many are invited as the round wants; it closes with as many as it wanted, or at its
                  deadline with those who came; who comes later is told to stop, and what it did is thrown away

When a round closes is for `broker.rounds.Round` to say, whom it invites for `broker.cohort`, what an update weighs for
`broker.rounds.members`. What a device learns comes of the product's engine: it trains the version that it began with,
owes what it does not send, and sends the largest changes; the sum, the step and the next version are those of the
coordinator. Only time is made up: a training with its fetch and its sending takes a device `seconds` of its own, the
same each time, log-normal over the fleet. The median device's is the unit.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from benchmarks import federation
from broker import cohort, rounds
from broker.effects import Pending, RoundRow
from broker.versions import PUBLISHED_PER_SENT
from engine import master, ring, train
from engine.codec import residual
from engine.models import scheme
from firmware_sim.witness import PLAN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from benchmarks.fleet_tasks import Task
    from engine.codec.update import Update

FLEET: Final = "bench"
SIGMA: Final = 1.0  # of the logarithm of a device's seconds
OVERSAMPLE: Final = 1.3
KEEP_RATE: Final = 0.01  # as the product sends where nothing else is said
VERSIONS_MAX: Final = 400
UNIT_MS: Final = 1_000  # the median device's training, as the rounds see it


class Way(NamedTuple):
    """How rounds go. `wanted` is K, or how many a synchronous round wants; `deadline` is in median trainings."""

    mode: str
    wanted: int
    deadline: float = math.inf
    learning_rate: float = 1.0  # the coordinator's


class Point(NamedTuple):
    """One version: when it was made, how good it is, whose updates it counts and how stale they were on average."""

    at: float
    accuracy: float
    counted: tuple[str, ...]
    staleness: float


@dataclass(eq=False)
class _Device:
    name: str
    example: Any  # features at the cut, labels
    seconds: float
    owed: residual.Owed | None = None
    round_id: int = 0  # of its training now, or the last one
    base: tuple[int, NDArray[Any]] = field(default_factory=lambda: (0, np.empty(0)))


class Fleet:
    """The devices of one seed and their coordinator, from version 1 on."""

    def __init__(self, task: Task, seed: int) -> None:
        self._task, self._seed, self._frame = task, seed, task.frame
        dealt = task.fleet(seed)
        speeds = random.Random(f"speeds/{seed}")
        self.devices = {
            name: _Device(name, example, math.exp(SIGMA * speeds.gauss(0, 1)))
            for name, example in sorted(dealt.held.items())
        }
        self._test = dealt.test
        self._numbers = master.first(task.frame, dealt.params)
        self._sending = federation.sending(task.frame.suffix.num_params, KEEP_RATE, 0)
        self._learning_rate = 1.0
        self._version = 1
        self._chance = random.Random(f"draws/{seed}")

    def live(self, way: Way) -> Iterator[Point]:
        """Every version in the order of time, VERSIONS_MAX of them; the first before anybody has learnt anything."""
        self._learning_rate = way.learning_rate
        yield Point(0.0, self._accuracy(), (), 0.0)
        yield from itertools.islice(self._buffered(way) if way.mode == "buffered" else self._cohorts(way), VERSIONS_MAX)

    def _buffered(self, way: Way) -> Iterator[Point]:
        """Who has finished takes part in the next round that is open; nobody makes two updates of one round."""
        pending: dict[tuple[str, int], tuple[Pending, Update]] = {}
        running: list[tuple[float, str]] = []
        idle, now = set(self.devices), 0.0
        for number in itertools.count(1):
            row = RoundRow(number, PLAN, "open", 1, 0, 2**40, self._version, 0, "buffered", way.wanted)
            current = rounds.Round(cohort.with_coin(row, len(self.devices), 1, self._chance), 0)
            for name in cohort.draw(current.row, FLEET, self.devices, current.invited, self._chance):
                current.invite(name)
            for name in sorted(idle):
                self._begin(self.devices[name], number)
                heapq.heappush(running, (now + self.devices[name].seconds, name))
            idle.clear()
            while not current.may_close(int(now * UNIT_MS), len(pending)):
                now, name = heapq.heappop(running)
                done = self._end(self.devices[name])
                pending[name, done[0].round_id] = done
                if done[0].round_id == number:
                    current.report(name)
                    idle.add(name)
                else:
                    self._begin(self.devices[name], number)
                    heapq.heappush(running, (now + self.devices[name].seconds, name))
            counted = rounds.members([each for each, _ in pending.values()], self._version)
            updates = [pending.pop((each.device_id, each.round_id))[1] for each in counted]
            yield self._advance(now, list(zip(counted, updates, strict=True)))

    def _cohorts(self, way: Way) -> Iterator[Point]:
        """Nobody is busy when a round opens: whoever was late for the last one was told to stop."""
        now = 0.0
        for number in itertools.count(1):
            invited = min(len(self.devices), math.ceil(way.wanted * OVERSAMPLE))
            lasts_ms = 2**40 if math.isinf(way.deadline) else int(way.deadline * UNIT_MS)
            row = RoundRow(number, PLAN, "open", 1, invited, lasts_ms, self._version, 0, "synchronous", way.wanted)
            current = rounds.Round(row, 0)
            drawn = cohort.draw(row, FLEET, self.devices, current.invited, self._chance)
            for name in drawn:
                current.invite(name)
            came: list[str] = []
            waiting = sorted((self.devices[name].seconds, name) for name in drawn)
            took = 0.0
            while not current.may_close(int(took * UNIT_MS), len(came)):
                following = waiting[0][0] if waiting else math.inf
                if came and following > way.deadline:
                    took = way.deadline
                    continue
                took, name = waiting.pop(0)  # the first one is waited for, however long it takes
                came.append(name)
                current.report(name)
            now += took
            yield self._advance(now, [self._trained(name, number) for name in came])

    def _trained(self, name: str, number: int) -> tuple[Pending, Update]:
        self._begin(self.devices[name], number)
        return self._end(self.devices[name])

    def _begin(self, device: _Device, round_id: int) -> None:
        """It has the newest version, and trains."""
        device.round_id = round_id
        device.base = self._version, scheme.load_params(self._frame.suffix, self._numbers.published)

    def _end(self, device: _Device) -> tuple[Pending, Update]:
        """What comes of the training that it began."""
        version, base = device.base
        recipe = self._task.recipe(self._seed, device.name, device.round_id)
        local = train.fine_tune(self._frame.graph_with(base), self._frame.suffix, *device.example, recipe).params
        owed = device.owed or residual.nothing_owed(self._frame)
        made = residual.step(local.astype(np.int64) - base, owed, self._frame, self._sending, version)
        device.owed = made.owed
        return Pending(device.name, device.round_id, version, len(device.example[1])), made.update

    def _advance(self, now: float, members: list[tuple[Pending, Update]]) -> Point:
        """The next version."""
        frame = self._frame
        summed = [ring.Member((each.device_id, each.round_id), update, each.weight) for each, update in members]
        total = ring.add_all(ring.empty(ring.Purpose(frame.suffix.num_params, frame.lane)), summed)
        step = ring.mean_step(total, self._learning_rate)
        most = min(frame.suffix.num_params, PUBLISHED_PER_SENT * self._sending.k)
        self._numbers = master.advance(frame, self._numbers, step, publish_max=most).numbers
        staleness = sum(self._version - each.base_version for each, _ in members) / len(members)
        self._version += 1
        return Point(now, self._accuracy(), tuple(each.device_id for each, _ in members), staleness)

    def _accuracy(self) -> float:
        params = scheme.load_params(self._frame.suffix, self._numbers.published)
        score = train.evaluate(self._frame.graph_with(params), self._frame.suffix, *self._test)
        return score.correct / score.count


def small(task: Task) -> Task:
    """The task with as many passes over a device's examples as the product makes where nothing else is said."""
    return replace(task, learning=replace(task.learning, epochs=2))
