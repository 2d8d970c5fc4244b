"""Bytes until a fleet knows enough: ours, and those of Flower's dense wire.

Flower sends every parameter as float32, to the device and back, in each round. Its messages are made by Flower
itself, in an environment of its own (`benchmarks/peers/flower_wire.py`); what it pulls is taken to be as long as what
it pushes. How many rounds it needs is what the dense fleet of the same seed needs, which sends every step of every
parameter. That fleet trains int8; a float32 fleet learns alike (`make bench-qas`).

Both sides are charged with all that devices send and receive in a round's messages; neither with MQTT's or HTTP's own
packets beyond PUBLISH and PUBACK, TLS, TCP. The base file, which brings frozen layers, shapes and scales, and the first
parameters, is in the total, once a device; a device that is sold with it pays what `installed_vs_flower` says.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks import codec_peers
from benchmarks.environments import NotToBeHadError

if TYPE_CHECKING:
    from benchmarks.accuracy_runs import Measured
    from engine.frame import Frame

GIVEN: Final = {"writers": (0.90, 0.95, 0.96), "digits": (0.90, 0.92)}  # accuracies
HEADLINE: Final = ("writers", 0.95)  # what the targets take
FLOWER: Final = "Flower, dense"
ENVELOPE_BYTES: Final = 1_000  # of Flower's messages, where Flower cannot be asked


def flower_bytes(frame: Frame) -> tuple[int, str]:
    """What one dense update of the frame's tensors takes in Flower's messages, and where the figure is from."""
    peer = next(peer for peer in codec_peers.ALL if FLOWER in peer.coders)
    try:
        with tempfile.TemporaryDirectory() as folder:
            updates = Path(folder) / "update.npz"
            one = (np.zeros(1, np.uint32), np.ones(1, np.float32), frame.shapes)
            codec_peers.write_updates(updates, [one])
            process = codec_peers.Process(peer, updates)
            found = process.ask(FLOWER, 0)
            process.end()
    except NotToBeHadError as error:
        return 4 * frame.suffix.num_params + ENVELOPE_BYTES, f"4 bytes a parameter and {ENVELOPE_BYTES}: {error}"
    return int(found["bytes"]), f"measured, {peer.packages[0]}"


def rows(measured: list[Measured]) -> list[dict[str, Any]]:
    """For each mode of one task, and each given accuracy, the bytes of a device until then; beside Flower's."""
    task = measured[0].task
    dense = next((one for one in measured if one.mode.kept == "dense"), None)
    if task.name not in GIVEN or dense is None:
        return []
    message, source = flower_bytes(task.frame)
    found = []
    for given in GIVEN[task.name]:
        needed = dense.reached(given)
        if needed is None:
            continue
        theirs = statistics.mean(at for at, _ in needed) * task.per_round * message / task.devices
        found.append(
            {
                "task": task.name, "given": given, "mode": "Flower, dense", "rounds": [at for at, _ in needed],
                "up": theirs, "down": theirs, "base": None, "uplink_vs_flower": 1.0, "total_vs_flower": 1.0,
                "installed_vs_flower": 1.0, "message_bytes": message, "source": source,
            }
        )  # fmt: skip
        found += [_row(one, given, theirs) for one in measured]
    return found


def _row(one: Measured, given: float, theirs: float) -> dict[str, Any]:
    reached = one.reached(given)
    head = {"task": one.task.name, "given": given, "mode": one.mode.name}
    if reached is None:
        return head | {"rounds": None, "uplink_vs_flower": None, "total_vs_flower": None}
    devices = one.task.devices
    up, down, base = (
        statistics.mean(getattr(post, name) for _, post in reached) / devices for name in ("up", "down", "base_down")
    )
    return head | {
        "rounds": [at for at, _ in reached], "up": up, "down": down - base, "base": base,
        "uplink_vs_flower": up / theirs, "total_vs_flower": (up + down) / (2 * theirs),
        "installed_vs_flower": (up + down - base) / (2 * theirs),
    }  # fmt: skip


def headline(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that targets take: of HEADLINE, the mode with the fewest bytes in all."""
    mine = [
        row for row in found
        if (row["task"], row["given"]) == HEADLINE and row["mode"] != "Flower, dense"
        and row["total_vs_flower"] is not None
    ]  # fmt: skip
    return min(mine, key=lambda row: row["total_vs_flower"]) if mine else None
