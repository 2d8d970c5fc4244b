"""A thousand rounds of the real agent's machine on a bad line and bad power: what is counted and what is owed add up.

The coordinator here loses updates and receipts, refuses some, and answers the same bytes again; power is cut between
any two effects. Of all that, only one thing may show in the sum: an update that was counted.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import numpy as np
import pytest

from edge_agent.effects import Forget, Persist, Publish, StartTraining
from engine.codec.payload import decode
from engine.codec.residual import Sending, dump_owed, load_owed, nothing_owed, step
from engine.codec.update import dense
from tests.edge_agent.stage import DEVICE, FLEET, Stage, said
from tests.engine.test_residual import clipped, frame_of, trained
from wire import topics
from wire.messages import digest_of

DROPPED = 0.3  # of updates, and of receipts
REFUSED = 0.15
CUT = 0.03  # before any one effect
CLIP_NORM = 0.5
UPDATES = topics.up(FLEET, DEVICE, "update")


class PowerCutError(Exception):
    """Everything that is not on flash is gone."""


class Life:
    """One device and the coordinator's books about it."""

    def __init__(self, lane: str, value_bits: int, seed: int) -> None:
        self.frame = frame_of(lane)
        self.sending = Sending(k=6, value_bits=value_bits, coding="rice", clip_norm=CLIP_NORM)
        self.chance = random.Random(seed)
        self.happened: Counter[str] = Counter()
        self.on_flash: dict[int, bytes] = {}  # residual files, by round
        self.deltas: dict[int, np.ndarray] = {}  # as clipped, of the newest training of each round
        self.sent = np.zeros(len(self.frame.unit), np.int64 if lane == "int8" else float)
        self.meant = np.zeros_like(self.sent)
        self.verdicts: dict[bytes, str] = {}
        self.counted_rounds: set[int] = set()
        self.durable, self.stage = None, Stage()
        self.start()

    def start(self) -> None:
        old, self.stage = self.stage, Stage(self.durable)
        self.stage.flash = old.flash
        for effect in self.stage.ready().effects:
            if isinstance(effect, Persist):
                self.durable = effect.durable

    def perform(self, followed: list) -> None:
        """Do what the agent asked, in its order, and what comes of it, until power fails or nothing is left to do."""
        then = []
        for effect in followed:
            if self.chance.random() < CUT:
                raise PowerCutError
            match effect:
                case Persist(durable=durable):
                    self.durable = durable
                case Forget(keep_residuals=kept):
                    self.on_flash = {number: data for number, data in self.on_flash.items() if number in kept}
                case StartTraining(job=job):
                    then.append(partial(self.train, job))
                case Publish(topic=topic, payload=sealed) if topic == UPDATES:
                    then.append(partial(self.receive, sealed, said([effect], "update")[0]))
        for happening in then:
            self.perform(happening())

    def train(self, job) -> list:
        """The training child."""
        owed = nothing_owed(self.frame)
        if job.residual_round_id:
            kept = self.on_flash[job.residual_round_id]  # the true one is always there
            owed = load_owed(kept, len(self.frame.unit), self.frame.lane, 0)
        delta = trained(self.frame, self.chance.randrange(10**9))
        self.deltas[job.round_id] = clipped(delta, self.frame, CLIP_NORM)
        sent = step(delta, owed, self.frame, self.sending, job.base_version)
        if self.chance.random() < CUT:
            raise PowerCutError
        self.on_flash[job.round_id] = dump_owed(sent.owed, 0)
        if self.chance.random() < CUT:
            raise PowerCutError
        return self.stage.trained(job.round_id, payload=sent.payload)

    def receive(self, sealed: bytes, update) -> list:
        """The coordinator, behind a line that loses what it likes."""
        digest = digest_of(sealed)
        if self.chance.random() < DROPPED:
            self.happened["update lost"] += 1
            return []
        if digest in self.verdicts:
            verdict = "duplicate" if self.verdicts[digest] == "accepted" else self.verdicts[digest]
        else:
            verdict = self.chance.choice(["stale", "refused"]) if self.chance.random() < REFUSED else "accepted"
            self.verdicts[digest] = verdict
            if verdict == "accepted":
                assert update.round_id not in self.counted_rounds
                self.counted_rounds.add(update.round_id)
                some = decode(update.payload, self.frame.shapes, lane=self.frame.lane, k_max=6, coding="rice")
                self.sent += dense(some) * (self.frame.unit if self.frame.lane == "int8" else 1)
                self.meant += self.deltas[update.round_id]
        self.happened[verdict] += 1
        if self.chance.random() < DROPPED:
            self.happened["receipt lost"] += 1
            return []
        return self.stage.receipt(sealed, verdict, update.round_id)

    def round(self, number: int) -> None:
        """Offer one round until it is over for the device."""
        while self.durable.last_round_id < number or self.durable.outbox:
            try:
                if self.durable.last_round_id < number:
                    followed = self.stage.offer(number)
                    self.perform([*followed, *self.stage.serve(followed)])
                else:
                    self.perform(self.stage.tick(3_600_000))
            except PowerCutError:
                self.happened["power cut"] += 1
                self.start()

    def owed(self) -> np.ndarray:
        kept = self.on_flash[self.durable.residual_round_id]
        return load_owed(kept, len(self.frame.unit), self.frame.lane, 0).residual


@pytest.mark.parametrize(
    ("lane", "bits"), [("int8", 0), ("int8", 1), ("int8", 4), ("int8", 8), ("float32", 1), ("float32", 4)]
)
def test_over_a_thousand_lossy_rounds_what_was_counted_and_what_is_owed_is_what_was_meant(lane, bits):
    life = Life(lane, bits, seed=bits)
    for number in range(1, 1001):
        life.round(number)
    assert all(life.happened[what] > 50 for what in ("power cut", "update lost", "receipt lost", "stale", "duplicate"))
    assert 700 < len(life.counted_rounds) < 950
    error = np.abs(life.sent + life.owed() - life.meant)
    assert np.count_nonzero(life.sent) > 50
    if lane == "int8":
        assert error.max() == 0
    else:
        assert error.max() <= 1e-6 * np.abs(life.meant).max()
    assert len(life.on_flash) <= 2
