"""The messages by which a device gets its place in the fleet, and later keeps it: a claim, a renewal, a certificate.

    device                                        coordinator
      claim, sealed by the key of its token  ────▶  is the token good, and not used by another?
      the certificate, or why there is none  ◀────  in the store first
      renew, sealed by the device's own key  ────▶  is it in the fleet?
      the certificate                        ◀────

A certificate is for TLS alone. What a device says is believed by its Ed25519 key, which is another one. These structs
are part of `wire.messages`, and obey its rules.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

from wire import limits
from wire.fields import DeviceId, Digest, Reason  # noqa: TC001 - msgspec reads the annotations

PublicKey: TypeAlias = Annotated[str, Meta(pattern=r"^ed25519:[A-Za-z0-9_-]{43}\Z")]  # the text of wire.keys
Signature: TypeAlias = Annotated[bytes, Meta(min_length=64, max_length=64)]
Request: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=limits.REQUEST_BYTES_MAX)]

_PROOF: Final = b"hedgerow claim\x00"


class Claim(Struct, frozen=True, array_like=True, tag="claim"):
    """Device → coordinator, on its token's topic: let me in, under this name and with these keys."""

    device_id: DeviceId
    public_key: PublicKey  # what will sign all that the device says
    proof: Signature  # by that key, over `proof_of(request)`
    request: Request  # PKCS #10 (RFC 2986) in DER, for a P-256 key, signed by that key; its names do not count


class Renew(Struct, frozen=True, array_like=True, tag="renew"):
    """Device → coordinator: another certificate, since this one has lived two thirds of its life."""

    request: Request


class Certificate(Struct, frozen=True, array_like=True, tag="certificate"):
    """Coordinator → device: the certificate that the message whose sealed bytes have this digest asked for."""

    digest: Digest
    certificate: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]  # X.509 in DER; empty: refused
    reason: Reason = ""  # why it was


def proof_of(request: bytes) -> bytes:
    """What the key of a claim signs to show that the claimant holds it. No envelope begins like this."""
    return _PROOF + request
