"""Up to two fifths of the devices are dishonest: every promise to the others holds, whatever those do."""

import collections
import functools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from broker.ration import Rations
from edge_agent.effects import Trained
from firmware_sim import attacks, keyring, storm, witness
from firmware_sim.auditor import Violation
from firmware_sim.weather import CALM, Weather, named
from firmware_sim.world import World
from wire import topics
from wire.limits import EXAMPLES_MAX, UPDATE_PAYLOAD_BYTES_MAX

ROOT = Path(__file__).parents[2]
SEEDS = (*range(20), 72, 130)  # in the last two, receipts for forged updates kept a device from saying its birth again
MINUTE_MS = 60_000
BYZANTINE = named("byzantine")


@functools.cache
def run(seed):
    worlds = []
    return storm.run(seed, BYZANTINE, prepare=worlds.append), worlds[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_promise_to_an_honest_device_is_broken_by_dishonest_ones(seed):
    verdict, _ = run(seed)
    assert not verdict.broken, storm.tell(verdict)


def test_every_attack_happens_and_some_lies_are_counted():
    attacking = collections.Counter(attack for seed in SEEDS for attack in run(seed)[1].dishonest.values())
    assert set(attacking) == set(attacks.NAMES)
    lies = 0
    for seed in SEEDS:
        database = run(seed)[1].database
        for device, round_id in database.counted:
            said = witness.read(database.updates[device, round_id].payload)
            lies += (said.place, said.round_id) != (int(device[-2:]), round_id)
    assert lies > 20


def test_the_same_seed_gives_the_same_digest():
    again = storm.run(4, BYZANTINE)
    assert again.digest == run(4)[0].digest != run(5)[0].digest


def test_a_world_of_witnesses_needs_no_numpy():
    code = (
        "import sys; sys.modules['numpy'] = sys.modules['numba'] = None; from firmware_sim import storm, weather;"
        "print(storm.run(4, weather.named('byzantine')).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == run(4)[0].digest


def test_at_most_two_fifths_are_dishonest_and_who_is_spared_is_honest():
    world = World(1, Weather(attacker_rate=1.0), devices=10)
    assert len(world.dishonest) == 4
    assert len(World(1, Weather(attacker_rate=1.0), devices=10, spared=frozenset({"attacker#*"})).dishonest) == 0
    assert set(World(1, Weather(attacker_rate=1.0, attack="nan")).dishonest.values()) == {"nan"}


# Each program by itself


def besieged(attack, minutes=20, **changes):
    """Five devices, of which the last is dishonest, and two rounds."""
    world = World(3, Weather(**changes), devices=5, dishonest={"device-04": attack})
    heard = []
    hear = world.attacker.hear
    world.attacker.hear = lambda topic, payload: (heard.append((topic, payload)), hear(topic, payload))
    for _ in range(2):
        world.request_round(4)
    world.run(minutes * MINUTE_MS)
    assert len(world.database.lineage) == 3
    world.auditor.check_lineage()
    return world, heard, world.station.coordinator.refused_count


def of(heard, device, kind):
    return [payload for topic, payload in heard if topic == topics.up(keyring.FLEET, device, kind)]


def test_who_replays_is_told_so_and_nothing_is_stored_twice():
    world, heard, refused = besieged("replay", minutes=60)
    mine = collections.Counter(of(heard, "device-04", "update"))
    assert max(mine.values()) > 1, "its own update again"
    assert set(mine) & {payload for n in range(4) for payload in of(heard, f"device-0{n}", "update")}, "another's"
    assert refused["signature"]
    assert refused.keys() & {"duplicate", "stale", "refused"}
    assert world.devices[4].life > 1, "a new life"


def test_who_forges_signatures_is_not_believed_in_any_name():
    world, _, refused = besieged("forged signature")
    assert refused == {"signature": refused["signature"]}
    assert refused["signature"] > 100
    assert len(world.database.counted) == 10


def test_names_that_nobody_enrolled_take_part_in_nothing():
    world, heard, refused = besieged("sybil")
    names = {topics.parse(topic).device_id for topic, _ in heard if "sybil" in topic}
    assert len(names) > 100
    assert refused == {"unknown": refused["unknown"]}
    assert {device for device, _ in world.database.updates} == {device.name for device in world.devices}


def test_what_is_no_number_is_refused_under_every_round():
    world, _, refused = besieged("nan")
    assert refused["refused"] > 50
    assert not any(device == "device-04" for device, _ in world.database.updates)


def test_what_is_too_large_is_refused_at_the_limit_that_it_breaks():
    world, heard, refused = besieged("oversize")
    assert {"size", "shape", "message", "refused"} <= refused.keys()
    assert max(len(payload) for payload in of(heard, "device-04", "update")) > UPDATE_PAYLOAD_BYTES_MAX
    for key, counted in world.database.counted.items():
        assert counted.weight <= world.plan.num_examples_max, key


def test_who_wants_for_ever_takes_part_in_nothing_and_gets_its_ration():
    world, heard, refused = besieged("slow loris")
    wants, told = of(heard, "device-04", "want"), [topic for topic, _ in heard if "device-04/dn/chunk" in topic]
    assert len(wants) > 1_000
    assert refused["want"] > 500
    assert len(told) < 1_000
    assert not any(device == "device-04" for device, _ in world.database.updates)


def test_without_rations_who_wants_for_ever_makes_the_coordinator_talk_for_ever(monkeypatch):
    monkeypatch.setattr(Rations, "grant", lambda *_: True)
    with pytest.raises(Violation, match="in ten minutes"):
        besieged("slow loris")


def test_a_second_receipt_for_one_message_is_noticed(monkeypatch):
    world = World(3, CALM, devices=3)
    publish = world.station._publish

    def twice(topic, payload, *, retain):
        for _ in range(2):
            publish(topic, payload, retain=retain)

    monkeypatch.setattr(world.station, "_publish", twice)
    world.request_round(3)
    with pytest.raises(Violation, match="more receipts than updates"):
        world.run(10 * MINUTE_MS)


# What a training child answers

HONEST = Trained(1, b"HR" + bytes(range(100)), 40, 3, 4)


@pytest.mark.parametrize("attack", ["", *attacks.NUMERIC[:-1], "replay", "forged signature", "sybil", "slow loris"])
def test_whose_attack_is_elsewhere_answers_as_the_honest_do(attack):
    assert attacks.answer(attack, HONEST, random.Random(1)) == HONEST


def test_a_free_rider_claims_all_examples_that_there_may_be():
    answered = attacks.answer("free rider", HONEST, random.Random(1))
    assert (answered.payload, answered.num_examples) == (HONEST.payload, EXAMPLES_MAX)


def test_what_is_no_number_is_never_the_payload():
    for seed in range(200):
        chance = random.Random(seed)
        assert attacks.not_numbers(HONEST.payload, chance) != HONEST.payload
        assert isinstance(attacks.not_numbers(b"", chance), bytes)


def test_an_oversized_answer_is_at_the_limits_and_lies():
    answers = [attacks.oversized(HONEST, random.Random(seed)) for seed in range(20)]
    assert {len(answer.payload) for answer in answers} == {len(HONEST.payload), UPDATE_PAYLOAD_BYTES_MAX}
    assert {(each.num_examples, each.held_out_correct) for each in answers} == {(EXAMPLES_MAX, EXAMPLES_MAX)}
