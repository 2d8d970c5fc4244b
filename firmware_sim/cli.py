"""`firmware-sim`: whole fleets on this machine, of real processes (demo, fleet) or simulated (sim).

Progress goes to stderr where stdout is wanted for JSON. Heavy imports are inside, so that --help costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.opening import run_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firmware_sim.data import Dataset
    from firmware_sim.demo import Settings

INTERRUPTED = 130
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hedgerow")
def main() -> None:
    """Run a whole fleet on this machine.

    Exit status of every command: 0 done, 1 it could not be done (one line says why), 2 wrong usage, 130 Ctrl-C.
    """


def _shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option("--devices", type=click.IntRange(1, 500), default=10, show_default=True),
            click.option("--rounds", type=click.IntRange(1, 10_000), default=20, show_default=True),
            click.option("--seed", type=click.IntRange(0, 2**53), default=1, show_default=True),
            click.option(
                "--alpha",
                type=click.FloatRange(0.0, min_open=True),
                default=0.5,
                show_default=True,
                help="Dirichlet: smaller deals labels more unevenly. Not used where the data knows people.",
            ),
            click.option("--no-chaos", is_flag=True, help="Kill nothing."),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object; progress goes to stderr."),
        )
    ):
        command = option(command)
    return command


@main.command()
@_shared_options
@click.option("--out", type=_FOLDER, default="demo-report", show_default=True, help="Where the report goes.")
def demo(
    *, devices: int, rounds: int, seed: int, alpha: float, no_chaos: bool, as_json: bool, out: Path
) -> None:  # fmt: skip
    """Ten devices learn handwritten digits together; an agent, the coordinator and the MQTT server are killed."""
    from firmware_sim.data import digits
    from firmware_sim.demo import Settings

    _run(digits, None, Settings(devices, rounds, seed, alpha, not no_chaos), out, as_json=as_json)


@main.command()
@click.option("--data", "source", type=_FOLDER, required=True, help="The folder with the data set's files.")
@click.option("--model", type=_FILE, help="A .tflite that takes its windows. Default: the shipped one that does.")
@click.option("--train", default="last-2", show_default=True, help="What learns: the last k dense layers.")
@_shared_options
@click.option("--out", type=_FOLDER, default="fleet-report", show_default=True, help="Where the report goes.")
def fleet(
    *, source: Path, model: Path | None, train: str, devices: int, rounds: int, seed: int, alpha: float, no_chaos: bool,
    as_json: bool, out: Path,
) -> None:  # fmt: skip
    """Run the same fleet on data of yours: MNIST with QMNIST's writers, WISDM-51's watches, or CIFAR-10."""
    from firmware_sim.data import read
    from firmware_sim.demo import Settings

    settings = Settings(devices, rounds, seed, alpha, not no_chaos, train)
    _run(lambda: read(source), model, settings, out, as_json=as_json)


@main.command("data")
@click.argument("source")
@click.option("--devices", type=click.IntRange(1), default=10, show_default=True)
@click.option("--out", type=_FOLDER, required=True, help="Where the .npz files go.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--alpha", type=click.FloatRange(0.0, min_open=True), default=0.5, show_default=True)
def data_command(*, source: str, devices: int, out: Path, seed: int, alpha: float) -> None:
    """Split SOURCE (a folder, or the word digits) into one .npz a device and test.npz, for use by hand."""
    from firmware_sim import data

    with _spoken():
        dataset = data.digits() if source == "digits" else data.read(Path(source))
        shares = data.share(dataset, devices, seed, alpha)
        shares.write(out)
    counts = sorted(len(labels) for _, labels in shares.devices.values())
    click.echo(f"{dataset.name}: {devices} shares of {counts[0]} to {counts[-1]} windows, {len(shares.test[1])} test")
    click.echo(f"In {out}: device-*.npz and test.npz with x and y (edge-agent samples add --help, broker init --help)")


@main.command()
@click.option("--seeds", type=click.IntRange(1), default=100, show_default=True)
@click.option("--first-seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--scenario", type=click.Choice(["storm"]), default="storm", show_default=True)
def sim(*, seeds: int, first_seed: int, scenario: str) -> None:
    """Simulate fleets in storms of faults, one a seed, and check every promise from outside."""
    from firmware_sim import storm

    sys.exit({"storm": storm.main}[scenario](first_seed, seeds))


def run() -> None:
    """The console script."""
    run_command(main, "sim")


def _run(
    read: Callable[[], Dataset], model: Path | None, settings: Settings, out: Path, *, as_json: bool
) -> None:  # fmt: skip
    from firmware_sim import demo as demos
    from firmware_sim.screen import screen_on
    from firmware_sim.summary import block

    def echo(text: str) -> None:
        click.echo(text, err=as_json)

    with _spoken():
        dataset = read()
        chosen = model or demos.model_for(dataset)
        with screen_on(sys.stderr if as_json else sys.stdout, echo) as screen:
            result = demos.run(dataset, chosen, settings, out, screen)
    if as_json:
        click.echo(json.dumps(result.found))
        return
    echo("\n" + block(result.found, result.story) + "\n")
    echo(f"Report: {result.page}\nNumbers: {result.page.with_name('summary.json')}\n")
    echo("Try next:")
    echo('  make demo ARGS="--devices 20 --rounds 40 --seed 7"   a larger fleet, another deal')
    echo('  make demo ARGS="--alpha 0.1"                         labels dealt more unevenly')
    echo("  firmware-sim fleet --data DIR --devices 20           real people: MNIST's writers, WISDM's watches")
    echo("  make sim FIRST_SEED=7 SEEDS=1                        one simulated storm of faults")


@contextlib.contextmanager
def _spoken() -> Iterator[None]:
    """Turn our sentences into click's one line and status 1, and Ctrl-C into a word and status 130."""
    from broker.mqtt_server import MqttServerError
    from broker.report import ReportError
    from broker.store import StoreError
    from engine.models.graph import ModelError
    from engine.train import TrainingError
    from firmware_sim.data import DataError
    from firmware_sim.fleet import FleetError

    try:
        yield
    except (DataError, FleetError, ModelError, MqttServerError, ReportError, StoreError, TrainingError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("stopped; nothing of it is running any more", err=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
