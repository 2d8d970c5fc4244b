"""The topic tree, and which message travels on which topic.

    fl/v1/{fleet}/{shard}/{device}/up/{kind}    device → coordinator
    fl/v1/{fleet}/{shard}/{device}/dn/{kind}    coordinator → device
    fl/v1/{fleet}/all/all/dn/{kind}             coordinator → every device, retained
    fl/v1/{fleet}/enrol/{token}/up/claim        device → coordinator, before it is in the fleet
    fl/v1/{fleet}/enrol/{token}/dn/certificate  coordinator → that device

The shard is the first byte of SHA-256(device id) in hex, so that a later fleet can be split among owners
without a new contract. The envelope signs the topic along with the message: a message is valid only on the
topic that it was made for.
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Final, NamedTuple

ROOT: Final = "fl/v1"
ALL: Final = "all"
ENROL: Final = "enrol"  # where others have their shard; none is called so
CLAIM: Final = "claim"
RESERVED: Final = (ALL, "coordinator", CLAIM)  # certificates bear the latter two: of the coordinator, of all tokens

UP_KINDS: Final = ("birth", "death", "update", "want", "telemetry", "renew")
DN_KINDS: Final = ("offer", "manifest", "receipt", "chunk", "patch", "label", "certificate")
SHARED_KINDS: Final = ("state", "plan", "manifest", "offer")

_TOKEN_ID: Final = re.compile(r"[0-9a-f]{16}")
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")


class TopicError(ValueError):
    """Not a topic of this contract, or a name that cannot be part of one."""


class Address(NamedTuple):
    """Where a message travels: the parts of its topic."""

    fleet: str
    device_id: str  # `all` for what every device reads
    direction: str  # up or dn
    kind: str


def check_name(what: str, name: str) -> str:
    """Return `name` if it may stand in a topic; raise TopicError with the rule otherwise."""
    if _NAME.fullmatch(name) is None or name in RESERVED:
        raise TopicError(
            f"{what} {name!r} cannot be used: 1 to 64 of a-z, 0-9 and '-', not '-' at either end, "
            f"and none of {', '.join(RESERVED)}"
        )
    return name


@functools.lru_cache(maxsize=16_384)
def shard(device_id: str) -> str:
    """The two hex digits of the shard that owns `device_id`."""
    return hashlib.sha256(device_id.encode()).hexdigest()[:2]


def up(fleet: str, device_id: str, kind: str) -> str:
    """The topic on which `device_id` sends `kind`."""
    return f"{ROOT}/{fleet}/{shard(device_id)}/{device_id}/up/{kind}"


def dn(fleet: str, device_id: str, kind: str) -> str:
    """The topic on which `device_id` receives `kind`."""
    return f"{ROOT}/{fleet}/{shard(device_id)}/{device_id}/dn/{kind}"


def shared(fleet: str, kind: str) -> str:
    """The retained topic on which every device receives `kind`."""
    return f"{ROOT}/{fleet}/{ALL}/{ALL}/dn/{kind}"


def claim(fleet: str, token_id: str) -> str:
    """The topic on which a device claims its place with a token."""
    return f"{ROOT}/{fleet}/{ENROL}/{token_id}/up/{CLAIM}"


def claim_answer(fleet: str, token_id: str) -> str:
    """The topic on which it is answered."""
    return f"{ROOT}/{fleet}/{ENROL}/{token_id}/dn/certificate"


def parse_claim(topic: str) -> tuple[str, str]:
    """The (fleet, token id) of a topic of `claim`; raises TopicError for all others."""
    parts = topic.split("/")
    if len(parts) != 7 or _TOKEN_ID.fullmatch(parts[4]) is None or topic != claim(parts[2], parts[4]):
        raise TopicError(f"topic {topic[:120]!r} is none on which a place is claimed")
    return check_name("fleet", parts[2]), parts[4]


def is_shared(topic: str) -> bool:
    """Is this a topic that every device reads?"""
    return f"/{ALL}/{ALL}/dn/" in topic


def device_filters(fleet: str, device_id: str) -> tuple[str, ...]:
    """What a device subscribes to: its own down topics and the shared ones."""
    return (dn(fleet, device_id, "+"), shared(fleet, "+"))


def coordinator_filters(fleet: str) -> tuple[str, ...]:
    """What the coordinator subscribes to: everything that devices send."""
    return (f"{ROOT}/{fleet}/+/+/up/+",)


def parse(topic: str) -> Address:
    """Take a topic apart; raise TopicError unless every part is as it must be."""
    parts = topic.split("/")
    if len(parts) != 7 or "/".join(parts[:2]) != ROOT:
        raise TopicError(f"topic {topic[:120]!r} is not of the form {ROOT}/fleet/shard/device/up|dn/kind")
    _, _, fleet, owner, device_id, direction, kind = parts
    check_name("fleet", fleet)
    if (owner, device_id, direction) == (ALL, ALL, "dn") and kind in SHARED_KINDS:
        return Address(fleet, ALL, direction, kind)
    check_name("device", device_id)
    if owner != shard(device_id):
        raise TopicError(f"topic {topic[:120]!r} names shard {owner!r}, but {device_id} belongs to {shard(device_id)}")
    if kind not in {"up": UP_KINDS, "dn": DN_KINDS}.get(direction, ()):
        raise TopicError(f"topic {topic[:120]!r} carries no message of this contract")
    return Address(fleet, device_id, direction, kind)
