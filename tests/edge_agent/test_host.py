"""The host's readings, from a tree of files: what is not told is unknown."""

from __future__ import annotations

import pytest

from edge_agent import host
from edge_agent.host import Host


def tree(root, files: dict[str, str]):
    for name, text in files.items():
        path = root / "sys/class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


UNKNOWN = Host(None, None, None)
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
    assert host.read(tree(tmp_path, files)) == expected


def test_a_sensor_that_cannot_be_read_is_unknown(tmp_path):
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").mkdir(parents=True)  # reading it is an OSError
    assert host.read(tmp_path) == UNKNOWN


def test_our_own_memory_is_told_in_bytes(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\nVmRSS:\t   38212 kB\n")
    assert host.rss_bytes(tmp_path) == 38212 * 1024
    assert host.rss_bytes(tmp_path / "nowhere") is None
