"""What the agent tells systemd: that it is ready, that it goes on, that it ends (sd_notify(3), over $NOTIFY_SOCKET).

The word that it goes on comes from the loop that does all the work, when it goes round: a loop that hangs in a card, or
in a mistake of ours, is silent, and systemd starts the agent anew (`WatchdogSec=` of the unit). Without systemd nothing
is said.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Final

PAUSE_S: Final = 5.0  # between two words that it goes on


class Notifier:
    """One service's line to the systemd that started it, if one did."""

    def __init__(self) -> None:
        name = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._next_s = 0.0

    def ready(self, status: str) -> None:
        """It runs; `status` is what `systemctl status` shows."""
        self._say(f"READY=1\nSTATUS={status}")

    def goes_on(self) -> None:
        """The loop went round once more."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + PAUSE_S
            self._say("WATCHDOG=1")

    def ends(self) -> None:
        """It was asked to end, or must."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        # a supervisor that does not listen is no reason to stop working
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.sendto(text.encode(), self._address)
