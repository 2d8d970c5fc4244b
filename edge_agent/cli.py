"""The command `edge-agent`: one device, from its first key to its predictions."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_agent.config import Config

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_config = click.option(
    "--config", "path", required=True, type=click.Path(path_type=Path), help="The device's TOML file."
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hedgerow")
def main() -> None:
    """Learn on this device; send kilobytes, never samples.

    Exit status of every command: 0 done, 1 not done (one line says why), 2 wrong usage.
    """


@main.command()
@click.option("--id", "device_id", required=True, metavar="ID", help="a-z, 0-9 and '-', unique in the fleet.")
@click.option("--fleet", required=True, metavar="FLEET", help="The fleet's name.")
@click.option("--mqtt", "url", required=True, metavar="URL", help="mqtt://host:1883 or mqtts://host:8883.")
@click.option("--coordinator", required=True, metavar="KEY", help="The coordinator's public key, ed25519:...")
@click.option("--dir", "directory", default=".", type=click.Path(path_type=Path), help="Where to; default: here.")
def keygen(device_id: str, fleet: str, url: str, coordinator: str, directory: Path) -> None:
    """Make this device's private key and a first config.

    Prints the config's path, the public key, and the line that enrols it at the coordinator.

    Exit status: 0 made, 1 refused (a key is never overwritten).
    """
    from edge_agent import config

    try:
        made = config.make(directory, device_id, fleet, url, coordinator)
    except (config.ConfigError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"wrote {made.path}\npublic key {made.public_key}")
    click.echo(f"enrol it:\n  broker fleet add {device_id} {made.public_key}")


@main.command()
@click.option("--token", required=True, metavar="TEXT", help="What broker enroll token printed; - reads it from stdin.")
@click.option("--id", "device_id", default="", metavar="ID", help="Default: the token's, else one made of the key.")
@click.option("--dir", "directory", default=".", type=click.Path(path_type=Path), help="Where to; default: here.")
@click.option(
    "--state", default="state", type=click.Path(path_type=Path), help="Where all that the agent writes goes; in --dir."
)
def enroll(token: str, device_id: str, directory: Path, state: Path) -> None:
    """Claim a place in a fleet: makes both keys, gets the certificate, writes agent.toml.

    Can be repeated with the same token until it is done; keys that are there are used again.

    Exit status: 0 in the fleet, 1 not.
    """
    import sys
    import time

    from edge_agent import config
    from edge_agent import enroll as enrolling

    try:
        text = sys.stdin.read(10_000) if token == "-" else token  # noqa: S105
        done = enrolling.enroll(text, directory, device_id, state=state)
    except (enrolling.EnrolError, config.ConfigError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    ends = time.strftime("%Y-%m-%d", time.gmtime(done.ends_unix_s))
    click.echo(f"{done.device_id} is in fleet {done.fleet}; its certificate ends on {ends}\nwrote {done.config_path}")


@main.command()
@_config
def renew(path: Path) -> None:
    """Get another certificate once two thirds of this one's life are over; a timer asks every day.

    Exit status: 0 renewed, or not due yet; 1 neither.
    """
    import time

    from edge_agent import enroll as enrolling

    try:
        done, when = enrolling.renew(_load(path))
    except (enrolling.EnrolError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    day = time.strftime("%Y-%m-%d", time.gmtime(when))
    click.echo("renewed" if done else f"not due until {day}")


@main.command()
@_config
def run(path: Path) -> None:
    """Run the agent until SIGTERM or SIGINT; its log goes to stdout.

    Exit status: 0 asked to end, 1 cannot start or go on.
    """
    from edge_agent import service

    try:
        service.run(_load(path))
    except service.ServiceError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@_config
@_json
def status(path: Path, as_json: bool) -> None:
    """Tell what the agent is doing, and why not more.

    Exit status: 0 the agent runs, 1 it does not.
    """
    import msgspec

    from edge_agent import status as status_file

    try:
        found, running = status_file.read(_load(path).device.state)
    except (status_file.StatusError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(msgspec.json.encode({"running": running, **msgspec.structs.asdict(found)}).decode())
    else:
        click.echo("\n".join(status_file.as_lines(found, running=running)))
    raise SystemExit(0 if running else 1)


@main.command()
@_config
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A copy for `firmware-sim replay`.")
@_json
def story(path: Path, out: Path | None, as_json: bool) -> None:
    """Tell the agent's last events and what followed from each, the newest last.

    A running agent is asked for them; else the ones stand that it left at its end. No key and no sample is in them.

    Exit status: 0 told, 1 there are none.
    """
    import json

    from edge_agent import flash, storyfile
    from edge_agent import story as stories

    root = _load(path).device.state
    try:
        stories.ask(root)
        record = storyfile.load(root / "story")
        if out is not None:
            flash.write_file(out, storyfile.encode(record))
    except (storyfile.StoryError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(stories.as_tree(record)) if as_json else "\n".join(stories.as_lines(record)))


@main.group()
def samples() -> None:
    """Handle the device's own examples; they never leave it."""


@samples.command()
@click.argument("source", type=_FILE)
@_config
@_json
def add(source: Path, path: Path, as_json: bool) -> None:
    """Add the windows of SOURCE, an .npz with x (float32 [n, ...]) and y (integers [n], -1: not known yet).

    Exit status: 0 added, 1 refused.
    """
    import json

    from edge_agent.samples import SamplesError
    from edge_agent.sources.settings import SourceError

    try:
        from edge_agent.sources import files
    except ImportError as error:
        raise click.ClickException(f"{error}: install it with pip install 'hedgerow[agent]'") from error
    config = _load(path)
    try:
        added = files.add_npz(source, config.samples_path, config.samples.capacity)
    except (SourceError, SamplesError, OSError) as error:
        raise click.ClickException(str(error)) from error
    first, last = added.numbers
    text = f"added {added.windows} windows, numbers {first} to {last}; {added.labelled} labelled in all"
    click.echo(
        json.dumps({"added": added.windows, "first": first, "last": last, "labelled": added.labelled})
        if as_json
        else text
    )


@samples.command("label")
@click.argument("window", type=click.IntRange(min=1))
@click.argument("label", type=click.IntRange(0, 65_535))
@_config
def label_window(window: int, label: int, path: Path) -> None:
    """Give the window that a prediction named WINDOW its LABEL: it trains from now on. It may come late.

    Exit status: 0 labelled, 1 it is not there any more, or has a label.
    """
    from edge_agent import predictions
    from edge_agent.samples import SamplesError

    try:
        predictions.teach(_load(path), window, label)
    except (SamplesError, OSError) as error:
        raise click.ClickException(str(error)) from error


@samples.command()
@_config
@_json
def count(path: Path, as_json: bool) -> None:
    """Count the labelled windows.

    Exit status: 0 counted, 1 there is no store.
    """
    import json

    from edge_agent.samples import Samples, SamplesError

    try:
        store = Samples(_load(path).samples_path)
        labelled = store.count_labelled()
    except (SamplesError, OSError) as error:
        raise click.ClickException(str(error)) from error
    text = f"{labelled} labelled windows of shape {store.shape}, room for {store.capacity}"
    click.echo(
        json.dumps({"labelled": labelled, "shape": store.shape, "capacity": store.capacity}) if as_json else text
    )


@main.command()
@_config
@_json
def doctor(path: Path, as_json: bool) -> None:
    """Check whether this device is fit to take part; one line a check, with how to mend it.

    Exit status: 0 fit, 1 something is wrong.
    """
    import json

    from edge_agent.doctor import examine

    findings = []
    for finding in examine(_load(path)):
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.mark} {finding.name}: {finding.text}")
    fit = all(finding.ok or not finding.fatal for finding in findings)
    if as_json:
        click.echo(json.dumps({"fit": fit, "findings": [finding._asdict() for finding in findings]}))
    raise SystemExit(0 if fit else 1)


@main.command()
def warm() -> None:
    """Compile the kernels once, so that none compiles in the field: at install, and after an update.

    Exit status: 0 compiled, 1 the engine is not installed.
    """
    try:
        from engine.kernels import warm as kernels
    except ImportError as error:
        raise click.ClickException(f"{error}: install it with pip install 'hedgerow[agent,jit]'") from error
    with click.progressbar(length=len(kernels.kernels()), label="compiling kernels") as bar:
        kernels.warm(lambda _name: bar.update(1))


@main.command()
@click.argument("source", type=_FILE)
@_config
@_json
def predict(source: Path, path: Path, as_json: bool) -> None:
    """Predict the windows of SOURCE, an .npz as for `samples add`, with the newest model on this device.

    Exit status: 0 predicted, 1 not.
    """
    from edge_agent import predictor

    try:
        found = predictor.predict(_load(path).device.state, source)
    except predictor.PredictionError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(predictor.as_json(found))
        return
    click.echo(" ".join(map(str, found.labels)))
    if found.known:
        rate = found.correct / found.known
        click.echo(f"version {found.model_version}: {found.correct} of {found.known} right ({rate:.1%})")


@main.group()
def model() -> None:
    """See which model version predicts here, and go back."""


@model.command("show")
@_config
@_json
def show_model(path: Path, as_json: bool) -> None:
    """Show the version in use, whether it is on probation, the one before it, and one that is not taken again.

    Exit status: 0 shown, 1 none is in use yet.
    """
    from edge_agent import slots
    from edge_agent.disk import Directory

    kept = slots.load(Directory(_load(path).device.state))
    if kept is None:
        raise click.ClickException(slots.NONE_YET)
    shown = slots.shown(kept)
    _tell(shown.as_tree(), slots.as_lines(shown), as_json)


@model.command()
@_config
def rollback(path: Path) -> None:
    """Let the version before predict again, now and without a link; the present one is not taken again.

    The agent goes on training with the fleet; the next version that is no worse here comes into use.

    Exit status: 0 done, 1 there is none before.
    """
    from edge_agent import slots
    from edge_agent.disk import Directory

    try:
        kept = slots.back(Directory(_load(path).device.state))
    except (slots.SlotError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Version {kept.now.version} predicts here; version {kept.refused_version} is not taken again.")


_MODEL = click.argument("model", type=_FILE)
_batch = click.option(
    "--batch-size", type=click.IntRange(1, 4096), default=16, show_default=True, help="Windows a step."
)


@main.command()
@_MODEL
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--train", default="last-2", show_default=True, help="last-K, bias-K, blocks-K, full, or 9:b,10:w/4,14:w."
)
@click.option("--epochs", type=click.IntRange(1, 10_000), default=3, show_default=True)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The tuned file.")
@_batch
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="Learning rate. Default: try some, take the best."
)
@click.option("--seed", type=click.IntRange(0, 2**53), default=1, show_default=True)
@click.option("--overwrite", is_flag=True, help="OUT may be MODEL itself.")
@_json
def finetune(as_json: bool, **wish: Any) -> None:
    """Fine-tune MODEL (.tflite or .onnx) on DATA, on this machine alone, and write the tuned file.

    DATA is an .npz with windows and labels (and test_windows, test_labels if you have them), or a folder with one
    sub-folder of .npy files for each class. What measures never trains.

    Exit status: 0 written, 1 refused.
    """
    with _spoken():
        from edge_agent import screen, tuning

        with screen.Screen() as shown:
            report = tuning.finetune(tuning.Wish(**wish), shown)
        _tell(tuning.as_tree(report), tuning.lines(report), as_json)


@main.command()
@_MODEL
@_batch
@_json
def inspect(model: Path, batch_size: int, as_json: bool) -> None:
    """Tell what MODEL is made of, what is dead or saturated, and what training behind each cut costs.

    Exit status: 0 told, 1 it cannot be read.
    """
    with _spoken():
        from edge_agent import measuring, screen

        with screen.Screen() as shown:
            found = measuring.look_at(model, batch_size, shown)
        _tell(measuring.as_tree(found), measuring.inspection_lines(found), as_json)


@main.command()
@click.argument("model", type=_FILE, required=False)
@_batch
@_json
def bench(model: Path | None, batch_size: int, as_json: bool) -> None:
    """Measure how fast this machine trains MODEL; without one, a ResNet-8 with made-up weights.

    Exit status: 0 measured, 1 not.
    """
    with _spoken():
        from edge_agent import measuring, screen

        with screen.Screen() as shown:
            found = measuring.pace(model, batch_size, shown)
        _tell(measuring.as_tree(found), measuring.bench_lines(found), as_json)


def _tell(tree: dict[str, Any], lines: list[str], as_json: bool) -> None:
    import json

    click.echo(json.dumps(tree) if as_json else "\n".join(lines))


@contextlib.contextmanager
def _spoken() -> Iterator[None]:
    """Turn the sentences of whoever reads, trains and measures into click's one line and status 1."""
    try:
        from edge_agent.datafile import DataFileError
        from edge_agent.tuning import TuningError
        from engine.models.graph import ModelError
        from engine.train import TrainingError
    except ImportError as error:
        raise click.ClickException(f"{error}: install it with pip install 'hedgerow[agent,jit]'") from error
    try:
        yield
    except (DataFileError, ModelError, TrainingError, TuningError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _load(path: Path) -> Config:
    from edge_agent import config

    try:
        return config.load(path)
    except config.ConfigError as error:
        raise click.ClickException(str(error)) from error
