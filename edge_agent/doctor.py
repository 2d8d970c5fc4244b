"""Is this device fit to take part? One check a line, and how to mend what is wrong.

Every check is a function of the config that returns what it found or raises `Wrong` with a sentence; `CHECKS` is the
list. Those that need the MQTT server come last and share one connection. Nothing is changed but that a state directory
which is missing is made, and no check needs another one to be fine.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from edge_agent import budget, host, samples
from edge_agent.effects import Reading
from wire import keys, limits, topics
from wire.messages import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_agent.config import Config
    from wire.link import Arrived, Link, LinkEvent

FREE_BYTES_MIN: Final = 64 << 20
CONNECT_S: Final = 8.0
QUIET_S: Final = 1.0  # after what is kept for all devices
LOAD_S: Final = 1.5  # over which load is measured
CHILD_S: Final = 120.0
_LIBRARIES: Final = {"i2c": "smbus2", "microphone": "sounddevice", "camera": "cv2"}
_ENGINE: Final = "from engine.models.interpreter import runtime_name; print(runtime_name())"
_KERNELS: Final = "import time; t = time.monotonic(); from engine.kernels.optimize import all_finite; import numpy; "
_KERNEL_TIME: Final = "all_finite(numpy.zeros(1, numpy.float32)); print(f'{time.monotonic() - t:.1f}'); "
_KERNELS_IN_USE: Final = "from engine.kernels._jit import kernels_in_use; print(kernels_in_use())"


class Wrong(Exception):  # noqa: N818 - it is a finding, and reads as one
    """What is wrong, and how to mend it."""


class Finding(NamedTuple):
    """The outcome of one check. What is only a warning keeps nobody from running."""

    name: str
    ok: bool
    text: str
    fatal: bool = True

    @property
    def mark(self) -> str:
        """The first word of the line."""
        return "ok   " if self.ok else "wrong" if self.fatal else "mind "


def examine(config: Config) -> Iterator[Finding]:
    """Do every check, one after the other."""
    for name, check, fatal in CHECKS:
        yield _find(name, partial(check, config), fatal=fatal)
    yield from _on_the_link(config)


def _find(name: str, check: Callable[[], str], *, fatal: bool) -> Finding:
    try:
        return Finding(name, ok=True, text=check())
    except Wrong as wrong:
        return Finding(name, ok=False, text=str(wrong), fatal=fatal)


def _python(_config: Config) -> str:
    if sys.maxsize <= 2**32:
        raise Wrong("this is a 32-bit Python, for which there is no model runtime: install a 64-bit system")
    return f"{sys.version.split()[0]} on {platform.machine()}"


def _interpreter(_config: Config) -> str:
    return _in_child(_ENGINE, "install it with pip install 'hedgerow[agent]'")


def _kernels(_config: Config) -> str:
    said = _in_child(_KERNELS + _KERNEL_TIME + _KERNELS_IN_USE, "install it with pip install 'hedgerow[jit]'")
    seconds, in_use = said.split("\n")
    if float(seconds) > 5.0 and in_use.startswith("Numba"):  # others are never compiled here
        raise Wrong(f"the first kernel took {seconds} s, so they were not compiled yet: run edge-agent warm")
    return f"{in_use}; loaded in {seconds} s"


def _in_child(code: str, advice: str) -> str:
    """Run a line of Python elsewhere: this process shall not load NumPy, and a crash shall be a finding."""
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=CHILD_S)
    except subprocess.TimeoutExpired as error:
        raise Wrong(f"no answer within {CHILD_S:.0f} s: this machine is too busy or too slow; try again") from error
    if done.returncode != 0:
        complaint = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        raise Wrong(f"{complaint}; {advice}")
    return done.stdout.strip()


def _key(config: Config) -> str:
    try:
        return keys.public_text(keys.load_seed(config.device.key))
    except keys.KeyTextError as error:
        raise Wrong(str(error)) from error


def _state(config: Config) -> str:
    root = config.device.state
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = root / f".doctor-{os.getpid()}"
        probe.write_bytes(b"probe")
        probe.unlink()
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise Wrong(f"cannot write under {root}: {error.strerror}; give it to the user of the agent") from error
    if free < FREE_BYTES_MIN:
        raise Wrong(f"{free >> 20} MB free under {root}: free {FREE_BYTES_MIN >> 20} MB for models and samples")
    return f"{root} writable, {free >> 20} MB free"


def _clock(_config: Config) -> str:
    if time.time() < host.CLOCK_SET_UNIX_S:
        raise Wrong("the clock stands before 2024: set it (timedatectl); until then our own certificate tells the time")
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _certificate(config: Config) -> str:
    from edge_agent.certificates import CertificateError, load_chain

    file = config.mqtt.cert_file
    if file is None:
        return "none, and none is needed where [mqtt] names none"
    try:
        own = load_chain(file)[0]
    except CertificateError as error:
        raise Wrong(str(error)) from error
    starts, ends = own.starts_unix_s, own.ends_unix_s
    day = time.strftime("%Y-%m-%d", time.gmtime(ends))
    if own.name != config.device.id:
        raise Wrong(f"{file} is for {own.name!r}, and this is {config.device.id}: the MQTT server goes by it")
    if time.time() >= ends:
        raise Wrong(f"{file} ended on {day}: edge-agent enroll with another token brings the next")
    if time.time() >= starts + (ends - starts) * 0.75:
        raise Wrong(f"{file} ends on {day} and should be renewed by now: does edge-agent-renew.timer run?")
    return f"for {config.device.id}, until {day}"


def _samples(config: Config) -> str:
    if config.source is not None and not config.samples_path.exists():
        return "none yet: they come with the first label for what the source brings"
    try:
        store = samples.Samples(config.samples_path)
        count = store.count() if config.samples.unlabelled else store.count_labelled()
    except (samples.SamplesError, OSError) as error:
        raise Wrong(str(error)) from error
    if count == 0:
        raise Wrong(f"{config.samples_path} has no labelled window: add some with edge-agent samples add")
    return f"{count} windows to learn from, of shape {store.shape}"


def _source(config: Config) -> str:
    source = config.source
    if source is None:
        return "none is configured: nothing is watched"
    if source.kind in _LIBRARIES:
        _in_child(f"import {_LIBRARIES[source.kind]}", f"install it with pip install 'hedgerow[{source.kind}]'")
    if source.path is not None:
        if not source.path.exists():
            raise Wrong(
                f"[source] path {source.path} is not there: make it, or plug it in; it is tried again and again"
            )
        if not os.access(source.path, os.R_OK):
            raise Wrong(f"[source] path {source.path} may not be read: give it to the user of the agent")
    return f"{source.place}, windows of {list(source.window)}"


def _budget(config: Config) -> str:
    now, allowed = _read_host(), config.budget
    unknown = [
        name
        for name, limit, value in (
            ("temperature_c_max", allowed.temperature_c_max, now.temperature_c),
            ("battery_rate_min", allowed.battery_rate_min, now.battery_rate),
            ("mains_only", allowed.mains_only or None, now.on_mains),
            ("full_voltage_only", allowed.full_voltage_only or None, now.under_voltage),
            ("unthrottled_only", allowed.unthrottled_only or None, now.throttled),
            ("busy_rate_max", allowed.busy_rate_max, now.busy_rate),
            ("metered", allowed.metered or None, now.route),
        )
        if limit is not None and value is None
    ]
    if unknown:
        raise Wrong(f"this host cannot tell what {', '.join(unknown)} limits, so it will never train: drop the limit")
    told = (f"{name} {_shown(value)}" for name, value in now._asdict().items())
    return f"every limit can be checked: {', '.join(told)}"


def _shown(value: object) -> str:
    return "unknown" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _power(_config: Config) -> str:
    bits = host.throttle_bits()
    if bits is None:
        return "unknown: only Raspberry Pi's own kernels tell of voltage and throttling"
    supply = "use the supply made for this board, and a short cable; cards lose data this way"
    if bits & host.UNDER_VOLTAGE:
        raise Wrong(f"the voltage is too low now: {supply}")
    if bits & host.THROTTLED:
        raise Wrong("the firmware holds the processor back now, for heat: give it air, or a heat sink")
    if bits & host.UNDER_VOLTAGE << host.SINCE_BOOT:
        raise Wrong(f"the voltage was too low since the last boot: {supply}")
    if bits & host.THROTTLED << host.SINCE_BOOT:
        raise Wrong("the firmware held the processor back since the last boot, for heat: give it air, or a heat sink")
    return "voltage and heat were fine since the last boot"


def _read_host() -> host.Host:
    """Twice, since load is what changed between two readings."""
    sensors = host.Sensors()
    sensors.read()
    time.sleep(LOAD_S)
    return sensors.read()


# What takes a connection: one, since a running agent of the same certificate is put off by each


def _on_the_link(config: Config) -> Iterator[Finding]:
    try:
        with _connected(config) as (link, events):
            yield Finding("mqtt", ok=True, text=f"{config.mqtt.url} answers")
            heard = _gather(events)
            yield _find("server", lambda: _server(config, link, events), fatal=True)
            yield _find("plan", lambda: _plan(config, heard), fatal=False)
    except Wrong as wrong:
        yield Finding("mqtt", ok=False, text=str(wrong))


@contextlib.contextmanager
def _connected(config: Config) -> Iterator[tuple[Link, queue.SimpleQueue[LinkEvent]]]:
    from edge_agent.config import ConfigError, password
    from wire.link import Link, LinkDown, LinkEvent, LinkUp

    mqtt, events = config.mqtt, queue.SimpleQueue[LinkEvent]()
    try:
        link = Link(
            mqtt.url,
            f"{config.device.fleet}-{config.device.id}-doctor",  # the agent's own id would throw the agent out
            filters=[topics.shared(config.device.fleet, "+")],
            will=None,
            post=events.put,
            jitter=random.Random(0),  # noqa: S311
            username=mqtt.username,
            password=password(config),
            ca_file=mqtt.ca_file,
            cert_file=mqtt.cert_file,
            key_file=mqtt.key_file,
        )
    except (ValueError, ConfigError) as error:
        raise Wrong(str(error)) from error
    link.start()
    try:
        match _next(events, CONNECT_S):
            case None:
                raise Wrong(f"{mqtt.url} does not answer within {CONNECT_S:.0f} s: is it the right host and port?")
            case LinkUp():
                yield link, events
            case LinkDown(reason=reason):
                raise Wrong(reason)
            case _:
                raise Wrong(f"{mqtt.url} sent a message before it let us in")
    finally:
        link.stop()


def _gather(events: queue.SimpleQueue[LinkEvent]) -> list[Arrived]:
    """The messages that are kept for all devices: they come at once."""
    from wire.link import Arrived

    heard = []
    while isinstance(event := _next(events, QUIET_S), Arrived):
        heard.append(event)
    return heard


def _server(config: Config, link: Link, events: queue.SimpleQueue[LinkEvent]) -> str:
    """Does the largest message of a device pass? It is unsigned, so that the coordinator drops it."""
    from wire.link import LinkDown

    size, allowed = limits.PAYLOAD_BYTES_MAX, config.budget
    if allowed.day_bytes_max or allowed.month_bytes_max or allowed.metered:
        return f"not asked for a message of {size} bytes, since [budget] counts them; broker doctor asks"
    before = link.bytes_down
    link.publish(topics.up(config.device.fleet, config.device.id, "telemetry"), bytes(size))
    until = time.monotonic() + CONNECT_S
    while link.bytes_down == before:  # its acknowledgement is counted
        if isinstance(_next(events, 0.1), LinkDown):
            raise Wrong(f"it ends the connection at a message of {size} bytes; mosquitto.conf: max_packet_size 131072")
        if time.monotonic() > until:
            raise Wrong(
                f"it does not acknowledge a message of {size} bytes within {CONNECT_S:.0f} s; see broker doctor"
            )
    return f"a message of {size} bytes is acknowledged; whether it arrives, broker doctor asks"


def _plan(config: Config, heard: list[Arrived]) -> str:
    """Would the plan that is out now train here, and does it fit into the memory that is free?"""
    from edge_agent.voice import Identity, NotBelieved

    identity = Identity(
        config.device.fleet, config.device.id, lambda _data: b"", keys.verifier(config.device.coordinator_key)
    )
    for arrived in heard:
        try:
            message = identity.hear(arrived.topic, arrived.payload).message
        except NotBelieved as error:
            raise Wrong(
                f"what {arrived.topic} holds is not believed ({error.reason}): is coordinator_key this fleet's?"
            ) from error
        if isinstance(message, Plan):
            return _fit(config, message)
    return "none is out now"


def _fit(config: Config, plan: Plan) -> str:
    reading = Reading(
        **_read_host()._asdict(),
        num_examples=limits.EXAMPLES_MAX,  # another check counts them
        local_minute=host.local_minute(time.time()),
    )
    need, free = budget.TRAINER_BASELINE_BYTES + plan.trainer_arena_bytes, host.available_bytes()
    if free is not None and need > free:
        raise Wrong(f"training takes about {need >> 20} MB, and {free >> 20} MB are free: end something, or train less")
    reason = budget.refusal(config.budget.limits(), plan, reading)
    if reason is not None:
        raise Wrong(f"it would not train here now: {reason}")
    told = "an unknown number of" if free is None else str(free >> 20)
    room = f"{told} MB are free, and the owner allows {config.budget.memory_mb}"
    return f"training {plan.train} takes about {need >> 20} MB; {room}"


def _next(events: queue.SimpleQueue[LinkEvent], timeout_s: float) -> LinkEvent | None:
    try:
        return events.get(timeout=timeout_s)
    except queue.Empty:
        return None


CHECKS: Final[tuple[tuple[str, Callable[[Config], str], bool], ...]] = (
    ("python", _python, True),
    ("interpreter", _interpreter, True),
    ("kernels", _kernels, True),
    ("key", _key, True),
    ("state", _state, True),
    ("clock", _clock, False),
    ("certificate", _certificate, False),
    ("source", _source, False),
    ("samples", _samples, True),
    ("power", _power, False),
    ("budget", _budget, True),
)
