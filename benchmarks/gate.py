"""A gate on the way from devices to a server: while it is shut, no byte passes, and nobody is told.

It stands between the programs of either side of the fault benchmark and their server, so that both lose their link in
the same way. What is sent meanwhile waits in the gate, and passes when it opens: behind a silent radio a living sender
would send it again. Where an end goes away while the gate is shut, because it gave up or lost its power, what it had
sent is lost, and the other end hears of it when the gate opens. Without that, a device whose power is cut would still
be heard of, from the buffers of a kernel that goes on.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Final

HOST: Final = "127.0.0.1"


class Gate:
    """Listens on `port` for as long as it lives and passes everything on to `target`, a port of this machine."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.is_open = True
        self.heard_bytes = 0  # of both sides, handshakes of TLS and all
        self.ends: set[End] = set()  # touched in the gate's thread alone, like all that follows
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._joining: set[asyncio.Task[None]] = set()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)
        self._thread.start()
        self._listening.wait()

    def shut(self) -> None:
        """From now on nothing passes, in neither direction."""
        self._loop.call_soon_threadsafe(self._turn, False)

    def open(self) -> None:
        """Let pass what waits, and all that follows."""
        self._loop.call_soon_threadsafe(self._turn, True)

    def drop(self) -> None:
        """End every connection through it; whoever wants another may have one at once."""
        self._loop.call_soon_threadsafe(self._drop)

    def close(self) -> None:
        """End it, and every connection through it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def join(self, device: End) -> None:
        """Connect a device's end with the server."""
        task = self._loop.create_task(self._join(device))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self._loop.create_server(lambda: End(self), HOST, 0))
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        for end in list(self.ends):
            end.leave()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _turn(self, is_open: bool) -> None:
        self.is_open = is_open
        for end in list(self.ends):
            end.move()

    def _drop(self) -> None:
        for end in list(self.ends):
            end.leave()

    async def _join(self, device: End) -> None:
        try:
            _, server = await self._loop.create_connection(lambda: End(self, device), HOST, self._target)
        except OSError:  # it is down
            device.leave()
            return
        device.other = server
        device.move()


class End(asyncio.Protocol):
    """One end of a connection through the gate. What it says waits here until `other` may have it."""

    def __init__(self, gate: Gate, other: End | None = None) -> None:
        self.other = other
        self._gate = gate
        self._wants_server = other is None
        self._transport: asyncio.Transport | None = None
        self._waiting = bytearray()
        self._is_gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there; a device's end is connected with the server as soon as the gate is open."""
        assert isinstance(transport, asyncio.Transport), "TCP has two directions"
        self._transport = transport
        self._gate.ends.add(self)
        self.move()

    def data_received(self, data: bytes) -> None:
        """It has said something."""
        self._gate.heard_bytes += len(data)
        self._waiting += data
        self.move()

    def connection_lost(self, _error: Exception | None) -> None:
        """It is gone; what it said behind a shut gate nobody will hear."""
        self._is_gone = True
        if not self._gate.is_open:
            self._waiting.clear()
        self.move()

    def move(self) -> None:
        """Pass on what waits, and that it is gone, if the gate is open and there is somebody."""
        if not self._gate.is_open:
            return
        if self.other is None:
            if self._wants_server and not self._is_gone:
                self._wants_server = False
                self._gate.join(self)
            return
        if self._waiting:
            self.other.hear(bytes(self._waiting))
            self._waiting.clear()
        if self._is_gone:
            self._gate.ends.discard(self)
            self.other.leave()

    def hear(self, data: bytes) -> None:
        """The other end has said this."""
        if self._transport is not None and not self._is_gone:
            self._transport.write(data)

    def leave(self) -> None:
        """Close it, when what it is to hear is written."""
        if self._transport is not None:
            self._transport.close()
