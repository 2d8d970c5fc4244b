"""An attacker who may publish anywhere and has no key changes nothing; a device with a key, only its own account."""

import functools

import msgspec
import pytest

from firmware_sim import keyring, witness
from firmware_sim.weather import CALM, Weather
from firmware_sim.witness import PLAN
from firmware_sim.world import World
from wire import coin, envelope, topics
from wire.messages import Death, Offer, Update, digest_of, encode

MINUTE_MS = 60_000
DEVICES = 4
ROUNDS = 3


def live(weather, *, real_keys, mode="synchronous"):
    """A fleet that closes its rounds one by one, with time to be attacked before, while and after."""
    world = World(11, weather, devices=DEVICES, real_keys=real_keys)
    world.mode = mode
    for round_id in range(1, ROUNDS + 1):
        world.request_round(updates_min=DEVICES)
        assert world.run(world.now_ms + 30 * MINUTE_MS, until=lambda r=round_id: len(world.database.lineage) == r + 1)
        world.run(world.now_ms + 20_000)
    return world


def what_is_left(world):
    """What the fleet has to show: its model, and each device's flash without the count of its boots."""
    durables = [msgspec.structs.replace(world.auditor.durable_of(device.name), boot=0) for device in world.devices]
    return [version.params for version in world.database.lineage], durables


@functools.cache
def unmolested(real_keys, mode):
    return what_is_left(live(CALM, real_keys=real_keys, mode=mode))


@pytest.mark.parametrize("mode", ["synchronous", "buffered"])
@pytest.mark.parametrize("real_keys", [False, True])
def test_what_a_stranger_says_changes_nothing(real_keys, mode):
    world = live(Weather(forge_every_ms=100), real_keys=real_keys, mode=mode)
    assert what_is_left(world) == unmolested(real_keys, mode)
    for kind in ("forge_key", "forge_topic", "forge_bit"):
        assert world.tally[kind] > 50, kind


@pytest.mark.parametrize("mode", ["synchronous", "buffered"])
@pytest.mark.parametrize("real_keys", [False, True])
def test_what_was_true_once_changes_nothing_when_it_is_said_again(real_keys, mode):
    world = live(Weather(replay_every_ms=500), real_keys=real_keys, mode=mode)
    assert what_is_left(world)[0] == unmolested(real_keys, mode)[0]
    assert world.tally["replay"] > 50


def test_an_old_manifest_does_not_bring_back_its_version():
    world = live(CALM, real_keys=False)
    topic = topics.shared(keyring.FLEET, "manifest")
    oldest = next(payload for heard, payload in world.attacker.heard if heard == topic)
    world.server.spread(topic, oldest, retain=True)
    world.run(world.now_ms + 1_000)
    world.request_round(updates_min=DEVICES)
    assert world.run(world.now_ms + 30_000, until=lambda: len(world.database.lineage) == ROUNDS + 2)
    world.auditor.check_lineage()


def test_an_old_receipt_does_not_empty_the_outbox_of_a_later_round():
    world = live(CALM, real_keys=False)
    receipts = [heard for heard in world.attacker.heard if heard[0].endswith("/dn/receipt")]
    assert len(receipts) == DEVICES * ROUNDS
    world.weather = Weather(coordinator_down_ms_max=60 * MINUTE_MS)
    world.request_round(updates_min=DEVICES)
    assert world.run(world.now_ms + MINUTE_MS, until=lambda: bool(world.auditor.full_outboxes()))
    world.station.cut()
    waiting = world.auditor.full_outboxes()
    for topic, receipt in receipts:
        world.server.spread(topic, receipt)
    world.run(world.now_ms + 1_000)
    assert set(waiting) <= set(world.auditor.full_outboxes())


def test_the_offer_of_one_device_is_no_offer_for_another():
    world = World(12, CALM, devices=DEVICES)
    world.run(10_000)
    world.request_round(updates_min=1, cohort_max=1)
    world.run(world.now_ms + 100)
    offered, payload = next(heard for heard in world.attacker.heard if heard[0].endswith("/dn/offer"))
    for device in world.devices:
        world.server.spread(topics.dn(keyring.FLEET, device.name, "offer"), payload)
    world.run(world.now_ms + MINUTE_MS)
    assert [device for device, _ in world.database.updates] == [topics.parse(offered).device_id]


def test_a_buffered_round_costs_one_offer_for_all_who_are_there():
    world = World(12, CALM, devices=DEVICES)
    world.mode = "buffered"
    world.run(10_000)
    for _ in range(2):
        world.request_round(updates_min=DEVICES)
    assert world.run(world.now_ms + MINUTE_MS, until=lambda: len(world.database.lineage) == 3)
    offers = [topic for topic, _ in world.attacker.heard if topic.endswith("/dn/offer")]
    assert offers == [topics.shared(keyring.FLEET, "offer")] * 2


def test_the_retained_offer_of_a_round_that_has_closed_starts_nothing_when_it_is_retained_again():
    world = live(CALM, real_keys=False, mode="buffered")
    topic, before = topics.shared(keyring.FLEET, "offer"), len(world.database.updates)
    for heard, payload in [each for each in world.attacker.heard if each[0] == topic]:
        world.server.spread(heard, payload, retain=True)
        world.devices[0].replace_card()  # it knows nothing of what it has finished
        world.run(world.now_ms + MINUTE_MS)
    assert len(world.database.updates) == before
    assert world.auditor.full_outboxes() == []


def test_a_device_that_its_coin_did_not_draw_is_refused_though_it_signs_with_its_own_key():
    world = World(12, CALM, devices=DEVICES)
    world.mode = "buffered"
    world.run(10_000)
    world.request_round(updates_min=1, cohort_max=1, lasts_ms=MINUTE_MS)
    world.run(world.now_ms + 1)
    row = world.database.rounds[1]
    outside = [each for each in world.devices if coin.side(keyring.FLEET, 1, row.nonce, each.name) >= row.draw]
    assert 0 < len(outside) < DEVICES, "choose another seed: it drew all of them, or none"
    liar = outside[0]
    digest = say(world, liar, Update(1, 1, 40, 0, 0, payload_of(liar, 1)))
    assert (liar.name, 1) not in world.database.updates
    receipt = world.auditor.verdict_of(liar.name, digest)
    assert (receipt.verdict, "has not drawn" in receipt.reason) == ("refused", True)


def test_the_death_of_an_old_connection_says_nothing_of_the_new_one():
    world = World(13, CALM, devices=DEVICES)
    world.run(10_000)
    device = world.devices[0]
    world.server.lose(device.line.connection, silent=False)
    world.run(world.now_ms + 10_000)
    deaths = [heard for heard in world.attacker.heard if heard[0].endswith("/up/death")]
    assert not deaths, "a will is the server's own word"
    topic = topics.up(keyring.FLEET, device.name, "death")
    key = keyring.make(device.name, world.seed, real=False)
    world.server.spread(topic, envelope.seal(Death(1, 1), topic, key.sign))
    world.run(world.now_ms + 1_000)
    assert_everyone_is_offered_the_next_round(world)


def test_a_will_that_comes_long_after_the_device_is_back_says_nothing_of_its_new_life():
    world = World(13, Weather(off_ms_max=5_000, takeover_will_rate=0.0), devices=DEVICES)
    world.run(10_000)
    world.devices[0].power_off()
    world.run(world.now_ms + 10_000)
    topic = topics.up(keyring.FLEET, world.devices[0].name, "death")
    key = keyring.make(world.devices[0].name, world.seed, real=False)
    world.server.spread(topic, envelope.seal(Death(1, 1), topic, key.sign))
    world.run(world.now_ms + 1_000)
    assert_everyone_is_offered_the_next_round(world)


def test_an_old_birth_does_not_hide_the_death_of_the_newest_connection():
    """Else the round would wait for a device that is gone."""
    world = World(14, CALM, devices=DEVICES)
    world.run(10_000)
    device = world.devices[0]
    old = next(heard for heard in world.attacker.heard if heard[0] == topics.up(keyring.FLEET, device.name, "birth"))
    world.server.lose(device.line.connection, silent=False)
    world.run(world.now_ms + 10_000)
    world.server.spread(*old)
    world.run(world.now_ms + 1_000)
    device.gone = True
    device.power_off()
    world.run(world.now_ms + 90_000)
    world.request_round(updates_min=1, lasts_ms=60 * MINUTE_MS)
    assert world.run(world.now_ms + 10_000, until=lambda: len(world.database.lineage) == 2)
    assert len(world.database.counted) == DEVICES - 1


def say(world, device, message):
    topic = topics.up(keyring.FLEET, device.name, "update")
    sealed = envelope.seal(message, topic, keyring.make(device.name, world.seed, real=False).sign)
    world.server.spread(topic, sealed)
    world.run(world.now_ms + 1_000)
    return digest_of(sealed)


def payload_of(device, round_id):
    return witness.encode(witness.Witness(device.index, round_id, 0, 1, bytes(8)))


@pytest.mark.parametrize(
    ("what", "round_id", "base_version"),
    [
        ("another update of a round that it has reported", 1, 1),
        ("a round that was never opened", 99, 1),
        ("a round that is only requested", 2, 1),
        ("another base version", 1, 2),
    ],
)
def test_a_device_that_lies_with_its_own_key_is_refused(what, round_id, base_version):
    world = World(15, CALM, devices=DEVICES)
    world.faulty = {world.devices[1].name} if base_version == 2 else set()
    world.request_round(updates_min=DEVICES + 1)
    world.request_round(updates_min=DEVICES)
    world.run(30_000)
    liar = world.devices[1]
    before = dict(world.database.updates)
    digest = say(world, liar, Update(round_id, base_version, 40, 0, 0, payload_of(liar, round_id)))
    assert world.database.updates == before
    assert world.auditor.verdict_of(liar.name, digest).verdict == "refused", what


def test_an_offer_of_an_unknown_plan_starts_nothing():
    world = World(16, CALM, devices=DEVICES)
    world.run(10_000)
    device = world.devices[0]
    topic = topics.dn(keyring.FLEET, device.name, "offer")
    other_plan = digest_of(encode(msgspec.structs.replace(PLAN, seed=8)))
    offer = Offer(1, other_plan, 1, 10 * MINUTE_MS)
    world.server.spread(topic, envelope.seal(offer, topic, world.coordinator_key.sign))
    world.run(world.now_ms + MINUTE_MS)
    assert not world.auditor.full_outboxes()
    assert not world.database.updates


def assert_everyone_is_offered_the_next_round(world):
    world.request_round(updates_min=DEVICES)
    assert world.run(world.now_ms + 20_000, until=lambda: len(world.database.lineage) == 2)
