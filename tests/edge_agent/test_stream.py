"""A child that goes on: packets stay whole both ways, telling never waits, and it never outlives who started it."""

from __future__ import annotations

import queue
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent import stream
from tests.real.scripted_coordinator import is_alive

BEGIN = "from edge_agent import stream\ntask, tell, heard = stream.begin()\n"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a child that runs these lines; returns it, the queue of what it reports, and the queue of its end."""
    streams = []

    def starter(lines: str, task: bytes = b"task"):
        (tmp_path / "a_stream.py").write_text(lines)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
        reports: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        ends: queue.SimpleQueue[stream.Gone] = queue.SimpleQueue()
        streams.append(stream.Stream("a_stream", task, reports.put, ends.put))
        return streams[-1], reports, ends

    yield starter
    for running in streams:
        running.kill()


def test_packets_of_any_length_stay_whole_whatever_is_printed(start):
    echo = "print('noise', flush=True)\ntell(task)\nfor packet in heard:\n    tell(packet)\n"
    running, reports, ends = start(BEGIN + echo, b"t" * 1000)
    assert reports.get(timeout=30) == b"t" * 1000
    sent = [b"a", b"b" * 120_000, b"c"]
    for packet in sent:
        assert running.tell(packet)
        assert reports.get(timeout=10) == packet
    running.kill()
    gone = ends.get(timeout=5)
    assert gone.stream is running
    assert "SIGKILL" in gone.reason
    assert gone.wall_s > 0
    assert not running.tell(b"anybody?")
    running.kill()  # again is no harm


def test_telling_a_child_that_does_not_listen_never_waits_and_says_when_there_is_no_room(start):
    running, reports, _ = start(BEGIN + "tell(b'up')\nimport time\ntime.sleep(600)")
    reports.get(timeout=30)
    began = time.monotonic()
    told = [running.tell(bytes(100_000)) for _ in range(200)]
    assert told[0]
    assert not told[-1]
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    ("lines", "reason"),
    [(BEGIN + "tell(b'bye')", ""), ("raise SystemExit(3)", "status 3"), ("import os\nos.abort()", "SIGABRT")],
)
def test_an_end_has_a_reason_unless_it_was_in_order(start, lines, reason):
    running, _, ends = start(lines)
    running.tell(b"unread")
    gone = ends.get(timeout=30)
    assert reason in gone.reason if reason else gone.reason == ""


def test_it_dies_with_its_parent(tmp_path):
    lines = BEGIN + f"open({str(tmp_path / 'began')!r}, 'w').close()\nimport time\ntime.sleep(600)"
    (tmp_path / "a_stream.py").write_text(lines)
    code = (
        "from edge_agent.stream import Stream; print(Stream('a_stream', b'1', print, print).pid, flush=True); input()"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}", "PATH": "/usr/bin"}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    pid = int(parent.stdout.readline())
    until = time.monotonic() + 60
    while not (tmp_path / "began").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 2
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(pid)
