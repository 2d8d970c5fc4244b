"""The demo: ten devices learn handwritten digits together, with nothing simulated but the owners.

Real processes, a real MQTT server, the int8 model that the project ships, scikit-learn's digits dealt unevenly among
the devices. On the way one agent, the coordinator and the MQTT server are killed. What comes out is a page with
plots and a summary in which every number was measured from outside.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from broker import report
from broker.history import Extra, Mark
from firmware_sim import central, data, fleet, summary
from firmware_sim.site import Recipe, Wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware_sim.data import Dataset
    from firmware_sim.fleet import Outcome
    from firmware_sim.screen import Screen

MODELS_DIR: Final = Path(__file__).parent / "models"

# 1 % of the int8 steps is a 130th of a dense float update, envelope and all; any rate from 0.005 to 0.05 does as well.
DIGITS: Final = Recipe(epochs=2, batch_size=16, learning_rate=0.01, momentum=0.9, keep_rate=0.01, value_bits=4)
WRIST: Final = Recipe(epochs=10, batch_size=16, learning_rate=0.005, momentum=0.9, keep_rate=0.02, value_bits=4)


@dataclass(frozen=True)
class Settings:
    """What the user may choose."""

    devices: int = 10
    rounds: int = 20
    seed: int = 1
    alpha: float = data.ALPHA
    chaos: bool = True
    train: str = "last-3"


@dataclass(frozen=True)
class Result:
    """What a run leaves: `summary.json`'s object, its sentences, and the page."""

    found: dict[str, Any]
    story: list[str]
    page: Path


def run(dataset: Dataset, model: Path, settings: Settings, out: Path, screen: Screen) -> Result:
    """Run a fleet on `dataset` and write the report into `out`.

    Raises DataError, ModelError, FleetError, MqttServerError or TrainingError, each a sentence. The fleet's own files
    are deleted; after an error of the fleet they stay, and the error says where.
    """
    shares = data.share(dataset, settings.devices, settings.seed, settings.alpha)
    wish = Wish(
        fleet="demo",
        model_name=model.stem,
        model=model.read_bytes(),
        shares=shares,
        recipe=WRIST if dataset.name.startswith("wisdm") else DIGITS,
        rounds=settings.rounds,
        seed=settings.seed,
        train=settings.train,
        chaos=settings.chaos,
    )
    _warm(screen.status)
    screen.status("training the same model with all data in one place, for comparison")
    beside = central.train_centrally(wish.model, wish.train, shares, settings.seed)
    directory = Path(tempfile.mkdtemp(prefix="hedgerow-demo-"))
    keep = False
    try:
        outcome = fleet.run(wish, directory, screen)
        screen.status("drawing the report")
        found = summary.numbers(wish, outcome, beside)
        story = summary.story(outcome)
        title = f"{dataset.name}: {settings.devices} devices, {settings.rounds} rounds, seed {settings.seed}"
        page = report.write(outcome.site.store, out, _extra(title, outcome, found, story))
    except fleet.FleetError as error:
        keep = True
        raise fleet.FleetError(f"{error}\nEverything of this run is in {directory}") from error
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    (out / "summary.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return Result(found, story, page)


def model_for(dataset: Dataset) -> Path:
    """The shipped model that takes this set's windows; DataError where there is none."""
    shapes: dict[tuple[int, ...], str] = {(8, 8, 1): "digits.tflite", (200, 1, 3): "wrist.tflite"}
    name = shapes.get(dataset.windows.shape[1:])
    if name is None:
        shape = "x".join(map(str, dataset.windows.shape[1:]))
        raise data.DataError(f"no shipped model takes windows of {shape} ({dataset.name}): name one with --model FILE")
    return MODELS_DIR / name


def _warm(say: Callable[[str], None]) -> None:
    """Compile the kernels once, so that no training child has to; seconds, or a minute the first time."""
    from engine.kernels.warm import warm

    warm(lambda kernel: say(f"preparing kernels, once: {kernel}"))


def _extra(title: str, outcome: Outcome, found: dict[str, Any], story: list[str]) -> Extra:
    """What the report needs beside the store."""
    names = {"agent": "agent killed", "coordinator": "coordinator killed", "MQTT server": "MQTT server killed"}
    return Extra(
        title=title,
        accuracy_start=found["accuracy_start"],
        accuracy_central=found["accuracy_central"],
        marks=tuple(Mark(blow.round_id, names[blow.target]) for blow in outcome.blows if blow.killed_s),
        wire_bytes={row.round_id: (row.bytes_up, row.bytes_down) for row in outcome.rows},
        update_bytes=tuple(outcome.sealed_bytes),
        rows=summary.rows(found),
        story=tuple(story),
    )
