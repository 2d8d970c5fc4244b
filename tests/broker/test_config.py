"""The configuration: what is allowed, and one sentence for what is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from broker.config import Config, ConfigError, load, parse, parse_duration_ms
from broker.database import Address
from broker.plans import is_dense, plan_of
from broker.versions import publish_max
from engine.codec import payload
from engine.codec.update import Update
from engine.frame import frame_of
from engine.program import memory_of
from tests.broker.fleet import first_manifest
from tests.engine.graph_tflite import write
from tests.engine.sketch import residual_net
from wire.limits import UPDATE_PAYLOAD_BYTES_MAX

if TYPE_CHECKING:
    from wire.messages import Manifest

DIGITS = frame_of((Path(__file__).parents[2] / "firmware_sim/models/digits.tflite").read_bytes(), "last-2")
FLOAT = frame_of(write(residual_net("float32")), "last-1")
LEAST = '[fleet]\nid = "farm"\n[model]\nname = "digits"\n'


def config(text: str = "", directory: str = "/srv/farm") -> Config:
    return parse(LEAST + text, Path(directory))


def test_the_least_configuration_is_filled_with_defaults() -> None:
    loaded = config()
    assert (loaded.mqtt.url, loaded.store.path, loaded.key.file) == ("embedded", "broker.db", "coordinator.key")
    assert (loaded.plan.keep_rate, loaded.plan.value_bits, loaded.plan.num_examples_max) == (0.01, 0, 4096)
    assert (loaded.round.updates_min, loaded.round.cohort_max, loaded.round.lasts_s) == (1, 0, 600)
    assert (loaded.aggregate.rule, loaded.aggregate.learning_rate, loaded.evaluate.data) == ("guarded", 1.0, "")
    assert str(loaded.path("broker.db")) == "/srv/farm/broker.db"
    assert str(loaded.path("/var/x.db")) == "/var/x.db"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[plan]\nepoch = 3", r"the configuration \[plan\]: there is no epoch; did you mean epochs\?"),
        ("[rounds]\nlasts_s = 3", r"there is no rounds; did you mean round\?"),
        ("[plan]\nzzz = 3", "there is no zzz; known: lane, epochs, batch_size"),
        ("directory = '/'", "there is no directory"),
        ("[plan]\nepochs = 'two'", r"\[plan\] epochs: Expected `int`, got `str`"),
        ("[plan]\nkeep_rate = 1.5", r"\[plan\] keep_rate: Expected `float` <= 1.0"),
        ("[round]\nupdates_min = 0", r"\[round\] updates_min: Expected `int` >= 1"),
        ("[plan", "is not TOML"),
        ("[store]\npath = 'a.db'\nurl = 'postgresql://h/d'", r"\[store\]: a path and a url: one of them"),
        ("[store]\nurl = 'mysql://h/d'", r"\[store\]: url: write postgresql://user@host/database"),
        ("[store]\nurl = 'postgresql://u:secret@h/d'", r"\[store\]: a url with a password: name a password_file"),
        ("[store]\nurl = 'postgresql://u@h/d?password=x'", r"\[store\]: a url with a password"),
        ("[store]\npassword_file = 'p'", r"\[store\]: a password_file without a url"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(text + "\n" + LEAST, Path())


def test_the_store_is_a_file_or_a_database_whose_password_is_in_another_file() -> None:
    assert config("[store]\npath = 'a.db'").store_place() == Path("/srv/farm/a.db")
    url = "postgresql://u@h/d?sslmode=verify-full"
    place = config(f"[store]\nurl = '{url}'\npassword_file = 'p'").store_place()
    assert place == Address(url, Path("/srv/farm/p"))
    assert str(place) == "postgresql://u@h/d"
    assert config(f"[store]\nurl = '{url}'").store_place() == Address(url)


def test_a_fleet_cannot_have_the_name_that_means_everyone() -> None:
    with pytest.raises(ConfigError, match="'all'"):
        parse(LEAST.replace("farm", "all"), Path())


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make one with broker init"):
        load(tmp_path / "broker.toml")
    (tmp_path / "broker.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "broker.toml")


def test_a_plan_keeps_the_configured_share_of_the_parameters() -> None:
    plan = plan_of(
        config("[plan]\nkeep_rate = 0.02\ntrainer_memory_mb = 256\ntrainer_s_max = 9"), sized(17_802), FLOAT, epochs=7
    )
    assert (plan.keep_count, plan.num_params, plan.epochs) == (356, 17_802, 7)
    assert (plan.trainer_memory_bytes_max, plan.trainer_ms_max) == (256 << 20, 9_000)
    assert plan_of(config(), first_manifest()[0], FLOAT).keep_count == 1


def test_a_rule_that_ranks_parameters_wants_a_plan_by_which_everything_is_sent() -> None:
    manifest = first_manifest()[0]
    for name in ("median", "trimmed-mean", "mixed-trimmed-mean"):
        ranked = config(f'[aggregate]\nrule = "{name}"')
        with pytest.raises(ConfigError, match=f"rule = '{name}': .*Set .plan. keep_rate = 1"):
            plan_of(ranked, manifest, FLOAT)
        with pytest.raises(ConfigError, match="keep_rate = 1"):
            plan_of(ranked, manifest, FLOAT, keep_rate=1.0, update_bytes_max=5_000)
        assert is_dense(plan_of(ranked, manifest, FLOAT, keep_rate=1.0))
        assert is_dense(plan_of(ranked, manifest, FLOAT, lane="hardened"))
    assert not is_dense(plan_of(config(), manifest, FLOAT))


def test_in_lane_hardened_nothing_is_owed() -> None:
    for said in ("momentum_correction = 0.5", "residual_decay = 0.9"):
        with pytest.raises(ConfigError, match=r'lane = "hardened": nothing is owed there'):
            plan_of(config(f'[plan]\nlane = "hardened"\n{said}'), first_manifest()[0], DIGITS)
    assert plan_of(config('[plan]\nlane = "hardened"'), first_manifest()[0], DIGITS).lane == "hardened"
    with pytest.raises(ConfigError, match=r"\[plan\] lane"):
        config('[plan]\nlane = "private"')


def test_what_holds_a_device_near_its_fleet_is_said_and_takes_memory() -> None:
    plain = plan_of(config(), sized(17_802), DIGITS)
    assert (plain.lane, plain.proximal, plain.scaffold) == ("economy", 0.0, False)
    plan = plan_of(config("[plan]\nproximal = 1\nscaffold = true"), sized(17_802), DIGITS)
    assert (plan.proximal, plan.scaffold) == (1.0, True)
    assert plain.trainer_arena_bytes < plan_of(config(), sized(17_802), DIGITS, proximal=0.5).trainer_arena_bytes
    assert plan.trainer_arena_bytes == memory_of(DIGITS.graph, DIGITS.suffix, 16, 0.9, proximal=1.0, corrects=True)
    with pytest.raises(ConfigError, match="no plan can say that"):
        plan_of(config(), sized(17_802), DIGITS, proximal=-0.5)
    with pytest.raises(ConfigError, match=r"\[plan\] proximal"):
        config("[plan]\nproximal = -0.5")


def test_devices_read_the_fleets_gradient_off_its_versions_so_those_move_by_the_mean() -> None:
    for said in ('rule = "fedavgm"', 'rule = "fedadam"', 'rule = "fedyogi"', "learning_rate = 0.5"):
        with pytest.raises(ConfigError, match=r"\[plan\] scaffold = true: a version must move by the mean"):
            plan_of(config(f"[plan]\nscaffold = true\n[aggregate]\n{said}"), sized(17_802), DIGITS)
    assert plan_of(config('[plan]\nscaffold = true\n[aggregate]\nrule = "fedavg"'), sized(17_802), DIGITS).scaffold


def test_the_model_says_how_its_updates_are_coded_and_what_its_training_takes() -> None:
    manifest = msgspec.structs.replace(sized(17_802), scale_epoch=4)
    exact, real = plan_of(config(), manifest, DIGITS, batch_size=8), plan_of(config(), manifest, FLOAT)
    assert (exact.value_bits, real.value_bits) == (0, 4)
    assert exact.scale_epoch == 4
    assert exact.trainer_arena_bytes == memory_of(DIGITS.graph, DIGITS.suffix, 8, 0.9)
    assert exact.trainer_arena_bytes < plan_of(config(), manifest, DIGITS, batch_size=64).trainer_arena_bytes


@pytest.mark.parametrize("train", ["last-1", "bias-3", "blocks-2", "full", "9:b,10:w/4"])
def test_what_trains_may_be_said_in_every_form_of_the_contract(train: str) -> None:
    assert parse(LEAST + f'train = "{train}"\n', Path()).model.train == train


def test_what_nothing_trains_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[model\] train"):
        parse(LEAST + 'train = "all"\n', Path())


def test_a_plan_that_breaks_the_contract_is_refused() -> None:
    with pytest.raises(ConfigError, match="no plan can say that"):
        plan_of(config("[plan]\nmomentum = 1.0"), first_manifest()[0], FLOAT)


def sized(num_params: int) -> Manifest:
    return msgspec.structs.replace(first_manifest()[0], num_params=num_params)


@pytest.mark.parametrize(
    ("num_params", "keep_rate", "value_bits"),
    [(4_000_000, 0.01, 4), (120_000, 0.5, 4), (80_000, 0.7, 8), (500_000, 0.2, 1)],
)
def test_an_update_of_a_plan_fits_into_a_message(num_params: int, keep_rate: float, value_bits: int) -> None:
    plan = plan_of(config(), sized(num_params), FLOAT, keep_rate=keep_rate, value_bits=value_bits)
    chance = np.random.default_rng(1)
    values = (chance.normal(size=plan.keep_count) + 4).astype(np.float32)  # the largest of a delta, as it were
    update = Update("float32", num_params, drawn(chance, num_params, plan.keep_count), values)
    coded = payload.encode(update, [(1, num_params)], value_bits=value_bits, coding="rice").payload
    assert UPDATE_PAYLOAD_BYTES_MAX / 4 < len(coded) <= UPDATE_PAYLOAD_BYTES_MAX


def drawn(chance: np.random.Generator, size: int, count: int) -> np.ndarray:
    return np.sort(chance.choice(size, count, replace=False)).astype(np.uint32)


@pytest.mark.parametrize(("num_params", "keep_rate"), [(2_000_000, 0.02), (60_000, 0.8), (8_000_000, 0.004)])
def test_an_update_of_the_largest_steps_fits_into_a_message(num_params: int, keep_rate: float) -> None:
    plan = plan_of(config(), sized(num_params), DIGITS, keep_rate=keep_rate)
    chance = np.random.default_rng(1)
    indices = drawn(chance, num_params, plan.keep_count)
    for units in (np.full(len(indices), -254), chance.integers(1, 255, len(indices))):
        update = Update("int8", num_params, indices, units.astype(np.int32))
        coded = payload.encode(update, [(1, num_params)], value_bits=0, coding="rice").payload
        assert UPDATE_PAYLOAD_BYTES_MAX / 3 < len(coded) <= UPDATE_PAYLOAD_BYTES_MAX


@pytest.mark.parametrize(
    ("num_params", "keep_rate", "value_bits"), [(4_000_000, 0.1, 4), (120_000, 1.0, 8), (8_000_000, 0.01, 1)]
)
def test_a_plan_whose_update_might_not_fit_is_refused(num_params: int, keep_rate: float, value_bits: int) -> None:
    with pytest.raises(ConfigError, match="fit into a message: lower keep_rate or value_bits"):
        plan_of(config(), sized(num_params), FLOAT, keep_rate=keep_rate, value_bits=value_bits)
    with pytest.raises(ConfigError, match="fit into a message: lower keep_rate"):
        plan_of(config(), sized(num_params), DIGITS, keep_rate=keep_rate)
    fits = plan_of(config("[plan]\nupdate_bytes_max = 5000"), sized(num_params), DIGITS, keep_rate=keep_rate)
    assert fits.update_bytes_max == 5000  # the device sends as many as fit
    with pytest.raises(ConfigError, match=r"200 bytes have no room for values.*be 256 at least"):
        plan_of(config("[plan]\nupdate_bytes_max = 200"), sized(num_params), DIGITS)


def test_a_plan_says_how_updates_are_coded_and_what_becomes_of_what_is_owed() -> None:
    plain = plan_of(config(), first_manifest()[0], DIGITS)
    assert (plain.coding, plain.update_bytes_max) == ("context", 0)
    assert (plain.momentum_correction, plain.residual_decay) == (0.0, 1.0)
    said = "[plan]\ncoding = 'rice'\nmomentum_correction = 0.5\nresidual_decay = 0.9\nvalue_bits = 3\n"
    plan = plan_of(config(said), first_manifest()[0], DIGITS)
    assert (plan.coding, plan.momentum_correction, plan.residual_decay, plan.value_bits) == ("rice", 0.5, 0.9, 3)
    assert plan_of(config(said), first_manifest()[0], FLOAT, coding="context").coding == "context"


def test_files_by_http_need_an_address_that_devices_can_reach() -> None:
    assert (config().http.url, config().http.port) == ("", 0)
    whole = config("[http]\nurl = 'https://farm.example:8443'\nport = 8443\ncert_file = 'c'\nkey_file = 'k'").http
    assert (whole.url, whole.bind) == ("https://farm.example:8443", "127.0.0.1")
    for text, sentence in (
        ("port = 8443", r"\[http\]: a port without a url"),
        ("url = 'https://farm.example'\ncert_file = 'c'", r"\[http\]: a certificate needs its key"),
        ("url = 'farm.example'", r"\[http\] url"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            config(f"[http]\n{text}")


def test_how_much_of_a_round_a_version_publishes_is_two_parameters_for_one_sent_unless_it_is_said() -> None:
    plan = plan_of(config(), sized(10_000), DIGITS)
    assert publish_max(config().aggregate.publish_rate, plan) == 2 * plan.keep_count == 200
    assert publish_max(0.5, plan) == 5_000
    assert publish_max(1e-9, plan) == 1
    assert publish_max(0.0, plan_of(config(), sized(10_000), DIGITS, keep_rate=0.5, coding="rice")) == 10_000


@pytest.mark.parametrize(("text", "ms"), [("90", 90_000), ("90s", 90_000), ("10m", 600_000), ("2h", 7_200_000)])
def test_durations_are_read_with_their_unit(text: str, ms: int) -> None:
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize("text", ["", "0s", "1.5h", "-3s", "10 m", "1w"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write 90s, 10m, 2h or 1d"):
        parse_duration_ms(text)
