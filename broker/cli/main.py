"""`broker`: the fleet's side on the command line.

Each command is a file here. They import what is heavy inside, so that --help costs nothing.
"""

import click

from broker.cli.backup import backup, restore
from broker.cli.doctor import doctor
from broker.cli.enroll import enroll
from broker.cli.fleet import fleet
from broker.cli.init import init
from broker.cli.model import model
from broker.cli.opening import run_command
from broker.cli.plan import plan
from broker.cli.report import report
from broker.cli.round import round_
from broker.cli.serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hedgerow")
def main() -> None:
    """Coordinate a fleet of devices that learn together.

    Begin with: broker init DIR --model FILE.tflite

    Exit status of every command: 0 done, 1 it could not be done (one line says why), 2 wrong usage.
    """


for command in (init, serve, enroll, fleet, round_, plan, model, report, doctor, backup, restore):
    main.add_command(command)


def run() -> None:
    """The console script."""
    run_command(main, "broker")
