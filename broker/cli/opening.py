"""What every command does first: find the configuration, open the store, and turn our sentences into one line."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.config import Config
    from broker.store import Store

ENVIRONMENT: Final = "HEDGEROW_BROKER"
FILE_NAME: Final = "broker.toml"

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"The configuration, or its directory. Default: ./{FILE_NAME}, else ${ENVIRONMENT}.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON, for scripts.")


@contextlib.contextmanager
def spoken(*more: type[Exception]) -> Iterator[None]:
    """Turn configuration and store errors, and those of `more`, into click's one line and status 1."""
    from broker.config import ConfigError
    from broker.database import StoreError

    kinds: tuple[type[Exception], ...] = (ConfigError, StoreError, *more)
    try:
        yield
    except kinds as error:
        raise click.ClickException(str(error)) from error


def run_command(command: click.Command, extra: str) -> None:
    """Run a console script's command; a library that only an extra brings, and is missing, is one line too."""
    try:
        command()
    except ModuleNotFoundError as error:
        click.echo(f"Error: {error.name} is not installed: pip install 'hedgerow[{extra}]'", err=True)
        raise SystemExit(1) from None


def open_config(path: Path | None) -> Config:
    """Load the configuration that the user means; ConfigError when there is none."""
    from broker.config import load

    named = path or Path(FILE_NAME)
    if path is None and not named.exists() and os.environ.get(ENVIRONMENT):
        named = Path(os.environ[ENVIRONMENT])
    return load(named / FILE_NAME if named.is_dir() else named)


def open_store(config: Config, *, read_only: bool) -> Store:
    """Open the fleet's store, which must be there; StoreError otherwise."""
    from broker.store import Store

    return Store(config.store_place(), read_only=read_only, make=False)
