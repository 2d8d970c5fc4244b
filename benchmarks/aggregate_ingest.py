"""What one update costs the coordinator until its receipt is sent, beside a subscriber that only counts messages.

    python -m benchmarks.aggregate_ingest          one JSON object

A real mosquitto (max_queued_messages 0, so that it drops nothing silently), the product's own `broker serve` with its
SQLite store on disk, and as many enrolled devices as updates, each with a key of its own. Updates are of about 6 kB,
Golomb-Rice coded. For each the coordinator reads CBOR, checks the Ed25519 signature, decodes the payload, stores it
(synchronous = FULL, in batches) and sends a signed receipt. The bare paho subscriber receives the same messages at the
same time. Processor seconds of either process, threads and kernel included.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.environments import PEERS
from broker import mqtt_server
from broker.config import parse
from broker.cost import made_up
from broker.plans import plan_of
from broker.registry import first_version, model_of
from broker.store import Store
from engine.codec import payload
from engine.frame import frame_of
from wire import envelope, keys, topics
from wire.messages import Update

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wire.messages import Plan

MODEL: Final = Path(__file__).parents[1] / "firmware_sim" / "models" / "digits.tflite"
WARM: Final = 500  # updates before the clock starts: the first one loads kernels
UPDATES: Final = 4_000
KEEP_RATE: Final = 0.24
FLEET: Final = "bench"
TIMEOUT_S: Final = 180.0
IN_FLIGHT: Final = 400
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_CONFIG: Final = """
[fleet]
id = "bench"
[mqtt]
url = "mqtt://127.0.0.1:{port}"
[model]
name = "digits"
train = "last-2"
[plan]
keep_rate = {keep_rate}
coding = "rice"
[round]
updates_min = 1000000
lasts_s = 86400
"""


def measure() -> dict[str, Any]:
    """The row; with a `reason` where it could not be measured."""
    row: dict[str, Any] = {"shape": "ingest", "updates": UPDATES}
    if mqtt_server.find_mosquitto() is None:
        return {**row, "reason": "needs mosquitto: apt-get install mosquitto"}
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        server = mqtt_server.start(directory / "mqtt", kind="mosquitto")
        try:
            return {**row, **_run(directory, server.port)}
        finally:
            server.stop()


def _run(directory: Path, port: int) -> dict[str, Any]:
    sealed = list(_fleet(directory, port))
    uplink = "/".join(["+" if at in (3, 4) else part for at, part in enumerate(sealed[0][0].split("/"))])
    bare_command = [
        sys.executable,
        str(PEERS / "bare_subscriber.py"),
        "127.0.0.1",
        str(port),
        uplink,
        str(WARM),
        str(UPDATES),
    ]
    serve_command = [str(Path(sys.executable).with_name("broker")), "serve", "--config", str(directory / "broker.toml")]
    with (
        subprocess.Popen(bare_command, stdout=subprocess.PIPE, text=True) as bare,
        subprocess.Popen(serve_command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ours,
    ):
        assert bare.stdout is not None, "it was started with a pipe"
        try:
            _await_line(bare, "ready")
            _await_line(ours, "round-open")
            threading.Thread(target=_drain, args=(ours,), daemon=True).start()
            receipts = uplink.replace("/up/update", "/dn/receipt")
            _publish(port, sealed[:WARM], receipts)
            before_s = _cpu_s(ours.pid)
            seconds = _publish(port, sealed[WARM:], receipts)
            ours_s, bare_s = _cpu_s(ours.pid) - before_s, float(bare.stdout.readline())
        finally:
            ours.terminate()
            bare.terminate()
    return {
        "update_bytes": len(sealed[0][1]),
        "bare_us": round(1e6 * bare_s / UPDATES, 1),
        "ours_us": round(1e6 * ours_s / UPDATES, 1),
        "updates_per_s": round(UPDATES / seconds),
        "bare_over_ours": round(bare_s / ours_s, 3),
    }


def _fleet(directory: Path, port: int) -> Iterator[tuple[str, bytes]]:
    """Found the fleet, enrol its devices, ask for a round; give each device's topic and sealed update."""
    text = _CONFIG.format(port=port, keep_rate=KEEP_RATE)
    (directory / "broker.toml").write_text(text, "utf-8")
    keys.save_private(directory / "coordinator.key", keys.generate())
    config = parse(text, directory)
    first = first_version(MODEL.read_bytes(), "digits", "last-2", 1)
    frame = frame_of(model_of(first.manifest, first.blobs.__getitem__), "last-2")
    plan = plan_of(config, first.manifest, frame)
    seeds = {f"device-{at:05}": random.Random(at).randbytes(32) for at in range(WARM + UPDATES)}
    with Store(directory / "broker.db") as store, store.transaction():
        store.put_first_version(*first)
        for device, seed in seeds.items():
            store.add_device(device, keys.public_text(seed))
        store.request_rounds(plan, 1, 1_000_000, 0, 86_400_000)
    content = _payload(plan, frame)
    for device, seed in seeds.items():
        topic = topics.up(FLEET, device, "update")
        yield topic, envelope.seal(Update(1, 1, 40, 3, 4, content), topic, keys.signer(seed))


def _payload(plan: Plan, frame: Any) -> bytes:
    """As large as that of a hundredth of 400,000 parameters: 4,300 values of 8 bits."""
    update = made_up(plan, frame, lean=0.0)
    units = np.random.default_rng(1).integers(1, 128, len(update.indices)) * np.sign(update.values)
    update = dataclasses.replace(update, values=units.astype(np.int32))
    return payload.encode(update, frame.shapes, value_bits=plan.value_bits, coding="rice").payload


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


def _await_line(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None, "it was started with a pipe"
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        if word in line:
            return
    raise RuntimeError(f"{process.args!s} ended before it said {word}: {''.join(said)[-500:]}")


def _drain(process: subprocess.Popen[str]) -> None:
    """Read its log, so that it never waits for us."""
    assert process.stdout is not None, "it was started with a pipe"
    for _ in process.stdout:
        pass


def _cpu_s(pid: int) -> float:
    """User and system seconds of a process so far (proc(5), stat: fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


if __name__ == "__main__":
    print(json.dumps(measure()))
