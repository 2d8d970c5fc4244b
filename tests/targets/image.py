"""The card of the emulated machine: Debian 12 for arm64 with systemd, a kernel, and what starts it. Made once.

    mmdebstrap, every program emulated ─▶ a tree, a user `pi` ─▶ mkfs.ext4 -d ─▶ disk.img
    linux-image of Debian ─▶ vmlinuz, modules ─▶ initrd.gz (busybox: load the modules, mount the card, hand over)

All of it lies in .cache/machine. It is Debian as it comes, and what differs is said here: `pi` is logged in at the
serial console, and may sudo without a password, as on a card from Raspberry Pi Imager; the log is kept in memory, and
copied to a second console, so that the host has it after a power cut; what the agent's package depends on is there
already, since it need reach no Debian mirror; cloud-init looks for its orders where Raspberry Pi OS's does, and
is switched off until a card has some. The initial file system is a small one of our own, because Debian's takes ten
minutes to make under emulation.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.targets import builds, debian

if TYPE_CHECKING:
    from pathlib import Path

HOME: Final = builds.ROOT / ".cache/machine"
SIZE: Final = "2G"  # the emulated SD card wants a power of two
NEEDED: Final = {"mmdebstrap": "mmdebstrap", "arch-test": "arch-test", "cpio": "cpio", "mkfs.ext4": "e2fsprogs"}
PACKAGES: Final = (
    "systemd,systemd-sysv,udev,dbus,iproute2,kmod,procps,sudo,e2fsprogs,python3.11,libstdc++6,adduser,openssl,"
    "cloud-init"
)
# in the order of need; what each of them depends on is found in its own file
MODULES: Final = {
    "virt": ["virtio_mmio", "virtio_blk", "virtio_net", "virtio-rng", "virtio_console", "crc32c_generic", "ext4"],
    "raspi3b": ["bcm2835", "sdhci-iproc", "bcm2835_thermal", "bcm2835-rng", "crc32c_generic", "ext4"],
}
FIRST_BOOT: Final = "/boot/firmware"  # where Raspberry Pi OS has the partition that an owner can write to
NOT_YET: Final = "/etc/cloud/cloud-init.disabled"  # on a card of whom somebody sits at the console
CARD: Final = {"virt": "vda", "raspi3b": "mmcblk0"}
FILES: Final = {
    "etc/hostname": "pi-07\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 pi-07\n",
    "etc/sudoers.d/pi": "pi ALL=(ALL) NOPASSWD: ALL\n",
    f"{FIRST_BOOT[1:]}/meta-data": "instance-id: first-boot\n",
    NOT_YET[1:]: "",
    "etc/cloud/cloud.cfg.d/99-card.cfg": (
        f"datasource_list: [NoCloud, None]\ndatasource: {{NoCloud: {{seedfrom: 'file://{FIRST_BOOT}/'}}}}\n"
    ),
    "etc/systemd/network/20-wired.network": "[Match]\nName=e*\n[Network]\nDHCP=yes\n",
    "etc/systemd/journald.conf.d/console.conf": (
        "[Journal]\nStorage=volatile\nForwardToConsole=yes\nTTYPath=/dev/hvc0\nMaxLevelConsole=info\n"
    ),
    "etc/systemd/system/console-getty.service.d/pi.conf": (
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin pi --noissue --keep-baud - 115200 dumb\n"
    ),
}
HOOKS: Final = (
    "useradd --create-home --shell /bin/bash --groups sudo pi",
    "systemctl enable --quiet systemd-networkd",
    # one at the console, whichever that is: not on the log's, and without waiting for a device
    "systemctl enable --quiet console-getty",
    "install -d /etc/systemd/system-generators",
    "ln -s /dev/null /etc/systemd/system-generators/systemd-getty-generator",
)
INIT: Final = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /order); do /bin/busybox insmod /modules/$module; done
tries=0
while [ ! -b /dev/{card} ] && [ $tries -lt 300 ]; do /bin/busybox sleep 0.1; tries=$((tries + 1)); done
/bin/busybox mount -t ext4 -o rw /dev/{card} /root || exec /bin/busybox sh
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""


class Image(NamedTuple):
    """What the emulator starts from. `disk` is to be copied, never to be written."""

    disk: Path
    kernel: Path
    initrd: dict[str, Path]
    device_tree: Path  # of the Raspberry Pi 3 B


def make() -> Image:
    """Give the image, made now if it is not there."""
    image = Image(
        HOME / "disk.img",
        HOME / "vmlinuz",
        {board: HOME / f"initrd-{board}.gz" for board in MODULES},
        HOME / "bcm2837-rpi-3-b.dtb",
    )
    wanted = repr((debian.SUITE, SIZE, PACKAGES, MODULES, FILES, HOOKS, INIT))
    done = HOME / "done"
    if done.exists() and done.read_text("utf-8") == wanted:
        return image
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    _make_disk(image.disk)
    _take_kernel(image)
    done.write_text(wanted, "utf-8")
    return image


def _make_disk(disk: Path) -> None:
    tree = HOME / "tree"
    subprocess.run(
        [
            "mmdebstrap", "--quiet", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}",
            "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
            *[f"--customize-hook=chroot $1 {hook}" for hook in HOOKS], "bookworm", tree,
        ],
        check=True,
    )  # fmt: skip
    for name, text in FILES.items():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    subprocess.run(["truncate", "-s", SIZE, disk], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", tree, disk], check=True)
    shutil.rmtree(tree)


def _take_kernel(image: Image) -> None:
    fetched = HOME / "fetched"
    apt, tree = debian.Apt(fetched), fetched / "tree"
    linux = next(name for name in apt.depends("linux-image-arm64") if name.startswith("linux-image-"))
    apt.unpack([linux, "busybox-static"], tree)
    version = linux.removeprefix("linux-image-")
    shutil.copy(tree / f"boot/vmlinuz-{version}", image.kernel)
    shutil.copy(tree / f"usr/lib/{linux}/broadcom/{image.device_tree.name}", image.device_tree)
    modules = {file.stem.replace("-", "_"): file for file in (tree / f"lib/modules/{version}").rglob("*.ko")}
    for board, names in MODULES.items():
        _make_initrd(image.initrd[board], tree / "bin/busybox", _in_order(names, modules), CARD[board])
    shutil.rmtree(fetched)


def _in_order(names: list[str], modules: dict[str, Path]) -> list[Path]:
    """The files of these modules, each after those that it depends on. One that is no file is in the kernel itself."""
    ordered: list[Path] = []

    def take(name: str) -> None:
        file = modules.get(name.replace("-", "_"))
        if file is None or file in ordered:
            return
        found = re.search(rb"\0depends=([^\0]*)\0", file.read_bytes())
        for each in found[1].decode().split(",") if found else ():
            take(each)
        ordered.append(file)

    for name in names:
        take(name)
    return ordered


def _make_initrd(path: Path, busybox: Path, modules: list[Path], card: str) -> None:
    tree = path.with_suffix(".tree")
    for folder in ("bin", "dev", "root", "modules"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin")
    for module in modules:
        shutil.copy(module, tree / "modules")
    (tree / "order").write_text("\n".join(module.name for module in modules) + "\n")
    (tree / "init").write_text(INIT.format(card=card))
    (tree / "init").chmod(0o755)
    names = "\n".join(str(file.relative_to(tree)) for file in sorted(tree.rglob("*"))).encode()
    packed = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"], cwd=tree, input=names, capture_output=True, check=True
    )
    path.write_bytes(gzip.compress(packed.stdout))
    shutil.rmtree(tree)
