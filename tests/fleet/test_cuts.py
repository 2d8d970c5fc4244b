"""Each effect of a scripted calm life, cut: before it, after it, and failed but persisted. All of them, not some.

And each disk operation of a device's life, within effects and in its training child: power cut before it, with a sector
torn if there is an unsynced one, or the process killed.
"""

import functools

import pytest

from firmware_sim import storm
from firmware_sim.weather import CALM, Weather
from firmware_sim.world import Cut

FATES = ("cut before", "cut after", "exit after")
SEED = 1
MODES = {
    "synchronous": CALM,
    "buffered": Weather(buffered_rate=1.0, train_ms_max=CALM.train_ms_max),
    "staged": Weather(staged_rate=1.0, bad_version_rate=0.6, train_ms_max=CALM.train_ms_max),
}


@functools.cache
def calm_life(mode):
    return storm.run(SEED, MODES[mode], devices=2, rounds=2)


@pytest.mark.parametrize("mode", MODES)
def test_the_calm_life_is_calm_and_does_something(mode):
    life = calm_life(mode)
    assert not life.broken
    assert not set(life.faults) - {"will", "buffered", "staged", "bad_version"}
    assert life.faults["buffered"] == (mode == "buffered")
    assert life.faults["bad_version"] == (mode == "staged"), "one version is put out, and one is not"
    assert life.effect_count["device-00"] > 40
    assert life.effect_count["coordinator"] > 80


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("actor", ["device-00", "coordinator"])
@pytest.mark.parametrize("mode", MODES)
def test_a_life_that_is_cut_at_any_effect_keeps_every_promise(mode, actor, fate):
    happened = 0
    for effect in range(calm_life(mode).effect_count[actor]):
        verdict = storm.run(SEED, MODES[mode], devices=2, rounds=2, cut=Cut(actor, effect, fate))
        assert not verdict.broken, f"{fate} effect {effect} of {actor}\n{storm.tell(verdict)}"
        happened += verdict.faults[f"{actor.partition('-')[0]} {fate}"]
    assert happened == calm_life(mode).effect_count[actor], "a cut that was scripted did not happen"


def late_in_a_buffered_life(world):
    """Both rounds close with the first update; the second device is late for one, and counted by the next."""
    world.mode = "buffered"
    world.request_round(1, enough=1)
    world.request_round(1, enough=1)


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("actor", ["device-00", "device-01", "coordinator"])
def test_a_life_in_which_one_is_late_for_a_full_buffer_and_that_is_cut_at_any_effect_keeps_every_promise(actor, fate):
    worlds = []

    def prepare(world):
        late_in_a_buffered_life(world)
        worlds.append(world)

    life = storm.run(SEED, MODES["synchronous"], devices=2, rounds=0, prepare=prepare)
    assert not life.broken, storm.tell(life)
    counted = worlds[0].database.counted
    rounds = worlds[0].database.rounds
    assert any(each.model_version > rounds[key[1]].model_version for key, each in counted.items()), "nobody was late"
    for effect in range(life.effect_count[actor]):
        cut = Cut(actor, effect, fate)
        verdict = storm.run(SEED, CALM, devices=2, rounds=0, cut=cut, prepare=late_in_a_buffered_life)
        assert not verdict.broken, f"{fate} effect {effect} of {actor}\n{storm.tell(verdict)}"


def live(weather, cut=None):
    """A life with two rounds; and its world."""
    worlds = []
    verdict = storm.run(SEED, weather, devices=2, rounds=2, cut=cut, prepare=worlds.append)
    assert not verdict.broken, f"{cut}\n{storm.tell(verdict)}"
    return worlds[0]


@pytest.mark.parametrize("fate", ["cut within", "exit within"])
@pytest.mark.parametrize("fault", ["torn_rate", "patch_rot_rate"])
def test_a_life_that_is_cut_at_any_disk_operation_keeps_every_promise(fault, fate):
    """With a patch that is wrong, the operations of a whole download are among them, and those that drop a patch."""
    weather = Weather(**{fault: 1.0}, train_ms_max=CALM.train_ms_max)
    operations = live(weather).operation_count["device-00"]
    assert operations > 100
    for operation in range(operations):
        world = live(weather, Cut("device-00", operation, fate))
        assert world.tally[f"device {fate}"] == 1, "a cut that was scripted did not happen"


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("fault", ["http_rate", "patch_rot_rate"])
def test_a_life_that_fetches_otherwise_and_is_cut_at_any_effect_keeps_every_promise(fault, fate):
    """By HTTP; or with a patch that is wrong, so that the whole file must be fetched."""
    weather, worlds = Weather(**{fault: 1.0}, train_ms_max=CALM.train_ms_max), []
    life = storm.run(SEED, weather, devices=2, rounds=2, prepare=worlds.append)
    assert not life.broken, storm.tell(life)
    auditor, effects = worlds[0].auditor, life.effect_count["device-00"]
    if fault == "http_rate":
        assert auditor.fetched_count == 22  # the base file of both, in eleven chunks; params are a patch of it
        assert auditor.sent_count["chunk"] == 0
        assert auditor.patched_count > 4
    else:
        assert life.faults["patch_rot"] >= 2  # until the weather heals
    for effect in range(effects):
        verdict = storm.run(SEED, weather, devices=2, rounds=2, cut=Cut("device-00", effect, fate))
        assert not verdict.broken, f"{fate} effect {effect}\n{storm.tell(verdict)}"


@pytest.mark.parametrize("fate", ["cut before", "cut after"])
def test_a_life_with_a_cancelled_round_that_is_cut_at_any_effect_keeps_every_promise(fate):
    worlds = []

    def cancel_two(world):
        worlds.append(world)
        world.at(5_000, world.cancel_round, 3)  # it waits
        world.at(6_600, world.cancel_round, 1)  # one device has reported, the other is about to

    life = storm.run(SEED, CALM, devices=2, rounds=4, prepare=cancel_two)
    assert not life.broken, storm.tell(life)
    database = worlds[0].database
    assert [row.round_id for row in database.rounds.values() if row.is_cancelled] == [1, 3]
    assert len([round_id for _, round_id in database.counted if round_id == 1]) == 2
    for effect in range(life.effect_count["coordinator"]):
        cut = Cut("coordinator", effect, fate)
        verdict = storm.run(SEED, CALM, devices=2, rounds=4, cut=cut, prepare=cancel_two)
        assert not verdict.broken, f"{fate} effect {effect}\n{storm.tell(verdict)}"


@pytest.mark.parametrize("fate", ["cut before", "exit after"])
def test_a_life_with_a_refused_update_that_is_cut_at_any_effect_keeps_every_promise(fate):
    def break_one(world):
        world.faulty = {"device-00"}

    effects = storm.run(SEED, CALM, devices=2, rounds=2, prepare=break_one).effect_count["device-00"]
    assert effects > 50
    for effect in range(effects):
        cut = Cut("device-00", effect, fate)
        verdict = storm.run(SEED, CALM, devices=2, rounds=2, cut=cut, prepare=break_one)
        assert not verdict.broken, f"{fate} effect {effect}\n{storm.tell(verdict)}"
