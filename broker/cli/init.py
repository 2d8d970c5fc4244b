"""`broker init`: a new fleet's directory, with keys, configuration and the first model version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from broker.cli.opening import spoken


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", "model", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="The model's name. Default: the name of its file.")
@click.option("--train", default="last-2", show_default=True, help="What learns: last-3, bias-4, blocks-2, full, 9:b.")
@click.option("--reset-seed", type=click.IntRange(0), help="Forget what the trainable layers knew; start at random.")
@click.option("--fleet", default="fleet", show_default=True, help="The fleet's id: a-z, 0-9 and '-'.")
@click.option("--mqtt", default="embedded", show_default=True, help="embedded, mqtt://host:1883 or mqtts://host:8883.")
@click.option(
    "--store",
    default="",
    metavar="URL",
    help="PostgreSQL in place of a file: postgresql://user@host/database, with the password from PGPASSFILE.",
)
@click.option(
    "--evaluate",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    default=None,
    metavar="NPZ",
    help="Held-out windows x and labels y of the coordinator, to measure accuracy on.",
)
def init(directory: Path, model: Path, **options: Any) -> None:
    """Make DIRECTORY the home of a new fleet whose devices train the .tflite MODEL.

    Exit status: 0 made, 1 refused (nothing is ever overwritten), 2 wrong usage.
    """
    from broker.founding import FoundingError, Wishes, found
    from engine.models.graph import ModelError

    with spoken(FoundingError, ModelError):
        given = {"name": options["name"] or model.stem, "evaluate": options["evaluate"] or ""}
        wishes = Wishes(model, **{**options, **given})
        founded = found(directory, wishes)
    click.echo(f"Fleet {wishes.fleet}: model {wishes.name} with {founded.num_params} trainable parameters, version 1.")
    click.echo(f"The coordinator's public key, for every device:\n  {founded.public_key}")
    click.echo("Next:")
    click.echo(f"  broker fleet add DEVICE-ID DEVICE-KEY --config {directory}")
    click.echo(f"  broker serve --config {directory}")
    click.echo(f"  broker round open --config {directory}")
