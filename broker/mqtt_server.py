"""An MQTT server of one's own: for the demo, the tests, and `broker serve --mqtt embedded`.

We write no MQTT server. This module finds mosquitto (installed, or unpacked without root into the user's cache from
the distribution's own packages), starts it on a free port of 127.0.0.1 and waits until it listens. Where there is
no mosquitto and no Debian, amqtt (pure Python) takes its place; it is slower, and a silent link never gets its will
published there, so it is for trying things out.

The server dies with the thread that started it (PR_SET_PDEATHSIG), so start it from the main one.
For a fleet, run a mosquitto of the system with `deploy/raspi/mosquitto.conf`.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Kind = Literal["mosquitto", "amqtt"]

READY_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 5.0
_PORT_TRIES: Final = 3
_APT_TIMEOUT_S: Final = 180.0
_SYSTEM_PACKAGES: Final = frozenset({"libc6", "libgcc-s1", "libstdc++6", "adduser", "init-system-helpers"})

# Replaces itself with the server, so the pid is the server's. Its parent may be gone before prctl: look again after.
_TETHER: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""

_CONFIG: Final = """\
# Written by broker/mqtt_server.py at each start.
listener {port} 127.0.0.1
user {user}
# Only this machine can connect, and every message is signed by its maker.
allow_anonymous true
# Without it, Nagle's algorithm and delayed acknowledgements cost 40 ms per window of messages.
set_tcp_nodelay true
# 0 is no limit. The default of 1000 drops what exceeds it after acknowledging it.
max_queued_messages 0
max_inflight_messages 100
max_packet_size 131072
persistence false
log_dest stderr
log_type error
log_type warning
log_type notice
"""


class MqttServerError(RuntimeError):
    """The server did not start. The sentence says why, with the end of its log."""


class Mosquitto(NamedTuple):
    """A mosquitto that runs here."""

    program: Path
    libraries: tuple[Path, ...]  # for LD_LIBRARY_PATH; empty when installed
    version: str


@dataclass(slots=True)
class Server:
    """A running MQTT server. `name`: mosquitto or amqtt. `pid` changes with `restart`, the port never."""

    name: Kind
    version: str
    port: int
    log_file: Path
    _command: Sequence[str]
    _environment: dict[str, str]
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `wire.link.Link`."""
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process; raises MqttServerError while none runs."""
        if self._process is None or self._process.poll() is not None:
            raise MqttServerError(f"{self.name} on port {self.port} is not running")
        return self._process.pid

    def stop(self) -> None:
        """End it politely (SIGTERM), by force after STOP_TIMEOUT_S. May be called twice."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Start it again on the same port, after `stop`, `kill` or neither; returns when it listens."""
        self.stop()
        with self.log_file.open("ab") as log:
            tether = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid())]
            self._process = subprocess.Popen(
                [*tether, *self._command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: we stop it in order
            )
        self._wait_until_it_listens()

    def _wait_until_it_listens(self) -> None:
        """Ask the kernel and not the port: another program's server may answer there."""
        assert self._process is not None, "only restart() waits"
        until = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < until and self._process.poll() is None:
            if _listens(self._process.pid, self.port):
                return
            time.sleep(0.01)
        self.kill()
        tail = self.log_file.read_text("utf-8", "replace")[-800:].strip()
        raise MqttServerError(f"{self.name} did not start on port {self.port}; the end of {self.log_file}: {tail}")


def start(directory: Path, *, port: int | None = None, config_extra: str = "", kind: Kind | None = None) -> Server:
    """Start an MQTT server on 127.0.0.1 and return when it listens.

    Its configuration and log go into `directory`. `port`: None takes a free one. `config_extra`: more lines for
    mosquitto.conf (amqtt has none). `kind`: None prefers mosquitto. Raises MqttServerError.
    """
    mosquitto = None if kind == "amqtt" else find_mosquitto()
    if mosquitto is None and (kind == "mosquitto" or config_extra):
        raise MqttServerError("needs mosquitto: this machine has only amqtt (install it: apt-get install mosquitto)")
    directory.mkdir(parents=True, exist_ok=True)
    tries = 1 if port is not None else _PORT_TRIES  # another program may take a free port before the server does
    for attempt in range(1, tries + 1):
        chosen = _free_port() if port is None else port
        if mosquitto is None:
            server = _amqtt(directory, chosen)
        else:
            server = _mosquitto(mosquitto, directory, chosen, config_extra)
        try:
            server.restart()
        except MqttServerError:
            if attempt == tries:
                raise
        else:
            return server
    raise AssertionError("the last attempt returns or raises")


def find_mosquitto() -> Mosquitto | None:
    """Return a mosquitto that runs here: installed, from the cache, or unpacked into it now; None if there is none.

    Unpacking downloads about 2 MB with apt-get and takes some seconds, once.
    """
    installed = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if installed is not None and (version := _version(Path(installed), ())):
        return Mosquitto(Path(installed), (), version)
    cache = _cache_directory() / "mosquitto"
    return _in_tree(cache) or _unpack(cache)


def _mosquitto(found: Mosquitto, directory: Path, port: int, config_extra: str) -> Server:
    config = directory / "mosquitto.conf"
    config.write_text(_CONFIG.format(port=port, user=getpass.getuser()) + config_extra + "\n", "utf-8")
    command = [str(found.program), "-c", str(config)]
    return Server("mosquitto", found.version, port, directory / "mosquitto.log", command, _environment(found.libraries))


def _amqtt(directory: Path, port: int) -> Server:
    import importlib.metadata

    try:
        version = importlib.metadata.version("amqtt")
    except importlib.metadata.PackageNotFoundError as error:
        raise MqttServerError("no MQTT server here: apt-get install mosquitto, or pip install amqtt") from error
    environment = dict(os.environ)
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-m", "broker.mqtt_server", "amqtt", str(port)]
    return Server("amqtt", version, port, directory / "amqtt.log", command, environment)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(pid: int, port: int) -> bool:
    """Whether `pid` has the listening socket of `port`: /proc/net/tcp names its inode, /proc/PID/fd its owner."""
    address = f"0100007F:{port:04X}"  # 127.0.0.1, least significant byte first: our machines are little-endian
    rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1] == address and row[3] == "0A"}
    with contextlib.suppress(OSError):
        return any(str(file.readlink()) in sockets for file in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _environment(libraries: Iterable[Path]) -> dict[str, str]:
    environment = dict(os.environ)
    paths = [str(path) for path in libraries]
    if paths:
        environment["LD_LIBRARY_PATH"] = ":".join(paths)
    return environment


def _version(program: Path, libraries: Sequence[Path]) -> str:
    """What `program -h` says of itself; empty when it does not run."""
    try:
        done = subprocess.run(
            [program, "-h"], env=_environment(libraries), capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"mosquitto version (\S+)", done.stdout)
    return match[1] if match else ""


# -- mosquitto without root ---------------------------------------------------------------------------------------


def _cache_directory() -> Path:
    configured = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(configured) if configured else Path.home() / ".cache") / "hedgerow"


def _in_tree(tree: Path) -> Mosquitto | None:
    program = tree / "usr/sbin/mosquitto"
    libraries = _library_directories(tree)
    version = _version(program, libraries) if program.is_file() else ""
    return Mosquitto(program, libraries, version) if version else None


def _library_directories(tree: Path) -> tuple[Path, ...]:
    return tuple(sorted({file.parent for file in tree.glob("**/lib/**/*.so*")}))


def _unpack(target: Path) -> Mosquitto | None:
    """Fetch mosquitto and what it lacks beside `target`, then rename: nobody ever sees half of it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="mosquitto.") as scratch:
            tree = Path(scratch) / "tree"
            _fetch_closure(Path(scratch), tree)
            if _in_tree(tree) is None:
                return None
            if _in_tree(target) is None:  # nobody was faster; what may lie there does not run
                shutil.rmtree(target, ignore_errors=True)
                with contextlib.suppress(OSError):
                    tree.rename(target)
    except (OSError, subprocess.SubprocessError):  # no apt-get, no dpkg, no network, no space: then without
        return None
    return _in_tree(target)


def _fetch_closure(scratch: Path, tree: Path) -> None:
    """Unpack mosquitto into `tree`, then the packages of missing libraries, until none is missing."""
    apt = _Apt(scratch)
    known = apt.unpack("mosquitto", tree)  # packages that the unpacked ones depend on
    tried = {"mosquitto", *_SYSTEM_PACKAGES}
    while missing := _missing_libraries(tree):
        guessed = {name for soname in missing for name in _package_names(soname)} & known
        wanted = (guessed or known) - tried
        if not wanted:
            return
        for package in sorted(wanted):
            tried.add(package)
            with contextlib.suppress(subprocess.SubprocessError):  # virtual, or of another architecture
                known |= apt.unpack(package, tree)


def _missing_libraries(tree: Path) -> set[str]:
    done = subprocess.run(
        ["ldd", tree / "usr/sbin/mosquitto"],
        env=_environment(_library_directories(tree)),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return set(re.findall(r"^\s*(\S+) => not found", done.stdout, re.MULTILINE))


def _package_names(soname: str) -> tuple[str, ...]:
    """Debian's rule (Policy, section 8.1): libdlt.so.2 is in libdlt2, libx1.so.2 in libx1-2; t64 since 2024."""
    stem, _, major = soname.partition(".so.")
    stem = stem.lower().replace("_", "-")
    name = f"{stem}{'-' if stem[-1:].isdigit() else ''}{major}"
    return (name, f"{name}t64")


class _Apt:
    """apt-get with the system's lists, or, where they are empty or outdated, with lists of its own."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._debs = scratch / "debs"
        self._debs.mkdir()
        self._options = ["-q", "-o", "APT::Sandbox::User=", "-o", "Acquire::http::Timeout=20"]
        self._has_own_lists = False

    def unpack(self, package: str, tree: Path) -> set[str]:
        """Download `package`, unpack it into `tree`, return the names that it depends on."""
        self._download(package)
        deb = max(self._debs.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
        _run(["dpkg", "-x", str(deb), str(tree)], self._scratch)
        depends = _run(["dpkg", "-f", str(deb), "Depends"], self._scratch)
        return {re.split(r"[\s(:|]", entry.strip(), maxsplit=1)[0] for entry in depends.split(",") if entry.strip()}

    def _download(self, package: str) -> None:
        try:
            _run(["apt-get", *self._options, "download", package], self._debs)
        except subprocess.CalledProcessError:
            if self._has_own_lists:
                raise
            self._make_own_lists()
            _run(["apt-get", *self._options, "download", package], self._debs)

    def _make_own_lists(self) -> None:
        self._has_own_lists = True
        for directory in ("lists/partial", "cache/archives/partial"):
            (self._scratch / directory).mkdir(parents=True)
        self._options += ["-o", f"Dir::State::Lists={self._scratch}/lists", "-o", f"Dir::Cache={self._scratch}/cache"]
        _run(["apt-get", *self._options, "update"], self._scratch)


def _run(command: Sequence[str], directory: Path) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_APT_TIMEOUT_S,
        check=True,
    )
    return done.stdout


# -- amqtt, as a child process: python -m broker.mqtt_server amqtt PORT ---------------------------------------------


def _serve_amqtt(port: int) -> None:
    import asyncio
    import logging
    import signal

    from amqtt.broker import Broker

    logging.basicConfig(level=logging.WARNING)
    # Naming the plugins replaces amqtt's own list: exactly one for authentication, none that reads topics.
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }

    async def serve() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        server = Broker(config)
        await server.start()
        await ended.wait()
        await server.shutdown()

    asyncio.run(serve())


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "amqtt":
        sys.exit("usage: python -m broker.mqtt_server amqtt PORT (started by broker itself)")
    _serve_amqtt(int(sys.argv[2]))
