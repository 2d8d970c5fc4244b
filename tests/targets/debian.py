"""Debian packages for arm64, fetched and unpacked on any machine: nothing is installed, no root is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITE = "deb [signed-by={keyring}] http://deb.debian.org/debian bookworm main"


class Apt:
    """An apt of its own in a directory: it knows nothing of this machine's packages, and bookworm's for arm64."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for folder in ("apt/state/lists/partial", "apt/cache/archives/partial", "apt/etc", "debs"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        (home / "apt/etc/sources.list").write_text(SUITE.format(keyring=KEYRING) + "\n")
        (home / "apt/status").touch()
        options = {
            "APT::Architecture": "arm64",
            "APT::Architectures": "arm64",
            "Dir::State": home / "apt/state",
            "Dir::State::status": home / "apt/status",
            "Dir::Cache": home / "apt/cache",
            "Dir::Etc::sourcelist": home / "apt/etc/sources.list",
            "Dir::Etc::sourceparts": home / "apt/etc",
            "APT::Sandbox::User": "",
        }
        self._options = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        subprocess.run(["apt-get", "-qq", *self._options, "update"], check=True)

    def depends(self, package: str) -> list[str]:
        """The names of the packages that it depends on."""
        command = ["apt-cache", *self._options, "depends", package]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [line.split()[1] for line in said.splitlines() if line.lstrip().startswith("Depends:")]

    def unpack(self, packages: list[str], tree: Path) -> None:
        """Put what is in these packages into `tree`."""
        debs = self.home / "debs"
        subprocess.run(["apt-get", "-qq", *self._options, "download", *packages], cwd=debs, check=True)
        for package in sorted(debs.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, tree], check=True)
