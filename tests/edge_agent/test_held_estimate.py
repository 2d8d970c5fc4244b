"""Lane hardened on a bad line and bad power, with the real agent's machine: both sides hold the same, whatever is lost.

As in test_error_feedback, but the coordinator holds a row of the device, counts what it has accepted some time later,
and loses its rows now and then.
"""

from __future__ import annotations

import numpy as np
import pytest

from broker.estimates import Row, Said, after
from engine.codec import estimate
from engine.codec.payload import decode
from tests.edge_agent.test_error_feedback import CUT, DROPPED, REFUSED, Life, PowerCutError
from tests.engine.test_residual import trained
from wire.messages import digest_of

ROW_LOST = 0.02
COUNTED = 0.5  # of what waits, at each update that comes


class HardenedLife(Life):
    """One device of lane hardened, and the coordinator's row of it."""

    def __init__(self, lane: str, value_bits: int, seed: int) -> None:
        self.row, self.waiting = Row(estimate.nothing(0)), []
        super().__init__(lane, value_bits, seed)
        self.size = len(self.frame.unit)
        self.row = Row(estimate.nothing(self.size))

    def train(self, job) -> list:
        known = estimate.nothing(self.size)
        if job.residual_round_id:
            known = estimate.load(self.on_flash[job.residual_round_id], self.size, 0)
            assert known.round_id == job.residual_round_id
        delta = trained(self.frame, self.chance.randrange(10**9))
        made = estimate.say(delta, known, self.frame, self.sending, job.round_id)
        if self.chance.random() < CUT:
            raise PowerCutError
        self.on_flash[job.round_id] = estimate.dump(made.estimate, 0)
        if self.chance.random() < CUT:
            raise PowerCutError
        return self.stage.trained(job.round_id, payload=made.payload)

    def receive(self, sealed: bytes, update) -> list:
        if self.chance.random() < COUNTED:
            self.count()
        if self.chance.random() < ROW_LOST:
            self.happened["row lost"] += 1
            self.row = Row(estimate.nothing(self.size))
        digest = digest_of(sealed)
        if self.chance.random() < DROPPED:
            self.happened["update lost"] += 1
            return []
        if digest in self.verdicts:
            verdict = "duplicate" if self.verdicts[digest] == "accepted" else self.verdicts[digest]
        else:
            verdict = self.verdicts[digest] = self.judge(update)
        self.happened[verdict] += 1
        if self.chance.random() < DROPPED:
            self.happened["receipt lost"] += 1
            return []
        return self.stage.receipt(sealed, verdict, update.round_id)

    def judge(self, update) -> str:
        if self.chance.random() < REFUSED:
            return self.chance.choice(["stale", "refused"])
        follows, content = estimate.split(update.payload)
        in_row = self.row.is_sound and self.row.estimate.round_id == follows
        if follows and not in_row and follows not in {said.round_id for said in self.waiting}:
            return "unfounded"
        some = decode(content, self.frame.shapes, lane=self.frame.lane, k_max=6, coding="rice")
        self.counted_rounds.add(update.round_id)
        self.waiting.append(Said(update.round_id, follows, some))
        return "accepted"

    def count(self) -> None:
        """A version counts what waits, and its sum is made twice. Then both hold the same, or the row says that not."""
        again = after(self.row, self.waiting)
        self.row = after(again, self.waiting)
        assert self.row is again
        round_id = self.row.estimate.round_id
        if self.waiting and self.row.is_sound and round_id in self.on_flash:
            held = estimate.load(self.on_flash[round_id], self.size, 0)
            assert held.values.tobytes() == self.row.estimate.values.tobytes()
            self.happened["compared"] += 1
        self.happened["not sound"] += bool(self.waiting) and not self.row.is_sound
        self.waiting.clear()


@pytest.mark.parametrize(("lane", "bits"), [("int8", 0), ("int8", 4), ("float32", 4)])
def test_over_hundreds_of_lossy_rounds_both_sides_hold_the_same_bits(lane, bits):
    life = HardenedLife(lane, bits, seed=bits)
    for number in range(1, 601):
        life.round(number)
    seen = life.happened
    assert all(seen[what] > 20 for what in ("power cut", "update lost", "receipt lost", "stale", "duplicate"))
    assert seen["row lost"] > 5
    assert 0 < seen["unfounded"] <= 4 * seen["row lost"], "each loss costs the work of a round, told until it is heard"
    assert seen["not sound"] > 0
    assert seen["compared"] > 200
    assert 350 < len(life.counted_rounds) < 590
    life.count()
    assert np.count_nonzero(life.row.estimate.values) > 6
    assert len(life.on_flash) <= 2
