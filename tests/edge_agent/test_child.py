"""A child process: its answer is whole or none, and it never outlives who started it."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge_agent import child
from tests.real.scripted_coordinator import is_alive

if TYPE_CHECKING:
    from edge_agent.child import Child, Ended

BEGIN = "from edge_agent import child\ntask, answer = child.begin()\n"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a child that runs these lines; returns it and the queue of its end."""

    def starter(lines: str, task: object = None) -> tuple[Child, queue.SimpleQueue[Ended]]:
        (tmp_path / "a_child.py").write_text(lines)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
        ends: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        return child.Child("a_child", task, ends.put), ends

    return starter


def test_a_task_goes_in_and_an_answer_comes_out_whatever_is_printed(start):
    task = {"bytes": b"x" * 300_000, "number": 7}
    running, ends = start(BEGIN + "print('noise', flush=True)\nanswer({'back': task})", task)
    ended = ends.get(timeout=30)
    assert (ended.child, ended.answer, ended.reason) == (running, {"back": task}, "")
    assert ended.wall_s > 0


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("raise SystemExit(3)", "status 3"),
        ("import os\nos.abort()", "SIGABRT"),
        ("import os\nos.kill(os.getpid(), 9)", "SIGKILL"),
        ("import sys\nsys.stdout.buffer.write(b'HANS rubbish that is long enough')", "without an answer"),
        (BEGIN + "import os\nos.write(3, b'x')\nraise SystemExit(0)", "without an answer"),
    ],
)
def test_a_child_without_an_answer_ends_with_a_reason(start, lines, reason):
    _, ends = start(lines)
    ended = ends.get(timeout=30)
    assert ended.answer is None
    assert reason in ended.reason


def test_a_killed_child_is_gone_when_kill_returns_and_still_posts_its_end(start):
    running, ends = start(BEGIN + "import time\ntime.sleep(600)")
    running.kill()
    assert not is_alive(running.pid)
    assert "SIGKILL" in ends.get(timeout=5).reason
    running.kill()  # again is no harm


LOOP = """from edge_agent import child
import os
for task, answer in child.tasks():
    if task == "ill":
        raise SystemExit(3)
    answer([os.getpid(), task, "x" * 100_000])
"""


@pytest.fixture
def lingering(start, monkeypatch):
    monkeypatch.setattr(child, "LINGER_S", 1.0)
    monkeypatch.setattr(child, "Child", partial(child.Child, lingers=True))
    return start(LOOP, 1)


def test_a_child_that_lingers_answers_one_task_after_the_other_and_ends_when_none_comes(lingering):
    running, ends = lingering
    for task in (1, 2, 3):
        assert task == 1 or running.give(task)
        assert not running.give("too early")
        ended = ends.get(timeout=30)
        assert (ended.child, ended.answer[:2], ended.reason) == (running, [running.pid, task], "")
        assert 0 < ended.cpu_s <= ended.wall_s + 1
        assert ended.peak_rss_kb > 1000
    until = time.monotonic() + 20
    while is_alive(running.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(running.pid)
    assert not running.give(4)
    assert ends.empty()


def test_what_a_second_task_takes_is_told_apart_from_the_first_also_of_one_that_is_killed(start, monkeypatch):
    burn = "import time\nfor task, answer in child.tasks():\n"
    burn += "    until = time.process_time() + task\n    while time.process_time() < until: pass\n    answer(task)"
    monkeypatch.setattr(child, "Child", partial(child.Child, lingers=True))
    running, ends = start("from edge_agent import child\n" + burn, 0.4)
    assert 0.4 <= ends.get(timeout=60).cpu_s < 0.8
    assert running.cpu_s() == 0.0
    assert running.give(60.0)
    until = time.monotonic() + 60
    while running.cpu_s() < 0.1 and time.monotonic() < until:
        time.sleep(0.02)
    assert 0.1 <= running.cpu_s() < 0.4
    running.kill()
    assert 0.1 <= ends.get(timeout=30).cpu_s < 0.4


def test_a_child_that_lingered_and_fails_at_its_second_task_ends_with_a_reason(lingering):
    running, ends = lingering
    ends.get(timeout=30)
    assert running.give("ill")
    ended = ends.get(timeout=30)
    assert (ended.answer, "status 3" in ended.reason) == (None, True)
    assert not running.give(2)


@pytest.mark.parametrize("by", ["us", "the kernel"])
def test_a_child_that_died_while_it_waited_takes_nothing_and_tells_nobody(lingering, by):
    running, ends = lingering
    ends.get(timeout=30)
    if by == "us":
        running.kill()
    else:
        os.kill(running.pid, 9)
        os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
    assert not running.give(2)
    running._thread.join(10)
    assert not running._thread.is_alive()
    assert ends.empty()


def test_a_child_dies_with_its_parent(tmp_path):
    lines = BEGIN + f"open({str(tmp_path / 'began')!r}, 'w').close()\nimport time\ntime.sleep(600)"
    (tmp_path / "a_child.py").write_text(lines)
    code = "from edge_agent.child import Child; print(Child('a_child', 1, print).pid, flush=True); input()"
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


def test_a_child_whose_parent_is_another_does_not_begin():
    done = subprocess.run(
        [sys.executable, "-c", BEGIN, "1"], capture_output=True, text=True, check=False, input="", timeout=60
    )
    assert done.returncode == 1
    assert "the agent that started this child is gone" in done.stderr
