"""The memory of a device that predicts: its agent and the child that watches a source, ten windows a second."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.footprint_fleet import Farm, memory_of
from benchmarks.footprint_rounds import small

if TYPE_CHECKING:
    from pathlib import Path

SOURCE: Final = '[source]\nkind = "replay"\npath = "stream.npy"\nwindow = [8, 8, 1]\nevery_ms = 100\n'
WINDOWS: Final = 6000
SHOWN_S: Final = 90.0  # predictions alone are worth a write of the status once a minute
SETTLE_S: Final = 3.0


def predicting_mb(directory: Path, tree: Path) -> tuple[float, float]:
    """Resident and proportional MB of all processes of one agent while it predicts. Raises FleetError."""
    with Farm(directory, tree, small()) as farm:
        (device,) = farm.site.devices
        config = farm.site.agent_config(device)
        np.save(config.with_name("stream.npy"), np.zeros((WINDOWS, 8, 8, 1), np.float32))
        agent = farm.start(device, more=SOURCE)
        farm.rounds(1)
        farm.wait(lambda: _predicts(farm, device), f"{device} predicts nothing", SHOWN_S)
        time.sleep(SETTLE_S)
        return memory_of(agent.pid)


def _predicts(farm: Farm, device: str) -> bool:
    """Whether its last prediction is a model's."""
    time.sleep(1.0)
    shown: dict[str, Any] = json.loads(farm.ask(device, "status", "--json"))
    last = shown["watching"]["last"]
    return last is not None and last["version"] > 0
