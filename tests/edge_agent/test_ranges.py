"""Fetching by HTTP from a small real server: ranges, a server without ranges, and all that a server can do wrong."""

from __future__ import annotations

import datetime as dt
import ipaddress
import queue
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_agent import ranges
from edge_agent.effects import Fetched, FetchFailed, FetchRanges
from wire import chunks
from wire.messages import Range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DATA = bytes(range(256)) * 40
FILE = chunks.split("model.tflite", DATA, 1024)  # ten chunks
SMALL = chunks.split("model.tflite", DATA[:5000], 1024)  # five


class Files(BaseHTTPRequestHandler):
    """Serves DATA under its digest; `answer` may be replaced."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[str]] = []
    answer: ClassVar[Callable[[Files, int, int], None]]

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        type(self).seen.append(f"{self.path} {wanted}")
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        type(self).answer(self, first, last)

    def ranged(self, first: int, last: int) -> None:
        self.say(206, DATA[first : last + 1])

    def say(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Files.seen, Files.answer = [], Files.ranged
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.handle_error = lambda *_: None  # a peer that gave up is what is tested
    yield server
    server.shutdown()
    server.server_close()


def url_of(server: ThreadingHTTPServer, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.server_address[1]}/barn"


class Asked:
    """A fetcher, and what it posts."""

    def __init__(self, ca_file: Path | None = None) -> None:
        self.posted: queue.SimpleQueue = queue.SimpleQueue()
        self.byte_count = 0
        self.fetcher = ranges.Fetcher(self.posted.put, self.count, ca_file)

    def count(self, byte_count: int) -> None:
        self.byte_count += byte_count

    def fetch(self, url: str, *spans: Range, file=FILE) -> None:
        self.fetcher.fetch(FetchRanges(url, file, spans))

    def next(self) -> Fetched | FetchFailed:
        return self.posted.get(timeout=20)

    def chunks(self, count: int, file=FILE) -> list[int]:
        """The indexes of the next so many chunks, each with its true content."""
        came = [self.next() for _ in range(count)]
        for fetched in came:
            assert isinstance(fetched, Fetched), fetched
            assert fetched.data == DATA[: file.size_bytes][fetched.index * 1024 :][:1024]
        return [fetched.index for fetched in came]

    def why(self) -> str:
        failed = self.next()
        assert isinstance(failed, FetchFailed), failed
        assert failed.digest == FILE.digest
        assert self.posted.empty()
        return failed.reason


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_the_chunks_that_are_asked_for_come_one_range_each_in_order(server, asked):
    asked.fetch(url_of(server) + "/", Range(0, 2), Range(9, 1))
    assert asked.chunks(3) == [0, 1, 9]
    path = f"/barn/{FILE.digest.hex()}"
    assert Files.seen == [f"{path} bytes=0-1023", f"{path} bytes=1024-2047", f"{path} bytes=9216-10239"]
    assert asked.byte_count == 3 * 1024


def test_a_server_that_knows_no_ranges_gives_a_small_file_whole(server, asked):
    Files.answer = lambda files, *_: files.say(200, DATA[:5000])
    asked.fetch(url_of(server), Range(1, 1), Range(4, 1), file=SMALL)
    assert asked.chunks(5, SMALL) == [0, 1, 2, 3, 4]
    assert len(Files.seen) == 1


WRONG = {
    "a whole file that is large": (lambda files, *_: files.say(200, DATA), "200"),
    "nothing of that name": (lambda files, *_: files.say(404, b""), "404"),
    "another place": (lambda files, *_: files.say(302, b"", Location="http://127.0.0.1:1/"), "302"),
    "too busy": (lambda files, *_: files.say(503, b"later"), "503"),
    "a byte too few": (lambda files, *_: files.say(206, DATA[:1023]), "1023 bytes where 1024"),
    "a byte too many": (lambda files, *_: files.say(206, DATA[:1025]), "1025 bytes where 1024"),
    "a terabyte": (lambda files, *_: files.say(206, DATA, length=1 << 40), "1099511627776 bytes where 1024"),
    "the bytes of another range": (lambda files, *_: files.say(206, DATA[1:1025]), "not what the manifest says"),
    "an end in the middle": (lambda files, *_: hang_up(files, 700), "only 700 of 1024"),
    "an end before the head": (lambda files, *_: files.connection.shutdown(socket.SHUT_RDWR), ""),
}


def hang_up(files: Files, count: int) -> None:
    files.say(206, DATA[:count], length=1024)
    files.wfile.flush()
    files.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("name", sorted(WRONG))
def test_whatever_a_server_does_wrong_is_one_failure_with_its_reason(server, asked, name):
    Files.answer, why = WRONG[name]
    asked.fetch(url_of(server), Range(0, 3))
    assert why in asked.why()
    assert len(Files.seen) == 1


def test_no_length_is_no_answer(server, asked):
    def chunked(files: Files, *_span: int) -> None:
        files.send_response(206)
        files.send_header("Transfer-Encoding", "chunked")
        files.end_headers()
        files.wfile.write(b"400\r\n" + DATA[:1024] + b"\r\n0\r\n\r\n")

    Files.answer = chunked
    asked.fetch(url_of(server), Range(0, 1))
    assert "None bytes where 1024" in asked.why()


def test_what_is_no_web_server_or_not_there_is_a_failure(asked):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        asked.fetch(f"http://127.0.0.1:{port}", Range(0, 1))
        connection, _ = mute.accept()
        connection.sendall(b"SSH-2.0-something\r\n")
        connection.close()
        assert asked.why()
    for url in (f"http://127.0.0.1:{port}", "http://127.0.0.1:99999", "http://", "https://no such host"):
        asked.fetch(url, Range(0, 1))
        assert asked.why()


def test_a_silent_server_and_one_that_trickles_are_given_up(server, asked, monkeypatch):
    monkeypatch.setattr(ranges, "SILENCE_S", 0.3)
    monkeypatch.setattr(ranges, "CHUNK_S", 0.5)
    end = threading.Event()
    Files.answer = lambda *_: end.wait(20)
    asked.fetch(url_of(server), Range(0, 1))
    assert "TimeoutError" in asked.why()

    def trickle(files: Files, *_span: int) -> None:
        files.say(206, b"", length=1024)
        for byte in DATA[:1024]:
            if end.wait(0.05):
                return
            files.wfile.write(bytes([byte]))

    Files.answer = trickle
    asked.fetch(url_of(server), Range(0, 1))
    assert "of 1024 bytes came" in asked.why()
    end.set()


def test_what_is_asked_for_next_takes_the_place_of_what_was_asked_before(server, asked):
    go = threading.Event()

    def waiting(files: Files, first: int, last: int) -> None:
        if first == 0:
            go.wait(20)
        files.ranged(first, last)

    Files.answer = waiting
    asked.fetch(url_of(server), Range(0, 3))
    asked.fetch(url_of(server), Range(5, 1))
    assert asked.chunks(1) == [5]
    go.set()
    asked.fetch(url_of(server), Range(6, 1))
    assert asked.chunks(1) == [6]
    assert not any(f"bytes={1024}-" in line for line in Files.seen)


def test_nothing_is_posted_after_the_end(server, asked):
    go = threading.Event()

    def waiting(files: Files, first: int, last: int) -> None:
        go.wait(20)
        files.ranged(first, last)

    Files.answer = waiting
    asked.fetch(url_of(server), Range(0, 3))
    asked.fetcher.stop()
    go.set()
    with pytest.raises(queue.Empty):
        asked.posted.get(timeout=0.3)


# TLS


def certificate(directory: Path, address: str) -> Path:
    """A certificate for `address` that vouches for itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "files")])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{address}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(built.public_bytes(serialization.Encoding.PEM) + private)
    return path


def over_tls(server: ThreadingHTTPServer, certificate_file: Path) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return url_of(server, "https")


def test_https_is_believed_by_the_authority_of_the_mqtt_server(server, tmp_path):
    file = certificate(tmp_path, "127.0.0.1")
    asked = Asked(file)
    asked.fetch(over_tls(server, file), Range(2, 2))
    assert asked.chunks(2) == [2, 3]


def test_https_of_a_stranger_or_of_another_name_is_a_failure(server, tmp_path):
    file = certificate(tmp_path, "127.0.0.2")
    url = over_tls(server, file)
    for ca_file in (None, file, tmp_path / "missing"):
        asked = Asked(ca_file)
        asked.fetch(url, Range(0, 1))
        assert asked.why()
    assert Files.seen == []


def test_plain_http_where_https_is_named_is_a_failure(server, asked):
    asked.fetch(url_of(server, "https"), Range(0, 1))
    assert "SSL" in asked.why()
