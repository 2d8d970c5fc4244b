"""The broker as its operator runs it: real processes, a real MQTT server, and a device that is only its words.

The device in here is scripted: it says exactly what a test wants said, forged and repeated messages included.
"""

from __future__ import annotations

import os
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest

from broker.config import load
from broker.store import Store
from engine.codec import patch as patches
from engine.codec import payload as payloads
from engine.codec import residual
from engine.codec.update import Update as Numbered
from engine.codec.update import dense
from engine.frame import frame_of
from engine.models.scheme import dump_params, params_of, resolve
from engine.models.tflite import read
from wire import chunks, envelope, keys, limits, topics
from wire.link import Arrived, Link, LinkEvent, LinkUp
from wire.messages import (
    Birth,
    Chunk,
    Manifest,
    Message,
    Offer,
    Patch,
    Plan,
    Range,
    Receipt,
    State,
    Update,
    Want,
    digest_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.mqtt_server import Server

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "firmware_sim/models/digits.tflite"
BROKER = [sys.executable, "-c", "from broker.cli.main import main; main()"]
PATIENCE_S = 60.0

Heard = TypeVar("Heard", bound=Message)


def broker(*arguments: str) -> str:
    """Run a command to its end; return what it printed."""
    done = subprocess.run([*BROKER, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Serving:
    """A running `broker serve` and its log."""

    def __init__(self, directory: Path, *more: str) -> None:
        self.process = subprocess.Popen(
            [*BROKER, "serve", "--config", str(directory), *more],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._fresh: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._fresh.put(line.rstrip("\n"))

    def line(self, event: str) -> dict[str, str]:
        """Wait for the next line of `event`; return its fields."""
        until = time.monotonic() + PATIENCE_S
        while (left := until - time.monotonic()) > 0:
            try:
                self.lines.append(self._fresh.get(timeout=left))
            except queue.Empty:
                break
            if self.lines[-1].startswith(f"event={event} "):
                return dict(field.split("=", 1) for field in self.lines[-1].split(" ") if "=" in field)
        raise AssertionError(f"no event={event}; the log was: {self.lines}")

    def rest(self) -> list[str]:
        """What a run that has ended said besides what was waited for."""
        self._reader.join(PATIENCE_S)
        return [self._fresh.get() for _ in range(self._fresh.qsize())]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Device:
    """A scripted device: seals what it is told to, remembers what it hears."""

    def __init__(self, url: str, fleet: str, device_id: str, coordinator_key: str) -> None:
        self.seed = keys.generate()
        self.fleet, self.id = fleet, device_id
        self._verify = keys.verifier(coordinator_key)
        self._inbox: queue.Queue[LinkEvent] = queue.Queue()
        self._early: list[Message] = []
        filters = topics.device_filters(fleet, device_id)
        self._link = Link(
            url, f"{fleet}-{device_id}", filters=filters, will=None, post=self._inbox.put, jitter=random.Random(1)
        )
        self._link.start()
        assert isinstance(self._inbox.get(timeout=PATIENCE_S), LinkUp)

    def seal(self, message: Message, seed: bytes | None = None) -> bytes:
        return envelope.seal(message, self._topic(message), keys.signer(seed or self.seed))

    def _topic(self, message: Message) -> str:
        return topics.up(self.fleet, self.id, type(message).__name__.lower())

    def say(self, message: Message) -> bytes:
        payload = self.seal(message)
        self.send(message, payload)
        return payload

    def send(self, message: Message, payload: bytes) -> None:
        self._link.publish(self._topic(message), payload)

    def hear(self, kind: type[Heard], **fields: object) -> Heard:
        """Wait for a message of this kind whose fields are these; keep the others for later."""
        until = time.monotonic() + PATIENCE_S
        pending, self._early = self._early, []
        while time.monotonic() < until:
            if pending:
                message = pending.pop(0)
            else:
                try:
                    event = self._inbox.get(timeout=max(0.01, until - time.monotonic()))
                except queue.Empty:
                    break
                if not isinstance(event, Arrived):
                    continue
                message = envelope.unseal(event.payload, event.topic, self._verify)
            if isinstance(message, kind) and all(getattr(message, name) == value for name, value in fields.items()):
                self._early += pending
                return message
            self._early.append(message)
        raise AssertionError(f"no {kind.__name__} with {fields}; heard {self._early}")

    def ask(self, update: Update, payload: bytes | None = None) -> Receipt:
        """Send an update (or these bytes in its place) and wait for the receipt of exactly those bytes."""
        payload = payload or self.seal(update)
        self.send(update, payload)
        return self.hear(Receipt, digest=digest_of(payload))

    def stop(self) -> None:
        self._link.stop()


def birth(connection: int = 1) -> Birth:
    return Birth(1, connection, 0, 0, 40, "scripted")


def payload_for(plan: Plan, seed: int) -> bytes:
    """What a device sends that trained: mostly single steps."""
    chance = np.random.default_rng(seed)
    delta = np.rint(chance.standard_t(3, plan.num_params)).astype(np.int32)
    frame = frame_of(MODEL.read_bytes(), plan.train)
    sending = residual.Sending(plan.keep_count, plan.value_bits, plan.coding, plan.clip_norm)
    return residual.step(delta, residual.nothing_owed(frame), frame, sending, 1).payload


@pytest.fixture
def home(tmp_path: Path, mqtt_server: Server) -> Path:
    directory = tmp_path / "farm"
    fleet = f"farm-{os.urandom(4).hex()}"
    broker(
        "init", str(directory), "--model", str(MODEL), "--reset-seed", "7", "--fleet", fleet, "--mqtt", mqtt_server.url
    )
    return directory


@pytest.fixture
def serving(home: Path) -> Iterator[list[Serving]]:
    """The runs of `broker serve` in `home`, the newest last; a test may append."""
    running = [Serving(home)]
    yield running
    for one in running:
        one.kill()


@pytest.fixture
def device(home: Path, mqtt_server: Server) -> Iterator[Device]:
    config = load(home / "broker.toml")
    key = keys.public_text(keys.load_seed(home / "coordinator.key"))
    one = Device(mqtt_server.url, config.fleet.id, "cabin", key)
    yield one
    one.stop()


def enrol(home: Path, device: Device) -> None:
    broker("fleet", "add", device.id, keys.public_text(device.seed), "--config", str(home))


def fetch(device: Device, manifest: Manifest) -> dict[str, bytes]:
    contents = {}
    for file in manifest.files:
        parts: dict[int, bytes] = {}
        while wanted := chunks.missing_ranges(file, parts):
            device.say(Want(file.digest, wanted))
            for index in [r.first + i for r in wanted for i in range(r.count)]:
                chunk = device.hear(Chunk, digest=file.digest, index=index)
                assert chunks.accepts(file, chunk)
                parts[index] = chunk.data
        contents[file.name] = b"".join(parts[index] for index in range(len(file.chunk_digests)))
        assert digest_of(contents[file.name]) == file.digest
    return contents


def test_a_round_from_birth_to_the_next_version(home: Path, serving: list[Serving], device: Device) -> None:
    """The whole path of one update, and every answer that a wrong one gets."""
    serving[0].line("ready")
    unknown = device.say(birth())
    assert device.hear(Receipt, digest=digest_of(unknown)).verdict == "unknown"
    enrol(home, device)
    assert device.hear(Receipt, digest=digest_of(unknown)).verdict == "accepted"
    assert device.hear(State, epoch=1).model_version == 1
    broker("round", "open", "--config", str(home), "--lasts", "10m")
    plan = device.hear(Plan)
    offer = device.hear(Offer)
    manifest = device.hear(Manifest, model_version=1)
    assert (offer.round_id, offer.base_version) == (1, 1)
    files = fetch(device, manifest)
    assert_base_is_whole(manifest, files, plan)

    payload = payload_for(plan, 3)
    good = Update(1, 1, 40, 3, 10, payload)
    forged = device.seal(good, keys.generate())
    assert device.ask(good, forged).verdict == "refused"
    wrong = {
        "never opened": Update(2, 1, 40, 0, 0, payload),
        "trains version 1": Update(1, 2, 40, 0, 0, payload),
        "format": Update(1, 1, 40, 0, 0, b"\xff" + payload[1:]),
        "The update": Update(1, 1, 40, 0, 0, payload[:30]),
        "does not end|too many": Update(1, 1, 40, 0, 0, payload + b"\0"),
        "plan allows": Update(1, 1, 40, 0, 0, payload_of_many(plan)),
    }
    for sentence, update in wrong.items():
        receipt = device.ask(update)
        assert (receipt.verdict, bool(re.search(sentence, receipt.reason))) == ("refused", True), receipt
    oversize = b"\xd2\x84" + bytes(limits.PAYLOAD_BYTES_MAX - 2)
    assert device.ask(good, oversize).verdict == "refused"

    sealed = device.seal(good)
    assert device.ask(good, sealed).verdict == "accepted"
    assert device.ask(good, sealed).verdict == "duplicate"
    other = Update(1, 1, 40, 3, 10, payload_for(plan, 4))
    assert "stored already" in device.ask(other).reason

    closed = serving[0].line("round-closed")
    assert (closed["round"], closed["version"], closed["members"], closed["accuracy"]) == ("1", "2", "1", "none")
    assert int(closed["bytes_up"]) > len(sealed)
    accepted = [line for line in serving[0].lines if line.startswith("event=accepted ")]
    assert accepted == [f"event=accepted device=cabin round=1 digest={digest_of(sealed).hex()} pending=1"]
    newest = device.hear(Manifest, model_version=2)
    after = fetch(device, newest)
    assert after["model.tflite"] == files["model.tflite"]
    expected = expected_params(files["params.bin"], payload, plan)
    assert after["params.bin"] == expected != files["params.bin"]
    assert_patched(device, newest, files["params.bin"], expected)
    export = home / "two.tflite"
    broker("model", "export", "2", "--out", str(export), "--config", str(home))
    graph = read(export.read_bytes())
    suffix = resolve(graph, plan.train)
    assert dump_params(suffix, params_of(graph, suffix)) == expected

    serving[0].process.send_signal(signal.SIGTERM)
    assert serving[0].process.wait(PATIENCE_S) == 0
    assert device.hear(State, online=False).epoch == 1


def assert_base_is_whole(manifest: Manifest, files: dict[str, bytes], plan: Plan) -> None:
    """The base file holds version 1 itself, and is otherwise the operator's."""
    assert files["model.tflite"] == frame_of(MODEL.read_bytes(), plan.train).file_with(files["params.bin"])


def assert_patched(device: Device, newest: Manifest, before: bytes, after: bytes) -> None:
    """Who says that it has version 1 is sent what makes the newest one of it, and not that itself."""
    file = next(file for file in newest.files if file.name == "params.bin")
    device.say(Want(file.digest, (Range(0, 1),), base_version=1))
    patch = device.hear(Patch, digest=file.digest, base_version=1, base_digest=digest_of(before))
    assert patches.apply(frame_of(MODEL.read_bytes(), "last-2"), before, patch.payload) == after
    assert len(patch.payload) < len(after) / 20


def expected_params(before: bytes, payload: bytes, plan: Plan) -> bytes:
    """base + what one device sent, worked out on its own: int8 weights and int32 biases, layer by layer."""
    frame = frame_of(MODEL.read_bytes(), plan.train)
    read = payloads.decode(payload, frame.shapes, lane="int8", k_max=plan.keep_count, coding=plan.coding)
    moved = dense(read) * frame.unit
    after, at = b"", 0
    for layer in frame.suffix.layers:
        weights = np.frombuffer(before, np.int8, layer.num_weights, len(after)).astype(np.int64)
        biases = np.frombuffer(before, "<i4", layer.num_bias, len(after) + layer.num_weights)
        middle = at + layer.num_weights
        after += np.clip(weights + moved[at:middle], -127, 127).astype(np.int8).tobytes()
        after += (biases + moved[middle : middle + layer.num_bias]).astype("<i4").tobytes()
        at = middle + layer.num_bias
    return after


def payload_of_many(plan: Plan) -> bytes:
    count = plan.keep_count + 1
    update = Numbered("int8", plan.num_params, np.arange(count, dtype=np.uint32), np.ones(count, np.int32))
    shapes = frame_of(MODEL.read_bytes(), plan.train).shapes
    return payloads.encode(update, shapes, value_bits=0, coding=plan.coding).payload


def test_what_was_receipted_is_counted_once_though_the_coordinator_is_killed(
    home: Path, serving: list[Serving], device: Device, mqtt_server: Server
) -> None:
    enrol(home, device)
    serving[0].line("ready")
    device.say(birth())
    broker("round", "open", "--config", str(home), "--min-devices", "2")
    plan = device.hear(Plan)
    device.hear(Offer)
    update = Update(1, 1, 40, 3, 10, payload_for(plan, 3))
    sealed = device.seal(update)
    assert device.ask(update, sealed).verdict == "accepted"
    serving[0].kill()

    serving.append(Serving(home))
    assert serving[1].line("ready")["epoch"] == "2"
    device.hear(State, epoch=2)
    device.say(birth())
    assert device.ask(update, sealed).verdict == "duplicate"
    serving[1].kill()
    serving.append(Serving(home))
    serving[2].line("ready")

    config = load(home / "broker.toml")
    key = keys.public_text(keys.load_seed(home / "coordinator.key"))
    second = Device(mqtt_server.url, config.fleet.id, "dune", key)
    try:
        enrol(home, second)
        time.sleep(1.0)
        second.say(birth())
        second.hear(Offer, round_id=1)
        other = Update(1, 1, 40, 0, 0, payload_for(plan, 4))
        assert second.ask(other).verdict == "accepted"
        assert serving[2].line("round-closed")["members"] == "2"
    finally:
        second.stop()
    with Store(home / "broker.db", read_only=True) as store:
        assert [(u.device_id, u.counted_in) for u in store.updates()] == [("cabin", 2), ("dune", 2)]
        assert [v.members for v in store.versions()] == [0, 2]


def test_the_files_of_the_manifest_are_at_the_address_that_it_names(home: Path, device: Device) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = home / "broker.toml"
    said = (
        config.read_text()
        .replace('url = ""', f'url = "http://127.0.0.1:{port}"')
        .replace("port = 0 ", f"port = {port} ")
    )
    config.write_text(said)
    running = Serving(home)
    try:
        enrol(home, device)
        assert running.line("http-server")["port"] == str(port)
        running.line("ready")
        manifest = device.hear(Manifest, model_version=1)
        contents = fetch(device, manifest)
        for file in manifest.files:
            asked = urllib.request.Request(f"{manifest.url}/{file.digest.hex()}", headers={"Range": "bytes=7-99"})
            with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
                assert (answer.status, answer.read()) == (206, contents[file.name][7:100])
    finally:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE_S) == 0


def test_the_coordinator_brings_its_own_mqtt_server_if_asked(home: Path) -> None:
    running = Serving(home, "--mqtt", "embedded")
    try:
        url = running.line("mqtt-server")["url"]
        assert url.startswith("mqtt://127.0.0.1:")
        running.line("ready")
    finally:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE_S) == 0


def test_monitors_read_the_fleet_and_hear_whether_it_is_served(home: Path, mqtt_server: Server) -> None:
    broker("fleet", "add", "cabin", keys.public_text(keys.generate()), "--config", str(home))
    broker("round", "open", "--count", "3", "--config", str(home))
    with (home / "broker.toml").open("a") as file:
        file.write(f"\n[metrics]\nport = {free_port()}\n")
    running = Serving(home)
    try:
        url = f"http://127.0.0.1:{running.line('health-server')['port']}"
        running.line("ready")
        running.line("round-open")
        page = read_page(f"{url}/metrics").splitlines()
        for line in ("link_up 1.0", "devices_enrolled 1.0", "devices_present 0.0", "rounds_waiting 2.0"):
            assert f"hedgerow_{line}" in page
        for line in ("model_version 1.0", "updates_pending 0.0", "epochs_total 1.0", "field_version 0.0"):
            assert f"hedgerow_{line}" in page
        assert read_page(f"{url}/readyz") == read_page(f"{url}/healthz") == "ok\n"
    finally:
        running.kill()


def read_page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        return answer.read().decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
