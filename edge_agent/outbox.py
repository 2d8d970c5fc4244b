"""The outbox: when the update that waits for its receipt is sent, and sent again. Pure.

The update itself is on flash, in `Durable`; here is only its clock. It is resent byte for byte the same, after a pause
that doubles, until a receipt names its digest. Nothing is due while the link is down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_agent.effects import Publish
from wire.limits import RESEND_MS_MAX, RESEND_MS_MIN

if TYPE_CHECKING:
    from random import Random


class Outbox:
    """The clock of one outbox."""

    def __init__(self, jitter: Random) -> None:
        self.due_ms: int | None = None  # when `send` is to be called again
        self._jitter = jitter
        self._pause_ms = RESEND_MS_MIN

    def send(self, sealed: bytes, topic: str, now_ms: int) -> Publish:
        """Publish now, and set the time of the next try."""
        # Full jitter, from half to one and a half: devices that lost the same server must not come back as one.
        self.due_ms = now_ms + self._pause_ms // 2 + self._jitter.randrange(self._pause_ms)
        self._pause_ms = min(self._pause_ms * 2, RESEND_MS_MAX)
        return Publish(topic, sealed)

    def rest(self) -> None:
        """The link is down, or there is nothing to send."""
        self.due_ms = None

    def hurry(self) -> None:
        """Somebody new may hear us, or the next update is another one: the next pause is the shortest."""
        self._pause_ms = RESEND_MS_MIN

    def wait(self, now_ms: int, *, full: bool) -> None:
        """Nobody knows us: try rarely, if there is something to send."""
        self._pause_ms = RESEND_MS_MAX
        self.due_ms = now_ms + RESEND_MS_MAX if full else None
