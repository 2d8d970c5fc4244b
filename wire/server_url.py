"""Where an MQTT server is, and how to speak TLS with it: what the link needs before it has a connection."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import ssl
    from pathlib import Path


class Server(NamedTuple):
    """Where an MQTT server listens."""

    host: str
    port: int
    tls: bool


_URL: Final = re.compile(r"(mqtts?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?/?")


def parse_url(url: str) -> Server:
    """Take `mqtt://host[:1883]` or `mqtts://host[:8883]` apart; raise ValueError for any other text."""
    match = _URL.fullmatch(url)
    port = int(match[3] or {"mqtt": 1883, "mqtts": 8883}[match[1]]) if match else 0
    if match is None or not 1 <= port <= 65_535:
        raise ValueError(f"{url!r} is no MQTT server: write mqtt://host:1883, or mqtts://host:8883 with TLS")
    return Server(match[2].strip("[]"), port, match[1] == "mqtts")


def tls_context(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer that checks the server's name. `ca_file`: None trusts the system's authorities.

    Raises ValueError, one line, for files that are missing or no certificates.
    """
    import ssl

    try:
        context = ssl.create_default_context(cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
    except OSError as error:
        names = ", ".join(str(file) for file in (ca_file, cert_file, key_file) if file is not None)
        raise ValueError(f"cannot use the certificate files {names}: {error}") from error
    return context
