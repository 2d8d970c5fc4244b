"""`broker doctor`: does this MQTT server do what a fleet needs?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.opening import config_option, json_option, open_config, spoken

if TYPE_CHECKING:
    from broker.config import Config
    from broker.probes import Target
    from broker.raw_mqtt import Access

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--mqtt", metavar="URL", help="The server, as mqtt://host:1883. Default: the configured one.")
@click.option("--username", help="The coordinator's.")
@click.option("--password-file", type=_FILE)
@click.option("--ca-file", type=_FILE, help="Who signed the server's certificate.")
@click.option("--cert-file", type=_FILE, help="The coordinator's.")
@click.option("--key-file", type=_FILE)
@click.option("--device", metavar="ID", help="Play this device, of no agent, with a login of its own.")
@click.option("--device-password-file", type=_FILE, help="ID is the user name.")
@click.option("--device-cert-file", type=_FILE)
@click.option("--device-key-file", type=_FILE)
@click.option("--slow", is_flag=True, help="Also wait whether a silent device is noticed: half a minute.")
@config_option
@json_option
def doctor(slow: bool, as_json: bool, **given: Any) -> None:
    """Probe an MQTT server for what a fleet needs of it, and say how to mend what is wrong.

    With --mqtt alone the topics are those of a fleet that nobody has. With --config, or neither, server, login and
    fleet are the configured ones, and what is given here goes before. Leaves nothing on the server.

    Exit status: 0 all that a fleet needs works, 1 something does not, 2 wrong usage.
    """
    from broker.cli.printing import print_json
    from broker.doctor import examine
    from broker.probes import Verdict

    findings = []
    for finding in examine(_target(**given), slow=slow, begin=_show_progress):
        _show_progress("")
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.verdict:4} {finding.name}: {finding.text}")
    fit = all(finding.verdict != Verdict.FAIL for finding in findings)
    if as_json:
        print_json({"fit": fit, "findings": [finding._asdict() for finding in findings]})
    raise SystemExit(0 if fit else 1)


def _target(config_path: Path | None, mqtt: str | None, device: str | None, **given: Any) -> Target:
    """Whom to play, and where; click's errors for what cannot be."""
    from broker.doctor import access_of, target
    from broker.raw_mqtt import Access

    with spoken():
        config = open_config(config_path) if config_path or not mqtt else None
        base = access_of(config, mqtt or _configured_url(config)) if config else Access(mqtt or "")
        coordinator = _given(base, given, "", given["username"])
        has_login = given["device_password_file"] or given["device_cert_file"]
        other = _given(Access(base.url, ca_file=base.ca_file), given, "device_", device) if has_login else None
    try:
        return target(coordinator, other, fleet=config.fleet.id if config else None, device_id=device)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _given(access: Access, given: dict[str, Any], prefix: str, username: str | None) -> Access:
    """`access` with what stands on the command line in its place."""
    from broker.doctor import password_in

    file = given[f"{prefix}password_file"]
    named = {name: given[f"{prefix}{name}"] for name in ("cert_file", "key_file")}
    named |= {"username": username, "password": file and password_in(file), "ca_file": given["ca_file"]}
    return access._replace(**{name: value for name, value in named.items() if value})


def _configured_url(config: Config) -> str:
    from broker.config import EMBEDDED

    if config.mqtt.url != EMBEDDED:
        return config.mqtt.url
    if not config.mqtt.port:
        raise click.UsageError(
            "the embedded MQTT server has any free port: give --mqtt the url that broker serve prints"
        )
    return f"mqtt://127.0.0.1:{config.mqtt.port}"


def _show_progress(name: str) -> None:
    """Which probe runs, on one line of a terminal that the next one overwrites."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{name and f'probing: {name} ...'}", err=True, nl=False)
