"""The child that watches, in this process: one report a window, what it keeps, and the sentence it ends with."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edge_agent import samples, watching
from edge_agent.sources.settings import Settings, SourceError
from edge_agent.watching import Report, Task, Watch, task_bytes, task_of
from tests.edge_agent.test_inference import put
from tests.real.scripted_coordinator import PARAMS

WINDOWS = np.random.default_rng(3).normal(0, 1, (6, 8, 8, 1)).astype(np.float32)


@pytest.fixture
def live(tmp_path):
    """Live one life over `windows`, and give its reports."""

    def liver(windows=WINDOWS, capacity=10, **settings) -> list[Report]:
        np.save(tmp_path / "a.npy", windows)
        source = Settings("replay", (8, 8, 1), path=tmp_path / "a.npy", every_ms=0, **settings)
        task = Task(source, str(tmp_path), str(tmp_path / "waiting"), capacity)
        assert task_of(task_bytes(task)) == task
        told: list[bytes] = []
        Watch(task, told.append, iter([])).run()
        return [msgspec.msgpack.decode(packet, type=Report) for packet in told]

    return liver


def test_every_window_is_kept_answered_and_told_and_then_the_source_is_over(live, tmp_path):
    put(tmp_path, 4, PARAMS)
    *reports, last = live()
    assert [report.window for report in reports] == [1, 2, 3, 4, 5, 6]
    assert all(report.version == 4 and report.label in range(10) and 0 < report.score <= 1 for report in reports)
    assert all(report.unix_ms > 1.7e12 for report in reports)
    assert (last.has_ended, last.reason, last.unix_ms, last.failures) == (True, "", 0, 0)
    arrays = samples.read_arrays(tmp_path / "waiting")
    assert np.array_equal(arrays.windows, WINDOWS)
    assert arrays.labels.tolist() == [-1] * 6


def test_one_window_in_so_many_is_kept_and_all_are_told_also_without_a_model(live, tmp_path):
    *reports, _ = live(keep_every=3)
    assert [report.window for report in reports] == [1, 0, 0, 2, 0, 0]
    assert {(report.label, report.score, report.version) for report in reports} == {(None, None, 0)}
    assert "fetched once the link is up" in reports[0].reason
    assert reports[-1].failures == 1
    assert np.array_equal(samples.read_arrays(tmp_path / "waiting").windows, WINDOWS[::3])


def test_the_store_is_bounded(live, tmp_path):
    live(capacity=4)
    assert samples.read_arrays(tmp_path / "waiting").numbers.tolist() == [3, 4, 5, 6]


def test_what_is_dropped_is_told_by_reason(live):
    windows = WINDOWS.copy()
    windows[1:3, 0, 0, 0] = np.nan
    *reports, last = live(windows)
    assert sum(report.unix_ms > 0 for report in reports) == 4
    assert reports[1].dropped == {"not finite": 1}  # at once, since no window may come for long
    assert last.dropped == {"not finite": 2}


def test_a_card_without_room_costs_the_keeping(live, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples.Samples, "append", full)
    reports = [report for report in live() if report.unix_ms]
    assert [report.window for report in reports] == [0] * 6
    assert reports[-1].dropped == {"not kept": 6}


def test_another_shape_in_the_store_ends_it_with_a_sentence(live, tmp_path):
    samples.create(tmp_path / "waiting", (3,), 5)
    with pytest.raises(samples.SamplesError, match=r"keeps windows of shape \(3,\)"):
        live()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [  # of these the memory alone speaks against the version in use
        (FileNotFoundError(2, "No such file or directory", "/dev/ttyUSB0"), "cannot use /dev/ttyUSB0: No such file"),
        (ImportError("No module named 'numpy'"), "a library is missing: No module named 'numpy'; install it with"),
        (MemoryError(), "out of memory: 96 MB are allowed"),
        (SourceError("the cable is out"), "the cable is out"),
    ],
)
def test_what_it_cannot_go_on_without_is_its_last_report(monkeypatch, tmp_path, error, sentence):
    told: list[bytes] = []
    task = Task(Settings("serial", (4,), path=tmp_path / "tty"), str(tmp_path), str(tmp_path / "waiting"), 5)

    def fail(_self):
        raise error

    monkeypatch.setattr(watching.stream, "begin", lambda: (task_bytes(task), told.append, iter([])))
    monkeypatch.setattr(watching, "_limit_memory", lambda: None)
    monkeypatch.setattr(Watch, "run", fail)
    assert watching.main() == 0
    (last,) = [msgspec.msgpack.decode(packet, type=Report) for packet in told]
    assert last.has_ended
    assert sentence in last.reason
    assert "\n" not in last.reason
    assert last.failures == int(isinstance(error, MemoryError))
