"""Model files by HTTP, for devices whose link carries large messages badly: GET /{SHA-256 in hex}, whole or a range.

A file's name is its digest, and every device checks the digests that the signed manifest names, so nothing here need
be believed and nothing can be changed under its name. Whoever knows the digest may read the file. There is no list of
them, and nothing else is served. Any other server that has the files under these names does as well.

It reads the store through connections of its own, in threads of its own, and the coordinator does not wait for it. At
most CONNECTIONS_MAX devices are served at a time; who comes then is turned away and tries again, or asks over MQTT. No
connection keeps its place for longer than CONNECTION_S, however lively it is: a well-meaning peer hears in time that it
had better make a new one.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final

from broker.database import StoreError
from broker.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from broker.database import Place

CONNECTIONS_MAX: Final = 32
IDLE_S: Final = 30.0  # for a peer that sends nothing, or does not take a piece in that time
CONNECTION_S: Final = 600.0  # and then it is cut; from half of it on an answer says that it is the last
PIECE_BYTES: Final = 16 * 1024  # read at a time, so that memory is bounded and no snapshot of the store is held long
_NAME: Final = re.compile(r"/([0-9a-f]{64})")
_RANGE: Final = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")


class FileServer:
    """Serves the model files of the store at `place` from the moment it is made until `stop`.

    `port` 0 is any free one; with a certificate it speaks TLS 1.2 or newer. Raises OSError where the address or the
    certificate cannot be used.
    """

    def __init__(
        self, place: Place, bind: str, port: int, cert_file: Path | None = None, key_file: Path | None = None
    ) -> None:
        context = None
        if cert_file is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(cert_file, key_file)
        self._server = _Server(place, (bind, port), context)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="file-server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections, and let the process end without those that are there."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a slow device must not keep the coordinator from ending
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, place: Place, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        self.place = place
        self._context = context
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._since: dict[socket.socket, float] = {}  # every connection that is served, and since when
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would ask the resolver for our name, which may take long

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, peer = super().get_request()
        connection.settimeout(IDLE_S)
        if self._context is not None:  # the handshake is done by the thread of the connection, at its first read
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, peer

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            self._since[request] = time.monotonic()
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._since[request]
            self._free.release()

    def service_actions(self) -> None:
        """Cut what has had its time: called twice a second. Its thread sees an end, whatever it waits for."""
        for connection, since in list(self._since.items()):
            if time.monotonic() - since > CONNECTION_S:
                with contextlib.suppress(OSError):  # it ended by itself; and TLS is not asked, which is the thread's
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def is_late(self, connection: socket.socket) -> bool:
        """Is it better to begin a new connection for the next request?"""
        return time.monotonic() - self._since[connection] > CONNECTION_S / 2

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a peer that went away, or is none of ours, is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "hedgerow"
    sys_version = ""
    timeout = IDLE_S

    def setup(self) -> None:
        super().setup()
        self._store = Store(self.server.place, read_only=True)  # connections belong to their threads

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self._store.close()

    def do_GET(self) -> None:
        found = self._found()
        if found is None:
            return
        digest, size = found
        start, behind, status = 0, size, HTTPStatus.OK
        headers = {"ETag": _tag(digest), "Content-Type": "application/octet-stream"}
        wanted = self.headers.get("Range")
        if wanted is not None and self.headers.get("If-Range", _tag(digest)) == _tag(digest):
            part = range_of(wanted, size)
            if part == (0, 0):
                self._answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, {"Content-Range": f"bytes */{size}"})
                return
            if part is not None:
                start, behind = part
                status, headers["Content-Range"] = HTTPStatus.PARTIAL_CONTENT, f"bytes {start}-{behind - 1}/{size}"
        self._answer(status, behind - start, headers)
        for at in range(start, behind, PIECE_BYTES):
            piece = self._store.blob_part(digest, at, min(PIECE_BYTES, behind - at))
            if not piece:  # its version has become too old meanwhile; the peer sees that it is cut short
                self.close_connection = True
                return
            self.wfile.write(piece)

    def do_HEAD(self) -> None:
        found = self._found()
        if found is not None:
            digest, size = found
            self._answer(HTTPStatus.OK, size, {"ETag": _tag(digest), "Content-Type": "application/octet-stream"})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server names it
        """Say nothing: what was fetched is told by the devices."""

    def _found(self) -> tuple[bytes, int] | None:
        """The digest and the size of the file that is asked for; None once it has been answered that there is none."""
        name = _NAME.fullmatch(self.path)
        try:
            size = self._store.blob_size(bytes.fromhex(name[1])) if name else None
        except StoreError:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, 0, {})
            return None
        if name is None or size is None:
            self._answer(HTTPStatus.NOT_FOUND, 0, {})
            return None
        return bytes.fromhex(name[1]), size

    def _answer(self, status: HTTPStatus, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if self.server.is_late(self.request):
            self.send_header("Connection", "close")
        if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Cache-Control", "public, max-age=31536000, immutable")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def range_of(header: str, size: int) -> tuple[int, int] | None:
    """The bytes [start, behind) that a Range header wants of `size` > 0 (RFC 9110, section 14.1.2).

    None where it is to be ignored, as several ranges and other units are; (0, 0) where it wants what is not there.
    """
    wanted = _RANGE.fullmatch(header.strip())
    if wanted is None or wanted[0] == "bytes=-":
        return None
    first, last = wanted.groups()
    if not first:
        count = min(int(last), size)
        return (size - count, size) if count else (0, 0)
    if last and int(last) < int(first):
        return None
    return (int(first), min(int(last or size - 1), size - 1) + 1) if int(first) < size else (0, 0)


def _tag(digest: bytes) -> str:
    return f'"{digest.hex()}"'
