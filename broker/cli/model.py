"""`broker model`: the versions that came of the rounds."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli.opening import config_option, json_option, open_config, open_store, spoken


@click.group()
def model() -> None:
    """See model versions, settle their stage, and take one out."""


@model.command("list")
@click.option("--stage", type=click.Choice(["candidate", "promoted", "rolled back"]), help="Only versions of this one.")
@config_option
@json_option
def list_(stage: str | None, config_path: Path | None, as_json: bool) -> None:
    """Show every version, with its accuracy here and on the devices' own held-out examples.

    Exit status: 0 shown, 1 no store, 2 wrong usage.
    """
    from broker.cli.printing import ago, print_json, print_table, rate
    from broker.views import version_rows

    with spoken(), open_store(open_config(config_path), read_only=True) as store:
        rows = [row for row in version_rows(store) if stage in (None, row["stage"])]
    if as_json:
        print_json(rows)
        return
    keys = ("model_version", "stage", "parent_version", "round_id", "members", "bytes_up", "bytes_down")
    table = [
        [row[key] for key in keys]
        + [None if row["accuracy"] is None else f"{row['accuracy']:.4f}"]
        + [rate(row["field_correct"], row["field_count"]), ago(row["created_unix_s"])]
        for row in rows
    ]
    columns = (
        "version",
        "stage",
        "parent",
        "round",
        "updates",
        "bytes up",
        "bytes down",
        "accuracy",
        "in the field",
        "made",
    )
    print_table(columns, table, "There is no version: make a new directory with broker init")


@model.command()
@click.argument("version", type=click.IntRange(1))
@config_option
@json_option
def show(version: int, config_path: Path | None, as_json: bool) -> None:
    """Show one VERSION: where it comes from, its stage and why, its files, whose updates it counts, who tried it.

    Exit status: 0 shown, 1 there is no such version, 2 wrong usage.
    """
    from broker.cli.printing import print_json, print_table
    from broker.views import ViewError, version_row

    with spoken(ViewError), open_store(open_config(config_path), read_only=True) as store:
        row = version_row(store, version)
    if as_json:
        print_json(row)
        return
    members = ", ".join(f"{m['device_id']} ({m['round_id']})" for m in row.pop("updates"))
    files = ", ".join(f"{f['name']} {f['size_bytes']} B {f['digest'].hex()[:16]}" for f in row.pop("files"))
    row["params_digest"], trials = row["params_digest"].hex(), row.pop("trials")
    print_table(("field", "value"), [*row.items(), ("files", files), ("device (round)", members)], "")
    keys = ("device_id", "round_id", "held_out_correct", "held_out_count", "compared_with", "won", "lost", "refused")
    columns = ("tried by", "round", "right", "of", "beside version", "won", "lost", "refused because")
    if trials:
        print_table(columns, [[trial[key] for key in keys] for trial in trials], "")


@model.command()
@click.argument("version", type=click.IntRange(1))
@config_option
def promote(version: int, config_path: Path | None) -> None:
    """Let the candidate VERSION be the fleet's, whatever its trials say.

    Exit status: 0 it is or will be, 1 it is no candidate, 2 wrong usage.
    """
    from broker.views import ViewError, wish_promoted

    with spoken(ViewError), open_store(open_config(config_path), read_only=False) as store:
        wish_promoted(store, version)
    click.echo(f"Version {version} is promoted as soon as broker serve runs.")


@model.command()
@click.argument("version", type=click.IntRange(1), required=False)
@config_option
def rollback(version: int | None, config_path: Path | None) -> None:
    """Let the fleet go back to VERSION, by default the one before the newest; a candidate is put out.

    Its numbers come back as a new version, since versions only grow; who has its files fetches nothing. An open round
    ends: what devices finished of it is stored, and counted by the next one.

    Exit status: 0 it is or will be done, 1 there is no such version, or it is too old, 2 wrong usage.
    """
    from broker.views import ViewError, wish_restored

    with spoken(ViewError), open_store(open_config(config_path), read_only=False) as store:
        wanted = wish_restored(store, version)
    click.echo(f"The fleet goes back to version {wanted} as soon as broker serve runs.")


@model.command()
@click.argument("older", type=click.IntRange(1))
@click.argument("newer", type=click.IntRange(1))
@config_option
@json_option
def diff(older: int, newer: int, config_path: Path | None, as_json: bool) -> None:
    """Show how far each layer moved from version OLDER to version NEWER.

    Exit status: 0 shown, 1 there is no such version or it is too old, 2 wrong usage.
    """
    import msgspec

    from broker.cli.printing import print_json, print_table
    from broker.difference import between
    from broker.views import ViewError, manifest_of
    from engine.models.graph import ModelError

    with spoken(ViewError, ModelError):
        config = open_config(config_path)
        with open_store(config, read_only=True) as store:
            found = between(manifest_of(store, older), manifest_of(store, newer), config.model.train, store)
    if as_json:
        print_json([msgspec.structs.asdict(each) for each in found])
        return
    table = [
        (each.layer, each.num_params, each.num_changed, each.moved and f"{each.moved:.4f}", f"{each.largest:.4g}")
        for each in found
    ]
    print_table(("layer", "params", "changed", "moved / norm", "largest step"), table, "nothing trains")


@model.command()
@click.argument("version", type=click.IntRange(1))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.tflite")
@config_option
def export(version: int, out: Path, config_path: Path | None) -> None:
    """Write VERSION as one .tflite file, with what was learned inside.

    Exit status: 0 written, 1 there is no such version or it is too old, 2 wrong usage.
    """
    from broker.registry import export as to_tflite
    from broker.views import ViewError, manifest_of
    from engine.models.graph import ModelError

    with spoken(ViewError, ModelError, OSError):
        config = open_config(config_path)
        with open_store(config, read_only=True) as store:
            data = to_tflite(manifest_of(store, version), config.model.train, store.blob)
        out.write_bytes(data)
    click.echo(f"Version {version} is in {out}.")
