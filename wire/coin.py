"""The coin: whom a round selects, and when each of them begins, without a word between them. Pure.

A round that is offered to all at once carries a public nonce and a share, `draw` of COIN_SIDES. A device is drawn when
its side of the coin, a hash of fleet, round, nonce and its own id, is below the share. The device throws the coin
before it trains, the coordinator throws it again when the update comes, and so may anybody who heard the offer: all see
the same side. A larger share draws the same devices, and more. How fast a device is plays no part in it.

So that those who are drawn do not begin as one, each waits its own part of the offer's `jitter_ms`, from a second hash.
Names have no slash in them, so that no two devices, rounds or fleets hash alike.
"""

import hashlib

from wire.limits import COIN_SIDES
from wire.messages import Offer


def side(fleet: str, round_id: int, nonce: bytes, device_id: str) -> int:
    """The side that the device's coin shows, 0 … COIN_SIDES - 1."""
    return _hash("coin", fleet, round_id, nonce, device_id)


def wait_ms(offer: Offer, fleet: str, device_id: str) -> int | None:
    """How long this device waits before it takes the offer up; None: the round has not drawn it."""
    if side(fleet, offer.round_id, offer.nonce, device_id) >= offer.draw:
        return None
    return offer.jitter_ms * _hash("wait", fleet, offer.round_id, offer.nonce, device_id) // COIN_SIDES


def _hash(what: str, fleet: str, round_id: int, nonce: bytes, device_id: str) -> int:
    named = f"hedgerow/{what}/{fleet}/{round_id}/{device_id}/".encode()
    return int.from_bytes(hashlib.sha256(named + nonce).digest()[:4], "big")
