"""One device of the simulated fleet: the shell around the product's own agent.

    off ──power, flash read──▶ running ──power cut, or its process dies at an effect──▶ off
                                                      └─ for good ─▶ gone

It performs the agent's effects in order, as `edge_agent.service` does, and can be stopped before or after any one of
them. What survives is in `flash`, as bytes; the next agent is built from there. Its clock starts at zero with each
boot and runs a little fast or slow.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

import msgspec

from edge_agent.agent import Agent
from edge_agent.budget import Limits
from edge_agent.effects import (
    Booted,
    Connected,
    Disconnected,
    DropPatch,
    Effect,
    Event,
    FetchRanges,
    FileFailed,
    Forget,
    OpenFile,
    Persist,
    Publish,
    Reading,
    Received,
    SealFile,
    SetLabel,
    StartTraining,
    StopTraining,
    Tick,
    WriteChunk,
    WritePatch,
)
from edge_agent.voice import Identity
from firmware_sim import keyring
from firmware_sim.flash import Flash
from firmware_sim.link import Line
from firmware_sim.trainer import Trainer
from firmware_sim.web import Fetcher
from wire import topics

if TYPE_CHECKING:
    from firmware_sim.keyring import Key
    from firmware_sim.world import Fate, World

READING_MS: Final = 60_000
EXIT_MS: Final = 2_000  # until the process is started again
FLASH_MS: Final = 5
GONE_SHARE_MAX: Final = 0.2
EXAMPLES: Final = 40


class Device:
    """A device's hardware. `agent` is None while it is off."""

    def __init__(self, world: World, name: str, index: int, key: Key) -> None:
        self.name = name
        self.index = index
        self.flash = Flash()
        self.agent: Agent | None = None
        self.line: Line | None = None
        self.gone = False
        self.life = 0  # counts starts; what was planned in an earlier life is void
        self._world = world
        self._trainer = Trainer(world, self)
        self._fetcher = Fetcher(world, self)
        self._key = key
        self._started_ms = 0
        self._clock_rate = 1.0 + world.weather.drift_rate_max * world.random.uniform(-1, 1)
        self._connections = 0
        self._armed_ms: int | None = None  # when the next tick is planned
        self._num_examples = 0 if world.chance(world.weather.examples_late_rate, "examples_late") else EXAMPLES
        world.at(1 + world.random.randrange(2_000), self._power_on, self.life)

    def power_off(self) -> None:
        """The power fails, now."""
        if self.agent is None:
            return
        world = self._world
        world.tally["power_cut"] += 1
        share_gone = sum(device.gone for device in world.devices) / len(world.devices)
        if share_gone < GONE_SHARE_MAX and world.chance(world.weather.gone_rate, "gone"):
            self.gone = True
        world.note(self.name, "loses power" + (" for ever" if self.gone else ""))
        self._stop(1 + world.random.randrange(world.weather.off_ms_max), silent=True)

    def handle(self, event: Event) -> None:
        """Let the agent decide, and perform what it decides."""
        if self.agent is None:
            return
        effects = self.agent.handle(event, self._local_ms())
        weather = self._world.weather
        for effect in effects:
            fate = self._world.fate(self.name, weather.cut_at_effect_rate, weather.exit_at_effect_rate)
            if not fate:
                self._perform(effect)
            else:
                self._end(effect, fate)
                return
        self._arm()

    def heal(self) -> None:
        """Power and learning material for everybody who is still there."""
        self._num_examples = EXAMPLES
        if self.agent is None:
            self._power_on(self.life)

    # Life

    def _power_on(self, planned_in: int) -> None:
        if self.gone or planned_in != self.life:
            return
        world = self._world
        self.life += 1
        life = self.life
        world.note(self.name, f"starts, life {life}")
        self._started_ms, self._connections, self._armed_ms = world.now_ms, 0, None
        identity = Identity(
            keyring.FLEET,
            self.name,
            self._key.sign,
            keyring.verifier(world.coordinator_key.text),
        )
        jitter = random.Random(f"{world.seed}/{self.name}/{self.life}")
        self.agent = Agent(identity, self.flash.read(), Limits(temperature_c_max=80.0), jitter)
        self.handle(Booted())
        self._read_host(life)
        if life != self.life:
            return  # it was cut while it started
        self.line = Line(
            world,
            self.name,
            topics.device_filters(keyring.FLEET, self.name),
            self._will,
            on_up=self._on_up,
            on_down=lambda: self.handle(Disconnected()),
            on_message=lambda topic, payload: self.handle(Received(topic, payload)),
        )

    def _stop(self, off_ms: int, *, silent: bool) -> None:
        self.agent = None
        self.life += 1
        self._trainer.kill()
        if self.line is not None:
            self.line.stop(silent=silent)
            self.line = None
        self._world.at(off_ms, self._power_on, self.life)

    def _end(self, effect: Effect, fate: Fate) -> None:
        """Stop at this effect: done or not, by power or by the process alone."""
        world = self._world
        if fate.endswith("after"):
            self._perform(effect)
        elif isinstance(effect, WriteChunk) and fate == "cut before" and world.chance(world.weather.torn_rate, "torn"):
            self.flash.write_chunk(effect.file.digest, effect.index, effect.data[: len(effect.data) // 2])
        world.tally[f"device {fate}"] += 1
        world.note(self.name, f"{fate} {type(effect).__name__}")
        if fate.startswith("cut"):
            self.power_off()
        else:
            self._stop(EXIT_MS, silent=False)

    # The clock and the host

    def _local_ms(self) -> int:
        return int((self._world.now_ms - self._started_ms) * self._clock_rate)

    def _arm(self) -> None:
        if self.agent is None or self.agent.wake_at_ms is None:
            return
        at_ms = self._started_ms + math.ceil(self.agent.wake_at_ms / self._clock_rate)
        at_ms = max(at_ms, self._world.now_ms)
        if self._armed_ms is None or at_ms < self._armed_ms:
            self._armed_ms = at_ms
            self._world.at(at_ms - self._world.now_ms, self._tick, self.life, at_ms)

    def _tick(self, life: int, at_ms: int) -> None:
        if life != self.life or at_ms != self._armed_ms or self.agent is None:
            return
        self._armed_ms = None
        wake_at_ms = self.agent.wake_at_ms
        if wake_at_ms is None or wake_at_ms > self._local_ms():
            self._arm()
            return
        self.handle(Tick())
        if self.life == life and self.agent is not None:
            self._world.auditor.on_tick(self.name, self._local_ms(), self.agent.wake_at_ms)

    def _read_host(self, life: int) -> None:
        if life != self.life:
            return
        world = self._world
        hot = world.chance(world.weather.hot_rate, "hot")
        if self._num_examples == 0 and world.random.random() < 0.1:
            self._num_examples = EXAMPLES
        left = 0 if world.chance(world.weather.bytes_spent_rate, "bytes_spent") else None
        celsius = 95.0 if hot else 45.0
        self.handle(Reading(temperature_c=celsius, num_examples=self._num_examples, day_bytes_left=left))
        world.at(READING_MS, self._read_host, life)

    # The link

    def _will(self) -> tuple[str, bytes, bool]:
        assert self.agent is not None, "a device that is off does not connect"
        self._connections += 1
        return (*self.agent.last_will(self._connections), False)

    def _on_up(self) -> None:
        self.handle(Connected(self._connections))

    # Effects

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Persist(durable=durable):
                before = self.flash.durable
                self.flash.write(durable)
                self._world.note(self.name, "persists", self.flash.durable)
                self._world.auditor.on_flash(self.name, before, self.flash.durable)
            case Publish(topic=topic, payload=payload):
                if self.line is not None:
                    self.line.publish(topic, payload, retain=False)
            case OpenFile(file=file):
                self._later(self.flash.look(file))
            case WriteChunk(file=file, index=index, data=data):
                if self._world.chance(self._world.weather.write_fails_rate, "write_fails"):
                    self._later(FileFailed(file.digest, "No space left on device\n"))
                else:
                    self.flash.write_chunk(file.digest, index, data)
            case WritePatch():
                self._write_patch(effect)
            case DropPatch(file=file):
                self.flash.write_patch(file, None)
            case FetchRanges():
                self._fetcher.fetch(effect)
            case SealFile(file=file):
                if self._world.chance(self._world.weather.rot_rate, "rot"):
                    self.flash.rot(file.digest)
                self._later(self.flash.seal(file))
            case StartTraining(job=job):
                self._trainer.start(job)
            case StopTraining():
                self._trainer.stop()
            case Forget(keep_files=keep_files, keep_residuals=keep_residuals):
                self.flash.forget(keep_files, keep_residuals)
            case SetLabel():
                pass  # this fleet labels nothing

    def _write_patch(self, effect: WritePatch) -> None:
        patch, weather = effect.patch, self._world.weather
        if self._world.chance(weather.write_fails_rate, "write_fails"):
            self._later(FileFailed(effect.file.digest, "No space left on device\n"))
            return
        if self._world.chance(weather.patch_rot_rate, "patch_rot"):
            at = self._world.random.randrange(len(patch.payload))
            payload = patch.payload[:at] + bytes([patch.payload[at] ^ 1]) + patch.payload[at + 1 :]
            patch = msgspec.structs.replace(patch, payload=payload)
        self._later(self.flash.write_patch(effect.file, patch))

    def _later(self, event: Event) -> None:
        self._world.at(FLASH_MS, self.answer, self.life, event)

    def answer(self, life: int, event: Event) -> None:
        """An answer that was due; void when the device restarted since."""
        if life == self.life:
            self.handle(event)
