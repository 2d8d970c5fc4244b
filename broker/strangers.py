"""Devices that are not enrolled, and spoke all the same: each is told so once, and let in when it is enrolled. Pure.

Anyone may use any name, so no more than NAMES_MAX are remembered in one run, and of each no more than a birth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wire.messages import digest_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from broker.effects import Effect
    from broker.voice import Identity
    from wire.topics import Address

NAMES_MAX: Final = 1_000  # unknown device ids that are answered, once each, in one run
BIRTH_BYTES_MAX: Final = 512  # of a stranger's birth, to be kept


class Strangers:
    """Who was told to be unknown, and the birth if it is there."""

    def __init__(self, identity: Identity) -> None:
        self._id = identity
        self._births: dict[str, bytes] = {}

    def all_left(self) -> None:
        """Our own link was lost: nobody is known to be there."""
        self._births = dict.fromkeys(self._births, b"")

    def hear(self, address: Address, payload: bytes) -> list[Effect]:
        """Note what a stranger said, and tell it, once, that it is one."""
        known = address.device_id in self._births
        if not known and (len(self._births) >= NAMES_MAX or address.kind not in ("birth", "update")):
            return []
        birth = payload if address.kind == "birth" and len(payload) <= BIRTH_BYTES_MAX else b""
        if not known or address.kind in ("birth", "death"):
            self._births[address.device_id] = birth
        if known:
            return []
        reason = f"not enrolled; the operator can add it: broker fleet add {address.device_id} KEY"
        return [self._id.receipt(address.device_id, digest_of(payload), 0, "unknown", reason)]

    def knocked(self, fleet: Collection[str]) -> list[tuple[str, bytes]]:
        """Those of them that are in the fleet now, with their births; they are strangers no more."""
        found = [(name, birth) for name, birth in sorted(self._births.items()) if name in fleet]
        for name, _ in found:
            del self._births[name]
        return found
