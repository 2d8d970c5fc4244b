"""`broker serve`: coordinate the fleet, until told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker.cli.opening import config_option, open_config, spoken

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@config_option
@click.option("--mqtt", metavar="embedded|URL", help="Another MQTT server than the configured one.")
@click.option(
    "--port", type=click.IntRange(1, 65_535), help="The embedded MQTT server's port. Default: the configured one."
)
def serve(config_path: Path | None, mqtt: str | None, port: int | None) -> None:
    """Coordinate: open the rounds that wait, take updates, make model versions. Prints its log.

    A second one with the same store stands by, and takes over when the first has ended.

    Exit status: 0 after SIGTERM or Ctrl-C, 1 when it could not start or go on (start it again), 2 wrong usage.
    """
    import msgspec

    from broker.aggregate.rules import AggregateError
    from broker.evaluate import EvaluateError
    from broker.service import serve as run
    from broker.wiring import ServiceError
    from wire.keys import KeyTextError

    with spoken(ServiceError, AggregateError, EvaluateError, KeyTextError):
        config = open_config(config_path)
        there = msgspec.structs.replace(config.mqtt, url=mqtt or config.mqtt.url, port=port or config.mqtt.port)
        run(msgspec.structs.replace(config, mqtt=there), click.echo)
