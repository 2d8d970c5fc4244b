"""`broker fleet`: who may take part, and how each of them is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from broker.cli.opening import config_option, json_option, open_config, open_store, spoken

if TYPE_CHECKING:
    from pathlib import Path

tags_option = click.option(
    "--tags", "tags", default="", metavar="TAG,TAG", help="Only devices that have every one: broker fleet tag."
)


@click.group()
def fleet() -> None:
    """Enrol devices, and see how they are."""


@fleet.command()
@click.argument("device_id", metavar="ID")
@click.argument("key")
@config_option
def add(device_id: str, key: str, config_path: Path | None) -> None:
    """Enrol the device ID with its public KEY (edge-agent keygen prints it). A running coordinator notices at once.

    Exit status: 0 enrolled, 1 refused, 2 wrong usage.
    """
    from wire.keys import KeyTextError, verifier
    from wire.topics import TopicError, check_name

    with spoken(KeyTextError, TopicError):
        check_name("device", device_id)
        verifier(key)
        with open_store(open_config(config_path), read_only=False) as store:
            is_new = store.add_device(device_id, key)
    click.echo(f"{device_id} is enrolled." if is_new else f"{device_id} was enrolled already, with this key.")


@fleet.command()
@click.argument("device_id", metavar="ID")
@config_option
def remove(device_id: str, config_path: Path | None) -> None:
    """Take the device ID out of the fleet. Updates with a receipt stay and are counted.

    Exit status: 0 removed, 1 there is no such device, 2 wrong usage.
    """
    with spoken(), open_store(open_config(config_path), read_only=False) as store:
        if not store.remove_device(device_id):
            raise click.ClickException(f"{device_id} is not enrolled: see broker fleet list")
    click.echo(f"{device_id} is no longer enrolled.")


@fleet.command()
@click.argument("device_id", metavar="ID")
@click.argument("tags", metavar="[TAG]...", nargs=-1)
@config_option
def tag(device_id: str, tags: tuple[str, ...], config_path: Path | None) -> None:
    """Call the device ID by these tags, and by no others: the groups that broker round open --tags asks for.

    Exit status: 0 it is called so, 1 there is no such device, or no such tag can be, 2 wrong usage.
    """
    from broker.views import ViewError, call_device

    with spoken(ViewError), open_store(open_config(config_path), read_only=False) as store:
        call_device(store, device_id, tags)
    click.echo(f"{device_id} has " + (f"the tags {', '.join(sorted(set(tags)))}." if tags else "no tags."))


@fleet.command()
@click.argument("device_id", metavar="ID")
@config_option
@json_option
def show(device_id: str, config_path: Path | None, as_json: bool) -> None:
    """Show one device, and its history: rounds offered, drawn and finished, updates that came late.

    Exit status: 0 shown, 1 there is no such device, 2 wrong usage.
    """
    from broker.cli.printing import print_json, print_table
    from broker.views import ViewError, device_row

    config = open_config(config_path)
    with spoken(ViewError), open_store(config, read_only=True) as store:
        row = device_row(store, config.fleet.id, device_id)
    if as_json:
        print_json(row)
        return
    shown = {**row, "tags": ", ".join(row["tags"])}
    print_table(("field", "value"), [[key, "" if value is None else value] for key, value in shown.items()], "")


@fleet.command("list")
@tags_option
@click.option("--present/--absent", default=None, help="Only devices that are there, or that are not.")
@config_option
@json_option
def list_(tags: str, present: bool | None, config_path: Path | None, as_json: bool) -> None:
    """Show every enrolled device: is it there, what does it do, how many of its updates were counted, or came late?

    Exit status: 0 shown, 1 no store, 2 wrong usage.
    """
    from broker.cli.printing import ago, print_json, print_table
    from broker.views import ViewError, fleet_rows, tags_of

    with spoken(ViewError), open_store(open_config(config_path), read_only=True) as store:
        rows = fleet_rows(store, tags_of(tags), present=present)
    if as_json:
        print_json(rows)
        return
    columns = ("device", "present", "seen", "examples", "version", "work", "counted", "late", "last", "tags", "reason")
    table = [
        (
            r["device_id"],
            "yes" if r["present"] else "no",
            ago(r["seen_unix_s"]) if r["seen_unix_s"] else "never",
            *(r[key] for key in ("num_examples", "model_version", "work", "updates_counted", "updates_late")),
            r["last_round_id"] or "",
            " ".join(r["tags"]),
            r["reason"],
        )
        for r in rows
    ]
    print_table(columns, table, _none(bool(tags) or present is not None))


def _none(is_filtered: bool) -> str:
    return "No such device: broker fleet list" if is_filtered else "No device is enrolled: broker fleet add ID KEY"


@fleet.command("bytes")
@tags_option
@config_option
@json_option
def bytes_(tags: str, config_path: Path | None, as_json: bool) -> None:
    """Show what every device sent and received since it was enrolled, by purpose, as its last telemetry says.

    A dash: no telemetry yet. The last column is all its bytes, both ways, for each of its updates that was counted.

    Exit status: 0 shown, 1 no store, 2 wrong usage.
    """
    from broker.cli.printing import print_json, print_table
    from broker.views import ViewError, byte_rows, tags_of

    with spoken(ViewError), open_store(open_config(config_path), read_only=True) as store:
        found = byte_rows(store, tags_of(tags))
    if as_json:
        print_json(found)
        return
    rows = [_byte_cells(row["device_id"], row) for row in found["devices"]]
    if len(rows) > 1:
        rows.append(_byte_cells("all", found["total"]))
    print_table(_BYTE_COLUMNS, rows, _none(bool(tags)))
    own = found["coordinator"]
    click.echo(
        f"While rounds were open, the coordinator received {own['bytes_up']:,} bytes and sent {own['bytes_down']:,}."
    )


_BYTE_COLUMNS = (
    "device",
    "updates",
    "again",
    "model",
    "telemetry",
    "control",
    "transport",
    "up",
    "down",
    "counted",
    "bytes for each",
    "told",
)


def _byte_cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one line: numbers with commas, what is unknown empty."""
    from broker.cli.printing import ago

    def both(purpose: str) -> float | None:
        sides = (row[f"{purpose}_up"], row[f"{purpose}_down"])
        return None if None in sides else sum(sides)

    numbers = (
        row["update_up"],
        row["retry_up"],
        both("model"),
        row["telemetry_up"],
        both("control"),
        both("transport"),
        row["bytes_up"],
        row["bytes_down"],
        row["counted"],
        row["per_counted"],
    )
    when = row.get("told_unix_s")
    return (name, *("" if number is None else f"{number:,.0f}" for number in numbers), ago(when) if when else "")


@fleet.command()
@click.option("--tags", default="", metavar="TAG,TAG", help="Only the groups of these tags.")
@config_option
@json_option
def drift(tags: str, config_path: Path | None, as_json: bool) -> None:
    """Show how good the model is in the field, for the whole fleet and each group of a tag, and who drifts.

    Devices report how many of their own held-out examples a version answers right. The newest five versions are
    compared with the fives before by a one-sided two-proportion z test; "too few": below 50 examples.

    Exit status: 0 shown, whatever it shows, 1 no store, 2 wrong usage.
    """
    from broker.cli.printing import print_json, print_table
    from broker.views import ViewError, drift_rows, tags_of

    with spoken(ViewError), open_store(open_config(config_path), read_only=True) as store:
        rows = drift_rows(store, tags_of(tags))
    if as_json:
        print_json(rows)
        return
    columns = ("group", "versions", "devices", "examples", "accuracy", "before", "drop", "p", "verdict", "over time")
    empty = "No device has reported on held-out examples of its own."
    print_table(columns, [_drift_cells(row) for row in rows], "No such group: broker fleet drift" if tags else empty)


def _drift_cells(row: dict[str, Any]) -> tuple[object, ...]:
    from broker.cli.printing import rate, spark

    now, best = row["windows"][-1], row["best"]
    accuracies = [window["accuracy"] for window in row["windows"]]
    return (
        row["group"],
        f"{now['first']} to {now['last']}",
        now["devices"],
        now["count"],
        rate(now["correct"], now["count"]),
        best and f"{best['accuracy']:.4f} in {best['first']} to {best['last']}",
        best and f"{row['drop']:+.4f}",
        best and f"{row['p']:.2g}",
        row["verdict"],
        spark(accuracies, min(accuracies), max(accuracies)),
    )
