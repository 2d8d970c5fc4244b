"""Is this device fit to take part? One check a line, and how to mend what is wrong.

Every check is a function of the config that returns what it found or raises `Wrong` with a sentence; `CHECKS` is the
list. Nothing is changed but that a state directory which is missing is made, and no check needs another one to be fine.
"""

from __future__ import annotations

import os
import platform
import queue
import random
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from edge_agent import host, samples
from wire import keys, topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_agent.config import Config

FREE_BYTES_MIN: Final = 64 << 20
CLOCK_MIN_S: Final = 1_704_067_200  # 2024-01-01
CONNECT_S: Final = 8.0
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
        try:
            yield Finding(name, ok=True, text=check(config))
        except Wrong as wrong:
            yield Finding(name, ok=False, text=str(wrong), fatal=fatal)


def _python(_config: Config) -> str:
    if sys.maxsize <= 2**32:
        raise Wrong("this is a 32-bit Python, for which there is no model runtime: install a 64-bit system")
    return f"{sys.version.split()[0]} on {platform.machine()}"


def _interpreter(_config: Config) -> str:
    return _in_child(_ENGINE, "install it with pip install 'hedgerow[agent]'")


def _kernels(_config: Config) -> str:
    said = _in_child(_KERNELS + _KERNEL_TIME + _KERNELS_IN_USE, "install it with pip install 'hedgerow[jit]'")
    seconds, in_use = said.split("\n")
    if float(seconds) > 5.0:
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
    if time.time() < CLOCK_MIN_S:
        raise Wrong("the clock stands before 2024: set it (timedatectl); until then our own certificate tells the time")
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _certificate(config: Config) -> str:
    from wire.certificates import CertificateError, common_name, lifetime, load_chain

    file = config.mqtt.cert_file
    if file is None:
        return "none, and none is needed where [mqtt] names none"
    try:
        own = load_chain(file)[0]
    except CertificateError as error:
        raise Wrong(str(error)) from error
    starts, ends = lifetime(own)
    day = time.strftime("%Y-%m-%d", time.gmtime(ends))
    if common_name(own) != config.device.id:
        raise Wrong(f"{file} is for {common_name(own)!r}, and this is {config.device.id}: the MQTT server goes by it")
    if time.time() >= ends:
        raise Wrong(f"{file} ended on {day}: edge-agent enroll with another token brings the next")
    if time.time() >= starts + (ends - starts) * 0.75:
        raise Wrong(f"{file} ends on {day} and should be renewed by now: does edge-agent-renew.timer run?")
    return f"for {config.device.id}, until {day}"


def _mqtt(config: Config) -> str:
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
        event = events.get(timeout=CONNECT_S)
    except queue.Empty:
        raise Wrong(f"{mqtt.url} does not answer within {CONNECT_S:.0f} s: is it the right host and port?") from None
    finally:
        link.stop()
    match event:
        case LinkUp():
            return f"{mqtt.url} answers"
        case LinkDown(reason=reason):
            raise Wrong(reason)
    raise Wrong(f"{mqtt.url} sent a message before it let us in")


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
    now, limits = host.read(), config.budget
    unknown = [
        name
        for name, limit, value in (
            ("temperature_c_max", limits.temperature_c_max, now.temperature_c),
            ("battery_rate_min", limits.battery_rate_min, now.battery_rate),
            ("mains_only", limits.mains_only or None, now.on_mains),
        )
        if limit is not None and value is None
    ]
    if unknown:
        raise Wrong(f"this host cannot tell what {', '.join(unknown)} limits, so it will never train: drop the limit")
    told = (f"{name} {'unknown' if value is None else value}" for name, value in now._asdict().items())
    return f"every limit can be checked: {', '.join(told)}"


CHECKS: Final[tuple[tuple[str, Callable[[Config], str], bool], ...]] = (
    ("python", _python, True),
    ("interpreter", _interpreter, True),
    ("kernels", _kernels, True),
    ("key", _key, True),
    ("state", _state, True),
    ("clock", _clock, False),
    ("certificate", _certificate, False),
    ("mqtt", _mqtt, True),
    ("source", _source, False),
    ("samples", _samples, True),
    ("budget", _budget, True),
)
