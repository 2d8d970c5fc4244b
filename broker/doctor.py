"""Does this MQTT server do what a fleet needs? One probe a line, what it measured, and how to mend what is wrong.

Nothing is believed that the server says of itself: each probe sends real messages to itself, as a coordinator and as
a device, on the contract's own topics and in its directions, so that an access list made for a fleet allows them. The
probes are in `probes.py`; here is whom they play, in which order, and when it makes no sense to go on.

`FAIL`: a fleet needs it, and it does not work. `warn`: a fleet works, but here is a trap. Nothing stays behind.
"""

from __future__ import annotations

import queue
import random
import secrets
from typing import TYPE_CHECKING, Final

from broker import probes
from broker.probes import Finding, Target, Verdict
from broker.raw_mqtt import Access, LostError
from wire import topics
from wire.link import Link, LinkDown, LinkEvent, LinkUp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from broker.config import Config

CONNECT_S: Final = 12.0  # longer than the link itself waits, so that it says why


def target(
    coordinator: Access, device: Access | None = None, *, fleet: str | None = None, device_id: str | None = None
) -> Target:
    """Whom the probes play. `device`: None lets the coordinator's identity play the device, too.

    Without a fleet's id, and without a device's, random ones that nobody has. Raises ValueError, one line.
    """
    chance = secrets.token_hex(3)
    fleet = topics.check_name("fleet", fleet or f"doctor-{chance}")
    device_id = topics.check_name("device", device_id or f"doctor-{chance}")
    for access in (coordinator, device or coordinator):
        access.check()
    return Target(coordinator, device or coordinator, fleet, device_id)


def access_of(config: Config, url: str) -> Access:
    """The coordinator's own access, but to `url`. Raises ConfigError."""
    mqtt = config.mqtt
    files = (config.path(name) if name else None for name in (mqtt.ca_file, mqtt.cert_file, mqtt.key_file))
    password = password_in(config.path(mqtt.password_file)) if mqtt.password_file else None
    return Access(url, mqtt.username or None, password, *files)


def password_in(file: Path) -> str:
    """What a file holds, without the end of its line. Raises ConfigError."""
    from broker.config import ConfigError

    try:
        return file.read_text("utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read a password from {file}: {error}") from error


def examine(target: Target, *, slow: bool, begin: Callable[[str], None] = lambda _name: None) -> Iterator[Finding]:
    """Do every probe, one after the other; `begin` is told its name before. `slow`: also those that take long."""
    for name, probe, is_vital, is_slow in PROBES:
        if is_slow and not slow:
            continue
        begin(name)
        found = _one(name, probe, target)
        if found is not None:
            yield found
            if is_vital and found.verdict == Verdict.FAIL:
                return


def _one(name: str, probe: Callable[[Target], Finding | None], target: Target) -> Finding | None:
    try:
        return probe(target)
    except (LostError, OSError) as error:
        sentence = getattr(error, "strerror", None) or str(error)
        return Finding(name, Verdict.FAIL, f"the probe did not come to its end: {sentence}")


def _link(target: Target) -> Finding:
    """Connect and subscribe exactly as `broker serve` does."""
    access, events = target.coordinator, queue.SimpleQueue[LinkEvent]()
    link = Link(
        access.url,
        target.client_id("link"),
        filters=topics.coordinator_filters(target.fleet),
        will=None,
        post=events.put,
        jitter=random.Random(0),  # noqa: S311
        username=access.username,
        password=access.password,
        ca_file=access.ca_file,
        cert_file=access.cert_file,
        key_file=access.key_file,
    )
    link.start()
    try:
        event = events.get(timeout=CONNECT_S)
    except queue.Empty:
        return Finding("link", Verdict.FAIL, f"no answer within {CONNECT_S:.0f} s: is it the right host and port?")
    finally:
        link.stop()
    match event:
        case LinkUp():
            return Finding("link", Verdict.OK, f"{access.url} takes our connection and subscription")
        case LinkDown(reason=reason):
            return Finding("link", Verdict.FAIL, reason)
    return Finding("link", Verdict.FAIL, "it sent a message before it had answered our subscription")


PROBES: Final[tuple[tuple[str, Callable[[Target], Finding | None], bool, bool], ...]] = (
    # name, probe, whether the others need it, whether it takes long
    ("link", _link, True, False),
    ("identity", probes.identity, True, False),
    ("qos 1", probes.qos_1, True, False),
    ("retained", probes.retained, False, False),
    ("will", probes.will, False, False),
    ("retained will", probes.retained_will, False, False),
    ("take-over", probes.take_over, False, False),
    ("payload", probes.payload, False, False),
    ("topics", probes.slashes, False, False),
    ("queue", probes.burst, False, False),
    ("nodelay", probes.nodelay, False, False),
    ("access", probes.access, False, False),
    ("shared", probes.shared, False, False),
    ("keepalive", probes.keepalive, False, True),
)
