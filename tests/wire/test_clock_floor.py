"""TLS after a boot in 1970: the newest certificate at hand tells the time, and everything else is checked as ever.

Python's clock can be set by a test, OpenSSL's cannot. So most of these move the certificates: what begins in ten years
is, to OpenSSL, what a device that woke up in the past sees. The last one gives a whole process the time of 1970.
"""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker import authority, certificates
from tests import clock_1970
from wire import clock_floor
from wire.clock_floor import Tls, with_floor
from wire.dial import Dial
from wire.server_url import Server, tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DAY = 86_400.0
NOW = time.time()
LATER = NOW + 3650 * DAY


class Site:
    """An authority that began at `start`, a server's certificate, and a device's, in files."""

    def __init__(self, directory: Path, start: float, *, server_lasts_s: float, device_start: float) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        ours = authority.found("farm", certificates.new_key(), start)
        self.ca = self.write("ca", certificates.pem(ours.chain))
        key = certificates.new_key()
        made = authority.issue(ours, "server", key.public_key(), start, lasts_s=server_lasts_s, addresses=["127.0.0.1"])
        self.server = self.write("server", certificates.pem([made]) + certificates.key_pem(key))
        key = certificates.new_key()
        made = authority.issue(ours, "pi-07", key.public_key(), device_start, lasts_s=90 * DAY)
        self.device, self.key = self.write("pi", certificates.pem([made])), self.write("key", certificates.key_pem(key))

    def write(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path

    def tls(self) -> Tls:
        files = (self.ca, self.device, self.key)
        return with_floor(tls_context(*files), *files)


@pytest.fixture
def shake_hands() -> Iterator[Callable[[Path, Tls], None]]:
    """Greet a TLS server with the certificate in a file."""
    listener = socket.create_server(("127.0.0.1", 0))

    def shake(server: Path, tls: Tls, host: str = "127.0.0.1") -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server)

        def answer() -> None:
            connection = listener.accept()[0]
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        dial = Dial(Server("127.0.0.1", listener.getsockname()[1], True), tls, 5.0, time.monotonic())
        dial._host = host
        try:
            while not dial.is_open:
                dial.step(time.monotonic())
                time.sleep(0.001)
        finally:
            dial.close()
            thread.join()

    yield shake
    listener.close()


def test_a_clock_that_is_right_is_believed_and_nothing_is_forgiven(tmp_path: Path, shake_hands) -> None:
    site = Site(tmp_path, NOW - 100 * DAY, server_lasts_s=200 * DAY, device_start=NOW - DAY)
    tls = site.tls()
    assert tls.floor_unix_s == 0
    assert not tls.context.verify_flags & clock_floor._NO_CHECK_TIME
    shake_hands(site.server, tls)
    over = Site(tmp_path, NOW - 100 * DAY, server_lasts_s=50 * DAY, device_start=NOW - DAY)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(over.server, over.tls())


def test_a_clock_before_the_newest_certificate_at_hand_is_wrong_and_that_one_tells_the_time(
    tmp_path: Path, shake_hands
) -> None:
    site = Site(tmp_path, LATER, server_lasts_s=200 * DAY, device_start=LATER + 100 * DAY)
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        shake_hands(site.server, Tls(tls_context(site.ca, site.device, site.key)))
    tls = site.tls()
    assert tls.floor_unix_s == pytest.approx(LATER + 100 * DAY - authority.EARLY_S, abs=2)
    shake_hands(site.server, tls)


def test_a_server_whose_certificate_had_ended_by_then_is_refused(tmp_path: Path, shake_hands) -> None:
    site = Site(tmp_path, LATER, server_lasts_s=99 * DAY, device_start=LATER + 100 * DAY)
    with pytest.raises(OSError, match="certificate ended before 20"):
        shake_hands(site.server, site.tls())


def test_what_is_forgiven_is_the_time_and_nothing_else(tmp_path: Path, shake_hands) -> None:
    site = Site(tmp_path / "ours", LATER, server_lasts_s=200 * DAY, device_start=LATER)
    other = Site(tmp_path / "others", LATER, server_lasts_s=200 * DAY, device_start=LATER)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|unable to get|signature"):
        shake_hands(other.server, site.tls())
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(site.server, site.tls(), "127.0.0.2")


@pytest.mark.parametrize("year", [1951, 1999, 2026, 2049, 2050, 2120])
def test_when_a_certificate_begins_is_read_as_the_library_reads_it(tmp_path: Path, year: int) -> None:
    start = dt.datetime(year, 2, 28, 23, 59, 58, tzinfo=dt.UTC).timestamp()
    file = tmp_path / "ca"
    file.write_bytes(
        b"Bag Attributes\n" + certificates.pem(authority.found("farm", certificates.new_key(), start).chain)
    )
    assert clock_floor._newest_start(file) == start


HEAD, END = b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----"


@pytest.mark.parametrize("content", [b"", HEAD + b"MAA=" + END, HEAD + b"=" + END, HEAD + b"MIIB", b"\xff" * 99])
def test_what_cannot_be_read_tells_no_time(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "ca"
    file.write_bytes(content)
    assert clock_floor._newest_start(file) == clock_floor._newest_start(tmp_path / "none") == 0


def test_an_agent_pays_no_megabytes_for_reading_a_date(tmp_path: Path) -> None:
    site = Site(tmp_path, LATER, server_lasts_s=200 * DAY, device_start=LATER)
    code = f"""
import sys, edge_agent.service
from pathlib import Path
from wire.link_terms import server_of
tls = server_of("mqtts://barn", *map(Path, {[str(site.ca), str(site.device), str(site.key)]}))[1]()
print(tls.floor_unix_s > 0, "cryptography.x509" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


_CHILD = """
import sys, time, wire.clock_floor as floor
from pathlib import Path
from tests.wire.test_clock_floor import Server, Dial, Tls, tls_context
assert 300 <= time.time() < 301
files = [Path(name) for name in sys.argv[2:5]]
context = tls_context(*files)
dial = Dial(Server("127.0.0.1", int(sys.argv[1]), True), eval(sys.argv[5]), 5.0, time.monotonic())
while not dial.is_open:
    dial.step(time.monotonic())
"""


def test_a_process_in_1970_comes_through_tls_by_the_floor_and_not_without(tmp_path: Path) -> None:
    environment = clock_1970.environment(tmp_path)
    site = Site(tmp_path, NOW - DAY, server_lasts_s=200 * DAY, device_start=NOW)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(site.server)

    def in_1970(tls: str) -> subprocess.CompletedProcess[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            arguments = [str(listener.getsockname()[1]), site.ca, site.device, site.key, tls]
            child = subprocess.Popen(
                [sys.executable, "-c", _CHILD, *map(str, arguments)],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            connection = listener.accept()[0]
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()
            return subprocess.CompletedProcess(child.args, child.wait(20), None, child.communicate()[1])

    assert "not yet valid" in in_1970("Tls(context)").stderr
    done = in_1970("floor.with_floor(context, *files)")
    assert done.returncode == 0, done.stderr
