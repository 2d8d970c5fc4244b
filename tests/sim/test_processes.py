"""Processes: none outlives the one that started it, whatever end that one meets."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firmware_sim import processes
from firmware_sim.processes import Program

SLEEP = [sys.executable, "-c", "import time; print('event=ready', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('event=ready', flush=True); time.sleep(60)",
]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


def ready(program: Program) -> bool:
    return wait_for(lambda: "event=ready" in program.log.read_text())


def test_a_program_is_stopped_and_started_again(tmp_path: Path) -> None:
    program = Program("sleeper", SLEEP, tmp_path / "log")
    program.start()
    assert ready(program)
    assert processes.rss_bytes(program.pid) > 1_000_000
    program.kill()
    assert not program.is_running
    assert processes.rss_bytes(program.pid) == 0
    program.start()
    assert wait_for(lambda: program.log.read_text().count("event=ready") == 2)
    processes.stop_all([program])
    assert not program.is_running


def test_who_ignores_sigterm_is_killed_in_time(tmp_path: Path) -> None:
    programs = [Program(f"p{number}", STUBBORN, tmp_path / f"{number}.log") for number in range(2)]
    for program in programs:
        program.start()
    assert all(ready(program) for program in programs)
    began = time.monotonic()
    processes.stop_all(programs, timeout_s=0.3)
    assert time.monotonic() - began < 5
    assert not any(program.is_running for program in programs)


def test_children_die_with_a_parent_that_gets_sigkill(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from firmware_sim.processes import Program\n"
        f"program = Program('child', {SLEEP!r}, Path({str(tmp_path / 'log')!r})); program.start()\n"
        "print(program.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert wait_for(lambda: (tmp_path / "log").exists() and "event=ready" in (tmp_path / "log").read_text())
    assert is_alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert wait_for(lambda: not is_alive(pid))


def test_an_agent_trains_while_its_child_holds_a_lock_and_not_while_that_waits(tmp_path: Path) -> None:
    assert not processes.children_of(0)
    assert not processes.is_training(0)
    held = "import fcntl, time; file = open('lock', 'w'); fcntl.flock(file, fcntl.LOCK_EX)"
    held += "; exec(open('wait').read()); fcntl.flock(file, fcntl.LOCK_UN); time.sleep(60)"
    (tmp_path / "wait").write_text("import pathlib\nwhile not pathlib.Path('free').exists(): time.sleep(0.02)")
    code = f"import os, subprocess, sys\nos.chdir({str(tmp_path)!r})\nsubprocess.run([sys.executable, '-c', {held!r}])"
    program = Program("parent", [sys.executable, "-c", code], tmp_path / "log")
    program.start()
    assert wait_for(lambda: processes.is_training(program.pid))
    (tmp_path / "free").touch()
    assert wait_for(lambda: not processes.is_training(program.pid))
    children = processes.children_of(program.pid)
    assert len(children) == 1
    program.kill()
    assert not processes.children_of(program.pid)
    for child in children:
        os.kill(int(child), signal.SIGKILL)


class Swallower:
    """Python reports what a destructor raises, and goes on."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_python_had_to_swallow_comes_again(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in processes.ENDINGS]

    def long_work() -> None:
        with processes.interruptible():
            Swallower(number)
            time.sleep(10)
        pytest.fail("slept to the end")

    with pytest.raises(KeyboardInterrupt):
        long_work()
    assert [signal.getsignal(each) for each in processes.ENDINGS] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_nothing_interrupts_the_end_and_what_was_ignored_stays_ignored() -> None:
    done = []

    def long_work() -> None:
        with processes.interruptible():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                with processes.uninterrupted():
                    signal.raise_signal(signal.SIGTERM)
                    time.sleep(processes.AGAIN_S * 1.5)
                    done.append("stopped")
                time.sleep(processes.AGAIN_S * 1.5)
                done.append("ended")

    with pytest.raises(KeyboardInterrupt):
        long_work()
    assert done == ["stopped", "ended"]
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with processes.interruptible():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, former)
