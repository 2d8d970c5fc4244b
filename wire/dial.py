"""Opening a connection to an MQTT server without waiting for it: TCP to one address after the other, then TLS.

    name resolved ─▶ calling an address ──answered──▶ TLS handshake (mqtts alone) ──▶ open
                       └──refused, silent──▶ the next address, or the error of the last

Only the name is resolved on the spot, which may take as long as a name server does. Whoever dials keeps a selector,
and calls `step` when `sock` is ready for what `wanted` says, and at `until_s`.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
from typing import TYPE_CHECKING

from wire import clock_floor

if TYPE_CHECKING:
    from wire.clock_floor import Tls
    from wire.server_url import Server


class Dial:
    """One call. After a `step`, `sock` may be another object; once `is_open` it is the caller's.

    `tls`: None where the server is without. `timeout_s`: for each address, and once more for TLS. To make one and to
    step it raise OSError when no address is left, with nothing to close.
    """

    def __init__(self, server: Server, tls: Tls | None, timeout_s: float, now_s: float) -> None:
        self.is_open = False
        self.wanted = selectors.EVENT_WRITE
        self.until_s = now_s + timeout_s
        self._host = server.host
        self._tls = tls
        self._timeout_s = timeout_s
        self._shakes_hands = False
        self._addresses = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
        self.sock = self._call(now_s, errno.EADDRNOTAVAIL)

    def step(self, now_s: float) -> None:
        """Go on as far as is possible now. An answer in time counts, however late it is looked for."""
        try:
            if not self._shakes_hands:
                self._look_for_answer(now_s)
            if self._shakes_hands and not self.is_open:
                self._shake_hands(now_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up."""
        self.sock.close()

    def _call(self, now_s: float, why: int) -> socket.socket:
        """Call the first address that can be called; the error `why` when there is none."""
        while self._addresses:
            family, kind, protocol, _, address = self._addresses.pop(0)
            sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            why = sock.connect_ex(address)
            if why in (0, errno.EINPROGRESS):
                self.until_s = now_s + self._timeout_s
                return sock
            sock.close()
        raise OSError(why, os.strerror(why))

    def _look_for_answer(self, now_s: float) -> None:
        why = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not why and _is_connected(self.sock):
            self._shakes_hands = self._tls is not None
            self.is_open = self._tls is None
            if self._tls is not None:
                self.until_s = now_s + self._timeout_s
                context = self._tls.context
                self.sock = context.wrap_socket(self.sock, server_hostname=self._host, do_handshake_on_connect=False)
        elif why or now_s >= self.until_s:
            self.sock.close()
            self.sock = self._call(now_s, why or errno.ETIMEDOUT)

    def _shake_hands(self, now_s: float) -> None:
        assert isinstance(self.sock, ssl.SSLSocket), "only TLS shakes hands"
        assert self._tls is not None, "and it was told how"
        try:
            self.sock.do_handshake()
            clock_floor.check(self.sock, self._tls.floor_unix_s)
            self.is_open = True
        except ssl.SSLWantReadError:
            self.wanted = selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            self.wanted = selectors.EVENT_WRITE
        if not self.is_open and now_s >= self.until_s:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
