"""The report: a page that needs nothing but itself, and says in words what its plots show."""

import base64
import re
from pathlib import Path

import msgspec
import pytest

from broker import plots, plots_watch, report
from broker.energy import BOARDS, START_CORE_S, estimate
from broker.field import fading
from broker.groups import groups_of
from broker.history import Counted, Extra, History, Mark, Step
from broker.plots import say_accuracy
from broker.rows import StoredUpdate

DEVICES = ("cabin", "dune", "elm")
PNG = b"\x89PNG\r\n\x1a\n"


def history() -> History:
    first = Step(1, 2, 0.4, (Counted("cabin", 1, 500), Counted("dune", 1, 520)), 1200, 90_000)
    second = Step(
        2, 3, 0.7, (Counted("cabin", 2, 510), Counted("dune", 2, 500), Counted("elm", 1, 480, 1)), 1900, 60_000
    )
    return History(DEVICES, (first, second))


def test_the_page_holds_its_own_plots_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    page = report.render(history(), tmp_path / "out")
    text = page.read_text("utf-8")
    plots = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    assert len(plots) == 8
    assert all(plot.startswith(PNG) for plot in plots)
    beside = {path.name: path.read_bytes() for path in page.parent.glob("*.png")}
    assert sorted(beside) == [
        "accuracy.png", "bytes.png", "drift.png", "energy.png",
        "participation.png", "refusals.png", "staleness.png", "update-size.png",
    ]  # fmt: skip
    assert sorted(beside.values()) == sorted(plots)
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "http" not in text


def test_every_plot_is_told_in_words(tmp_path: Path) -> None:
    text = report.render(history(), tmp_path, Extra(accuracy_start=0.1, accuracy_central=0.9)).read_text("utf-8")
    told = re.findall(r'<img alt="([^"]+)"', text)
    assert "from 0.100 to 0.700 in 2 rounds" in told[0]
    assert "all data in one place reaches 0.900" in told[0]
    assert "3 kB went up and 150 kB down" in told[1]
    assert "4 updates were counted in their own round, 1 came later and were counted by the next, 1 were not" in told[2]
    assert "4 of 5 updates were counted by the version after the one they began with; 1 came later" in told[3]
    assert "5 updates of 480 to 520 bytes" in told[4]


def test_whole_payload_sizes_are_preferred_when_the_wire_was_watched(tmp_path: Path) -> None:
    text = report.render(history(), tmp_path, Extra(update_bytes=(640, 655))).read_text("utf-8")
    assert "2 updates of 640 to 655 bytes: the whole MQTT payload" in text


def test_what_people_wrote_is_text_and_not_markup(tmp_path: Path) -> None:
    extra = Extra(
        title="<b>farm</b>", rows=(("a<i>", "1 & 2"),), story=("Round 1: <script>",), marks=(Mark(1, "<kill>"),)
    )
    text = report.render(history(), tmp_path, extra).read_text("utf-8")
    assert "&lt;b&gt;farm&lt;/b&gt;" in text
    assert "1 &amp; 2" in text
    assert "<script" not in text
    assert "<i>" not in text


def test_late_and_missing_updates_have_cells_of_their_own() -> None:
    assert plots._participation(history()) == [[1, 1], [1, 1], [2, 0]]


def test_no_closed_round_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(report.ReportError, match="no round has closed yet"):
        report.render(History(DEVICES, ()), tmp_path)


def test_a_fleet_without_held_out_data_still_gets_its_page(tmp_path: Path) -> None:
    steps = (Step(7, 8, None, (Counted("cabin", 7, 500),)),)
    text = report.render(History(DEVICES, steps), tmp_path).read_text("utf-8")
    assert "No accuracy: the coordinator has no held-out data" in text
    assert "other bytes were not measured" in text


def watched() -> History:
    """Two rounds, two days of refusals, and a fleet of two groups of which one fades."""
    told = [
        StoredUpdate(f"d{number}", version, version, 1, b"", 0, None, right, 20)
        for version in range(1, 11)
        for number in range(10)
        for right in [12 if number % 2 and version > 5 else 19]
    ]
    tags = {f"d{number}": frozenset({"barn" if number % 2 else "house"}) for number in range(10)}
    refusals = ((20_000, "signature", 4), (20_001, "signature", 2), (20_001, "topic", 1))
    steps = [
        msgspec.structs.replace(step, members=tuple(msgspec.structs.replace(m, passes=100) for m in step.members))
        for step in history().steps
    ]
    return History(DEVICES, tuple(steps), (), refusals, tuple(fading(told, groups_of(tags))), 0.01)


def test_what_an_operator_watches_is_told_in_words(tmp_path: Path) -> None:
    told = re.findall(r'<img alt="([^"]+)"', report.render(watched(), tmp_path).read_text("utf-8"))[5:]
    assert told[0].startswith("Estimated, not measured")
    assert told[1] == "7 messages were not believed or not counted: 6 signature, 1 topic."
    assert "barn from 0.950 to 0.600" in told[2]
    assert "house" not in told[2]


def test_energy_is_what_the_boards_take_for_starts_examples_and_bytes() -> None:
    board = BOARDS[2]
    parts = estimate(board, [100, 300], 0.01, 1_000_000, 0)
    assert parts.starting == pytest.approx(2 * START_CORE_S * board.core_w * board.core_ratio)
    assert parts.learning == pytest.approx(4.0 * board.core_w * board.core_ratio)
    assert parts.radio == pytest.approx(2.3 + 2 * 0.3)
    assert "left out" in plots_watch.say_energy(history(), Extra())
    assert "left out" not in plots_watch.say_energy(watched(), Extra())


def test_of_many_reasons_the_most_frequent_have_a_colour_and_the_rest_is_one() -> None:
    refusals = tuple((20_000, f"r{number}", 10 - number) for number in range(10))
    found = plots_watch._reasons(History(DEVICES, (), refusals=refusals))
    assert [name for name, _ in found] == ["r0", "r1", "r2", "r3", "r4", "r5", "others"]
    assert sum(len(words) for _, words in found) == 10


def test_drawing_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report.render(history(), tmp_path, show=lambda done, total: told.append((done, total)))
    assert told == [(number, 8) for number in range(9)]


def test_a_version_that_was_rolled_back_is_shown_and_is_no_part_of_the_road(tmp_path: Path) -> None:
    bad = Step(3, 4, 0.1, (Counted("cabin", 3, 500),), rolled_back=True)
    lived = History(DEVICES, (*history().steps, bad))
    assert say_accuracy(lived, Extra()) == (
        "Accuracy goes from 0.400 to 0.700 in 3 rounds. 1 of their versions was rolled back."
    )
    before = (report.render(history(), tmp_path / "a").parent / "accuracy.png").read_bytes()
    assert (report.render(lived, tmp_path / "b").parent / "accuracy.png").read_bytes() != before
