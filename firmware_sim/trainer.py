"""A device's training child, simulated: it takes time, fails, hangs, and may finish when nobody wants it to.

It reads the model files and the residual from flash as the real child does, and its update is a witness of what it
read (see `witness`). The residual that it leaves is on flash before it answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edge_agent.effects import Trained, TrainingFailed
from firmware_sim import witness

if TYPE_CHECKING:
    from edge_agent.effects import Event, Job
    from firmware_sim.device import Device
    from firmware_sim.world import World

EXAMPLES: Final = 96  # more than the plan lets a device weigh
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
        takes_ms = 1 + world.random.randrange(weather.train_ms_max)
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

    def _finish(self, child: int, event: Event | None) -> None:
        job = self._job
        if child != self._child or job is None:
            return
        event = self._result(job) if event is None else event
        self._job = None
        self._device.handle(event)

    def _result(self, job: Job) -> Event:
        """What a child that came to its end answers."""
        world, flash = self._world, self._device.flash
        contents = [flash.model(file) for file in job.files]
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
