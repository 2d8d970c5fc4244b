"""The agent's config: one TOML file, read once, into frozen structs.

A key that is not known is an error and not a comment, because a typo in `temperature_c_max` would switch a limit off.
Paths are relative to the file. `SAMPLE` is what `edge-agent keygen` writes.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, get_args

import msgspec
from msgspec import Meta, Struct

from edge_agent import budget
from edge_agent.sources.settings import Settings
from wire import keys, topics

_MEMORY_MB: Final = Meta(ge=16, le=1 << 20)
_Bytes: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 50)]  # 0: no limit
_CONTROL_FREE: Final = Meta(pattern=r"^[^\x00-\x1f\x7f]+\Z")


class ConfigError(Exception):
    """The config cannot be used. One line: what, where, how to mend it."""


class Device(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `[device]`: who this is."""

    id: str
    fleet: str
    key: Path  # the private key, as `edge-agent keygen` writes it
    coordinator_key: str  # ed25519:…, the only one whose word is believed
    state: Path = Path("state")  # everything that the agent writes is under this directory


class Mqtt(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `[mqtt]`: how to reach the MQTT server."""

    url: str
    username: Annotated[str, _CONTROL_FREE] | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class Samples(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `[samples]`: the device's own examples."""

    held_out_rate: Annotated[float, Meta(ge=0.0, le=0.9)] = 0.2
    features_bytes_max: Annotated[int, Meta(ge=0, le=1 << 30)] = 8 << 20
    replay: Annotated[int, Meta(ge=0, le=10_000)] = 0
    capacity: Annotated[int, Meta(ge=1, le=100_000)] = 2000
    unlabelled: bool = False  # every window trains, without a label, for a model that gives its window back


class Budget(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `[budget]`: what the owner allows. A limit left out is none."""

    memory_mb: Annotated[int, _MEMORY_MB] = 512
    temperature_c_max: Annotated[float, Meta(ge=0.0, le=120.0)] | None = None
    battery_rate_min: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    mains_only: bool = False
    full_voltage_only: bool = False
    unthrottled_only: bool = False
    busy_rate_max: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    hours: tuple[str, ...] = ()
    day_joules_max: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    core_w: Annotated[float, Meta(gt=0.0, le=100.0)] = budget.CORE_W
    metered: tuple[Annotated[str, Meta(pattern=r"^[^\s/]{1,15}\Z")], ...] = ()
    update_bytes_max: _Bytes = 0
    day_bytes_max: _Bytes = 0
    month_bytes_max: _Bytes = 0

    def limits(self) -> budget.Limits:
        """The same in the units of the state machine."""
        same = msgspec.structs.asdict(self)
        memory_mb = same.pop("memory_mb")
        hours = tuple(map(budget.Hours.of, same.pop("hours")))
        return budget.Limits(**same, memory_bytes_max=memory_mb << 20, hours=hours)


class Telemetry(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `[telemetry]`: how often the device says how it is."""

    every_s: Annotated[int, Meta(ge=10, le=7 * 24 * 3600)] = 300


class HomeAssistant(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `[home_assistant]`: it is there where Home Assistant shall find the device by itself."""

    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*\Z", max_length=64)] = "homeassistant"


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    device: Device
    mqtt: Mqtt
    samples: Samples = Samples()
    budget: Budget = Budget()
    telemetry: Telemetry = Telemetry()
    source: Settings | None = None
    home_assistant: HomeAssistant | None = None

    @property
    def samples_path(self) -> Path:
        """The file of the device's own examples."""
        return self.device.state / "samples"

    @property
    def waiting_path(self) -> Path:
        """The file of windows that the source brought, and that wait for a label; where none needs one, the samples."""
        return self.samples_path if self.samples.unlabelled else self.device.state / "waiting"


SAMPLE: Final = """\
# Config of one device. Paths are relative to this file; a key that is not known is an error.

[device]
id = "{id}"
fleet = "{fleet}"
key = "{key}"                # private: nobody else may read it, nobody needs a copy
coordinator_key = "{coordinator_key}"
state = "{state}"            # samples, models and the outbox: all that the agent writes

[mqtt]
url = "{url}"
# username = "{id}"
# password_file = "password"    # one line
{tls}

[samples]
held_out_rate = 0.2             # this share of the labelled windows measures, and never trains
features_bytes_max = 8388608    # what the frozen part makes of windows is kept on flash, so that it runs once; 0: never
replay = 0                      # so many windows that have left the store train again beside the new ones
capacity = 2000                 # windows; the oldest is forgotten first
# unlabelled = true             # each trains as its own target: for a model that gives its window back (anomalies)

[budget]                        # a limit that cannot be checked on this host keeps it from training
memory_mb = 512
# temperature_c_max = 75.0
# battery_rate_min = 0.4
# mains_only = true
# full_voltage_only = true      # of a Raspberry Pi: not while its power supply is too weak
# unthrottled_only = true       # nor while its firmware takes the clock back
# busy_rate_max = 0.5           # of all cores, that other programs may take; theirs comes first
# hours = ["22:00-06:00"]       # of this host's local time
# day_joules_max = 500          # that trainings may take from 00:00 UTC, at core_w watts for each busy core
# core_w = 1.5                  # Pi 3: 0.8, Pi 4: 0.9, Pi 5: 1.5
# metered = ["wwan0"]           # interfaces over which a finished update is sent, and nothing else
# update_bytes_max = 4000       # of one update: it carries fewer values then; 0: as many as the plan says
# day_bytes_max = 1000000       # of all that the link carries, both ways, from 00:00 UTC; 0: no limit
# month_bytes_max = 20000000

[telemetry]
every_s = 300

# [source]                      # what is watched, day and night; without this section nothing is
# kind = "directory"            # or replay, mqtt, serial, i2c, microphone, camera
# path = "incoming"             # of directory, replay, serial; new .npy, .npz and .csv files are read, each once
# window = [80, 3]              # 80 samples of 3 numbers: the shape that the model takes
# hop = 40                      # samples from one window to the next
# keep_every = 1                # one window in so many is kept until its label comes

# [home_assistant]              # Home Assistant finds the device by itself
# prefix = "homeassistant"
"""
NO_TLS: Final = '# ca_file = "ca.pem"            # with mqtts:// only; also cert_file and key_file'


def load(path: Path) -> Config:
    """Read and check the file; raise ConfigError with one line that says what, where and how to mend it."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; edge-agent keygen writes a first one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    _check_keys(path, "", tree, Config)

    def resolve(kind: type, value: Any) -> Any:
        if kind is Path and isinstance(value, str) and value:
            return path.parent.absolute() / value
        raise TypeError("expected the path of a file")

    try:
        config = msgspec.convert(tree, Config, dec_hook=resolve)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_in_words(str(error))}") from error
    if config.device.state == Path("state"):  # the default has not been through the hook
        device = msgspec.structs.replace(config.device, state=path.parent.absolute() / "state")
        config = msgspec.structs.replace(config, device=device)
    _check(path, config)
    return config


class Made(NamedTuple):
    """What `make` wrote, and what the coordinator needs to know."""

    path: Path
    public_key: str


def make(directory: Path, device_id: str, fleet: str, url: str, coordinator_key: str) -> Made:
    """Write a new private key and a first config to `directory`; raise ConfigError, with nothing written, if wrong."""
    path, key = directory / f"{device_id}.toml", directory / f"{device_id}.key"
    device = Device(id=device_id, fleet=fleet, key=key, coordinator_key=coordinator_key, state=directory)
    _check(Path("the command line"), Config(device, Mqtt(url)))
    if path.exists():
        raise ConfigError(f"{path} exists: a config is never overwritten; move it away first")
    directory.mkdir(parents=True, exist_ok=True)
    seed = keys.generate()
    try:
        keys.save_private(key, seed)
    except keys.KeyTextError as error:
        raise ConfigError(str(error)) from error
    given = {"id": device_id, "fleet": fleet, "coordinator_key": coordinator_key, "url": url}
    names = {"key": f"{device_id}.key", "state": f"{device_id}-state", "tls": NO_TLS}
    path.write_text(SAMPLE.format(**given, **names), encoding="utf-8")
    return Made(path, keys.public_text(seed))


def password(config: Config) -> str | None:
    """The first line of the password file, if one is set; raises ConfigError when it cannot be read."""
    file = config.mqtt.password_file
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read [mqtt] password_file {file}: {error}") from error


def _check(path: Path, config: Config) -> None:
    from wire.link import parse_url  # brings paho, which --help need not wait for

    checks = (
        ("[device] id", lambda: topics.check_name("device", config.device.id)),
        ("[device] fleet", lambda: topics.check_name("fleet", config.device.fleet)),
        ("[device] coordinator_key", lambda: keys.verifier(config.device.coordinator_key)),
        ("[mqtt] url", lambda: parse_url(config.mqtt.url)),
        ("[budget] hours", config.budget.limits),
        ("[source]", lambda: config.source and config.source.check(config.device.id)),
    )
    for where, check in checks:
        try:
            check()
        except ValueError as error:  # TopicError and KeyTextError among them
            raise ConfigError(f"{path}, {where}: {error}") from error
    for name in ("update_bytes_max", "day_bytes_max", "month_bytes_max"):
        if 0 < getattr(config.budget, name) < budget.UPDATE_BYTES_MIN:
            raise ConfigError(
                f"{path}, [budget] {name}: no update fits into so few bytes; {budget.UPDATE_BYTES_MIN} or more, "
                "or 0 for no limit"
            )
    if config.mqtt.password_file is not None and config.mqtt.username is None:
        raise ConfigError(f"{path}, [mqtt]: password_file is set and username is not; MQTT has no password alone")


def _check_keys(path: Path, section: str, table: dict[str, Any], kind: type[Struct]) -> None:
    """Name the first unknown key, and what was probably meant."""
    known = {field.name: field.type for field in msgspec.structs.fields(kind)}
    where = f"[{section}]" if section else "the top level"
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{path}: unknown key {key!r} in {where}.{meant} Allowed: {', '.join(known)}")
        if not section:
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: {key!r} is a section: write [{key}] on a line of its own")
            _check_keys(path, key, value, (get_args(known[key]) or (known[key],))[0])  # of a section or None


def _in_words(complaint: str) -> str:
    """`Expected `int`, got `str` - at `$.samples.capacity`` becomes what an owner reads."""
    what, _, where = complaint.replace("`", "").partition(" - at $.")
    section, _, key = where.partition(".")
    if "missing required field" in what:
        name = what.rpartition(" ")[2]
        return f"[{where}] needs {name} = …" if where else f"the section [{name.removesuffix(' - at $')}] is missing"
    return f"[{section}] {key}: {what[:1].lower()}{what[1:]}"
