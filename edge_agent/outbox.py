"""The outbox: when the update that waits for its receipt is sent, and sent again. Pure.

The update itself is on flash, in `Durable`; here is only its clock. It is resent byte for byte the same, after a pause
that doubles, until a receipt names its digest. Nothing is due while the link is down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from msgspec import Meta, Struct

from edge_agent.effects import Publish
from wire.limits import RESEND_MS_MAX, RESEND_MS_MIN

if TYPE_CHECKING:
    from random import Random

    from edge_agent.effects import Durable
    from wire.messages import Verdict


JITTER_WORDS: Final = 625  # of the Mersenne twister: 624, and how many of them are used up
_JITTER_VERSION: Final = 3  # of random.Random's states, since Python 3.2
_Word: TypeAlias = Annotated[int, Meta(ge=0, lt=2**32)]


def residual_after(verdict: Verdict, durable: Durable) -> int:
    """The round whose residual is the true one once the outbox is empty; 0 where there is to be none."""
    match verdict:
        case "accepted" | "duplicate":
            return durable.outbox_round_id
        case "unfounded":
            return 0
        case _:
            return durable.residual_round_id


class OutboxCheckpoint(Struct, frozen=True):
    """What an outbox's clock remembers."""

    due_ms: int | None = None
    pause_ms: Annotated[int, Meta(ge=1, le=RESEND_MS_MAX)] = RESEND_MS_MIN
    jitter: Annotated[tuple[_Word, ...], Meta(max_length=JITTER_WORDS)] = ()  # (): the generator as it was given

    def __post_init__(self) -> None:
        """Refuse what no generator can be set to."""
        if self.jitter and (len(self.jitter) != JITTER_WORDS or self.jitter[-1] >= JITTER_WORDS):
            raise ValueError("this is no state of a generator")


class Outbox:
    """The clock of one outbox."""

    def __init__(self, jitter: Random, start: OutboxCheckpoint) -> None:
        self.due_ms = start.due_ms  # when `send` is to be called again
        self._jitter = jitter
        self._pause_ms = start.pause_ms
        if start.jitter:
            jitter.setstate((_JITTER_VERSION, start.jitter, None))

    def checkpoint(self) -> OutboxCheckpoint:
        """What it remembers now."""
        return OutboxCheckpoint(self.due_ms, self._pause_ms, self._jitter.getstate()[1])

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
