"""One device of the simulated fleet: the shell around the product's own agent.

    off ──power, flash read──▶ running ──power cut, or its process dies at an effect──▶ off
                                                      └─ for good ─▶ gone

It performs the agent's effects in order, as `edge_agent.service` does, and can be stopped before or after any one of
them, and before any operation on the card within. The flash code is the product's own; what survives is on the `card`,
and the next agent is built from there. A card that fails ends the process, which is started again. The device's clock
starts at zero with each boot and runs a little fast or slow.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

import msgspec

from edge_agent import flash, slots
from edge_agent.agent import Agent
from edge_agent.effects import (
    Booted,
    Connected,
    Disconnected,
    DropPatch,
    Effect,
    Event,
    FetchRanges,
    FileState,
    Forget,
    Persist,
    Publish,
    Received,
    SealFile,
    SetLabel,
    StartTraining,
    StopTraining,
    Tick,
    WritePatch,
)
from edge_agent.probation import Ended, Looked, Started
from firmware_sim import keyring, voices
from firmware_sim.card import Card
from firmware_sim.host import RETRY_MS, Host
from firmware_sim.ills import Ills, Stopped
from firmware_sim.link import Line
from firmware_sim.trainer import Trainer
from firmware_sim.web import Fetcher
from wire import topics

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware_sim.keyring import Key
    from firmware_sim.world import Fate, World
    from wire.messages import File, Patch

EXIT_MS: Final = 2_000  # until the process is started again
FLASH_MS: Final = 5
GONE_SHARE_MAX: Final = 0.2
EXAMPLES: Final = 40


class Device:
    """A device's hardware. `agent` is None while it is off."""

    def __init__(self, world: World, name: str, index: int, key: Key) -> None:
        self.name = name
        self.index = index
        self.ills = Ills(world, name)
        self.card = Card(self.ills.begin, self.ills.coin)
        self.host = Host(world, name)
        self.flash: flash.Flash | None = None  # the product's own; None while it is off
        self.slots: slots.Note | None = None
        self.agent: Agent | None = None
        self.line: Line | None = None
        self.gone = False
        self.skew = 0  # how many versions its program is ahead of ours
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
        if self.agent is not None:
            self._lose_power()

    def _lose_power(self) -> None:
        world = self._world
        if world.gone_count < GONE_SHARE_MAX * len(world.devices) and world.chance(world.weather.gone_rate, "gone"):
            self.gone = True
            world.gone_count += 1
        world.note(self.name, "loses power" + (" for ever" if self.gone else ""))
        tears = self.card.has_unsynced() and world.chance(world.weather.torn_rate, "torn")
        self.card.cut(world.random, tear=tears)
        self._stop(1 + world.random.randrange(world.weather.off_ms_max), silent=True)

    def replace_card(self) -> None:
        """The card has died, and its owner puts an empty one in its place; the key was kept elsewhere."""
        world = self._world
        world.note(self.name, "gets an empty card")
        if self.agent is not None:
            self._stop(1 + world.draw(world.weather.off_ms_max), silent=True)
        self.card = Card(self.ills.begin, self.ills.coin)
        world.auditor.on_new_card(self.name)

    def upgrade(self, skew: int) -> None:
        """Another version of the program takes the place of this one."""
        self.skew = skew
        if self.agent is not None:
            self._world.note(self.name, f"becomes version {skew:+}")
            if self.attempt(self._end_in_order):
                self._stop(EXIT_MS, silent=False)

    def handle(self, event: Event) -> None:
        """Let the agent decide, and perform what it decides."""
        if self.agent is None:
            return
        weather = self._world.weather
        for effect in self.agent.handle(event, self._local_ms()):
            fate = self._world.fate(self.name, weather.cut_at_effect_rate, weather.exit_at_effect_rate)
            if fate:
                self._end(effect, fate)
                return
            if not self.attempt(lambda todo=effect: self._perform(todo)):  # type: ignore[misc]
                return
        self._arm()

    def _end_in_order(self) -> None:
        assert self.slots is not None, "a device that is off does not end"
        self.host.save(at_end=True)
        self.slots.tell(Ended())

    def attempt(self, work: Callable[[], None]) -> bool:
        """Do something that needs the card. Whether the process has survived it."""
        life = self.life
        try:
            work()
        except Stopped as stopped:
            self.end(stopped.fate)
        except OSError as error:
            self._world.note(self.name, f"gives up: {error.strerror}")
            self._stop(EXIT_MS, silent=False)
        return self.life == life

    def end(self, fate: Fate) -> None:
        """Lose the power, or the process alone."""
        if fate.startswith("cut"):
            self._lose_power()
        else:
            self._stop(EXIT_MS, silent=False)

    def heal(self) -> None:
        """Power and learning material for everybody who is still there."""
        self._num_examples = EXAMPLES
        self.host.heal()
        if self.agent is None:
            self._power_on(self.life)

    # Life

    def _power_on(self, planned_in: int) -> None:
        if self.gone or planned_in != self.life:
            return
        world = self._world
        if self.host.is_dark:
            world.at(RETRY_MS, self._power_on, self.life)
            return
        self.life += 1
        life = self.life
        self.ills.start()
        world.note(self.name, f"starts, life {life}")
        self._started_ms, self._connections, self._armed_ms = world.now_ms, 0, None
        if not self.attempt(self._begin):
            return
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
            on_message=self._on_message,
        )

    def _begin(self) -> None:
        """Build the agent from what is on flash."""
        world = self._world
        self.flash = flash.Flash(self.card)
        verify = keyring.verifier(world.coordinator_key.text)
        identity = voices.Device(keyring.FLEET, self.name, self._key.sign, verify, opened=world.opened, skew=self.skew)
        self.host.start(self.card, self._local_ms)
        jitter = random.Random(f"{world.seed}/{self.name}/{self.life}")
        self.slots = slots.Note(self.card, self._local_ms, lambda *_, **__: None, must_answer=False)
        self.slots.tell(Started())
        durable = self.flash.load(first_boot=world.draw(2**32))
        world.auditor.on_start(self.name, durable, self.card.survivor())
        self.agent = Agent(identity, durable, self.host.limits, jitter)

    def _stop(self, off_ms: int, *, silent: bool) -> None:
        self._world.auditor.on_flash(self.name, self.card.survivor())
        self.agent = self.flash = self.slots = None
        self.life += 1
        self.host.end()
        self._trainer.kill()
        if self.line is not None:
            self.line.stop(silent=silent)
            self.line = None
        self._world.at(off_ms, self._power_on, self.life)

    def _end(self, effect: Effect, fate: Fate) -> None:
        """Stop at this effect: done or not, by power or by the process alone."""
        world = self._world
        if fate.endswith("after") and not self.attempt(lambda: self._perform(effect)):
            return
        world.note(self.name, f"{fate} {type(effect).__name__}")
        self.end(fate)

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
        if self._num_examples == 0 and world.random.random() < 0.1:
            self._num_examples = EXAMPLES
        self._tell_reading()
        if self.host.is_dark and self.agent is not None and world.happens("brown_out"):
            self._lose_power()
        world.at(world.weather.reading_every_ms, self._read_host, life)

    def _tell_reading(self) -> None:
        if not self.attempt(self._look):
            return
        reading = self.host.read(self._num_examples, working=self._trainer.is_busy)
        self._world.auditor.on_reading(self.name, self.host.limits, reading)
        self.handle(reading)

    def _look(self) -> None:
        assert self.slots is not None, "a device that is off does not look"
        self.host.save(at_end=False)
        self.slots.tell(Looked(self.line is not None and self.line.connection is not None))

    def _read_again_if_moved(self) -> None:
        """Much was carried since the last reading, as the service watches, too."""
        if self.host.ledger is not None and self.host.ledger.has_moved():
            self._world.at(1, self._again, self.life)

    def _again(self, life: int) -> None:
        if life == self.life:
            self._tell_reading()

    # The link

    def _will(self) -> tuple[str, bytes, bool]:
        assert self.agent is not None, "a device that is off does not connect"
        self._connections += 1
        return (*self.agent.last_will(self._connections), False)

    def _on_up(self) -> None:
        self.handle(Connected(self._connections))

    def _publish(self, topic: str, payload: bytes) -> None:
        if self.line is None:
            return
        if self.host.ledger is not None and self.line.connection is not None:
            meter = self.host.ledger.meter
            meter.on_puback(meter.on_publish(topic, payload))
        self.line.publish(topic, payload, retain=False)

    def _on_message(self, topic: str, payload: bytes) -> None:
        if self.host.ledger is not None:
            self.host.ledger.meter.on_arrived(topic, payload, 1)
            self._read_again_if_moved()
        self.handle(Received(topic, payload))

    # Effects

    def _perform(self, effect: Effect) -> None:
        assert self.flash is not None, "a device that is off performs nothing"
        match effect:
            case Persist(durable=durable):
                self.flash.save(durable)
                self._world.note(self.name, "persists", msgspec.msgpack.encode(durable))
                self._world.auditor.on_flash(self.name, self.card.survivor())
            case Publish(topic=topic, payload=payload):
                self._publish(topic, payload)
            case FetchRanges():
                self._fetcher.fetch(effect)
            case StartTraining(job=job):
                self._trainer.start(job)
            case StopTraining():
                self._trainer.stop()
            case Forget(keep_files=keep_files, keep_residuals=keep_residuals):
                self.flash.forget(keep_files, keep_residuals, slots.files(self.card))
                self._world.auditor.on_forgotten(self.name, keep_files)
            case SetLabel():
                pass  # this fleet labels nothing
            case _:
                self._perform_on_file(self.flash, effect)

    def _perform_on_file(self, store: flash.Flash, effect: flash.FileEffect) -> None:
        match effect:
            case SealFile(file=file):
                self._rot(file)
            case WritePatch(file=file, patch=patch):
                effect = WritePatch(file, self._worn(patch))
        answer = store.perform(effect)
        if isinstance(effect, DropPatch) and answer is None:
            self._world.auditor.on_patch_dropped(self.name, effect.file.digest)
        if isinstance(answer, FileState):
            self._world.auditor.on_file_state(self.name, answer)
        if answer is not None:
            self._later(answer)

    def _rot(self, file: File) -> None:
        """A chunk may have changed since it was written."""
        part = f"{flash.file_name(file.digest)}.part"
        if self.card.size_bytes(part) and self._world.chance(self._world.weather.rot_rate, "rot"):
            self.card.rot(part, self._world.draw(file.size_bytes))

    def _worn(self, patch: Patch) -> Patch:
        """The patch, or what becomes of it on the way to the card."""
        if not self._world.chance(self._world.weather.patch_rot_rate, "patch_rot"):
            return patch
        at = self._world.draw(len(patch.payload))
        payload = patch.payload[:at] + bytes([patch.payload[at] ^ 1]) + patch.payload[at + 1 :]
        return msgspec.structs.replace(patch, payload=payload)

    def _later(self, event: Event) -> None:
        self._world.at(FLASH_MS, self.answer, self.life, event)

    def answer(self, life: int, event: Event) -> None:
        """An answer that was due; void when the device restarted since."""
        if life == self.life:
            self.handle(event)
