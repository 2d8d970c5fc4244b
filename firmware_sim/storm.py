"""One seed, one fleet, one storm: safety while everything breaks, then healing, then progress.

    requested rounds under the weather ─▶ heal ─▶ all rounds closed, all outboxes empty ─▶ sweep rounds in which
    everyone is counted ─▶ silence

`run` gives a Verdict and never raises for what the product did; a failing seed brings its story. To look at one:

    python -m firmware_sim.storm SEED 1
"""

from __future__ import annotations

import collections
import random
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from firmware_sim.auditor import Violation
from firmware_sim.weather import STORM, swarm
from firmware_sim.world import LASTS_MS, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware_sim.weather import Weather
    from firmware_sim.world import Cut

MINUTE_MS: Final = 60_000
STORM_MS: Final = 40 * MINUTE_MS
HEAL_MS: Final = 90 * MINUTE_MS
SETTLE_MS: Final = 7 * MINUTE_MS  # longer than telemetry takes, with which an unanswered birth is repeated
QUIET_MS: Final = 20 * MINUTE_MS
ENROL_MS: Final = 6 * MINUTE_MS
STEP_MS: Final = 5_000
SWEEPS_MAX: Final = 4
REAL_KEYS_EVERY: Final = 50  # one seed in so many signs with Ed25519


class Verdict(NamedTuple):
    """What became of one seed."""

    seed: int
    broken: str  # the invariant, or the name of what was raised; "" when all held
    sentence: str
    digest: str
    happening_count: int
    delivered_count: int
    effect_count: collections.Counter[str]  # by actor
    faults: collections.Counter[str]  # by kind
    story: tuple[str, ...]


def weather_of(seed: int) -> Weather:
    """Every other seed has the full storm, the others a profile of their own."""
    return STORM if seed % 2 == 0 else swarm(seed)


def run(
    seed: int,
    weather: Weather | None = None,
    *,
    devices: int = 10,
    rounds: int = 5,
    cut: Cut | None = None,
    prepare: Callable[[World], None] | None = None,
) -> Verdict:
    """Live through one seed. `prepare` may change the world before anything happens."""
    weather = weather_of(seed) if weather is None else weather
    world = World(seed, weather, devices=devices, real_keys=seed % REAL_KEYS_EVERY == 0, cut=cut)
    if prepare is not None:
        prepare(world)
    broken = sentence = ""
    try:
        _live(world, rounds)
    except Violation as violation:
        broken, sentence = violation.name, str(violation)
    except (AssertionError, ValueError, LookupError, TypeError, AttributeError) as error:
        broken, sentence = type(error).__name__, f"the program under test raised: {error}"
    return Verdict(
        seed,
        broken,
        sentence,
        world.digest,
        world.happening_count,
        world.delivered_count,
        world.effect_count,
        world.tally,
        tuple(str(line) for line in world.story) if broken else (),
    )


def _live(world: World, rounds: int) -> None:
    chance = random.Random(f"operator/{world.seed}")
    devices = len(world.devices)
    for _ in range(rounds):
        updates_min = chance.randint(1, max(1, devices // 2))
        cohort_max = chance.choice([0, chance.randint(updates_min, devices)])
        world.request_round(updates_min, cohort_max, chance.choice([LASTS_MS // 3, LASTS_MS]))
    world.at(chance.randrange(ENROL_MS), world.enrol_late)
    _run_until_settled(world, STORM_MS)
    world.auditor.check_lineage()
    world.heal()
    world.auditor.check_progress(settled=_run_until_settled(world, HEAL_MS))
    _sweep(world)
    world.auditor.check_end()
    world.run(world.now_ms + SETTLE_MS)
    said, life = world.auditor.sent_count.copy(), world.station.life
    world.run(world.now_ms + QUIET_MS)
    if world.station.life == life:  # a scripted cut may come this late, and who starts has something to say
        world.auditor.check_quiet(said)


def _sweep(world: World) -> None:
    """Rounds for everyone, until all who are there took part in one and nothing is left to count."""
    missing = [device.name for device in world.devices if not device.gone]
    for _ in range(SWEEPS_MAX):
        world.run(world.now_ms + SETTLE_MS)
        round_id = world.request_round(1)
        world.auditor.check_progress(settled=_run_until_settled(world, HEAL_MS))
        missing = [name for name in missing if (name, round_id) not in world.database.updates]
        if not missing and not world.auditor.uncounted():
            return
    world.auditor.check_everyone(missing)


def _run_until_settled(world: World, most_ms: int) -> bool:
    end_ms = world.now_ms + most_ms
    while world.now_ms < end_ms:
        world.run(world.now_ms + STEP_MS)
        if world.auditor.is_settled():
            return True
    return False


def tell(verdict: Verdict) -> str:
    """A failing seed, for a terminal: what broke, and the last that happened before."""
    return "\n".join([*verdict.story, f"seed {verdict.seed}, {verdict.broken}: {verdict.sentence}"])


def main(first_seed: int = 0, seeds: int = 200, *, devices: int = 10, rounds: int = 5) -> int:
    """Run seeds and print one line; for each that fails, its story. Returns the exit status: 1 if one failed."""
    started_s = time.perf_counter()
    with click.progressbar(range(first_seed, first_seed + seeds), label="storms", file=sys.stderr) as bar:
        verdicts = [run(seed, devices=devices, rounds=rounds) for seed in bar]
    took_s = time.perf_counter() - started_s
    failed = [verdict for verdict in verdicts if verdict.broken]
    for verdict in failed:
        click.echo(tell(verdict))
    faults: collections.Counter[str] = sum((verdict.faults for verdict in verdicts), collections.Counter())
    delivered = sum(verdict.delivered_count for verdict in verdicts)
    effects = sum(verdict.effect_count.total() for verdict in verdicts)
    happenings = sum(verdict.happening_count for verdict in verdicts)
    click.echo(
        f"{seeds} seeds in {took_s:.1f} s: {happenings} happenings, {delivered} deliveries, {effects} effects; "
        f"{faults.total()} faults of {len(faults)} kinds ({', '.join(f'{k} {n}' for k, n in faults.most_common())}); "
        f"{len(failed)} failed" + (": " + " ".join(f"{v.seed} {v.broken!r}" for v in failed) if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
