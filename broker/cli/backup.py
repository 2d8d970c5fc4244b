"""`broker backup` and `broker restore`: everything that the store holds, in one file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from broker.cli.opening import config_option, open_config, spoken

if TYPE_CHECKING:
    from broker.backup import Copied

_NOT_IN_IT: Final = "The coordinator's key and its configuration are not in it: keep {} as well, and as safe."


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@config_option
def backup(out: Path, config_path: Path | None) -> None:
    """Write everything that the store holds into the new file OUT, also while broker serve runs.

    Exit status: 0 written, 1 refused or the disk is full (then there is no OUT), 2 wrong usage.
    """
    from broker.backup import backup as run
    from broker.cli.printing import shown

    with spoken():
        config = open_config(config_path)
        copied = run(config.store_place(), out, shown("backing up"))
    click.echo(f"{_what(copied)} are in {out}.")
    click.echo(_NOT_IN_IT.format(config.path(config.key.file)))


@click.command()
@click.argument("file", metavar="FROM", type=click.Path(dir_okay=False, path_type=Path))
@config_option
def restore(file: Path, config_path: Path | None) -> None:
    """Make the configured store, of either database, of the backup in FROM. There must be none yet.

    Exit status: 0 restored, 1 refused or damaged (then there is still no store), 2 wrong usage.
    """
    from broker.backup import restore as run
    from broker.cli.printing import shown

    with spoken():
        config = open_config(config_path)
        copied = run(file, config.store_place(), shown("restoring"))
    click.echo(f"{_what(copied)} are in {config.store_place()}.")
    click.echo(_NOT_IN_IT.format(config.path(config.key.file)))


def _what(copied: Copied) -> str:
    return f"{copied.row_count} rows (digest {copied.digest.hex()[:16]})"
