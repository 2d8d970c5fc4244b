"""Lane hardened as a whole: every rule over what is held of devices, and a fleet of digits that is attacked.

The devices are the product's own: they train, say a hundredth of what differs from their estimate, and the coordinator
makes the next version of the payloads and its file of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from broker.aggregate.rules import RULES, Recipe, next_numbers
from broker.config import Aggregate as AggregateTable
from broker.config import Recipe as PlanTable
from broker.effects import Pending
from broker.estimates import Estimates
from broker.registry import params_bytes_of
from engine import master
from engine.codec import estimate, residual
from engine.codec.estimate import Estimate
from engine.frame import frame_of
from engine.models.scheme import load_params
from engine.train import Recipe as Tuning
from engine.train import fine_tune, mix_seed
from firmware_sim import numbers, poison
from tests.broker.test_service import FRAME, Rig, open_round
from tests.broker.test_service import directory as directory  # noqa: PLC0414 - a fixture
from tests.engine.test_master import frame
from wire.messages import MODEL_FILE, PARAMS_FILE, Receipt, Update

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 24
LANES = {"float32": frame(SIZE, 0, lane="float32"), "int8": frame(SIZE - 2, 2, unit=32)}
DEVICES, DISHONEST, ROUNDS = 15, 3, 20


def reader(stored: dict[str, bytes]) -> Callable[[str, int], bytes]:
    return lambda name, _round_id: stored[name]


def few_rounds(name: str, lane: str, path: Path, *, backwards: bool = False, twice: bool = False) -> tuple[bytes, ...]:
    """What four rounds of six devices come to: numbers, and what the rule remembers."""
    here, kept, chance = LANES[lane], Estimates(path), np.random.default_rng(5)
    bits = 4 if lane == "float32" else 0
    sending, common = residual.Sending(6, bits, "context", clip_norm=1e6), chance.integers(5, 30, SIZE)
    now = master.first(here, np.zeros(SIZE, np.float32 if lane == "float32" else np.int32))
    held = {f"device-{at}": estimate.nothing(SIZE) for at in range(6)}
    state = b""
    for round_id in range(1, 5):
        stored = {}
        for device, known in held.items():
            delta = common + chance.integers(-1, 2, SIZE)
            said = estimate.say(delta.astype(np.float32) if bits else delta, known, here, sending, round_id)
            held[device], stored[device] = said.estimate, said.payload
        pending = [Pending(device, round_id, round_id, 8) for device in held]
        recipe = Recipe(RULES[name], 0.5, SIZE, round_id, round_id, dense=True)
        for _ in range(1 + twice):
            made = next_numbers(
                here, now, pending[::-1] if backwards else pending, reader(stored), recipe,
                rule_state=state, estimates=kept,
            )  # fmt: skip
        now, state = made.numbers, made.rule_state
    kept.close()
    return now.published, now.remainder, state


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", RULES)
def test_every_rule_makes_the_same_of_rows_in_any_order_and_as_often_as_need_be(name: str, lane: str, tmp_path: Path):
    plain = few_rounds(name, lane, tmp_path / "a")
    assert plain == few_rounds(name, lane, tmp_path / "b", backwards=True)
    assert plain == few_rounds(name, lane, tmp_path / "c", twice=True)
    moved = load_params(LANES[lane].suffix, plain[0])
    assert np.count_nonzero(moved) > SIZE // 3
    assert (moved >= 0).all()


def taught(rule: str, path: Path, *, hardened: bool = True, attack: str = "") -> list[float]:
    """The accuracy after each of some rounds, of fifteen devices with unlike digits that say 1 % each."""
    school = numbers.school(DEVICES, 1)
    files = {file.name: school.first.blobs[file.digest] for file in school.first.manifest.files}
    here, kept = frame_of(files[MODEL_FILE], numbers.TRAIN), Estimates(path)
    now = master.Numbers(files[PARAMS_FILE], school.first.remainder)
    size = here.suffix.num_params
    sending = residual.Sending(size // 100, 0, "context", clip_norm=10.0)
    held = [estimate.nothing(size) if hardened else residual.nothing_owed(here) for _ in range(DEVICES)]
    state, reached = b"", []
    for round_id in range(1, ROUNDS + 1):
        base = load_params(here.suffix, now.published)
        deltas = []
        for place, share in enumerate(school.shares):
            recipe = Tuning(2, 16, 0.01, 0.9, mix_seed(1, str(place), round_id))
            deltas.append(fine_tune(here.graph_with(base), here.suffix, *share, recipe).params.astype(np.int64) - base)
        if attack:
            turned = poison.inner_product(np.stack(deltas[DISHONEST:]), poison.turning(DEVICES, DISHONEST))
            deltas[:DISHONEST] = [turned] * DISHONEST
        stored = {}
        for place, delta in enumerate(deltas):
            known, mine = held[place], sending._replace(clip_norm=numbers.NO_CLIP) if attack else sending
            if isinstance(known, Estimate):
                stored[f"device-{place:02}"], held[place], _ = estimate.say(delta, known, here, mine, round_id)
            else:
                made = residual.step(delta, known, here, mine, round_id)
                stored[f"device-{place:02}"], held[place] = made.payload, made.owed
        pending = [Pending(name, round_id, round_id, 10) for name in stored]
        recipe = Recipe(RULES[rule], 1.0, size, round_id, round_id, dense=True)
        made = next_numbers(here, now, pending, reader(stored), recipe, rule_state=state, estimates=kept)
        now, state = made.numbers, made.rule_state
        score = school.held_out.score(here, now.published)
        reached.append(score.correct / score.count)
    kept.close()
    return reached


def test_the_median_of_what_is_held_learns_where_the_median_of_sparse_updates_stands_still(tmp_path: Path):
    """With nobody dishonest: a hundredth of the parameters is too little for a median, all that was said is not."""
    sparse = taught("median", tmp_path / "sparse", hardened=False)
    held = taught("median", tmp_path / "held")
    assert sparse[-1] < 0.25
    assert max(sparse) - min(sparse) < 0.05
    assert held[-1] > 0.6
    assert held[-1] > held[9] > held[4]


def test_the_lanes_own_rule_learns_under_an_attack_that_turns_the_mean(tmp_path: Path):
    """Inner-product manipulation by a fifth: the mean of the same rows unlearns, mixing and trimming do not."""
    mean = taught("fedavg", tmp_path / "mean", attack="ipm")
    mixed = taught("mixed-trimmed-mean", tmp_path / "mixed", attack="ipm")
    assert mean[-1] < 0.2
    assert mixed[-1] > 0.95


class Cabin:
    """A device that says a little of what it means, and hears what became of that."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.estimate = rig, estimate.nothing(FRAME.suffix.num_params)

    def take_part(self, round_id: int, version: int) -> str:
        """Send what this round's delta comes to, and give the verdict."""
        delta = np.full(FRAME.suffix.num_params, 2, np.int64)
        sending = residual.Sending(100, 0, "context", clip_norm=numbers.NO_CLIP)
        said = estimate.say(delta, self.estimate, FRAME, sending, round_id)
        self.rig.turn(self.rig.say("cabin", Update(round_id, version, 20, 0, 0, said.payload)))
        receipt = self.rig.link.heard(Receipt)[-1]
        if receipt.verdict == "accepted":
            self.estimate = said.estimate
        if receipt.verdict == "unfounded":
            self.estimate = estimate.nothing(FRAME.suffix.num_params)
        return receipt.verdict


def opened(directory: Path) -> Rig:
    plan, rule = PlanTable(lane="hardened"), AggregateTable(rule="median", publish_rate=1.0)
    return Rig(directory, plan=plan, aggregate=rule)


def moved(rig: Rig, version: int) -> int:
    """How many parameters stand higher than in version 1."""
    newest, first = (
        load_params(FRAME.suffix, params_bytes_of(rig.store.manifest(each), rig.store.blob)) for each in (version, 1)
    )
    return int(np.count_nonzero(newest > first))


def test_a_coordinator_holds_what_was_said_through_a_restart_and_asks_anew_where_it_does_not(directory: Path):
    rig = opened(directory)
    cabin = Cabin(rig)
    open_round(rig, "cabin")
    assert cabin.take_part(1, 1) == "accepted"
    assert moved(rig, 2) == 100
    rig = cabin.rig = opened(directory)  # another run
    open_round(rig, "cabin")
    assert cabin.take_part(2, 2) == "accepted"
    assert moved(rig, 3) == 200, "the first hundred count again, and a second with them"
    (directory / "estimates.f16").unlink()
    rig = cabin.rig = opened(directory)
    open_round(rig, "cabin")
    assert cabin.take_part(3, 3) == "unfounded"
    assert cabin.take_part(3, 3) == "accepted"
    open_round(rig, "cabin")
    assert cabin.take_part(4, 4) == "accepted"
    assert moved(rig, 5) == 200
    assert rig.service.coordinator.refused_count == {"unfounded": 1}
