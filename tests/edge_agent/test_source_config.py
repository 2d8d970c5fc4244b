"""Section `[source]` and `[home_assistant]`: what may stand there, and what a mistake says."""

from __future__ import annotations

import pytest

from edge_agent import doctor
from edge_agent.config import ConfigError
from tests.edge_agent.test_config import GOOD, load

HEAD = GOOD + "[source]\n"
DIRECTORY = HEAD + 'kind = "directory"\npath = "incoming"\nwindow = [80, 3]\n'


def test_without_the_sections_there_is_nothing(tmp_path):
    found = load(tmp_path, GOOD)
    assert (found.source, found.home_assistant) == (None, None)


def test_the_least_sections_have_defaults_and_paths_beside_the_file(tmp_path):
    found = load(tmp_path, DIRECTORY + "[home_assistant]\n")
    source = found.source
    assert (source.path, source.window, source.width, source.hop_count) == (tmp_path / "incoming", (80, 3), 3, 80)
    assert (source.period_s, source.keep_every, source.place) == (1.0, 1, f"directory {tmp_path / 'incoming'}")
    assert found.home_assistant.prefix == "homeassistant"
    assert found.waiting_path == tmp_path / "state" / "waiting"


def test_the_doctor_looks_at_the_source_and_lets_a_device_wait_for_its_first_label(tmp_path):
    assert doctor._source(load(tmp_path, GOOD)) == "none is configured: nothing is watched"
    with pytest.raises(doctor.Wrong, match="samples add"):
        doctor._samples(load(tmp_path, GOOD))
    found = load(tmp_path, DIRECTORY)
    assert "come with the first label" in doctor._samples(found)
    with pytest.raises(doctor.Wrong, match="incoming is not there: make it, or plug it in"):
        doctor._source(found)
    (tmp_path / "incoming").mkdir()
    assert doctor._source(found) == f"directory {tmp_path / 'incoming'}, windows of [80, 3]"
    with pytest.raises(doctor.Wrong, match=r"smbus2.*; install it with pip install 'hedgerow\[i2c\]'"):
        doctor._source(load(tmp_path, HEAD + 'kind = "i2c"\nwindow = [80, 3]\n'))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEAD, r"\[source\] needs kind"),
        (DIRECTORY + "windows = 3\n", r"unknown key 'windows' in \[source\]\. Did you mean 'window'"),
        (DIRECTORY.replace("directory", "webcam"), r"\[source\] kind: invalid enum value 'webcam'"),
        (DIRECTORY.replace("[80, 3]", "[0, 3]"), r"\[source\] window"),
        (DIRECTORY.replace("[80, 3]", "[]"), r"\[source\] window: expected array of length >= 1"),
        (DIRECTORY.replace('path = "incoming"\n', ""), r"c.toml, \[source\]: kind 'directory' needs path"),
        (DIRECTORY + "hop = 81\n", r"\[source\]: hop: 81 samples"),
        (HEAD + 'kind = "mqtt"\nwindow = [4]\n', r"kind 'mqtt' needs topic"),
        (HEAD + 'kind = "mqtt"\nwindow = [4]\ntopic = "a/#"\n', r"\[source\] topic"),
        (DIRECTORY + 'predictions = "fl/v1/f/00/d/up/birth"\n', r"\[source\] predictions"),
        (DIRECTORY + 'labels = "$SYS/x"\n', r"\[source\] labels"),
        (DIRECTORY + "baud = 1200\n", r"\[source\] baud"),
        (GOOD + '[home_assistant]\nprefix = "a/#"\n', r"\[home_assistant\] prefix"),
        (GOOD + '[home_assistant]\nprefx = "a"\n', r"unknown key 'prefx' in \[home_assistant\]"),
    ],
)
def test_every_mistake_is_one_line_that_says_what_and_where(tmp_path, text, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
