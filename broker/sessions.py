"""Who is there: births and deaths, made safe against old ones.

    ABSENT ──birth──▶ PRESENT ──death of the same (boot, connection), or link lost──▶ ABSENT

A will may arrive after the device has come back. `(boot, connection)` only grows, so a death speaks only for the
connection that it names, and a replayed birth is older than what is known. A device whose flash was replaced counts its
boots from somewhere else, anywhere in 32 bits: boots that are far apart are of two cards. The birth of another card is
believed if it answers the present epoch and is newer than what that card said before; a replay is not.
"""

from typing import Final

from msgspec import Struct

from wire.messages import Birth, Death

BOOTS_MAX: Final = 2**16  # of one card: further apart are two
CARDS_MAX: Final = 8  # former ones of one device and epoch that are remembered


class Session(Struct, frozen=True):
    """The newest birth of a device."""

    birth: Birth
    present: bool


class Sessions:
    """Presence of every device that was ever born in this run. Size: one entry a device."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._epoch = 0
        self._former: dict[str, list[Birth]] = {}  # the last birth of each card that was replaced in this epoch

    def begin(self, epoch: int) -> None:
        """Everybody is asked for a birth that answers this epoch."""
        self._epoch = epoch
        self._former.clear()

    def on_birth(self, device_id: str, birth: Birth) -> bool:
        """Note that the device is there; False for a birth older than one already heard."""
        session = self._sessions.get(device_id)
        known = birth if session is None else session.birth
        if not _is_later(birth, known) and not self._is_new_card(device_id, birth, known):
            return False
        self._sessions[device_id] = Session(birth, present=True)
        return True

    def _is_new_card(self, device_id: str, birth: Birth, known: Birth) -> bool:
        """Does this birth come from another card than `known`, now? Then the known one is a former card's."""
        former = self._former.setdefault(device_id, [])
        if _is_same_card(birth, known) or birth.epoch != self._epoch:
            return False
        if any(_is_same_card(birth, old) and _pair(birth) <= _pair(old) for old in former):
            return False
        others = [old for old in former if not _is_same_card(birth, old)]
        self._former[device_id] = [*others, known][-CARDS_MAX:]
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


def _is_same_card(one: Birth, other: Birth) -> bool:
    return abs(one.boot - other.boot) < BOOTS_MAX


def _is_later(birth: Birth, known: Birth) -> bool:
    return _is_same_card(birth, known) and _pair(birth) >= _pair(known)


def _pair(message: Birth | Death) -> tuple[int, int]:
    return message.boot, message.connection
