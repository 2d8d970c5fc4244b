"""`firmware-sim`: whole fleets on this machine, of real processes (demo, fleet) or simulated (sim).

Progress goes to stderr where stdout is wanted for JSON. Heavy imports are inside, so that --help costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
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
@click.option("--train", default="last-2", show_default=True, help="What learns: last-3, bias-4, blocks-2, full, 9:b.")
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
@click.argument("name", type=click.Choice(["cifar10", "speech"]))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--data", "source", type=_FOLDER, required=True, help="The folder with the data set's files.")
@click.option("--shift", type=click.Choice(["contrast", "rot90", "invert", "noise"]), help="Another camera or room.")
@click.option("--speakers", type=click.IntRange(1), default=12, show_default=True, help="How many voices measure.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
def export(*, name: str, out: Path, source: Path, shift: str | None, speakers: int, seed: int) -> None:
    """Write the data set NAME to OUT, an .npz for `edge-agent finetune`: CIFAR-10 or Speech Commands."""
    from firmware_sim import export as exports

    with _spoken():
        if name == "cifar10":
            arrays = exports.cifar10(source, shift, seed)
        else:
            arrays = exports.speech_commands(source, shift, speakers, seed)
        click.echo(exports.write(out, arrays))


def _bytes_from(_context: click.Context, _option: click.Parameter, text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*(B|kB|MB|KiB|MiB)?", text.strip())
    if not found:
        raise click.BadParameter(f"{text!r} is no size; write 256kB or 2MB")
    return int(found[1]) * {"kB": 1000, "MB": 10**6, "KiB": 1024, "MiB": 1 << 20}.get(found[2] or "", 1)


@main.command()
@click.argument("model", type=_FILE)
@click.argument("data", type=_FILE)
@click.option("--memory", required=True, callback=_bytes_from, help="What training may take, like 256kB or 2MB.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
def scheme(*, model: Path, data: Path, memory: int, seed: int) -> None:
    """Search which weights of MODEL (.tflite) are worth their memory, on DATA: an .npz with windows and labels.

    Tries every layer's biases and shares of its weights, and prints the best `train` for a plan that fits.
    """
    from edge_agent.screen import Screen
    from firmware_sim import workbench

    with _spoken():
        found = workbench.find(model, data, memory, seed, Screen())
    click.echo("\n".join(workbench.lines(found)))


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
    from broker.sqlite import StoreError
    from edge_agent.datafile import DataFileError
    from engine.models.graph import ModelError
    from engine.train import TrainingError
    from firmware_sim.data import DataError
    from firmware_sim.fleet import FleetError

    try:
        yield
    except (
        DataError,
        DataFileError,
        FleetError,
        ModelError,
        MqttServerError,
        ReportError,
        StoreError,
        TrainingError,
    ) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("stopped; nothing of it is running any more", err=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
