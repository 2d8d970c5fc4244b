"""What of the link needs no network: its URL, its settings, its pauses and its bounded queue."""

from __future__ import annotations

import datetime as dt
import queue
import random
import select
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wire import limits
from wire.link import Link, LinkDown, LinkEvent, Server, parse_url, pause_ms
from wire.waiting import Bell, Outgoing, Waiting

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("mqtt://barn", Server("barn", 1883, False)),
        ("mqtt://barn/", Server("barn", 1883, False)),
        ("mqtt://10.0.0.7:2883", Server("10.0.0.7", 2883, False)),
        ("mqtts://mqtt.example.org", Server("mqtt.example.org", 8883, True)),
        ("mqtts://mqtt.example.org:443", Server("mqtt.example.org", 443, True)),
        ("mqtt://[::1]:1884", Server("::1", 1884, False)),
    ],
)
def test_a_url_names_a_server(url: str, server: Server) -> None:
    assert parse_url(url) == server


@pytest.mark.parametrize(
    "url",
    [
        "",
        "barn",
        "barn:1883",
        "http://barn",
        "MQTT://barn",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://barn:0",
        "mqtt://barn:65536",
        "mqtt://barn:x",
        "mqtt://user:secret@barn",
        "mqtt://barn/topic",
        "mqtt://barn\n",
        "mqtt://barn:1883 ",
    ],
)
def test_any_other_text_is_refused_in_one_line_that_shows_the_form(url: str) -> None:
    with pytest.raises(ValueError, match="write mqtt://host:1883") as caught:
        parse_url(url)
    assert "\n" not in str(caught.value)


def make(url: str = "mqtt://127.0.0.1", **settings: object) -> Link:
    arguments: dict[str, object] = {"filters": ["a"], "will": None, "post": print, "jitter": random.Random(1)}
    return Link(url, "test", **{**arguments, **settings})  # type: ignore[arg-type]


def test_settings_that_cannot_work_are_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mqtt://host"):
        make("tcp://barn")
    with pytest.raises(ValueError, match="1 to 8 filters"):
        make(filters=[])
    with pytest.raises(ValueError, match="1 to 8 filters"):
        make(filters=["x"] * 9)
    with pytest.raises(ValueError, match="without TLS"):
        make(ca_file=tmp_path / "ca.pem")
    with pytest.raises(ValueError, match=r"ca\.pem"):
        make("mqtts://barn", ca_file=tmp_path / "ca.pem")
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(ValueError, match=r"junk\.pem"):
        make("mqtts://barn", ca_file=tmp_path / "junk.pem")


def certificate_of_an_authority() -> bytes:
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
    unsigned = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    unsigned = unsigned.not_valid_before(now).not_valid_after(now + dt.timedelta(hours=1))
    return unsigned.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_certificate_that_goes_away_later_is_a_reason_and_not_the_end_of_the_thread(tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(certificate_of_an_authority())
    events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    link = make("mqtts://127.0.0.1:9", ca_file=ca_file, post=events.put)
    ca_file.unlink()
    link.start()
    down = events.get(timeout=5)
    assert isinstance(down, LinkDown)
    assert "ca.pem" in down.reason
    assert link.is_alive()
    link.stop()


def test_pauses_double_are_spread_fully_and_end_at_the_ceiling() -> None:
    jitter = random.Random(3)
    for failures in range(40):
        ceiling = min(limits.RECONNECT_MS_MAX, limits.RECONNECT_MS_MIN * 2**failures)
        drawn = [pause_ms(jitter, failures, refused=False) for _ in range(300)]
        assert 0 <= min(drawn) < ceiling * 0.1
        assert ceiling * 0.9 < max(drawn) <= ceiling


def test_a_refused_login_waits_a_minute_at_least() -> None:
    jitter = random.Random(3)
    drawn = [pause_ms(jitter, 0, refused=True) for _ in range(300)]
    assert min(drawn) >= 60_000
    assert max(drawn) <= limits.RECONNECT_MS_MAX


def test_an_oversized_payload_is_refused_and_the_largest_is_not() -> None:
    link = make()
    with pytest.raises(ValueError, match="fit into one message"):
        link.publish("a", bytes(limits.PAYLOAD_BYTES_MAX + 1))
    link.publish("a", bytes(limits.PAYLOAD_BYTES_MAX))
    assert link.dropped == 1  # not connected
    link.stop()


def outgoing(size: int) -> Outgoing:
    return Outgoing("t", bytes(size), False)


def test_a_closed_queue_takes_nothing() -> None:
    waiting = Waiting(10, 100)
    waiting.put(outgoing(1))
    assert (waiting.take(), waiting.dropped) == (None, 1)


def test_over_the_count_or_the_bytes_the_newest_is_dropped() -> None:
    waiting = Waiting(3, 100)
    waiting.open()
    for size in (40, 50, 20, 10, 1):
        waiting.put(outgoing(size))
    assert waiting.dropped == 2  # 20: too many bytes; 1: too many messages
    taken = [waiting.take() for _ in range(4)]
    assert [None if one is None else len(one.payload) for one in taken] == [40, 50, 10, None]
    waiting.put(outgoing(100))  # all of the room is free again
    assert waiting.dropped == 2


def test_closing_forgets_and_counts_what_waited() -> None:
    waiting = Waiting(10, 100)
    waiting.open()
    waiting.put(outgoing(60))
    waiting.close()
    assert waiting.dropped == 1
    waiting.open()
    assert waiting.take() is None
    waiting.put(outgoing(100))
    assert not waiting.is_empty()


def test_a_ring_while_the_bell_is_silenced_is_not_the_last_one_heard() -> None:
    class Meddling:
        """Another thread rings just before each read."""

        def recv(self, count: int) -> bytes:
            bell.ring()
            return sock.recv(count)

    bell = Bell()
    sock = bell.sock
    bell.ring()
    bell.sock = Meddling()  # type: ignore[assignment]
    bell.silence()
    bell.sock = sock
    bell.ring()
    assert select.select([sock], [], [], 1)[0] == [sock]
    bell.release()
