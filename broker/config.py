"""The broker's configuration: one TOML file, read once, checked whole.

Every table is a frozen struct with its defaults, so this file is also the list of what can be set. A key that is not
here is refused by name: a typing error must not silently become a default. Paths are relative to the file.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, get_type_hints
from urllib.parse import parse_qs, urlsplit

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from broker.database import Address, Place
from wire.limits import UPDATE_PAYLOAD_BYTES_MAX
from wire.messages import FleetId, Name, Train, Url  # noqa: TC001 - msgspec reads the annotations
from wire.topics import TopicError, check_name

EMBEDDED: Final = "embedded"
Count: TypeAlias = Annotated[int, Meta(ge=0, le=1_000_000)]
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000)]


class ConfigError(Exception):
    """The configuration cannot be used. One line: what, where, how to mend."""


class Fleet(Struct, frozen=True):
    """Whose rounds these are."""

    id: FleetId


class Mqtt(Struct, frozen=True):
    """Where the MQTT server is, and who we are there."""

    url: str = EMBEDDED  # or mqtt://host:1883, mqtts://host:8883
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0  # of the embedded server; 0: any free one
    username: str = ""
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class Http(Struct, frozen=True):
    """Where model files are besides, by HTTP range requests: what devices are told, and what we serve ourselves."""

    url: Url = ""  # how devices reach them: https://host:8443; empty: over MQTT alone
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0  # where we serve them; 0: somebody else does, or nobody
    bind: str = "127.0.0.1"  # of ours; empty: every address of this machine
    cert_file: str = ""  # with key_file: HTTPS
    key_file: str = ""

    def __post_init__(self) -> None:
        """Refuse halves."""
        if self.port and not self.url:
            raise ValueError("a port without a url: say how devices reach it, as in https://broker.example:8443")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("a certificate needs its key: set cert_file and key_file, or neither")


class Monitor(Struct, frozen=True):
    """Where monitors ask: /metrics for Prometheus, /healthz, /readyz."""

    port: Annotated[int, Meta(ge=0, le=65_535)] = 0  # 0: nowhere
    bind: str = "127.0.0.1"  # empty: every address of this machine


class StorePlace(Struct, frozen=True):
    """What keeps everything: the file of SQLite at `path`, or PostgreSQL at `url`."""

    path: str = ""  # broker.db where there is no url
    url: str = ""  # postgresql://user@host/database; coordinators on several machines can share it
    password_file: str = ""  # of that user; PostgreSQL's own PGPASSFILE does as well

    def __post_init__(self) -> None:
        """Refuse two stores, and a password that every reader of this file would see."""
        if self.url and self.path:
            raise ValueError("a path and a url: one of them, else nobody knows which store is meant")
        if self.password_file and not self.url:
            raise ValueError("a password_file without a url: a file of SQLite has no password")
        if self.url:
            _check_store_url(self.url)
        elif not self.path:
            force_setattr(self, "path", "broker.db")


class KeyFile(Struct, frozen=True):
    """The coordinator's private key."""

    file: str = "coordinator.key"


class Model(Struct, frozen=True):
    """Which model is trained, and how much of it."""

    name: Name
    train: Train = "last-2"  # last-3, bias-4, blocks-2, full, or operators: 9:b,10:w/4,14:w


class Recipe(Struct, frozen=True):
    """What a plan says unless `broker round open` says otherwise. Bounds are those of wire.messages.Plan."""

    lane: Literal["economy", "hardened"] = "economy"  # hardened: we hold what each device said, for rules that rank
    epochs: Positive = 2
    batch_size: Positive = 16
    learning_rate: float = 0.05
    momentum: float = 0.9
    clip_norm: float = 10.0
    keep_rate: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.01  # share of the parameters that one update carries
    value_bits: Annotated[int, Meta(ge=0, le=8)] = 0  # of a value; 0: an int8 model's are exact, a float model's have 4
    coding: Literal["rice", "context"] = "context"
    update_bytes_max: Annotated[int, Meta(ge=0, le=UPDATE_PAYLOAD_BYTES_MAX)] = 0  # 0: keep_rate decides
    momentum_correction: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    residual_decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0
    proximal: Annotated[float, Meta(ge=0.0, le=1e4)] = 0.0  # FedProx: every step is pulled to the base version; 0: none
    keep_local: Annotated[int, Meta(ge=0, le=64)] = 0  # so many last layers of those that train stay on each device
    scaffold: bool = False  # every step is corrected by how the device's gradients differ from the fleet's
    seed: Annotated[int, Meta(ge=0, le=2**53)] = 1
    num_examples_min: Count = 1
    num_examples_max: Annotated[int, Meta(ge=1, le=4096)] = 4096
    trainer_memory_mb: Annotated[int, Meta(ge=16, le=1 << 20)] = 512
    trainer_s_max: Positive = 300


class Round(Struct, frozen=True):
    """What a round is unless `broker round open` says otherwise."""

    mode: Literal["buffered", "synchronous"] = "buffered"  # offered to all at once, or to a cohort one by one
    updates_min: Positive = 1  # never close with fewer
    updates_enough: Positive = 10  # buffered: close at once with so many
    cohort_max: Count = 0  # how many devices a round wants; 0: everyone present and eligible
    oversample: Annotated[float, Meta(ge=1.0, le=10.0)] = 1.3  # synchronous: invite so many times as many as it wants
    lasts_s: Annotated[int, Meta(ge=1, le=30 * 24 * 3600)] = 600


class Rollout(Struct, frozen=True):
    """Who tries a new version before the fleet hears of it, and when it is put out; see broker.rollout."""

    rings: tuple[Annotated[int, Meta(ge=1, le=10_000)], ...] = ()  # devices of each ring in turn; none: no trial
    tags: tuple[Name, ...] = ()  # a device of a ring has every one of them
    answers_min: Positive = 3  # of a ring; smaller rings answer whole
    worse_rate: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.02  # of held-out answers, here or in the field
    error_rate: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.34  # of a ring's devices that refuse it, or never answer
    lasts_s: Annotated[int, Meta(ge=1, le=30 * 24 * 3600)] = 600  # how long one ring may take


class Enroll(Struct, frozen=True):
    """The fleet's certificate authority, which broker enroll init makes."""

    ca_cert: str = "ca.crt"  # its certificate, and behind it those who vouch for it
    ca_key: str = "ca.key"
    revoked: str = "revoked.crl"  # for the MQTT server
    days: Annotated[int, Meta(ge=1, le=825)] = 90  # of a device's certificate; it asks for another after two thirds


class Evaluate(Struct, frozen=True):
    """Held-out data of the coordinator's own."""

    data: str = ""  # .npz with x float32 [n, *window] and y int [n]; empty: no accuracy is measured


class Aggregate(Struct, frozen=True):
    """How many updates become one step."""

    rule: str = "guarded"
    learning_rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 1.0
    publish_rate: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0  # share of the parameters that a version changes for
    # devices; what is held back comes with a later one. 0: four for each that an update carries


class Config(Struct, frozen=True):
    """The whole file. `directory` is where it lies."""

    fleet: Fleet
    model: Model
    mqtt: Mqtt = Mqtt()
    http: Http = Http()
    metrics: Monitor = Monitor()
    store: StorePlace = StorePlace()
    key: KeyFile = KeyFile()
    plan: Recipe = Recipe()
    round: Round = Round()
    rollout: Rollout = Rollout()
    enroll: Enroll = Enroll()
    evaluate: Evaluate = Evaluate()
    aggregate: Aggregate = Aggregate()
    directory: str = "."

    def path(self, name: str) -> Path:
        """A path of the file, seen from where we are."""
        return Path(self.directory) / name

    def store_place(self) -> Place:
        """Where the store is."""
        store = self.store
        if not store.url:
            return self.path(store.path)
        return Address(store.url, self.path(store.password_file) if store.password_file else None)


def load(path: Path) -> Config:
    """Read and check the file; ConfigError with one sentence for anything that is not as it must be."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; make one with broker init DIR") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from error
    return parse(text, path.parent, str(path))


def parse(text: str, directory: Path, where: str = "the configuration") -> Config:
    """Check the text of a file that lies in `directory`; errors as `load`."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not TOML: {error}") from error
    _check_keys(tree, Config, where)
    try:
        config = msgspec.convert({**tree, "directory": str(directory)}, Config)
        check_name("fleet", config.fleet.id)
    except (msgspec.ValidationError, TopicError) as error:
        raise ConfigError(f"{where}: {_spoken(str(error))}") from error
    return config


def parse_duration_ms(text: str) -> int:
    """Read 90s, 10m, 2h, 1d or plain seconds as milliseconds; ConfigError for anything else."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})(s|m|h|d|)", text)
    if match is None:
        raise ConfigError(f"{text!r} is no duration: write 90s, 10m, 2h or 1d")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]] * 1000


def _check_store_url(url: str) -> None:
    """Refuse what is no URL of PostgreSQL, and one with a secret in it."""
    parts = urlsplit(url)
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ValueError("url: write postgresql://user@host/database")
    if parts.password is not None or {"password", "sslpassword"} & parse_qs(parts.query).keys():
        raise ValueError("a url with a password: name a password_file, or leave it to PGPASSFILE")


def _check_keys(tree: dict[str, Any], kind: type[Struct], where: str) -> None:
    for key, value in tree.items():
        hint = get_type_hints(kind).get(key)
        if hint is None or key == "directory":
            names = [name for name in kind.__struct_fields__ if name != "directory"]
            close = difflib.get_close_matches(key, names, 1)
            hope = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
            raise ConfigError(f"{where}: there is no {key}; {hope}")
        if isinstance(hint, type) and issubclass(hint, Struct) and isinstance(value, dict):
            _check_keys(value, hint, f"{where} [{key}]")


def _spoken(error: str) -> str:
    """The message of msgspec with our way of naming a key: `at $.plan.epochs` becomes `[plan] epochs: …`."""
    match = re.fullmatch(r"(.*?) - at `\$\.(\w+)(?:\.(\w+))?`", error)
    if match is None:
        return error
    what, table, key = match.groups()
    return f"[{table}] {key}: {what}" if key else f"[{table}]: {what}"
