"""Before the first round: the base file that is out is fetched and predicts, once, and stands in nobody's way."""

from __future__ import annotations

import msgspec
import pytest

from edge_agent.agent import Identity
from edge_agent.budget import Limits
from edge_agent.effects import (
    Connected,
    Disconnected,
    FileFailed,
    FileState,
    OpenFile,
    Publish,
    Reading,
    Received,
    SealFile,
    TakeModel,
    Trained,
    Work,
    WriteChunk,
)
from edge_agent.first_model import AGAIN_MS, FirstModel
from tests.edge_agent.stage import DEVICE, FLEET, MODEL, coordinator_sign, manifest, sign
from wire import chunks, envelope, topics

OUT = msgspec.structs.replace(manifest(5), base_version=2)
(FILE,) = (file for file in OUT.files if file.name == "model.tflite")


class Side:
    """The machine, and what the coordinator says to it."""

    def __init__(self, limits: Limits | None = None, *, wanted: bool = True) -> None:
        identity = Identity(FLEET, DEVICE, sign, lambda data, mac: coordinator_sign(data) == mac)
        self.machine = FirstModel(identity, limits or Limits(), wanted=wanted)
        self.now_ms = 1_000

    def handle(self, event, work: Work = Work.IDLE) -> list:
        return self.machine.handle(event, self.now_ms, work)

    def hear(self, kind: str, message, work: Work = Work.IDLE) -> list:
        shared = kind == "manifest"
        topic = topics.shared(FLEET, kind) if shared else topics.dn(FLEET, DEVICE, kind)
        return self.handle(Received(topic, envelope.seal(message, topic, coordinator_sign)), work)

    def asking(self) -> list:
        """What is asked once flash has said that it holds nothing."""
        self.handle(Connected(1))
        assert self.hear("manifest", OUT) == [OpenFile(FILE)]
        return self.handle(FileState(FILE.digest, ready=False, have=frozenset()))


def test_the_base_file_is_fetched_and_predicts_as_the_version_that_it_holds():
    side = Side()
    (want,) = side.asking()
    assert isinstance(want, Publish)
    count = len(FILE.chunk_digests)
    followed = [side.hear("chunk", chunks.chunk_at(MODEL, FILE, index)) for index in range(count)]
    assert [type(effect) for effects in followed for effect in effects] == [WriteChunk] * count + [SealFile]
    assert side.handle(FileState(FILE.digest, ready=True, have=frozenset(range(count)))) == [TakeModel(2, FILE)]
    assert side.hear("manifest", manifest(6)) == []  # once, for good


@pytest.mark.parametrize("work", [Work.FETCHING, Work.TRAINING])
def test_it_is_silent_while_a_round_fetches_or_trains_and_done_when_one_has_trained(work):
    side = Side()
    side.handle(Connected(1))
    assert side.hear("manifest", OUT, work) == []
    assert side.handle(Reading(), work) == []
    assert side.handle(Reading(), Work.WAITING) == [OpenFile(FILE)]  # the budget refuses to train: it still predicts
    assert side.handle(Trained(1, b"", 1, 0, 0)) == []
    assert side.handle(FileState(FILE.digest, ready=True, have=frozenset())) == []


def test_nothing_is_asked_for_without_a_link_over_a_metered_one_or_where_a_version_is_in_use():
    assert Side(wanted=False).hear("manifest", OUT) == []
    side = Side()
    assert side.hear("manifest", OUT) == []
    side = Side(Limits(metered=("wwan0",)))
    assert side.asking() == []  # by which interface is unknown
    assert side.handle(Reading(route="wwan0")) == []
    assert len(side.handle(Reading(route="eth0"))) == 1
    side.handle(Disconnected())
    side.now_ms += 10 * 60_000
    assert side.handle(Reading(route="eth0")) == []


def test_a_base_that_holds_no_known_version_is_left_and_a_strangers_word_is_not_believed():
    side = Side()
    side.handle(Connected(1))
    assert side.hear("manifest", manifest(5)) == []  # base_version 0
    topic = topics.shared(FLEET, "manifest")
    assert side.handle(Received(topic, envelope.seal(OUT, topic, sign))) == []


def test_a_card_without_room_is_asked_again_later():
    side = Side()
    side.asking()
    assert side.handle(FileFailed(FILE.digest, "no room")) == []
    assert side.handle(Reading()) == []
    side.now_ms += AGAIN_MS
    assert side.handle(Reading()) == [OpenFile(FILE)]


def test_what_nobody_answers_is_asked_again_and_another_version_takes_its_place():
    side = Side()
    side.asking()
    assert side.handle(Reading()) == []
    side.now_ms += 60_000
    assert len(side.handle(Reading())) == 1
    other = chunks.split("model.tflite", MODEL + b"!", 1000)
    assert side.hear("manifest", msgspec.structs.replace(OUT, model_version=6, files=(other,))) == [OpenFile(other)]
