"""What mosquitto does by default, what our configurations make of it, and who may say what with the deployed one."""

from __future__ import annotations

import datetime as dt
import ipaddress
import queue
import random
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import paho.mqtt.client as paho
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker import mqtt_server as servers
from tests.real import scripted_server as scripted
from tests.real.test_link import Peer, seen_within
from wire import link, topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.real

DEPLOY = Path(__file__).parents[2] / "deploy/raspi"


def up(device_id: str) -> str:
    return topics.up("barn", device_id, "update")


def dn(device_id: str) -> str:
    return topics.dn("barn", device_id, "offer")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(mosquitto: servers.Mosquitto, directory: Path, config: str, port: int) -> servers.Server:
    file = directory / "mosquitto.conf"
    file.write_text(config)
    server = servers.Server(
        "mosquitto",
        mosquitto.version,
        port,
        directory / "log",
        [str(mosquitto.program), "-c", str(file)],
        servers._environment(mosquitto.libraries),
    )
    server.restart()
    return server


def plain(mosquitto: servers.Mosquitto, directory: Path) -> servers.Server:
    """mosquitto as it comes: nothing set but where it listens."""
    port = free_port()
    return run(mosquitto, directory, f"listener {port} 127.0.0.1\nallow_anonymous true\n", port)


def kept_session(server: servers.Server, collect: Callable[[bytes], None] | None) -> paho.Client:
    """Connect as a subscriber whose session the server keeps while it is away."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="aggregator", clean_session=False)
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    if collect is not None:
        client.on_message = lambda _client, _data, message: collect(message.payload)
    client.connect("127.0.0.1", server.port)
    client.loop_start()
    client.subscribe("up/#", 1)
    assert subscribed.wait(5)
    return client


def leave(client: paho.Client) -> None:
    client.disconnect()
    client.loop_stop()


def sent_and_received_across_an_absence(server: servers.Server, count: int) -> tuple[int, int]:
    """Publish `count` messages while their reader is away: (acknowledged to the sender, delivered to the reader)."""
    leave(kept_session(server, None))
    device = Peer(server.url, "device", ["dn/#"], queue_count_max=count)
    device.wait_until_up()
    for number in range(count):
        device.link.publish("up/x", b"%d" % number)
    assert seen_within(lambda: device.link.bytes_down == 4 * count, 10)  # a PUBACK has four bytes
    device.link.stop()
    received: list[bytes] = []
    reader = kept_session(server, received.append)
    seen_within(lambda: len(received) >= count, 2)
    leave(reader)
    return count, len(received)


def test_by_default_mosquitto_drops_acknowledged_messages_and_ours_does_not(
    mosquitto: servers.Mosquitto, mosquitto_server: servers.Server, tmp_path: Path
) -> None:
    """PUBACK is no receipt: why receipts are signed messages of our own."""
    as_it_comes = plain(mosquitto, tmp_path)
    try:
        acknowledged, received = sent_and_received_across_an_absence(as_it_comes, 1500)
    finally:
        as_it_comes.stop()
    assert received < acknowledged
    acknowledged, received = sent_and_received_across_an_absence(mosquitto_server, 1500)
    assert received == acknowledged


def test_our_programs_leave_no_session_behind_that_fills_the_servers_memory(mosquitto_server: servers.Server) -> None:
    def has_session(client_id: str) -> bool:
        asked = queue.SimpleQueue[bool]()
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=False)
        client.on_connect = lambda _client, _data, flags, *_: asked.put(flags.session_present)
        client.connect("127.0.0.1", mosquitto_server.port)
        client.loop_start()
        found = asked.get(timeout=5)
        leave(client)
        return found

    ours = Peer(mosquitto_server.url, "device", ["up/#"])
    ours.wait_until_up()
    ours.link.stop()
    leave(kept_session(mosquitto_server, None))
    assert has_session("aggregator")
    assert not has_session("device")


def test_a_packet_above_the_limit_ends_the_connection(mosquitto_server: servers.Server) -> None:
    """And paho would send it again after each reconnect, for ever: why the link refuses it before."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="large", reconnect_on_failure=False)
    ended = threading.Event()
    up = threading.Event()
    client.on_connect = lambda *_: up.set()
    client.on_disconnect = lambda *_: ended.set()
    client.connect("127.0.0.1", mosquitto_server.port)
    client.loop_start()
    assert up.wait(5)
    client.publish("up/x", bytes(140_000), 1)
    assert ended.wait(5)
    client.loop_stop()


# -- the deployed configuration -------------------------------------------------------------------------------------


class Authority:
    """A certificate authority for one test."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.file = directory / f"{name}.crt"
        own = self._builder(self.name, self.key).add_extension(x509.BasicConstraints(True, None), critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        # Python 3.13 asks for both key identifiers (RFC 5280, sections 4.2.1.1 and 4.2.1.2)
        own = own.add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
        signed = own.add_extension(usage, critical=True).sign(self.key, hashes.SHA256())
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
        )

    def revoke_nobody(self) -> None:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name).last_update(now)
        signed = builder.next_update(now + dt.timedelta(hours=1)).sign(self.key, hashes.SHA256())
        (self.directory / "revoked.crl").write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def issue(self, common_name: str, file_name: str | None = None) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = self._builder(subject, key).add_extension(address, critical=False)
        certificate = builder.add_extension(issuer, critical=False).sign(self.key, hashes.SHA256())
        cert_file = self.directory / f"{file_name or common_name}.crt"
        key_file = self.directory / f"{file_name or common_name}.key"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_file, key_file


class Site:
    """mosquitto with the deployed files, and links to it. `more`: lines after those of its configuration."""

    def __init__(
        self,
        mosquitto: servers.Mosquitto,
        directory: Path,
        *,
        more: str = "",
        more_access: str = "",
        authority: Authority | None = None,
    ) -> None:
        self.authority = authority or Authority(directory)
        if authority is None:
            self.authority.issue("server")
            self.authority.revoke_nobody()
        port = free_port()
        acl = directory / "mosquitto.acl"
        acl.write_text((DEPLOY / "mosquitto.acl").read_text() + more_access)
        config = (DEPLOY / "mosquitto.conf").read_text() + more
        for before, after in (
            ("/etc/mosquitto/certs/", f"{self.authority.directory}/"),
            ("/etc/mosquitto/mosquitto.acl", str(acl)),
            ("listener 8883", f"listener {port} 127.0.0.1"),
            ("user mosquitto", f"user {servers.getpass.getuser()}"),
            ("log_dest syslog", "log_dest stderr"),
        ):
            assert before in config, f"{before!r} is gone from deploy/raspi/mosquitto.conf"
            config = config.replace(before, after)
        self.server = run(mosquitto, directory, config, port)
        self.peers: list[Peer] = []

    def connect(
        self, name: str, filters: tuple[str, ...], authority: Authority | None = None, client_id: str | None = None
    ) -> Peer:
        cert_file, key_file = (authority or self.authority).issue(name)
        self.peers.append(
            Peer(
                f"mqtts://127.0.0.1:{self.server.port}",
                client_id or name,
                list(filters),
                ca_file=self.authority.file,
                cert_file=cert_file,
                key_file=key_file,
            )
        )
        return self.peers[-1]

    def stop(self) -> None:
        for peer in self.peers:
            peer.link.stop()
        self.server.stop()


@pytest.fixture
def site(mosquitto: servers.Mosquitto, tmp_path: Path) -> Iterator[Site]:
    site = Site(mosquitto, tmp_path)
    yield site
    site.stop()


def test_with_the_deployed_files_a_device_has_its_own_branch(site: Site) -> None:
    coordinator = site.connect("coordinator", topics.coordinator_filters("barn"))
    device = site.connect("pi-07", topics.device_filters("barn", "pi-07"))
    for peer in (coordinator, device):
        peer.wait_until_up()
    device.link.publish(up("pi-07"), b"own")
    assert coordinator.payloads(1) == [b"own"]
    coordinator.link.publish(dn("pi-07"), b"for pi-07")
    coordinator.link.publish(topics.shared("barn", "state"), b"for all", retain=True)
    assert device.payloads(2) == [b"for pi-07", b"for all"]


@pytest.mark.parametrize("forged", [up("pi-07"), dn("pi-07"), topics.shared("barn", "state")])
def test_with_the_deployed_files_a_device_cannot_write_on_a_topic_of_another(site: Site, forged: str) -> None:
    coordinator = site.connect("coordinator", (*topics.coordinator_filters("barn"), "fl/v1/#"))
    victim = site.connect("pi-07", topics.device_filters("barn", "pi-07"))
    forger = site.connect("pi-08", topics.device_filters("barn", "pi-08"))
    for peer in (coordinator, victim, forger):
        peer.wait_until_up()
    forger.link.publish(forged, b"forged", retain=True)
    assert seen_within(lambda: forger.link.bytes_down == 4, 3)  # acknowledged: PUBACK is no receipt
    victim.link.publish(up("pi-07"), b"next")
    coordinator.link.publish(dn("pi-07"), b"next")
    assert coordinator.payloads(1) == [b"next"]
    assert victim.payloads(1) == [b"next"]
    late = site.connect("pi-07", topics.device_filters("barn", "pi-07"))
    late.wait_until_up()
    assert late.is_silent(0.1)  # nothing was retained either


def test_with_the_deployed_files_a_device_cannot_take_over_the_connection_of_another(site: Site) -> None:
    victim = site.connect("pi-07", topics.device_filters("barn", "pi-07"))
    victim.wait_until_up()
    thief = site.connect("pi-08", topics.device_filters("barn", "pi-08"), client_id="pi-07")
    thief.wait_until_up()
    assert victim.is_silent(0.3)


@pytest.mark.parametrize("spied_on", ["fl/v1/#", "#", dn("pi-07"), up("pi-07"), "fl/v1/barn/+/+/dn/+"])
def test_with_the_deployed_files_a_device_cannot_read_what_is_meant_for_another(site: Site, spied_on: str) -> None:
    coordinator = site.connect("coordinator", topics.coordinator_filters("barn"))
    spy = site.connect("pi-08", (dn("pi-08"), spied_on))
    victim = site.connect("pi-07", topics.device_filters("barn", "pi-07"))
    for peer in (coordinator, victim):
        peer.wait_until_up()
    try:
        spy.wait_until_up()
    except queue.Empty:
        pytest.fail("this mosquitto refuses the subscription itself: good, and the test should say so")
    victim.link.publish(up("pi-07"), b"secret")
    coordinator.link.publish(dn("pi-07"), b"secret")
    assert victim.payloads(1) == [b"secret"]
    assert coordinator.payloads(1) == [b"secret"]
    coordinator.link.publish(dn("pi-08"), b"own")
    assert spy.payloads(1) == [b"own"]


def test_with_the_deployed_files_nobody_connects_without_a_certificate_of_the_fleet(site: Site, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = site.connect("pi-07", ("dn/#",), Authority(tmp_path / "other", "ca"))
    assert stranger.next(link.LinkDown).reason
    without = Peer(f"mqtts://127.0.0.1:{site.server.port}", "x", ["dn/#"], ca_file=site.authority.file)
    site.peers.append(without)
    assert without.next(link.LinkDown).reason
    in_clear = Peer(f"mqtt://127.0.0.1:{site.server.port}", "x", ["dn/#"])
    site.peers.append(in_clear)
    assert "with TLS exactly when the URL says mqtts" in in_clear.next(link.LinkDown).reason


def test_a_server_that_the_authority_did_not_sign_is_refused_by_the_device(site: Site, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "ca")
    device = Peer(f"mqtts://127.0.0.1:{site.server.port}", "x", ["dn/#"], ca_file=other.file)
    site.peers.append(device)
    assert "certificate" in device.next(link.LinkDown).reason.lower()


def test_a_stream_of_large_messages_gets_through_tls(site: Site) -> None:
    """TLS may hold decrypted messages that no selector reports: they must not wait for the next ones."""
    coordinator = site.connect("coordinator", topics.coordinator_filters("barn"))
    device = site.connect("pi-07", topics.device_filters("barn", "pi-07"))
    coordinator.wait_until_up()
    device.wait_until_up()
    chance = random.Random(1)
    sent = [chance.randbytes(chance.randrange(1, 40_000)) for _ in range(150)]
    for payload in sent:
        device.link.publish(up("pi-07"), payload)
    assert coordinator.payloads(len(sent), within_s=3) == sent


def test_hundreds_of_small_messages_in_one_tls_record_arrive_at_once(tmp_path: Path) -> None:
    """The rest of a record that was read is in TLS's own buffer, where no selector sees it."""
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    sent = [b"%d" % number for number in range(400)]

    def coalesce(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            scripted.greet(secure)
            secure.sendall(b"".join(scripted.publish("dn/x", payload) for payload in sent))
            secure.recv(1)

    with scripted.scripted(coalesce) as port:
        device = Peer(f"mqtts://127.0.0.1:{port}", "pi-07", ["dn/#"], ca_file=authority.file)
        device.next(link.LinkUp)
        began = time.monotonic()
        assert device.payloads(len(sent)) == sent
        assert time.monotonic() - began < 2.0  # and not one selector's timeout later
        device.link.stop()
