"""The host's readings, from a tree of files: what is not told is unknown."""

from __future__ import annotations

import os
import time

import pytest

from edge_agent import host
from edge_agent.host import Host

CLASSES = {"thermal", "power_supply", "hwmon"}
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t000A10AC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
WWAN = "wwan0\t00000000\t0100000A\t0003\t0\t0\t700\t00000000\t0\t0\t0\n"
WLAN = "wlan0\t00000000\t0100000A\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
DEFAULT_6 = f"{'0' * 32} 00 {'0' * 32} 00 {'f' * 32} {{}} 00000002 00000000 00000003     {{}}\n"


def tree(root, files: dict[str, str]):
    for name, text in files.items():
        path = root / ("sys/class" if "/" in name and name.split("/")[0] in CLASSES else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


UNKNOWN = Host()
BATTERY = {"power_supply/BAT0/type": "Battery\n", "power_supply/BAT0/capacity": "57\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, UNKNOWN),
        ({"thermal/thermal_zone0/temp": "48312\n"}, Host(48.312, None, None)),
        ({"thermal/thermal_zone0/temp": "48000\n", "thermal/thermal_zone1/temp": "61000\n"}, Host(61.0, None, None)),
        ({"thermal/thermal_zone0/temp": "-273000\n", "thermal/thermal_zone1/temp": "rubbish"}, UNKNOWN),
        ({"thermal/thermal_zone0/temp": "32767000\n"}, UNKNOWN),
        ({**BATTERY, "power_supply/BAT0/status": "Discharging\n"}, Host(None, 0.57, False)),
        ({**BATTERY, "power_supply/BAT0/status": "Charging\n"}, Host(None, 0.57, True)),
        ({**BATTERY, "power_supply/AC/type": "Mains\n", "power_supply/AC/online": "1\n"}, Host(None, 0.57, True)),
        ({**BATTERY, "power_supply/AC/type": "Mains\n", "power_supply/AC/online": "0\n"}, Host(None, 0.57, False)),
        ({**BATTERY, "power_supply/BAT0/scope": "Device\n"}, UNKNOWN),
        ({**BATTERY, "power_supply/BAT0/capacity": "400\n"}, UNKNOWN),
        ({**BATTERY, "power_supply/BAT0/present": "0\n"}, UNKNOWN),
        (
            {**BATTERY, "power_supply/BAT1/type": "Battery\n", "power_supply/BAT1/capacity": "9\n"},
            Host(None, 0.09, None),
        ),
    ],
)
def test_what_the_files_say(tmp_path, files, expected):
    assert host.Sensors(tree(tmp_path, files)).read() == expected


@pytest.mark.parametrize(
    ("files", "throttled", "under_voltage"),
    [
        ({FIRMWARE: "0\n"}, False, False),
        ({FIRMWARE: "50000\n"}, False, False),  # was, since the last boot
        ({FIRMWARE: "50005\n"}, True, True),
        ({FIRMWARE: "8\n"}, True, False),
        ({FIRMWARE: "rubbish\n"}, None, None),
        ({"hwmon/hwmon1/name": "rpi_volt\n", "hwmon/hwmon1/in0_lcrit_alarm": "1\n"}, None, True),
        ({"hwmon/hwmon1/name": "rpi_volt\n", "hwmon/hwmon1/in0_lcrit_alarm": "0\n"}, None, False),
        ({"hwmon/hwmon1/name": "cpu_thermal\n", "hwmon/hwmon1/in0_lcrit_alarm": "1\n"}, None, None),
    ],
)
def test_what_the_firmware_says_of_power(tmp_path, files, throttled, under_voltage):
    assert host.Sensors(tree(tmp_path, files)).read() == Host(throttled=throttled, under_voltage=under_voltage)


@pytest.mark.parametrize(
    ("files", "route"),
    [
        ({"proc/net/route": ROUTES}, None),
        ({"proc/net/route": ROUTES + WWAN}, "wwan0"),
        ({"proc/net/route": ROUTES + WWAN + WLAN}, "wlan0"),  # whose metric is smaller
        ({"proc/net/ipv6_route": DEFAULT_6.format("00000400", "eth1") + DEFAULT_6.format("ffffffff", "lo")}, "eth1"),
        ({"proc/net/ipv6_route": DEFAULT_6.format("ffffffff", "lo")}, None),
    ],
)
def test_by_which_interface_the_link_goes(tmp_path, files, route):
    assert host.Sensors(tree(tmp_path, files)).read().route == route


def load(root, user: int, nice: int, idle: int):
    cores = "cpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\n"
    tree(root, {"proc/stat": f"cpu  {user} {nice} 0 {idle} 0 0 0 0 0 0\n{cores}intr 0\n"})


def test_load_is_what_others_took_since_the_reading_before_and_ours_is_niced(tmp_path):
    sensors = host.Sensors(tmp_path)
    assert sensors.read().busy_rate is None  # no /proc/stat
    load(tmp_path, 1000, 0, 1000)
    assert sensors.read().busy_rate is None  # nothing to compare it with
    load(tmp_path, 1100, 300, 1600)
    assert sensors.read().busy_rate == 0.1
    for second in range(1, 121):  # two minutes of full load: the older one is forgotten
        load(tmp_path, 1100 + 200 * second, 300, 1600)
        rate = sensors.read().busy_rate
    assert rate == 1.0
    load(tmp_path, 10, 0, 10)  # counters that began anew
    assert sensors.read().busy_rate is None


def test_the_minute_of_the_owners_day_is_unknown_to_a_clock_that_was_never_set(monkeypatch):
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    try:
        assert host.local_minute(1_795_000_000) == (1_795_000_000 // 60 - 5 * 60) % 1440
        assert host.local_minute(86_400.0) is None
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_a_process_has_taken_of_a_core(tmp_path):
    fields = ["S", *["0"] * 10, "150", "50", *["0"] * 30]
    tree(tmp_path, {"proc/7/stat": f"7 (a (strange) name) {' '.join(fields)}\n"})
    assert host.cpu_s(7, tmp_path) == 2.0
    assert host.cpu_s(8, tmp_path) == 0.0
    assert host.cpu_s(os.getpid()) > 0.0


def test_a_sensor_that_cannot_be_read_is_unknown(tmp_path):
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").mkdir(parents=True)  # reading it is an OSError
    assert host.Sensors(tmp_path).read() == UNKNOWN


def test_our_own_memory_is_told_in_bytes(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\nVmRSS:\t   38212 kB\n")
    assert host.rss_bytes(tmp_path) == 38212 * 1024
    assert host.rss_bytes(tmp_path / "nowhere") is None


def test_what_a_process_wrote_is_what_the_kernel_says_and_unknown_where_it_says_nothing(tmp_path):
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/io").write_text(
        "rchar: 9\nwchar: 8\nread_bytes: 7\nwrite_bytes: 12288\ncancelled_write_bytes: 4096\n"
    )
    assert host.written_bytes(tmp_path, "7") == 12288
    assert host.written_bytes(tmp_path) is None
