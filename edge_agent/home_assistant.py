"""Home Assistant finds this device by itself, where a config has a section `[home_assistant]`.

Once in each run, when the link is up, one retained message an entity says where its values are (Home Assistant, MQTT
discovery): the prediction, and what stands in the state, JSON on hedgerow/{device}/state every `[telemetry] every_s`.
The connection's one will is the death that the fleet needs, so nobody can speak for a device that vanished: Home
Assistant calls an entity unavailable when no state came for three intervals (`expire_after`). A device that ends in
order says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.config import Config
    from edge_agent.status import Status

SILENCES: Final = 3  # intervals without a state after which it is unavailable


class Entity(NamedTuple):
    """One value. `extra` is as Home Assistant names it."""

    key: str  # in the state
    name: str
    component: str = "sensor"
    extra: tuple[tuple[str, str], ...] = ()


ENTITIES: Final = (
    Entity(
        "online",
        "Online",
        "binary_sensor",
        (("device_class", "connectivity"), ("payload_on", "True"), ("payload_off", "False")),
    ),
    Entity("round", "Last round"),
    Entity("battery", "Battery", extra=(("device_class", "battery"), ("unit_of_measurement", "%"))),
    Entity("temperature", "Temperature", extra=(("device_class", "temperature"), ("unit_of_measurement", "°C"))),
    Entity("bytes_this_month", "Bytes this month", extra=(("device_class", "data_size"), ("unit_of_measurement", "B"))),
)
PREDICTED: Final = (Entity("label", "Prediction"), Entity("score", "Score of the prediction"))


class HomeAssistant:
    """What one agent tells Home Assistant. `publish` is the link's: topic, payload, retain, QoS."""

    def __init__(self, settings: Config, predictions: str, publish: Callable[[str, bytes, bool, int], bool]) -> None:
        self._settings, self._publish = settings, publish
        self._predictions = predictions  # the topic
        self._announced = False
        self._due_ms = 0

    @property
    def topic(self) -> str:
        """Where the state is published."""
        return f"hedgerow/{self._settings.device.id}/state"

    def tell(self, status: Status, now_ms: int) -> None:
        """Announce the entities, once, and say how the device is, when that is due and the link is up."""
        if self._settings.home_assistant is None or not status.link_up:
            return
        if not self._announced:
            self._announced = all(self._publish(*message, True, 1) for message in self.announcements())
        if now_ms >= self._due_ms:
            self._due_ms = now_ms + self._settings.telemetry.every_s * 1000
            self._publish(self.topic, msgspec.json.encode(state_of(status, online=True)), False, 0)

    def goodbye(self, status: Status) -> None:
        """Say that the device ends in order."""
        if self._settings.home_assistant is not None:
            self._publish(self.topic, msgspec.json.encode(state_of(status, online=False)), False, 1)

    def announcements(self) -> list[tuple[str, bytes]]:
        """(topic, payload) of each entity."""
        section, device = self._settings.home_assistant, self._settings.device
        assert section is not None, "only asked for where the section is there"
        node = f"{device.fleet}-{device.id}"
        of = {"identifiers": [node], "name": device.id, "manufacturer": "hedgerow"}
        entities = [(entity, self.topic, SILENCES * self._settings.telemetry.every_s) for entity in ENTITIES]
        if self._settings.source is not None:
            entities += [(entity, self._predictions, 0) for entity in PREDICTED]
        return [
            (
                f"{section.prefix}/{entity.component}/{node}/{entity.key}/config",
                msgspec.json.encode(
                    {
                        "name": entity.name,
                        "unique_id": f"{node}-{entity.key}",
                        "state_topic": topic,
                        "value_template": f"{{{{ value_json.{entity.key} }}}}",
                        "device": of,
                        **({"expire_after": silence_s} if silence_s else {}),
                        **dict(entity.extra),
                    }
                ),
            )
            for entity, topic, silence_s in entities
        ]


def state_of(status: Status, *, online: bool) -> dict[str, Any]:
    """What is published; null is unknown."""
    month = next((row.this_month for row in status.account.rows if row.purpose == "all"), None)
    return {
        "online": online,
        "round": status.last_round_id,
        "version": status.model_version,
        "battery": None if status.battery_rate is None else round(status.battery_rate * 100),
        "temperature": None if status.temperature_c is None else round(status.temperature_c, 1),
        "bytes_this_month": month,
    }
