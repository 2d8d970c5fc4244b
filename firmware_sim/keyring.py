"""The names and keys of a simulated fleet: a keyed hash in place of Ed25519, over the very same bytes.

Ed25519 takes 90 µs for a signature and its check, a keyed BLAKE2b 3 µs: most seeds use the hash, one in fifty and
the tests of forgery the real thing. A "public" key text of the hash contains its secret: good enough inside one
process that plays every part, and for nothing else.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

from wire import keys

if TYPE_CHECKING:
    from wire.envelope import Sign, Verify

FLEET: Final = "sim"
COORDINATOR: Final = "coordinator"

_PREFIX: Final = "simulated:"


class Key(NamedTuple):
    """One party's key: how it signs, and the text by which the others know it."""

    sign: Sign
    text: str


def make(name: str, seed: int, *, real: bool) -> Key:
    """The key of `name` in the world of `seed`; Ed25519 when `real`."""
    secret = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=32).digest()
    if real:
        return Key(keys.signer(secret), keys.public_text(secret))
    return Key(_signer(secret), _PREFIX + secret.hex())


def verifier(text: str) -> Verify:
    """Text of a key → (message, signature) → bool, for both kinds."""
    if not text.startswith(_PREFIX):
        return keys.verifier(text)
    sign = _signer(bytes.fromhex(text.removeprefix(_PREFIX)))
    return lambda message, signature: sign(message) == signature


def _signer(secret: bytes) -> Sign:
    return lambda message: hashlib.blake2b(message, key=secret, digest_size=64).digest()
