"""The MQTT server of the demo and the tests: it starts, it answers, and it never outlives us."""

from __future__ import annotations

import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker import mqtt_server as servers
from wire import link

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["mosquitto", "amqtt"])
def kind(request: pytest.FixtureRequest) -> servers.Kind:
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto")
    else:
        pytest.importorskip("amqtt")
    return request.param


@pytest.fixture
def server(kind: servers.Kind, tmp_path: Path) -> Iterator[servers.Server]:
    server = servers.start(tmp_path, kind=kind)
    yield server
    server.stop()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_running(pid)


def connected(url: str, client_id: str, filters: list[str]) -> tuple[link.Link, queue.SimpleQueue[link.LinkEvent]]:
    events: queue.SimpleQueue[link.LinkEvent] = queue.SimpleQueue()
    made = link.Link(url, client_id, filters=filters, will=None, post=events.put, jitter=random.Random(1))
    made.start()
    while not isinstance(events.get(timeout=10), link.LinkUp):
        pass
    return made, events


def test_it_answers_carries_messages_and_keeps_retained_ones(server: servers.Server, kind: servers.Kind) -> None:
    assert server.name == kind
    assert server.version[0].isdigit()
    assert server.url == f"mqtt://127.0.0.1:{server.port}"
    reader, read = connected(server.url, "reader", ["up/#"])
    writer, _ = connected(server.url, "writer", ["none"])
    writer.publish("up/a", bytes(120_000))
    assert read.get(timeout=5) == link.Arrived("up/a", bytes(120_000), False)
    writer.publish("up/b", b"kept", retain=True)
    assert read.get(timeout=5) == link.Arrived("up/b", b"kept", False)
    late, read_late = connected(server.url, "late", ["up/#"])
    assert read_late.get(timeout=5) == link.Arrived("up/b", b"kept", True)
    for each in (reader, writer, late):
        each.stop()


def test_killed_and_started_again_it_has_the_same_address(server: servers.Server) -> None:
    url, pid = server.url, server.pid
    server.kill()
    assert not is_running(pid)
    with pytest.raises(servers.MqttServerError, match="not running"):
        _ = server.pid
    server.restart()
    assert server.url == url
    assert server.pid != pid
    made, _ = connected(url, "x", ["x"])
    made.stop()


def test_stop_ends_it_and_may_come_twice(server: servers.Server) -> None:
    pid = server.pid
    server.stop()
    assert not is_running(pid)
    server.stop()


def test_it_dies_with_its_parent_even_by_sigkill(kind: servers.Kind, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from broker import mqtt_server as servers;"
        f"print(servers.start(Path(sys.argv[1]), kind={kind!r}).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone_within(pid, 3)


def test_it_listens_on_loopback_only(server: servers.Server) -> None:
    listening = [
        line.split()[1]
        for file in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{file}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{server.port:04X}")
    ]
    assert listening == [f"0100007F:{server.port:04X}"]


def test_a_taken_port_is_a_sentence_with_the_log(mosquitto: servers.Mosquitto, tmp_path: Path) -> None:
    first = servers.start(tmp_path / "first", kind="mosquitto")
    try:
        with pytest.raises(servers.MqttServerError, match="Address already in use"):
            servers.start(tmp_path / "second", kind="mosquitto", port=first.port)
    finally:
        first.stop()


def test_more_configuration_reaches_mosquitto(mosquitto: servers.Mosquitto, tmp_path: Path) -> None:
    with pytest.raises(servers.MqttServerError, match="no_such_option"):
        servers.start(tmp_path, kind="mosquitto", config_extra="no_such_option 1")


def test_without_mosquitto_amqtt_steps_in_unless_mosquitto_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "find_mosquitto", lambda: None)
    for demand in ({"kind": "mosquitto"}, {"config_extra": "persistence true"}):
        with pytest.raises(servers.MqttServerError, match="needs mosquitto: this machine has only amqtt"):
            servers.start(tmp_path, **demand)  # type: ignore[arg-type]
    pytest.importorskip("amqtt")
    server = servers.start(tmp_path)
    assert server.name == "amqtt"
    server.stop()


@pytest.mark.real
def test_two_programs_may_unpack_mosquitto_at_once(tmp_path: Path) -> None:
    if shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists():
        pytest.skip("mosquitto is installed here: nothing to unpack")
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("needs Debian's apt-get and dpkg")
    program = "from broker import mqtt_server as servers; print(servers.find_mosquitto())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        for _ in range(2)
    ]
    answers = {process.communicate(timeout=150)[0] for process in running}
    if answers == {"None\n"}:
        pytest.skip("no package archive can be reached")
    assert len(answers) == 1
    assert str(tmp_path / "hedgerow/mosquitto") in answers.pop()
    assert [path.name for path in (tmp_path / "hedgerow").iterdir()] == ["mosquitto"]


def test_a_broken_cache_is_unpacked_anew_or_given_up_but_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "hedgerow/mosquitto/usr/sbin/mosquitto"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))  # neither apt-get nor mosquitto
    monkeypatch.setattr(shutil, "which", lambda *_args, **_keywords: None)
    assert servers.find_mosquitto() is None


@pytest.mark.parametrize(
    ("soname", "package"),
    [
        ("libdlt.so.2", "libdlt2"),
        ("libwrap.so.0", "libwrap0"),
        ("libwebsockets.so.17", "libwebsockets17"),
        ("libgssapi_krb5.so.2", "libgssapi-krb5-2"),
        ("libssl.so.3", "libssl3t64"),
    ],
)
def test_the_package_of_a_library_is_guessed_by_debians_rule(soname: str, package: str) -> None:
    assert package in servers._package_names(soname)
