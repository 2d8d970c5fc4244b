"""The coordinator's side of a swarm, made in a directory: its key, its configuration, and a store with every device.

    DIR/broker/   broker.toml, coordinator.key, broker.db
    DIR/mqtt/     the MQTT server's configuration and log, where it is ours
    DIR/coordinator.log

It is what `broker init` and one `broker fleet add` for each device make. The model is the small one that ships, so that
what devices fetch is little; the plan is the configured one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from broker.config import KeyFile, parse
from broker.cost import made_up
from broker.founding import CONFIG_FILE
from broker.registry import first_version
from broker.store import Store
from broker.views import ask_for_rounds, current_plan
from engine.codec.payload import encode
from engine.frame import frame_of
from wire import keys

if TYPE_CHECKING:
    from broker.config import Config

MODEL: Final = Path(__file__).parents[1] / "models" / "wrist.tflite"
TRAIN: Final = "last-2"
PAYLOADS: Final = 48  # made once: a coordinator reads each of them anew all the same


@dataclass(frozen=True)
class Access:
    """How everybody reaches the MQTT server."""

    url: str
    username: str = ""
    password_file: Path | None = None
    ca_file: Path | None = None

    @property
    def password(self) -> str | None:
        """What is in the file. Raises OSError."""
        return self.password_file.read_text("utf-8").rstrip("\n") if self.password_file is not None else None


@dataclass(frozen=True)
class SwarmSite:
    """Where the coordinator's files are, and the private key of each device."""

    directory: Path
    config: Config
    keys: dict[str, bytes]
    coordinator: str  # public key text

    @property
    def config_path(self) -> Path:
        """The coordinator's configuration."""
        return self.directory / "broker" / CONFIG_FILE

    @property
    def store(self) -> Path:
        """The coordinator's store."""
        return self.config.path(self.config.store.path)

    @property
    def log(self) -> Path:
        """What the coordinator says."""
        return self.directory / "coordinator.log"


def prepare(directory: Path, fleet: str, device_count: int, access: Access) -> SwarmSite:
    """Make all of it in `directory`, which is there; raises StoreError, ModelError or OSError."""
    home = directory / "broker"
    home.mkdir()
    seed = keys.generate()
    keys.save_private(home / KeyFile().file, seed)
    digits = len(str(device_count))
    devices = {f"device-{number:0{digits}}": keys.generate() for number in range(1, device_count + 1)}
    text = _config_text(fleet, access)
    (home / CONFIG_FILE).write_text(text, "utf-8")
    config = parse(text, home)
    first = first_version(MODEL.read_bytes(), MODEL.stem, TRAIN, None)
    with Store(config.path(config.store.path)) as store, store.transaction():
        store.put_first_version(*first)
        for device_id, key in devices.items():
            store.add_device(device_id, keys.public_text(key))
    return SwarmSite(directory, config, devices, keys.public_text(seed))


def payloads_of(site: SwarmSite) -> list[bytes]:
    """What trainings may answer: updates at random places of the real model, coded as the plan says."""
    with Store(site.store, read_only=True) as store:
        plan = current_plan(site.config, store)
    frame = frame_of(MODEL.read_bytes(), TRAIN)

    def one(seed: int) -> bytes:
        update = made_up(replace(plan, seed=seed), frame, lean=0.0)
        return encode(update, frame.shapes, value_bits=plan.value_bits, coding=plan.coding).payload

    return [one(seed) for seed in range(PAYLOADS)]


def request(site: SwarmSite, count: int, updates_min: int, lasts_s: int) -> None:
    """Ask for rounds as `broker round open` does."""
    with Store(site.store) as store:
        ask_for_rounds(
            site.config, store, count=count, updates_min=updates_min, cohort_max=None, lasts_ms=lasts_s * 1000
        )


def _config_text(fleet: str, access: Access) -> str:
    """The file's text: JSON's strings are TOML's as well."""
    mqtt = {
        "url": access.url,
        "username": access.username,
        "password_file": str(access.password_file.absolute()) if access.password_file is not None else "",
        "ca_file": str(access.ca_file.absolute()) if access.ca_file is not None else "",
    }
    tables = {"fleet": {"id": fleet}, "mqtt": mqtt, "model": {"name": MODEL.stem, "train": TRAIN}}
    lines = [
        line
        for name, table in tables.items()
        for line in (f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()))
    ]
    return "\n".join([*lines, ""])
