"""`broker plan`: what devices will be told to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker.cli.opening import config_option, json_option, open_config, open_store, spoken

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def plan() -> None:
    """See what devices are told to do."""


@plan.command()
@config_option
@json_option
def show(config_path: Path | None, as_json: bool) -> None:
    """Show the plan that broker round open would use now, and what its coding costs, measured here.

    Exit status: 0 shown, 1 no plan comes of the configuration, 2 wrong usage.
    """
    import msgspec

    from broker.cli.printing import print_json, print_table
    from broker.cost import sentences
    from broker.views import cost_of_plan, current_plan, plan_row

    with spoken():
        config = open_config(config_path)
        with open_store(config, read_only=True) as store:
            plan = current_plan(config, store)
            cost = cost_of_plan(config, store, plan)
    row = plan_row(plan)
    if as_json:
        print_json({**row, "cost": msgspec.structs.asdict(cost)})
        return
    row["digest"] = row["digest"].hex()
    print_table(("field", "value"), list(row.items()), "")
    click.echo("\n".join(sentences(cost)))
