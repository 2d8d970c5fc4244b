"""Programs of neighbouring versions are understood: a field more, or the last defaults left out."""

import pytest

from firmware_sim import keyring, voices
from firmware_sim.weather import CALM
from firmware_sim.world import World
from tests.wire.examples import EXAMPLES
from wire import envelope, topics
from wire.messages import kind_of

KEY = keyring.make("device-00", 1, real=False)


@pytest.mark.parametrize("skew", [-1, 0, 1])
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_message_of_a_neighbouring_version_is_understood(name, skew):
    _, message = EXAMPLES[name]
    topic = f"fl/v1/sim/00/device-00/up/{kind_of(message)}"
    sealed = voices.seal(message, topic, KEY.sign, skew)
    assert envelope.unseal(sealed, topic, keyring.verifier(KEY.text)) == message
    longer = len(sealed) - len(envelope.seal(message, topic, KEY.sign))
    assert (longer > 0) - (longer < 0) in {0, skew}
    assert skew <= 0 or longer > 0


@pytest.mark.parametrize(("devices", "coordinator"), [(1, -1), (-1, 1), (1, 1)])
def test_a_fleet_of_several_versions_learns(devices, coordinator):
    world = World(5, CALM, devices=3)
    world.station.skew = coordinator
    for device in world.devices:
        device.skew = devices
    world.request_round(updates_min=3)
    assert world.run(300_000, until=lambda: len(world.database.lineage) == 2)


def test_what_everyone_hears_is_opened_once_and_believed_by_its_bytes():
    world = World(5, CALM, devices=3)
    world.run(20_000)
    assert 0 < len(world.opened) <= voices.OPENED_MAX
    topic = topics.shared(keyring.FLEET, "state")
    payload = next(payload for heard, payload in world.opened if heard == topic)
    before = world.devices[0].agent.refused_count.copy()
    world.server.spread(topic, payload[:-1] + bytes([payload[-1] ^ 1]))
    world.run(world.now_ms + 1_000)
    assert world.devices[0].agent.refused_count.get("signature", 0) == before.get("signature", 0) + 1
