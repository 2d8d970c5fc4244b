"""Groups of devices, in which a fleet's numbers are told: one for each of the tags that most devices have. Pure.

So many groups and no more, however many tags an operator makes up, because each is a series for Prometheus and a line
in a plot. A device is in every group whose tag it has; in OTHER if none of its tags is a group's, in UNTAGGED without
any. No tag begins with a bracket, so neither can be one.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

GROUPS_MAX: Final = 12
OTHER: Final = "(other)"
UNTAGGED: Final = "(untagged)"


class Groups(Struct, frozen=True):
    """The tags that are groups, and what every device is called by."""

    names: tuple[str, ...] = ()
    tags: dict[str, frozenset[str]] = {}

    def of(self, device_id: str) -> tuple[str, ...]:
        """The groups that a device is in, at least one."""
        tags = self.tags.get(device_id, frozenset())
        return tuple(name for name in self.names if name in tags) or (OTHER if tags else UNTAGGED,)


def groups_of(tags: Mapping[str, frozenset[str]], known: Iterable[str] = ()) -> Groups:
    """The groups of a fleet. Those `known` keep their places, so that a count goes on where it was."""
    devices = Counter(tag for each in tags.values() for tag in each)
    kept = tuple(known)
    ranked = sorted(devices.keys() - set(kept), key=lambda tag: (-devices[tag], tag))
    return Groups((*kept, *ranked)[:GROUPS_MAX], dict(tags))
