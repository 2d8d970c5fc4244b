"""`broker round`: ask for rounds, give them up, and see how they went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from broker.cli.opening import config_option, json_option, open_config, open_store, spoken

if TYPE_CHECKING:
    from pathlib import Path


@click.group("round")
def round_() -> None:
    """Ask for rounds, give them up, and see how they went."""


@round_.command("open")
@config_option
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, 10_000), help="How many, in a row.")
@click.option("--mode", type=click.Choice(["buffered", "synchronous"]), help="Close when enough came, or wait for all.")
@click.option("--min-devices", "updates_min", type=click.IntRange(1), help="Never close with fewer updates.")
@click.option(
    "--enough", "updates_enough", type=click.IntRange(1), help="Buffered: close at once with so many updates."
)
@click.option(
    "--cohort", "cohort_max", type=click.IntRange(0), help="Want so many, drawn by lot; 0: everyone who is there."
)
@click.option("--oversample", type=click.FloatRange(1, 10), help="Synchronous: invite so many times as many.")
@click.option("--lasts", metavar="90s|10m|2h", help="How long to wait for the slowest.")
@click.option("--tags", default="", metavar="TAG,TAG", help="Only devices that have every one: broker fleet tag.")
@click.option("--min-examples", "num_examples_min", type=click.IntRange(1), help="Only devices with so many examples.")
@click.option("--min-version", "version_min", default=0, type=click.IntRange(0), help="Only devices that had this one.")
@click.option(
    "--min-battery", "battery_rate_min", default=0.0, type=click.FloatRange(0, 1), help="0.3: 30 %, where told."
)
@click.option("--at-most", metavar="N/M", help="No device in more than N of the last M rounds, as in 2/10.")
@click.option("--lane", type=click.Choice(["economy", "hardened"]), help="Hardened: for rules that rank parameters.")
@click.option("--epochs", type=click.IntRange(1), help="How often a device goes through its examples.")
@click.option("--batch-size", type=click.IntRange(1))
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True))
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True))
@click.option("--proximal", type=click.FloatRange(0, 1e4), help="Pull steps to the base version (FedProx); 0: not.")
@click.option("--keep-local", type=click.IntRange(0, 64), help="So many last trained layers stay on each device.")
@click.option("--scaffold/--no-scaffold", default=None, help="Correct steps by what sets a device apart (SCAFFOLD).")
@click.option("--keep", "keep_rate", type=click.FloatRange(0, 1, min_open=True), help="Share of parameters sent.")
@click.option("--value-bits", type=click.IntRange(0, 8), help="Of one value; 0: exact where the model is int8.")
@click.option("--coding", type=click.Choice(["rice", "context"]), help="Cheap to read here, or cheap to send.")
@click.option("--update-bytes", "update_bytes_max", type=click.IntRange(0), help="Send what fits; 0: what --keep says.")
def open_(
    *,
    config_path: Path | None,
    count: int,
    lasts: str | None,
    tags: str,
    version_min: int,
    battery_rate_min: float,
    at_most: str | None,
    **options: Any,
) -> None:
    """Let rounds wait for the coordinator, which opens them one after the other. Defaults stand in broker.toml.

    Prints what one update will cost: its bytes, and the time that it takes to read here, measured now.

    Exit status: 0 they wait, 1 refused, 2 wrong usage.
    """
    from broker.config import parse_duration_ms
    from broker.cost import sentences
    from broker.views import ViewError, ask_for_rounds, choice_of, cost_of_plan

    with spoken(ViewError):
        choice = choice_of(tags, battery_rate_min, version_min, at_most)
        config = open_config(config_path)
        lasts_ms = None if lasts is None else parse_duration_ms(lasts)
        with open_store(config, read_only=False) as store:
            ids = ask_for_rounds(config, store, count=count, lasts_ms=lasts_ms, choice=choice, **options)
            plan = next(row.plan for row in store.rounds() if row.round_id == ids[0])
            cost = cost_of_plan(config, store, plan)
    click.echo(f"Round {ids[0]} waits." if count == 1 else f"Rounds {ids[0]} to {ids[-1]} wait.")
    click.echo("\n".join(sentences(cost)))


@round_.command("cancel")
@config_option
@click.argument("round_id", metavar="ROUND", type=click.IntRange(1))
def cancel(config_path: Path | None, round_id: int) -> None:
    """End a round without a new version: a waiting one never opens, an open one closes unless its sum is under way.

    Nothing that devices finished is lost: updates of this round are counted by the next one that closes.

    Exit status: 0 it is or will be cancelled, 1 it has closed or there is none, 2 wrong usage.
    """
    from broker.views import ViewError, cancel_round

    with spoken(ViewError), open_store(open_config(config_path), read_only=False) as store:
        is_over = cancel_round(store, round_id)
    click.echo(f"Round {round_id} is cancelled" + ("." if is_over else " as soon as broker serve runs."))


@round_.command("pause")
@config_option
def pause(config_path: Path | None) -> None:
    """Let no round open, and no trial, until broker round resume. The open one goes on.

    Exit status: 0 paused, 1 no store, 2 wrong usage.
    """
    with spoken(), open_store(open_config(config_path), read_only=False) as store:
        store.stages.pause(paused=True)
    click.echo("No round opens any more: broker round resume.")


@round_.command("resume")
@config_option
def resume(config_path: Path | None) -> None:
    """Let rounds open again.

    Exit status: 0 they do, 1 no store, 2 wrong usage.
    """
    with spoken(), open_store(open_config(config_path), read_only=False) as store:
        store.stages.pause(paused=False)
    click.echo("Rounds open again.")


@round_.command("list")
@click.option("--kind", type=click.Choice(["training", "trial"]), help="Only rounds of this kind.")
@click.option("--status", type=click.Choice(["waiting", "open", "closed", "cancelled", "cancelling"]))
@config_option
@json_option
def list_(kind: str | None, status: str | None, config_path: Path | None, as_json: bool) -> None:
    """Show every round, or those of one kind or status.

    Exit status: 0 shown, 1 no store, 2 wrong usage.
    """
    from broker.cli.printing import print_json, print_table
    from broker.views import round_rows

    with spoken(), open_store(open_config(config_path), read_only=True) as store:
        wanted = {"kind": kind, "status": status}
        rows = [row for row in round_rows(store) if all(row[key] == each for key, each in wanted.items() if each)]
    if as_json:
        print_json(rows)
        return
    shown = ("round_id", "kind", "status", "base_version", "model_version", "updates_stored", "updates_counted")
    keys = (*shown, "mode", "updates_min", "updates_enough", "cohort_max")
    columns = (
        "round",
        "kind",
        "status",
        "from version",
        "made version",
        "updates",
        "counted",
        "mode",
        "at least",
        "enough",
    )
    table = [[row[key] for key in keys] + [f"{row['lasts_ms'] // 1000} s"] for row in rows]
    print_table((*columns, "cohort", "lasts"), table, "No round yet: broker round open")
