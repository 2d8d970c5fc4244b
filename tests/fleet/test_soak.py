"""Twelve hours of a fleet in ordinary weather: nothing that a device or the coordinator holds may grow.

Measured, after two hours: the bytes on every device's card; the live Python objects of every agent and of the
coordinator, walked from the machine itself; and what an agent's checkpoint takes in a story. Not the memory of this
process: the world keeps every message for its auditor, which is no device's affair.
"""

from __future__ import annotations

import gc
import sys
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING

import pytest

from broker import rounds, standing
from edge_agent import flash, storyfile
from edge_agent.agent import Agent
from firmware_sim.weather import Weather
from firmware_sim.world import World
from tests.slope import Slope, slope

if TYPE_CHECKING:
    from firmware_sim.card import Card

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
HOURS, WARM_UP_HOURS = 12, 2
ROUND_EVERY_MS = 25 * MINUTE_MS
ROUNDS = HOURS * HOUR_MS // ROUND_EVERY_MS  # a witness counts up to 30
SAMPLE_EVERY_MS = 5 * MINUTE_MS
MOST_PER_HOUR = {"cards": 100.0, "agents": 100.0, "checkpoints": 100.0, "coordinator": 100.0}  # bytes, of six devices
ORDINARY = Weather(  # and long lives: whoever starts anew has forgotten what it should not have kept
    power_cut_every_ms=12 * 60 * MINUTE_MS,
    off_ms_max=60_000,
    link_break_every_ms=20 * MINUTE_MS,
    silent_rate=0.5,
    connect_fails_rate=0.1,
    delay_ms_max=200,
    duplicate_rate=0.01,
    reorder_rate=0.01,
    drop_rate=0.002,
    server_restart_every_ms=120 * MINUTE_MS,
    server_down_ms_max=20_000,
    train_fails_rate=0.02,
    train_ms_max=20_000,
)
_NO_STATE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def reach(root: object) -> int:
    """Bytes of all live objects that this holds, without code and without the simulator's own."""
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, _NO_STATE) or type(thing).__module__.startswith("firmware_sim"):
            continue
        seen[id(thing)] = thing
        waiting += gc.get_referents(thing)
    return sum(map(sys.getsizeof, seen.values()))


def card_bytes(card: Card) -> int:
    names = [*card.names(""), *(f"{room}/{name}" for room in ("files", "residual") for name in card.names(room))]
    return sum(card.size_bytes(name) or 0 for name in names)


def soak(seed: int) -> dict[str, Slope]:
    """What became of the bytes of each kind, from WARM_UP_HOURS on."""
    world = World(seed, ORDINARY, devices=6)
    for number in range(ROUNDS):
        world.at(number * ROUND_EVERY_MS, world.request_round, 3)
    seconds: list[float] = []
    found: dict[str, list[float]] = {kind: [] for kind in MOST_PER_HOUR}
    for at_ms in range(WARM_UP_HOURS * HOUR_MS, HOURS * HOUR_MS, SAMPLE_EVERY_MS):
        world.run(at_ms)
        # who is off for a moment is waited for
        assert world.run(at_ms + SAMPLE_EVERY_MS // 2, until=partial(is_whole, world)) or is_whole(world)
        seconds.append(at_ms / 1000)
        agents = [device.agent for device in world.devices]
        found["cards"].append(sum(card_bytes(device.card) for device in world.devices))
        found["agents"].append(sum(map(reach, agents)))
        found["checkpoints"].append(sum(len(storyfile.encode(agent.checkpoint())) for agent in agents))
        found["coordinator"].append(reach(world.station.coordinator))
    assert len(world.database.lineage) >= ROUNDS, "rounds went on"
    assert world.tally["power_cut"]
    assert world.tally["link_break"]
    return {kind: slope(seconds, values) for kind, values in found.items()}


def is_whole(world: World) -> bool:
    return all(device.agent for device in world.devices) and world.station.coordinator is not None


def complaints(found: dict[str, Slope]) -> list[str]:
    told = {kind: found[kind].complaint(most) for kind, most in MOST_PER_HOUR.items()}
    return [f"{kind}: {why}" for kind, why in told.items() if why]


@pytest.fixture(autouse=True)
def short_memories(monkeypatch):
    """What the coordinator remembers of the last rounds is full before the warm-up is over."""
    monkeypatch.setattr(rounds, "ROUNDS_REMEMBERED", 4)
    monkeypatch.setattr(standing, "ROUNDS_MAX", 4)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_grows_in_twelve_hours(seed):
    assert complaints(soak(seed)) == []


def test_a_residual_that_is_never_forgotten_is_seen(monkeypatch):
    monkeypatch.setattr(flash.Flash, "forget", lambda *_: None)
    assert any(why.startswith("cards: grows") for why in complaints(soak(1)))


def test_one_number_that_an_agent_keeps_of_every_round_is_seen(monkeypatch):
    kept: dict[str, list[int]] = {}
    real = Agent._on_trained

    def keeps(self, trained, now_ms):
        self.durable_rounds = kept.setdefault(self._id.device_id, [])
        self.durable_rounds.append(1000 + trained.round_id)
        return real(self, trained, now_ms)

    monkeypatch.setattr(Agent, "_on_trained", keeps)
    assert any(why.startswith("agents: grows") for why in complaints(soak(1)))


def test_rounds_that_a_coordinator_never_forgets_are_seen(monkeypatch):
    monkeypatch.setattr(rounds, "ROUNDS_REMEMBERED", 1000)
    assert any(why.startswith("coordinator: grows") for why in complaints(soak(1)))
