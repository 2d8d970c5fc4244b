"""The summary tells what was measured, kill by kill, and hides nothing that went wrong."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from broker.energy import BOARDS
from broker.registry import First
from broker.rows import StoredUpdate
from engine.codec import payload
from engine.codec.update import Update as Sparse
from firmware_sim import summary
from firmware_sim.central import Central
from firmware_sim.chaos import Blow
from firmware_sim.data import Shares
from firmware_sim.fleet import Outcome
from firmware_sim.lineage import Verdict
from firmware_sim.screen import LiveTable, Row, screen_on
from firmware_sim.site import Recipe, Site, Wish
from firmware_sim.tap import Heard
from wire import chunks
from wire.messages import Manifest, Update

FILE = chunks.split("params.bin", bytes(4))
SENT = Sparse("float32", 1000, np.arange(990, 1000, dtype=np.uint32), np.linspace(0.99, 1, 10, dtype=np.float32))
PAYLOAD = payload.encode(SENT, [(10, 100)], value_bits=4, coding="rice").payload
WISH = Wish("demo", "toy", b"", Shares({}, (np.zeros(0), np.zeros(0))), Recipe(1, 1, 0.1, 0.0, 0.01, 4), 3, 7)  # type: ignore[arg-type]


@pytest.fixture
def outcome() -> Outcome:
    digest = b"d" * 32
    heard = Heard(sealed={digest: ("dune", b"x" * 150)}, packet_of={digest: 190})
    heard.packet_bytes.update({("up", "update"): 190, ("up", "birth"): 10, ("dn", "chunk"): 5000})
    return Outcome(
        site=Site(Path(), {"cabin": "", "dune": ""}, "", First(Manifest("toy", 1, 0, 1000, (FILE,)), {}, b"")),
        verdict=Verdict(5, 5, [], [], [], [], 3, 0, 0),
        heard=heard,
        updates={digest: Update(1, 1, 5, 0, 0, PAYLOAD)},
        stored=[StoredUpdate("dune", 1, 1, 5, digest, len(PAYLOAD), 3, 0, 0)],
        rows=[Row(1, 1, 2, 0.5, 300, 9000, 2.0), Row(2, 2, 2, 0.8, 500, 8000, 2.5), Row(3, 2, 2, 0.9, 500, 8000, 2.5)],
        blows=[
            Blow(1, "agent", "dune", "while it trained", 1, 10.0, 11.0, 12.5),
            Blow(2, "coordinator", "the coordinator", "with 1 of 2 updates stored", 1, 20.0, 21.0, 23.0),
            Blow(3, "MQTT server", "the MQTT server (mosquitto 2)", "with 1 of 2 updates stored", 1, 30.0, 31.0, 33.0),
        ],
        sealed_bytes=[100, 200],
        idle_rss_bytes=[30_000_000, 40_000_000, 50_000_000],
        trainer_peak_bytes=[150_000_000],
        trainer_failures=[],
        server_name="mosquitto",
        server_version="2",
        cpu_s=1.26,
        wall_s=9.99,
        trainer_cpu_s=[1.0, 1.0, 1.0, 1.0, 0.5],
    )


CENTRAL = Central(0.95, 0.11, 0.1, 30)


def test_numbers_are_what_was_measured(outcome: Outcome) -> None:
    found = summary.numbers(WISH, outcome, CENTRAL)
    assert (found["devices"], found["rounds"], found["seed"]) == (2, 3, 7)
    assert (found["accuracy_start"], found["accuracy_final"], found["accuracy_central"]) == (0.11, 0.9, 0.95)
    assert found["accuracy_gap_to_central"] == pytest.approx(0.05)
    assert (found["update_bytes_mean"], found["update_bytes_max"], found["dense_bytes"]) == (150.0, 200, 4000)
    assert found["dense_over_update_bytes"] == pytest.approx(26.7)
    assert found["payload_bits_per_nonzero"] == pytest.approx(8 * len(PAYLOAD) / 10, abs=0.01)
    assert found["overhead_bytes"] == 190 - len(PAYLOAD)
    assert (found["bytes_up_total"], found["bytes_down_total"]) == (200, 5000)
    assert (found["agent_idle_rss_mb"], found["trainer_peak_rss_mb"]) == (40.0, 150.0)
    assert found["mqtt_server"] == {"name": "mosquitto", "version": "2"}
    assert [kill["what"] for kill in found["killed"]] == ["agent", "coordinator", "MQTT server"]


def test_every_kill_has_its_sentence(outcome: Outcome) -> None:
    told = summary.story(outcome)
    assert told == [
        (
            "Round 1: dune got SIGKILL while it trained, was started again 1.0 s later and was back in the fleet after "
            "2.5 s; its update of that round was counted by round 2, late."
        ),
        (
            "Round 2: the coordinator got SIGKILL with 1 of 2 updates stored, was started again 1.0 s later and had "
            "all devices back after 3.0 s; the round counted 2 updates."
        ),
        (
            "Round 3: the MQTT server (mosquitto 2) got SIGKILL with 1 of 2 updates stored, was started again 1.0 s "
            "later with nothing retained, and all devices were back after 3.0 s; the round counted 2 updates."
        ),
        "After all of that no finished update was lost, and none was counted twice.",
    ]
    text = summary.block(summary.numbers(WISH, outcome, CENTRAL), told)
    assert "5 finished, 5 counted, 0 refused, 0 lost, 0 counted twice" in text
    assert "MQTT server  mosquitto 2" in text


def test_energy_is_what_the_children_and_the_radio_took_for_each_board(outcome: Outcome) -> None:
    energy = summary.numbers(WISH, outcome, CENTRAL)["energy"]
    assert (energy["trainer_cpu_s"], energy["device_rounds"], energy["points"]) == (4.5, 5, 79.0)
    assert [row["board"] for row in energy["boards"]] == ["Pi Zero 2 W", "Pi 3B+", "Pi 4B", "Pi 5"]
    for row, board in zip(energy["boards"], BOARDS, strict=True):
        joules = board.core_w * board.core_ratio * 4.5 + 2.3e-6 * 200 + 0.75e-6 * 5000 + 0.3 * 5
        assert row["wh_fleet"] == pytest.approx(joules / 3600, abs=1e-5)
        assert row["wh_device_round"] == pytest.approx(joules / 3600 / 5, abs=1e-6)
        assert row["wh_per_point"] == pytest.approx(joules / 3600 / 79, abs=1e-6)
        assert row["core_s_device_round"] == pytest.approx(board.core_ratio * 0.9, abs=0.01)
    shown = dict(summary.rows(summary.numbers(WISH, outcome, CENTRAL)))
    assert "1.8 on a Pi Zero 2 W" in shown["energy"]  # (0.5 W x 14 x 4.5 s + 1.5 J) / 5 rounds / 3.6 J
    assert "being on takes 0.6 to 3.0 W" in shown["energy"]
    assert shown["energy, all"].startswith("9.2 / 10.4 / 5.6 / 4.0 mWh")


def test_what_is_lost_is_named(outcome: Outcome) -> None:
    outcome.verdict = Verdict(5, 3, [], [("dune", 2)], [("cabin", 1)], [], 2, 1, 4)
    outcome.trainer_failures = ["dune, round 3: out of memory"]
    told = " ".join(summary.story(outcome))
    assert "Not well: lost: dune in round 2" in told
    assert "After all of that" not in told
    assert "Not well: counted twice: cabin in round 1" in told
    assert "4 updates were taken from the store" in told
    assert "dune, round 3: out of memory" in told
    found = summary.numbers(WISH, outcome, CENTRAL)
    assert (found["updates_lost"], found["updates_double_counted"], found["versions_wrong"]) == (1, 1, 1)


def test_without_a_terminal_there_are_lines() -> None:
    lines: list[str] = []
    with screen_on(io.StringIO(), lines.append) as screen:
        screen.status("starting")
        screen.row(Row(1, 9, 10, 0.5, 4000, 700_000, 3.21))
        screen.note("round 2: killed dune")
        screen.row(Row(2, 10, 10, None, 4000, 700_000, 3.0))
    assert lines[0].split() == ["round", "devices", "in", "accuracy", "kB", "up", "kB", "down", "seconds"]
    assert lines[1].split() == ["1", "9", "of", "10", "0.500", "4.0", "700", "3.2"]
    assert lines[2:3] == ["  round 2: killed dune"]
    assert lines[3].split()[4] == "-"


def test_on_a_terminal_there_is_a_table_that_keeps_to_its_height(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "25")
    monkeypatch.setenv("COLUMNS", "100")
    stream = io.StringIO()
    table = LiveTable(stream)
    for number in range(1, 60):
        table.row(Row(number, 10, 10, number / 60, 4000, 700_000, 3.0))
    table.note("round 5: killed dune")
    table.status("round 60: 3 of 10 updates stored")
    console = Console(file=io.StringIO(), width=100)
    console.print(table._picture())
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "killed dune" in printed
    assert "3 of 10 updates stored" in printed
    assert "59 " in printed
    assert printed.count("\n") <= 25
    with table:
        pass
    assert stream.getvalue().count(" of 10 ") >= 59, "at the end all of it is left on the terminal"
