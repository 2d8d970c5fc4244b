"""What monitors ask of a running coordinator, over HTTP: /metrics, /healthz, /readyz.

/healthz says whether the loop turns; if it does not, only a restart helps. /readyz says besides whether the link is up,
so that devices are served. Either answers 503 and why not. Nothing secret is told and nothing can be changed, but it is
for operators: it listens on this machine alone, unless the configuration says otherwise.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Final

from prometheus_client import CONTENT_TYPE_LATEST

from broker.database import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST_S: Final = 10.0
_TEXT: Final = "text/plain; charset=utf-8"


class HealthServer:
    """Answers from the moment it is made until `stop`. `port` 0 is any free one. Raises OSError for a bad address.

    `page` gives the metrics; `trouble` and `unready` why all is not well, in a sentence, or nothing. They are called in
    the threads of this server; `page` may raise StoreError.
    """

    def __init__(
        self, bind: str, port: int, page: Callable[[], bytes], trouble: Callable[[], str], unready: Callable[[], str]
    ) -> None:
        pages: dict[str, Callable[[], tuple[bytes, str]]] = {
            "/metrics": lambda: (page(), ""),
            "/healthz": lambda: (b"ok\n", trouble()),
            "/readyz": lambda: (b"ok\n", trouble() or unready()),
        }
        self._server = _Server((bind, port), pages)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health-server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], pages: dict[str, Callable[[], tuple[bytes, str]]]) -> None:
        self.pages = pages
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would ask the resolver for our name, which may take long

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: who went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_S

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            self._answer(404, f"there are {', '.join(self.server.pages)}\n".encode(), _TEXT)
            return
        try:
            content, trouble = page()
        except StoreError as error:
            content, trouble = b"", f"the store does not answer: {error}"
        if trouble:
            self._answer(503, f"{trouble}\n".encode(), _TEXT)
        else:
            self._answer(200, content, CONTENT_TYPE_LATEST if self.path.startswith("/metrics") else _TEXT)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: scrapes are no news."""

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
