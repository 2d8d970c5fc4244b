"""The soak: what it judges is right, and half a minute of it works. The twenty minutes are `make soak`'s."""

from __future__ import annotations

import json
import subprocess
import sys
from random import Random

import pytest

from broker import mqtt_server
from tests.real.soak import SAMPLE_S, WARM_UP_S, Sample, judge


def samples_of(name: str, rss_per_hour: float = 0.0, files_late: int = 9, minutes: int = 20) -> dict[str, list[Sample]]:
    """A program of 35 MB that breathes by 50 kB, starts with twice as much, and works at every fourth sample."""
    chance, made = Random(4), []
    for number in range(int(minutes * 60 / SAMPLE_S)):
        at_s = number * SAMPLE_S
        rss = 35e6 * (1 if at_s >= WARM_UP_S else 2) + chance.gauss(0, 5e4) + rss_per_hour * at_s / 3600
        files = 0 if number % 4 == 3 else 9 if at_s < 600 else files_late
        made.append(Sample(at_s, int(rss), int(rss / 2), files))
    return {name: made}


def test_a_program_that_breathes_is_well_whatever_it_took_to_warm_up():
    slopes, complaints = judge(samples_of("agent device-01"))
    assert complaints == []
    assert slopes["agent device-01"].mean == pytest.approx(35e6, rel=0.01)


def test_a_megabyte_and_a_half_an_hour_is_seen_and_so_is_one_open_file():
    _, complaints = judge(samples_of("agent device-01", rss_per_hour=1.5e6))
    assert len(complaints) == 1
    assert complaints[0].startswith("agent device-01, bytes: grows by +1,")
    _, complaints = judge(samples_of("coordinator", files_late=10))
    assert complaints == ["coordinator: 9 open files at first, 10 in the end"]


def test_a_run_that_was_too_short_says_nothing():
    assert judge(samples_of("agent device-01", rss_per_hour=1e9, minutes=4)) == ({}, [])


@pytest.mark.real
def test_half_a_minute_of_it_predicts_trains_and_loses_nothing(tmp_path):
    if mqtt_server.find_mosquitto() is None:
        pytest.skip("needs mosquitto: this machine has only amqtt")
    command = [sys.executable, "-m", "tests.real.soak", "--minutes", "0.5", "--out", str(tmp_path / "soak.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["finished"] >= 2
    assert (found["lost"], found["double_counted"], found["complaints"]) == ([], [], [])
    assert found["windows"] > 20
    assert found["written_bytes"] > 100_000
    assert {name for name in found["files"] if found["files"][name]} >= {"coordinator", "predictor device-01"}
    assert (tmp_path / "soak.png").stat().st_size > 10_000
    assert "minute 0: round" in done.stderr
