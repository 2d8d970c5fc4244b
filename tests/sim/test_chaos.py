"""Chaos: where it strikes follows from the fleet's progress, and it waits until what it broke is whole again."""

from dataclasses import dataclass, field

import pytest

from firmware_sim import chaos
from firmware_sim.chaos import Chaos, Crew
from firmware_sim.lines import Follower
from firmware_sim.watch import Watch


@dataclass
class FakeProgram:
    name: str
    pid: int = 0
    is_running: bool = True
    happened: list[str] = field(default_factory=list)

    def kill(self) -> None:
        self.is_running = False
        self.happened.append("killed")

    def start(self) -> None:
        self.is_running = True
        self.happened.append("started")


@dataclass
class FakeServer(FakeProgram):
    version: str = "2.0"

    def restart(self) -> None:
        self.start()


@pytest.fixture
def crew() -> Crew:
    agents = {name: FakeProgram(name) for name in ("cabin", "dune", "elm")}
    server = FakeServer("mosquitto")
    reconnect = lambda: server.happened.append("tapped")  # noqa: E731
    return Crew(server, FakeProgram("coordinator"), agents, reconnect)  # type: ignore[arg-type]


@pytest.fixture
def watch(tmp_path) -> Watch:
    return Watch(Follower(tmp_path / "none"), {})


def hear_all(watch: Watch) -> None:
    for name in ("cabin", "dune", "elm"):
        watch.births[name] += 1


@pytest.mark.parametrize(("rounds", "at"), [(1, []), (2, [1]), (3, [1, 2]), (4, [1, 2, 3]), (20, [5, 10, 15])])
def test_the_last_round_is_left_to_heal_in(rounds: int, at: list[int]) -> None:
    assert [blow.round_id for blow in chaos.plan(rounds)] == at


def test_rounds_go_on_for_blows_that_found_no_moment_but_not_for_ever(crew: Crew, watch: Watch) -> None:
    plan = Chaos(chaos.plan(4), crew, seed=1)
    watch.open_round = 29
    assert plan.tick(watch, 0.0) == "", "nobody trains"
    assert plan.goes_on
    watch.open_round = 30
    plan.tick(watch, 1.0)
    assert not plan.goes_on
    assert not Chaos([], crew, seed=1).goes_on


def test_three_blows_one_after_the_other(crew: Crew, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "is_training", lambda _pid: True)
    hear_all(watch)
    plan = Chaos(chaos.plan(4), crew, seed=1)
    assert plan.tick(watch, 0.0) == "", "no round is open"
    watch.open_round, watch.accepted = 1, {1: {"cabin", "dune"}}
    assert "killed elm while it trained" in plan.tick(watch, 10.0)  # the only one that has not reported
    assert plan.down == {"elm"}
    assert not crew.agents["elm"].is_running
    assert plan.tick(watch, 10.5) == ""
    assert not crew.agents["elm"].is_running, "it stays down for a second"
    plan.tick(watch, 11.0)
    assert crew.agents["elm"].is_running
    assert plan.down == frozenset()
    assert not plan.is_settled
    watch.births["elm"] += 1
    assert "elm is back after 2.5 s" in plan.tick(watch, 12.5)
    assert plan.is_settled

    watch.open_round, watch.accepted[2] = 2, set()
    assert plan.tick(watch, 20.0) == "", "nothing of the round is stored yet"
    watch.accepted[2] = {"cabin"}
    assert "killed the coordinator with 1 of 3 updates stored" in plan.tick(watch, 20.1)
    assert plan.down == {"coordinator"}
    plan.tick(watch, 21.2)
    watch.births["cabin"] += 1
    assert plan.tick(watch, 22.0) == "", "two devices are still to be heard of"
    hear_all(watch)
    assert "is back" in plan.tick(watch, 23.0)

    watch.open_round, watch.accepted[4] = 4, {"dune"}  # round 3 went by too fast
    assert "killed the MQTT server (mosquitto 2.0)" in plan.tick(watch, 30.0)
    assert plan.blows[2].round_id == 4
    plan.tick(watch, 31.0)
    assert plan.goes_on, "the last blow is still to heal"
    hear_all(watch)
    plan.tick(watch, 32.0)
    assert plan.is_settled
    assert not plan.goes_on
    assert all(blow.back_s for blow in plan.blows)
    assert crew.server.happened == ["killed", "started", "tapped"]  # type: ignore[attr-defined]


def test_an_even_seed_strikes_as_an_update_is_sent(crew: Crew, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "is_training", lambda _pid: True)
    plan = Chaos(chaos.plan(4), crew, seed=2)
    watch.open_round = 1
    assert plan.tick(watch, 1.0) == ""
    watch.just_finished = ["dune"]
    assert "killed dune as it sent its update" in plan.tick(watch, 1.1)
