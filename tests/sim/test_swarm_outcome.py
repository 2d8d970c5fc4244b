"""What a swarm says of itself: lost is what has a receipt and is not in the store, whatever anybody else claims."""

from __future__ import annotations

import os
import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from edge_agent import host
from firmware_sim import processes
from firmware_sim.swarm.device import Tally
from firmware_sim.swarm.outcome import Outcome, Three, block, numbers
from firmware_sim.swarm.watch import Closed, Watch

if TYPE_CHECKING:
    from pathlib import Path

KEPT, LATE, GONE, REFUSED, WAITING = (bytes([number]) * 32 for number in range(5))


@pytest.fixture
def outcome() -> Outcome:
    tally = Tally(
        reconnects=1,
        resent=3,
        resent_updates=2,
        finished=dict.fromkeys((KEPT, LATE, GONE, REFUSED, WAITING), "device-1"),
        verdicts={KEPT: "accepted", LATE: "duplicate", GONE: "accepted", REFUSED: "refused"},
    )
    return Outcome(
        devices=2,
        held=1,
        tally=tally,
        closed=[Closed(1, 3, 2.5, 100, 200)],
        coordinator_counts=Counter({"birth": 4}),
        counted_in={KEPT: 2, LATE: None},
        memory=Three(2048.0, 4096.0, 0.0),
        cpu_s=Three(0.004, 0.008, 0.0),
        wall_s=2.0,
        dropped=0,
    )


def test_what_has_a_receipt_and_is_not_in_the_store_is_lost(outcome: Outcome) -> None:
    found = numbers(outcome)
    fates = ("finished", "receipted", "lost", "refused", "counted")
    assert [found[f"updates_{fate}"] for fate in fates] == [5, 4, 1, 1, 1]
    assert (found["updates_sent_again"], found["resends"]) == (2, 3)
    assert (found["kb_per_connection"], found["cpu_us_per_update"], found["updates_per_s"]) == (1.0, 1000, 2.0)


def test_a_server_elsewhere_has_no_figures(outcome: Outcome) -> None:
    found = numbers(outcome)
    assert found["kb_per_connection_server"] is found["cpu_us_per_update_server"] is None
    assert "MQTT server elsewhere" in block(found)
    assert "1 lost" in block(found)


def test_the_log_is_read_as_it_grows(tmp_path: Path) -> None:
    log = tmp_path / "coordinator.log"
    watch = Watch(log)
    watch.look()  # it is not there yet
    log.write_text("\nevent=ready epoch=1 pid=7\nevent=birth device=device-1\nevent=birth device=device-1\nevent=bir")
    watch.look()
    assert (watch.births, watch.counts["birth"], watch.counts["ready"]) == ({"device-1"}, 2, 1)
    closed = "round=3 version=4 members=2 patch_bytes=9 accuracy=none bytes_up=5 bytes_down=6 seconds=1.250"
    with log.open("a") as file:
        file.write(f"th device=device-2\nevent=round-open round=3 version=3\nevent=round-closed {closed}\n")
    watch.look()
    assert watch.births == {"device-1", "device-2"}
    assert watch.open_round == 3
    assert watch.closed == [Closed(3, 2, 1.25, 5, 6)]


def test_who_listens_and_how_long_it_has_computed_is_asked_of_the_system() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert processes.listener_pid(port) == os.getpid()
    assert processes.listener_pid(port) == 0
    before = host.cpu_s(os.getpid())
    while sum(os.times()[:2]) < before + 0.05:
        pass
    assert host.cpu_s(os.getpid()) > before
    assert host.cpu_s(2**30) == 0.0
