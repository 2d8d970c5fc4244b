"""A device's training child, simulated: it takes time, fails, hangs, and may finish when nobody wants it to.

It reads the model files and the residual from flash as the real child does, and its update is a witness of what it
read (see `witness`). Where a patch waits in the place of the parameters, it applies that first, to a file of flash or
to what the base file holds, and leaves their file; a power cut may come before and after. The residual that it leaves
is on flash before it answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edge_agent.effects import PatchFailed, Trained, TrainingFailed
from firmware_sim import witness
from wire.messages import MODEL_FILE, PARAMS_FILE, digest_of

if TYPE_CHECKING:
    from edge_agent.effects import Event, Job
    from firmware_sim.device import Device
    from firmware_sim.world import World
    from wire.messages import Patch

EXAMPLES: Final = 96  # more than the plan lets a device weigh
PATCH_MS_MAX: Final = 1_000
LATE_MS_MAX: Final = 5_000  # the result that crossed with the order to stop
NASTY: Final = "no such file:\n\tTraceback (most recent call last)\x1b[31m" + "~" * 200


class Trainer:
    """At most one child at a time."""

    def __init__(self, world: World, device: Device) -> None:
        self._world = world
        self._device = device
        self._child = 0  # counts children; 0 after a kill is never reused
        self._job: Job | None = None
        self._late = False

    def start(self, job: Job) -> None:
        """Start a child."""
        world, weather = self._world, self._world.weather
        world.auditor.on_training(self._device.name, job, busy=self._job is not None)
        self._child += 1
        self._job, self._late = job, False
        world.note(self._device.name, f"trains round {job.round_id} on version {job.base_version}")
        self._device.flash.note(job)
        patch = next((self._device.flash.patch(f.digest) for f in job.files if f.name == PARAMS_FILE), None)
        patch_ms = 0
        if patch is not None:
            patch_ms = 1 + world.random.randrange(PATCH_MS_MAX)
            world.at(patch_ms, self._apply, self._child, patch)
        takes_ms = patch_ms + 1 + world.random.randrange(weather.train_ms_max)
        if world.chance(weather.train_hangs_rate, "train_hangs"):
            self._late = world.chance(weather.late_result_rate, "late_result")
        elif world.chance(weather.train_memory_rate, "train_memory"):
            world.at(takes_ms, self._finish, self._child, TrainingFailed(job.round_id, "killed for memory"))
        elif world.chance(weather.train_fails_rate, "train_fails"):
            world.at(takes_ms, self._finish, self._child, TrainingFailed(job.round_id, NASTY))
        else:
            world.at(takes_ms, self._finish, self._child, None)

    def stop(self) -> None:
        """Kill the child on the agent's word. What it had already sent cannot be taken back."""
        job = self._job
        if job is not None and self._late:
            delay_ms = 1 + self._world.random.randrange(LATE_MS_MAX)
            self._world.at(delay_ms, self._device.answer, self._device.life, self._result(job))
        self.kill()

    def kill(self) -> None:
        """The child dies with its agent."""
        self._job = None
        self._child += 1

    def _apply(self, child: int, patch: Patch) -> None:
        """Make the parameters of their patch, or answer that it cannot be done."""
        job, world, flash = self._job, self._world, self._device.flash
        if child != self._child or job is None:
            return
        file = next(file for file in job.files if file.name == PARAMS_FILE)
        if world.chance(world.weather.base_lost_rate, "base_lost"):
            flash.lose(patch.base_digest)
        base = flash.sealed(patch.base_digest)
        if base is None:
            model = flash.sealed(next(file.digest for file in job.files if file.name == MODEL_FILE))
            base = witness.own(model or b"")
            world.auditor.own_count += digest_of(base) == patch.base_digest
        made = witness.apply_patch(base, patch.payload)
        if made is None or digest_of(made) != file.digest:
            self._job = None
            world.auditor.on_patch_failed(self._device.name, self._device.life, file.digest)
            self._device.handle(PatchFailed(job.round_id, NASTY))
            return
        world.note(self._device.name, f"makes version {job.base_version} of a patch from {patch.base_version}")
        world.auditor.patched_count += 1
        flash.complete(file, made)

    def _finish(self, child: int, event: Event | None) -> None:
        job = self._job
        if child != self._child or job is None:
            return
        event = self._result(job) if event is None else event
        self._job = None
        self._device.flash.note(job)
        self._device.handle(event)

    def _result(self, job: Job) -> Event:
        """What a child that came to its end answers."""
        world, flash = self._world, self._device.flash
        contents = [flash.sealed(file.digest) for file in job.files]
        if any(content is None for content in contents):
            return TrainingFailed(job.round_id, "a model file is not on flash")
        residual = 0
        if job.residual_round_id:
            residual = flash.residuals.get(job.residual_round_id, witness.NO_RESIDUAL)
        nonce = flash.residuals[job.round_id] = 1 + world.random.getrandbits(63)
        mark = witness.model_mark(content for content in contents if content is not None)
        payload = witness.encode(witness.Witness(self._device.index, job.round_id, residual, nonce, mark))
        if self._device.name in world.faulty or world.chance(world.weather.bad_payload_rate, "bad_payload"):
            payload = b"\x00\n" + payload[5:]
        return Trained(job.round_id, payload, num_examples=EXAMPLES, held_out_correct=3, held_out_count=4)
