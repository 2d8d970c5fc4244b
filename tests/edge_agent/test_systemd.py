"""What systemd is told, and that nobody listening is no fault."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from edge_agent import systemd
from edge_agent.systemd import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def supervisor(request, tmp_path: Path, monkeypatch) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind("\0" + name[1:] if name.startswith("@") else name)
        line.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield line


def heard(line: socket.socket) -> list[str]:
    said = []
    with contextlib.suppress(BlockingIOError):
        while True:
            said.append(line.recv(4096).decode())
    return said


def test_systemd_hears_when_the_agent_is_ready_goes_on_and_ends(supervisor: socket.socket, monkeypatch) -> None:
    notifier = Notifier()
    notifier.ready("device pi-1")
    notifier.goes_on()
    notifier.ends()
    assert heard(supervisor) == ["READY=1\nSTATUS=device pi-1", "WATCHDOG=1", "STOPPING=1"]


def test_a_busy_loop_does_not_talk_all_the_time(supervisor: socket.socket, monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(systemd.time, "monotonic", lambda: now[0])
    notifier = Notifier()
    for _ in range(100):
        notifier.goes_on()
    assert len(heard(supervisor)) == 1
    now[0] += systemd.PAUSE_S
    notifier.goes_on()
    assert len(heard(supervisor)) == 1


def test_without_systemd_or_with_one_that_is_gone_nothing_happens(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    Notifier().goes_on()
