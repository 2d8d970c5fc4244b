"""An agent that watches: real files, a real MQTT server, real children; predictions go on whatever else happens."""

from __future__ import annotations

import functools
import itertools
import json
import os
import queue
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec
import numpy as np
import pytest

from edge_agent import config, samples, slots
from edge_agent.disk import Directory
from edge_agent.sources import files
from engine import frozen
from engine.codec import patch as patches
from engine.models import tflite
from tests.real.scripted_coordinator import (
    FRAME,
    HOLDING,
    PARAMS,
    PATIENCE_S,
    QUICK,
    SIZE,
    AgentProcess,
    Coordinator,
    is_alive,
    moved,
    write_digits,
)
from wire import chunks, keys
from wire.link import Arrived, Link
from wire.messages import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.real
_fleets = itertools.count(1)
PREDICTING_PSS_MB_MAX = 75  # of all processes of the agent while it predicts
DIRECTORY = 'kind = "directory"\npath = "in"\nwindow = [8, 8, 1]\nevery_ms = 50\n'


class Owner:
    """Whoever reads predictions and gives labels, over an MQTT client of its own."""

    def __init__(self, url: str, device_id: str) -> None:
        self._device_id = device_id
        self._heard: queue.SimpleQueue = queue.SimpleQueue()
        filters = [f"hedgerow/{device_id}/prediction"]
        name = f"owner-{device_id}"
        self.link = Link(url, name, filters=filters, will=None, post=self._heard.put, jitter=random.Random(1))

    def __enter__(self) -> Self:
        self.link.start()
        self._heard.get(timeout=PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.link.stop()

    def next(self, seconds: float = PATIENCE_S) -> dict:
        while not isinstance(event := self._heard.get(timeout=seconds), Arrived):
            pass
        return json.loads(event.payload)

    def wait_for(self, holds: Callable[[dict], bool], seconds: float = PATIENCE_S) -> dict:
        until = time.monotonic() + seconds
        while not holds(found := self.next(max(0.01, until - time.monotonic()))):
            pass
        return found

    def label(self, window: int, label: int) -> None:
        payload = json.dumps({"window": window, "label": label}).encode()
        self.link.publish(f"hedgerow/{self._device_id}/label", payload)


class Farm(NamedTuple):
    """One device on disk, its coordinator and its owner."""

    path: Path
    settings: config.Config
    coordinator: Coordinator
    owner: Owner
    windows: np.ndarray

    def put(self, name: str, windows: np.ndarray) -> None:
        aside = self.path.parent / "aside.npy"
        np.save(aside, windows)
        aside.rename(self.settings.source.path / name)


def farm_of(url: str, root: Path, source: str, examples: int = 120) -> Farm:
    number = next(_fleets)
    fleet, seed, device = f"watching-{number}-{time.monotonic_ns()}", keys.generate(), f"pi-{number}"
    made = config.make(root, device, fleet, url, keys.public_text(seed))
    made.path.write_text(made.path.read_text() + "\n[source]\n" + source)
    (root / "in").mkdir()
    settings = config.load(made.path)
    digits = write_digits(root / "digits.npz", 120)
    if examples:
        files.add_npz(digits, settings.samples_path, 2000)
    coordinator = Coordinator(url, fleet, seed, device, made.public_key)
    with np.load(digits) as arrays:
        return Farm(made.path, settings, coordinator, Owner(url, device), arrays["x"])


@pytest.fixture
def make(mqtt_server, tmp_path):
    return functools.partial(farm_of, mqtt_server.url, tmp_path)


def pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def watcher(agent: AgentProcess) -> int:
    """The newest child that watches."""
    return int([line for line in agent.lines if line.startswith("event=watching ")][-1].rpartition("pid=")[2])


def expected(params: bytes, windows: np.ndarray) -> list[int]:
    whole = FRAME.file_with(params)
    return frozen.predict(whole, tflite.read(whole), windows).tolist()


def live_through_round(coordinator: Coordinator, round_id: int, version: int = 1) -> None:
    coordinator.offer(round_id, QUICK, version)
    _, sealed = coordinator.wait_for("update", round_id=round_id)
    coordinator.receipt(sealed, round_id)


def test_windows_are_predicted_by_each_version_as_it_comes_into_use_and_the_agent_stays_small(make):
    farm = make(DIRECTORY)
    with farm.coordinator as coordinator, farm.owner as owner, AgentProcess(farm.path) as agent:
        coordinator.announce(QUICK)
        coordinator.wait_for("birth")
        farm.put("a.npy", farm.windows[:3])
        assert [owner.next()["label"] for _ in range(3)] == [None] * 3  # useful before it learns: windows wait
        live_through_round(coordinator, 1)
        agent.wait_for("event=receipt round=1")
        farm.put("b.npy", farm.windows)
        found = [owner.next() for _ in farm.windows]
        assert [prediction["label"] for prediction in found] == expected(PARAMS, farm.windows)
        assert {prediction["version"] for prediction in found} == {1}
        assert [prediction["window"] for prediction in found] == list(range(4, 124))
        pss = [pss_mb(pid) for pid in (agent.pid, watcher(agent))]
        assert sum(pss) <= PREDICTING_PSS_MB_MAX, pss
        loaded = Path(f"/proc/{agent.pid}/maps").read_text()
        assert not [name for name in ("numpy", "numba", "tflite", "litert", "openblas") if name in loaded]
        better = moved(range(0, FRAME.suffix.num_params, 1000), 1)
        coordinator.publish(QUICK, 2, better, patches.make(FRAME, PARAMS, better))
        live_through_round(coordinator, 2, 2)
        agent.wait_for("event=receipt round=2")
        assert slots.load(Directory(farm.settings.device.state)).now.version == 2
        time.sleep(1.0)  # it looks once a second
        farm.put("c.npy", farm.windows)
        found = [owner.next() for _ in farm.windows]
        assert [prediction["label"] for prediction in found] == expected(better, farm.windows)
        assert {prediction["version"] for prediction in found} == {2}


def test_it_predicts_from_its_first_minute_without_a_label_a_plan_or_a_round(make):
    farm = make(DIRECTORY, examples=0)
    with farm.coordinator as coordinator, farm.owner as owner, AgentProcess(farm.path) as agent:
        coordinator.files["model.tflite"] = HOLDING  # the base of a later version, with version 1 in it
        coordinator.described["model.tflite"] = chunks.split("model.tflite", HOLDING, 16_384)
        coordinator.wait_for("birth")
        described = tuple(coordinator.described.values())
        coordinator.share("manifest", Manifest("digits", 3, 2, SIZE, described, base_version=1))
        agent.wait_for(r'event=probation version=1 tries_left=2 reason="it has come into use"')
        farm.put("one.npy", farm.windows[:40])
        told = [owner.wait_for(lambda found: found["version"] == 1) for _ in range(40)]
        assert [found["label"] for found in told] == expected(PARAMS, farm.windows[:40])
        assert {want.digest for want in coordinator.wants} == {described[0].digest}  # the parameters come with a round
        assert coordinator.updates == []


def test_training_does_not_hold_up_predictions(make):
    """Fifty windows a second: hardly one silence is longer while a child trains than before it did."""
    farm = make('kind = "replay"\npath = "stream.npy"\nwindow = [8, 8, 1]\nevery_ms = 20\nkeep_every = 1000\n')
    np.save(farm.settings.source.path, np.tile(farm.windows, (40, 1, 1, 1)))
    hard = msgspec.structs.replace(QUICK, epochs=200, batch_size=4)
    with farm.coordinator as coordinator, farm.owner as owner, AgentProcess(farm.path) as agent:
        coordinator.announce(hard)
        coordinator.wait_for("birth")
        calm = [owner.next()["unix_ms"] for _ in range(100)]
        coordinator.offer(1, hard)
        agent.wait_for("event=handled .*StartTraining")
        times = []
        while not any(line.startswith("event=trainer ") for line in agent.lines):
            times.append(owner.next()["unix_ms"])
        (trained,) = [line for line in agent.lines if line.startswith("event=trainer ")]
        assert "ok=1" in trained
    before, gaps = np.diff(calm), np.diff(times)
    assert len(times) > 50  # it was busy for more than a second
    assert np.median(gaps) <= 1.5 * np.median(before)
    assert np.percentile(gaps, 97) <= max(100, 3 * before.max()), sorted(gaps)[-20:]


def test_a_killed_watcher_comes_back_and_reads_no_file_twice(make):
    farm = make(DIRECTORY)
    with farm.owner as owner, AgentProcess(farm.path) as agent:
        farm.put("a.npy", farm.windows[:2])
        assert [owner.next()["window"] for _ in range(2)] == [1, 2]
        first = watcher(agent)
        os.kill(first, signal.SIGKILL)
        agent.wait_for(r'event=watching-rests pause_s=1.000 reason="the child was ended by SIGKILL')
        farm.put("b.npy", farm.windows[:1])
        assert owner.next()["window"] == 3
        assert watcher(agent) != first
        agent.terminate()
        assert agent.wait() == 0
        assert not is_alive(watcher(agent))
    with Owner(farm.settings.mqtt.url, farm.settings.device.id) as owner, AgentProcess(farm.path):
        farm.put("c.npy", farm.windows[:1])
        assert owner.next()["window"] == 4


def test_it_dies_with_an_agent_that_is_killed(make):
    farm = make(DIRECTORY)
    with farm.owner as owner, AgentProcess(farm.path) as agent:
        farm.put("a.npy", farm.windows[:1])
        owner.next()
        pid = watcher(agent)
        assert is_alive(pid)
        agent.kill()
        until = time.monotonic() + 2.0
        while is_alive(pid) and time.monotonic() < until:
            time.sleep(0.02)
        assert not is_alive(pid)


def test_numbers_on_a_topic_become_windows_and_labels_for_them_train(make):
    farm = make(f'kind = "mqtt"\ntopic = "farm/{os.getpid()}/vibration"\nwindow = [8, 8, 1]\n', examples=0)
    topic = farm.settings.source.topic
    with farm.coordinator as coordinator, farm.owner as owner, AgentProcess(farm.path) as agent:
        coordinator.announce(QUICK)
        assert coordinator.wait_for("birth")[0].num_examples == 0
        numbers = []
        for window in farm.windows[:20]:
            owner.link.publish(topic, b"rubbish")
            owner.link.publish(topic, json.dumps(window.reshape(8, 8).tolist()).encode())
            numbers.append(owner.next()["window"])
        assert numbers == list(range(1, 21))
        for number in numbers:
            owner.label(number, number % 10)
        store, until = farm.settings.samples_path, time.monotonic() + PATIENCE_S
        while not store.exists() or samples.Samples(store).count_labelled() < 20:
            assert time.monotonic() < until
            time.sleep(0.05)
        arrays = samples.read_arrays(store)
        assert np.array_equal(arrays.windows, farm.windows[:20])
        assert arrays.labels.tolist() == [number % 10 for number in numbers]
        live_through_round(coordinator, 1)
        agent.wait_for("event=learned round=1 examples=1")
        owner.link.publish(topic, farm.windows[0].astype("<f4").tobytes())  # raw is not what this device was told
        owner.link.publish(topic, json.dumps(farm.windows[0].reshape(-1).tolist()).encode())
        owner.wait_for(lambda prediction: prediction["version"] == 1)


def test_a_source_that_cannot_be_opened_is_told_and_the_agent_goes_on(make):
    farm = make('kind = "serial"\npath = "in/no-cable"\nwindow = [8, 8, 1]\n')
    with farm.coordinator as coordinator, AgentProcess(farm.path) as agent:
        coordinator.announce(QUICK)
        coordinator.wait_for("birth")
        agent.wait_for(r'event=watching-rests pause_s=2.000 reason="cannot use .*/in/no-cable: No such file')
        live_through_round(coordinator, 1)
        agent.wait_for("event=receipt round=1")
