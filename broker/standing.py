"""What the coordinator knows of devices beside their births, and whether a round's choice lets one in. Pure.

Tags are the operator's word, the battery's level is the device's own, from its telemetry; versions and rounds are those
of its accepted updates. What is not known leaves nobody out: the device's own budget still decides. How fast a device
is, and how often it came too late, is not asked: whoever is slow is as welcome as anybody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from broker.effects import RoundRow
    from wire.messages import Birth

ROUNDS_MAX: Final = 64  # that a cap may look back on


class Standings:
    """Of every device that was heard of. Size: its tags, a level and at most ROUNDS_MAX numbers a device."""

    def __init__(self, tags: Mapping[str, frozenset[str]], took: Mapping[str, Sequence[int]]) -> None:
        self._tags = dict(tags)
        self._took = {device_id: list(rounds)[-ROUNDS_MAX:] for device_id, rounds in took.items()}
        self._battery_rate: dict[str, float] = {}
        self._version: dict[str, int] = {}

    def read_tags(self, tags: Mapping[str, frozenset[str]]) -> None:
        """The operator calls devices by these, and by no others."""
        self._tags = dict(tags)

    def on_telemetry(self, device_id: str, battery_rate: float | None) -> None:
        """Note the level of its battery; None: it tells none."""
        if battery_rate is None:
            self._battery_rate.pop(device_id, None)
        else:
            self._battery_rate[device_id] = battery_rate

    def on_update(self, device_id: str, round_id: int, base_version: int) -> None:
        """Note that it took part in a round, for which it had this version."""
        self._took[device_id] = [*self._took.get(device_id, []), round_id][-ROUNDS_MAX:]
        self._version[device_id] = base_version

    def among(self, row: RoundRow, births: Mapping[str, Birth]) -> list[str]:
        """Who of these may take part in the round."""
        return [device_id for device_id, birth in births.items() if self.admits(row, device_id, birth)]

    def is_called(self, device_id: str, tags: Iterable[str]) -> bool:
        """Has the device every one of these tags?"""
        return self._tags.get(device_id, frozenset()).issuperset(tags)

    def admits(self, row: RoundRow, device_id: str, birth: Birth) -> bool:
        """May this device take part in the round?"""
        choice = row.choice
        if birth.num_examples < max(1, row.plan.num_examples_min):
            return False
        if not self.is_called(device_id, choice.tags):
            return False
        if self._battery_rate.get(device_id, 1.0) < choice.battery_rate_min:
            return False
        if max(birth.model_version, self._version.get(device_id, 0)) < choice.version_min:
            return False
        since = row.round_id - choice.rounds_of
        lately = sum(round_id >= since for round_id in self._took.get(device_id, []))
        return not choice.rounds_max or lately < choice.rounds_max
