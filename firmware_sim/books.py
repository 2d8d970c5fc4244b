"""The books: what the coordinator's database must say of versions and of what they count, whatever happened.

A part of the auditor. Of the wire it knows only how many examples an honest device's update claims.
"""

from __future__ import annotations

import collections
import math
from typing import TYPE_CHECKING

from firmware_sim import keyring
from firmware_sim.promises import fail
from wire import coin

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware_sim.database import Database
    from firmware_sim.world import World


def check(world: World, claimed: Callable[[tuple[str, int]], int | None]) -> None:
    """Each version has one parent, and its parameters count what the database says, once. Raises Violation.

    `claimed` (device, round) is how many examples that stored update is of, as its device said; None: it may lie.
    """
    database = world.database
    versions = [version.manifest.model_version for version in database.lineage]
    if versions != list(range(1, len(versions) + 1)):
        fail("only growing", f"the lineage is {versions}")
    places = {device.name: device.index for device in world.devices}
    miscount = world.lesson.miscount(database, places, world.dishonest)
    if miscount:
        fail("counted once", miscount)
    _check_rounds(database)
    _check_weights(world, claimed)


def check_drawn(world: World, device: str, round_id: int) -> None:
    """A round that is offered to all counts only devices that its coin draws."""
    row = world.database.rounds[round_id]
    if row.nonce and coin.side(keyring.FLEET, round_id, row.nonce, device) >= row.draw:
        fail("drawn", f"{device} took part in round {round_id}")


def _check_rounds(database: Database) -> None:
    """Each closed round made one version, or was cancelled; each other version has the numbers of an older one."""
    trained = [row for row in database.rounds.values() if not row.is_trial]
    cancelled = {row.round_id for row in trained if row.is_cancelled}
    made = [row.model_version for row in trained if row.status == "closed" and not row.is_cancelled]
    restored = [
        version.manifest.model_version
        for version in database.lineage[1:]
        if version.params == database.lineage[version.manifest.parent_version - 1].params
        and version.manifest.model_version not in made
    ]
    if not cancelled <= database.unwanted or sorted(made + restored) != list(range(2, len(database.lineage) + 1)):
        fail("cancelled by wish", f"rounds {sorted(cancelled)} made no version, the others {sorted(made)}")
    members = collections.Counter(counted.model_version for counted in database.counted.values())
    for row in trained:
        if row.status == "closed" and not row.is_cancelled and members[row.model_version] < row.updates_min:
            fail("enough", f"round {row.round_id} closed with {members[row.model_version]} of {row.updates_min}")


def _check_weights(world: World, claimed: Callable[[tuple[str, int]], int | None]) -> None:
    database = world.database
    for key, counted in database.counted.items():
        plan = database.rounds[key[1]].plan
        check_drawn(world, *key)
        if plan.scale_epoch != database.lineage[counted.model_version - 2].manifest.scale_epoch:
            epoch = plan.scale_epoch
            fail("one scale", f"version {counted.model_version} counts round {key[1]}, which is of epoch {epoch}")
        stored, told = database.updates[key], claimed(key)
        staleness = counted.model_version - 1 - stored.base_version
        most = min(stored.weight if told is None else told, plan.num_examples_max)
        expected = max(1, most * round(16 / math.sqrt(1 + staleness)) // 16)
        if counted.weight != expected:
            fail("late, then lighter", f"round {key[1]} of {key[0]} weighs {counted.weight}, not {expected}")
