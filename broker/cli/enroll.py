"""`broker enroll`: certificates and tokens, by which devices come in, and by which they are kept out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.opening import config_option, json_option, open_config, open_store, spoken

if TYPE_CHECKING:
    from broker.enrolling import Begun

server_option = click.option(
    "--server",
    "addresses",
    multiple=True,
    metavar="NAME",
    help="A name or address of the MQTT server, as devices write it; may be repeated. Default: of [mqtt] url.",
)


@click.group()
def enroll() -> None:
    """Let devices come in by a token, and keep out whose certificate is revoked."""


@enroll.command()
@server_option
@click.option("--request", "by_request", is_flag=True, help="Make only a key, and a request for another authority.")
@config_option
def init(addresses: tuple[str, ...], by_request: bool, config_path: Path | None) -> None:
    """Make the fleet's certificate authority, and the certificates of MQTT server and coordinator.

    With --request the fleet's authority stands under one of yours: let it sign the request (CA:TRUE), and hand what
    it made to broker enroll import.

    Exit status: 0 made, 1 refused (no key is ever overwritten), 2 wrong usage.
    """
    from broker import enrolling
    from broker.certificates import CertificateError

    with spoken(enrolling.EnrolError, CertificateError, OSError):
        config = open_config(config_path)
        if by_request:
            click.echo(f"Sign {enrolling.ask_for_authority(config)} as an authority, then: broker enroll import CHAIN")
            return
        with open_store(config, read_only=False) as store:
            begun = enrolling.begin(config, store, addresses, time.time())
    _tell(begun)


@enroll.command("import")
@click.argument("chain", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@server_option
@config_option
def import_(chain: Path, addresses: tuple[str, ...], config_path: Path | None) -> None:
    """Begin with CHAIN (PEM): what your authority made of the request, then its own certificate, up to the last.

    Exit status: 0 made, 1 refused, 2 wrong usage.
    """
    from broker import enrolling
    from broker.certificates import CertificateError

    with spoken(enrolling.EnrolError, CertificateError, OSError):
        config = open_config(config_path)
        with open_store(config, read_only=False) as store:
            begun = enrolling.begin_under(config, store, chain, addresses, time.time())
    _tell(begun)


@enroll.command()
@click.argument("addresses", metavar="NAME...", nargs=-1, required=True)
@config_option
def server(addresses: tuple[str, ...], config_path: Path | None) -> None:
    """Make another certificate for the MQTT server, at these names and addresses: it has moved.

    Exit status: 0 made, 1 refused, 2 wrong usage.
    """
    from broker import enrolling
    from broker.certificates import CertificateError

    with spoken(enrolling.EnrolError, CertificateError, OSError):
        config = open_config(config_path)
        with open_store(config, read_only=False) as store:
            made, key = enrolling.name_server(config, store, addresses, time.time())
    click.echo(f"wrote {made}, for the key in {key}: give both to the MQTT server and restart it")


def _tell(begun: Begun) -> None:
    server, coordinator = begun.server, begun.coordinator
    click.echo(
        f"The authority is in {begun.directory}. Who has its key can be any device: keep a copy, and keep it safe."
    )
    click.echo("For the MQTT server (deploy/raspi/mosquitto.conf says where):")
    click.echo(f"  ca.crt, revoked.crl, {server[0].name}, and {server[1].name} as server.key")
    click.echo("For the coordinator, in [mqtt] of broker.toml:")
    click.echo(f'  ca_file = "ca.crt"\n  cert_file = "{coordinator[0].name}"\n  key_file = "{coordinator[1].name}"')
    click.echo("Next: broker enroll token")


@enroll.command()
@click.option("--count", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many, one a line.")
@click.option("--lasts", default="1d", show_default=True, help="How long each may be claimed: 90s, 10m, 2h, 1d.")
@click.option("--device", default="", metavar="ID", help="Only this device may claim it. Default: any, once.")
@click.option("--mqtt", metavar="URL", help="How devices reach the MQTT server. Default: [mqtt] url.")
@config_option
def token(count: int, lasts: str, device: str, mqtt: str | None, config_path: Path | None) -> None:
    """Print a token: all that a device needs for edge-agent enroll. Each is good for one device, once.

    Hand it over as you would a password. It is kept nowhere; broker enroll list shows its id, to revoke it by.

    Exit status: 0 printed, 1 refused, 2 wrong usage.
    """
    from broker import enrolling
    from broker.certificates import CertificateError
    from broker.config import parse_duration_ms
    from wire.keys import KeyTextError
    from wire.topics import TopicError

    if device and count > 1:
        raise click.UsageError("--device names one device: print one token, or leave --device out")
    with spoken(enrolling.EnrolError, CertificateError, KeyTextError, TopicError, ValueError):
        config = open_config(config_path)
        lasts_s = min(parse_duration_ms(lasts), enrolling.TOKEN_LASTS_MS_MAX) / 1000
        with open_store(config, read_only=False) as store:
            wish: dict[str, Any] = {"url": mqtt or config.mqtt.url, "device_id": device, "lasts_s": lasts_s}
            with store.transaction():
                texts = [enrolling.new_token(config, store, time.time(), **wish) for _ in range(count)]
    click.echo("\n".join(texts))


@enroll.command("list")
@config_option
@json_option
def list_(config_path: Path | None, as_json: bool) -> None:
    """Show every certificate that was issued, and every token.

    Exit status: 0 shown, 1 no store, 2 wrong usage.
    """
    from broker import enrolling
    from broker.cli.printing import print_json, print_table

    with spoken(), open_store(open_config(config_path), read_only=True) as store:
        found = enrolling.listing(store, time.time())
    if as_json:
        print_json(found)
        return
    rows = [(row["name"], row["status"], _day(row["expires_unix_s"]), row["serial"]) for row in found["certificates"]]
    print_table(("certificate of", "status", "ends", "serial"), rows, "No certificate was issued: broker enroll init")
    tokens = [(row["token"], row["status"], _day(row["expires_unix_s"]), row["device"]) for row in found["tokens"]]
    print_table(("token", "status", "ends", "only for"), tokens, "No token was made: broker enroll token")


def _day(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(unix_s))


@enroll.command()
@click.argument("name", metavar="ID")
@config_option
def revoke(name: str, config_path: Path | None) -> None:
    """Take the device ID out of the fleet and revoke its certificates; or a token, by its id.

    Exit status: 0 revoked, 1 nobody is called so, 2 wrong usage.
    """
    from broker import enrolling
    from broker.certificates import CertificateError

    with spoken(enrolling.EnrolError, CertificateError, OSError):
        config = open_config(config_path)
        with open_store(config, read_only=False) as store:
            path, done = enrolling.revoke(config, store, name, time.time())
    click.echo(f"{done}\nNow give the MQTT server {path}, and let it read it: systemctl reload mosquitto.")


@enroll.command()
@click.argument("device_id", metavar="ID")
@click.argument("request", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Where to, as PEM.")
@config_option
def sign(device_id: str, request: Path, config_path: Path | None, **given: Any) -> None:
    """Make the certificate of the device ID from a REQUEST (PKCS #10, P-256) that came by hand and not by a token.

    Exit status: 0 made, 1 refused, 2 wrong usage.
    """
    from broker import authority, enrolling
    from broker.certificates import CertificateError
    from wire.topics import TopicError

    with spoken(enrolling.EnrolError, CertificateError, TopicError, OSError):
        config = open_config(config_path)
        with open_store(config, read_only=False) as store:
            made = enrolling.sign(config, store, device_id, request.read_bytes(), time.time())
        authority.save(given["out"], made)
    click.echo(f"wrote {given['out']}; the device is in the fleet after: broker fleet add {device_id} KEY")
