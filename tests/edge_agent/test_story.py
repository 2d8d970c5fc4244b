"""What an agent remembers of its life: bounded, whole where it says so, without secrets, and read with suspicion."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys

import msgspec
import pytest
from click.testing import CliRunner

from edge_agent import config, service, story, storyfile
from edge_agent.agent import Agent
from edge_agent.checkpoint import Checkpoint
from edge_agent.cli import main
from edge_agent.download import DownloadCheckpoint
from edge_agent.effects import Booted, Connected, Durable, Forget, Received, Tick
from edge_agent.outbox import OutboxCheckpoint
from edge_agent.presence import PresenceCheckpoint
from edge_agent.storyfile import LENGTH_MAX, StoryError
from edge_agent.tries import TriesCheckpoint
from firmware_sim.replay import replay
from tests.edge_agent.stage import DEVICE, FLEET, Stage
from tests.edge_agent.storyteller import ToldStage
from wire import keys, topics


def told() -> ToldStage:
    stage = ToldStage()
    stage.receipt(stage.sending(), "accepted")
    return stage


@pytest.fixture
def device(tmp_path) -> config.Made:
    return config.make(tmp_path, "dev-1", "fleet-1", "mqtt://127.0.0.1:9", keys.public_text(keys.generate()))


def run(made: config.Made, *options: object, code: int = 0) -> str:
    arguments = ["story", "--config", str(made.path), *map(str, options)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output
    return done.output


# The checkpoint


def names(part: object, *fixed: str) -> set[str]:
    return {name.lstrip("_") for name in vars(part)} - set(fixed)


def test_a_checkpoint_has_whatever_the_machine_and_its_parts_remember():
    agent = Stage().training().agent
    assert names(agent, "id", "limits") == set(Checkpoint.__struct_fields__)
    assert names(agent._outbox) == set(OutboxCheckpoint.__struct_fields__)
    assert names(agent._presence, "id", "telemetry_ms") == set(PresenceCheckpoint.__struct_fields__)
    assert names(agent._tries) == set(TriesCheckpoint.__struct_fields__)
    kept = names(agent._download, "manifest", "files", "model", "url") | {"http_failed"}
    assert kept == set(DownloadCheckpoint.__struct_fields__)


def test_taking_a_checkpoint_changes_nothing_and_an_agent_made_from_it_gives_the_same():
    stage = Stage().training()
    first = stage.agent.checkpoint()
    assert stage.agent.checkpoint() == first
    entry = storyfile.Entry(0, "tick", (), checkpoint=storyfile.encode(first))
    kept = storyfile.checkpoint_of(entry)
    assert kept == first
    other = Agent(stage.agent._id, kept, stage.agent._limits, random.Random(9))
    assert other.checkpoint() == first
    assert (other.work, other.wake_at_ms) == (stage.agent.work, stage.agent.wake_at_ms)


def test_what_no_generator_can_be_set_to_is_no_checkpoint():
    for words in ((1,), (0,) * 624 + (625,)):
        entry = storyfile.Entry(0, "tick", (), checkpoint=storyfile.encode(Checkpoint(Durable())))
        tree = msgspec.msgpack.decode(entry.checkpoint)
        tree["outbox"]["jitter"] = words
        with pytest.raises(StoryError, match="state of a generator"):
            storyfile.checkpoint_of(msgspec.structs.replace(entry, checkpoint=msgspec.msgpack.encode(tree)))


def test_what_a_stranger_writes_does_not_reach_the_terminal_by_way_of_an_error():
    tree = msgspec.msgpack.decode(storyfile.encode(Stage().training().agent.checkpoint()))
    tree["training"]["plan"][3] = "\x1b[31m\n" + 5000 * "economy"
    with pytest.raises(StoryError, match="Invalid enum value") as refused:
        storyfile.checkpoint_of(storyfile.Entry(0, "tick", (), checkpoint=msgspec.msgpack.encode(tree)))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


# What is remembered


def test_each_event_is_told_with_its_effects_and_the_first_with_a_checkpoint():
    record = told().story.record("SIGTERM")
    assert [entry.event for entry in record.entries[:6]] == [
        "booted", "reading", "connected", "received-state", "received-plan", "received-manifest",
    ]  # fmt: skip
    assert record.entries[0].effects == ("Persist", "Forget")
    assert [bool(entry.checkpoint) for entry in record.entries] == [True] + [False] * (len(record.entries) - 1)
    trained = next(entry for entry in record.entries if entry.event == "trained")
    assert trained.effects == ("Persist", "Publish")
    assert len(trained.signed) == 1  # the update; its resend would be none
    assert storyfile.event_of(record.entries[2]) == Connected(1)
    assert replay(record).same


def test_the_count_is_bounded_and_what_is_left_can_be_lived_again():
    stage = told()
    for _ in range(3 * LENGTH_MAX):
        stage.tick(1_000)
    record = stage.story.record("SIGTERM")
    all_count = record.forgotten_count + len(record.entries)
    assert len(record.entries) == LENGTH_MAX
    assert all_count > 3 * LENGTH_MAX
    assert len(record.replayable) >= LENGTH_MAX * 3 // 4
    assert replay(record) == (len(record.replayable), "", "")


def test_the_bytes_are_bounded_and_the_lines_stay_when_their_contents_go():
    stage = told()
    topic = topics.dn(FLEET, DEVICE, "chunk")
    for number in range(100):
        stage.handle(Received(topic, number.to_bytes(2) + bytes(98_000)))
        kept = sum(len(entry.content) + len(entry.checkpoint) for entry in stage.story.record("").entries)
        assert kept <= story.BYTES_MAX
    record = stage.story.record("SIGTERM")
    assert record.forgotten_count == 0
    assert sum(entry.event == "received-chunk" for entry in record.entries) >= 100
    assert [entry.event for entry in record.replayable] == ["received-chunk"] * len(record.replayable)
    assert len(record.replayable) >= 2
    assert replay(record).same
    assert len(storyfile.encode(record)) < story.BYTES_MAX + 50_000


def test_the_event_that_raised_stands_last_without_effects(monkeypatch):
    stage = told()

    def fail(*_args):
        raise AssertionError("a bug")

    monkeypatch.setattr(stage.agent, "_on_tick", fail)
    with pytest.raises(AssertionError, match="a bug"):
        stage.tick()
    record = stage.story.record("AssertionError: a bug")
    assert (record.entries[-1].event, record.entries[-1].effects) == ("tick", None)
    assert story.as_lines(record)[-1].endswith("tick               raised")


def test_the_digest_of_an_effect_does_not_hang_on_the_order_of_a_set():
    code = (
        "from edge_agent.effects import Forget; from edge_agent.storyfile import digests_of; "
        "print(digests_of([Forget(frozenset(bytes([n]) * 32 for n in range(9)), frozenset(range(99)))]).hex())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1
    assert len(storyfile.digests_of([Forget(None, frozenset())] * 3)) == 3 * storyfile.DIGEST_BYTES


def test_recording_copies_a_chunk_once_and_costs_less_than_checking_its_digest():
    """A bound in copies rather than in milliseconds: what a chunk adds to the story is its own size."""
    stage = told()
    data = bytes(98_000)
    before = sum(part.bytes_count for part in stage.story._parts)
    stage.handle(Received(topics.dn(FLEET, DEVICE, "chunk"), data))
    after = sum(part.bytes_count for part in stage.story._parts)
    assert len(data) <= after - before < len(data) + 500


# The service


def test_the_story_of_a_service_holds_no_key_and_no_password_and_is_private(device, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("very-secret-word\n")
    secret.chmod(0o600)
    text = device.path.read_text().replace("[mqtt]\n", f'[mqtt]\nusername = "u"\npassword_file = "{secret}"\n')
    device.path.write_text(text)
    settings = config.load(device.path)
    shell = service.Service(settings)
    shell._handle(Booted())
    shell._handle(shell._reading())
    shell._handle(Connected(1))  # signs a birth
    path = settings.device.state / "story"
    shell._tell("SIGTERM")
    data = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    seed = keys.load_seed(settings.device.key)
    assert seed not in data
    assert settings.device.key.read_bytes().strip() not in data
    assert b"very-secret-word" not in data
    record = storyfile.load(path)
    assert record.entries[2].signed
    assert record.life.coordinator_key == settings.device.coordinator_key
    assert replay(record).same  # with the machine's own jitter, in the service's own clock


def test_a_crash_of_the_machine_is_the_ending_with_its_line(device, monkeypatch):
    settings = config.load(device.path)
    shell = service.Service(settings)

    def fail(*_args):
        raise AssertionError("a bug")

    monkeypatch.setattr(shell._agent, "handle", fail)
    with pytest.raises(AssertionError, match="a bug"):
        shell.run()
    record = storyfile.load(settings.device.state / "story")
    assert record.ending.startswith("AssertionError at edge_agent/test_story.py:")
    assert record.ending.endswith(": a bug")
    assert record.entries[-1].effects is None


# The file


def test_a_story_comes_back_as_it_was(tmp_path):
    written = told().story
    written.save(tmp_path / "story", "end\x1b[31m")
    record = storyfile.load(tmp_path / "story")
    assert record == written.record("end [31m")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 2}, "no story that this release can read: Invalid enum value 2"),
        ({"ending": "\x1b[31m"}, "matching regex"),
        ({"entries": [[0, "tick\x1b", []]]}, "matching regex"),
        ({"entries": [[0, "tick", ["a\nb"]]]}, "matching regex"),
        ({"entries": [[-1, "tick", []]]}, ">= 0"),
        ({"entries": [[0, "tick", [], b"", b"", [b"short"]]]}, "length >= 72"),
        ({"entries": [[0, "tick", []]] * (LENGTH_MAX + 1)}, f"length <= {LENGTH_MAX}"),
    ],
)
def test_bytes_outside_the_bounds_are_no_story(change, sentence, tmp_path):
    fields = dict(zip(("tag", "version", "life", "ending", "forgotten_count", "entries"), msgspec.msgpack.decode(
        storyfile.encode(told().story.record("SIGTERM"))), strict=True))  # fmt: skip
    (tmp_path / "story").write_bytes(msgspec.msgpack.encode([*(fields | change).values()]))
    with pytest.raises(StoryError, match=re.escape(sentence)):
        storyfile.load(tmp_path / "story")


def test_deep_and_large_files_are_refused(tmp_path):
    path = tmp_path / "story"
    for data in (b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff" * 1000, b"", hashlib.sha256().digest()):
        path.write_bytes(data)
        with pytest.raises(StoryError):
            storyfile.load(path)


# The command


def test_the_command_tells_the_last_story_and_copies_it(device, tmp_path):
    settings = config.load(device.path)
    settings.device.state.mkdir(exist_ok=True)
    assert "no agent has run" in run(device, code=1)
    stage = told()
    for _ in range(2 * LENGTH_MAX):
        stage.handle(Tick())
    stage.story.save(settings.device.state / "story", "SIGTERM")
    copy = tmp_path / "copy.bin"
    said = run(device, "--out", copy).splitlines()
    record = stage.story.record("SIGTERM")
    assert said[0] == (
        f"dev-1 of fleet-1, edge-agent: the last 1000 events of {1000 + record.forgotten_count}; its end: SIGTERM"
    )
    read_only = len(record.entries) - len(record.replayable)
    assert said[1 + read_only] == (
        f"(the {read_only} events above can only be read; firmware-sim replay begins here)"
    )  # fmt: skip
    assert said[-1] == "       1.000 s  tick"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert storyfile.load(copy) == record
    tree = json.loads(run(device, "--json"))
    assert tree["replayable_count"] == len(record.replayable)
    assert tree["events"][-1] == {"at_ms": 1000, "event": "tick", "effects": []}
    (settings.device.state / "story").write_bytes(b"{}")
    assert "is no story" in run(device, code=1)


def test_nobody_is_asked_by_a_number_that_is_none(device, monkeypatch):
    root = config.load(device.path).device.state
    root.mkdir(exist_ok=True)
    asked = []
    monkeypatch.setattr("edge_agent.status.is_running", lambda _root: True)
    monkeypatch.setattr(os, "kill", lambda *arguments: asked.append(arguments))
    for text in ("", "0", "1", "-5", "1 2", "²"):
        (root / "lock").write_text(text)
        assert "is starting: ask again in a moment" in run(device, code=1)
    assert asked == []
    monkeypatch.setattr(story, "PATIENCE_S", 0.1)
    (root / "lock").write_text("4242")
    assert "leaves no story within" in run(device, code=1)
    assert [pid for pid, _ in asked] == [4242]
