"""The agent's side of watching, without a child: what is published, dropped and learnt, when the child comes back."""

from __future__ import annotations

import json
import queue

import msgspec
import numpy as np
import pytest

from edge_agent import config, predictions, samples, watching
from edge_agent.predictions import Again, LabelCame, Predictions, Shown, as_lines, teach
from edge_agent.probation import Answered, Failed
from edge_agent.samples import SamplesError
from edge_agent.stream import Gone
from wire import keys

SOURCE = '\n[source]\nkind = "mqtt"\ntopic = "farm/vibration"\nwindow = [4, 3]\n'
WINDOW = np.arange(12, dtype="<f4").tobytes()


class Child:
    """A child that was started, and does what the test says."""

    def __init__(self, module, task, hear, post) -> None:
        self.module, self.task, self.hear, self.post = module, watching.task_of(task), hear, post
        self.pid, self.told, self.has_room, self.is_killed = 7, [], True, False

    def tell(self, packet: bytes) -> bool:
        self.told.append(packet)
        return self.has_room

    def kill(self) -> None:
        self.is_killed = True

    def report(self, **fields) -> None:
        self.hear(msgspec.msgpack.encode(watching.Report(**fields)))

    def end(self, reason: str = "", wall_s: float = 1.0) -> Gone:
        return Gone(self, reason, 30_000, 1.0, wall_s)


class Wire:
    """A link that is up until the test says otherwise."""

    def __init__(self) -> None:
        self.is_up, self.sent = True, []

    def publish(self, *message) -> bool:
        if self.is_up:
            self.sent.append(message)
        return self.is_up


@pytest.fixture
def settings(tmp_path) -> config.Config:
    made = config.make(tmp_path, "dev-1", "fleet-1", "mqtt://127.0.0.1:9", keys.public_text(keys.generate()))
    made.path.write_text(made.path.read_text() + SOURCE)
    return config.load(made.path)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def side(settings, wire, monkeypatch) -> Predictions:
    monkeypatch.setattr(predictions.stream, "Stream", Child)
    timers = []
    monkeypatch.setattr(predictions.threading, "Timer", lambda *call: timers.append(call) or Timer())
    events: queue.SimpleQueue = queue.SimpleQueue()
    made = Predictions(settings, events.put)
    made.events, made.timers = events, timers
    made.start(wire.publish)
    return made


class Timer:
    daemon = False

    def start(self) -> None:
        assert self.daemon


def drained(side: Predictions) -> None:
    while not side.events.empty():
        side.on_event(side.events.get())


def waiting(settings, count: int) -> None:
    store = samples.create(settings.waiting_path, (4, 3), 10)
    for _ in range(count):
        store.append(WINDOW)


def test_without_a_source_nothing_starts_and_nothing_is_subscribed(tmp_path, monkeypatch, wire):
    monkeypatch.setattr(predictions.stream, "Stream", pytest.fail)
    made = config.make(tmp_path / "b", "dev-2", "fleet-1", "mqtt://127.0.0.1:9", keys.public_text(keys.generate()))
    side = Predictions(config.load(made.path), pytest.fail)
    side.start(wire.publish)
    assert (side.filters, side.takes("hedgerow/dev-2/label", b"{}"), side.look()) == ((), False, Shown())
    assert as_lines(side.look()) == []
    side.stop()


def test_the_child_gets_its_task_and_the_link_its_topics(side, settings):
    task = side._stream.task
    assert (task.source, task.root, task.windows) == (
        settings.source,
        str(settings.device.state),
        str(settings.waiting_path),
    )
    assert side.filters == ("hedgerow/dev-1/label", "farm/vibration")


def test_a_prediction_is_json_at_qos_0_and_not_kept_while_the_link_is_down(side, wire):
    side._stream.report(window=17, label=3, score=0.91, version=5, unix_ms=1000)
    topic, payload, retain, qos = wire.sent.pop()
    assert (topic, retain, qos) == ("hedgerow/dev-1/prediction", False, 0)
    assert json.loads(payload) == {"window": 17, "label": 3, "score": 0.91, "version": 5, "unix_ms": 1000}
    side._stream.report(window=0, score=1.5, version=5, unix_ms=2000)
    assert json.loads(wire.sent.pop()[1]) == {
        "window": None,
        "label": None,
        "score": 1.5,
        "version": 5,
        "unix_ms": 2000,
    }
    wire.is_up = False
    side._stream.report(window=18, label=3, score=0.9, version=5, unix_ms=3000)
    wire.is_up = True
    side.spend(spent=True)
    side._stream.report(window=19, label=3, score=0.9, version=5, unix_ms=4000)
    side._stream.report(dropped={"not finite": 2}, reason="an old one")
    side._stream.hear(b"rubbish")
    assert wire.sent == []
    shown = side.look()
    assert shown.dropped == {"not sent": 1, "budget spent": 1, "not finite": 2, "damaged": 1}
    assert (shown.windows, shown.last.window, shown.reason) == (4, 19, "an old one")


def test_a_dead_child_comes_back_after_pauses_that_double_and_are_short_again_for_one_that_lived(side, capsys):
    for wall_s in (1.0, 1.0, 1.0, predictions.LASTED_S, *[1.0] * 10):
        child = side._stream
        child.report(dropped={"not finite": 1})
        side.on_event(child.end("the child was ended by SIGKILL", wall_s))
        assert side.look().reason == "the child was ended by SIGKILL"
        side.on_event(Again())
        assert side._stream is not child
    pauses = [pause_s for pause_s, *_ in side.timers]
    assert pauses == [1, 2, 4, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert (side.look().restarts, side.look().dropped) == (14, {"not finite": 14})
    assert capsys.readouterr().out.count("event=watching-rests") == 14


def test_a_child_that_cannot_be_started_is_tried_again(side, monkeypatch):
    def fail(*_args):
        raise OSError(11, "Resource temporarily unavailable")

    side.on_event(side._stream.end("SIGKILL"))
    monkeypatch.setattr(predictions.stream, "Stream", fail)
    side.on_event(Again())
    assert side.look().reason == "the child cannot be started: Resource temporarily unavailable"
    monkeypatch.setattr(predictions.stream, "Stream", Child)
    side.on_event(Again())
    assert side._stream is not None
    assert [pause_s for pause_s, *_ in side.timers] == [1, 2]


def test_why_a_child_ended_is_told_until_the_next_brings_a_window_and_one_that_is_over_stays_so(side):
    side._stream.report(reason="the cable is out", has_ended=True)
    side.on_event(side._stream.end())
    assert side.look().reason == "the cable is out"
    side.on_event(Again())
    side._stream.report(window=1, unix_ms=1)
    assert side.look().reason == ""
    side._stream.report(has_ended=True)
    side.on_event(side._stream.end())
    assert side.look().reason == "the source is over"
    assert len(side.timers) == 1


def posted(side: Predictions) -> list:
    found = []
    while not side.events.empty():
        found.append(side.events.get())
    return found


def test_what_speaks_for_and_against_the_version_in_use_is_posted_once(side):
    child = side._stream
    child.report(window=1, unix_ms=1, version=4)
    child.report(dropped={"not finite": 1})
    child.report(window=2, unix_ms=2, version=4)
    assert posted(side) == [Answered(4)]
    for _ in range(2):
        child.report(window=3, unix_ms=3, version=4, reason="version 5 is too large", failures=1)
    assert posted(side) == [Failed("version 5 is too large"), Answered(4)]
    child.report(window=4, unix_ms=4, version=5, failures=1)
    assert posted(side) == [Answered(5)]
    side.on_event(child.end("the child was ended by SIGKILL"))
    assert posted(side) == [Failed("the child was ended by SIGKILL")]
    side.on_event(Again())
    side._stream.report(window=5, unix_ms=5, version=5)
    assert posted(side) == [Answered(5)]


def test_a_source_that_fails_says_nothing_about_the_version_and_memory_that_is_out_does(side):
    side._stream.report(reason="the cable is out", has_ended=True)
    side.on_event(side._stream.end())
    assert posted(side) == []
    side.on_event(Again())
    side._stream.report(reason="out of memory", has_ended=True, failures=1)
    side.on_event(side._stream.end())
    assert posted(side) == [Failed("out of memory")]


def test_a_stop_ends_the_child_and_none_comes_after_it(side):
    child = side._stream
    side.stop()
    assert child.is_killed
    side.on_event(child.end("SIGKILL"))
    side.on_event(Again())
    assert side._stream is None
    assert side.timers == []


def test_what_arrives_on_the_topic_goes_to_the_child_and_too_much_of_it_is_counted(side):
    assert side.takes("farm/vibration", b"[1, 2, 3]")
    assert side.takes("farm/vibration", b"")
    assert not side.takes("fl/v1/f/all/all/dn/state", b"x")
    assert side._stream.told == [b"[1, 2, 3]", b"\n"]  # an empty packet would be the end
    side._stream.has_room = False
    side.takes("farm/vibration", b"[1, 2, 3]")
    assert side.look().dropped == {"too fast": 1}


def test_a_label_moves_its_window_to_the_samples_once(side, settings):
    waiting(settings, 3)
    side.takes("hedgerow/dev-1/label", b'{"window": 2, "label": 7, "by": "hand"}')
    side.takes("hedgerow/dev-1/label", b'{"window": 2, "label": 8}')
    assert not settings.samples_path.exists()  # the link's thread does not write
    drained(side)
    arrays = samples.read_arrays(settings.samples_path)
    assert (arrays.windows.tobytes(), arrays.labels.tolist()) == (WINDOW, [7])
    assert (side.look().labels, side.look().dropped) == (1, {"labels refused": 1})


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"rubbish",
        b'{"window": 1}',
        b'{"window": 9, "label": 1}',
        b'{"window": 0, "label": 1}',
        b'{"window": 1, "label": -1}',
        b'{"window": 1, "label": 65536}',
        b'{"window": 1.5, "label": 1}',
        b'{"window": 1, "label": 1' + b" " * 300 + b"}",
        b'{"window": 99999999999999999999, "label": 1}',
    ],
)
def test_a_label_that_cannot_be_is_refused_with_a_line(side, settings, capsys, payload):
    waiting(settings, 3)
    side.takes("hedgerow/dev-1/label", payload)
    drained(side)
    assert not settings.samples_path.exists()
    assert side.look().dropped == {"labels refused": 1}
    assert "event=label-dropped" in capsys.readouterr().out


def test_a_flood_of_labels_is_bounded(side, settings):
    for _ in range(predictions.LABELS_MAX + 5):
        side.takes("hedgerow/dev-1/label", b'{"window": 1, "label": 1}')
    assert side.events.qsize() == predictions.LABELS_MAX
    assert isinstance(side.events.get(), LabelCame)
    assert side.look().dropped == {"labels too fast": 5}


def test_a_window_that_was_forgotten_takes_no_label(settings):
    waiting(settings, 12)
    teach(settings, 12, 1)
    for number, sentence in ((1, "too old, or never was kept"), (13, "too old"), (12, "has a label already: 1")):
        with pytest.raises(SamplesError, match=sentence):
            teach(settings, number, 1)
    assert samples.Samples(settings.samples_path).count_labelled() == 1


def test_a_status_of_nothing_but_more_windows_stays_the_same_for_a_minute(side, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(predictions.time, "monotonic", lambda: now[0])
    assert side.look().windows == 0
    side._stream.report(window=1, label=1, score=0.5, version=1, unix_ms=1)
    first = side.look()
    assert first.windows == 1
    for number in range(2, 32):
        side._stream.report(window=number, label=1, score=0.5, version=1, unix_ms=number)
    now[0] += predictions.SHOWN_S - 1
    assert side.look() is first
    now[0] += 1
    assert (side.look().windows, side.look().per_minute) == (31, 30.0)
    side._stream.report(window=32, version=2, unix_ms=32)
    assert side.look().last.version == 2
    side._stream.report(window=33, version=2, unix_ms=33, reason="news")
    assert side.look().reason == "news"


def test_a_person_reads_what_is_watched_and_what_came_of_it(side):
    side._stream.report(window=17, label=3, score=0.914, version=5, unix_ms=1000, dropped={"not finite": 2})
    lines = as_lines(side.look())
    assert lines == [
        "watching mqtt farm/vibration: 1 windows, 0.0 a minute",
        "last window: number 17, label 3, 91% sure, by version 5",
        "dropped: 2 not finite",
    ]
    side._stream.report(window=0, score=0.25, version=5, unix_ms=1000, reason="why")
    assert "last window: not kept, error 0.2500, by version 5" in as_lines(side.look())
