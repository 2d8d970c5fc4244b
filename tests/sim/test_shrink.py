"""A failing seed is shrunk to the faults that it needs; what is left breaks the same promise."""

import functools

import pytest

from broker import coordinator
from broker.verdicts import judge
from firmware_sim import storm
from firmware_sim.shrink import Shrinker
from firmware_sim.world import World

SEEDS = range(2, 60, 2)


@pytest.fixture
def broken(monkeypatch):
    """The first seed of the full storm in which a coordinator that stores a repeated update again comes to grief."""

    def judge_again(*update, **known):
        verdict, reason = judge(*update, **known)
        return ("accepted" if verdict == "duplicate" else verdict), reason

    monkeypatch.setattr(coordinator, "judge", judge_again)
    for seed in SEEDS:
        verdict = storm.run(seed)
        if verdict.broken:
            return verdict
    pytest.fail("no seed of the storm minds a coordinator that stores twice")


def test_what_is_left_of_a_failing_seed_breaks_the_same_promise_with_a_few_faults(broken):
    shrinker = Shrinker(broken, lambda spared: storm.run(broken.seed, spared=spared))
    smallest = shrinker.shrink()
    assert smallest.broken == broken.broken == "IntegrityError"
    assert 4 * len(smallest.happened) < len(broken.happened)
    again = storm.run(broken.seed, spared=shrinker.spared)
    assert (again.digest, again.happened) == (smallest.digest, smallest.happened)
    told = storm.tell(smallest)
    assert f"{len(smallest.happened)} faults: " in told
    assert all(name in told for name in smallest.happened)


def test_a_spared_fault_is_drawn_and_does_not_happen():
    verdict = storm.run(2)
    assert not verdict.happened  # told only of seeds that fail
    kinds = frozenset(f"{kind}#*" for kind in verdict.faults)
    spared = storm.run(2, spared=kinds)
    assert not spared.broken
    assert not set(verdict.faults) & set(spared.faults) - {"will", "silent"}


def test_the_seventh_of_a_kind_is_spared_alone():
    one = functools.partial(World, 2, storm.STORM)
    before, after = one(), one(spared=frozenset({"duplicate#7"}))
    for world in (before, after):
        world.request_round(5)
        world.run(200_000)
    assert "duplicate#7" in before.happened
    assert "duplicate#7" not in after.happened
    at = before.happened.index("duplicate#7")
    assert before.happened[:at] == after.happened[:at]
