"""`broker plan`: what devices will be told to do, and whether it can be done."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.opening import config_option, json_option, open_config, open_store, spoken

if TYPE_CHECKING:
    from broker.config import Config
    from broker.lanes import Contradiction


@click.group()
def plan() -> None:
    """See what devices are told to do, and check it before they are."""


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


@plan.command()
@click.argument("file", metavar="PLAN.toml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@config_option
@json_option
def check(file: Path, config_path: Path | None, as_json: bool) -> None:
    """Name everything in PLAN.toml that contradicts itself, a lane, or the fleet's model. Nothing is sent or changed.

    PLAN.toml holds sections of broker.toml, all or some: what it lacks is as configured. Where there is no
    configuration, nor in PLAN.toml itself, what needs the model is left out.

    Exit status: 0 nothing is wrong, 1 something is, 2 wrong usage.
    """
    import msgspec

    from broker.cli.printing import print_json
    from broker.plan_check import sentences

    with spoken():
        text = _text(file)
        found, told = _examine(text, _base(file, config_path))
    if as_json:
        print_json({"contradictions": [msgspec.structs.asdict(each) for each in found], "summary": told})
    else:
        without = "No contradiction. Sizes, memory and bytes are told where there is a fleet: --config"
        click.echo("\n".join(map(str, found)) or "\n".join(sentences(told) if told else [without]))
    raise SystemExit(1 if found else 0)


def _text(file: Path) -> str:
    from broker.config import ConfigError

    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error


def _base(file: Path, config_path: Path | None) -> Config | None:
    """The configuration that the file is read over: the one that is meant, else the file's own, else none."""
    from broker.config import ConfigError, load

    if config_path is not None:
        return open_config(config_path)
    with contextlib.suppress(ConfigError):
        return open_config(None)
    with contextlib.suppress(ConfigError):
        return load(file)
    return None


def _examine(text: str, base: Config | None) -> tuple[list[Contradiction], dict[str, Any] | None]:
    """All contradictions, and what the plan means, where there is none and a fleet to mean it for."""
    from broker.cost import cost_of
    from broker.plan_check import fit, read_plan, summary

    asked, found = read_plan(text, base)
    if base is None:
        return found, None
    with open_store(base, read_only=True) as store:
        plan, frame, more = fit(asked, base, store)
        if found or more or plan is None or frame is None:
            return [*found, *more], None
        return [], summary(asked, plan, cost_of(plan, frame), store)
