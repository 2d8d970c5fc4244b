"""A fleet with real numbers under attack: what the coordinator lets through today, and what it does not."""

import functools
import json

import numpy as np
import pytest
from click.testing import CliRunner

from edge_agent.effects import Job
from engine.codec import payload
from engine.codec.update import dense
from firmware_sim import attacks, numbers, trial
from firmware_sim.cli import main
from firmware_sim.lesson import Pupil
from firmware_sim.weather import CALM
from firmware_sim.world import World
from wire.limits import EXAMPLES_MAX

TERMS = trial.Terms(share=0.4, seed=1, devices=5, rounds=3)
HONEST = (0, 1, 2)


def learnt(attack, place=3):
    """What one device sends in round 1, dense, and its payload."""
    lesson = numbers.Numbers(1)
    first = lesson.first(5)
    contents = {file.name: first.contents[file.digest] for file in first.manifest.files}
    job = Job(f"device-{place:02}", 1, 1, first.plan, first.manifest.files, 0)
    made = lesson.learn(Pupil(job.device_id, place, attack, HONEST, None), job, contents, None)
    assert lesson.admit(made.payload, first.plan) is None
    frame = numbers._frame(contents["model.tflite"])
    update = payload.decode(
        made.payload, frame.shapes, lane="int8", k_max=first.plan.keep_count, coding=first.plan.coding
    )
    return dense(update) * frame.scale * frame.unit


def angle(one, other):
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def test_every_attack_with_numbers_passes_the_gate_and_harms_in_its_own_way():
    mine, others = learnt(""), sum(learnt("", place) for place in HONEST)
    norm = np.linalg.norm(mine)
    assert angle(learnt("sign flip"), mine) == pytest.approx(-1)
    assert angle(learnt("label flip"), mine) < 0.9
    assert np.linalg.norm(learnt("scaling")) > 5 * norm
    assert angle(learnt("ipm"), others) < -0.5
    assert angle(learnt("index concentration"), others) < 0
    assert abs(angle(learnt("free rider"), mine)) < 0.2
    assert angle(learnt("alie"), others) != angle(learnt("ipm"), others)
    assert np.count_nonzero(learnt("index concentration")) <= np.count_nonzero(mine) / 8


def test_colluders_send_the_same_and_honest_devices_do_not():
    assert np.array_equal(learnt("ipm", 3), learnt("ipm", 4))
    assert not np.array_equal(learnt("", 3), learnt("", 4))


def test_an_honest_fleet_learns_and_two_liars_among_ten_do_not_turn_it():
    terms = trial.Terms(share=0.2, seed=1, devices=10, rounds=5)
    honest, attacked = trial.run("", terms), trial.run("ipm", terms)
    assert honest.accuracy[-1] > 0.9
    assert honest.accuracy[-1] > honest.accuracy[0]
    assert attacked.accuracy[-1] > 0.85
    assert (honest.updates, attacked.updates) == (0, 2 * terms.rounds)
    assert 0.1 < attacked.weight_rate < 0.3


def test_a_plain_mean_is_turned_by_them(monkeypatch):
    monkeypatch.setattr(numbers, "Rule", functools.partial(numbers.Rule, rule="fedavg"))
    assert trial.run("ipm", TERMS).accuracy[-1] < 0.5


def test_garbage_is_refused_and_costs_only_what_its_sender_would_have_taught():
    outcome = trial.run("nan", TERMS)
    assert outcome.updates == 0
    assert outcome.refused["refused"] >= 2 * TERMS.rounds
    assert outcome.accuracy[-1] > 0.8


def test_the_same_terms_give_the_same_numbers():
    assert trial.run("free rider", TERMS) == trial.run("free rider", TERMS)


def test_who_claims_a_million_examples_weighs_what_the_plan_allows():
    terms = TERMS._replace(rounds=1)
    world = World(1, CALM, devices=5, lesson=numbers.Numbers(1), dishonest=terms.dishonest("free rider"))
    world.request_round(5)
    assert world.run(300_000, until=lambda: len(world.database.lineage) == 2)
    weights = {device: each.weight for (device, _), each in world.database.counted.items()}
    assert {weights[device] for device in world.dishonest} == {numbers.RECIPE.num_examples_max}
    assert numbers.RECIPE.num_examples_max < EXAMPLES_MAX


def test_a_lineage_that_counts_somebody_twice_is_noticed():
    world = World(1, CALM, devices=5, lesson=numbers.Numbers(1))
    world.request_round(5)
    assert world.run(300_000, until=lambda: len(world.database.lineage) == 2)
    places = {device.name: device.index for device in world.devices}
    assert world.lesson.miscount(world.database, places, ()) == ""
    world.database.counted.pop(next(iter(world.database.counted)))
    assert "version 2 is not the sum of its 4 members" in world.lesson.miscount(world.database, places, ())


def test_the_command_prints_a_table_and_json():
    arguments = ["attack", "--attack", "sign flip", "--devices", "5", "--rounds", "2"]
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 0
    lines = told.stdout.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["attack", "none", "sign"]
    tree = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout.splitlines()[-1])
    assert [each["attack"] for each in tree["trials"]] == ["none", "sign flip"]
    assert tree["trials"][0]["accuracy"][-1] > tree["trials"][1]["accuracy"][-1]


def test_a_wrong_name_is_answered_with_the_right_ones():
    told = CliRunner().invoke(main, ["attack", "--attack", "rudeness"])
    assert told.exit_code == 2
    assert "slow loris" in told.output


def test_the_names_are_those_of_the_table():
    assert len(set(attacks.NAMES)) == len(attacks.NAMES) == 13
