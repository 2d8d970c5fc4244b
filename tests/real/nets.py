"""Networks of one's own: a namespace for each device, wired to the one in which MQTT server and coordinator run.

    [ br0 10.77.0.11 ]── eth0 ═══ veth ═══ wire-1 ──┐
    [ br0 10.77.0.12 ]── eth0 ═══ veth ═══ wire-2 ──┤ br0 10.77.0.1   MQTT server, coordinator, auditor
     a device each                                  ┘

A wire lets a rate pass and drops packets at random, both ways. Its ends are ports of bridges, because a sender's TCP
hears of what its own queue drops, and sends it again at once: that would be no loss. The drop is a filter that draws a
number and a class that holds nothing; netem would do both, and is missing from more kernels than these are.

A namespace has no name here. It lives as long as a process in it, and such a process dies with whoever started it
(firmware_sim.processes), so nothing stays behind, not even after SIGKILL. Needs iproute2 and util-linux, and root or
user namespaces. All of it runs in a namespace, too: start programs that make `Nets` with `inside`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from firmware_sim.processes import Program, stop_all

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVER: Final = "10.77.0.1"
FREE_BITS: Final = 1_000_000_000  # a wire that is as good as none
QUEUE_BYTES: Final = 60_000
_READY_S: Final = 10.0
_RANDOM: Final = 0xFFFFF038  # classic BPF's load of a random number: SKF_AD_OFF + SKF_AD_RANDOM, linux/filter.h
_LOST: Final = 0x10002  # class 1:2


class NetsError(RuntimeError):
    """The kernel or its tools refused; the sentence is theirs."""


def inside(command: Sequence[str]) -> list[str]:
    """The command that runs `command` in a fresh namespace, as root of it."""
    if os.geteuid() == 0:
        return ["unshare", "--net", *command]
    return ["unshare", "--net", "--map-root-user", "env", "LOGNAME=root", *command]  # nobody else exists in there


def why_not() -> str:
    """Why no `Nets` can be made here; '' if it can."""
    try:
        done = subprocess.run(
            inside([sys.executable, "-m", __name__]), capture_output=True, text=True, timeout=60, check=False
        )
    except OSError as error:
        return f"needs unshare of util-linux: {error.strerror}"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"needs network namespaces with veth, bridge and HTB: {last}" if done.returncode else ""


class Nets:
    """One namespace for each of `devices`, wired to ours. Logs go into `directory`."""

    def __init__(self, devices: Sequence[str], directory: Path) -> None:
        self._directory = directory
        self._dropped = 0  # by wires that are no more
        self._wires = {device: f"wire-{number}" for number, device in enumerate(devices, 1)}
        self._addresses = {device: f"10.77.0.{10 + number}" for number, device in enumerate(devices, 1)}
        self._holders = {
            device: Program(device, ["unshare", "--net", "sleep", "infinity"], directory / f"{device}.net")
            for device in devices
        }
        _run("ip", "link", "set", "lo", "up")
        _bridge((), SERVER)
        try:
            for device in devices:
                self.power_on(device)
        except NetsError:
            self.stop()
            raise

    def before(self, device: str) -> list[str]:
        """What to put before a command that is to run where the device is, also after its power was off."""
        return ["nsenter", f"--net={self._place(device)}"]

    def set_weather(self, device: str, loss_rate: float, bits_per_s: int) -> None:
        """From now on the device's wire drops this share of all packets, and carries so much, each way."""
        for before, port in self._ends(device):
            rate = ("htb", "rate", f"{bits_per_s}bit", "burst", "15k")
            _run(*before, "tc", "class", "replace", "dev", port, "parent", "1:", "classid", "1:1", *rate)
            _run(*before, "tc", "filter", "replace", "dev", port, *_DRAW, "bytecode", _program(loss_rate))

    def cut(self, device: str) -> None:
        """Pull the device's plug."""
        _run("ip", "link", "set", self._wires[device], "down")

    def mend(self, device: str) -> None:
        """Put it back."""
        _run("ip", "link", "set", self._wires[device], "up")

    def power_off(self, device: str) -> None:
        """End the device's kernel, as far as it is one: what its sockets hold is lost. Kill its programs first."""
        self._dropped += self._dropped_by(device)
        _run("ip", "link", "del", self._wires[device])
        self._holders[device].kill()

    def power_on(self, device: str) -> None:
        """Give the device a new namespace, with its old address, and a wire in calm weather."""
        holder = self._holders[device]
        holder.start()
        namespace = Path(f"/proc/{holder.pid}/ns/net")
        until, ours = time.monotonic() + _READY_S, Path("/proc/self/ns/net").readlink()
        while namespace.readlink() == ours:
            if time.monotonic() > until or not holder.is_running:
                raise NetsError(holder.tail() or "no namespace came up")
            time.sleep(0.01)
        self._place(device).unlink(missing_ok=True)
        self._place(device).symlink_to(namespace)
        _run("ip", "link", "add", self._wires[device], "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _bridge(self.before(device), self._addresses[device])
        for before, port in self._ends(device):
            _run(*before, "ip", "link", "set", port, "master", "br0", "up")
            _queues(before, port)
        self.set_weather(device, 0.0, FREE_BITS)

    def dropped(self) -> int:
        """How many packets all wires have dropped; every device must be on."""
        return self._dropped + sum(self._dropped_by(device) for device in self._wires)

    def stop(self) -> None:
        """End the namespaces."""
        stop_all(self._holders.values())

    def _dropped_by(self, device: str) -> int:
        shown = (_run(*before, "tc", "-s", "-j", "qdisc", "show", "dev", port) for before, port in self._ends(device))
        return sum(queue["drops"] for text in shown for queue in json.loads(text) if queue.get("parent") == "1:2")

    def _place(self, device: str) -> Path:
        return self._directory / f"{device}.namespace"

    def _ends(self, device: str) -> tuple[tuple[list[str], str], ...]:
        return (([], self._wires[device]), (self.before(device), "eth0"))


_DRAW: Final = ("parent", "1:", "protocol", "all", "prio", "1", "handle", "1", "bpf")


def _bridge(before: Sequence[str], address: str) -> None:
    # an address that stays: a bridge takes one from its ports, and changes it with them behind everyone's back
    mac = ":".join(["02", "00", *(f"{int(part):02x}" for part in address.split("."))])
    _run(*before, "ip", "link", "add", "br0", "address", mac, "type", "bridge")
    _run(*before, "ip", "addr", "add", f"{address}/24", "dev", "br0")
    _run(*before, "ip", "link", "set", "br0", "up")


def _queues(before: Sequence[str], port: str) -> None:
    """One class for what passes, one for what is lost; which of them, a filter will draw."""
    add = [*before, "tc", "qdisc", "add", "dev", port]
    _run(*add, "root", "handle", "1:", "htb", "default", "1")
    for number, limit in (("1", QUEUE_BYTES), ("2", 1)):
        rate = ("htb", "rate", f"{FREE_BITS}bit", "burst", "15k")
        _run(*before, "tc", "class", "add", "dev", port, "parent", "1:", "classid", f"1:{number}", *rate)
        _run(*add, "parent", f"1:{number}", "bfifo", "limit", str(limit))


def _program(loss_rate: float) -> str:
    """Classic BPF: load a random u32; below the threshold return class 1:2, else 0, the default."""
    threshold = min(round(loss_rate * 2**32), 2**32 - 1)
    return f"4,32 0 0 {_RANDOM},53 1 0 {threshold},6 0 0 {_LOST},6 0 0 0"


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        raise NetsError(f"{command[0]}: {error.strerror} (apt-get install iproute2)") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise NetsError(f"{' '.join(command)}: {last}")
    return done.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        try:
            Nets(["trial"], Path(scratch)).stop()
        except NetsError as complaint:
            sys.exit(str(complaint))
