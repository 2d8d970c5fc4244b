"""A whole emulated ARM computer takes the newcomer's road, and has its power cut. `python -m tests.targets.vm`

    here: mosquitto with TLS, coordinator ◀── 10.0.2.2 ── there: Debian 12, systemd, the package, the unit

1. The road: what deploy/raspi/README.md says for the device is typed on its serial console, word by word, until it
   stands in `broker fleet list`, learns, and predicts. Only the token is put in. What the page fetches by scp lies in
   the home of `pi` when the machine is switched on, and the package's dependencies are installed already.
2. The unit: few rights, and a hanging agent is started anew.
3. Power cuts, at moments drawn from a seed that is printed: a quarter while it boots, a half within three rounds after
   the agent is ready, a quarter when an update is finished and nobody has taken it yet. What it said to be
   finished must be counted, once.
4. Another card boots with deploy/raspi/user-data and nobody at its console, while the fleet is away.
5. The first card in an emulated Raspberry Pi 3 B: no link, a thermometer; then with a read-only root file system.

Its clock stands in 1970 when it is switched on, as a Pi's does, and nobody sets it but systemd, to the day that systemd
was built: before any certificate of this fleet. Where a step cannot be done here, one line says which and why, and the
exit status is 0; 1 when something fails. The first run makes the card, in eight minutes, and fetches about 150 MB.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from broker import mqtt_server
from firmware_sim import data
from tests.real.farm import Farm
from tests.real.test_broker_process import broker
from tests.targets import aarch64, arm, builds, cuts, image, road
from tests.targets.machine import BOOT_S, HOST, Machine

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICE: Final = "pi-07"
SECOND: Final = "pi-08"
WATCHED: Final = 40  # windows
RIGHTS_MAX: Final = 2.0  # of systemd-analyze security; 10 is a program that may do anything
CONFIG: Final = "--config /etc/hedgerow/agent.toml"
INSTALLED: Final = {"qemu-system-aarch64": "qemu-system-arm", **image.NEEDED}


def main() -> None:
    """Print one line a step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cuts", type=int, default=20, help="how often the power is cut")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of their moments")
    asked = parser.parse_args()
    if reason := aarch64.lacking() or arm.lacking() or lacking():
        print(f"skipped: the emulated ARM computer {reason}")
        return
    began_s = time.monotonic()
    try:
        made = image.make()
    except subprocess.CalledProcessError as error:
        print(f"skipped: the emulated ARM computer needs a card, and {error.cmd[0]} cannot make it here")
        return
    with tempfile.TemporaryDirectory(prefix="hedgerow-vm-") as name:
        story = Story(made, Path(name))
        try:
            story.tell(asked.cuts, asked.seed)
        finally:
            story.stop()
    print(f"the whole: {time.monotonic() - began_s:.0f} s")


def lacking() -> str:
    """Why it cannot be done here; empty when it can. The tools that are missing are installed, since we are root."""
    missing = sorted({package for program, package in INSTALLED.items() if shutil.which(program) is None})
    if missing:
        print(f"installing {' '.join(missing)}")
        command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            return f"needs {', '.join(missing)}: apt-get install {' '.join(missing)}"
    return "" if mqtt_server.find_mosquitto() else "needs mosquitto: apt-get install mosquitto"


class Story:
    """The machine, what it talks to, and what happens to it."""

    def __init__(self, made: image.Image, directory: Path) -> None:
        self._directory, self._image = directory, made
        mosquitto = mqtt_server.find_mosquitto()
        assert mosquitto, "lacking() has asked"
        (directory / "farm").mkdir()
        self._farm = Farm(mosquitto, directory / "farm", HOST)
        self._machine = Machine(self._image, directory / "card.img", directory)
        self._package = arm.make_package()
        self._round_s = 60.0

    def stop(self) -> None:
        """End everything that was started."""
        self._machine.cut()
        self._farm.stop()

    def tell(self, cut_count: int, seed: int) -> None:
        """All of it."""
        self._prepare_card()
        self._step("the road", self._take_the_road)
        self._step("it learns and predicts", self._learn)
        self._step("its rights", self._measure_rights)
        self._step("a hanging agent", self._hang)
        print(f"{cut_count} power cuts, --seed {seed}", flush=True)
        self._machine.power_off()
        broker("round", "open", "--count", "10000", "--config", str(self._farm.home))
        cuts.cut(self._machine, self._farm, cut_count, seed, self._round_s)
        self._step("it goes on", self._go_on)
        self._step("the books", lambda: cuts.books(self._machine, self._farm))
        self._step("the card", self._check_card)
        self._step("a card that enrols by itself", self._enrol_unattended)
        self._step("Raspberry Pi 3 B", self._move_card)
        self._step("read-only root", self._freeze_root)

    def _step(self, name: str, do: Callable[[], str]) -> None:
        began_s = time.monotonic()
        said = do()
        print(f"{name}: {said} ({time.monotonic() - began_s:.0f} s)", flush=True)

    # The road

    def _prepare_card(self) -> None:
        """A card for this machine, with the files that an owner copies to the device."""
        print(f"package: {self._package.name}, {self._package.stat().st_size / 1e6:.1f} MB", flush=True)
        windows, labels = data.share(data.digits(), 1, 1).devices["device-01"]
        windows = windows[:, ::-1, ::-1]  # its sensor is mounted upside down: there is something to learn
        labelled, watched = self._directory / "labelled.npz", self._directory / "windows.npy"
        np.savez(labelled, x=windows[:300], y=labels[:300])
        np.save(watched, windows[300 : 300 + WATCHED])
        files = (self._package, labelled, watched)
        _copy_card(self._image.disk, self._machine.disk, *(f"write {file} /home/pi/{file.name}" for file in files))

    def _take_the_road(self) -> str:
        self._farm.serve()
        self._machine.power_on()
        self._machine.log_in()
        booted = self._machine.type("date +%F; uname -m; systemctl --version | head -n 1; systemd-analyze | head -n 1")
        print(f"booted: {', '.join(booted.splitlines())}", flush=True)
        for command in road.commands("The device", self._farm.token("--device", DEVICE)):
            said = self._machine.type(command, 600.0)
            if " doctor " in command:
                print(said.rstrip())
        return "typed"

    def _learn(self) -> str:
        """The commands for the server are typed on this machine, and the directory is that of this fleet."""
        listing, opening, watch, status = road.commands("It learns and predicts")
        began_s = time.monotonic()
        for command in (listing, opening):
            words = command.removeprefix("sudo -u hedgerow /opt/hedgerow/bin/broker ").split()
            said = broker(*[word.replace("/var/lib/hedgerow", str(self._farm.home)) for word in words])
            assert command != listing or re.search(rf"(?m)^\W*{DEVICE}\b", said), said
        cuts.wait_for_version(self._farm, 6)
        self._round_s = (time.monotonic() - began_s) / 5
        self._machine.type(watch)
        until = time.monotonic() + cuts.ROUND_S
        while not (found := re.search(rf": {WATCHED} windows, .*\nlast window: (.*by version.*)", said)):
            assert time.monotonic() < until, said
            time.sleep(10)
            said = self._machine.type(status)
        learned = [line.fields["held_out"] for line in self._machine.lines() if line.event == "learned"]
        assert int(learned[-1].split("/")[0]) > int(learned[0].split("/")[0]), learned
        return f"it stands in broker fleet list; held-out windows right: {', '.join(learned)}; last window: {found[1]}"

    # The unit

    def _measure_rights(self) -> str:
        said = self._machine.type("systemd-analyze security --no-pager edge-agent | tail -n 1")
        found = re.search(r"exposure level for edge-agent.service: ([\d.]+)", said)
        assert found, said
        assert float(found[1]) <= RIGHTS_MAX, said
        return f"systemd-analyze security {found[1]}"

    def _hang(self) -> str:
        """The unit waits three minutes for a sign of life; here half a minute, to save time."""
        drop_in = "/run/systemd/system/edge-agent.service.d"
        self._machine.type(f"sudo install -d {drop_in}")
        self._machine.type(f"sudo tee {drop_in}/watchdog.conf <<END\n[Service]\nWatchdogSec=30\nEND")
        self._machine.type("sudo systemctl daemon-reload && sudo systemctl restart edge-agent", 300.0)
        ready = sum(line.event == "ready" for line in self._machine.lines())
        began_s = time.monotonic()
        self._machine.type("sudo systemctl kill --signal=STOP --kill-who=main edge-agent")
        self._machine.wait_for("ready", count=ready + 1)
        said = self._machine.type("systemctl show -p NRestarts edge-agent")
        assert "NRestarts=1" in said, said
        return f"stopped, ended by systemd, and ready again after {time.monotonic() - began_s:.0f} s"

    # Afterwards

    def _go_on(self) -> str:
        before = cuts.newest(self._farm)
        cuts.wait_for_version(self._farm, before + 2)
        cuts.settle(self._farm)
        return f"version {before} after the last cut, {cuts.newest(self._farm)} now"

    def _check_card(self) -> str:
        self._machine.log_in()
        self._machine.power_off()
        done = subprocess.run(["e2fsck", "-f", "-n", self._machine.disk], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return "e2fsck finds no fault"

    # Another card

    def _enrol_unattended(self) -> str:
        """Only the token is put in. Its first claim is not answered."""
        orders = (builds.ROOT / "deploy/raspi/user-data").read_text("utf-8")
        assert orders.count("PASTE-THE-TOKEN-HERE") == 1
        token, orders_file = self._farm.token("--device", SECOND), self._directory / "user-data"
        orders_file.write_text(orders.replace("PASTE-THE-TOKEN-HERE", token), "utf-8")
        self._farm.kill_coordinator()
        (self._directory / SECOND).mkdir()
        card = Machine(self._image, self._directory / f"{SECOND}.img", self._directory / SECOND)
        files = (self._package, orders_file)
        writes = (f"write {file} {image.FIRST_BOOT}/{file.name}" for file in files)
        _copy_card(self._image.disk, card.disk, f"rm {image.NOT_YET}", *writes)
        try:
            card.power_on()
            card.wait_for_words("edge-agent-enroll.service: Failed", 2 * BOOT_S)
            self._farm.serve()
            card.wait_for("ready")
            until = time.monotonic() + BOOT_S
            while SECOND not in (said := broker("fleet", "list", "--present", "--config", str(self._farm.home))):
                assert time.monotonic() < until, said
                time.sleep(1)
            card.log_in()
            said = card.type("sudo ls /etc/hedgerow")
            assert "agent.toml" in said, said
            assert "token" not in said, said
            told = card.type("cloud-init status", status=None)
        finally:
            card.cut()
        return f"refused while the fleet was away, then in the list; cloud-init {' '.join(told.split())}"

    # The other board

    def _move_card(self) -> str:
        self._machine = Machine(self._image, self._machine.disk, self._directory, "raspi3b")
        self._machine.power_on()
        self._machine.log_in()
        board = self._machine.type("tr -d '\\0' < /proc/device-tree/model; echo")
        self._wait_until_active()
        said = self._machine.type(f"sudo edge-agent status {CONFIG}")
        found = re.search(r"temperature ([\d.]+ C)", said)
        assert found, said
        assert "link down" in said, said
        return f"{board.strip()}, {found[1]}, ready without a link"

    def _freeze_root(self) -> str:
        """What the agent writes lies in two directories, and its unit has a /tmp of its own; all else is read-only."""
        self._machine.type("sudo systemctl stop edge-agent")
        self._machine.type("sudo mount -t tmpfs tmpfs /tmp && sudo mount -t tmpfs tmpfs /var/tmp")
        for name in ("lib", "cache"):
            kept, place = f"/run/kept/{name}", f"/var/{name}/private"
            self._machine.type(
                f"sudo install -d {kept} && sudo cp -a {place}/. {kept} && sudo mount --bind {kept} {place}"
            )
            self._machine.type(f"sudo chmod 700 {place}")
        self._machine.type("sudo mount -o remount,ro / && ! sudo touch /var/lib/x")
        self._machine.type("sudo systemctl start edge-agent", 600.0)
        self._wait_until_active()
        self._machine.cut()
        return "the agent is ready with its state in memory"

    def _wait_until_active(self) -> None:
        until = time.monotonic() + BOOT_S
        while self._machine.type("systemctl is-active edge-agent", status=None).strip() != "active":
            assert time.monotonic() < until, self._machine.type(
                "systemctl status --no-pager -l edge-agent", status=None
            )
            time.sleep(2)


def _copy_card(source: Path, card: Path, *changes: str) -> None:
    """A card for one machine; each of `changes` is a command of debugfs."""
    subprocess.run(["cp", "--sparse=always", source, card], check=True)
    for change in changes:
        subprocess.run(["debugfs", "-w", "-R", change, card], check=True, capture_output=True)


if __name__ == "__main__":
    main()
