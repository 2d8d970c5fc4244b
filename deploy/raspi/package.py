"""Make the Debian package of the agent for 64-bit ARM, on any machine: nothing is compiled, nothing is emulated.

    wheels for aarch64, as pip finds them ─┐
    our own wheel, kernels built ahead ────┼─▶ /opt/hedgerow/lib ─┐
    the unit, the command ────────────────────────────────────────┴─▶ hedgerow-agent_VERSION_arm64.deb

`make deb` builds the kernels first, so that the device needs neither Numba nor a compiler. A package is for one Python:
3.11 for Debian 12 and Raspberry Pi OS "bookworm", 3.13 for "trixie", whose model runtime is LiteRT. Needs dpkg-deb.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # these sources, wherever it is called from
NATIVE = ROOT / "engine/kernels/native"
PYTHONS = {"3.11": "bookworm", "3.13": "trixie"}
GLIBC_MAX = {"3.11": 36, "3.13": 41}  # of those Debians: wheels that need a newer one do not load there
# what a device never runs: they are half of what pip unpacks of these
LEFT_OUT = ("numpy/**/tests", "numpy/f2py", "numpy/distutils", "firmware_sim", "broker", "bin")

_COMMAND = """\
#!/bin/sh
PYTHONPATH=/opt/hedgerow/lib PYTHONNOUSERSITE=1 exec /usr/bin/python{python} -c \\
    'from edge_agent.cli import main; main(prog_name="edge-agent")' "$@"
"""
_CONTROL = """\
Package: hedgerow-agent
Version: {version}
Architecture: arm64
Maintainer: the hedgerow engineers <hedgerow@localhost>
Depends: python{python}, libc6 (>= 2.34), libstdc++6, adduser, openssl
Installed-Size: {kilobytes}
Section: net
Priority: optional
Description: on-device learning runtime: the agent
 Fine-tunes the deployed int8 model on the device's own data and publishes updates of
 a few kilobytes over MQTT. For Debian {suite} and Raspberry Pi OS {suite}, 64-bit.
"""
# DPKG_ROOT is where dpkg installs to, if that is not this machine
_BEFORE_INSTALL = """\
#!/bin/sh
set -e
at="$DPKG_ROOT/opt/hedgerow"
rm -rf "$at/before"
if [ "$1" = upgrade ] && [ -d "$at/lib" ]; then
    # the program as it is, until the new one has started: links, which take no room
    mkdir "$at/before"
    cp -al "$at/lib" "$at/bin" "$at/before"
    cp -a "$DPKG_ROOT"/lib/systemd/system/edge-agent* "$at/before"
fi
"""
_AFTER_INSTALL = """\
#!/bin/sh
set -e
at="$DPKG_ROOT/opt/hedgerow"
/usr/bin/python{python} -m compileall -q "$at/lib" || true
if [ -d "$DPKG_ROOT/run/systemd/system" ]; then
    systemctl daemon-reload
    systemctl enable edge-agent.service edge-agent-enroll.service edge-agent-renew.timer
    # true when it says that it is ready, or has no configuration yet
    if ! systemctl restart edge-agent.service; then
        if [ ! -d "$at/before" ]; then
            echo "hedgerow-agent: the agent does not start: journalctl -u edge-agent" >&2
            exit 1
        fi
        rm -rf "$at/lib" "$at/bin"
        cp -al "$at/before/lib" "$at/before/bin" "$at"
        cp -a "$at"/before/edge-agent* "$DPKG_ROOT/lib/systemd/system"
        rm -rf "$at/before" # last: until now all of this can be done once more
        systemctl daemon-reload
        systemctl restart edge-agent.service || true
        echo "hedgerow-agent: {version} does not start (journalctl -u edge-agent); the program before it is back." >&2
        echo "  So that apt knows, install the package of that one again: apt-get install --allow-downgrades ./..." >&2
        exit 1
    fi
    systemctl start --no-block edge-agent-enroll.service
fi
rm -rf "$at/before"
"""
_BEFORE_REMOVE = """\
#!/bin/sh
set -e
if [ -d "$DPKG_ROOT/run/systemd/system" ] && [ "$1" = remove ]; then
    systemctl disable --now edge-agent.service edge-agent-enroll.service edge-agent-renew.timer || true
fi
find "$DPKG_ROOT/opt/hedgerow" -name __pycache__ -type d -prune -exec rm -rf {} +
"""
_AFTER_REMOVE = """\
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    cd "$DPKG_ROOT/var"
    rm -rf lib/private/hedgerow cache/private/hedgerow lib/hedgerow cache/hedgerow
    # /etc/hedgerow stays: the device's keys are not ours to delete
fi
[ ! -d "$DPKG_ROOT/run/systemd/system" ] || systemctl daemon-reload
"""


def main() -> None:
    """Print the path of the package; exit 1 with one line when it cannot be made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--python", choices=PYTHONS, default="3.11", help="of the Debian that it is for")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder for the package")
    asked = parser.parse_args()
    try:
        print(package(asked.python, asked.out))
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"no package was made: {error}")


def package(python: str, out: Path) -> Path:
    """Make the package for this Python in `out`."""
    if not kernels().exists():
        sys.exit(f"no package was made: {kernels().name}, the build of these kernels, is not there; type make kernels")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hedgerow-deb-") as name:
        tree = Path(name) / "tree"
        _fill(tree, python, Path(name))
        kilobytes = sum(file.stat().st_size for file in tree.rglob("*") if file.is_file()) // 1024
        facts = {"version": version, "python": python, "suite": PYTHONS[python], "kilobytes": kilobytes}
        _describe(tree / "DEBIAN", facts)
        target = out / f"hedgerow-agent_{version}_{PYTHONS[python]}_arm64.deb"
        _run("dpkg-deb", "--root-owner-group", "-Zxz", "-z6", "--build", str(tree), str(target))
    return target


def kernels() -> Path:
    """The build for aarch64 of the kernels as they are now."""
    from engine.kernels import _native

    return NATIVE / f"aarch64-{_native.digest()}.so"


def _fill(tree: Path, python: str, scratch: Path) -> None:
    """Everything that the package puts onto a device."""
    library = tree / "opt/hedgerow/lib"
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(scratch), str(ROOT))
    (wheel,) = scratch.glob("hedgerow-*.whl")
    tag = python.replace(".", "")
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC_MAX[python] + 1)]
    wanted = [
        "--python-version",
        python,
        "--implementation",
        "cp",
        "--abi",
        f"cp{tag}",
        "--abi",
        "abi3",
        "--abi",
        "none",
    ]
    for platform in (*platforms, "manylinux2014_aarch64", "any"):
        wanted += ["--platform", platform]
    _run(
        sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "--no-compile", *wanted,
        "--target", str(library), *requirements(python),
    )  # fmt: skip
    _run(
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(library), str(wheel)
    )
    for pattern in LEFT_OUT:
        for path in library.glob(pattern):
            shutil.rmtree(path)
    for build in (library / "engine/kernels/native").glob("*.so"):
        if build.name != kernels().name:
            build.unlink()
    command = tree / "opt/hedgerow/bin/edge-agent"
    command.parent.mkdir(parents=True)
    command.write_text(_COMMAND.format(python=python), "utf-8")
    command.chmod(0o755)
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/edge-agent").symlink_to("/opt/hedgerow/bin/edge-agent")
    unit = (ROOT / "deploy/raspi/edge-agent.service").read_text("utf-8")
    units = tree / "lib/systemd/system"
    units.mkdir(parents=True)
    (units / "edge-agent.service").write_text(_without_warming(unit), "utf-8")
    for name in ("edge-agent-enroll.service", "edge-agent-renew.service", "edge-agent-renew.timer"):
        shutil.copy(ROOT / "deploy/raspi" / name, units)


def requirements(python: str) -> list[str]:
    """What `[agent]` needs with this Python: pip asks the one that runs it, whichever it installs for."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["agent"])]
    chosen = [each for each in wanted if each.marker is None or each.marker.evaluate({"python_version": python})]
    return [f"{each.name}{each.specifier}" for each in chosen]


def _without_warming(unit: str) -> str:
    """The unit of a machine whose kernels are compiled already."""
    return "".join(line for line in unit.splitlines(True) if not re.match(r"# Compiles|ExecStartPre=.* warm$", line))


def _describe(folder: Path, facts: dict[str, object]) -> None:
    folder.mkdir()
    (folder / "control").write_text(_CONTROL.format(**facts), "utf-8")
    scripts = {
        "preinst": _BEFORE_INSTALL,
        "postinst": _AFTER_INSTALL.format(**facts),
        "prerm": _BEFORE_REMOVE,
        "postrm": _AFTER_REMOVE,
    }
    for name, text in scripts.items():
        (folder / name).write_text(text, "utf-8")
        (folder / name).chmod(0o755)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
