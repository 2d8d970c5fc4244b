"""The broker's doctor before servers that do what a fleet needs, and before servers that do not."""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import socket
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from broker import doctor, probes
from broker import mqtt_server as servers
from broker.cli.main import main
from broker.probes import Finding, Target, Verdict
from broker.raw_mqtt import Access, LostError, RawMqtt
from edge_agent import config
from edge_agent import doctor as edge_doctor
from tests.real import scripted_server as scripted
from tests.real.test_link import Peer
from tests.real.test_mosquitto_traps import Site, free_port, plain, run
from wire import keys, topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

pytestmark = pytest.mark.real


@pytest.fixture
def mosquitto_with(mosquitto: servers.Mosquitto, tmp_path: Path) -> Iterator[Callable[[str], servers.Server]]:
    """Start mosquitto as it comes, plus these lines."""
    running: list[servers.Server] = []

    def start(lines: str) -> servers.Server:
        port = free_port()
        running.append(
            run(mosquitto, tmp_path, f"listener {port} 127.0.0.1\nuser {getpass.getuser()}\n{lines}\n", port)
        )
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def site(mosquitto: servers.Mosquitto, tmp_path: Path) -> Iterator[Site]:
    site = Site(mosquitto, tmp_path)
    yield site
    site.stop()


def of(server: servers.Server) -> Target:
    return doctor.target(Access(server.url))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def not_ok(findings: list[Finding]) -> dict[str, Verdict]:
    return {finding.name: finding.verdict for finding in findings if finding.verdict != Verdict.OK}


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


def remains_retained(server: servers.Server) -> list[bytes]:
    with RawMqtt(Access(server.url), "late") as late:
        late.subscribe("fl/#")
        return [message.payload for message in late.messages(1, 0.3)]


# -- servers at hand ------------------------------------------------------------------------------------------------


def test_the_embedded_mosquitto_does_all_that_a_fleet_needs(mosquitto_server: servers.Server) -> None:
    findings = list(doctor.examine(of(mosquitto_server), slow=False))
    assert not_ok(findings) == {"access": Verdict.WARN}
    assert "anyone can see" in by_name(findings)["access"].text
    assert [finding.name for finding in findings] == [name for name, _, _, is_slow in doctor.PROBES if not is_slow]
    assert by_name(findings)["queue"].figures == {"acknowledged": probes.BURST, "delivered": probes.BURST}
    assert remains_retained(mosquitto_server) == []


def test_mosquitto_as_it_comes_has_three_traps_and_each_has_its_line(
    mosquitto: servers.Mosquitto, tmp_path: Path
) -> None:
    server = plain(mosquitto, tmp_path)
    try:
        target = of(server)
        queue, nodelay, payload = probes.burst(target), probes.nodelay(target), probes.payload(target)
    finally:
        server.stop()
    assert {queue.verdict, nodelay.verdict, payload.verdict} == {Verdict.WARN}
    assert queue.figures["acknowledged"] == probes.BURST
    assert 1_000 <= queue.figures["delivered"] < 1_200  # its max_queued_messages, and what was in flight
    assert nodelay.figures["window_ms"] > 35 > nodelay.figures["single_ms"]
    for finding, line in (
        (queue, "max_queued_messages 0"),
        (nodelay, "set_tcp_nodelay true"),
        (payload, "max_packet_size 131072"),
    ):
        assert f"mosquitto.conf: {line}" in finding.text


@pytest.mark.parametrize(
    ("limit", "fate", "largest"),
    [
        ("message_size_limit 50000", "is acknowledged and dropped", 32_768),
        ("max_packet_size 119000", "ends the connection", 100_000),
    ],
)
def test_a_server_that_does_not_take_120_kb_fails(
    mosquitto_with: Callable[[str], servers.Server], limit: str, fate: str, largest: int
) -> None:
    found = probes.payload(of(mosquitto_with(f"allow_anonymous true\n{limit}")))
    assert (found.verdict, found.figures) == (Verdict.FAIL, {"largest_bytes": largest})
    assert f"such a message {fate}; of {largest} bytes it passes" in found.text


def test_the_devices_own_doctor_finds_a_server_that_ends_the_connection_at_a_large_message(
    mosquitto_with: Callable[[str], servers.Server], tmp_path: Path
) -> None:
    server = mosquitto_with("allow_anonymous true\nmax_packet_size 119000")
    made = config.make(tmp_path / "device", "dev-1", "fleet-1", server.url, keys.public_text(keys.generate()))
    findings = {found.name: found for found in edge_doctor.examine(config.load(made.path))}
    assert findings["mqtt"].ok
    assert not findings["server"].ok
    assert "mosquitto.conf: max_packet_size 131072" in findings["server"].text


def test_a_server_that_retains_nothing_fails_and_the_probes_go_on(
    mosquitto_with: Callable[[str], servers.Server],
) -> None:
    server = mosquitto_with("allow_anonymous true\nretain_available false")
    findings = list(doctor.examine(of(server), slow=False))
    verdicts = not_ok(findings)
    assert {name for name, verdict in verdicts.items() if verdict == Verdict.FAIL} == {"retained", "retained will"}
    assert "mosquitto.conf: retain_available true" in by_name(findings)["retained"].text
    assert by_name(findings)["take-over"].verdict == Verdict.OK


@pytest.mark.slow
def test_amqtt_is_told_from_a_server_for_a_fleet(tmp_path: Path) -> None:
    """It lets both connections of one client id stay, and never misses a device that fell silent."""
    server = servers.start(tmp_path, kind="amqtt")
    try:
        target = of(server)
        take_over, keepalive, shared = probes.take_over(target), probes.keepalive(target), probes.shared(target)
    finally:
        server.stop()
    assert (take_over.verdict, keepalive.verdict) == (Verdict.FAIL, Verdict.FAIL)
    assert shared is not None
    assert shared.figures == {"delivered": 0}


@pytest.mark.slow
def test_mosquitto_notices_a_silent_device(mosquitto_server: servers.Server) -> None:
    found = probes.keepalive(of(mosquitto_server))
    assert found.verdict == Verdict.OK
    assert 1.5 * probes.KEEPALIVE_S - 1 < found.figures["noticed_s"] < 2.5 * probes.KEEPALIVE_S


def test_messages_that_come_twice_are_no_qos_1(mosquitto_with: Callable[[str], servers.Server]) -> None:
    """mosquitto delivers once for each of two filters that overlap, where it is told to."""
    access = Access(mosquitto_with("allow_anonymous true\nallow_duplicate_messages true").url)
    with RawMqtt(access, "reader") as reader, RawMqtt(access, "sender") as sender:
        reader.subscribe("x/+")
        assert probes._echo(sender, "x/1", reader, []) == ""
        reader.subscribe("x/#")
        assert probes._echo(sender, "x/1", reader, []).startswith("20 messages arrived as 0 0 1 1 2 2")


# -- logins and access lists ----------------------------------------------------------------------------------------


def test_with_the_deployed_files_a_coordinator_and_a_device_find_nothing_amiss(site: Site) -> None:
    cert, key = site.authority.issue("coordinator")
    device_cert, device_key = site.authority.issue("doctor")
    url = f"mqtts://127.0.0.1:{site.server.port}"
    coordinator = Access(url, ca_file=site.authority.file, cert_file=cert, key_file=key)
    device = coordinator._replace(cert_file=device_cert, key_file=device_key)
    findings = list(doctor.examine(doctor.target(coordinator, device, device_id="doctor"), slow=False))
    assert not_ok(findings) == {}
    assert "one connection" in by_name(findings)["identity"].text
    assert "its own topics alone" in by_name(findings)["access"].text
    assert "7 do not" in by_name(findings)["topics"].text


def test_an_identity_that_has_one_connection_needs_a_second_one_to_talk_to(site: Site) -> None:
    cert, key = site.authority.issue("coordinator")
    access = Access(f"mqtts://127.0.0.1:{site.server.port}", None, None, site.authority.file, cert, key)
    findings = list(doctor.examine(doctor.target(access), slow=False))
    assert [finding.name for finding in findings] == ["link", "identity"]
    assert findings[-1].verdict == Verdict.FAIL
    assert "--device-cert-file" in findings[-1].text


def test_a_running_coordinator_is_not_fought_for_its_place(site: Site) -> None:
    cert, key = site.authority.issue("coordinator")
    device_cert, device_key = site.authority.issue("doctor")
    access = Access(f"mqtts://127.0.0.1:{site.server.port}", None, None, site.authority.file, cert, key)
    running = site.connect("coordinator", topics.coordinator_filters("barn"))
    running.wait_until_up()
    target = doctor.target(access, access._replace(cert_file=device_cert, key_file=device_key), device_id="doctor")
    found = probes.identity(target)
    assert (found.verdict, "stop broker serve" in found.text) == (Verdict.FAIL, True)


def hashed(password: bytes) -> str:
    """As mosquitto keeps it, $7$: PBKDF2 with SHA-512, salt and key in base64."""
    salt = b"twelve bytes"
    key = hashlib.pbkdf2_hmac("sha512", password, salt, 101)
    return f"$7$101${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


HASHED = hashed(b"horse")
ACL = """\
user coordinator
topic read fl/v1/+/+/+/up/+
topic write fl/v1/+/+/+/dn/+
user doctor
{doctor}
"""
LOOSE = "topic readwrite fl/v1/#"
STRICT = "pattern write fl/v1/+/+/%u/up/+\npattern read fl/v1/+/+/%u/dn/+"


@pytest.fixture
def guarded(
    mosquitto: servers.Mosquitto, mosquitto_with: Callable[[str], servers.Server], tmp_path: Path
) -> Callable[[str], tuple[Target, servers.Server]]:
    """A server with passwords and an access list, and a coordinator and a device to play."""

    def start(rules: str) -> tuple[Target, servers.Server]:
        passwords, acl = tmp_path / "passwords", tmp_path / "acl"
        passwords.write_text("".join(f"{name}:{HASHED}\n" for name in ("coordinator", "doctor")))
        acl.write_text(ACL.format(doctor=rules))
        server = mosquitto_with(f"allow_anonymous false\npassword_file {passwords}\nacl_file {acl}")
        coordinator = Access(server.url, "coordinator", "horse")
        return doctor.target(coordinator, Access(server.url, "doctor", "horse"), device_id="doctor"), server

    return start


def test_an_access_list_that_keeps_devices_apart_is_found_good(
    guarded: Callable[[str], tuple[Target, servers.Server]],
) -> None:
    target, _ = guarded(STRICT)
    assert probes.qos_1(target).verdict == Verdict.OK
    found = probes.access(target)
    assert (found.verdict, "its own topics alone" in found.text) == (Verdict.OK, True)


def test_an_access_list_that_lets_devices_read_and_write_for_others_is_a_trap(
    guarded: Callable[[str], tuple[Target, servers.Server]],
) -> None:
    found = probes.access(guarded(LOOSE)[0])
    assert found.verdict == Verdict.WARN
    assert "a device may read what is sent to a device and write in the name of a device" in found.text


def test_an_identity_that_may_not_hear_itself_is_told_to_bring_a_second(
    guarded: Callable[[str], tuple[Target, servers.Server]],
) -> None:
    _, server = guarded(STRICT)
    findings = list(doctor.examine(doctor.target(Access(server.url, "coordinator", "horse")), slow=False))
    assert [finding.name for finding in findings] == ["link", "identity", "qos 1"]
    assert "acknowledged and not delivered" in findings[-1].text
    assert "--device" in findings[-1].text


def test_a_door_that_stands_open_beside_the_logins_is_a_trap(
    mosquitto_with: Callable[[str], servers.Server], tmp_path: Path
) -> None:
    (tmp_path / "passwords").write_text(f"coordinator:{HASHED}\n")
    server = mosquitto_with(f"allow_anonymous true\npassword_file {tmp_path / 'passwords'}")
    found = probes.access(doctor.target(Access(server.url, "coordinator", "horse")))
    assert found.verdict == Verdict.WARN
    assert "without any login one may read what is sent to a device and write in the name of a device" in found.text


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_line_for_each_probe_or_one_object(mosquitto_server: servers.Server) -> None:
    printed = ask("--mqtt", mosquitto_server.url)
    assert printed.exit_code == 0, printed.output
    assert "ok   retained: kept for a later subscriber, replaced, and cleared again\n" in printed.output
    assert "warn access: " in printed.output


def test_a_server_that_is_none_or_not_there_is_one_line_and_status_1() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = ask("--mqtt", f"mqtt://127.0.0.1:{probe.getsockname()[1]}", "--json")
    assert closed.exit_code == 1
    said = json.loads(closed.output)
    assert said["fit"] is False
    assert [(finding["name"], finding["verdict"]) for finding in said["findings"]] == [("link", "FAIL")]
    assert "Connection refused" in said["findings"][0]["text"]

    def http(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with scripted.scripted(http, http) as port:
        other = ask("--mqtt", f"mqtt://127.0.0.1:{port}")
    assert other.exit_code == 1
    assert other.output.startswith("FAIL link: ")
    assert other.output.count("\n") == 1


def test_wrong_usage_is_one_line_and_status_2(tmp_path: Path) -> None:
    for arguments, what in (
        (("--mqtt", "http://127.0.0.1"), "is no MQTT server: write mqtt://host:1883"),
        (("--mqtt", "mqtt://127.0.0.1", "--ca-file", tmp_path / "ca"), "without TLS, but certificates are given"),
        (("--mqtt", "mqtts://127.0.0.1", "--ca-file", tmp_path / "ca"), "cannot use the certificate files"),
        (("--mqtt", "mqtt://127.0.0.1", "--device", "Pi 7"), "device 'Pi 7' cannot be used"),
    ):
        said = ask(*arguments)
        assert (said.exit_code, what in said.output) == (2, True), said.output


def test_the_configuration_names_server_login_and_fleet(
    guarded: Callable[[str], tuple[Target, servers.Server]], tmp_path: Path
) -> None:
    _, server = guarded(STRICT)
    (tmp_path / "password").write_text("horse\n")
    (tmp_path / "broker.toml").write_text(
        '[fleet]\nid = "barn"\n[model]\nname = "toy"\n'
        f'[mqtt]\nurl = "{server.url}"\nusername = "coordinator"\npassword_file = "password"\n'
    )
    heard = Peer(
        server.url, "watcher", list(topics.coordinator_filters("barn")), username="coordinator", password="horse"
    )
    try:
        heard.wait_until_up()
        device = ("--device", "doctor", "--device-password-file", tmp_path / "password")
        said = ask("--config", tmp_path, *device, "--json")
    finally:
        heard.link.stop()
    assert [finding["name"] for finding in json.loads(said.output)["findings"] if finding["verdict"] == "FAIL"] == []
    assert said.exit_code == 0
    up = set()
    while not heard.events.empty():
        up.add(getattr(heard.events.get(), "topic", ""))
    assert topics.up("barn", "doctor", "telemetry") in up


# -- the connection that it probes with -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (b"\x20\x02\x00\x05", "refused the connection: not authorised"),
        (b"\x20\x02\x00\x63", "refused the connection: code 99"),
        (b"\x30\xff\xff\xff\x7f", "a packet of"),
        (b"\xff\xff\xff\xff\xff\xff", "a packet of"),
        (b"\x30\x80\x80\x80\x80\x01", "no MQTT packet"),
        (b"", "ended the connection"),
    ],
)
def test_a_server_that_refuses_or_speaks_nonsense_is_left(answer: bytes, what: str) -> None:
    def script(connection: socket.socket) -> None:
        scripted.read(connection)
        connection.sendall(answer)

    with scripted.scripted(script) as port, pytest.raises(LostError, match=what):
        RawMqtt(Access(f"mqtt://127.0.0.1:{port}"), "doctor")
