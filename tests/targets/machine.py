"""An emulated computer with an ARM processor: power, a serial console to type on, and a log that outlives a power cut.

Two boards: `virt`, with a network on which the host is 10.0.2.2, and `raspi3b`, a Raspberry Pi 3 B with its SD card and
its thermometer, and no network; its first serial line belongs to Bluetooth. Neither has a clock that was ever set: both
are switched on in 1970.

A power cut is SIGKILL for the emulator. The card (`cache=writeback`) then holds what the guest had flushed and whatever
it had written back by itself, as a real one does; what stood in the guest's memory alone is gone. It is no test of
cards that lose what they acknowledged.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from firmware_sim.processes import Program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.targets.image import Image

HOST: Final = "10.0.2.2"  # where the emulated network has the host
BOOT_S: Final = 400.0  # with patience: the emulator shares two processors with whatever else runs here
_PROMPT: Final = re.compile(r"<(\d+|more)>$")
_LINE: Final = re.compile(r"event=(\S+)( .*)?$", re.MULTILINE)
_BOARDS: Final = {
    "virt": (
        "-M virt -m 1024 -rtc base=1970-01-01T00:00:00 -device virtio-blk-device,drive=card "
        "-drive if=none,id=card,format=raw,cache=writeback,file={disk} "
        "-netdev user,id=net -device virtio-net-device,netdev=net -device virtio-rng-device "
        "-chardev file,id=log,path={log} -device virtio-serial-device -device virtconsole,chardev=log"
    ),
    "raspi3b": "-M raspi3b -m 1G -dtb {device_tree} -drive if=sd,format=raw,cache=writeback,file={disk} -serial null",
}
_KERNEL: Final = {
    "virt": "console=ttyAMA0 quiet systemd.show_status=0",
    "raspi3b": "console=ttyS1,115200 dwc_otg.fiq_fsm_enable=0 quiet systemd.show_status=0",
}


class MachineError(AssertionError):
    """It did not do what was expected of it."""


class Line(NamedTuple):
    """A line of the agent's log."""

    event: str
    fields: dict[str, str]


class Machine:
    """One machine with the card `disk`, which it writes to."""

    def __init__(self, image: Image, disk: Path, directory: Path, board: str = "virt") -> None:
        self.disk = disk
        self._directory, self._board = directory, board
        self._image = image
        self._boots = 0
        self._emulator: Program | None = None
        self._console: socket.socket | None = None
        self._heard = ""

    def power_on(self) -> None:
        """Start it, and do not wait."""
        self._boots += 1
        self._socket.unlink(missing_ok=True)
        self._log.touch()
        given = _BOARDS[self._board].format(disk=self.disk, log=self._log, device_tree=self._image.device_tree)
        command = ["qemu-system-aarch64", "-cpu", "cortex-a53", "-smp", "4", "-accel", "tcg,thread=multi", "-no-reboot"]
        command += ["-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd[self._board])]
        command += ["-append", _KERNEL[self._board], "-display", "none", "-monitor", "none", *given.split()]
        command += ["-serial", f"unix:{self._socket},server=on,wait=off"]
        self._emulator = Program("emulator", command, self._directory / "emulator.log")
        self._emulator.start()

    def cut(self) -> None:
        """Cut its power. May be called twice."""
        self._hang_up()
        if self._emulator is not None:
            self._emulator.kill()

    def power_off(self) -> None:
        """End it in order, from its console."""
        assert self._emulator is not None, "it was never on"
        self._send("sudo systemctl poweroff\n")
        self._emulator.wait(time.monotonic() + BOOT_S)
        self._hang_up()

    # Its log

    @property
    def _log(self) -> Path:
        return self._log_of(self._boots)

    def _log_of(self, boot: int) -> Path:
        return self._directory / f"{self._board}-{boot}.log"

    @property
    def _socket(self) -> Path:
        return self._directory / f"{self._board}.console"

    def lines(self) -> list[Line]:
        """What the agent has logged since the machine was switched on, whole lines only."""
        return _read(self._log)

    def lines_of_all_boots(self) -> list[Line]:
        """The same since the first time."""
        return [line for boot in range(1, self._boots + 1) for line in _read(self._log_of(boot))]

    def wait_for(self, event: str, within_s: float = BOOT_S, count: int = 1, effect: str = "") -> Line:
        """The `count`th line of this event, of those that had this effect; raises MachineError if it does not come."""

        def found() -> list[Line]:
            return [line for line in self.lines() if line.event == event and effect in line.fields.get("effects", "")]

        self._wait(lambda: len(found()) >= count, f"event={event}", within_s)
        return found()[count - 1]

    def wait_for_words(self, words: str, within_s: float) -> None:
        """Wait until they stand in the log, which is the whole journal; raises MachineError if they do not come."""
        self._wait(lambda: words in self._text(), repr(words), within_s)

    def _wait(self, is_there: Callable[[], bool], what: str, within_s: float) -> None:
        assert self._emulator is not None, "it was never on"
        until = time.monotonic() + within_s
        while not is_there():
            if not self._emulator.is_running:
                raise MachineError(f"the emulator has ended: {self._emulator.tail()}")
            if time.monotonic() > until:
                raise MachineError(f"no {what} within {within_s:.0f} s: {self._text()[-3000:]}")
            time.sleep(0.2)

    def _text(self) -> str:
        return self._log.read_text("utf-8", "replace")

    # Its console

    def log_in(self) -> None:
        """Wait for the shell of `pi`, and make its answers easy to read."""
        until = time.monotonic() + BOOT_S
        while self._console is None:
            try:
                console = socket.socket(socket.AF_UNIX)
                console.connect(str(self._socket))
                self._console = console
            except OSError:
                time.sleep(0.2)
        self._heard, asked_s = "", 0.0
        while "pi@pi-07" not in self._heard:
            if time.monotonic() > until:
                raise MachineError(f"nobody is logged in within {BOOT_S:.0f} s: {self._heard[-2000:]}")
            if time.monotonic() > asked_s + 5.0:  # the prompt may have come before we listened
                asked_s = time.monotonic()
                self._send("\n")
            self._hear(1.0)
        self._send("bind 'set enable-bracketed-paste off'; stty cols 10000; PS1='<$?>' PS2='<more>'\n")
        self._until_prompt("the console's settings", 60.0)
        time.sleep(3.0)  # the empty lines that we sent have a prompt each, which may come late
        self._hear(1.0)
        self.type("true")

    def type(self, command: str, within_s: float = 120.0, *, status: int | None = 0) -> str:
        """Type a command, of one or several lines; give what it printed. Raises MachineError for another `status`."""
        said = found = ""
        for line in command.split("\n"):
            self._heard = ""
            self._send(line + "\n")
            found = self._until_prompt(line, within_s)
            said += self._heard.partition("\n")[2].removesuffix(f"<{found}>")
        if status is not None and found != str(status):
            raise MachineError(f"{command}\nended with {found}:\n{said}")
        return said

    def _until_prompt(self, what: str, within_s: float) -> str:
        until = time.monotonic() + within_s
        while (left_s := until - time.monotonic()) > 0:
            self._hear(min(left_s, 1.0))
            if "\n" in self._heard and (found := _PROMPT.search(self._heard)):
                return found[1]
        raise MachineError(f"{what}\nhas not ended after {within_s:.0f} s: {self._heard[-2000:]}")

    def _hear(self, within_s: float) -> None:
        assert self._console is not None, "nobody is logged in"
        self._console.settimeout(within_s)
        with contextlib.suppress(TimeoutError):
            self._heard += self._console.recv(65536).decode("utf-8", "replace").replace("\r", "")

    def _send(self, text: str) -> None:
        assert self._console is not None, "nobody is logged in"
        self._console.settimeout(60.0)
        self._console.sendall(text.encode())

    def _hang_up(self) -> None:
        if self._console is not None:
            self._console.close()
            self._console = None


def _read(log: Path) -> list[Line]:
    text = log.read_text("utf-8", "replace").replace("\r", "")
    return [
        Line(found[1], dict(field.split("=", 1) for field in (found[2] or "").split() if "=" in field))
        for found in _LINE.finditer(text[: text.rfind("\n") + 1])
    ]
