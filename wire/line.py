"""A line: one connection to the MQTT server, kept up for ever, without a thread of its own.

                     refused, no answer, lost
           +------------------------------------------+
           v                                          |
        resting --pause over--> connecting --SUBACK--> up
        LinkDown                                       LinkUp, Arrived ...

Whoever drives it (wire.lines) watches its socket and its deadline, and lets it take a step; what happens it posts to
its owner as events. It decides nothing and remembers nothing: what must arrive is sent again by the state machines
when a receipt fails to come.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from wire import limits
from wire.link_terms import STOPPED, Ended, LinkDown, pause_ms
from wire.waiting import Outgoing

if TYPE_CHECKING:
    import random
    import socket
    from collections.abc import Callable

    from wire.link import Connection
    from wire.link_terms import LinkEvent
    from wire.waiting import Waiting

LASTED_S: Final = 20.0  # a connection that lived so long makes the next pause short again


class Line:
    """One connection to one MQTT server, for ever: see the module. `wire.link.new_line` makes one.

    `connect` begins a connection that sends what is in the queue. `hurry` is called with the line, in the thread that
    publishes or stops, when a step would do something new; everything else happens within `step`.
    """

    def __init__(
        self,
        waiting: Waiting,
        connect: Callable[[Waiting], Connection],
        *,
        post: Callable[[LinkEvent], None],
        jitter: random.Random,
        hurry: Callable[[Line], None],
    ) -> None:
        self.is_over = False  # stopped, and said goodbye
        self._waiting = waiting
        self._connect = connect
        self._post = post
        self._jitter = jitter
        self._hurry = hurry
        self._connection: Connection | None = None
        self._stopping = False
        self._rests_until_s = 0.0
        self._failures = 0
        self._last_reason = ""

    def publish(self, topic: str, payload: bytes, retain: bool = False, qos: int = 1) -> bool:
        """Hand `payload` over for sending, from any thread; False, and counted, when there is no connection for it.

        Raises ValueError for a payload above PAYLOAD_BYTES_MAX: some server on the way would answer it by cutting
        the connection, after each resend again.
        """
        if len(payload) > limits.PAYLOAD_BYTES_MAX:
            raise ValueError(f"{len(payload)} bytes for {topic}: {limits.PAYLOAD_BYTES_MAX} fit into one message")
        taken = self._waiting.put(Outgoing(topic, payload, retain, qos))
        if taken:
            self._hurry(self)
        return taken

    def stop(self) -> None:
        """Send what waits, say goodbye and be over, within some steps and FLUSH_S. Takes no lock."""
        self._stopping = True
        self._hurry(self)

    @property
    def dropped(self) -> int:
        """Publishes never handed to a connection: there was none, or no room."""
        return self._waiting.dropped

    # What the loop asks

    @property
    def is_connecting(self) -> bool:
        """Has a connection been begun that is not up?"""
        return self._connection is not None and self._connection.up_since_s is None

    def wants_connection(self, now_s: float) -> bool:
        """Would the next step begin a connection?"""
        return self._connection is None and not self._stopping and now_s >= self._rests_until_s

    @property
    def sock(self) -> socket.socket | None:
        """What to watch; another object after a step means that the one before is closed."""
        return self._connection.sock if self._connection is not None else None

    @property
    def wanted(self) -> int:
        """Events to watch `sock` for, as `selectors` names them."""
        return self._connection.wanted if self._connection is not None else 0

    @property
    def due_s(self) -> float:
        """When the next step must be taken even if nothing happens; monotonic seconds."""
        if self.is_over:
            return math.inf
        if self._connection is None:
            return 0.0 if self._stopping else self._rests_until_s
        return self._connection.due_s(stopping=self._stopping)

    def step(self, ready: int, now_s: float) -> None:
        """Do all that can be done without waiting; `ready` is what of `wanted` has happened."""
        if self.is_over or (now_s < self._rests_until_s and not self._stopping):
            return
        if self._connection is None and not self._stopping:
            self._connection = self._connect(self._waiting)
        ended = STOPPED if self._connection is None else self._connection.step(ready, now_s, stopping=self._stopping)
        if ended is not None:
            self._end(ended, now_s)

    def _end(self, ended: Ended, now_s: float) -> None:
        was_up_s = self._connection.close(now_s) if self._connection is not None else 0.0
        self._connection = None
        self._waiting.close()
        if self._stopping:
            self.is_over = True
            return
        self._failures = 0 if was_up_s >= LASTED_S else self._failures + 1
        self._rests_until_s = now_s + pause_ms(self._jitter, self._failures, refused=ended.refused) / 1000
        is_news = was_up_s > 0.0 or ended.reason != self._last_reason
        self._last_reason = ended.reason
        if is_news:
            self._post(LinkDown(ended.reason))
