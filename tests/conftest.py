"""Fixtures that several packages share: an MQTT server and a PostgreSQL server of one's own."""

from __future__ import annotations

import signal
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker import mqtt_server as servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.database import Place
    from tests.databases import PostgresServer

# Whoever runs the tests in the background may have us ignore Ctrl-C, which our children would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, one for the whole run; tests that need one are skipped where it is not installed."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("needs PostgreSQL: there is no /usr/lib/postgresql/*/bin/initdb (apt-get install postgresql)")
    from tests.databases import PostgresServer

    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where stores may be made, one after the other; a test that asks runs once for each database."""
    if request.param == "sqlite":
        return (tmp_path / "broker.db" if not number else tmp_path / f"broker-{number}.db" for number in count())
    server: PostgresServer = request.getfixturevalue("postgres")
    return (server.fresh() for _ in count())


@pytest.fixture
def place(places: Iterator[Place]) -> Place:
    """Where a store may be made."""
    return next(places)
