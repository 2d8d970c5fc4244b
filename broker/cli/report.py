"""`broker report`: a page about the fleet's rounds."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli.opening import config_option, json_option, open_config, open_store, spoken


@click.command()
@config_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to. Default: report, beside the configuration.",
)
@json_option
def report(config_path: Path | None, out: Path | None, as_json: bool) -> None:
    """Write one HTML page with plots: accuracy, bytes, who was counted, staleness, energy, refusals, drift by group.

    Exit status: 0 written, 1 no round has closed yet or matplotlib is missing, 2 wrong usage.
    """
    from broker.cli.printing import print_json, shown
    from broker.report import ReportError, write
    from broker.views import version_rows

    with spoken(ReportError):
        config = open_config(config_path)
        with open_store(config, read_only=True) as store:
            versions = version_rows(store)
        page = write(config.store_place(), out or config.path("report"), show=shown("drawing"))
    if as_json:
        print_json({"page": str(page), "versions": versions})
    else:
        click.echo(f"The report is in {page}.")
