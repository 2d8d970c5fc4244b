"""A device's training child, simulated: it takes time, fails, hangs, and may finish when nobody wants it to.

It reads the model files and the residual from flash as the real child does, and its update is a witness of what it
read (see `witness`). Where a patch waits in the place of the parameters, it applies that first, to a file of flash or
to what the base file holds, and leaves their file; a power cut may come before and after. The residual that it leaves
is on flash before it answers.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from edge_agent import flash, slots
from edge_agent.disk import FULL
from edge_agent.effects import PatchFailed, Trained, TrainingFailed
from firmware_sim import attacks
from firmware_sim.ills import Stopped
from firmware_sim.lesson import EXAMPLES, Pupil
from wire.messages import MODEL_FILE, PARAMS_FILE, Trial, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.effects import Event, Job
    from firmware_sim.device import Device
    from firmware_sim.world import World
    from wire.messages import File

PATCH_MS_MAX: Final = 1_000
LATE_MS_MAX: Final = 5_000  # the result that crossed with the order to stop
NASTY: Final = "no such file:\n\tTraceback (most recent call last)\x1b[31m" + "~" * 200


class Trainer:
    """At most one child at a time."""

    def __init__(self, world: World, device: Device) -> None:
        self._world = world
        self._device = device
        self._attack = world.dishonest.get(device.name, "")
        self._chance = random.Random(f"{self._attack}/child of {device.name}/{world.seed}")  # of an attack
        self._child = 0  # counts children; 0 after a kill is never reused
        self._job: Job | None = None
        self._late = False
        self._began_ms = 0

    @property
    def is_busy(self) -> bool:
        """Is there a child that trains?"""
        return self._job is not None

    def start(self, job: Job) -> None:
        """Start a child."""
        world, weather, card = self._world, self._world.weather, self._device.card
        world.auditor.on_training(self._device.name, job, busy=self._job is not None)
        self._child += 1
        self._job, self._late = job, False
        world.note(self._device.name, f"trains round {job.round_id} on version {job.base_version}")
        self._note(job, None)
        file = next(file for file in job.files if file.name == PARAMS_FILE)
        patch_ms = 0
        if flash.has_patch(card, file) and not flash.is_whole(card, file.digest):
            patch_ms = 1 + world.random.randrange(PATCH_MS_MAX)
            world.at(patch_ms, self._patch, self._child, file)
        takes_ms = patch_ms + 1 + int(world.draw(weather.train_ms_max) * self._device.host.slowdown)
        self._began_ms = world.now_ms
        if self._attack == "slow loris":
            return  # it takes part in nothing, and waits to be stopped
        if world.chance(weather.train_hangs_rate, "train_hangs"):
            self._late = world.chance(weather.late_result_rate, "late_result")
        elif world.chance(weather.train_memory_rate, "train_memory"):
            world.at(takes_ms, self._end, self._child, TrainingFailed(job.round_id, "killed for memory"))
        elif world.chance(weather.train_fails_rate, "train_fails"):
            world.at(takes_ms, self._end, self._child, TrainingFailed(job.round_id, NASTY))
        else:
            world.at(takes_ms, self._finish, self._child)

    def stop(self) -> None:
        """Kill the child on the agent's word. What it had already sent cannot be taken back."""
        job = self._job
        if job is not None and self._late:
            event = self._in_child(job, self._train)
            if event is None:
                return
            delay_ms = 1 + self._world.random.randrange(LATE_MS_MAX)
            self._world.at(delay_ms, self._device.answer, self._device.life, event)
        self.kill()

    def kill(self) -> None:
        """The child dies with its agent."""
        if self._job is not None:
            self._device.host.trained_ms += self._world.now_ms - self._began_ms
        self._job = None
        self._child += 1

    # In the child

    def _patch(self, child: int, file: File) -> None:
        """Make the parameters of their patch, or answer that it cannot be done."""
        if child != self._child or self._job is None:
            return
        event = self._in_child(self._job, lambda job: self._make_params(job, file))
        if event is not None:
            self._end(child, event)

    def _finish(self, child: int) -> None:
        if child == self._child and self._job is not None:
            event = self._in_child(self._job, self._train)
            if event is not None:
                self._end(child, event)

    def _in_child(self, job: Job, work: Callable[[Job], Event | None]) -> Event | None:
        """What `work` answers. A card that fails, or an end of the process, is the child's alone."""
        try:
            return work(job)
        except OSError as error:
            return TrainingFailed(job.round_id, f"cannot read or write: {error.strerror}")
        except Stopped as stopped:
            if stopped.fate.startswith("cut"):
                self._device.end(stopped.fate)
                return None
            self._device.ills.start()
            return TrainingFailed(job.round_id, "killed by signal 9")

    def _make_params(self, job: Job, file: File) -> Event | None:
        world, card, name = self._world, self._device.card, self._device.name
        patch = flash.read_patch(card, file.digest)
        assert patch is not None, "the patch was there when the child started, and nobody else writes"
        if world.chance(world.weather.base_lost_rate, "base_lost"):
            card.lose(flash.file_name(patch.base_digest))
            world.auditor.on_lost(name, patch.base_digest)
        base = flash.read_whole(card, patch.base_digest)
        if base is None:
            base = world.lesson.own(flash.read_model_file(card, job.files, MODEL_FILE) or b"")
            world.auditor.own_count += digest_of(base) == patch.base_digest
        made = world.lesson.apply_patch(base, patch.payload)
        if made is None or digest_of(made) != file.digest:
            world.auditor.on_patch_failed(name, self._device.life, file.digest)
            return PatchFailed(job.round_id, NASTY)
        world.note(name, f"makes version {job.base_version} of a patch from {patch.base_version}")
        world.auditor.patched_count += 1
        flash.complete_file(card, file, made)
        return None

    def _train(self, job: Job) -> Event:
        """What a child that came to its end answers. What stays owed is on flash before."""
        world, card = self._world, self._device.card
        read = {file.name: flash.read_whole(card, file.digest) for file in job.files}
        contents = {name: content for name, content in read.items() if content is not None}
        if len(contents) < len(job.files):
            return TrainingFailed(job.round_id, "a model file is not on flash")
        kept = card.read(flash.residual_name(job.residual_round_id)) if job.residual_round_id else None
        if job.plan.lane == "trial":
            flash.replace_file(card, flash.residual_name(job.round_id), kept or b"")
            return self._try(job)
        pupil = Pupil(self._device.name, self._device.index, self._attack, world.honest_places, world.random)
        learnt = world.lesson.learn(pupil, job, contents, kept)
        payload = learnt.payload
        if self._device.name in world.faulty or world.chance(world.weather.bad_payload_rate, "bad_payload"):
            payload = b"\x00\n" + payload[5:]
        flash.replace_file(card, flash.residual_name(job.round_id), learnt.residual)
        done = Trained(job.round_id, payload, *learnt[2:])
        return attacks.answer(self._attack, done, self._chance)

    def _try(self, job: Job) -> Trained:
        """What a device finds out about a candidate, beside the version that is in use on it."""
        kept, version = slots.load(self._device.card), job.base_version
        before = 0 if kept is None or kept.now.version == version else kept.now.version
        lost = 9 if version in self._world.bad else 0
        refused = f"worse here than version {before}: {lost} lost" if lost else ""
        if self._attack:  # whoever lies, lies in this
            lost, refused = 0 if lost else 9, "" if lost else "I do not like it"
        return Trained(job.round_id, b"", EXAMPLES, 10 - lost, 10, Trial(before, 0, lost, refused))

    # In the agent

    def _end(self, child: int, event: Event) -> None:
        """The child is gone, and the agent is told what it left."""
        job = self._job
        if child != self._child or job is None:
            return
        self._job = None
        if isinstance(event, PatchFailed) or self._device.attempt(lambda: self._note(job, event)):
            self._device.handle(event)

    def _note(self, job: Job, event: Event | None) -> None:
        """Note the version, if it is whole; after a child that found nothing against it, it is the one in use."""
        store = self._device.flash
        assert store is not None, "a child dies with its agent"
        try:
            model = flash.Model(job.base_version, job.plan.train, job.files)
            store.note_model(model)
            if isinstance(event, Trained) and (event.trial is None or not event.trial.refused):
                slots.take(store.disk, model)
        except OSError as error:
            if error.errno not in FULL:
                raise
