"""Whom a round's choice lets in: tags, examples, battery, version, and how often lately. Never how fast."""

from __future__ import annotations

import msgspec
import pytest

from broker.coordinator import SETTLE_MS, Coordinator
from broker.effects import Choice, Connected, Effect, FleetRead, Received, RoundRow, RoundsRead, StoreInvited, Tick
from broker.standing import ROUNDS_MAX, Standings
from tests.broker import fleet
from tests.broker.fleet import DEVICES, KEY, coordinator, row, said, sealed
from wire import topics
from wire.messages import Offer, Telemetry

TAGS = {"cabin": frozenset({"outdoor", "north"}), "dune": frozenset({"outdoor"})}


def choosing(round_id: int = 20, **choice: object) -> RoundRow:
    return row(round_id, choice=Choice(**choice))


def admits(standings: Standings, wish: RoundRow, device_id: str = "cabin", **changes: object) -> bool:
    return standings.admits(wish, device_id, msgspec.structs.replace(fleet.birth(), **changes))


@pytest.mark.parametrize(
    ("tags", "who"),
    [((), set(DEVICES)), (("outdoor",), {"cabin", "dune"}), (("north", "outdoor"), {"cabin"}), (("south",), set())],
)
def test_a_device_has_every_tag_that_is_asked_for(tags, who):
    standings = Standings(TAGS, {})
    births = dict.fromkeys(DEVICES, fleet.birth())
    assert set(standings.among(choosing(tags=tags), births)) == who
    standings.read_tags({})
    assert set(standings.among(choosing(tags=tags), births)) == (set() if tags else set(DEVICES))


def test_a_low_battery_stays_out_and_one_that_nobody_told_of_does_not():
    standings, wish = Standings({}, {}), choosing(battery_rate_min=0.5)
    assert admits(standings, wish)
    standings.on_telemetry("cabin", 0.49)
    assert not admits(standings, wish)
    standings.on_telemetry("cabin", 0.5)
    assert admits(standings, wish)
    standings.on_telemetry("cabin", 0.1)
    standings.on_telemetry("cabin", None)
    assert admits(standings, wish)


def test_too_few_examples_stay_out():
    assert not admits(Standings({}, {}), choosing(), num_examples=fleet.PLAN.num_examples_min - 1)
    assert admits(Standings({}, {}), choosing(), num_examples=fleet.PLAN.num_examples_min)


def test_a_version_is_had_by_the_birth_or_by_an_update():
    standings, wish = Standings({}, {}), choosing(version_min=3)
    assert not admits(standings, wish, model_version=2)
    assert admits(standings, wish, model_version=3)
    standings.on_update("cabin", 9, 3)
    assert admits(standings, wish, model_version=2)


def test_no_device_is_in_more_than_so_many_of_the_last_rounds_and_after_them_it_is_in_again():
    standings = Standings({}, {"cabin": (10, 14)})
    assert admits(standings, choosing(20, rounds_max=3, rounds_of=10))
    assert not admits(standings, choosing(20, rounds_max=2, rounds_of=10))
    assert not admits(standings, choosing(20, rounds_max=1, rounds_of=6))  # 14 to 19
    assert admits(standings, choosing(20, rounds_max=1, rounds_of=5))
    assert admits(standings, choosing(21, rounds_max=2, rounds_of=10))
    standings.on_update("cabin", 19, 1)
    assert not admits(standings, choosing(20, rounds_max=1, rounds_of=5))
    assert admits(standings, choosing(20, rounds_max=1, rounds_of=5), "dune")


def test_what_is_remembered_of_a_device_is_bounded():
    standings = Standings({}, {"cabin": tuple(range(1, 200))})
    for round_id in range(200, 400):
        standings.on_update("cabin", round_id, 1)
    assert standings._took["cabin"] == list(range(400 - ROUNDS_MAX, 400))


def hear(machine: Coordinator, device: str, message: object) -> list[Effect]:
    return machine.handle(Received(*sealed(device, message)), SETTLE_MS + 1)


def opened(machine: Coordinator, wish: RoundRow) -> list[Effect]:
    machine.handle(Connected(), 0)
    for device in DEVICES:
        hear(machine, device, fleet.birth())
    machine.handle(Tick(), SETTLE_MS)
    return machine.handle(RoundsRead((wish,)), SETTLE_MS + 1)


def offered(effects: list[Effect]) -> list[str]:
    return [to for to, message in said(effects) if isinstance(message, Offer)]


@pytest.mark.parametrize("mode", ["buffered", "synchronous"])
def test_a_round_with_a_choice_is_offered_one_by_one_and_each_offer_is_counted(mode):
    machine = coordinator(tags=TAGS)
    effects = opened(machine, row(1, mode=mode, choice=Choice(tags=("outdoor",))))
    assert offered(effects) == ["cabin", "dune"]
    assert [effect for effect in effects if isinstance(effect, StoreInvited)] == [StoreInvited(1, ("cabin", "dune"))]
    assert effects[0].row.nonce == b""
    assert offered(hear(machine, DEVICES[2], fleet.birth(1, 2))) == []


def test_a_round_without_one_is_offered_to_all_and_nothing_is_counted():
    effects = opened(coordinator(tags=TAGS), row(1, mode="buffered"))
    assert offered(effects) == [topics.ALL]
    assert not [effect for effect in effects if isinstance(effect, StoreInvited)]


def test_tags_that_the_operator_changes_are_those_of_the_next_birth():
    machine = coordinator()
    assert offered(opened(machine, row(1, choice=Choice(tags=("outdoor",))))) == []
    machine.handle(FleetRead({name: KEY[name] for name in DEVICES}, TAGS), SETTLE_MS + 1)
    assert offered(hear(machine, "cabin", fleet.birth(1, 2))) == ["cabin"]


def test_the_battery_of_telemetry_is_asked_at_the_next_round():
    machine = coordinator()
    opened(machine, row(1, updates_min=9))
    for device, rate in zip(DEVICES, (0.2, 0.8, None), strict=True):
        hear(machine, device, Telemetry(1, 1, "idle", "", 0, 0, None, rate))
    effects = machine.handle(RoundsRead((row(2, choice=Choice(battery_rate_min=0.5)),), frozenset({1})), SETTLE_MS + 2)
    assert offered(effects) == [DEVICES[1], DEVICES[2]]
