"""The config: what a typo says, and that what keygen writes can be run."""

from __future__ import annotations

import pytest

from edge_agent import config
from edge_agent.budget import Hours, Limits
from edge_agent.config import ConfigError
from wire import keys

COORDINATOR = keys.public_text(keys.generate())
GOOD = f"""
[device]
id = "dev-1"
fleet = "fleet-1"
key = "dev-1.key"
coordinator_key = "{COORDINATOR}"
[mqtt]
url = "mqtt://localhost"
"""


def load(tmp_path, text: str) -> config.Config:
    (tmp_path / "c.toml").write_text(text)
    return config.load(tmp_path / "c.toml")


def test_the_least_config_has_defaults_and_paths_beside_the_file(tmp_path):
    found = load(tmp_path, GOOD)
    assert found.device.key == tmp_path / "dev-1.key"
    assert found.device.state == tmp_path / "state"
    assert found.samples_path == tmp_path / "state" / "samples"
    assert (found.samples.held_out_rate, found.samples.capacity, found.telemetry.every_s) == (0.2, 2000, 300)
    assert found.budget.limits() == Limits(None, None, mains_only=False, memory_bytes_max=512 << 20)


def test_what_keygen_writes_is_a_config_that_loads(tmp_path):
    made = config.make(tmp_path / "new", "dev-1", "fleet-1", "mqtts://host:8884", COORDINATOR)
    found = config.load(made.path)
    assert (found.device.id, found.device.fleet, found.mqtt.url) == ("dev-1", "fleet-1", "mqtts://host:8884")
    assert keys.public_text(keys.load_seed(found.device.key)) == made.public_key
    assert found.device.key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="never overwritten"):
        config.make(tmp_path / "new", "dev-1", "fleet-1", "mqtt://host", COORDINATOR)


def test_every_commented_key_of_the_sample_is_one_that_may_be_set(tmp_path):
    made = config.make(tmp_path, "dev-1", "fleet-1", "mqtt://host", COORDINATOR)
    lines = made.path.read_text().splitlines()
    opened = [line[2:] if line.startswith("# [") or (line[:2] == "# " and " = " in line) else line for line in lines]
    found = load(tmp_path, "\n".join(opened))
    assert (found.budget.temperature_c_max, found.budget.battery_rate_min, found.budget.mains_only) == (75.0, 0.4, True)
    assert found.mqtt.password_file == tmp_path / "password"
    assert (found.source.window, found.home_assistant.prefix) == ((80, 3), "homeassistant")
    limits = found.budget.limits()
    assert (limits.update_bytes_max, limits.day_bytes_max, limits.month_bytes_max) == (4_000, 1_000_000, 20_000_000)
    assert limits.hours == (Hours(22 * 60, 6 * 60),)
    assert (limits.full_voltage_only, limits.unthrottled_only, limits.busy_rate_max) == (True, True, 0.5)
    assert (limits.day_joules_max, limits.core_w, limits.metered) == (500.0, 1.5, ("wwan0",))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            GOOD + "[budget]\ntemperature_max = 60\n",
            r"c.toml: unknown key 'temperature_max' in \[budget\]\. Did you mean",
        ),
        (
            GOOD + "[budgt]\n",
            r"unknown key 'budgt' in the top level\. Did you mean 'budget'\? Allowed: device, mqtt, s",
        ),
        (GOOD + "[samples]\ncapacity = 'many'\n", r"c.toml: \[samples\] capacity: expected int, got str"),
        (GOOD + "[samples]\ncapacity = 0\n", r"\[samples\] capacity: expected int >= 1"),
        (GOOD + "[samples]\nheld_out_rate = 1.5\n", r"\[samples\] held_out_rate: expected float <= 0.9"),
        (GOOD + "[telemetry]\nevery_s = 1\n", r"\[telemetry\] every_s: expected int >= 10"),
        (GOOD + "[budget]\nday_bytes_max = 1000\n", r"\[budget\] day_bytes_max: no update fits .* 1024 or more, or 0"),
        (
            GOOD + "[budget]\nhours = ['22-6']\n",
            r"c.toml, \[budget\] hours: '22-6' is no time of the day: write it as 22:00-06:00",
        ),
        (GOOD + "[budget]\nhours = ['24:00-06:00']\n", r"hours: '24:00-06:00' is no time of the day"),
        (GOOD + "[budget]\nhours = ['06:00-06:00']\n", r"ends where it begins; leave hours out to train at any time"),
        (GOOD + "[budget]\nhours = '22:00-06:00'\n", r"\[budget\] hours: expected array, got str"),
        (GOOD + "[budget]\nbusy_rate_max = 50\n", r"\[budget\] busy_rate_max: expected float <= 1.0"),
        (GOOD + "[budget]\nupdate_bytes_max = -1\n", r"\[budget\] update_bytes_max: expected int >= 0"),
        (GOOD.replace('id = "dev-1"\n', ""), r"c.toml: \[device\] needs id"),
        (GOOD.replace('[mqtt]\nurl = "mqtt://localhost"\n', ""), r"c.toml: the section \[mqtt\] is missing"),
        (GOOD.replace('"dev-1"\n', '"dev/1"\n'), r"c.toml, \[device\] id: device 'dev/1' cannot be used"),
        (GOOD.replace("fleet-1", "all"), r"\[device\] fleet: fleet 'all' cannot be used"),
        (GOOD.replace(COORDINATOR, "ed25519:short"), r"\[device\] coordinator_key: .* is not a key"),
        (GOOD.replace("mqtt://", "http://"), r"\[mqtt\] url: 'http://localhost' is no MQTT server"),
        (GOOD.replace('"dev-1.key"', "7"), r"\[device\] key: expected the path of a file"),
        (GOOD + "password_file = 'p'\n", r"password_file is set and username is not"),
        ("device = 3\n", r"'device' is a section: write \[device\]"),
        ("[device\n", r"c.toml is not TOML"),
    ],
)
def test_every_mistake_is_one_line_that_says_what_where_and_how(tmp_path, text, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none.toml: .*keygen"):
        config.load(tmp_path / "none.toml")


def test_nothing_is_written_for_a_name_that_cannot_be_used(tmp_path):
    for device, url, key in (("dev/1", "mqtt://h", COORDINATOR), ("d", "h", COORDINATOR), ("d", "mqtt://h", "key")):
        with pytest.raises(ConfigError):
            config.make(tmp_path / "new", device, "fleet-1", url, key)
    assert not (tmp_path / "new").exists()


def test_the_password_is_the_first_line_of_its_file(tmp_path):
    found = load(tmp_path, GOOD + "username = 'u'\npassword_file = 'p'\n")
    with pytest.raises(ConfigError, match=r"cannot read .* password_file"):
        config.password(found)
    (tmp_path / "p").write_text("secret word\n")
    assert config.password(found) == "secret word"
    assert config.password(load(tmp_path, GOOD)) is None
