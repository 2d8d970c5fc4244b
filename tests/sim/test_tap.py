"""The tap hears the real wire, believes signatures only, and knows when it was deaf."""

import hashlib
import random
import time
from collections.abc import Iterator

import pytest

from broker import mqtt_server as servers
from firmware_sim.tap import Tap, packet_bytes
from wire import envelope, keys, topics
from wire.link import Arrived, Link, LinkUp
from wire.messages import Receipt, State, Update

pytestmark = pytest.mark.real
FLEET = "tapped"
COORDINATOR, DUNE, ELM = (bytes([number]) * 32 for number in (1, 2, 3))
DEVICES = {"dune": keys.public_text(DUNE), "elm": keys.public_text(ELM)}


def wait_for(condition) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def talker(mqtt_server: servers.Server) -> Iterator[Link]:
    up: list[object] = []
    link = Link(mqtt_server.url, "talker", filters=["talker/x"], will=None, post=up.append, jitter=random.Random(1))
    link.start()
    assert wait_for(lambda: any(isinstance(event, LinkUp) for event in up))
    yield link
    link.stop()


@pytest.fixture
def tap(mqtt_server: servers.Server) -> Iterator[Tap]:
    made = Tap(mqtt_server.url, FLEET, DEVICES, keys.public_text(COORDINATOR), random.Random(2))
    assert made.start()
    yield made
    made.stop()


def test_updates_and_receipts_are_kept_and_forgeries_counted(tap: Tap, talker: Link) -> None:
    up, down = topics.up(FLEET, "dune", "update"), topics.dn(FLEET, "dune", "receipt")
    update = Update(3, 2, 50, 0, 0, b"numbers")
    sealed = envelope.seal(update, up, keys.signer(DUNE))
    digest = hashlib.sha256(sealed).digest()
    receipt = envelope.seal(Receipt(digest, 3, "accepted"), down, keys.signer(COORDINATOR))
    talker.publish(up, sealed)
    talker.publish(up, envelope.seal(update, up, keys.signer(ELM)))  # elm signs as dune
    talker.publish(down, receipt)
    talker.publish(down, envelope.seal(Receipt(digest, 3, "refused"), down, keys.signer(ELM)))
    talker.publish(f"{topics.ROOT}/{FLEET}/nonsense", b"?")
    assert wait_for(lambda: tap.heard.forged_count == 3)
    heard = tap.heard
    assert heard.sealed == {digest: ("dune", sealed)}
    assert heard.verdicts == {digest: ["accepted"]}
    assert heard.packet_of[digest] == packet_bytes(Arrived(up, sealed, retain=False))
    assert tap.update(digest) == update
    assert tap.update(b"x" * 32) is None


def test_what_all_devices_read_counts_once_for_each(tap: Tap, talker: Link) -> None:
    topic = topics.shared(FLEET, "state")
    sealed = envelope.seal(State(1, True, 0, 1), topic, keys.signer(COORDINATOR))
    talker.publish(topic, sealed)
    assert wait_for(lambda: tap.heard.packets["dn", "state"] == 2)
    assert tap.heard.bytes_of("dn") == 2 * packet_bytes(Arrived(topic, sealed, retain=False))
    assert tap.heard.bytes_of("up") == 0


@pytest.mark.parametrize(("payload", "head"), [(100, 2), (1000, 3), (20_000, 4)])
def test_a_packet_is_topic_payload_identifier_and_head(payload: int, head: int) -> None:
    assert packet_bytes(Arrived("a/b", bytes(payload), retain=False)) == head + 2 + 3 + 2 + payload


def test_a_tap_that_lost_its_server_says_so(tmp_path) -> None:
    server = servers.start(tmp_path)
    tap = Tap(server.url, FLEET, DEVICES, keys.public_text(COORDINATOR), random.Random(2))
    try:
        assert tap.start()
        server.kill()
        assert wait_for(lambda: tap.heard.gaps == 1)
        time.sleep(1.5)  # several attempts in vain are one gap
        server.restart()
        tap.reconnect()
        assert tap.heard.gaps == 1
        update = envelope.seal(Update(1, 1, 5, 0, 0, b"x"), topics.up(FLEET, "dune", "update"), keys.signer(DUNE))
        talker = Link(server.url, "late", filters=["x"], will=None, post=lambda _: None, jitter=random.Random(3))
        talker.start()
        assert wait_for(lambda: talker.publish(topics.up(FLEET, "dune", "update"), update) or tap.heard.sealed)
        talker.stop()
    finally:
        tap.stop()
        server.stop()
