"""A gateway's mosquitto with the deployed bridge: devices behind it, the coordinator at the fleet's server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.test_link import seen_within
from tests.real.test_mosquitto_traps import DEPLOY, Site, dn, up
from wire import topics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker import mqtt_server as servers
    from tests.real.test_link import Peer

pytestmark = pytest.mark.real

BRIDGE = (DEPLOY / "mosquitto-bridge.conf").read_text()


class Tree:
    """The fleet's server, and a gateway under the same authority; both with the deployed files."""

    def __init__(self, mosquitto: servers.Mosquitto, directory: Path) -> None:
        stanza = BRIDGE.partition("#   user gateway-1\n")
        granted = [line.removeprefix("#   ") for line in stanza[2].splitlines()[:2]]
        self.root = Site(mosquitto, directory, more_access="\n".join(["", "user gateway-1", *granted, ""]))
        certificate, key = self.root.authority.issue("gateway-1", "gateway")
        bridge = BRIDGE
        for before, after in (
            ("address server:8883", f"address 127.0.0.1:{self.root.server.port}"),
            ("/etc/mosquitto/certs/gateway.crt", str(certificate)),
            ("/etc/mosquitto/certs/gateway.key", str(key)),
            ("/etc/mosquitto/certs/ca.crt", str(self.root.authority.file)),
        ):
            assert before in bridge
            bridge = bridge.replace(before, after)
        (directory / "gateway").mkdir()
        self.gateway = Site(mosquitto, directory / "gateway", more=bridge, authority=self.root.authority)

    def stop(self) -> None:
        self.gateway.stop()
        self.root.stop()


@pytest.fixture
def tree(mosquitto: servers.Mosquitto, tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(mosquitto, tmp_path)
    yield tree
    tree.stop()


def of(tree: Tree) -> tuple[Peer, Peer]:
    coordinator = tree.root.connect("coordinator", topics.coordinator_filters("barn"))
    device = tree.gateway.connect("pi-07", topics.device_filters("barn", "pi-07"))
    for peer in (coordinator, device):
        peer.wait_until_up()
    device.link.publish(up("pi-07"), b"first")
    assert coordinator.payloads(1) == [b"first"]  # the bridge stands
    return coordinator, device


def test_words_go_up_and_down_through_a_gateway_and_what_is_kept_for_all_reaches_who_comes_later(tree: Tree) -> None:
    coordinator, device = of(tree)
    coordinator.link.publish(dn("pi-07"), b"for pi-07")
    coordinator.link.publish(topics.shared("barn", "state"), b"for all", retain=True)
    assert sorted(device.payloads(2)) == [b"for all", b"for pi-07"]
    later = tree.gateway.connect("pi-08", topics.device_filters("barn", "pi-08"))
    later.wait_until_up()
    assert later.payloads(1) == [b"for all"]
    device.link.publish(up("pi-07"), b"once")
    later.link.publish(up("pi-07"), b"forged")  # the gateway has the same access list
    assert seen_within(lambda: later.link.bytes_down > 0, 5)
    device.link.publish(up("pi-07"), b"last")
    assert coordinator.payloads(2) == [b"once", b"last"]


def test_what_devices_say_while_the_fleets_server_is_away_waits_at_the_gateway(tree: Tree) -> None:
    coordinator, device = of(tree)
    coordinator.link.stop()
    tree.root.server.stop()
    said = [f"update {number}".encode() for number in range(1500)]  # mosquitto's own default would keep 1000
    for one in said:
        while not device.link.publish(up("pi-07"), one):
            assert seen_within(lambda: device.link.bytes_down > 0, 5)
    assert seen_within(lambda: device.link.bytes_down >= 4 * len(said), 20)  # each is acknowledged
    tree.root.server.restart()
    again = tree.root.connect("coordinator", topics.coordinator_filters("barn"))
    again.wait_until_up()
    heard = again.payloads(len(said), 60)
    assert set(heard) == set(said)
