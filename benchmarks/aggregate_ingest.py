"""What one update costs the coordinator until its receipt is sent, beside a subscriber that only counts messages.

    python -m benchmarks.aggregate_ingest          one JSON object per row

A real mosquitto (max_queued_messages 0, so that it drops nothing silently), the product's own `broker serve` with its
SQLite store on disk, and as many enrolled devices as updates, each with a key of its own. Updates are of about 6 kB.
For each the coordinator reads CBOR, checks the Ed25519 signature, decodes the payload, stores it (synchronous = FULL,
in batches) and sends a signed receipt. The bare paho subscriber receives the same messages at the same time. Processor
seconds of either, threads and kernel included. Three rows:

    rice             Golomb-Rice coded, as the target asks
    two processes    the same; devices are split by the first byte of SHA-256 of their id. A fleet has one coordinator,
                     so each half is a fleet of its own: a `broker serve`, a store and topics, on one MQTT server
    context          context-coded

With each row of one process go its stages, by themselves and in this process: microseconds an update.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.environments import PEERS
from broker import mqtt_server
from broker.admission import gate
from broker.config import parse
from broker.cost import made_up
from broker.effects import RoundRow, StoreUpdate, UpdateRow
from broker.plans import plan_of
from broker.registry import first_version, model_of
from broker.store import Store
from engine.codec import payload
from engine.frame import frame_of
from wire import envelope, keys, messages, topics
from wire.messages import Receipt, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engine.frame import Frame
    from wire.messages import Plan

MODEL: Final = Path(__file__).parents[1] / "firmware_sim" / "models" / "digits.tflite"
WARM: Final = 500  # updates before the clock starts: the first one loads kernels
UPDATES: Final = 4_000
KEEP_RATE: Final = 0.24
TIMEOUT_S: Final = 180.0
IN_FLIGHT: Final = 400
PASSES: Final = 5
CALLS: Final = 500  # of a stage in a pass
BATCH: Final = 64  # updates that the service stores as one transaction
CASES: Final = (("rice", "rice", 1), ("two processes", "rice", 2), ("context", "context", 1))
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_CONFIG: Final = """
[fleet]
id = "{fleet}"
[mqtt]
url = "mqtt://127.0.0.1:{port}"
[model]
name = "digits"
train = "last-2"
[plan]
keep_rate = {keep_rate}
coding = "{coding}"
[round]
updates_min = 1000000
lasts_s = 86400
"""


class Fleet(NamedTuple):
    """One coordinator's fleet: its plan and frame, and the topic and sealed update of each device."""

    directory: Path
    plan: Plan
    frame: Frame
    sealed: list[tuple[str, bytes]]


def measure() -> Iterator[dict[str, Any]]:
    """The rows, the target's first; with a `reason` where it could not be measured."""
    for case, coding, processes in CASES:
        row: dict[str, Any] = {"shape": "ingest", "case": case, "updates": UPDATES}
        if mqtt_server.find_mosquitto() is None:
            yield {**row, "reason": "needs mosquitto: apt-get install mosquitto"}
            continue
        with tempfile.TemporaryDirectory() as place:
            server = mqtt_server.start(Path(place) / "mqtt", kind="mosquitto")
            try:
                fleets = list(_fleets(Path(place), server.port, coding, processes))
                row |= _run(fleets, server.port)
            finally:
                server.stop()
            if processes == 1:
                row["stages_us"] = _stages(fleets[0])
        yield row


def _fleets(directory: Path, port: int, coding: str, processes: int) -> Iterator[Fleet]:
    devices = [f"device-{at:05}" for at in range(WARM + UPDATES)]
    for shard in range(processes):
        place = directory / str(shard)
        place.mkdir()
        text = _CONFIG.format(fleet=f"bench-{shard}", port=port, keep_rate=KEEP_RATE, coding=coding)
        yield _founded(place, text, [one for one in devices if _shard(one, processes) == shard])


def _shard(device: str, processes: int) -> int:
    return hashlib.sha256(device.encode()).digest()[0] * processes >> 8


def _founded(place: Path, text: str, devices: list[str]) -> Fleet:
    """Found a fleet, enrol its devices, ask for a round."""
    (place / "broker.toml").write_text(text, "utf-8")
    keys.save_private(place / "coordinator.key", keys.generate())
    config = parse(text, place)
    first = first_version(MODEL.read_bytes(), "digits", "last-2", 1)
    frame = frame_of(model_of(first.manifest, first.blobs.__getitem__), "last-2")
    plan = plan_of(config, first.manifest, frame)
    seeds = {device: random.Random(device).randbytes(32) for device in devices}
    with Store(place / "broker.db") as store, store.transaction():
        store.put_first_version(*first)
        for device, seed in seeds.items():
            store.add_device(device, keys.public_text(seed))
        store.ask_for([RoundRow(0, plan, "waiting", 1_000_000, 0, 86_400_000)])
    update = Update(1, 1, 40, 3, 4, _payload(plan, frame))
    sealed = []
    for device, seed in seeds.items():
        topic = topics.up(config.fleet.id, device, "update")
        sealed.append((topic, envelope.seal(update, topic, keys.signer(seed))))
    return Fleet(place, plan, frame, sealed)


def _payload(plan: Plan, frame: Frame) -> bytes:
    """As large as that of a hundredth of 400,000 parameters: 4,300 values of 8 bits."""
    update = made_up(plan, frame, lean=0.0)
    units = np.random.default_rng(1).integers(1, 128, len(update.indices)) * np.sign(update.values)
    update = dataclasses.replace(update, values=units.astype(np.int32))
    return payload.encode(update, frame.shapes, value_bits=plan.value_bits, coding=plan.coding).payload


def _run(fleets: Sequence[Fleet], port: int) -> dict[str, Any]:
    sealed = _interleaved([fleet.sealed for fleet in fleets])
    uplink = "/".join(["+" if at in (2, 3, 4) else part for at, part in enumerate(sealed[0][0].split("/"))])
    receipts = uplink.replace("/up/update", "/dn/receipt")
    counted = [sys.executable, str(PEERS / "bare_subscriber.py"), "127.0.0.1", str(port), uplink, str(WARM)]
    with ExitStack() as stack:
        bare = _started(stack, [*counted, str(UPDATES)], "ready")
        ours = [_started(stack, _serve(fleet), "round-open") for fleet in fleets]
        for process in ours:
            threading.Thread(target=_drain, args=(process,), daemon=True).start()
        _publish(port, sealed[:WARM], receipts)
        before_s = sum(_cpu_s(process.pid) for process in ours)
        seconds = _publish(port, sealed[WARM:], receipts)
        ours_s = sum(_cpu_s(process.pid) for process in ours) - before_s
        assert bare.stdout is not None, "it was started with a pipe"
        bare_s = float(bare.stdout.readline())
    return {
        "update_bytes": len(sealed[0][1]),
        "bare_us": round(1e6 * bare_s / UPDATES, 1),
        "ours_us": round(1e6 * ours_s / UPDATES, 1),
        "updates_per_s": round(UPDATES / seconds),
        "bare_over_ours": round(bare_s / ours_s, 3),
    }


def _interleaved(parts: Sequence[list[tuple[str, bytes]]]) -> list[tuple[str, bytes]]:
    """One list of all, each part spread evenly over it."""
    placed = [((at + 0.5) / len(part), one) for part in parts for at, one in enumerate(part)]
    return [one for _, one in sorted(placed, key=lambda pair: pair[0])]


def _serve(fleet: Fleet) -> list[str]:
    broker = str(Path(sys.executable).with_name("broker"))
    return [broker, "serve", "--config", str(fleet.directory / "broker.toml")]


def _started(stack: ExitStack, command: list[str], word: str) -> subprocess.Popen[str]:
    """Run `command` until the stack is closed; return once it has said `word`."""
    process = stack.enter_context(
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    )
    stack.callback(_end, process)
    assert process.stdout is not None, "it was started with a pipe"
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        if word in line:
            return process
    raise RuntimeError(f"{command} ended before it said {word}: {''.join(said)[-500:]}")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()  # before its log is closed, which somebody may be reading


def _publish(port: int, sealed: list[tuple[str, bytes]], receipts: str) -> float:
    """Send them all, and wait for as many receipts. Gives the seconds."""
    heard, subscribed, done = [0], threading.Event(), threading.Event()
    client = Client(CallbackAPIVersion.VERSION2, client_id="devices")
    client.max_inflight_messages_set(IN_FLIGHT)

    def on_message(*_: Any) -> None:
        heard[0] += 1
        if heard[0] >= len(sealed):
            done.set()

    client.on_message = on_message
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_connect = lambda *_: client.subscribe(receipts, qos=1)
    client.connect("127.0.0.1", port)
    client.loop_start()
    if not subscribed.wait(TIMEOUT_S):
        raise TimeoutError("the MQTT server grants no subscription")
    began_s = time.monotonic()
    for topic, data in sealed:
        client.publish(topic, data, qos=1)
    if not done.wait(TIMEOUT_S):
        raise TimeoutError(f"{heard[0]} of {len(sealed)} receipts came in {TIMEOUT_S:.0f} s")
    seconds = time.monotonic() - began_s
    client.disconnect()
    client.loop_stop()
    return seconds


def _drain(process: subprocess.Popen[str]) -> None:
    """Read its log, so that it never waits for us."""
    assert process.stdout is not None, "it was started with a pipe"
    for _ in process.stdout:
        pass


def _cpu_s(pid: int) -> float:
    """User and system seconds of a process so far (proc(5), stat: fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _stages(fleet: Fleet) -> dict[str, float]:
    """Microseconds of each stage of one update. What is lacking to the whole: MQTT, the machine, log and metrics."""
    topic, sealed = fleet.sealed[0]
    seed = random.Random(topics.parse(topic).device_id).randbytes(32)
    sign, verify = keys.signer(seed), keys.verifier(keys.public_text(seed))
    opened = envelope.open_sealed(sealed, topic, verify)
    update, admit = opened.message, gate(lambda _: fleet.frame)
    assert isinstance(update, Update), "it was sealed as one"
    assert admit(update.payload, fleet.plan) is None, "it was made for this plan"
    signed: list[tuple[bytes, bytes]] = []
    envelope.open_sealed(sealed, topic, lambda *both: signed.append(both) or True)
    receipt = Receipt(messages.digest_of(sealed), update.round_id, "accepted")
    stages: dict[str, Callable[[], object]] = {
        "signature checked": lambda: verify(*signed[0]),
        "envelope and message": lambda: envelope.open_sealed(sealed, topic, lambda *_: True),
        "payload decoded": lambda: admit(update.payload, fleet.plan),
        "receipt signed": lambda: sign(signed[0][0][:120]),
        "receipt encoded": lambda: envelope.seal(receipt, topic, lambda _: bytes(64)),
    }
    found = {name: round(_micros(call), 1) for name, call in stages.items()}
    return {**found, "stored": round(_stored_micros(fleet.directory, update), 1)}


def _micros(call: Callable[[], object]) -> float:
    """The median of several passes, in microseconds of processor a call."""
    passes = []
    for _ in range(PASSES):
        began_ns = time.process_time_ns()
        for _ in range(CALLS):
            call()
        passes.append((time.process_time_ns() - began_ns) / CALLS / 1000)
    return statistics.median(passes)


def _stored_micros(directory: Path, update: Update) -> float:
    """The same of storing it, BATCH at once."""
    passes = []
    with Store(directory / "stages.db") as store:
        for number in range(1, PASSES + 1):
            rows = [UpdateRow(f"device-{at:05}", number, 1, 40, bytes(32), 3, 4, update.payload) for at in range(CALLS)]
            began_ns = time.process_time_ns()
            for at in range(0, CALLS, BATCH):
                store.apply_all([StoreUpdate(row) for row in rows[at : at + BATCH]])
            passes.append((time.process_time_ns() - began_ns) / CALLS / 1000)
    return statistics.median(passes)


if __name__ == "__main__":
    for found in measure():
        print(json.dumps(found), flush=True)
