"""Who is there: births and deaths, made safe against old ones.

    ABSENT ──birth──▶ PRESENT ──death of the same (boot, connection), or link lost──▶ ABSENT

A will may arrive after the device has come back. `(boot, connection)` only grows, so a death speaks only for the
connection that it names, and a replayed birth is older than what is known. But for a device whose flash was replaced:
its boots begin anew, though its connections are counted from somewhere else. Its birth is believed if it answers the
present epoch and was not heard in it before; a replay was, or answers another.
"""

import collections
from typing import Final

from msgspec import Struct

from wire.messages import Birth, Death

PAIRS_MAX: Final = 32  # of one device and epoch that are remembered


class Session(Struct, frozen=True):
    """The newest birth of a device."""

    birth: Birth
    present: bool


class Sessions:
    """Presence of every device that was ever born in this run. Size: one entry a device."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._epoch = 0
        self._heard: dict[str, collections.deque[tuple[int, int]]] = {}  # births that answered the epoch, by pair

    def begin(self, epoch: int) -> None:
        """Everybody is asked for a birth that answers this epoch."""
        self._epoch = epoch
        self._heard.clear()

    def on_birth(self, device_id: str, birth: Birth) -> bool:
        """Note that the device is there; False for a birth older than one already heard."""
        known = self._sessions.get(device_id)
        heard = self._heard.setdefault(device_id, collections.deque(maxlen=PAIRS_MAX))
        pair, answers = _pair(birth), birth.epoch == self._epoch
        is_fresh = answers and pair not in heard
        if known is not None and pair < _pair(known.birth) and not is_fresh:
            return False
        if is_fresh:
            heard.append(pair)
        self._sessions[device_id] = Session(birth, present=True)
        return True

    def on_death(self, device_id: str, death: Death) -> bool:
        """Note that the device is gone; False when the death is not of its newest connection."""
        known = self._sessions.get(device_id)
        if known is None or not known.present or _pair(death) != _pair(known.birth):
            return False
        self._sessions[device_id] = Session(known.birth, present=False)
        return True

    def forget(self, device_id: str) -> None:
        """The device is no longer enrolled, or has another key: whoever comes under its name starts afresh."""
        self._sessions.pop(device_id, None)

    def all_unknown(self) -> None:
        """Our own link was lost: whoever is there will say so again."""
        self._sessions = {
            device_id: Session(session.birth, present=False) for device_id, session in self._sessions.items()
        }

    def present(self) -> dict[str, Birth]:
        """The birth of every device that is there, in the order of ids."""
        return {device_id: session.birth for device_id, session in sorted(self._sessions.items()) if session.present}


def _pair(message: Birth | Death) -> tuple[int, int]:
    return message.boot, message.connection
