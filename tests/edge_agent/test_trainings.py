"""The shell's side of a training child whose card has no room, or fails."""

from __future__ import annotations

import errno

import msgspec
import pytest

from edge_agent import child, config, flash, slots, trainer
from edge_agent.disk import Directory
from edge_agent.effects import Job, Trained
from edge_agent.trainings import Trainings
from tests.edge_agent.stage import PLAN, manifest
from wire import keys
from wire.messages import Trial

JOB = Job("dev-1", 4, 1, PLAN, manifest().files, 0)


class Silent:
    """A child that was started."""

    def __init__(self, *_args: object, **_named: object) -> None:
        self.given: list[object] = []
        self.waits = True

    def give(self, task: object) -> bool:
        self.given += [task] * self.waits
        return self.waits


@pytest.fixture
def trainings(tmp_path, monkeypatch) -> Trainings:
    coordinator = keys.public_text(keys.generate())
    settings = config.load(config.make(tmp_path, "dev-1", "fleet-1", "mqtt://127.0.0.1:9", coordinator).path)
    monkeypatch.setattr(child, "Child", Silent)
    return Trainings(settings, flash.Flash(Directory(settings.device.state)), lambda _ended: None)


def fail_to_note(trainings, monkeypatch, number: int) -> None:
    def fail(_model: flash.Model) -> None:
        raise OSError(number, "the card says no")

    monkeypatch.setattr(trainings._flash, "note_model", fail)


def test_a_full_disk_costs_the_note_and_not_what_was_trained(trainings, monkeypatch, capsys):
    fail_to_note(trainings, monkeypatch, errno.ENOSPC)
    assert trainings.start(JOB) is None
    (training,) = trainings._trainings
    answer = msgspec.to_builtins(trainer.Answer(payload=b"update", num_examples=9), builtin_types=(bytes,))
    ended = child.Ended(training.child, answer, "", 1, 0.1, 0.1)
    assert trainings.on_ended(ended) == Trained(4, b"update", 9, 0, 0)
    assert capsys.readouterr().out.count("event=note-lost") == 2


def test_a_card_that_fails_while_the_version_is_noted_ends_the_agent(trainings, monkeypatch):
    fail_to_note(trainings, monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="the card says no"):
        trainings.start(JOB)
    assert not trainings._trainings


@pytest.mark.parametrize(("refused", "taken"), [("", 1), ("worse here", 0)])
@pytest.mark.parametrize("lane", ["economy", "trial"])
def test_what_the_child_found_no_worse_predicts_from_now_on_and_only_a_trial_is_told(trainings, lane, refused, taken):
    job = msgspec.structs.replace(JOB, plan=msgspec.structs.replace(PLAN, lane=lane))
    trainings.start(job)
    (training,) = trainings._trainings
    said = trainer.Answer(payload=b"update", num_examples=9, trial=Trial(0, 0, 0, refused))
    ended = child.Ended(training.child, msgspec.to_builtins(said, builtin_types=(bytes,)), "", 1, 0.1, 0.1)
    assert trainings.on_ended(ended).trial == (said.trial if lane == "trial" else None)
    kept = slots.load(trainings._flash.disk)
    assert (0 if kept is None else kept.now.version) == taken


def test_rounds_that_follow_each_other_are_one_childs_as_long_as_it_waits(trainings):
    trainings.start(JOB)
    first = trainings._trainings.pop().child
    trainings.start(JOB)
    assert trainings._trainings.pop().child is first
    assert len(first.given) == 1
    first.waits = False
    trainings.start(JOB)
    assert trainings._trainings.pop().child is not first
