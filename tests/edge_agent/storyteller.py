"""An agent whose every event goes through a Story: of a Stage, or of each life of the devices of a simulated world."""

from __future__ import annotations

import types

import msgspec

from edge_agent.agent import Agent
from edge_agent.budget import Limits
from edge_agent.story import Story
from edge_agent.storyfile import Life
from tests.edge_agent.stage import DEVICE, FLEET, Stage

STAGE_LIFE = Life(FLEET, DEVICE, "edge-agent", "simulated:" + b"coordinator".hex(), Limits(), 300_000)


def listened(agent: Agent, story: Story) -> Agent:
    """The same agent; `handle` is now the story's."""
    machine = types.SimpleNamespace(handle=agent.handle, checkpoint=agent.checkpoint)
    agent.handle = lambda event, now_ms: story.handle(machine, event, now_ms)
    agent._id = msgspec.structs.replace(agent._id, sign=story.overhear(agent._id.sign))
    agent._presence._id = agent._id
    return agent


class ToldStage(Stage):
    """A Stage with a story; `bounds` are the story's."""

    def __init__(self, *arguments, **bounds) -> None:
        super().__init__(*arguments)
        self.story = Story(msgspec.structs.replace(STAGE_LIFE, limits=self.agent._limits), **bounds)
        listened(self.agent, self.story)


class Listener:
    """Makes a world's agents keep stories: `patch` the device's Agent, and `prepare` the world.

    All of them speak as today's product: a replay plays no older or newer one. One that is deaf does nothing else.
    """

    def __init__(self, *, deaf: bool = False) -> None:
        self._deaf = deaf
        self.stories: list[Story] = []
        self._key = ""

    def prepare(self, world) -> None:
        self._key = world.coordinator_key.text

    def patch(self, monkeypatch, **bounds) -> None:
        def make(identity, start, limits, jitter, *, telemetry_ms=300_000):
            told = identity.software, self._key, limits, telemetry_ms, identity.runtime
            life = Life(identity.fleet, identity.device_id, *told)
            identity = msgspec.structs.replace(identity, skew=0)
            agent = Agent(identity, start, limits, jitter, telemetry_ms=telemetry_ms)
            if self._deaf:
                return agent
            self.stories.append(Story(life, **bounds))
            return listened(agent, self.stories[-1])

        monkeypatch.setattr("firmware_sim.device.Agent", make)
