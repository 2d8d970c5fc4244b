"""What an attack does to a fleet that learns: a calm world with real numbers, with and without dishonest devices.

    everyone honest ─▶ accuracy     the same world, some of them dishonest ─▶ accuracy, what was refused, their weight

The devices, their digits, the model's beginning and the coordinator's recipe are the same in all trials of a seed, and
the same devices are dishonest in each. What comes of it is what today's rule lets through, no more and no less.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from firmware_sim.numbers import Numbers
from firmware_sim.weather import CALM
from firmware_sim.world import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ROUND_MS_MAX = 3_600_000
NO_ATTACK = ""


class Terms(NamedTuple):
    """How large a trial is."""

    share: float = 0.2  # of the devices is dishonest
    seed: int = 1
    devices: int = 15
    rounds: int = 10

    def dishonest(self, attack: str) -> dict[str, str]:
        """Who attacks, and how: as many as the share is, one at least, drawn by the seed alone."""
        count = max(1, round(self.share * self.devices)) if attack else 0
        chosen = random.Random(f"dishonest/{self.seed}").sample(range(self.devices), count)
        return {f"device-{index:02}": attack for index in sorted(chosen)}


class Outcome(NamedTuple):
    """What became of one trial."""

    attack: str
    accuracy: tuple[float, ...]  # of each version that a round made, on digits that nobody holds
    refused: dict[str, int]  # messages, by the coordinator's own word for it
    updates: int  # of the dishonest that were counted
    weight_rate: float  # of all that was counted, theirs


def run(attack: str, terms: Terms, tell: Callable[[], object] = lambda: None) -> Outcome:
    """Live through one trial; `tell` is called after each round. Raises Violation when a promise is broken."""
    dishonest = terms.dishonest(attack)
    world = World(terms.seed, CALM, devices=terms.devices, lesson=Numbers(terms.seed), dishonest=dishonest)
    for round_id in range(1, terms.rounds + 1):
        world.request_round(terms.devices - len(dishonest))
        closed = world.run(world.now_ms + ROUND_MS_MAX, until=lambda: len(world.database.lineage) > round_id)  # noqa: B023
        world.auditor.check_progress(settled=closed)
        tell()
    world.auditor.check_lineage()
    coordinator, counted = world.station.coordinator, world.database.counted
    assert coordinator is not None, "nobody stops the coordinator of a calm world"
    theirs = [each.weight for (device, _), each in counted.items() if device in dishonest]
    accuracy = tuple(version.accuracy or 0.0 for version in world.database.lineage[1:])
    weight_rate = sum(theirs) / sum(each.weight for each in counted.values())
    return Outcome(attack, accuracy, dict(coordinator.refused_count), len(theirs), weight_rate)


def table(outcomes: list[Outcome], terms: Terms) -> list[str]:
    """The lines of a table; the first outcome is that of the honest fleet."""
    honest, half = outcomes[0], (terms.rounds - 1) // 2
    lines = [f"{'attack':20} {f'round {half + 1}':>9} {f'round {terms.rounds}':>9} {'lost':>6} {'weight':>7}  refused"]
    for outcome in outcomes:
        refused = ", ".join(f"{word} {count}" for word, count in sorted(outcome.refused.items())) or "nothing"
        lost = 100 * (honest.accuracy[-1] - outcome.accuracy[-1])
        lines.append(
            f"{outcome.attack or 'none':20} {outcome.accuracy[half]:9.1%} {outcome.accuracy[-1]:9.1%} {lost:6.1f} "
            f"{outcome.weight_rate:7.1%}  {refused}"
        )
    return lines


def as_tree(outcomes: list[Outcome], terms: Terms) -> dict[str, Any]:
    """All of it, for JSON."""
    trials = [outcome._asdict() | {"attack": outcome.attack or "none"} for outcome in outcomes]
    return {**terms._asdict(), "dishonest": len(terms.dishonest("any")), "trials": trials}
