"""The attack benchmark: its fleets are the product's, its liars lie as told, and its figures are counted as said."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import attacks, attacks_fleet, attacks_plot
from benchmarks.attacks_fleet import ATTACKS, BOOSTED, DEVICES, DISHONEST, KEEPS, NONE, OWN, Trial
from broker.aggregate.rules import RULES
from broker.config import Aggregate
from wire.limits import EXAMPLES_MAX


@pytest.fixture(scope="module")
def grounds():
    return {ground.split: ground for ground in attacks_fleet.grounds(None)}


def fleet(ground, attack, kept="1 %", rule="fedavg", seed=3):
    return attacks_fleet._Fleet(Trial(ground, rule, kept, attack, seed))


def spoken(monkeypatch, made):
    """What everybody says in one round, by name."""
    heard = {}
    judged = made.coordinator.hear

    def hear(name, update):
        heard.setdefault(name, []).append(update)
        judged(name, update)

    monkeypatch.setattr(made.coordinator, "hear", hear)
    made.round()
    return heard


def test_all_data_is_dealt_among_the_honest_and_liars_hold_copies(grounds):
    liars = [2, 7, 11, 19]
    held, test = grounds["Dirichlet 0.1"].deal(3, liars)
    assert [name for name, _ in held] == [f"device-{place:02}" for place in range(1, DEVICES + 1)]
    honest = [share for place, (_, share) in enumerate(held) if place not in liars]
    assert sum(len(labels) for _, labels in honest) + len(test[1]) == len(grounds["Dirichlet 0.1"].data.labels)
    for place in liars:
        assert sum(np.array_equal(held[place][1][0], share[0]) for share in honest) == 1
    own, _ = grounds[OWN].deal(3, liars)
    assert sum(len(labels) for _, (_, labels) in own) == sum(len(labels) for _, labels in honest)


def test_a_device_learns_from_no_more_than_its_ground_lets_it(grounds):
    held, _ = replace(grounds["even"], rows_max=7).deal(3, [0])
    assert {len(labels) for _, (_, labels) in held} == {7}


@pytest.mark.parametrize("attack", [*ATTACKS, BOOSTED])
def test_every_attack_speaks_for_a_fifth_and_leaves_the_honest_alone(monkeypatch, grounds, attack):
    ground = grounds["Dirichlet 0.5"]
    honest, attacked = (spoken(monkeypatch, fleet(ground, name)) for name in (NONE, attack))
    liars = {device.name for device in fleet(ground, attack).liars}
    assert len(liars) == DISHONEST
    assert {name: said for name, said in attacked.items() if name not in liars} == {
        name: said for name, said in honest.items() if name not in liars
    }
    theirs = [said[-1].payload for name, said in attacked.items() if name in liars]
    assert len(theirs) == DISHONEST
    if attack == "replay":  # in the first round there is nothing to repeat yet
        assert theirs == [said[-1].payload for name, said in honest.items() if name in liars]
    else:
        assert not set(theirs) & {said[-1].payload for said in honest.values()}
    same = attack in ("alie", "ipm", "min-max", "index concentration")
    assert (len(set(theirs)) == 1) == same
    claims = {said[-1].num_examples for name, said in attacked.items() if name in liars}
    assert (claims == {EXAMPLES_MAX}) == (attack in ("free rider", BOOSTED))


def test_an_update_that_was_sent_before_is_refused_and_the_same_signed_anew_is_counted(grounds):
    made = fleet(grounds["even"], "replay")
    for _ in range(3):
        made.round()
    assert dict(made.coordinator.refused) == {"duplicate": DISHONEST, "stale": DISHONEST}
    assert made.coordinator.version == 4


def test_what_is_no_payload_is_refused(grounds):
    made = fleet(grounds["even"], "nan")
    made.round()
    assert dict(made.coordinator.refused) == {"refused": DISHONEST}


def test_the_boosted_lie_is_twice_as_long_as_the_median_honest_update(monkeypatch, grounds):
    made = fleet(grounds["Dirichlet 0.5"], BOOSTED)
    lengths = []
    boosted = made._boosted
    length = attacks_fleet._length

    def boosting(lie, told):
        steps = boosted(lie, told) * made.ground.frame.scale.astype(np.float64)
        lengths.append(np.sqrt((steps * steps).sum()) / np.median([length(sent, made.ground.frame) for sent in told]))
        return boosted(lie, told)

    monkeypatch.setattr(made, "_boosted", boosting)
    made.round()
    assert lengths == pytest.approx([2.0] * DISHONEST, rel=0.05)


def test_the_default_rule_withstands_what_turns_the_mean(grounds):
    lost = {}
    for rule in ("guarded", "fedavg"):
        cell = attacks.Cell(rule, "1 %", grounds["even"])
        honest, attacked = attacks.measure(cell, ("ipm",), (3,), count=6)
        assert honest["lost_points"] == 0.0
        assert honest["accuracy"] > 0.8
        lost[rule] = attacked["lost_points"]
    assert lost["guarded"] < 6.0
    assert lost["fedavg"] > 20.0


def test_a_rule_that_ranks_parameters_says_that_it_refuses_the_sparse_lanes(grounds):
    rows = attacks.measure(attacks.Cell("median", "1 %", grounds["even"]), ATTACKS, (3,))
    assert [(row["attack"], row["accuracy"]) for row in rows] == [(NONE, None)]
    assert "refuses" in rows[0]["reason"]


def test_the_default_measures_the_default_rule_everywhere_and_seeds_are_held_out(grounds):
    every = list(grounds.values())
    usual = list(attacks.cells(every, others=False, full=False))
    assert {cell.rule for cell in usual} == {Aggregate().rule}
    assert len(usual) == 3 * len(KEEPS) + 1
    with_others = list(attacks.cells(every, others=True, full=False))
    assert {cell.rule for cell in with_others} == {"guarded", *attacks.OTHERS} <= set(RULES)
    assert {cell.ground.split for cell in with_others if cell.rule != "guarded"} == {"Dirichlet 0.5"}
    seeds = {seed for cell in with_others for seed in attacks.seeds_of(cell, 2, full=False)}
    assert min(seeds) == 101
    assert len(attacks.seeds_of(attacks.Cell("guarded", "1 %", grounds["Dirichlet 0.1"]), 2, full=False)) == 6


def every_row(lost):
    heads = [
        {"rule": rule, "kept": kept, "task": task, "split": split, "is_own": split == OWN}
        for rule in ("guarded", "fedavg")
        for kept in KEEPS
        for task, split in [*(("digits", split) for split in attacks_fleet.SPLITS), ("mnist", "by writer")]
    ]
    rest = {"accuracy": 0.9, "half": 0.5, "seeds": [101]}
    return [
        head | rest | {"attack": attack, "lost_points": lost(head, attack)}
        for head in heads
        for attack in (NONE, *ATTACKS, BOOSTED)
    ]


def test_the_target_is_the_worst_of_all_grounds_and_lanes_and_claims_nothing_of_a_part():
    def lost(head, attack):
        if head["rule"] == "fedavg" or head["is_own"] or attack == BOOSTED:
            return 50.0
        return 5.25 if (head["kept"], head["task"], attack) == ("0.1 %", "mnist", "replay") else 1.0

    rows = every_row(lost)
    assert attacks.targets(rows) == {"default_lane_worst_drop_points": 5.25}
    assert attacks.targets([row for row in rows if row["task"] != "mnist"]) == {"default_lane_worst_drop_points": None}


def test_the_table_has_a_line_for_each_cell_and_the_picture_is_drawn(tmp_path):
    rows = every_row(lambda head, attack: 7.5 if head["rule"] == "guarded" and attack == "alie" else 0.0)
    refusing = {"rule": "median", "kept": "1 %", "task": "digits", "split": "even", "is_own": False, "attack": NONE}
    rows.append(refusing | {"accuracy": None, "reason": "refuses"})
    rows.append({"task": "mnist", "accuracy": None, "reason": "no folder"})
    found = {"machine": "m", "date": "2026-11-29", "devices": 20, "dishonest": 4, "rows": rows, "targets": {"t": 1}}
    lines = attacks.table(found)
    cells = [line for line in lines if line.startswith(("| guarded", "| fedavg", "| median"))]
    assert len(cells) == 2 * 15 + 1
    assert cells[0] == "| guarded | digits, even | dense | 1 | 0.900 | 0.0 | 0.0 | 7.5 " + "| 0.0 " * 7 + "|"
    assert cells[-1] == "| median | digits, even | 1 % | refuses |"
    assert "mnist: no folder" in lines
    attacks_plot.plot(found, tmp_path / "attacks.png")
    assert (tmp_path / "attacks.png").read_bytes().startswith(b"\x89PNG")
