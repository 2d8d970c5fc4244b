"""Files by HTTP, over real sockets: whole, in parts, to many at once, and nothing else."""

from __future__ import annotations

import datetime as dt
import hashlib
import http.client
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker import file_server
from broker.config import ConfigError, Http, parse
from broker.file_server import FileServer, _Server, range_of
from broker.store import Store
from broker.wiring import file_server as wired
from tests.broker.fleet import first_manifest
from tests.broker.test_config import LEAST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker.database import Place

CONTENT = bytes(range(256)) * 300  # several pieces
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def path(place: Place) -> Place:
    manifest, blobs = first_manifest()
    with Store(place) as store:
        store.put_first_version(manifest, {**blobs, bytes.fromhex(DIGEST): CONTENT}, b"")
    return place


@pytest.fixture
def server(path: Place) -> Iterator[FileServer]:
    made = FileServer(path, "127.0.0.1", 0)
    yield made
    made.stop()


def ask(server: FileServer, name: str = f"/{DIGEST}", method: str = "GET", **headers: str):
    """One request on a connection of its own: the answer and its body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, name, headers={key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_a_file_is_there_under_its_digest_whole(server: FileServer) -> None:
    answer, body = ask(server)
    assert (answer.status, body) == (200, CONTENT)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["ETag"] == f'"{DIGEST}"'
    assert "Python" not in answer.headers["Server"]


def test_head_says_how_long_it_is_and_sends_nothing(server: FileServer) -> None:
    answer, body = ask(server, method="HEAD")
    assert (answer.status, answer.headers["Content-Length"], body) == (200, str(len(CONTENT)), b"")


@pytest.mark.parametrize(
    ("wanted", "start", "behind"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-65535", 100, 65_536),
        ("bytes=76000-", 76_000, 76_800),
        ("bytes=76000-99999999", 76_000, 76_800),
        ("bytes=-5", 76_795, 76_800),
        ("bytes=0-", 0, 76_800),
    ],
)
def test_a_part_is_sent_as_a_part(server: FileServer, wanted: str, start: int, behind: int) -> None:
    answer, body = ask(server, Range=wanted)
    assert (answer.status, body) == (206, CONTENT[start:behind])
    assert answer.headers["Content-Range"] == f"bytes {start}-{behind - 1}/76800"


@pytest.mark.parametrize("wanted", ["bytes=76800-", "bytes=99999999999999999-", "bytes=-0"])
def test_a_part_that_is_not_there_is_416(server: FileServer, wanted: str) -> None:
    answer, body = ask(server, Range=wanted)
    assert (answer.status, answer.headers["Content-Range"], body) == (416, "bytes */76800", b"")


@pytest.mark.parametrize("wanted", ["bytes=0-1,4-5", "lines=1-2", "bytes=5-2", "bytes=-", "bytes=a-b", "bytes 0-1"])
def test_what_is_no_single_range_is_ignored(server: FileServer, wanted: str) -> None:
    answer, body = ask(server, Range=wanted)
    assert (answer.status, body) == (200, CONTENT)


def test_a_range_of_another_content_is_ignored(server: FileServer) -> None:
    assert ask(server, Range="bytes=0-1", If_Range='"another"')[0].status == 200
    assert ask(server, Range="bytes=0-1", If_Range=f'"{DIGEST}"')[0].status == 206


@pytest.mark.parametrize(
    "name", ["/", "", "/broker.db", "/../broker.db", "/" + "0" * 64, f"/{DIGEST[:-1]}", f"/{DIGEST}/"]
)
def test_nothing_else_is_there(server: FileServer, name: str) -> None:
    answer, body = ask(server, name)
    assert (answer.status, body) == (404, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_done_but_read(server: FileServer, method: str) -> None:
    assert ask(server, method=method)[0].status == 501


def test_a_connection_may_ask_again_and_again(server: FileServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    parts = []
    for start in range(0, len(CONTENT), 10_000):
        connection.request("GET", f"/{DIGEST}", headers={"Range": f"bytes={start}-{start + 9_999}"})
        parts.append(connection.getresponse().read())
    assert b"".join(parts) == CONTENT
    connection.close()


def test_many_are_served_at_once_while_the_store_is_written(server: FileServer, path: Place) -> None:
    bodies: list[bytes] = []
    threads = [threading.Thread(target=lambda: bodies.append(ask(server)[1])) for _ in range(16)]
    with Store(path) as store:
        for number, thread in enumerate(threads):
            thread.start()
            store.add_device(f"device-{number}", "key")
    for thread in threads:
        thread.join()
    assert bodies == [CONTENT] * 16


def test_who_comes_when_all_places_are_taken_is_turned_away_and_later_served(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_server, "CONNECTIONS_MAX", 3)
    server = FileServer(path, "127.0.0.1", 0)
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(3)]
    for connection in idle:  # each is in its thread once it has been answered
        connection.sendall(f"HEAD /{DIGEST} HTTP/1.1\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(server)
    for connection in idle:
        connection.close()
    assert eventually(lambda: ask(server)[1]) == CONTENT
    server.stop()


def eventually(call, seconds: float = 10.0):
    for _ in range(int(seconds / 0.05)):
        try:
            return call()
        except (http.client.HTTPException, OSError):
            threading.Event().wait(0.05)
    return call()


def test_who_says_nothing_loses_its_place(path: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_server, "IDLE_S", 0.2)
    monkeypatch.setattr(file_server._Handler, "timeout", 0.2)
    server = FileServer(path, "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as silent:
        silent.sendall(b"GET /")
        assert silent.recv(100) == b""
    server.stop()


def trickle(connection: socket.socket, piece: bytes, seconds: float) -> float:
    """Send `piece` again and again until the peer ends the connection; how long that took."""
    started = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - started < seconds:
        try:
            connection.sendall(piece)
            if connection.recv(4096) == b"":
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    return time.monotonic() - started


@pytest.mark.parametrize("piece", [b"X", f"HEAD /{DIGEST} HTTP/1.1\r\n\r\n".encode()], ids=["trickles", "asks on"])
@pytest.mark.parametrize("tls", [False, True])
def test_who_never_ends_loses_its_place_however_lively(
    path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, piece: bytes, tls: bool
) -> None:
    monkeypatch.setattr(file_server, "CONNECTION_S", 1.0)
    monkeypatch.setattr(file_server, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(_Server, "is_late", lambda *_: False)  # it does not listen anyway
    server = FileServer(path, "127.0.0.1", 0, *(certificate if tls else ()))
    peer = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        peer = context.wrap_socket(peer)
    with peer:
        assert 0.5 < trickle(peer, piece, 10.0) < 5.0
    if not tls:
        assert eventually(lambda: ask(server)[1]) == CONTENT
    server.stop()


def test_a_connection_that_is_old_is_ended_between_two_answers_and_nothing_is_lost(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_server, "CONNECTION_S", 4.0)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    said = []
    for start in range(0, len(CONTENT), 20_000):
        time.sleep(2.1 if start == 40_000 else 0.0)
        connection.request("GET", f"/{DIGEST}", headers={"Range": f"bytes={start}-{start + 19_999}"})
        answer = connection.getresponse()
        assert answer.read() == CONTENT[start : start + 20_000]
        said.append(answer.headers["Connection"])
    assert said == [None, None, "close", None]  # and http.client made a new one
    connection.close()


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x00\xa5", b"GET\r\n\r\n", b"\0" * 70_000, b"GET / HTTP/9.9\r\n\r\n"])
def test_junk_ends_its_own_connection_alone(server: FileServer, junk: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as peer:
        peer.sendall(junk)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(4096):
            pass
    assert ask(server)[0].status == 200
    assert capfd.readouterr() == ("", "")


def test_a_file_that_goes_while_it_is_sent_is_cut_short_and_not_padded(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "blob_part", lambda *_: b"")
    with pytest.raises(http.client.IncompleteRead):
        ask(server)


def test_a_stopped_server_is_gone(path: Place) -> None:
    server = FileServer(path, "127.0.0.1", 0)
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(server)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = tmp_path / "c.pem", tmp_path / "k.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return cert_file, key_file


def test_with_a_certificate_it_speaks_tls_and_a_silent_peer_holds_up_nobody(
    path: Path, certificate: tuple[Path, Path]
) -> None:
    server = FileServer(path, "127.0.0.1", 0, *certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate[0])
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", server.port)):  # never begins its handshake
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=context)
        connection.request("GET", f"/{DIGEST}", headers={"Range": "bytes=70000-"})
        assert connection.getresponse().read() == CONTENT[70_000:]
        connection.close()
    with pytest.raises((http.client.BadStatusLine, ConnectionError)):
        ask(server)  # without TLS
    server.stop()


def test_what_the_configuration_says_is_served_and_what_cannot_be_is_a_sentence(path: Place, tmp_path: Path) -> None:
    def config(**http_: object):
        said = "\n".join(f"{key} = {value!r}" for key, value in {"url": "http://127.0.0.1:1", **http_}.items())
        return parse(f"{LEAST}[http]\n{said}\n", tmp_path)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigError, match=r"\[http\]: .*in use"):
            wired(config(port=taken.getsockname()[1]), path)
        free = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=r"\[http\]: "):
        wired(config(port=free, cert_file="none.pem", key_file="none.pem"), path)
    server = wired(config(port=free), path)
    assert ask(server)[0].status == 200
    server.stop()
    assert Http().port == 0


@pytest.mark.parametrize(
    ("header", "part"), [("bytes=0-9", (0, 10)), ("bytes=9-", (9, 10)), ("bytes=-99", (0, 10)), (" bytes=1-1 ", (1, 2))]
)
def test_ranges_are_read_as_the_standard_says(header: str, part: tuple[int, int]) -> None:
    assert range_of(header, 10) == part
