"""A whole fleet's files in one directory: what operators and owners would make by hand, made in a second.

    DIR/broker/         broker.toml, coordinator.key, broker.db, held-out.npz
    DIR/device-01/      agent.toml, device-01.key, and state/ with the device's own samples
    DIR/mqtt/  DIR/logs/

The files are those of a real fleet, and the programs read them as a real fleet's programs do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from broker import registry
from broker.store import Store
from edge_agent import samples
from wire import keys

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from broker.registry import First
    from firmware_sim.data import Examples, Shares


@dataclass(frozen=True)
class Recipe:
    """How devices train and how much they send; the fields of [plan] in broker.toml that are not left to defaults."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    keep_rate: float
    value_bits: int
    clip_norm: float = 10.0


@dataclass(frozen=True)
class Wish:
    """Which fleet to make. `model` is a .tflite file's bytes; `lasts_s` how long a round waits for the present."""

    fleet: str
    model_name: str
    model: bytes
    shares: Shares
    recipe: Recipe
    rounds: int
    seed: int
    train: str = "last-2"  # what learns
    lasts_s: int = 60
    chaos: bool = True


@dataclass(frozen=True)
class Site:
    """Where everything lies, and who is who. `first` is version 1."""

    directory: Path
    devices: dict[str, str]  # device id → public key text
    coordinator: str  # public key text
    first: First

    @property
    def broker_config(self) -> Path:
        """The coordinator's configuration."""
        return self.directory / "broker" / "broker.toml"

    @property
    def store(self) -> Path:
        """The coordinator's store."""
        return self.directory / "broker" / "broker.db"

    def agent_config(self, device_id: str) -> Path:
        """A device's configuration."""
        return self.directory / device_id / "agent.toml"

    def log(self, name: str) -> Path:
        """The log of one program."""
        return self.directory / "logs" / f"{name}.log"


def prepare(wish: Wish, directory: Path, url: str, device_url: str = "") -> Site:
    """Make all files of the fleet under `directory`, which exists; `url` is the MQTT server's. Raises ModelError.

    `device_url`: where the devices find it, if that is somewhere else.
    """
    for name in ("broker", "logs"):
        (directory / name).mkdir()
    seed = keys.generate()
    keys.save_private(directory / "broker" / "coordinator.key", seed)
    coordinator = keys.public_text(seed)
    held, labels = wish.shares.test
    np.savez(directory / "broker" / "held-out.npz", x=held, y=labels)
    _write_toml(directory / "broker" / "broker.toml", _broker_tables(wish, url))
    devices = {
        name: _make_device(wish.fleet, directory / name, examples, coordinator=coordinator, url=device_url or url)
        for name, examples in wish.shares.devices.items()
    }
    first = registry.first_version(wish.model, wish.model_name, wish.train, wish.seed)
    _fill_store(first, directory / "broker" / "broker.db", devices)
    return Site(directory, devices, coordinator, first)


def _broker_tables(wish: Wish, url: str) -> dict[str, dict[str, Any]]:
    recipe = wish.recipe
    devices = len(wish.shares.devices)
    return {
        "fleet": {"id": wish.fleet},
        "mqtt": {"url": url},
        "model": {"name": wish.model_name, "train": wish.train},
        "plan": {
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "learning_rate": recipe.learning_rate,
            "momentum": recipe.momentum,
            "clip_norm": recipe.clip_norm,
            "keep_rate": recipe.keep_rate,
            "value_bits": recipe.value_bits,
            "seed": wish.seed,
        },
        # more than half must come, so that a round does not close on the few that are there while others restart
        "round": {"updates_min": devices // 2 + 1, "lasts_s": wish.lasts_s},
        "evaluate": {"data": "held-out.npz"},
    }


def _fill_store(first: First, path: Path, devices: Mapping[str, str]) -> None:
    with Store(path) as store, store.transaction():
        store.put_first_version(*first)
        for device_id, public in devices.items():
            store.add_device(device_id, public)


def _make_device(fleet: str, directory: Path, examples: Examples, *, coordinator: str, url: str) -> str:
    """Write the key, config and samples of the device that `directory` is named after; return its public key."""
    directory.mkdir()
    device_id = directory.name
    seed = keys.generate()
    keys.save_private(directory / f"{device_id}.key", seed)
    windows, labels = examples
    tables: dict[str, dict[str, Any]] = {
        "device": {
            "id": device_id,
            "fleet": fleet,
            "key": f"{device_id}.key",
            "coordinator_key": coordinator,
            "state": "state",
        },
        "mqtt": {"url": url},
        "samples": {"held_out_rate": 0.1, "capacity": len(labels)},
    }
    _write_toml(directory / "agent.toml", tables)
    (directory / "state").mkdir(mode=0o700)
    store = samples.create(directory / "state" / "samples", windows.shape[1:], len(labels))
    store.extend([window.astype("<f4").tobytes() for window in windows], labels.tolist())
    return keys.public_text(seed)


def _write_toml(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """JSON's strings, numbers and booleans are TOML's as well."""
    sections = (
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )
    path.write_text("\n".join(sections), "utf-8")
