"""One seed, one fleet, one storm: safety while everything breaks, then healing, then progress.

    requested rounds under the weather ─▶ heal ─▶ all rounds closed, all outboxes empty ─▶ sweep rounds in which
    everyone is counted ─▶ silence

`run` gives a Verdict and never raises for what the product did; a failing seed brings its story. `main` runs many, on
every processor there is, and shrinks those that fail to the fewest faults (see `shrink`).
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from firmware_sim.auditor import Violation
from firmware_sim.shrink import Shrinker
from firmware_sim.weather import STORM, named, swarm
from firmware_sim.world import LASTS_MS, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firmware_sim.weather import Weather
    from firmware_sim.world import Cut

MINUTE_MS: Final = 60_000
HEAL_MS: Final = 90 * MINUTE_MS
SETTLE_MS: Final = 7 * MINUTE_MS  # longer than telemetry takes, with which an unanswered birth is repeated
QUIET_MS: Final = 20 * MINUTE_MS
ENROL_MS: Final = 6 * MINUTE_MS
STEP_MS: Final = 5_000
SWEEPS_MAX: Final = 4
REAL_KEYS_EVERY: Final = 50  # one seed in so many signs with Ed25519
SHRUNK_MAX: Final = 3  # of the seeds that fail


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
    happened: tuple[str, ...]  # the faults, as kind#number, of a seed that failed
    story: tuple[str, ...]


def weather_of(seed: int, scenario: str = "storm") -> Weather:
    """The named profile; in the storm every other seed has a profile of its own."""
    return named(scenario) if scenario != "storm" else STORM if seed % 2 == 0 else swarm(seed)


def run(
    seed: int,
    weather: Weather | None = None,
    *,
    devices: int = 10,
    rounds: int | None = None,
    cut: Cut | None = None,
    spared: frozenset[str] = frozenset(),
    prepare: Callable[[World], None] | None = None,
) -> Verdict:
    """Live through one seed, without the faults that are `spared`. `prepare` may change the world beforehand."""
    weather = weather_of(seed) if weather is None else weather
    world = World(seed, weather, devices=devices, real_keys=seed % REAL_KEYS_EVERY == 0, cut=cut, spared=spared)
    if prepare is not None:
        prepare(world)
    broken = sentence = ""
    try:
        _live(world, weather.rounds if rounds is None else rounds)
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
        tuple(world.happened) if broken else (),
        tuple(str(line) for line in world.story) if broken else (),
    )


def _live(world: World, rounds: int) -> None:
    chance = random.Random(f"operator/{world.seed}")
    weather, devices = world.weather, len(world.devices)
    for number in range(rounds):
        updates_min = chance.randint(1, max(1, devices // 2))
        cohort_max = chance.choice([0, chance.randint(updates_min, devices)])
        lasts_ms = chance.choice([LASTS_MS // 3, LASTS_MS])
        enough = 0
        if world.mode == "buffered":  # the K-th update closes it, and time with as many, or with one
            enough, updates_min = updates_min, chance.choice([1, updates_min])
        if weather.round_every_ms:
            world.at(number * weather.round_every_ms, world.request_round, updates_min, cohort_max, lasts_ms, enough)
        else:
            world.request_round(updates_min, cohort_max, lasts_ms, enough)
    world.at(chance.randrange(ENROL_MS), world.enrol_late)
    world.run(world.now_ms + (rounds - 1) * weather.round_every_ms)
    _run_until_settled(world, weather.lasts_ms)
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
    missing = [device.name for device in world.devices if not device.gone and device.name not in world.dishonest]
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
    """A failing seed, for a terminal: the faults, the last that happened, and what broke."""
    faults = f"{len(verdict.happened)} faults: {', '.join(verdict.happened[:20])}"
    more = f" and {len(verdict.happened) - 20} more" if len(verdict.happened) > 20 else ""
    return "\n".join([*verdict.story, faults + more, f"seed {verdict.seed}, {verdict.broken}: {verdict.sentence}"])


def main(first_seed: int = 0, seeds: int = 200, *, scenario: str = "storm", devices: int = 10) -> int:
    """Run seeds and print one line; for each that fails, its story. Returns the exit status: 1 if one failed."""
    live = functools.partial(_live_scenario, scenario, devices)
    started_s = time.perf_counter()
    total = Total()
    with click.progressbar(_each(live, range(first_seed, first_seed + seeds)), seeds, scenario, file=sys.stderr) as bar:
        for verdict in bar:
            total.add(verdict)
    for broken in total.failed[:SHRUNK_MAX]:
        click.echo(f"seed {broken.seed} failed; looking for the fewest faults ...", err=True)
        click.echo(tell(Shrinker(broken, functools.partial(live, broken.seed)).shrink()) + "\n")
    click.echo(total.line(time.perf_counter() - started_s))
    for broken in total.failed:
        again = f"make sim SEED={broken.seed}" + (f' ARGS="--scenario {scenario}"' if scenario != "storm" else "")
        click.echo(f"seed {broken.seed} broke {broken.broken!r} at {_commit()}; again: {again}")
    return 1 if total.failed else 0


class Total:
    """What became of many seeds."""

    def __init__(self) -> None:
        self.failed: list[Verdict] = []
        self._faults: collections.Counter[str] = collections.Counter()
        self._seeds = self._happenings = self._delivered = self._effects = 0

    def add(self, verdict: Verdict) -> None:
        """Count one more."""
        self._seeds += 1
        self._faults.update(verdict.faults)
        self._happenings += verdict.happening_count
        self._delivered += verdict.delivered_count
        self._effects += verdict.effect_count.total()
        if verdict.broken:
            self.failed.append(verdict)

    def line(self, took_s: float) -> str:
        """All of it, in one line."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in self._faults.most_common())
        return (
            f"{self._seeds} seeds in {took_s:.1f} s: {self._happenings} happenings, {self._delivered} deliveries, "
            f"{self._effects} effects; {self._faults.total()} faults of {len(self._faults)} kinds ({kinds}); "
            f"{len(self.failed)} failed"
        )


def _live_scenario(scenario: str, devices: int, seed: int, spared: frozenset[str] = frozenset()) -> Verdict:
    return run(seed, weather_of(seed, scenario), devices=devices, spared=spared)


def _each(live: Callable[[int], Verdict], seeds: range) -> Iterator[Verdict]:
    """The verdicts in the order of seeds, from as many processes as there are processors."""
    processes = min(os.cpu_count() or 1, len(seeds))
    if processes == 1:
        yield from map(live, seeds)
        return
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        yield from pool.map(live, seeds, chunksize=min(16, -(-len(seeds) // processes)))


def _commit() -> str:
    """Which sources these are, for whoever is to run a seed again."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "an unknown commit"
    return done.stdout.strip() or "an unknown commit"
