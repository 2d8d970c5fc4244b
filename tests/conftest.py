"""Fixtures that several packages share: an MQTT server of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker import mqtt_server as servers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def mqtt_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """Any MQTT server, one for the whole run: tests keep apart by using fleets of their own."""
    server = servers.start(tmp_path_factory.mktemp("mqtt"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def mosquitto() -> servers.Mosquitto:
    """A mosquitto that can be started here; tests that need one are skipped otherwise."""
    found = servers.find_mosquitto()
    if found is None:
        pytest.skip("needs mosquitto: this machine has only amqtt")
    return found


@pytest.fixture
def mosquitto_server(
    mosquitto: servers.Mosquitto, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.Server]:
    """A mosquitto for this test alone, which may kill it."""
    server = servers.start(tmp_path_factory.mktemp("mosquitto"), kind="mosquitto")
    yield server
    server.stop()
