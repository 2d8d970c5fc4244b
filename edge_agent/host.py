"""What the host says of itself, from /sys and /proc: heat, power, memory. Every reading is optional.

A board that does not tell is normal (Debian's arm64 kernel has no under-voltage sensor, a plain Raspberry Pi no
battery), so what is missing, unreadable or absurd is None: unknown, which is never the same as fine. Files only, no
programs: under systemd's PrivateDevices `vcgencmd` has nothing to talk to. Source: Linux Documentation/ABI/testing,
sysfs-class-thermal and sysfs-class-power.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path("/")
_ABSURD_C: Final = (-40.0, 150.0)  # sensors that are not there answer -273, 0x7fff and the like


class Host(NamedTuple):
    """One reading; None is unknown."""

    temperature_c: float | None
    battery_rate: float | None  # 1.0 is full
    on_mains: bool | None


def read(root: Path = ROOT) -> Host:
    """Read everything that matters to training. `root` is where sys and proc are mounted."""
    supplies = [
        supply
        for supply in sorted((root / "sys/class/power_supply").glob("*"))
        if _text(supply / "scope") != "Device"  # a wireless mouse has a battery, too
    ]
    batteries = [supply for supply in supplies if _text(supply / "type") == "Battery"]
    chargers = [supply for supply in supplies if _text(supply / "type") in {"Mains", "USB", "Wireless"}]
    return Host(_temperature_c(root), _battery_rate(batteries), _on_mains(chargers, batteries))


def rss_bytes(root: Path = ROOT, pid: str = "self") -> int | None:
    """The resident memory of a process, by default our own (VmRSS of /proc/self/status)."""
    for line in (_text(root / "proc" / pid / "status") or "").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None


def _temperature_c(root: Path) -> float | None:
    """The hottest zone: which one is the processor differs from board to board."""
    readings = [_number(zone / "temp") for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    celsius = [reading / 1000.0 for reading in readings if reading is not None]
    return max((degrees for degrees in celsius if _ABSURD_C[0] < degrees < _ABSURD_C[1]), default=None)


def _battery_rate(batteries: list[Path]) -> float | None:
    """The emptiest battery."""
    levels = [_number(battery / "capacity") for battery in batteries if _text(battery / "present") != "0"]
    return min((level / 100.0 for level in levels if level is not None and 0 <= level <= 100), default=None)


def _on_mains(chargers: list[Path], batteries: list[Path]) -> bool | None:
    online = [state for state in (_number(charger / "online") for charger in chargers) if state is not None]
    if any(online):
        return True
    statuses = {_text(battery / "status") for battery in batteries}
    if "Discharging" in statuses:
        return False
    if statuses & {"Charging", "Full"}:
        return True
    return False if online else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None  # also for a sensor that answers EAGAIN or EINVAL


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None
