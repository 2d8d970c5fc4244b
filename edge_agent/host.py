"""What the host says of itself, from /sys and /proc: heat, power, load, memory, writes. Every reading is optional.

A board that does not tell is normal (Debian's arm64 kernel has no under-voltage sensor, a plain Raspberry Pi no
battery), so what is missing, unreadable or absurd is None: unknown, which is never the same as fine. Files only, no
programs: under systemd's PrivateDevices `vcgencmd` has nothing to talk to. Source: Linux Documentation/ABI/testing,
sysfs-class-thermal and sysfs-class-power; proc_stat(5); Raspberry Pi documentation, "get_throttled".
"""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path("/")
CLOCK_SET_UNIX_S: Final = 1_704_067_200  # 2024-01-01: a clock that stands before that was never set
_ABSURD_C: Final = (-40.0, 150.0)  # sensors that are not there answer -273, 0x7fff and the like
_HERTZ: Final = os.sysconf("SC_CLK_TCK")  # in what /proc/stat and /proc/PID/stat count
_LOAD_S: Final = 60  # over which load is averaged, so that a moment's work ends no training
_SOC: Final = "sys/devices/platform/soc/soc:firmware/get_throttled"  # Raspberry Pi's kernels alone have it
UNDER_VOLTAGE: Final = 0x1
THROTTLED: Final = 0xE  # the clock has a cap, is held down, or has met the soft limit of heat
SINCE_BOOT: Final = 16  # so many bits further the same of all the time since boot


class Host(NamedTuple):
    """One reading; None is unknown."""

    temperature_c: float | None = None
    battery_rate: float | None = None  # 1.0 is full
    on_mains: bool | None = None
    throttled: bool | None = None  # now
    under_voltage: bool | None = None  # now
    busy_rate: float | None = None  # of all cores, what other programs kept busy in the last minute
    route: str | None = None  # the interface of the default route; with several, the preferred one


class Sensors:
    """Reads everything that matters to training. `root` is where sys and proc are mounted.

    Load is what changed between two readings: the first one does not know it.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._loads: deque[_Load] = deque()

    def read(self) -> Host:
        """Everything as it is now."""
        root = self._root
        supplies = [
            supply
            for supply in sorted((root / "sys/class/power_supply").glob("*"))
            if _text(supply / "scope") != "Device"  # a wireless mouse has a battery, too
        ]
        batteries = [supply for supply in supplies if _text(supply / "type") == "Battery"]
        chargers = [supply for supply in supplies if _text(supply / "type") in {"Mains", "USB", "Wireless"}]
        bits = throttle_bits(root)
        return Host(
            _temperature_c(root),
            _battery_rate(batteries),
            _on_mains(chargers, batteries),
            None if bits is None else bits & THROTTLED != 0,
            _under_voltage(root, bits),
            self._busy_rate(),
            _route(root),
        )

    def _busy_rate(self) -> float | None:
        load = _load(self._root)
        if load is None:
            self._loads.clear()
            return None
        loads = self._loads
        if loads and load.ticks < loads[-1].ticks:
            loads.clear()  # the counters began anew
        if not loads or load.ticks - loads[-1].ticks >= _HERTZ * load.cores:
            loads.append(load)
        while len(loads) > 2 and load.ticks - loads[1].ticks >= _LOAD_S * _HERTZ * load.cores:
            loads.popleft()
        passed = loads[-1].ticks - loads[0].ticks
        return (loads[-1].busy - loads[0].busy) / passed if passed else None


def local_minute(unix_s: float) -> int | None:
    """The minute of the owner's day, 0 to 1439; None where the clock was never set."""
    if unix_s < CLOCK_SET_UNIX_S:
        return None
    local = time.localtime(unix_s)
    return local.tm_hour * 60 + local.tm_min


def throttle_bits(root: Path = ROOT) -> int | None:
    """What the firmware says: bits 0 to 3 of now (under-voltage, clock capped, throttled, hot), 16 to 19 since boot."""
    try:
        return int(_text(root / _SOC) or "", 16)
    except ValueError:
        return None


def available_bytes(root: Path = ROOT) -> int | None:
    """The memory that programs can still have without swapping (MemAvailable of proc_meminfo(5))."""
    return _in_bytes(_line(root / "proc/meminfo", "MemAvailable:"))


def rss_bytes(root: Path = ROOT, pid: str = "self") -> int | None:
    """The resident memory of a process, by default our own."""
    return status_bytes("VmRSS:", root, pid)


def status_bytes(name: str, root: Path = ROOT, pid: str = "self") -> int | None:
    """One of the memory lines of proc_pid_status(5), as `VmRSS:`."""
    return _in_bytes(_line(root / "proc" / pid / "status", name))


def written_bytes(root: Path = ROOT, pid: str = "self") -> int | None:
    """What a process, and those of its children that have ended, gave to a disk to be written (proc(5), io).

    Linux counts a page when it becomes dirty, so memory file systems, pipes and sockets cost nothing here, and a page
    that is written twice before it reaches the disk counts once. What the file system adds of its own (its journal,
    its tables) is nobody's: docs/OPERATING.md says how much that is.
    """
    return _line(root / "proc" / pid / "io", "write_bytes:")


def cpu_s(pid: int, root: Path = ROOT) -> float:
    """The core seconds that a living process has had (utime and stime of proc_pid_stat(5)); 0 for one that is gone."""
    fields = (_text(root / f"proc/{pid}/stat") or "").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _HERTZ if len(fields) > 12 else 0.0


class _Load(NamedTuple):
    """Ticks since boot, of all cores together."""

    busy: int  # of programs at ordinary priority, and of the kernel: our children are niced, and do not count
    ticks: int
    cores: int


def _load(root: Path) -> _Load | None:
    lines = (_text(root / "proc/stat") or "").splitlines()
    ticks = [int(tick) for tick in lines[0].split()[1:9]] if lines and lines[0].startswith("cpu ") else []
    if len(ticks) < 8:
        return None
    user, _nice, system, _idle, _wait, irq, soft_irq, steal = ticks
    cores = sum(line.startswith("cpu") for line in lines) - 1
    return _Load(user + system + irq + soft_irq + steal, sum(ticks), cores)


def _under_voltage(root: Path, bits: int | None) -> bool | None:
    """The firmware's word, or else the alarm of the kernel's sensor rpi_volt, where there is one."""
    if bits is not None:
        return bits & UNDER_VOLTAGE != 0
    sensors = (root / "sys/class/hwmon").glob("hwmon*")
    alarms = [_number(sensor / "in0_lcrit_alarm") for sensor in sensors if _text(sensor / "name") == "rpi_volt"]
    return next((alarm != 0 for alarm in alarms if alarm is not None), None)


def _route(root: Path) -> str | None:
    """The interface of the IPv4 default route with the smallest metric, or else of the IPv6 one."""
    rows = [line.split() for line in (_text(root / "proc/net/route") or "").splitlines()[1:]]
    found = [(int(row[6]), row[0]) for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"]
    if not found:
        rows = [line.split() for line in (_text(root / "proc/net/ipv6_route") or "").splitlines()]
        found = [
            (int(row[5], 16), row[9])
            for row in rows
            if len(row) > 9 and row[0] == "0" * 32 and row[1] == "00" and row[9] != "lo"
        ]
    return min(found)[1] if found else None


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


def _line(path: Path, name: str) -> int | None:
    """The number on the line of that name."""
    for line in (_text(path) or "").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return None


def _in_bytes(kilobytes: int | None) -> int | None:
    return None if kilobytes is None else kilobytes * 1024


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
