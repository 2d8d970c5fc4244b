"""The shell's training children: started, stopped, and their ends turned into events.

At most one is wanted at a time. One that was killed stays in the list until its end was logged; the agent, which
ordered it, is owed no answer then. Before a child starts, and when one has ended, the newest version that is whole on
flash is noted for whom a patch finds: a child may have made it whole, of a patch. What the child found no worse than
the version in use takes its place (`edge_agent.slots`). A disk without room for the note costs the
note, and neither the training nor what came of it; a card that fails ends the agent.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from edge_agent import child, effects, flash, slots, trainer
from edge_agent.disk import FULL
from edge_agent.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_agent.config import Config
    from edge_agent.effects import Event, Job


class _Training(msgspec.Struct, eq=False):
    """One training child and what it is for."""

    child: child.Child
    job: Job
    stopped: str = ""  # why we killed it


class Trainings:
    """The training children of one agent. `post` takes their ends, from threads of their own."""

    def __init__(self, settings: Config, kept: flash.Flash, post: Callable[[child.Ended], None]) -> None:
        self._settings = settings
        self._flash = kept
        self._post = post
        self.note = ""  # what the last one had to tell the owner
        self._trainings: list[_Training] = []  # the running one last
        self._last: child.Child | None = None  # which may wait for another task

    def start(self, job: Job) -> Event | None:
        """Start a child; the failure, if it cannot be."""
        self._note(job)
        task = trainer.Task(
            job,
            str(self._settings.device.state),
            str(self._settings.samples_path),
            self._settings.samples.held_out_rate,
            self._settings.samples.features_bytes_max,
            self._settings.samples.replay,
            self._settings.samples.unlabelled,
        )
        tree, running = trainer.tree_of(task), self._last
        try:
            if running is None or not running.give(tree):
                running = child.Child("edge_agent.trainer", tree, self._post, lingers=True)
        except OSError as error:
            return effects.TrainingFailed(job.round_id, f"the trainer cannot be started: {error.strerror or error}")
        self._trainings.append(_Training(running, job))
        self._last = running
        return None

    def stop(self, reason: str) -> None:
        """Kill whatever runs, or waits. Its end is told to the log alone."""
        for training in self._trainings:
            training.stopped = training.stopped or f"stopped: {reason}"
            training.child.kill()
        if self._last is not None:
            self._last.kill()

    def running_core_s(self) -> float:
        """What the children that run now have taken of a core until now."""
        return sum(training.child.cpu_s() for training in self._trainings)

    def on_ended(self, ended: child.Ended) -> Event | None:
        """What the end of a child means to the agent; None for one that was told to stop."""
        training = next(training for training in self._trainings if training.child is ended.child)
        self._trainings.remove(training)
        answer = trainer.answer_of(ended.answer) if ended.answer else trainer.Answer(reason=ended.reason)
        reason, round_id = training.stopped or answer.reason, training.job.round_id
        log(
            "trainer",
            round=round_id,
            ok=0 if reason else 1,
            peak_rss_kb=ended.peak_rss_kb,
            cpu_s=ended.cpu_s,
            wall_s=ended.wall_s,
            reason=reason,
        )
        if training.stopped:
            return None
        if answer.patch_failed:
            return effects.PatchFailed(round_id, reason)
        self._note(training.job)
        if reason:
            return effects.TrainingFailed(round_id, reason)
        self.note = answer.note
        log(
            "learned",
            round=round_id,
            examples=answer.num_examples,
            held_out=f"{answer.held_out_correct}/{answer.held_out_count}",
            loss_before=answer.loss_before,
            loss_after=answer.loss_after,
            note=answer.note,
        )
        if answer.trial is not None and not answer.trial.refused:
            self.take(_model(training.job))
        trial = answer.trial if training.job.plan.lane == "trial" else None
        return effects.Trained(
            round_id, answer.payload, answer.num_examples, answer.held_out_correct, answer.held_out_count, trial
        )

    def take(self, model: flash.Model) -> None:
        """From now on this version predicts here."""
        with _when_full(model.version):
            kept = slots.take(self._flash.disk, model)
            if kept is not None:
                log("probation", version=model.version, tries_left=kept.tries_left, reason="it has come into use")

    def _note(self, job: Job) -> None:
        with _when_full(job.base_version):
            self._flash.note_model(_model(job))


def _model(job: Job) -> flash.Model:
    return flash.Model(job.base_version, job.plan.train, job.files)


@contextlib.contextmanager
def _when_full(version: int) -> Iterator[None]:
    """A disk without room costs the note alone."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        log("note-lost", reason=f"no room to note model version {version}: {error.strerror}")
