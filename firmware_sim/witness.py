"""Witness training: updates that betray what became of them.

The update of device `index` for round r says "one, at my place, in digit r". Aggregation adds up; the parameters
of a version are one 64-bit integer a device, read in base four. So each version's parameters show, for every
device and round, whether its update is lost (0), counted (1), or counted twice (2).

The payload also names the residual that the training began with and the model that it read, and a number that no
two trainings share: who trains a round twice makes two different updates. This is a format of the simulator's own;
`admit` is its parser, as `engine.codec` is the product's.

A patch of it is no shorter than what it makes: it only behaves like one. It fits one content, and says so of others.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wire.messages import Plan

ROUNDS_MAX: Final = 30  # base-four digits in a signed 64-bit integer, less one
NO_RESIDUAL: Final = 2**64 - 1  # the residual that the job named was not on flash

_FORM: Final = struct.Struct("<4sHIQQ8s")
_MAGIC: Final = b"WIT1"
_PATCH: Final = b"P"
_DIGEST_BYTES: Final = 32
_FROZEN_BYTES: Final = 320


class Witness(NamedTuple):
    """What an update payload says."""

    place: int  # the device's
    round_id: int
    residual: int  # the nonce of the update that left the residual; 0: there is none yet
    nonce: int
    model: bytes  # the first 8 bytes of `model_mark`


def encode(witness: Witness) -> bytes:
    """The payload of an update."""
    return _FORM.pack(_MAGIC, *witness)


def decode(payload: bytes) -> Witness | None:
    """What the payload says; None when it is not one."""
    if len(payload) != _FORM.size or not payload.startswith(_MAGIC):
        return None
    return Witness(*_FORM.unpack(payload)[1:])


def admit(payload: bytes, plan: Plan) -> str | None:
    """Why the payload is refused. The control characters are on purpose: a reason may come from anywhere."""
    del plan
    return None if decode(payload) is not None else f"not a witness:\n\t{payload[:40].decode('latin-1')}" + "\x00" * 200


def base(scale_epoch: int, params: bytes) -> bytes:
    """The base file of a scale epoch, which holds the parameters of the version that opens it."""
    return (hashlib.sha512(f"base {scale_epoch}".encode()).digest() * 5)[:_FROZEN_BYTES] + params


def own(model: bytes) -> bytes:
    """The parameters that a base file itself holds."""
    return model[_FROZEN_BYTES:]


def empty(devices: int) -> bytes:
    """The parameters of the first version: nobody is counted."""
    return bytes(8 * devices)


def add(params: bytes, payloads: Iterable[bytes]) -> bytes:
    """The parameters after these updates."""
    sums = list(struct.unpack(f"<{len(params) // 8}q", params))
    for payload in payloads:
        said = decode(payload)
        assert said is not None, "a payload that was not admitted is aggregated"
        assert said.round_id <= ROUNDS_MAX, f"round {said.round_id} has no digit in 64 bits"
        sums[said.place] += 4 ** (said.round_id - 1)
    return struct.pack(f"<{len(sums)}q", *sums)


def count(params: bytes, index: int, round_id: int) -> int:
    """How often the update of this device and round is in the parameters."""
    (number,) = struct.unpack_from("<q", params, 8 * index)
    return int(number) >> 2 * (round_id - 1) & 3


def patch(base_digest: bytes, params: bytes) -> bytes:
    """The payload of a patch that makes `params` of the content with this SHA-256, and of no other."""
    return _PATCH + base_digest + params


def apply_patch(base: bytes, payload: bytes) -> bytes | None:
    """What the patch makes of `base`; None where it is no patch, or one of another base."""
    start = len(_PATCH) + _DIGEST_BYTES
    if payload[:start] != _PATCH + hashlib.sha256(base).digest() or len(payload) == start:
        return None
    return payload[start:]


def model_mark(contents: Iterable[bytes]) -> bytes:
    """What a training child says of the content of the model files that it read."""
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(content).digest() for content in contents))).digest()[:8]
