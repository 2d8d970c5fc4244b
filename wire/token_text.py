"""The token: one line of text that brings a device into a fleet, and all that the device needs for it.

It names the fleet, the MQTT server, the coordinator's key and the fleet's authority, so that the device knows whom to
believe. And it brings a secret of 32 bytes, from which two keys are made. One seals the claim; the coordinator keeps
its public half, with which nobody can claim anything. The other opens the MQTT server's door under the name `claim`, by
a certificate that is in the text as well, and behind that door are only the topics of claims.

    hedgerow-token- and base64url of: the first 4 bytes of SHA-256 of the rest, then a CBOR array (struct `Token`)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated, Final, TypeAlias

import cbor2
import msgspec
from msgspec import Meta, Struct

from wire import keys, limits
from wire.fields import DeviceId  # noqa: TC001 - msgspec reads the annotations

PREFIX: Final = "hedgerow-token-"
TEXT_CHARS_MAX: Final = 8192
_CHECK_BYTES: Final = 4
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # SP 800-186, 3.2.1.3
_Der: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=limits.CERTIFICATE_BYTES_MAX)]


class TokenError(ValueError):
    """The text is no token. One line."""


class Token(Struct, frozen=True, array_like=True):
    """What is in the text. Nobody has signed it: who gives a device its token is believed."""

    fleet: DeviceId
    url: Annotated[str, Meta(max_length=256)]  # of the MQTT server, mqtts://
    coordinator_key: str  # ed25519:…
    secret: Annotated[bytes, Meta(min_length=32, max_length=32)]
    certificate: _Der  # of `claim`, for the TLS key of the secret
    authority: Annotated[tuple[_Der, ...], Meta(min_length=1, max_length=3)]  # who issues; then who vouches for it
    device_id: DeviceId | None = None  # whom it is for; None: anyone


def encode(token: Token) -> str:
    """The text of a token."""
    body = cbor2.dumps(msgspec.to_builtins(token, builtin_types=(bytes,)))
    return PREFIX + base64.urlsafe_b64encode(_check(body) + body).decode("ascii").rstrip("=")


def decode(text: str) -> Token:
    """Read what `encode` wrote, with white space around or within it. Raises TokenError."""
    packed = "".join(text.split())
    if not packed.startswith(PREFIX) or len(packed) > TEXT_CHARS_MAX:
        raise TokenError(f"this is no token: one begins with {PREFIX}, as broker enroll token prints it")
    encoded = packed.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenError("the token is damaged: copy it again, all of its line") from error
    check, body = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
    if check != _check(body):
        raise TokenError("the token is damaged or cut short: copy it again, all of its line")
    try:
        token = msgspec.convert(cbor2.loads(body), Token, builtin_types=(bytes,), strict=True)
        keys.verifier(token.coordinator_key)
    except (cbor2.CBORError, msgspec.ValidationError, keys.KeyTextError) as error:
        raise TokenError("the token is of another version than this program: update one of them") from error
    return token


def signing_seed(secret: bytes) -> bytes:
    """The Ed25519 seed that seals the claim."""
    return hashlib.sha256(b"hedgerow token\x00" + secret).digest()


def tls_scalar(secret: bytes) -> int:
    """The private number of the P-256 key that opens the door (FIPS 186-5, A.2.1: with extra bits)."""
    wide = int.from_bytes(hashlib.sha512(b"hedgerow tls key\x00" + secret).digest(), "big")
    return wide % (_P256_ORDER - 1) + 1


def token_id(public_key: str) -> str:
    """The name of a token, which is in its topics: made of the public key, as text, that its claims hold by."""
    return hashlib.sha256(public_key.encode()).hexdigest()[:16]


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK_BYTES]
