"""The simulator's database is a fake. What it recorded is performed on both real ones, which must know the same."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import msgspec
import pytest

from broker.effects import Snapshot
from broker.store import Store
from firmware_sim import storm
from firmware_sim.database import Cancelled, Enrolled
from wire.messages import digest_of

if TYPE_CHECKING:
    from broker.database import Place
    from firmware_sim.world import World

SEEDS = (0, 1, 2, 3, 6, 50)  # the last signs with Ed25519


def traced(seed: int) -> World:
    """A storm whose database notes everything."""
    worlds = []

    def begin(world: World) -> None:
        world.database.trace = []
        worlds.append(world)

    verdict = storm.run(seed, rounds=4, prepare=begin)
    assert not verdict.broken, storm.tell(verdict)
    return worlds[0]


def first_store(world: World, place: Place, fleet: dict[str, str]) -> Store:
    first = world.database.lineage[0]
    store = Store(place)
    contents = {file.digest: world.database.blob(file.digest) for file in first.manifest.files}
    store.put_first_version(first.manifest, contents, b"")
    enrol(store, fleet)
    return store


def enrol(store: Store, fleet: dict[str, str]) -> None:
    for device_id in store.fleet().keys() - fleet.keys():
        store.remove_device(device_id)
    for device_id, key in fleet.items():
        store.add_device(device_id, key)


def same_form(snapshot: Snapshot) -> Snapshot:
    """Without the order of what has none."""
    return msgspec.structs.replace(
        snapshot,
        rounds=tuple(sorted(snapshot.rounds, key=lambda row: row.round_id)),
        pending=tuple(sorted(snapshot.pending, key=lambda p: (p.device_id, p.round_id))),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_fake_database_kept_a_real_one_keeps_too(seed: int, place: Place) -> None:
    world = traced(seed)
    trace = world.database.trace
    compared = 0
    first_fleet = next(each.fleet for each in trace if isinstance(each, Snapshot | Enrolled))
    with first_store(world, place, first_fleet) as store:
        for step in itertools.chain(trace, [world.database.snapshot()]):
            match step:
                case Snapshot():
                    assert same_form(store.snapshot()) == same_form(step)
                    compared += 1
                case Enrolled(fleet=fleet):
                    enrol(store, fleet)
                case Cancelled(round_id=round_id):
                    store.cancel_round(round_id)
                case effect:
                    store.apply(effect)
        assert store.unwanted_rounds() == world.database.unwanted_rounds()
        newest = world.database.lineage[-1]
        assert digest_of(newest.params) == store.params_digest(newest.manifest.model_version)
        counted = {(u.device_id, u.round_id): u.counted_in for u in store.updates() if u.counted_in is not None}
        assert counted == {key: counted.model_version for key, counted in world.database.counted.items()}
    assert compared > 2
