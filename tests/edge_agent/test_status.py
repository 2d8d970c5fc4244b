"""What `edge-agent status` says to a person."""

from __future__ import annotations

import msgspec

from edge_agent import status

PLAIN = status.Status(
    device_id="pi-07", fleet="home", pid=1, boot=3, link_up=True, link_reason="", work="idle", reason="",
    model_version=7, last_round_id=12, outbox_round_id=0, outbox_bytes=0, num_examples=240, bytes_up=1, bytes_down=2,
    reconnects=0, refused={}, temperature_c=None, battery_rate=None, on_mains=None, rss_kb=35_000,
)  # fmt: skip


def lines(**changes) -> list[str]:
    return status.as_lines(msgspec.structs.replace(PLAIN, **changes), running=True)


def test_a_host_that_tells_nothing_is_unknown_and_not_fine():
    unknown = "temperature and battery and mains and voltage and processor and other programs"
    assert lines()[-1] == f"34 MB of memory, unknown: {unknown}"


def test_what_the_host_tells_stands_in_one_line_and_what_is_wrong_in_capitals():
    told = {"temperature_c": 48.25, "battery_rate": 0.5, "on_mains": True, "busy_rate": 0.125}
    assert lines(**told, throttled=False, under_voltage=False)[-1] == (
        "temperature 48.2 C, battery 50%, mains there, voltage fine, processor not throttled, "
        "other programs 12% of the cores, 34 MB of memory"
    )
    assert "voltage TOO LOW, processor THROTTLED" in lines(throttled=True, under_voltage=True)[-1]


def test_what_the_owner_allows_and_what_it_took_is_told_where_there_is_any():
    assert "trains" not in "".join(lines(joules_today=0.9))
    assert lines(limits="on mains")[-1] == "trains on mains"
    assert lines(joules_today=132.4)[-1] == "trainings took about 132 J today"
    assert lines(limits="on mains", joules_today=132.4)[-1] == "trains on mains; trainings took about 132 J today"
