"""How a fleet begins: a directory with the coordinator's key, its configuration, and a store that holds version 1.

The configuration is written last, so a directory with one is whole. Nothing that is there is ever overwritten: a
coordinator's key is what every device believes.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from broker.config import EMBEDDED, Aggregate, Http, KeyFile, Recipe, Rollout, Round, parse
from broker.database import Address, open_database
from broker.plans import FLOAT_BITS, plan_of
from broker.registry import first_version
from broker.store import Store
from engine.frame import frame_of
from wire import keys
from wire.link import parse_url
from wire.messages import MessageError

if TYPE_CHECKING:
    from broker.database import Place
    from broker.registry import First

CONFIG_FILE: Final = "broker.toml"
_CONFIG: Final = """\
# The coordinator of one fleet. Paths are relative to this file. A key that is not known here is refused.

[fleet]
id = {fleet}

[mqtt]
url = {mqtt}                # embedded, mqtt://host:1883, or mqtts://host:8883 with TLS
port = 1883                   # of the embedded server; 0: any free one
# username = "coordinator"
# password_file = "mqtt.password"
# ca_file = "ca.crt"
# cert_file = "coordinator.crt"
# key_file = "coordinator.tls.key"

[store]
{store}

[key]
file = "coordinator.key"      # what every device believes; keep it, and keep it secret

[model]
name = {name}
train = {train}              # what learns: last-3, bias-4, blocks-2, full, or operators as in 9:b,10:w/4

[plan]                        # what devices are told to do; broker round open can say otherwise
lane = "{plan.lane}"              # "hardened": we hold what each device ever said, for rules that rank parameters
epochs = {plan.epochs}
batch_size = {plan.batch_size}
learning_rate = {plan.learning_rate}
momentum = {plan.momentum}
clip_norm = {plan.clip_norm}              # a longer delta is shrunk to this length
keep_rate = {plan.keep_rate}              # the share of the parameters that one update carries
value_bits = {plan.value_bits}                # of a value; 0: all in an int8 model, {float_bits} in a float one
coding = "{plan.coding}"            # half the bytes; "rice" costs us a hundredth of the time to read
update_bytes_max = {plan.update_bytes_max}          # a device sends fewer values to keep below it; 0: keep_rate decides
momentum_correction = {plan.momentum_correction}     # of what a device still owes; 0: none
residual_decay = {plan.residual_decay}          # what is left of it for each version that the device missed
proximal = {plan.proximal}                # pulls every step of a device back to where it began (FedProx); 0: none
keep_local = {plan.keep_local}                # so many last layers of those that train stay on each device, as its own
scaffold = {scaffold}              # corrects every step by how a device's gradients differ from the fleet's
seed = {plan.seed}
num_examples_min = {plan.num_examples_min}          # a device with fewer labelled examples stays out
num_examples_max = {plan.num_examples_max}       # no device weighs more than this
trainer_memory_mb = {plan.trainer_memory_mb}       # limit of the training child's data (RLIMIT_DATA)
trainer_s_max = {plan.trainer_s_max}

[round]
mode = "{round.mode}"             # the next round opens when enough came; "synchronous": it waits for its cohort
updates_min = {round.updates_min}               # never close with fewer
updates_enough = {round.updates_enough}           # buffered: close at once with so many
cohort_max = {round.cohort_max}                # how many devices a round wants; 0: everyone who is there
oversample = {round.oversample}              # synchronous: invite so many times as many, and take the first to come
lasts_s = {round.lasts_s}

[rollout]                     # who tries a new version before the fleet hears of it
rings = []                    # devices of each ring in turn, as in [3, 20]; none: every version is shared at once
tags = []                     # of who may be in a ring: broker fleet tag
answers_min = {rollout.answers_min}               # a ring says nothing with fewer
worse_rate = {rollout.worse_rate}             # of held-out answers, here or in a ring: more, and it is put out
error_rate = {rollout.error_rate}             # of a ring's devices that refuse it, or never answer: the same
lasts_s = {rollout.lasts_s}

[evaluate]
data = {evaluate}                     # .npz with x (windows) and y (labels); empty: measure no accuracy

[aggregate]
rule = "{aggregate.rule}"
learning_rate = {aggregate.learning_rate}
publish_rate = {aggregate.publish_rate}            # share of the parameters that a version changes; 0: 2 x keep_rate

[http]                        # model files by HTTP range requests, beside MQTT
url = ""                      # how devices reach them, as in https://broker.example:8443; empty: over MQTT alone
port = 0                      # serve them here; 0: another server does, at url/SHA-256
bind = "{http.bind}"            # of our port; empty: every address
# cert_file = "http.pem"      # with its key: HTTPS
# key_file = "http-key.pem"
"""
_SQLITE: Final = 'path = "broker.db"            # SQLite: every update, round and model version'
_POSTGRES: Final = """\
url = {url}  # PostgreSQL: every update, round and model version
# password_file = "store.password"  # or PGPASSFILE"""


class FoundingError(Exception):
    """The fleet cannot begin here. One line: what, where, how to mend."""


class Wishes(Struct, frozen=True):
    """What the operator asks for."""

    model: Path
    name: str
    train: str = "last-2"
    reset_seed: int | None = None
    fleet: str = "fleet"
    mqtt: str = "embedded"
    evaluate: str = ""
    store: str = ""  # postgresql://user@host/database; empty: a file


class Founded(Struct, frozen=True):
    """What came of it."""

    config_path: Path
    public_key: str
    num_params: int


def found(directory: Path, wishes: Wishes) -> Founded:
    """Make the directory; FoundingError, ModelError, ConfigError or StoreError, and nothing is overwritten."""
    config = parse(_text(wishes), directory)
    place = config.store_place()
    paths = [directory / CONFIG_FILE, directory / KeyFile().file, *([place] if isinstance(place, Path) else [])]
    taken = next((path for path in paths if path.exists()), None)
    if taken is not None:
        raise FoundingError(f"{taken} exists, and nothing is overwritten: choose another directory")
    if isinstance(place, Address) and _is_taken(place):
        raise FoundingError(f"there is a store at {place}, and nothing is overwritten: name another database")
    try:
        if config.mqtt.url != EMBEDDED:
            parse_url(config.mqtt.url)
        model = wishes.model.read_bytes()
        first = first_version(model, wishes.name, wishes.train, wishes.reset_seed)
        plan_of(config, first.manifest, frame_of(model, wishes.train))
        return _write(directory, place, wishes, first)
    except OSError as error:
        raise FoundingError(f"cannot make {directory}: {error.filename}: {error.strerror}") from error
    except (MessageError, ValueError) as error:
        raise FoundingError(f"{wishes.model}: {error}") from error


def _is_taken(address: Address) -> bool:
    with contextlib.closing(open_database(address, read_only=True)) as database:
        return bool(database.columns("settings"))


def _write(directory: Path, place: Place, wishes: Wishes, first: First) -> Founded:
    directory.mkdir(parents=True, exist_ok=True)
    seed = keys.generate()
    keys.save_private(directory / KeyFile().file, seed)
    with Store(place) as store:
        store.put_first_version(*first)
    config_path = directory / CONFIG_FILE
    with config_path.open("x", encoding="utf-8") as file:
        file.write(_text(wishes))
        file.flush()
        os.fsync(file.fileno())
    return Founded(config_path, keys.public_text(seed), first.manifest.num_params)


def _text(wishes: Wishes) -> str:
    # a JSON string is a TOML string
    quoted = {key: json.dumps(getattr(wishes, key)) for key in ("fleet", "mqtt", "name", "train", "evaluate")}
    store = _POSTGRES.format(url=json.dumps(wishes.store)) if wishes.store else _SQLITE
    return _CONFIG.format(
        **quoted, store=store, plan=Recipe(), round=Round(), aggregate=Aggregate(), http=Http(), float_bits=FLOAT_BITS,
        rollout=Rollout(), scaffold=str(Recipe().scaffold).lower(),
    )  # fmt: skip
