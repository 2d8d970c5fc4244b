"""Tries: how often the training of a round has failed, and until when it is left alone. Pure.

What failed three times fails a fourth, so the round is left to the others. Heat, an empty battery, a full disk and a
wrong patch are no failures of the round: it only waits.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

TRIES_MAX: Final = 3
RETRY_MS: Final = 10_000


class TriesCheckpoint(Struct, frozen=True):
    """What tries remember."""

    due_ms: int | None = None  # when the next try may be made; None: at once, or when something happens
    round_id: int = 0
    failed_count: int = 0


class Tries:
    """Of one round at a time, the last that was tried."""

    def __init__(self, start: TriesCheckpoint) -> None:
        self.due_ms = start.due_ms
        self.round_id = start.round_id
        self.failed_count = start.failed_count

    def checkpoint(self) -> TriesCheckpoint:
        """What they remember now."""
        return TriesCheckpoint(self.due_ms, self.round_id, self.failed_count)

    def wait(self, round_id: int, until_ms: int | None) -> None:
        """Leave the round alone until then, without counting a failure of it."""
        if round_id != self.round_id:
            self.round_id, self.failed_count = round_id, 0
        self.due_ms = until_ms

    def fail(self, round_id: int, now_ms: int) -> bool:
        """The training of this round has failed; whether it was the last try."""
        self.wait(round_id, self.due_ms)
        self.failed_count += 1
        is_last = self.failed_count >= TRIES_MAX
        if not is_last:
            self.due_ms = now_ms + RETRY_MS
        return is_last

    def holds_back(self, round_id: int, now_ms: int) -> bool:
        """Is it too early for this round?"""
        return self.due_ms is not None and now_ms < self.due_ms and round_id == self.round_id
