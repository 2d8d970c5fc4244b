"""Weathers with a name, one fault at a time, and the promises that need a scene of their own."""

import pytest

from edge_agent import flash
from firmware_sim import keyring, storm, weather, witness
from firmware_sim.weather import BROWNOUT, CALM, STORM, Weather
from firmware_sim.world import World
from wire import topics

MINUTE_MS = 60_000
FAULTS = sorted(
    {name for name in Weather.__struct_fields__ if name.endswith(("_rate", "_every_ms")) and getattr(STORM, name)}
    | {"drift_rate_max", "queue_max"}
)


@pytest.mark.parametrize("seed", range(10))
def test_a_power_cut_does_not_cost_a_device_the_round(seed):
    """Liveness: a device that comes back before the round closes is offered it again, and is counted once."""
    world = World(seed, BROWNOUT)
    for round_id in range(1, 4):
        assert world.request_round(updates_min=10, lasts_ms=15 * MINUTE_MS) == round_id
    assert world.run(180 * MINUTE_MS, until=lambda: len(world.database.lineage) == 4)
    for device in world.devices:
        counted = [witness.count(world.database.lineage[-1].params, device.index, r) for r in range(1, 4)]
        assert counted == [1, 1, 1], f"seed {seed}, {device.name}"
    assert world.tally["device cut before"]


def test_a_calm_round_takes_no_longer_than_its_slowest_device():
    world = World(5, CALM)
    world.request_round(updates_min=10)
    assert world.run(20_000, until=lambda: len(world.database.lineage) == 2)
    assert not set(world.tally) - {"will"}


def test_a_calm_round_costs_each_device_one_update_and_no_repeated_word():
    world = World(5, CALM)
    for _ in range(3):
        world.request_round(updates_min=10)
    assert world.run(60_000, until=lambda: len(world.database.lineage) == 4)
    world.run(world.now_ms + 1_000)
    assert world.auditor.sent_count["update"] == world.auditor.sent_count["receipt"] == 30
    assert world.auditor.sent_count["offer"] <= 40  # who is born while the first epoch begins is offered it twice


def test_a_device_that_gathers_its_examples_late_is_invited_once_it_has_them():
    world = World(2, Weather(examples_late_rate=1.0), devices=3)
    world.request_round(updates_min=3)
    assert world.run(60 * MINUTE_MS, until=lambda: len(world.database.lineage) == 2)


def test_a_device_that_is_enrolled_late_is_invited_at_once():
    world = World(2, Weather(enrol_late_rate=1.0), devices=3)
    world.request_round(updates_min=3)
    world.run(3 * MINUTE_MS)
    assert world.auditor.sent_count["offer"] == 0
    world.enrol_late()
    assert world.run(world.now_ms + MINUTE_MS, until=lambda: len(world.database.lineage) == 2)


def test_a_cohort_whose_members_are_gone_for_good_is_drawn_again():
    world = World(3, CALM, devices=5)
    world.run(10_000)
    world.request_round(updates_min=2, cohort_max=2)
    invited = {topic.split("/")[4] for topic in _offers(world)}
    assert len(invited) == 2
    for device in world.devices:
        if device.name in invited:
            device.power_off()
            device.gone = True
    assert world.run(30 * MINUTE_MS, until=lambda: len(world.database.lineage) == 2)


def test_a_round_that_can_never_close_is_cancelled_and_what_was_done_for_it_is_counted_by_the_next():
    world = World(3, CALM, devices=3)
    for updates_min in (9, 3, 4):
        world.request_round(updates_min, lasts_ms=5 * MINUTE_MS)
    world.run(60 * MINUTE_MS)
    assert len(world.database.updates) == 3
    assert len(world.database.lineage) == 1
    world.cancel_round(2)
    world.cancel_round(1)
    assert world.run(world.now_ms + MINUTE_MS, until=lambda: len(world.database.lineage) == 2)
    assert [row.is_cancelled for row in world.database.rounds.values()] == [True, True, False]
    assert {round_id for _, round_id in world.database.counted} == {1, 3}
    world.auditor.check_end()


def test_a_round_whose_sum_always_fails_is_cancelled_although_it_is_always_under_way():
    world = World(9, Weather(aggregate_fails_rate=1.0, aggregate_ms_max=600_000), devices=3)
    world.request_round(updates_min=3)
    assert world.run(60 * MINUTE_MS, until=lambda: len(world.database.updates) == 3)
    world.run(world.now_ms + MINUTE_MS)
    world.cancel_round(1)
    assert world.database.rounds[1].status == "open", "choose another seed: the sum was not under way"
    world.run(world.now_ms + 30 * MINUTE_MS)
    assert world.database.rounds[1].is_cancelled


def test_a_round_that_is_cancelled_while_nobody_coordinates_ends_at_the_next_start():
    world = World(3, Weather(coordinator_down_ms_max=10 * MINUTE_MS), devices=3)
    world.request_round(updates_min=9)
    world.run(MINUTE_MS)
    world.station.cut()
    world.cancel_round(1)
    assert world.station.coordinator is None
    assert world.run(11 * MINUTE_MS, until=lambda: world.database.rounds[1].is_cancelled)


def test_a_fleet_without_a_coordinator_keeps_its_updates_and_does_not_shout():
    """A day without a coordinator: the pause between two tries grows to a quarter of an hour."""
    world = World(6, CALM, devices=3)
    world.request_round(updates_min=3)
    assert world.run(30_000, until=lambda: len(world.auditor.full_outboxes()) == 1)
    world.weather = Weather(coordinator_down_ms_max=30 * 24 * 60 * MINUTE_MS)
    world.station.cut()
    sent, day_ms = world.auditor.sent_count.copy(), world.now_ms + 24 * 60 * MINUTE_MS
    world.run(day_ms)
    assert world.station.coordinator is None, "choose another seed: the coordinator came back too early"
    outboxes, said = len(world.auditor.full_outboxes()), world.auditor.sent_count - sent
    assert outboxes * 24 * 2 < said["update"] < outboxes * (24 * 6 + 12)
    assert said["want"] < 3 * (24 * 6 + 12)
    assert world.run(31 * 24 * 60 * MINUTE_MS, until=lambda: len(world.database.lineage) == 2)


def test_a_new_coordinator_is_told_of_everyone_within_seconds():
    world = World(7, CALM, devices=5)
    world.run(10_000)
    world.station.cut()
    world.run(world.now_ms + 15_000)
    world.request_round(updates_min=5)
    assert world.run(world.now_ms + 20_000, until=lambda: len(world.database.lineage) == 2)


def test_a_new_coordinator_does_not_close_the_round_before_it_knows_who_is_there():
    """One update is stored, one is enough, and four devices are training: the round waits for them."""
    world = World(8, CALM, devices=5)
    world.request_round(updates_min=1, lasts_ms=10 * MINUTE_MS)
    assert world.run(30_000, until=lambda: len(world.database.updates) == 1)
    world.station.cut()
    assert world.run(world.now_ms + MINUTE_MS, until=lambda: len(world.database.lineage) == 2)
    assert len(world.database.counted) == 5


def test_a_round_closes_at_its_end_without_those_who_do_not_report():
    world = World(9, Weather(train_hangs_rate=1.0), devices=4)
    world.run(10_000)
    world.request_round(updates_min=1, lasts_ms=5 * MINUTE_MS)
    world.run(world.now_ms + 1_000)
    world.weather = CALM  # three hang until their deadline; whoever is last begins anew and is quick
    world.devices[3].power_off()
    assert world.run(world.now_ms + 5 * MINUTE_MS, until=lambda: len(world.database.lineage) == 2)


def lose_chunks(world, most):
    """The next `most` chunks never leave the MQTT server."""
    lost, spread = [], world.server.spread

    def lossy(topic, payload, *, retain=False):
        if topic.endswith("/dn/chunk") and len(lost) < most:
            lost.append(topic)
        else:
            spread(topic, payload, retain=retain)

    world.server.spread = lossy
    return lost


def test_lost_chunks_cost_a_device_seconds_and_not_the_round():
    world = World(18, CALM, devices=2)
    lost = lose_chunks(world, 6)
    world.request_round(updates_min=2, lasts_ms=60 * MINUTE_MS)
    assert world.run(MINUTE_MS, until=lambda: len(world.database.lineage) == 2)
    assert len(lost) == 6


def test_a_device_whose_wants_nobody_answers_asks_less_and_less_often():
    world = World(18, CALM, devices=1)
    lose_chunks(world, 10**9)
    world.request_round(updates_min=1, lasts_ms=24 * 60 * MINUTE_MS)
    world.run(6 * 60 * MINUTE_MS)
    assert 6 < world.auditor.sent_count["want"] < 60


def rounds_one_by_one(world, count):
    """Each on the version that the one before made."""
    for number in range(count):
        world.request_round(updates_min=len(world.devices))
        versions = number + 2
        assert world.run(world.now_ms + 30 * MINUTE_MS, until=lambda n=versions: len(world.database.lineage) == n)
    world.auditor.check_lineage()


def test_a_calm_fleet_fetches_its_model_once_and_then_nothing_but_patches():
    world = World(18, CALM, devices=4)
    rounds_one_by_one(world, 4)
    base, _ = world.database.lineage[0].manifest.files
    assert world.auditor.sent_count["chunk"] == 4 * len(base.chunk_digests)
    assert world.auditor.sent_count["patch"] == world.auditor.patched_count == 4 * 4
    assert world.auditor.own_count == 4  # the first of each starts from what the base file holds


def test_a_new_base_file_holds_its_version_and_only_patches_are_fetched_beside_it():
    world = World(18, Weather(rescale_rate=1.0), devices=4)
    rounds_one_by_one(world, 3)
    assert [version.manifest.base_version for version in world.database.lineage] == [1, 2, 3, 4]
    bases = [version.manifest.files[0] for version in world.database.lineage[:3]]
    assert [file.name for file in bases] == ["model.tflite"] * 3
    assert world.auditor.sent_count["chunk"] == 4 * sum(len(base.chunk_digests) for base in bases)
    assert world.auditor.sent_count["patch"] == world.auditor.own_count == 4 * 3


def test_a_patch_that_is_wrong_costs_one_whole_download_each_and_no_try_of_the_round():
    world = World(18, Weather(patch_rot_rate=1.0), devices=4)
    rounds_one_by_one(world, 6)
    base, params = world.database.lineage[0].manifest.files
    assert world.auditor.sent_count["patch"] == 4 * 6
    assert world.auditor.patched_count == 0
    assert world.auditor.sent_count["chunk"] == 4 * (len(base.chunk_digests) + 6 * len(params.chunk_digests))
    assert len(world.database.counted) == 4 * 6


def test_a_device_that_comes_late_is_brought_up_to_date_by_one_patch_over_several_versions():
    world = World(18, CALM, devices=3)
    rounds_one_by_one(world, 1)
    late = world.devices[0]
    late.gone = True
    late.power_off()
    for number in range(3):
        world.request_round(updates_min=2)
        assert world.run(world.now_ms + 30 * MINUTE_MS, until=lambda n=number: len(world.database.lineage) == n + 3)
    before = world.auditor.sent_count.copy()
    late.gone = False
    late.heal()
    world.request_round(updates_min=3)
    assert world.run(world.now_ms + MINUTE_MS, until=lambda: len(world.database.lineage) == 6)
    assert (world.auditor.sent_count - before)["patch"] == 3
    assert (world.auditor.sent_count - before)["chunk"] == 0


def test_a_power_cut_between_the_patch_and_the_training_costs_neither():
    world = World(18, Weather(off_ms_max=1), devices=2)
    rounds_one_by_one(world, 1)
    world.request_round(updates_min=2)
    device = world.devices[0]
    waits = lambda: any(flash.has_patch(device.card, f) for f in world.database.lineage[-1].manifest.files)  # noqa: E731
    assert world.run(world.now_ms + MINUTE_MS, until=waits)
    patched = world.auditor.patched_count
    device.power_off()
    assert waits(), "flash lost the patch"
    before = world.auditor.sent_count["patch"]
    assert world.run(world.now_ms + 10 * MINUTE_MS, until=lambda: len(world.database.lineage) == 3)
    assert world.auditor.patched_count == patched + 2
    assert world.auditor.sent_count["patch"] <= before + 1  # the other device's


def test_without_an_answer_by_http_the_coordinator_serves_all():
    for rate in ("http_fails_rate", "http_hangs_rate"):
        world = World(18, Weather(http_rate=1.0, **{rate: 1.0}), devices=2)
        world.request_round(updates_min=2, lasts_ms=60 * MINUTE_MS)
        assert world.run(20 * MINUTE_MS, until=lambda w=world: len(w.database.lineage) == 2)
        assert world.auditor.sent_count["chunk"] == 2 * 11
        assert world.auditor.fetched_count == 0


def test_a_sum_that_fails_at_the_end_of_its_round_is_tried_again_soon_and_not_a_round_later():
    """One device never reports what can be counted, so the round lasts its full time; then the sum fails."""
    world = World(9, Weather(aggregate_fails_rate=1.0), devices=3)
    world.faulty = {"device-01"}
    world.request_round(updates_min=2, lasts_ms=10 * MINUTE_MS)
    world.run(12 * MINUTE_MS)
    assert world.tally["aggregate_fails"] > 3
    world.weather = CALM
    assert world.run(world.now_ms + MINUTE_MS, until=lambda: len(world.database.lineage) == 2)


def test_a_device_that_is_struck_off_keeps_its_update_until_it_is_enrolled_again():
    world = World(10, CALM, devices=3)
    world.request_round(updates_min=1, lasts_ms=10 * MINUTE_MS)
    fleet = dict(world.database.fleet)
    world.run(60_000, until=lambda: bool(world.auditor.full_outboxes()))
    name = world.auditor.full_outboxes()[0]
    world.database.fleet.pop(name)
    world.station.read_fleet()
    world.run(world.now_ms + 40 * MINUTE_MS)
    assert world.auditor.full_outboxes() == [name]
    world.database.fleet = fleet
    world.station.read_fleet()
    world.run(world.now_ms + 30 * MINUTE_MS)
    assert not world.auditor.full_outboxes()
    assert (name, 1) in world.database.updates


def test_a_round_goes_on_when_what_the_server_retained_was_overwritten():
    world = World(17, CALM, devices=3)
    world.run(10_000)
    for kind in ("manifest", "plan", "state"):
        world.server.spread(topics.shared(keyring.FLEET, kind), b"garbage", retain=True)
    for device in world.devices:
        device.power_off()
    world.run(world.now_ms + 10_000)
    world.request_round(updates_min=3)
    assert world.run(world.now_ms + 20 * MINUTE_MS, until=lambda: len(world.database.lineage) == 2)


def test_the_answer_of_a_child_that_was_stopped_is_not_taken_for_that_of_the_next():
    """The round ends with the child's deadline and is offered again at once, while the old answer is under way."""
    for seed in range(12):
        world = World(seed, Weather(train_hangs_rate=0.8, late_result_rate=1.0, train_ms_max=40_000), devices=4)
        for _ in range(4):
            world.request_round(updates_min=4, lasts_ms=MINUTE_MS)
        world.run(40 * MINUTE_MS)
        assert world.tally["late_result"] > 2


@pytest.mark.parametrize("seed", range(5))
def test_a_third_of_all_messages_lost_on_the_way_breaks_no_promise(seed):
    """Receipts get lost, too: devices still hold an update when they are offered the next round."""
    verdict = storm.run(seed, Weather(drop_rate=0.3, train_ms_max=500), devices=4, rounds=4)
    assert not verdict.broken, storm.tell(verdict)


@pytest.mark.parametrize("field", FAULTS)
def test_one_fault_alone_breaks_no_promise(field):
    """Faults that always come together hide each other."""
    value = getattr(STORM, field)
    alone = {field: min(1, value * 4) if isinstance(value, float) else value // 4}
    if field in ("silent_rate", "takeover_will_rate"):
        alone["link_break_every_ms"] = STORM.link_break_every_ms
    if field == "retained_lost_rate":
        alone["server_restart_every_ms"] = STORM.server_restart_every_ms
    if field in ("http_fails_rate", "http_hangs_rate"):
        alone["http_rate"] = 1.0
    if field in ("gone_rate", "torn_rate"):
        alone["cut_at_effect_rate"] = STORM.cut_at_effect_rate
    if field == "late_result_rate":
        alone["train_hangs_rate"] = STORM.train_hangs_rate * 4
    if field == "forge_every_ms":
        alone["replay_every_ms"] = 0
    for seed in range(2):
        verdict = storm.run(seed, Weather(**alone), devices=6, rounds=4)
        assert not verdict.broken, storm.tell(verdict)


@pytest.mark.parametrize("block", range(3))
def test_cards_at_the_end_of_their_lives_break_no_promise(block):
    """Syncs that fail, ends within any disk operation, and a second life on what the page cache shows."""
    for seed in range(block * 10, block * 10 + 10):
        verdict = storm.run(seed, weather.named("worn"))
        assert not verdict.broken, storm.tell(verdict)
        assert verdict.faults["sync_fails"] > 5


def test_each_seed_has_a_swarm_of_its_own_and_the_same_one_again():
    assert weather.swarm(5) == weather.swarm(5)
    assert weather.swarm(5) != weather.swarm(7)
    absent = sum(weather.swarm(seed).drop_rate == 0 for seed in range(300))
    assert 60 < absent < 140


def test_a_scenario_with_a_misspelt_fault_is_refused_with_its_file_and_the_field(tmp_path):
    path = tmp_path / "typo.toml"
    path.write_text("power_cuts_every_ms = 5\n")
    with pytest.raises(ValueError, match=r"typo\.toml .*power_cuts_every_ms"):
        weather.load(path)


def _offers(world):
    """The topics of the offers that were heard so far."""
    world.run(world.now_ms + 1_000)
    return [topic for topic, _ in world.attacker.heard if topic.endswith("/dn/offer")]
