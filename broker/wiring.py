"""What stands around the loop, made from the configuration: the link, and the servers that we run."""

from __future__ import annotations

import os
import random
from functools import partial
from typing import TYPE_CHECKING, Final

from broker.claims import Claims
from broker.config import ConfigError
from wire import topics
from wire.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker.config import Config
    from broker.database import Place
    from broker.file_server import FileServer
    from broker.health_server import HealthServer
    from broker.mqtt_server import Server
    from broker.service import Service
    from broker.store import Store
    from wire.envelope import Sign
    from wire.link import LinkEvent

LINK_QUEUE_COUNT_MAX: Final = 65_536  # a round's offers to a large fleet leave at once
LINK_QUEUE_BYTES_MAX: Final = 64 << 20
LINK_IN_FLIGHT_MAX: Final = 16  # a quarter more messages a second than with 4 while the loop computes


class ServiceError(Exception):
    """The coordinator cannot start, or cannot go on. One line."""


def link(
    config: Config, url: str, last_will: Callable[[], tuple[str, bytes]], post: Callable[[LinkEvent], None]
) -> Link:
    """The link to the MQTT server at `url`, not started. Raises ConfigError."""
    mqtt = config.mqtt
    try:
        password = config.path(mqtt.password_file).read_text("utf-8").rstrip("\n") if mqtt.password_file else None
        return Link(
            url,
            f"{config.fleet.id}-coordinator",  # fixed: the MQTT server lets only one of that name stay
            filters=topics.coordinator_filters(config.fleet.id),
            will=last_will,
            will_retain=True,  # else a device that comes later reads that we are online
            post=post,
            jitter=random.Random(os.urandom(16)),  # noqa: S311
            username=mqtt.username or None,
            password=password,
            ca_file=_named(config, mqtt.ca_file),
            cert_file=_named(config, mqtt.cert_file),
            key_file=_named(config, mqtt.key_file),
            in_flight_max=LINK_IN_FLIGHT_MAX,
            queue_count_max=LINK_QUEUE_COUNT_MAX,
            queue_bytes_max=LINK_QUEUE_BYTES_MAX,
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"[mqtt]: {error}") from error


def file_server(config: Config, place: Place) -> FileServer:
    """The file server of the configuration, serving. Raises ConfigError."""
    from broker.file_server import FileServer

    http = config.http
    try:
        return FileServer(place, http.bind, http.port, _named(config, http.cert_file), _named(config, http.key_file))
    except (ValueError, OSError) as error:
        raise ConfigError(f"[http]: {error}") from error


def health_server(config: Config, place: Place, service: Service) -> HealthServer:
    """What monitors ask of `service`, serving. Raises ConfigError."""
    from broker.health_server import HealthServer
    from broker.store import Store

    service.metrics.watch(lambda: Store(place, read_only=True), lambda: not service.unready())
    try:
        return HealthServer(
            config.metrics.bind, config.metrics.port, service.metrics.page, service.trouble, service.unready
        )
    except OSError as error:
        raise ConfigError(f"[metrics]: {error}") from error


def claims(config: Config, store: Store, sign: Sign, refused_count: dict[str, int]) -> Claims:
    """What answers devices that come with a token, or for another certificate."""
    from broker.enrolling import issue

    return Claims(config.fleet.id, sign, store, partial(issue, config), refused_count)


def embedded(config: Config) -> Server:
    """The embedded MQTT server, running. Raises ServiceError."""
    from broker.mqtt_server import MqttServerError, start

    try:
        return start(config.path("mqtt"), port=config.mqtt.port or None)
    except MqttServerError as error:
        raise ServiceError(str(error)) from error


def is_running(server: Server) -> bool:
    """Is the embedded MQTT server's process there?"""
    from broker.mqtt_server import MqttServerError

    try:
        return server.pid > 0
    except MqttServerError:
        return False


def restart(server: Server) -> None:
    """Start the embedded MQTT server again. Raises ServiceError."""
    from broker.mqtt_server import MqttServerError

    try:
        server.restart()
    except MqttServerError as error:
        raise ServiceError(f"the MQTT server ended and cannot be started again: {error}") from error


def _named(config: Config, name: str) -> Path | None:
    return config.path(name) if name else None
