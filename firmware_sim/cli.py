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
@click.option("--scenario", default="storm", show_default=True, help="A file of firmware_sim/scenarios, like calm.")
@click.option("--devices", type=click.IntRange(1, 64), default=10, show_default=True)
def sim(*, seeds: int, first_seed: int, scenario: str, devices: int) -> None:
    """Simulate fleets in storms of faults, one a seed, and check every promise from outside.

    A seed that fails is shrunk to the fewest faults and told as a story. Exit status: 0 all promises held, 1 not.
    """
    from firmware_sim import storm, weather

    if scenario not in weather.names():
        raise click.BadParameter(f"{scenario!r} is none of {', '.join(weather.names())}", param_hint="--scenario")
    sys.exit(storm.main(first_seed, seeds, scenario=scenario, devices=devices))


@main.command()
@click.option("--attack", "name", default="all", show_default=True, help="One by name, like sign flip; all.")
@click.option("--share", type=click.FloatRange(0.0, 0.4, min_open=True), default=0.2, show_default=True,
              help="Of the devices is dishonest.")  # fmt: skip
@click.option("--devices", type=click.IntRange(5, 50), default=15, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=10, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; progress goes to stderr.")
def attack(*, name: str, share: float, devices: int, rounds: int, seed: int, as_json: bool) -> None:
    """What do dishonest devices do to a fleet that learns digits? Trains it with and without each attack.

    Prints the accuracy on digits that nobody holds, half way and at the end, and what the coordinator refused.
    """
    from firmware_sim import attacks, trial

    if name not in (*attacks.NAMES, "all"):
        raise click.BadParameter(f"{name!r} is none of {', '.join(attacks.NAMES)}, all", param_hint="--attack")
    chosen = [trial.NO_ATTACK, *(attacks.NAMES if name == "all" else [name])]
    terms = trial.Terms(share, seed, devices, rounds)
    with _spoken(), click.progressbar(length=len(chosen) * rounds, label="attack", file=sys.stderr) as bar:
        outcomes = [trial.run(each, terms, lambda: bar.update(1)) for each in chosen]
    click.echo(json.dumps(trial.as_tree(outcomes, terms)) if as_json else "\n".join(trial.table(outcomes, terms)))


@main.command("replay")
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay_command(*, file: Path, as_json: bool) -> None:
    """Live the story in FILE again (edge-agent story --out FILE), through the very machine of the product.

    Exit status: 0 every effect is as recorded, 1 one is not, or the machine raises, 2 FILE is no story.
    """
    from edge_agent import story
    from edge_agent.storyfile import StoryError, load
    from firmware_sim import replay

    try:
        record = load(file)
        verdict = replay.replay(record, lambda entry: None if as_json else click.echo(story.as_line(entry)))
    except StoryError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    click.echo(json.dumps(replay.as_tree(record, verdict)) if as_json else "\n".join(replay.as_lines(record, verdict)))
    sys.exit(0 if verdict.same else 1)


@main.command()
@click.option("--devices", type=click.IntRange(1), default=200, show_default=True, help="Connections, one a device.")
@click.option("--rounds", type=click.IntRange(1, 10_000), default=3, show_default=True)
@click.option("--mqtt", "url", metavar="URL", help="mqtt://host:1883 or mqtts://host:8883. Default: one of our own.")
@click.option("--username", default="", help="Of every device and of the coordinator.")
@click.option("--password-file", type=_FILE)
@click.option("--ca-file", type=_FILE, help="Who vouches for the MQTT server, if not the system's authorities.")
@click.option("--train-s", type=click.FloatRange(0.0), default=5.0, show_default=True, help="A training, on average.")
@click.option("--share", type=click.FloatRange(0.0, 1.0, min_open=True), default=1.0, show_default=True,
              help="Of the devices: no round closes with fewer updates.")  # fmt: skip
@click.option(
    "--lasts-s", type=click.IntRange(1, 86_400), default=600, show_default=True, help="How long a round waits."
)
@click.option("--seed", type=click.IntRange(0, 2**31), default=1, show_default=True, help="Names the fleet, too.")
@click.option("--dir", "directory", type=_FOLDER, help="Keep the coordinator's store and log here; empty or not there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; progress goes to stderr.")
def swarm(
    *, url: str | None, username: str, password_file: Path | None, ca_file: Path | None, directory: Path | None,
    as_json: bool, **wished: Any,
) -> None:  # fmt: skip
    """Thousands of real agents over as many real connections: what do your MQTT server and this machine bear?

    A coordinator of its own runs rounds in a fleet of its own (swarm-SEED). Only training is not real: it takes a drawn
    time. Exit status: 0 every update has its receipt, 1 one line says who lacks what, 2 wrong usage, 130 Ctrl-C.
    """
    from firmware_sim.swarm import run as swarms
    from firmware_sim.swarm.outcome import block, numbers
    from firmware_sim.swarm.screen import screen_on
    from firmware_sim.swarm.site import Access

    if url is None and (username or password_file or ca_file):
        raise click.UsageError("a user name, a password or a certificate is for the server that --mqtt names")
    access = Access(url, username, password_file, ca_file) if url is not None else None
    stream = sys.stderr if as_json else sys.stdout
    with _spoken(), screen_on(stream, lambda text: click.echo(text, err=as_json)) as screen:
        found = numbers(swarms.run(swarms.Wish(access=access, **wished), directory, screen))
    click.echo(json.dumps(found) if as_json else "\n" + block(found))


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
    from broker.database import StoreError
    from broker.mqtt_server import MqttServerError
    from broker.report import ReportError
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
