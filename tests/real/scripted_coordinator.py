"""A coordinator that does what a test says and nothing else, over a real MQTT server; and an agent's real process."""

from __future__ import annotations

import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import numpy as np

from engine import master
from engine.frame import frame_of
from engine.models.scheme import dump_params, load_params, reset_params
from engine.program import memory_of
from firmware_sim.models.split import digits_split
from wire import chunks, envelope, keys, topics
from wire.limits import WANT_CHUNKS_MAX
from wire.link import Arrived, Link
from wire.messages import File, Manifest, Offer, Patch, Plan, Receipt, State, Update, Want, digest_of, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MODEL = (Path(__file__).parents[2] / "firmware_sim/models/digits.tflite").read_bytes()
FRAME = frame_of(MODEL, "last-2")
SIZE = FRAME.suffix.num_params
PARAMS = master.first(FRAME, reset_params(FRAME.graph, FRAME.suffix, 1)).published
HOLDING = FRAME.file_with(PARAMS)  # the base file with the params of version 1 in it, as a coordinator publishes it
PATIENCE_S = 150.0

QUICK = Plan(
    model="digits",
    train="last-2",
    lane="economy",
    num_params=SIZE,
    epochs=2,
    batch_size=16,
    learning_rate=0.05,
    momentum=0.9,
    clip_norm=10.0,
    keep_count=SIZE // 100,
    value_bits=0,
    seed=7,
    num_examples_min=1,
    num_examples_max=4096,
    trainer_memory_bytes_max=256 << 20,
    trainer_ms_max=120_000,
    trainer_arena_bytes=memory_of(FRAME.graph, FRAME.suffix, 16, 0.9),
)
ENDLESS = msgspec.structs.replace(QUICK, epochs=1000, batch_size=1)


def write_digits(path: Path, count: int = 120) -> Path:
    from sklearn.datasets import load_digits

    digits, rows = load_digits(), digits_split()["fleet"][:count]
    np.savez(path, x=(digits.images[rows] / 16.0).astype(np.float32)[..., None], y=digits.target[rows])
    return path


def moved(places: Iterable[int], units: int) -> bytes:
    """The params of another version, in which those at `places` moved by so many units, as far as they can."""
    params, at = load_params(FRAME.suffix, PARAMS).astype(np.int64), list(places)
    params[at] += units * FRAME.unit[at]
    return dump_params(FRAME.suffix, np.clip(params, -FRAME.limit, FRAME.limit).astype(np.int32))


class Coordinator:
    """Serves wants by itself; offers and receipts come from the test. Its life is the `with` block."""

    def __init__(self, url: str, fleet: str, seed: bytes, device_id: str, device_key: str) -> None:
        self.fleet, self.device_id = fleet, device_id
        self._sign, self._verify = keys.signer(seed), keys.verifier(device_key)
        self._heard: queue.SimpleQueue = queue.SimpleQueue()
        self.wants: list[Want] = []
        self.updates: list[bytes] = []
        self.files = {"model.tflite": MODEL, "params.bin": PARAMS}
        self.described = {name: chunks.split(name, data, 16_384) for name, data in self.files.items()}
        self.patches: dict[tuple[bytes, int], Patch] = {}  # (digest of what it makes, base version) → it
        self.url = ""
        filters = topics.coordinator_filters(fleet)
        self._link = Link(url, f"{fleet}-c", filters=filters, will=None, post=self._post, jitter=random.Random(1))

    def __enter__(self) -> Self:
        self._link.start()
        self.wait_for("up")
        return self

    def __exit__(self, *_: object) -> None:
        self._link.stop()

    def send(self, kind: str, message: object) -> None:
        topic = topics.dn(self.fleet, self.device_id, kind)
        self._link.publish(topic, envelope.seal(message, topic, self._sign))

    def share(self, kind: str, message: object) -> None:
        topic = topics.shared(self.fleet, kind)
        self._link.publish(topic, envelope.seal(message, topic, self._sign), retain=True)

    def announce(self, plan: Plan, version: int = 1) -> None:
        self.share("state", State(1, online=True, round_id=0, model_version=version))
        self.share("plan", plan)
        files = tuple(self.described.values())
        self.share("manifest", Manifest("digits", version, version - 1, SIZE, files, url=self.url))

    def publish(self, plan: Plan, version: int, params: bytes, patch: bytes) -> File:
        """Announce a version that `patch` leads to from the one before; returns its params.bin."""
        before, file = self.described["params.bin"], chunks.split("params.bin", params, 16_384)
        self.files["params.bin"], self.described["params.bin"] = params, file
        self.patches[file.digest, version - 1] = Patch(file.digest, version - 1, before.digest, patch)
        self.announce(plan, version)
        return file

    def offer(self, round_id: int, plan: Plan, version: int = 1) -> None:
        self.send("offer", Offer(round_id, digest_of(encode(plan)), version, lasts_ms=600_000))

    def receipt(self, sealed: bytes, round_id: int, verdict: str = "accepted") -> None:
        self.send("receipt", Receipt(digest_of(sealed), round_id, verdict))

    def wait_for(self, kind: str, seconds: float = PATIENCE_S, **fields: object):
        """The next (message, sealed bytes) of this kind, with these fields; others are passed over."""
        until = time.monotonic() + seconds
        while True:
            heard, message, sealed = self._heard.get(timeout=max(0.0, until - time.monotonic()))
            if heard == kind and all(getattr(message, name) == value for name, value in fields.items()):
                return message, sealed

    def _post(self, event: object) -> None:
        if not isinstance(event, Arrived):
            self._heard.put(("up", None, b""))
            return
        message = envelope.unseal(event.payload, event.topic, self._verify)
        if isinstance(message, Want):
            self.wants.append(message)
            assert sum(r.count for r in message.ranges) <= WANT_CHUNKS_MAX
            self._serve(message)
        if isinstance(message, Update):
            self.updates.append(event.payload)
        self._heard.put((topics.parse(event.topic).kind, message, event.payload))

    def _serve(self, want: Want) -> None:
        if patch := self.patches.get((want.digest, want.base_version)):
            self.send("patch", patch)
            return
        for name, file in self.described.items():
            for span in want.ranges if file.digest == want.digest else ():
                for index in range(span.first, span.first + span.count):
                    self.send("chunk", chunks.chunk_at(self.files[name], file, index))


class AgentProcess:
    """`edge-agent run` as a process of its own, and every line of its log."""

    def __init__(self, config: Path, before: str = "", prefix: Sequence[str] = ()) -> None:
        code = f"{before}\nfrom edge_agent.cli import main; main()"
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", code, "run", "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, pattern: str, seconds: float = PATIENCE_S) -> re.Match[str]:
        """The first line, from the beginning of the log on, that matches `pattern` from its own beginning."""
        until = time.monotonic() + seconds
        seen = 0
        with self._came:
            while True:
                for line in self.lines[seen:]:
                    seen += 1
                    if match := re.match(pattern, line):
                        return match
                left = until - time.monotonic()
                assert left > 0, f"no line {pattern!r} in\n" + "\n".join(self.lines)
                self._came.wait(left)

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        code = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def _read(self) -> None:
        for line in self._process.stdout:
            with self._came:
                self.lines.append(line.rstrip("\n"))
                self._came.notify_all()
        with self._came:
            self._came.notify_all()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
