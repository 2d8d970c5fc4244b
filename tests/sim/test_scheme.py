"""The budgeted search, on accuracies and sizes that are made up, and once for real."""

import itertools
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

from engine.models.cuts import layers_of
from engine.models.graph import ModelError
from engine.models.scheme import SHARES, resolve
from engine.models.tflite import read
from engine.program import memory_of
from firmware_sim.scheme import (
    Candidate,
    Scheme,
    best_measured,
    contributions,
    finalists,
    search,
    search_steps,
    train_of,
    trials,
)
from tests.engine.sketch import Sketch, residual_net

ELSEWHERE = Path(os.environ.get("FLEET_MODELS", "/nowhere")) / "mlperf_tiny"
needs_elsewhere = pytest.mark.skipif(
    not ELSEWHERE.is_dir(), reason="FLEET_MODELS names no folder with the MLPerf Tiny models in mlperf_tiny"
)


class World:
    """Gains and sizes drawn at random; accuracy is a sum of gains, so the search's belief is true here."""

    def __init__(self, seed, graph):
        rng = random.Random(seed)
        self.layers = layers_of(graph)
        self.gain = {op: rng.uniform(-0.01, 0.03) for op in self.layers}
        self.weight_gain = {(op, share): rng.uniform(-0.02, 0.1) for op in self.layers for share in SHARES}
        self.size = {op: rng.randint(100, 3000) for op in self.layers}
        self.asked = []

    def parts(self, train):
        return [(int(op), wish) for op, wish in (item.split(":") for item in train.split(","))]

    def measure(self, train):
        self.asked.append(train)
        parts = self.parts(train)
        gains = [self.gain[op] for op, _ in parts[:-1]]
        return 0.5 + sum(gains) + sum(self.weight_gain[part] for part in parts[:-1] if part[1] != "b")

    def weigh(self, train):
        parts = self.parts(train)
        deep = 40 * (len(self.layers) - self.layers.index(parts[0][0]))
        return deep + sum(self.size[op] // SHARES[wish] for op, wish in parts if wish != "b")


def best_of_all(world, graph, memory_bytes):
    """The twin: every candidate there is."""
    layers, best = world.layers, 0.0
    for depth in range(1, len(layers) + 1):
        inner = layers[-depth:-1]
        for wishes in itertools.product(["b", *SHARES], repeat=len(inner)):
            shares = tuple((op, wish) for op, wish in zip(inner, wishes, strict=True) if wish != "b")
            train = train_of(graph, Candidate(depth, shares))
            if world.weigh(train) <= memory_bytes:
                best = max(best, world.measure(train) - 0.5)
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("memory_bytes", [2500, 5000, 20_000])
def test_the_search_comes_close_to_trying_everything_and_never_over_the_budget(seed, memory_bytes):
    graph = residual_net()
    world = World(seed, graph)
    world.size[7] = 500
    found = contributions(graph, world.measure)
    schemes = search(graph, found, world.weigh, memory_bytes, seed)
    assert all(scheme.memory_bytes == world.weigh(scheme.train) <= memory_bytes for scheme in schemes)
    assert [scheme.expected for scheme in schemes] == sorted((s.expected for s in schemes), reverse=True)
    assert schemes[0].expected == pytest.approx(world.measure(schemes[0].train) - 0.5)
    assert schemes[0].expected >= 0.95 * best_of_all(world, graph, memory_bytes)
    assert search(graph, found, world.weigh, memory_bytes, seed) == schemes
    for scheme in schemes[:3]:
        resolve(graph, scheme.train)


def test_every_part_is_measured_once_and_against_what_it_is_added_to():
    graph = residual_net()
    world = World(1, graph)
    found = contributions(graph, world.measure)
    assert world.asked[:6] == ["7:w", "5:b,7:w", "5:w,7:w", "5:w/2,7:w", "5:w/4,7:w", "5:w/8,7:w"]
    assert len(world.asked) == len(set(world.asked)) == len(list(trials(graph))) == 1 + 5 * 5
    assert found.base == 0.5
    assert found.biases[3] == pytest.approx(world.gain[4] + world.gain[5])
    assert found.weights[4, "w/2"] == pytest.approx(world.weight_gain[4, "w/2"])


def test_a_budget_below_the_last_layer_is_refused_with_both_numbers():
    graph = residual_net()
    world = World(1, graph)
    least = world.weigh("7:w")
    with pytest.raises(ModelError, match=f"alone takes {least} bytes, and {least - 1} are allowed"):
        search(graph, contributions(graph, world.measure), world.weigh, least - 1, 1)
    only = search(graph, contributions(graph, world.measure), world.weigh, least, 1)
    assert [scheme.train for scheme in only] == ["7:w"]


def test_layers_without_a_bias_are_left_out_until_their_weights_train():
    sketch = Sketch((1, 8))
    x = sketch.dense(sketch.dense(sketch.entering, 8, bias=False), 4)
    graph = sketch.graph(x)
    assert train_of(graph, Candidate(2, ())) == "1:w"
    assert train_of(graph, Candidate(2, ((0, "w/2"),))) == "0:w/2,1:w"


def test_what_cannot_train_is_not_tried():
    sketch = Sketch((1, 4, 4, 3))
    x = sketch.same("HARD_SWISH", sketch.conv(sketch.entering, 8))
    x = sketch.dense(sketch.mean(sketch.conv(x, 8)), 4)
    assert max(candidate.depth for candidate in trials(sketch.graph(x))) == 2


def test_the_finalists_begin_at_different_layers_and_the_plain_one_is_among_them():
    graph = residual_net()
    world = World(2, graph)
    schemes = search(graph, contributions(graph, world.measure), world.weigh, 9000, 1)
    chosen = finalists(schemes)
    assert chosen[0] == schemes[0]
    assert "1:w,2:w,4:w,5:w,7:w" in {scheme.train for scheme in chosen}  # last-5; last-6 does not fit
    assert world.weigh("0:w,1:w,2:w,4:w,5:w,7:w") > 9000
    firsts = [scheme.train[0] for scheme in chosen[:4]]
    assert len(set(firsts)) == len(firsts)


def test_the_finalists_are_trained_for_real_and_the_best_wins():
    schemes = [Scheme("a", 3, 0.3), Scheme("b", 2, 0.2), Scheme("c", 1, 0.1)]
    best = best_measured(schemes, {"a": 0.6, "b": 0.8, "c": 0.8}.__getitem__)
    assert [(scheme.train, scheme.accuracy) for scheme in best] == [("c", 0.8), ("b", 0.8), ("a", 0.6)]


def test_a_search_says_how_far_it_is():
    graph = residual_net()
    world, steps = World(1, graph), []
    found = contributions(graph, world.measure)
    search(graph, found, world.weigh, 9000, 1, reach=steps.append)
    assert steps == list(range(search_steps(found)))


def test_a_gain_that_is_noise_is_not_bought():
    graph = residual_net()
    world = World(1, graph)
    world.weight_gain = dict.fromkeys(world.weight_gain, 0.004)
    world.gain = dict.fromkeys(world.gain, 0.0)
    found = contributions(graph, world.measure)
    assert search(graph, found, world.weigh, 10**9, 1)[-1].train == "0:b,1:b,2:b,4:b,5:b,7:w"


@needs_elsewhere
def test_a_real_model_is_searched_on_real_windows_within_its_budget(tmp_path, monkeypatch):
    """Keyword spotting, from the last two layers only, so that it takes seconds."""
    from click.testing import CliRunner

    from firmware_sim import workbench
    from firmware_sim.cli import main

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 12, 60)
    windows = (rng.normal(0, 20, (60, 49, 10, 1)) + 8 * labels[:, None, None, None]).clip(-128, 127).astype(np.int8)
    np.savez(tmp_path / "data.npz", windows=windows, labels=labels)
    monkeypatch.setattr(workbench, "LEARNING_RATES", (0.03,))
    monkeypatch.setattr(workbench, "EPOCHS", 1)
    for module in ("scheme", "workbench"):
        monkeypatch.setattr(f"firmware_sim.{module}.trials", lambda graph: itertools.islice(trials(graph), 6))
    model = str(ELSEWHERE / "kws_ref_model.tflite")
    command = ["scheme", model, str(tmp_path / "data.npz"), "--memory"]
    done = CliRunner().invoke(main, [*command, "800kB"])
    assert done.exit_code == 0, done.output
    graph = read(Path(model).read_bytes())
    train = re.search(r'^train = "(.*)"$', done.output, re.MULTILINE)[1]
    assert memory_of(graph, resolve(graph, train), workbench.BATCH_SIZE) <= 800_000
    assert "operator 8 (CONV_2D" in done.output
    refused = CliRunner().invoke(main, [*command, "1kB"])
    assert (refused.exit_code, "the last layer alone takes" in refused.output) == (1, True)
    assert CliRunner().invoke(main, [*command, "much"]).exit_code == 2
